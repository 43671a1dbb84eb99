"""What the readers of point files hand over, and what they share."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pc3d.data.dataset import BadFileError

Array = NDArray[Any]
# Arrays of one file: xyz always, rgb in [0, 1] and normal where the file has them, segment where it was asked for.
Fields = dict[str, Array]
# What is kept of the coordinates of scenes, in metres.
MILLIMETRE = 1e-3


def _numbered(name: str) -> tuple[tuple[str, ...], ...]:
    """The columns of an array as ParaView names them, before and since its version 5.9."""
    return tuple(tuple(f"{name}{mark}{axis}" for axis in range(3)) for mark in ":_")


# What programs call columns, in any case of letters.
COLUMN_NAMES = {
    "xyz": (("x", "y", "z"), *_numbered("points")),
    "rgb": (
        *(("red", "green", "blue"), ("r", "g", "b"), ("rf", "gf", "bf")),
        *(("diffuse_red", "diffuse_green", "diffuse_blue"), ("colorred", "colorgreen", "colorblue")),
        *(*_numbered("rgb"), *_numbered("colors")),
    ),
    # The constant part of a Gaussian splat's colour, in spherical harmonics about grey (Kerbl et al., 2023).
    "harmonics": (("f_dc_0", "f_dc_1", "f_dc_2"),),
    "normal": (("nx", "ny", "nz"), ("normal_x", "normal_y", "normal_z"), *_numbered("normals")),
}
# What programs call the class of a point.
LABEL_NAMES = (
    *("label", "labels", "class", "classes", "classification", "class_id", "category", "segment", "segmentation"),
    *("semantic", "semantics", "semantic_label", "semantic_class", "sem_class"),
)


def colours(values: Array) -> Array:
    """Colours in [0, 1]: integers of 0..255 or 0..65535, floats of these or of 0..1, told apart by the largest.

    Raises:
        ValueError: there are some beyond these ranges.
    """
    known = np.isfinite(values)  # organised clouds have NaN where there is no point
    low, high = (float(limit(initial=0, where=known)) for limit in (values.min, values.max))
    # 16-bit fields are often filled with 8-bit values (LAS files above all), and rounding may lift a saturated channel
    # a little above the top.
    tops = ((1, 1.001), (255, 256), (65535, 65536))[values.dtype.kind in "ui" :]
    top = next((top for top, limit in tops if high <= limit), None)
    if top is None or low < -1e-3 * top:
        raise ValueError(f"has colours of {low:g} to {high:g}: write them in 0..1, 0..255 or 0..65535")
    return np.asarray(np.clip(np.divide(values, top, dtype=np.float64), 0, 1), np.float32)


def named_colours(columns: Mapping[str, Array]) -> Array | None:
    """``(N, 3)`` colours in [0, 1] among columns that have names; None if there are none."""
    values = _by_name(columns, "rgb")
    if values is not None:
        return colours(values)
    harmonics = _by_name(columns, "harmonics")
    if harmonics is None:
        return None
    return np.asarray(np.clip(0.5 + harmonics / (2 * np.sqrt(np.pi)), 0, 1), np.float32)


def is_label(name: str, wanted: Collection[str]) -> bool:
    """Whether a column or an array holds the classes of the points, by its name.

    Args:
        name: of the column.
        wanted: names in small letters that it may have; CloudCompare writes ``scalar_`` before names.
    """
    return name.lower() in wanted or name.lower().removeprefix("scalar_") in wanted


def label_column(
    path: Path, columns: Mapping[str, Array], wanted: Sequence[str], names: Sequence[str] | None = None
) -> Array:
    """The classes of the points among columns that have names.

    Args:
        path: of the file, for the message.
        columns: arrays by their names.
        wanted: see :func:`is_label`; the first that is there counts.
        names: of all columns of the file, where ``columns`` are a part of them.

    Raises:
        BadFileError: there is no such column.
    """
    found = next((columns[name] for one in wanted for name in columns if is_label(name, (one,))), None)
    if found is None:
        others = list(columns if names is None else names)
        raise BadFileError(path, f"has no classes of its points ({', '.join(wanted)}); its columns are {others}")
    return found


def named_fields(path: Path, columns: Mapping[str, Array], labels: Sequence[str] = ()) -> Fields:
    """Coordinates, colours and normals among columns that have names; others are passed over.

    Args:
        path: of the file, for the message.
        columns: ``(N,)`` arrays by their names.
        labels: names of the column with the classes of the points, see :func:`label_column`; none: not wanted.

    Raises:
        BadFileError: there are no coordinates, or no classes that were asked for.
    """
    xyz, rgb, normal = _by_name(columns, "xyz"), named_colours(columns), _by_name(columns, "normal")
    if xyz is None:
        raise BadFileError(path, f"has no columns x, y and z; its columns are {list(columns)}")
    found = {"xyz": xyz, "rgb": rgb, "normal": normal}
    if labels:
        found["segment"] = label_column(path, columns, labels)
    return {name: values for name, values in found.items() if values is not None}


def names_places(names: Iterable[str]) -> bool:
    """Whether there are columns of coordinates among these names."""
    known = {name.lower() for name in names}
    return any(known >= set(option) for option in COLUMN_NAMES["xyz"])


def _by_name(columns: Mapping[str, Array], field: str) -> Array | None:
    known = {name.lower(): values for name, values in columns.items() if values.ndim == 1}
    names = next((names for names in COLUMN_NAMES[field] if set(names) <= set(known)), None)
    return None if names is None else np.stack([known[name] for name in names], axis=1)


def read_table(lines: Iterable[str], delimiter: str | None = None) -> NDArray[np.float64]:
    """Lines of numbers as an array of two dimensions.

    Raises:
        ValueError: something is not a number, or lines differ in length.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of NumPy, where there are no lines
        try:
            return np.loadtxt(lines, dtype=np.float64, delimiter=delimiter, comments=None, ndmin=2)
        except BadFileError:  # from what gives the lines
            raise
        except ValueError as error:
            # NumPy's advice is about its own arguments.
            raise ValueError(str(error).partition("; use `usecols`")[0]) from error


def near_origin(xyz: Array, resolution: float | None = None) -> tuple[Array, tuple[float, ...] | None]:
    """Coordinates that survive float32: moved in their own precision, if float32 would blur them where they are.

    Args:
        xyz: ``(N, 3)``, one point or more.
        resolution: what float32 must resolve; a ten-thousandth of the extent when None, where they are of a type that
            holds more than float32.

    Returns:
        The coordinates, and the three floats that were taken off, None if they were left as they are.
    """
    low, high = xyz.min(axis=0).astype(np.float64), xyz.max(axis=0).astype(np.float64)
    if resolution is None:
        # A file of float32 numbers has lost already what moving would keep.
        resolution = np.inf if np.can_cast(xyz.dtype, np.float32) else 1e-4 * float((high - low).max())
    step = max(np.abs(low).max(), np.abs(high).max()) * np.finfo(np.float32).eps
    if not step > resolution > 0:
        return xyz, None
    origin = np.floor(low)
    return xyz - origin, tuple(float(value) for value in origin)


def beside(path: Path, name: str) -> Path | None:
    """The file that another one refers to, in the folder that it names or, if it came from elsewhere, beside it.

    One whose name differs in capitals alone is taken where there is no other: Windows does not tell them apart.
    """
    plain = name.replace("\\", "/")
    candidates = (path.parent / plain, path.parent / plain.rpartition("/")[2])
    exact = (candidate for candidate in candidates if candidate.is_file())
    alike = (
        file
        for candidate in candidates
        if candidate.parent.is_dir()
        for file in sorted(candidate.parent.iterdir())
        if file.name.lower() == candidate.name.lower() and file.is_file()
    )
    return next(chain(exact, alike), None)
