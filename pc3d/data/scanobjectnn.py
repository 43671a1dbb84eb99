"""ScanObjectNN: objects cut out of scanned rooms (Uy et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pc3d.data.arrays import ArrayDataset, read_hdf5
from pc3d.data.dataset import BadFileError, MissingDataError
from pc3d.data.files import OnError, read_lines
from pc3d.data.transforms import Transform

SCANOBJECTNN_CLASSES = (
    "bag",
    "bin",
    "box",
    "cabinet",
    "chair",
    "desk",
    "display",
    "door",
    "shelf",
    "table",
    "bed",
    "pillow",
    "sink",
    "sofa",
    "toilet",
)
"""The 15 classes of ScanObjectNN, in the order of its labels."""
Variant = Literal["obj_bg", "obj_only", "pb_t25", "pb_t25_r", "pb_t50_r", "pb_t50_rs"]
_SUFFIX = {
    "obj_bg": "",
    "obj_only": "",
    "pb_t25": "_augmented25_norot",
    "pb_t25_r": "_augmented25rot",
    "pb_t50_r": "_augmentedrot",
    "pb_t50_rs": "_augmentedrot_scale75",
}
_BACKGROUND = -1


class ScanObjectNN(ArrayDataset):
    """ScanObjectNN's HDF5 files, 2,048 points per object, as stored: not normalised, y up.

    Where the file has a ``mask``, ``segment`` tells background (0) from object (1). Where it has an ``item``, which the
    published files do not, ``groups`` are the clouds of the same item: an object that was scanned several times.

    Args:
        root: the folder with ``main_split`` and ``main_split_nobg``, or one that holds the ``.h5`` files itself.
        split: ``"train"`` (2,309; 11,416 for pb_t50_rs) or ``"test"`` (581; 2,882).
        variant: ``"obj_bg"`` (object with background), ``"obj_only"`` (from ``main_split_nobg``), ``"pb_t50_rs"``
            (perturbed, the hardest), or one of the easier perturbed ones.
        fold: which split folder: ``"main_split"`` or ``"split1"`` to ``"split4"``.
        object_points_only: drop the points that the mask calls background; clouds then differ in length.
        classes: class names, if the file follows the format with other classes; by default the lines of
            ``shape_names.txt`` beside the file or in ``root`` where there is one, else the published ones.
        on_error: ``"refuse"`` or ``"report"`` items without points or with coordinates that are not finite.
        transform: applied to every item.

    Raises:
        MissingDataError: the file is not there.
        BadFileError: it is truncated, lacks a key, or its arrays are not as described.
        ValueError: split or variant is none of the above, or one with background of a folder without.
    """

    source = "the ScanObjectNN project page, hkust-vgd.github.io/scanobjectnn (h5_files.zip, after accepting the terms)"
    terms = "ScanObjectNN's terms of use: research and education, not to be passed on; built on SceneNN and ScanNet"
    up = "y"

    def __init__(
        self,
        root: Path | str,
        split: Literal["train", "test"] = "train",
        *,
        variant: Variant = "obj_bg",
        fold: str = "main_split",
        object_points_only: bool = False,
        classes: Sequence[str] | None = None,
        on_error: OnError = "refuse",
        transform: Transform | None = None,
    ) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        if variant not in _SUFFIX:
            raise ValueError(f"variant must be one of {tuple(_SUFFIX)}, got {variant!r}")
        self.root, self.split, self.variant = Path(root), split, variant
        path = self._path(fold)
        arrays = read_hdf5(path, ("data", "label"), ("mask", "item"))
        data, label, mask = arrays["data"], arrays["label"].reshape(-1), arrays.get("mask")
        if data.ndim != 3 or data.shape[2] != 3 or len(label) != len(data):
            raise BadFileError(path, f"data has shape {data.shape} and label {arrays['label'].shape}")
        if mask is not None and mask.shape != data.shape[:2]:
            raise BadFileError(path, f"mask has shape {mask.shape}, which does not go with data {data.shape}")
        if mask is None and object_points_only:
            raise BadFileError(path, "has no key 'mask', which object_points_only needs")
        items = arrays.get("item")
        if items is not None and items.size != len(data):
            raise BadFileError(path, f"item has shape {items.shape}, expected one for each of {len(data)} clouds")
        segments = None if mask is None else list((mask != _BACKGROUND).astype(np.int64))
        clouds = list(data)
        if object_points_only and segments is not None:
            clouds = [cloud[segment == 1] for cloud, segment in zip(clouds, segments, strict=True)]
            segments = [segment[segment == 1] for segment in segments]
        self.parts = () if segments is None else ("background", "object")
        super().__init__(
            clouds,
            label,
            ids=[f"{path.stem}/{i}" for i in range(len(data))],
            classes=self._class_names(path, label) if classes is None else classes,
            path=path,
            segments=segments,
            on_error=on_error,
            transform=transform,
        )
        if items is not None:
            self.groups = torch.from_numpy(np.unique(items.reshape(-1), return_inverse=True)[1][self._kept])

    def _class_names(self, path: Path, label: NDArray[np.int64]) -> Sequence[str]:
        for listing in (path.with_name("shape_names.txt"), self.root / "shape_names.txt"):
            if listing.is_file():
                return read_lines(listing)
        if len(label) and label.max() >= len(SCANOBJECTNN_CLASSES):
            raise BadFileError(
                path,
                f"labels go to {label.max()}, and ScanObjectNN has {len(SCANOBJECTNN_CLASSES)} classes: name those of "
                f"this set, one on each line, in {self.root / 'shape_names.txt'}",
            )
        return SCANOBJECTNN_CLASSES

    def _path(self, fold: str) -> Path:
        name = f"{'training' if self.split == 'train' else 'test'}_objectdataset{_SUFFIX[self.variant]}.h5"
        folder = f"{fold}_nobg" if self.variant == "obj_only" else fold
        places = [self.root / folder / name]
        # A lone folder of .h5 files cannot say whether they have background: only the variants that have it.
        if self.variant != "obj_only" or self.root.name.endswith("_nobg"):
            places.append(self.root / name)
        for place in places:
            if place.is_file():
                # Of the perturbed variants there are files without background, too, for who names their fold.
                asked = self.variant == "obj_only" or (self.variant != "obj_bg" and place.parent.name == folder)
                if place.parent.name.endswith("_nobg") and not asked:
                    raise ValueError(
                        f"variant: {self.variant!r} has the background, and {place.parent} is the folder without: give "
                        "variant='obj_only', or the folder that holds both"
                    )
                return place
        source = self.source
        if self.variant == "obj_only":
            source += (
                "; of files with background and a mask, variant='obj_bg' with object_points_only=True takes the object"
            )
        raise MissingDataError.of(f"{type(self).__name__} {self.variant}", places[:1], self.root, source, self.terms)
