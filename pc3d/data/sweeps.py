"""Sweeps of laser scanners on cars, as KITTI and nuScenes store them: float32 numbers without a header."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pc3d.data.dataset import BadFileError
from pc3d.data.file_fields import Array, Fields

# What the numbers of a point are: nothing in the files says which.
_LAYOUTS = {4: "x y z intensity (KITTI)", 5: "x y z intensity ring (nuScenes)"}
_FARTHEST = 1000.0  # metres


def read_sweep(path: Path, labels: Sequence[str] = (), **_: Any) -> Fields:
    """The points of a sweep, with SemanticKITTI's classes where they are asked for.

    The layout is the one whose numbers can be what it says: places within a kilometre, intensities of 0 to 255, and
    whole numbers of rings. Intensities and rings are passed over.

    Args:
        path: the file.
        labels: not empty: also read classes, the lower 16 bits of each number in ``NAME.label`` beside the file, or in
            the folder ``labels`` beside its own.

    Raises:
        BadFileError: no layout fits, or the classes are not there or not as many as points.
    """
    values = np.fromfile(path, "<f4")
    fitting = [table for columns in _LAYOUTS if (table := _as_sweep(values, path, columns)) is not None]
    if len(fitting) != 1:
        found = "may be either of" if fitting else "is none of"
        raise BadFileError(
            path,
            f"{found} {' or '.join(_LAYOUTS.values())} in float32: store its rows of x y z with numpy.save",
        )
    fields: Fields = {"xyz": fitting[0][:, :3]}
    return {**fields, "segment": _classes(path, len(fitting[0]))} if labels else fields


def _as_sweep(values: Array, path: Path, columns: int) -> Array | None:
    """The numbers as rows of so many, None where they cannot be what those rows are."""
    if path.stat().st_size % (4 * columns):
        return None
    table = values.reshape(-1, columns)
    places, intensity = table[:, :3], table[:, 3]
    fits = (np.abs(places) < _FARTHEST).all() and ((intensity >= 0) & (intensity <= 255)).all()
    if columns == 5:
        fits &= bool(((table[:, 4] >= 0) & (table[:, 4] < 256) & (table[:, 4] % 1 == 0)).all())
    return table if fits else None


def classes_beside(path: Path) -> Path | None:
    """The file with the classes of a sweep's points, None if there is none."""
    return next((place for place in _places_of_classes(path) if place.is_file()), None)


def _places_of_classes(path: Path) -> tuple[Path, Path]:
    return path.with_suffix(".label"), path.parent.parent / "labels" / f"{path.stem}.label"


def _classes(path: Path, count: int) -> Array:
    found = classes_beside(path)
    if found is None:
        places = " and ".join(map(str, _places_of_classes(path)))
        raise BadFileError(path, f"has no classes of its points: looked for {places}")
    classes = np.fromfile(found, "<u4") & 0xFFFF  # above are numbers of objects
    if len(classes) != count or found.stat().st_size % 4:
        raise BadFileError(found, f"has {len(classes)} classes, {path.name} {count} points")
    return classes
