"""What ``--data`` and ``--encoder`` may say, turned into objects. Heavy imports stay inside the functions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pc3d.cli._parser import nearest

if TYPE_CHECKING:
    from pc3d.data import PointCloud, PointDataset
    from pc3d.evaluation import Encoder, Features

HANDCRAFTED = ("descriptor", "pca")


@dataclass(frozen=True)
class Source:
    """A split of a data set and how its clouds are to be prepared."""

    dataset: PointDataset
    sampling: Literal["first", "farthest"]
    normalize: Literal["none", "centroid", "box"]


def open_split(data: str, split: str, num_points: int | None) -> Source:
    """A split of a data set.

    Sets whose points are in random or farthest-point order and whose clouds are in the unit sphere already are taken as
    stored; of everything else, farthest points are taken and brought into the unit sphere.

    Args:
        data: ``"household"``; or a folder with shards in pc3d's own format, a published data set, or files by class.
        split: ``"train"`` or ``"test"``.
        num_points: points per item, where the set is cut when it is read.

    Raises:
        FileNotFoundError: neither a known name nor a folder.
    """
    from pc3d import data as sets

    cut: dict[str, Any] = {} if num_points is None else {"num_points": num_points}
    if data == "household":
        return Source(sets.Household(split, **cut), "first", "none")
    root = Path(data)
    if not root.is_dir():
        raise FileNotFoundError(
            f"data: {data!r} is neither the name of an embedded data set ('household') nor a folder"
            f"{nearest(data, ['household'])}; looked for in {root.absolute()}"
        )
    if (root / f"{split}.json").is_file():
        return Source(sets.ObjectSet(root, split, **cut), "first", "none")
    if any(root.glob("ply_data_*.h5")):
        return Source(sets.ModelNetHDF5(root, cast(Any, split)), "first", "none")
    if (root / "modelnet40_shape_names.txt").is_file():
        return Source(sets.ModelNetResampled(root, cast(Any, split)), "farthest", "centroid")
    if (root / "main_split").is_dir():
        return Source(sets.ScanObjectNN(root, cast(Any, split)), "first", "none")
    return Source(sets.FolderDataset(root, split), "farthest", "box")


def open_inputs(data: str, split: str, num_points: int | None) -> Source:
    """As :func:`open_split`, and also a single file of points, or a folder of such files without splits."""
    from pc3d.data import FolderDataset

    path = Path(data)
    if path.is_file():
        return Source(_one_file(path), "farthest", "box")
    shards = path.is_dir() and any(path.glob("*.json"))
    if data == "household" or not path.is_dir() or shards or any(path.rglob(f"{split}*")):
        return open_split(data, split, num_points)
    return Source(FolderDataset(path), "farthest", "box")


def _one_file(path: Path) -> PointDataset:
    import torch

    from pc3d.data import PointDataset, read_points

    class OneFile(PointDataset):
        labels = torch.full((1,), -1, dtype=torch.int64)

        def load(self, index: int) -> PointCloud:
            return read_points(path)

    return OneFile()


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
        source = open_split(data, "train", num_points)
        prepared: dict[str, Any] = {"sampling": source.sampling, "normalize": source.normalize}
        return PointPCA().fit(source.dataset, num_points=num_points, **prepared), "PCA of raw points"
    import torch

    from pc3d.models import load_encoder

    model: Any = load_encoder(encoder)
    if untrained:
        # Built anew: fresh weights alone would leave the trained statistics of batch norm in place.
        torch.manual_seed(seed)
        model = type(model)(**model.config).eval()
        return model, f"{encoder}, untrained (fresh weights, seed {seed})"
    return model, encoder


def features_of(
    encoder: str, data: str, *, num_points: int | None, pooling: str, batch_size: int, untrained: bool, seed: int
) -> tuple[Features, Features]:
    """Features of the training and the test split, with a progress bar."""
    model, name = open_encoder(encoder, untrained=untrained, seed=seed, data=data, num_points=num_points)
    options: dict[str, Any] = {"num_points": num_points, "pooling": pooling, "batch_size": batch_size}
    train, test = (
        extract(model, name, open_split(data, split, num_points), data, split, **options) for split in ("train", "test")
    )
    return train, test


def extract(model: Encoder, name: str, source: Source, data: str, split: str, **options: Any) -> Features:
    """Features of a split, prepared as its data set wants, with a progress bar."""
    from pc3d.evaluation import extract_features

    prepared: dict[str, Any] = {"sampling": source.sampling, "normalize": source.normalize}
    return extract_features(
        model, source.dataset, progress=True, data=data, split=split, name=name, **prepared, **options
    )


def print_result(result: Any, as_json: bool) -> None:
    """A result to standard output, as text or as JSON."""
    if as_json:
        import json

        print(json.dumps(result.to_dict(), indent=2))
    else:
        print(result)
