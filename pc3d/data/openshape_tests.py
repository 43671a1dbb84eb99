"""The test sets of OpenShape's release: ModelNet40 and ScanObjectNN as its authors prepared them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from pc3d.data.arrays import Array, ArrayDataset
from pc3d.data.dataset import BadFileError, MissingDataError
from pc3d.data.file_fields import colours
from pc3d.data.pickles import load_object_array
from pc3d.data.scanobjectnn import SCANOBJECTNN_CLASSES
from pc3d.data.transforms import Transform
from pc3d.data.types import PointCloud

_POINTS, _LIST, _OBJECTS = "test_pc.npy", "test_split.json", "xyz_label.npy"
_TEXT = "open_clip_text_feat"


class OpenShapeTests(ArrayDataset):
    """A test set of OpenShape's release: its folder ``modelnet40`` or ``scanobjectnn``.

    ModelNet40 has 10,000 points of each of 2,468 objects in one grey, classes by the categories of its list;
    ScanObjectNN the 2,048 points of its objects. Clouds are in pc3d's frame (z up, right-handed; the files are y up),
    otherwise as stored. The pickles are read without executing code.

    Args:
        root: the folder, with ``test_pc.npy`` and ``test_split.json``, or with ``xyz_label.npy``.
        split: ``"test"``; there is no other.
        transform: applied to every item.

    Raises:
        MissingDataError: neither is there.
        BadFileError: a file is damaged, or does not go with the other.
        ValueError: another split.
    """

    source = "OpenShape's release (github.com/Colin97/OpenShape_code, section on evaluation)"
    terms = "those of ModelNet and of ScanObjectNN: research and education"

    def __init__(
        self, root: Path | str, split: Literal["test"] = "test", *, transform: Transform | None = None
    ) -> None:
        self.root, self.split = Path(root), split
        if split != "test":
            raise ValueError(f"split must be 'test', got {split!r}: the release has no training split of these sets")
        if not has_openshape_tests(self.root):
            missing = [self.root / name for name in (_POINTS, _LIST) if not (self.root / name).is_file()]
            raise MissingDataError.of(type(self).__name__, missing, self.root, self.source, self.terms)
        path = self.root / (_POINTS if (self.root / _POINTS).is_file() else _OBJECTS)
        try:
            read = _modelnet40 if path.name == _POINTS else _scanobjectnn
            clouds, self._rgb, labels, ids, classes = read(path)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, BadFileError):
                raise
            raise BadFileError(path, f"is not a test set of OpenShape: {error!r}") from error
        super().__init__(clouds, labels, ids=ids, classes=classes, path=path, transform=transform)

    def load(self, index: int) -> PointCloud:
        cloud = super().load(index)
        # From y up to z up, keeping it right-handed.
        x, y, z = cloud.xyz.unbind(1)
        rgb = None if self._rgb is None else torch.from_numpy(colours(np.asarray(self._rgb[index])))
        return cloud.replace(xyz=torch.stack([x, -z, y], dim=1), rgb=rgb)


def read_class_features(path: Path | str, classes: Sequence[str]) -> dict[str, Array]:
    """Features of class names as OpenShape's release stores them, computed with its text tower and prompt templates.

    Args:
        path: ``cat_name_pt_feat.npy`` of ModelNet40 or ScanObjectNN, a pickled dictionary whose order is that of the
            classes; or ``lvis_cat_name_pt_feat.npy``, an array with a row per class in alphabetical order. The pickle
            is read without executing code.
        classes: the names of the rows of an array, in any order.

    Returns:
        The feature ``(D,)`` float32 of each class, as stored.

    Raises:
        FileNotFoundError: there is no such file.
        BadFileError: it is neither, or has another number of rows than classes.
    """
    content = load_object_array(path)
    try:
        if isinstance(content, dict):
            names = [str(name) for name in content]
            rows = [np.asarray(entry[_TEXT], np.float32).reshape(-1) for entry in content.values()]
        else:
            names, rows = sorted(classes), list(np.asarray(content, np.float32))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise BadFileError(path, f"is not a file of class features of OpenShape: {error!r}") from error
    if len(rows) != len(names):
        raise BadFileError(path, f"has {len(rows)} rows, the data have {len(names)} classes, and each must have one")
    if not rows or len({row.shape for row in rows}) > 1 or rows[0].ndim != 1 or not np.isfinite(rows).all():
        raise BadFileError(path, "must hold finite features, all of one width, of at least one class")
    return dict(zip(names, rows, strict=True))


_Content = tuple[Sequence[Array] | Array, Sequence[Array] | None, Array, Sequence[str], Sequence[str]]


def has_openshape_tests(root: Path) -> bool:
    """Whether a folder holds one of the test sets of OpenShape's release."""
    return (root / _OBJECTS).is_file() or all((root / name).is_file() for name in (_POINTS, _LIST))


def _modelnet40(path: Path) -> _Content:
    """Coordinates, colours, labels, names and classes of the objects."""
    records: Any = json.loads(path.with_name(_LIST).read_text(encoding="utf-8"))
    shapes = load_object_array(path)
    if len(shapes) != len(records):
        raise BadFileError(path, f"holds {len(shapes)} shapes, {_LIST} lists {len(records)}")
    # Some lists write the names of folders, others words.
    categories = [str(record["category"]).replace("_", " ") for record in records]
    classes = sorted(set(categories))
    labels = np.array([classes.index(name) for name in categories], np.int64)
    clouds = [np.asarray(shape["xyz"], np.float32) for shape in shapes]
    rgb = [np.asarray(shape["rgb"]) for shape in shapes]
    return clouds, _fitting(rgb, clouds), labels, [str(record["name"]) for record in records], classes


def _scanobjectnn(path: Path) -> _Content:
    content = load_object_array(path)
    clouds, labels = np.asarray(content["xyz"], np.float32), np.asarray(content["label"]).reshape(-1)
    if clouds.ndim != 3 or len(labels) != len(clouds):
        raise ValueError(f"xyz has shape {clouds.shape} and label {labels.shape}")
    rgb = None if content.get("rgb") is None else _fitting(list(np.asarray(content["rgb"])), clouds)
    return clouds, rgb, labels, [f"{path.stem}/{i}" for i in range(len(clouds))], SCANOBJECTNN_CLASSES


def _fitting(rgb: list[Array], clouds: Sequence[Array] | Array) -> list[Array]:
    """Colours that go with their clouds.

    Raises:
        ValueError: some do not.
    """
    if [values.shape for values in rgb] != [cloud.shape for cloud in clouds]:
        raise ValueError("rgb does not have a colour for each point")
    return rgb
