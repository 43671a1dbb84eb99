"""``pc3d embed``: write features to a file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from pc3d._files import check_writable
from pc3d.cli import _output
from pc3d.cli._alignment import inputs_for, points_for
from pc3d.cli._inputs import (
    LeftOut,
    OnError,
    Points,
    UpAxis,
    Variant,
    extract,
    left_out_lines,
    open_encoder,
    open_inputs,
    pooling_of,
)
from pc3d.cli._parser import check_used, run_verb


def embed(
    encoder: str,
    output: str,
    data: str = "household",
    variant: Variant | None = None,
    split: str = "test",
    pooling: str | None = None,
    num_points: Points = "default",
    up: UpAxis | None = None,
    drop_invalid: bool = False,
    batch_size: int = 32,
    device: str = "cpu",
    untrained: bool = False,
    seed: int = 0,
    space: Literal["encoder", "text", "image", "joint"] = "encoder",
    on_error: OnError = "refuse",
    overwrite: bool = False,
) -> None:
    """Write the features of a data set, a folder or a file of points to an .npz file.

    The file holds 'features' (n, D) float32, 'label' (n,) int64 with -1 for unlabelled, 'id' and 'classes', and how
    they were made: 'encoder', 'pooling', 'num_points', 'content_hash'. It is written at the end. If interrupted, the
    same command continues from a folder .NAME.kept beside the file.

    Args:
        encoder: Folder or Hub id of an exported encoder, or an official .pth file of Point-MAE's family or POS-BERT; or
            'descriptor' or 'pca', the handcrafted baselines.
        output: The .npz file to write.
        data: 'household' (embedded), a folder with a data set or with files of points or meshes, or one such file.
        variant: Variant of ScanObjectNN (obj_bg, the default, obj_only, pb_t50_rs, ...) or of ModelNet's text files
            (modelnet40, the default, or modelnet10).
        split: Split of the data set; not used for plain files.
        pooling: Name of the encoder's pooling; by default the encoder's own. For PointViT: max, mean, max+mean (its
            default), concat(max,mean), concat(cls,max,mean), cls.
        num_points: Points per cloud: the first 1024 by default. For an encoder aligned with texts and pictures, by
            default a random subset of at most as many as it was made for. null takes all.
        up: For an encoder aligned with texts and pictures, the axis that points up in the data; by default that of the
            data set, y in GLB files, else z.
        drop_invalid: Leave out points of files that are not finite numbers.
        batch_size: Clouds per forward pass.
        device: Where the encoder computes, such as cpu or cuda.
        untrained: Keep the architecture, but draw fresh weights from the seed.
        seed: Seed of untrained weights, and of the descriptor's pairs of points.
        space: For an encoder aligned with texts and pictures: its own embedding, or vectors to compare with features of
            texts, of pictures, or of both (of unit length, like those that pc3d index stores for the same shapes).
        on_error: What to do with a file that cannot be used: 'refuse' stops; 'report' leaves the file out and lists it
            with the reason (with --json, as left_out).
        overwrite: Replace an existing file.
    """
    from pc3d.evaluation import Kept, save_features

    drawn = untrained or encoder == "descriptor"
    check_used(embed, {"seed": seed}, {"seed": None if drawn else "--untrained and the descriptor"})
    path = Path(output)
    if path.suffix != ".npz":
        raise ValueError(f"output: must end in .npz, got {output!r}; did you mean {output + '.npz'!r}?")
    check_writable(path.parent, "output")
    if path.exists() and not overwrite:
        raise FileExistsError(f"output: {path} exists and would be lost: choose another name, or add --overwrite")
    policy: dict[str, Any] = {"on_error": on_error, "drop_invalid": drop_invalid}
    choice: dict[str, Any] = {"data": data, "num_points": num_points, "variant": variant, "device": device, **policy}
    model, name = open_encoder(encoder, untrained=untrained, seed=seed, **choice)
    points = points_for(model, num_points)
    opened = partial(open_inputs, **policy)
    source = inputs_for(model, data, split, points, variant, up, opened)
    left_out = LeftOut(data, source.dataset, on_error)
    if space != "encoder":
        from pc3d.models import as_aligned

        model = as_aligned(cast(Any, model)).view(space)
    options = {"batch_size": batch_size, "pooling": pooling_of(model, pooling), "num_points": points}
    with Kept(path.with_name(f".{path.name}.kept")) as kept:
        features = extract(model, name, source, data, split, kept=kept, leave_out=left_out, **options)
        written = save_features(features, path, overwrite=overwrite)
    told = {"file": str(written), "clouds": len(features), "dimensions": features.values.shape[1]}
    lines = [f"{written}: {told['clouds']} clouds, {told['dimensions']} dimensions", *left_out_lines(left_out.files)]
    _output.result(told if on_error == "refuse" else {**told, "left_out": left_out.files}, "\n".join(lines))


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    return run_verb("embed", embed, argv)
