"""``pc3d zeroshot``: classify shapes by class names alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pc3d.cli import _alignment, _output
from pc3d.cli._devices import open_device
from pc3d.cli._inputs import LeftOut, OnError, Points, UpAxis, Variant, extract, left_out_lines
from pc3d.cli._judging import check_rows_folder, interrupted
from pc3d.cli._parser import run_verb

if TYPE_CHECKING:
    from pc3d.evaluation import Features


def zeroshot(
    encoder: str,
    data: str = "household",
    variant: Variant | None = None,
    split: str = "test",
    classes: str | None = None,
    templates: str = "ulip",
    text_tower: str | None = None,
    class_features: str | None = None,
    num_points: Points = "default",
    replacement: bool = False,
    up: UpAxis | None = None,
    batch_size: int = 16,
    device: str = "cpu",
    on_error: OnError = "refuse",
    drop_invalid: bool = False,
    results: str | None = None,
    method: str | None = None,
    seed: int = 0,
) -> None:
    """Classify shapes by the nearest class text: top-1, 3 and 5 if there are labels, else the five nearest of each.

    Args:
        encoder: Folder or Hub id of an encoder aligned with texts: a run of the method OpenShape, or a converted
            official checkpoint.
        data: 'household' (embedded), a folder with a data set or with files of points or meshes, or one such file.
        variant: Variant of ScanObjectNN or of ModelNet's text files.
        split: Split of the data set; not used for plain files.
        classes: Comma-separated names, or a file with one per line, optionally followed by a tab and a prompt (several
            lines with one name give it several prompts). By default the data set's own names, with spaces instead of
            underscores. Scored if they include all of the data set's classes.
        templates: Prompt templates for the names: 'ulip' (64, published), 'photo', 'none', or a file with one per line.
        text_tower: Text tower, if the encoder does not name its own, such as 'offline:minilm'.
        class_features: File with the classes and their features, instead of a text tower and templates:
            cat_name_pt_feat.npy or lvis_cat_name_pt_feat.npy of OpenShape's release.
        num_points: Most points per shape, a random subset; by default as many as the encoder was made for; null takes
            all.
        replacement: Draw num_points of every shape with replacement, also where it has fewer, as OpenShape's released
            code draws 10,000 of the 2,048 points of ScanObjectNN.
        up: Axis that points up in the data; by default that of the data set, y in GLB files, else z.
        batch_size: Shapes per forward pass.
        device: Where the encoder computes, such as cpu or cuda.
        on_error: What to do with a file that cannot be used: 'refuse' stops; 'report' leaves the file out and lists it
            with the reason (with --json, as left_out beside the scores or, without labels, beside the shapes).
        drop_invalid: Leave out points of files that are not finite numbers.
        results: Folder for a row of pc3d results.
        method: Name in the table of results; the encoder's by default.
        seed: Seed of the bootstrap interval.
    """
    from pc3d.evaluation import Kept, rank_classes, write_rows, zero_shot

    check_rows_folder(results, method)
    place = open_device(device)
    if class_features is not None and (classes is not None or text_tower is not None or templates != "ulip"):
        raise ValueError(
            "class_features: the file has classes and features: leave classes, templates and text_tower out"
        )
    patterns = _alignment.templates_of(templates)
    aligned = _alignment.open_aligned(encoder)
    source = _alignment.shapes(data, split, variant, up, on_error, drop_invalid)
    left_out = LeftOut(data, source.dataset, on_error)
    own = source.dataset.classes
    if class_features is not None:
        names, raw = _alignment.stored_class_vectors(aligned, class_features, own)
        told = f"features of {Path(class_features).name}"
    else:
        wanted = _named_classes(own, classes, data)
        tower = _alignment.open_text_tower(aligned, text_tower)
        names, raw = list(wanted), _alignment.class_vectors(tower, list(wanted.values()), patterns)
        told = f"{tower.name}, {len(patterns)} template(s)"
    vectors = aligned.text_targets(raw).detach().numpy()
    points = _alignment.points_for(aligned, num_points)
    if replacement:
        if points is None:
            raise ValueError("replacement: say how many points are drawn: num_points must be a number")
        source = replace(source, sampling="replacement")
    options: dict[str, Any] = {"batch_size": batch_size, "pooling": "none", "num_points": points}
    asked = (encoder, data, variant, split, classes, templates, text_tower, class_features)
    choice = (*asked, num_points, replacement, up, batch_size, device, on_error, drop_invalid, seed)
    with Kept(interrupted("zeroshot", *choice)) as kept:
        options |= {"kept": kept, "leave_out": left_out}
        features = extract(aligned.view("text").to(place), encoder, source, data, split, **options)
        if (source.dataset.labels >= 0).any():
            scored = _relabelled(features, own, names)
            result = zero_shot(scored, vectors, texts=told, seed=seed)
            found = result.to_dict()
            said = "\n".join([str(result), *left_out_lines(left_out.files)])
            _output.result(found if on_error == "refuse" else {**found, "left_out": left_out.files}, said)
            if results is not None:
                write_rows([result.to_row(method)], results)
            return
        if results is not None:
            raise ValueError(f"results: {data} has no labels, there is no score to keep: leave the option out")
        order, cosine = rank_classes(features.values, vectors)
        best = [
            [(names[k], round(float(value), 4)) for k, value in zip(classes_of[:5], values, strict=False)]
            for classes_of, values in zip(order, cosine, strict=True)
        ]
        named = list(zip(features.ids, best, strict=True))
        lines = [f"{name}: " + ", ".join(f"{found} {value:.3f}" for found, value in entry) for name, entry in named]
        shapes = [{"id": name, "classes": entry} for name, entry in named]
        said = "\n".join([*lines, *left_out_lines(left_out.files)])
        _output.result(shapes if on_error == "refuse" else {"shapes": shapes, "left_out": left_out.files}, said)


def _named_classes(own: Sequence[str], classes: str | None, data: str) -> dict[str, list[str]]:
    """Names and prompts of the classes, those of the data unless others are given."""
    if classes is not None:
        return _alignment.read_classes(classes)
    if not own:
        raise ValueError(f"classes: {data} has no class names: give some, as in --classes 'chair,table,a wooden lamp'")
    return {name: [_alignment.spoken(name)] for name in own}


def _relabelled(features: Features, own: Sequence[str], names: Sequence[str]) -> Features:
    """The features with labels that count in the order of the given names.

    Raises:
        ValueError: a class that occurs is not among them.
    """
    import numpy as np

    place = {name: row for row, name in enumerate(names)}
    occurring = sorted({own[label] for label in features.labels.tolist() if label >= 0})
    missing = [name for name in occurring if name not in place]
    if missing:
        raise ValueError(
            f"classes: {len(missing)} of the data's are not among the {len(names)} given ({', '.join(missing[:5])}): "
            "add them; a line of the file may give a prompt of its own, after a tab"
        )
    table = np.array([place.get(name, -1) for name in own], dtype=np.int64)
    labels = np.where(features.labels >= 0, table[features.labels], -1)
    return replace(features, labels=labels, classes=tuple(names))


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    return run_verb("zeroshot", zeroshot, argv)
