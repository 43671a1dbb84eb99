"""A raw room of S3DIS (text files, one per object) as the arrays of the prepared layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pc3d.data.dataset import BadFileError
from pc3d.data.normals import estimate_normals
from pc3d.data.scene_labels import S3DIS_CLASSES
from pc3d.data.scenes import find_below

_STRANGE = re.compile(rb"[^0-9eE+\-. \t]+")


def read_s3dis_room(
    folder: Path | str, *, align: bool = False, normals: Literal["none", "estimated"] = "none"
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """A room as ``coord``, ``color``, ``segment`` and ``instance``: its annotation files one after another, by name.

    The class is the file's name up to the first underscore, ``clutter`` where that is not one of the 13 (``stairs``);
    the instance is the number of the file. A stray character in a line, as the published files have two of, is taken
    out, or for a space, whichever gives six numbers.

    Args:
        folder: the room's.
        align: turn the room about the middle of its bounding box by the angle of ``Area_k_alignmentAngle.txt``, so that
            its walls follow the axes, as Pointcept does with its option of this name.
        normals: the text files have none. ``"estimated"`` adds ``normal`` from the points alone, see
            :func:`pc3d.data.normals.estimate_normals`. Pointcept's option takes them from the mesh of another
            download, 2D-3D-S, so that models trained on either are not to be compared.

    Returns:
        The arrays, and notes: lines that were repaired, and names that became clutter.

    Raises:
        BadFileError: there are no annotations, a line is not ``x y z r g b``, or the angle is not there.
    """
    paths = find_below(Path(folder) / "Annotations", "*.txt", levels=(0,))
    if not paths:
        raise BadFileError(Path(folder) / "Annotations", "holds no .txt files")
    tables, segments, notes = [], [], []
    for path in paths:
        table, repaired = read_s3dis_object(path)
        name = path.stem.partition("_")[0]
        if name not in S3DIS_CLASSES:
            notes.append(f"{path}: {name!r} is not one of the 13 classes, taken for clutter")
        tables.append(table)
        segments.append(S3DIS_CLASSES.index(name if name in S3DIS_CLASSES else "clutter"))
        notes += repaired
    lengths = [len(table) for table in tables]
    points = np.concatenate(tables)
    if align:
        points[:, :3] = _turned(points[:, :3], alignment_angle(Path(folder)))
    arrays: dict[str, NDArray[Any]] = {
        "coord": points[:, :3].astype(np.float32),
        "color": points[:, 3:].round().astype(np.uint8),
        "segment": np.repeat(np.array(segments, np.int16), lengths),
        "instance": np.repeat(np.arange(len(paths), dtype=np.int16), lengths),
    }
    if normals == "estimated":
        arrays["normal"] = estimate_normals(torch.from_numpy(arrays["coord"])).numpy()
    return arrays, notes


def alignment_angle(folder: Path) -> float:
    """The angle in degrees, a multiple of 90, that the area's list has for a room.

    Raises:
        BadFileError: there is no list, or the room is not on it.
    """
    area = folder.parent
    path = area / f"{area.name}_alignmentAngle.txt"
    if not path.is_file():
        raise BadFileError(path, "is not there: the unaligned version has one per area")
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == folder.name:
            return float(words[1])
    raise BadFileError(path, f"has no angle for {folder.name}")


def _turned(xyz: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    # Published as (2 - angle / 180) * pi about z: the angle backwards.
    angle = np.deg2rad(-degrees)
    cosine, sine = np.cos(angle), np.sin(angle)
    middle = (xyz.min(axis=0) + xyz.max(axis=0)) / 2
    matrix = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    return np.asarray((xyz - middle) @ matrix.T + middle)


def read_s3dis_object(path: Path) -> tuple[NDArray[np.float64], list[str]]:
    """The rows x, y, z, r, g, b of a file, and notes on the lines that were repaired.

    Raises:
        BadFileError: it is empty, or a line is not six numbers with colours from 0 to 255.
    """
    try:
        table = np.loadtxt(path, dtype=np.float64, ndmin=2, comments=None, encoding="latin1")
        notes: list[str] = []
    except ValueError:
        table, notes = _read_repairing(path)
    if table.size == 0 or table.shape[1] != 6:
        raise BadFileError(path, f"must hold lines x y z r g b, has the shape {table.shape}")
    wrong = ~np.isfinite(table).all(axis=1) | (table[:, 3:] < 0).any(axis=1) | (table[:, 3:] > 255).any(axis=1)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise BadFileError(path, f"row {row + 1} is not x y z and a colour from 0 to 255: {table[row].tolist()}")
    return table, notes


def _read_repairing(path: Path) -> tuple[NDArray[np.float64], list[str]]:
    rows, notes = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        line = line.rstrip(b"\r")
        if not line.strip():
            continue
        row = _numbers(line)
        if row is None:
            # A stray character inside of a number goes; between two numbers it stands for the space.
            row = _numbers(_STRANGE.sub(b"", line)) or _numbers(_STRANGE.sub(b" ", line))
            if row is None:
                raise BadFileError(path, f"line {number} is not x y z r g b: {line[:80]!r}")
            notes.append(f"{path}: line {number} repaired: {line!r} read as {row}")
        rows.append(row)
    return np.array(rows, np.float64).reshape(len(rows), -1), notes


def _numbers(line: bytes) -> list[float] | None:
    try:
        row = [float(word) for word in line.split()]
    except ValueError:
        return None
    return row if len(row) == 6 else None
