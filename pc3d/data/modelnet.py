"""ModelNet40 and ModelNet10 in the forms that published protocols use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pc3d.data.arrays import ArrayDataset, read_hdf5
from pc3d.data.corruptions import MODELNET_C, SEVERITIES
from pc3d.data.dataset import BadFileError, MissingDataError
from pc3d.data.files import FileDataset, FolderDataset, OnError, read_lines
from pc3d.data.pickles import load_array_pickle
from pc3d.data.transforms import Transform
from pc3d.data.types import PointCloud

_TERMS = "ModelNet's: academic research only, rights stay with the authors of the models"


def _check_split(split: str, known: tuple[str, ...]) -> None:
    if split not in known:
        raise ValueError(f"split must be one of {known}, got {split!r}")


class ModelNetMeshes(FolderDataset):
    """ModelNet's OFF meshes: ``CLASS/{train,test}/CLASS_NNNN.off``, sampled uniformly by area.

    Headers with joined counts (``OFF490 518 0``), comments, CRLF, lower case, polygons and colours are supported;
    truncated, empty and zero-area meshes are refused. Most of ModelNet is z up in this form. Convert the set once with
    ``data_tools/convert.py`` to avoid reading the meshes in every epoch.

    Args:
        root: the folder ``ModelNet40`` or ``ModelNet10``.
        split: ``"train"`` (9,843 meshes of ModelNet40) or ``"test"`` (2,468).
        num_points: points to sample.
        seed: of the sampling.
        on_error: see :class:`FileDataset`.
        transform: applied to every item.

    Raises:
        MissingDataError: the folder, or a class's folder for the split, is not there.
    """

    source = "Princeton ModelNet, modelnet.cs.princeton.edu, ModelNet40.zip or ModelNet10.zip"
    terms = _TERMS

    def __init__(
        self,
        root: Path | str,
        split: Literal["train", "test"] = "train",
        *,
        num_points: int = 10_000,
        seed: int = 0,
        on_error: OnError = "refuse",
        transform: Transform | None = None,
    ) -> None:
        _check_split(split, ("train", "test"))
        super().__init__(
            root,
            split,
            num_points=num_points,
            seed=seed,
            suffixes=(".off",),
            on_error=on_error,
            transform=transform,
        )

    def read(self, path: Path) -> PointCloud:
        cloud = super().read(path)
        if cloud.normal is None:  # points sampled from faces have their normals
            raise BadFileError(path, "is an empty mesh: it has no faces to sample points from")
        return cloud


class ModelNetResampled(FileDataset):
    """modelnet40_normal_resampled: 10,000 points with normals per object, as comma-separated text.

    The class of an id is the part before its last underscore; labels follow the line order of
    ``modelnet40_shape_names.txt``. y is up. The protocols centre and scale the clouds into the unit sphere
    (:class:`Normalize`), and drop the normals.

    Args:
        root: the folder with the lists and a sub-folder per class.
        split: ``"train"`` (9,843) or ``"test"`` (2,468).
        variant: ``"modelnet40"`` or ``"modelnet10"``: which lists.
        on_error: see :class:`FileDataset`.
        transform: applied to every item.

    Raises:
        ValueError: an unknown split or variant.
        MissingDataError: a list or a listed file is not there.
        BadFileError: an id in the list has no class.
    """

    source = (
        "modelnet40_normal_resampled.zip of the PointNet++ project (Qi et al. 2017), github.com/charlesq34/pointnet2"
    )
    terms = _TERMS
    up = "y"

    def __init__(
        self,
        root: Path | str,
        split: Literal["train", "test"] = "train",
        *,
        variant: Literal["modelnet40", "modelnet10"] = "modelnet40",
        on_error: OnError = "refuse",
        transform: Transform | None = None,
    ) -> None:
        _check_split(split, ("train", "test"))
        if variant not in ("modelnet40", "modelnet10"):
            raise ValueError(f"variant must be 'modelnet40' or 'modelnet10', got {variant!r}")
        self.root, self.split, self.variant = Path(root), split, variant
        names, listing = self.root / f"{variant}_shape_names.txt", self.root / f"{variant}_{split}.txt"
        self._require([path for path in (names, listing) if not path.is_file()])
        self.classes = tuple(read_lines(names))
        index = {name: label for label, name in enumerate(self.classes)}
        ids = read_lines(listing)
        unknown = [name for name in ids if name.rpartition("_")[0] not in index]
        if unknown:
            raise BadFileError(listing, f"{unknown[0]!r} belongs to none of the classes in {names.name}")
        paths = [self.root / name.rpartition("_")[0] / f"{name}.txt" for name in ids]
        self._require([path for path in paths if not path.is_file()])
        super().__init__(
            paths, [index[name.rpartition("_")[0]] for name in ids], on_error=on_error, transform=transform
        )

    def _require(self, missing: list[Path]) -> None:
        if missing:
            raise MissingDataError.of(type(self).__name__, missing, self.root, self.source, self.terms)

    def read(self, path: Path) -> PointCloud:
        table = read_table(path, 6, ",")
        return PointCloud(xyz=table[:, :3], normal=table[:, 3:])


def read_table(path: Path, columns: int, delimiter: str | None) -> torch.Tensor:
    """A text table of so many columns as float32.

    Raises:
        BadFileError: it is empty, ragged, has another number of columns, or values that are not finite numbers.
    """
    if path.stat().st_size == 0:
        raise BadFileError(path, "is empty")
    try:
        table = np.loadtxt(path, dtype=np.float32, delimiter=delimiter, ndmin=2, encoding="utf-8-sig")
    except ValueError as error:
        raise BadFileError(path, f"is not a table of {columns} columns ({error}); truncated?") from error
    if table.shape[0] == 0 or table.shape[1] != columns:
        raise BadFileError(path, f"is a table of shape {table.shape}, {columns} columns are expected")
    if not np.isfinite(table).all():
        raise BadFileError(path, "has values that are not finite numbers")
    return torch.from_numpy(table)


class ModelNetHDF5(ArrayDataset):
    """modelnet40_ply_hdf5_2048: 2,048 points per object, centred and in the unit sphere, farthest points first.

    A prefix is an even subset; :class:`FirstPoints` takes 1,024. y is up.

    Args:
        root: the folder with ``ply_data_{train,test}*.h5`` and ``shape_names.txt``. Where it has
            ``{train,test}_files.txt``, the files that it lists are read.
        split: ``"train"`` (9,840 of the 9,843 objects) or ``"test"`` (2,468).
        on_error: ``"refuse"`` or ``"report"`` items with coordinates that are not finite.
        transform: applied to every item.

    Raises:
        MissingDataError: there are no files for the split, or one that the file list names is not there.
        BadFileError: a file is truncated, or its arrays are not as described.
    """

    source = "modelnet40_ply_hdf5_2048.zip of the PointNet project (Qi et al. 2017), github.com/charlesq34/pointnet"
    terms = _TERMS
    up = "y"

    def __init__(
        self,
        root: Path | str,
        split: Literal["train", "test"] = "train",
        *,
        on_error: OnError = "refuse",
        transform: Transform | None = None,
    ) -> None:
        _check_split(split, ("train", "test"))
        self.root, self.split = Path(root), split
        files = self._files()
        data, labels, normals, ids = [], [], [], []
        for path in files:
            arrays = read_hdf5(path, ("data", "label"), ("normal",))
            points, label = arrays["data"], arrays["label"].reshape(-1)
            if points.ndim != 3 or points.shape[2] != 3 or len(label) != len(points):
                raise BadFileError(path, f"data has shape {points.shape} and label {arrays['label'].shape}")
            data.append(points.astype(np.float32))
            labels.append(label)
            if "normal" in arrays and arrays["normal"].shape == points.shape:
                normals.append(arrays["normal"])
            ids += [f"{path.stem}/{i}" for i in range(len(points))]
        sizes = {points.shape[1] for points in data}
        if len(sizes) > 1:
            raise BadFileError(files[0], f"and the other files differ in points per object: {sorted(sizes)}")
        super().__init__(
            np.concatenate(data),
            np.concatenate(labels),
            ids=ids,
            classes=read_lines(self.root / "shape_names.txt"),
            path=self.root,
            normals=np.concatenate(normals) if len(normals) == len(data) else None,
            on_error=on_error,
            transform=transform,
        )

    def _files(self) -> list[Path]:
        found = sorted(self.root.glob(f"ply_data_{self.split}*.h5"))
        listing = self.root / f"{self.split}_files.txt"
        listed = sorted({self.root / Path(line).name for line in read_lines(listing)}) if listing.is_file() else found
        missing = [path for path in listed if path not in found]
        if not found and not missing:
            missing = [self.root / f"ply_data_{self.split}0.h5"]
        names = self.root / "shape_names.txt"
        if not names.is_file():
            missing.append(names)
        if missing:
            raise MissingDataError.of(type(self).__name__, missing, self.root, self.source, self.terms)
        return listed


class ModelNetC(ArrayDataset):
    """A file of ModelNet-C: the test objects of ModelNet40 with 1,024 points, corrupted (Ren, Pan and Liu, ICML 2022).

    Args:
        root: the folder ``modelnet_c`` with ``clean.h5``, ``scale_0.h5`` to ``add_local_4.h5``.
        corruption: ``"clean"``, or one of :data:`pc3d.data.MODELNET_C`.
        severity: 1 to 5, which the files number from 0; of no meaning for ``"clean"``.
        classes: names of the 40 classes, which the files do not tell; those of the training split.
        on_error: ``"refuse"`` or ``"report"`` items with coordinates that are not finite.
        transform: applied to every item.

    Raises:
        ValueError: an unknown corruption or severity.
        MissingDataError: the file is not there.
        BadFileError: it is truncated, or its arrays are not as described.
    """

    source = "modelnet_c.zip of the ModelNet-C project (Ren, Pan and Liu 2022), github.com/jiawei-ren/ModelNet-C"
    terms = _TERMS
    up = "y"

    def __init__(
        self,
        root: Path | str,
        corruption: str = "clean",
        severity: int = 1,
        *,
        classes: Sequence[str],
        on_error: OnError = "refuse",
        transform: Transform | None = None,
    ) -> None:
        if corruption not in ("clean", *MODELNET_C) or severity not in SEVERITIES:
            raise ValueError(
                f"corruption must be 'clean' or one of {', '.join(MODELNET_C)}, and severity one of {SEVERITIES}; got "
                f"{corruption!r} and {severity!r}"
            )
        self.root, self.corruption, self.severity = Path(root), corruption, severity
        name = "clean" if corruption == "clean" else f"{corruption.replace('drop_', 'dropout_')}_{severity - 1}"
        path = self.root / f"{name}.h5"
        if not path.is_file():
            raise MissingDataError.of(type(self).__name__, [path], self.root, self.source, self.terms)
        arrays = read_hdf5(path, ("data", "label"))
        points, label = arrays["data"], arrays["label"].reshape(-1)
        if points.ndim != 3 or points.shape[2] != 3 or len(label) != len(points):
            raise BadFileError(path, f"data has shape {points.shape} and label {arrays['label'].shape}")
        super().__init__(
            points,
            label,
            ids=[f"{name}/{i}" for i in range(len(points))],
            classes=classes,
            path=path,
            on_error=on_error,
            transform=transform,
        )


class ModelNetCache(ArrayDataset):
    """The pickled caches that projects after Point-BERT read: ``modelnet40_{train,test}_8192pts_fps.dat``.

    8,192 of the 10,000 points of modelnet40_normal_resampled with normals, selected by farthest point sampling from a
    random start. The pickle is read without executing code: arrays and plain values only.

    Args:
        root: the folder with the cache and ``modelnet40_shape_names.txt``.
        split: ``"train"`` or ``"test"``.
        variant: ``"modelnet40"`` or ``"modelnet10"``.
        stored_points: the number in the file's name.
        on_error: ``"refuse"`` or ``"report"`` items with coordinates that are not finite.
        transform: applied to every item.

    Raises:
        MissingDataError: the cache or the class names are not there.
        BadFileError: the cache is truncated, asks for anything but arrays, or is not as described.
    """

    source = "the processed ModelNet of Point-BERT (Yu et al. 2022), github.com/lulutang0608/Point-BERT, DATASET.md"
    terms = _TERMS

    def __init__(
        self,
        root: Path | str,
        split: Literal["train", "test"] = "train",
        *,
        variant: Literal["modelnet40", "modelnet10"] = "modelnet40",
        stored_points: int = 8192,
        on_error: OnError = "refuse",
        transform: Transform | None = None,
    ) -> None:
        _check_split(split, ("train", "test"))
        self.root, self.split, self.variant = Path(root), split, variant
        path, names = (
            self.root / f"{variant}_{split}_{stored_points}pts_fps.dat",
            self.root / f"{variant}_shape_names.txt",
        )
        missing = [file for file in (path, names) if not file.is_file()]
        if missing:
            raise MissingDataError.of(type(self).__name__, missing, self.root, self.source, self.terms)
        content = load_array_pickle(path)
        try:
            clouds, labels = content
            clouds = [np.asarray(cloud, np.float32) for cloud in clouds]
            labels = np.array([int(np.asarray(label).item()) for label in labels])
        except (TypeError, ValueError) as error:
            raise BadFileError(path, f"is not a pair of clouds and labels ({error})") from error
        if len(clouds) != len(labels) or any(cloud.ndim != 2 or cloud.shape[1] not in (3, 6) for cloud in clouds):
            raise BadFileError(path, "must hold as many clouds of shape (N, 6) or (N, 3) as labels")
        super().__init__(
            [cloud[:, :3] for cloud in clouds],
            labels,
            ids=[f"{path.stem}/{i}" for i in range(len(clouds))],
            classes=read_lines(names),
            path=path,
            normals=[cloud[:, 3:] for cloud in clouds] if all(cloud.shape[1] == 6 for cloud in clouds) else None,
            on_error=on_error,
            transform=transform,
        )
