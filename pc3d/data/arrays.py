"""Data sets in arrays: HDF5 files and caches, held in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pc3d._extras import require
from pc3d.data.dataset import BadFileError, PointDataset, SkippedFile
from pc3d.data.files import OnError, check_on_error
from pc3d.data.transforms import Transform
from pc3d.data.types import PointCloud

Array = NDArray[Any]


def read_hdf5(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Array]:
    """The named data sets of an HDF5 file, opened read-only.

    Raises:
        BadFileError: the file cannot be opened or read, or lacks a required key.
    """
    h5py = require("h5py", extra="io", purpose="HDF5 files")
    try:
        with h5py.File(path, "r") as file:
            missing = [key for key in required if key not in file]
            if missing:
                raise BadFileError(path, f"keys {missing} are missing; it has {sorted(file)}")
            found = {key: file[key] for key in (*required, *optional) if key in file}
            groups = [key for key, value in found.items() if not isinstance(value, h5py.Dataset)]
            if groups:
                raise BadFileError(path, f"keys {groups} are groups, arrays are expected")
            return {key: np.asarray(value[()]) for key, value in found.items()}
    except (OSError, RuntimeError, KeyError) as error:
        raise BadFileError(path, f"cannot be read as HDF5 ({error}); truncated or still being copied?") from error


class ArrayDataset(PointDataset):
    """A data set of clouds in memory.

    Args:
        clouds: coordinates of each item, ``(N, 3)`` float32.
        labels: class of each item.
        ids: a name for each item.
        classes: class names.
        path: where the arrays came from, for messages.
        normals: ``(N, 3)`` for each item, or None.
        segments: ``(N,)`` int64 for each item, or None.
        on_error: ``"refuse"`` raises for the first item that is empty or not finite, ``"report"`` leaves such items
            out and lists them in ``skipped``.
        transform: applied to every item.

    Raises:
        BadFileError: a label is not a class, or an item is unusable under ``on_error="refuse"``.
    """

    def __init__(
        self,
        clouds: Sequence[Array] | Array,
        labels: Array,
        *,
        ids: Sequence[str],
        classes: Sequence[str],
        path: Path,
        normals: Sequence[Array] | Array | None = None,
        segments: Sequence[Array] | Array | None = None,
        on_error: OnError = "refuse",
        transform: Transform | None = None,
    ) -> None:
        check_on_error(on_error)
        given = np.asarray(labels)
        if given.dtype.kind not in "iufb":
            raise BadFileError(path, f"labels must be numbers, found values of type {given.dtype}")
        labels = given.astype(np.int64)
        if (labels != given).any():
            raise BadFileError(path, f"labels must be whole numbers, found {given[labels != given][0]}")
        if labels.size and (labels.min() < -1 or labels.max() >= len(classes)):
            raise BadFileError(
                path,
                f"labels go from {labels.min()} to {labels.max()}, which does not go with the {len(classes)} classes "
                f"{', '.join(classes[:3])}, ...",
            )
        self.classes, self.path, self.transform = tuple(classes), path, transform
        reasons = {i: reason for i, cloud in enumerate(clouds) if (reason := _fault(cloud)) is not None}
        if reasons and on_error == "refuse":
            first = next(iter(reasons))
            raise BadFileError(
                path,
                f"item {ids[first]} {reasons[first]} ({len(reasons)} such items); "
                'on_error="report" leaves them out and lists them',
            )
        self.skipped = tuple(SkippedFile(path, f"item {ids[i]} {reason}") for i, reason in reasons.items())
        self._kept = [i for i in range(len(clouds)) if i not in reasons]
        self._clouds, self._normals, self._segments, self._ids = clouds, normals, segments, list(ids)
        self.labels = torch.from_numpy(labels[self._kept])

    def load(self, index: int) -> PointCloud:
        row = self._kept[index]
        segment = None if self._segments is None else torch.from_numpy(self._segments[row].astype(np.int64))
        return PointCloud(
            xyz=torch.from_numpy(self._clouds[row].astype(np.float32)),
            normal=None if self._normals is None else torch.from_numpy(self._normals[row].astype(np.float32)),
            segment=segment,
            label=int(self.labels[index]),
            meta={"id": self._ids[row], "path": str(self.path)},
        )


def _fault(cloud: Array) -> str | None:
    if cloud.ndim != 2 or cloud.shape[1] != 3:
        return f"has shape {cloud.shape} in place of (N, 3)"
    if len(cloud) == 0:
        return "has no points"
    return None if np.isfinite(cloud).all() else "has coordinates that are not finite numbers"
