"""What ``--data`` and ``--encoder`` may say, turned into objects. Heavy imports stay inside the functions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pc3d.cli._parser import nearest

if TYPE_CHECKING:
    from pc3d.data import PointDataset
    from pc3d.evaluation import Encoder, Features

HANDCRAFTED = ("descriptor", "pca")


def open_split(data: str, split: str, num_points: int | None) -> PointDataset:
    """A split of a data set.

    Args:
        data: ``"household"``, or a folder: shards in pc3d's own format, a published data set, or files by class.
        split: ``"train"`` or ``"test"``.
        num_points: points per item, where the set can be cut.

    Raises:
        FileNotFoundError: neither a known name nor a folder.
    """
    from pc3d.data import Household, ObjectSet

    if data == "household":
        return Household(split) if num_points is None else Household(split, num_points=num_points)
    root = Path(data)
    if not root.is_dir():
        raise FileNotFoundError(
            f"data: {data!r} is neither the name of an embedded data set ('household') nor a folder"
            f"{nearest(data, ['household'])}; looked for in {root.absolute()}"
        )
    if (root / f"{split}.json").is_file():
        return ObjectSet(root, split) if num_points is None else ObjectSet(root, split, num_points=num_points)
    from pc3d.data import open_folder

    return cast("PointDataset", open_folder(root, split=split))


def open_inputs(data: str, split: str, num_points: int | None) -> PointDataset:
    """As :func:`open_split`, and also a single file of points, or a folder of such files without classes."""
    from pc3d.data import open_files

    path = Path(data)
    if path.is_file():
        return cast("PointDataset", open_files([path], num_points=num_points))
    return open_split(data, split, num_points)


def open_encoder(encoder: str, *, untrained: bool, seed: int, data: str, num_points: int | None) -> tuple[Encoder, str]:
    """An encoder and its name for reports.

    Args:
        encoder: folder or Hub id of an exported encoder, or ``"descriptor"`` or ``"pca"``.
        untrained: keep the architecture but draw fresh weights from ``seed``.
        seed: see ``untrained``; also the seed of the descriptor's pairs.
        data: where ``"pca"`` is fitted: the training split.
        num_points: points per cloud for that fit.
    """
    from pc3d.evaluation import PointPCA, ShapeDescriptor

    if encoder == "descriptor":
        return ShapeDescriptor(seed), "the handcrafted shape descriptor"
    if encoder == "pca":
        fitted = PointPCA().fit(open_split(data, "train", num_points), num_points=num_points or 1024)
        return fitted, "PCA of raw points"
    import torch

    from pc3d.models import load_encoder

    model: Any = load_encoder(encoder)
    if untrained:
        torch.manual_seed(seed)
        model.reset_parameters()
        return model, f"{encoder}, untrained (fresh weights, seed {seed})"
    return model, encoder


def features_of(
    encoder: str, data: str, *, num_points: int | None, pooling: str, batch_size: int, untrained: bool, seed: int
) -> tuple[Features, Features]:
    """Features of the training and the test split, with a progress bar."""
    from pc3d.evaluation import extract_features

    model, name = open_encoder(encoder, untrained=untrained, seed=seed, data=data, num_points=num_points)
    both = [
        extract_features(
            model,
            open_split(data, split, num_points),
            batch_size=batch_size,
            pooling=pooling,
            num_points=num_points,
            progress=True,
            data=data,
            split=split,
            name=name,
        )
        for split in ("train", "test")
    ]
    return both[0], both[1]


def print_result(result: Any, as_json: bool) -> None:
    """A result to standard output, as text or as JSON."""
    if as_json:
        import json

        print(json.dumps(result.to_dict(), indent=2))
    else:
        print(result)
