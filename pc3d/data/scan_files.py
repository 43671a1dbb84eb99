"""Scans as files of points, with or without the classes of their points, as the arrays of the prepared layout."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pc3d.data.dataset import BadFileError
from pc3d.data.normals import NORMAL_NEIGHBORS, estimate_normals
from pc3d.data.points import read_scene
from pc3d.data.types import PointCloud
from pc3d.ops import voxelize

# x, y, z of a frame whose y is up are x, -z, y of one whose z is up.
_FROM_Y_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
_CODED = re.compile(r"(-?\d+)[\s,:]+(\S.*)")
_COMMENT = re.compile(r"\s*(#|$)")


@dataclass(frozen=True)
class ClassCodes:
    """Which classes there are, and how files number them.

    Attributes:
        names: of the classes; the class of a point in the prepared layout is a position in here.
        index: the class of each number in the files.
        others_unlabelled: whether points with another number have no class; otherwise such a file is refused.
    """

    names: tuple[str, ...]
    index: dict[int, int]
    others_unlabelled: bool

    def classes_of(self, codes: NDArray[np.int64], path: Path) -> tuple[NDArray[np.int16], str | None]:
        """The classes of points by their numbers in a file, -1 for none, and a note where numbers have no class.

        Raises:
            BadFileError: there is a number without a class, and not all of them were listed with theirs.
        """
        found, places = np.unique(codes, return_inverse=True)
        classes = np.array([self.index.get(int(code), -1) for code in found], np.int16)
        strange = [int(code) for code, known in zip(found, classes, strict=True) if known < 0 and code != -1]
        if strange and not self.others_unlabelled:
            raise BadFileError(
                path,
                f"has points of the classes {_few(strange)}, and there are {len(self.names)} names, of 0 to "
                f"{len(self.names) - 1}: write a number before each name to leave others without a class",
            )
        segment = classes[places.reshape(-1)]
        share = 100 * float((segment < 0).mean()) if len(segment) else 0.0
        return segment, f"{path}: no class for {_few(strange)}: {share:.1f} % of the points" if strange else None


def _few(codes: list[int]) -> str:
    return ", ".join(map(str, codes[:8])) + (", ..." if len(codes) > 8 else "")


def read_class_codes(path: Path | str) -> ClassCodes:
    """A list of classes: a name on each line, of the numbers 0, 1, ...; or a number and a name on each line.

    Several numbers may have one name. Empty lines and those that begin with ``#`` are passed over.

    Raises:
        FileNotFoundError: there is no such file.
        BadFileError: there are no names, some lines have numbers and others not, or something stands twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file")
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if not _COMMENT.match(line)]
    coded = [found for line in lines if (found := _CODED.fullmatch(line))]
    if not lines or 0 < len(coded) < len(lines):
        raise BadFileError(path, "must name a class on each line, with a number before each name or before none")
    numbers = [int(found[1]) for found in coded] or list(range(len(lines)))
    named = [found[2] for found in coded] or lines
    names = tuple(dict.fromkeys(named))
    if len(set(numbers)) < len(numbers) or (not coded and len(names) < len(named)):
        raise BadFileError(path, "has a number or a name twice")
    index = {number: names.index(name) for number, name in zip(numbers, named, strict=True)}
    return ClassCodes(names, index, bool(coded))


def read_scan(
    path: Path | str,
    *,
    codes: ClassCodes | None = None,
    labels: str | None = None,
    scale: float = 1.0,
    y_up: bool = False,
    cell: float | None = None,
    drop_invalid: bool = False,
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """A scan as ``coord``, ``color``, ``normal`` and, where there are classes, ``segment``.

    Every scan has colours and normals, so that all recipes can train on it, as ``pc3d segment predict`` also adds what
    a model reads: mid-grey, and normals of the planes through the nearest points.

    Args:
        path: any file that :func:`pc3d.data.read_scene` reads.
        codes: the classes; None for a scan without labels.
        labels: which column has the classes; None for one of the usual names.
        scale: metres of one unit.
        y_up: y points up in the file; it is turned.
        cell: keep the first point of each cube of this edge in metres; None keeps all.
        drop_invalid: leave out points that are not finite.

    Returns:
        The arrays, and notes: what was added, and which points have no class.

    Raises:
        BadFileError: see :func:`pc3d.data.read_scene`; or there are classes without a name.
    """
    path = Path(path)
    cloud = read_scene(path, drop_invalid=drop_invalid, labels=(labels or True) if codes is not None else False)
    notes = [f"{path}: {cloud.meta['dropped_points']} points dropped"] if "dropped_points" in cloud.meta else []
    xyz = cloud.xyz.double().numpy()
    if cell is not None:
        # About the lowest corner: far from it, voxels would be beyond the range of their numbers.
        near = torch.from_numpy((xyz - xyz.min(axis=0)) * scale)
        rows = voxelize(near, cell).first.sort().values
        cloud, xyz = cloud.select(rows), xyz[rows.numpy()]
    turn = _FROM_Y_UP if y_up else np.eye(3)
    origin = np.array(cloud.meta.get("origin", (0.0, 0.0, 0.0)))
    coord = ((xyz + origin) @ turn.T) * scale
    # Far from the origin, float32 would blur them.
    arrays: dict[str, NDArray[Any]] = {"coord": coord if origin.any() else coord.astype(np.float32)}
    color, normal, added = _color_and_normal(cloud, turn)
    arrays |= {"color": color, "normal": normal}
    if codes is not None and cloud.segment is not None:
        arrays["segment"], note = codes.classes_of(cloud.segment.numpy(), path)
        notes += [] if note is None else [note]
    return arrays, notes + [f"{path}: {words}" for words in added]


def _color_and_normal(cloud: PointCloud, turn: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any], list[str]]:
    """Colours and turned normals of a cloud, and what had to be added in words."""
    added = []
    if cloud.rgb is None:
        color: NDArray[Any] = np.full((len(cloud), 3), 0.5, np.float16)
        added.append("no colours: mid-grey")
    else:
        color = (cloud.rgb.numpy() * 255).round().astype(np.uint8)
    if cloud.normal is None:
        normal = estimate_normals(cloud.xyz)
        added.append(f"no normals: estimated from the {NORMAL_NEIGHBORS} nearest points of each")
    else:
        normal = cloud.normal
    return color, (normal.double().numpy() @ turn.T).astype(np.float32), added
