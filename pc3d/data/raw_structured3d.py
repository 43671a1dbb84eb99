"""A rendered room of Structured3D, read from the zip archives, as the arrays of the prepared layout."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pc3d.data.dataset import BadFileError
from pc3d.data.frames import decode_picture
from pc3d.data.scene_labels import STRUCTURED3D_IDS

Array = NDArray[Any]
DepthMeaning = Literal["z", "range"]
Axes = Literal["world", "mirrored"]
# World axes (x, y, z) in the y-up order (y, z, x) in which cameras are put together.
_Y_UP = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
_ENTRY = re.compile(r"(?:.*/)?(scene_\d{5})/2D_rendering/(\w+)/(perspective/full/\w+|panorama)/(?:full/)?([\w.]+)")
_PICTURES = ("rgb_rawlight.png", "depth.png", "semantic.png")
_INVALID_DEPTH = 65535
_LEAST_COSINE = 0.15
_CELL = 0.01
# NYU40 id to train id.
_TRAIN_ID = np.full(256, -1, np.int16)
_TRAIN_ID[list(STRUCTURED3D_IDS)] = np.arange(len(STRUCTURED3D_IDS))


@dataclass(frozen=True)
class RoomFiles:
    """Where the views of one room are: for each view its files, by name, as (archive, entry)."""

    scene: str
    room: str
    views: dict[str, dict[str, tuple[str, str]]]

    @property
    def split(self) -> str:
        """The official split: scenes below 3000 train, below 3250 validate, the others test."""
        number = int(self.scene[-5:])
        return "train" if number < 3000 else "val" if number < 3250 else "test"


def find_structured3d_rooms(archives: Iterable[Path]) -> list[RoomFiles]:
    """The rooms of all archives together, sorted; a room's panorama and its perspective views are in different ones.

    Raises:
        BadFileError: an archive cannot be read.
    """
    rooms: dict[tuple[str, str], dict[str, dict[str, tuple[str, str]]]] = {}
    for path in sorted(archives):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, OSError) as error:
            raise BadFileError(path, f"not a readable zip archive ({error}); still being downloaded?") from error
        for name in names:
            found = _ENTRY.fullmatch(name)
            if found and (found[4] in _PICTURES or found[4] in ("camera_pose.txt", "camera_xyz.txt")):
                views = rooms.setdefault((found[1], found[2]), {})
                views.setdefault(found[3], {})[found[4]] = (str(path), name)
    return [RoomFiles(scene, room, dict(sorted(views.items()))) for (scene, room), views in sorted(rooms.items())]


def read_structured3d_room(
    files: RoomFiles, *, depth: DepthMeaning = "z", axes: Axes = "world"
) -> tuple[dict[str, Array], list[str]]:
    """A room as ``coord``, ``color``, ``normal`` and ``segment``: all views merged, one point per cell of 1 cm.

    A pixel counts if it has depth and a class, and if its surface is not seen at a glancing angle (cosine above 0.15).
    Of the points of a cell the first stays, panorama before perspective views. Normals face the camera.

    The two published converters disagree, and nobody has said which is right; hence the options. As Pointcept:
    ``depth="z", axes="mirrored"``, but for the last row and column of each view, which it leaves out; as the authors of
    Swin3D: ``depth="range", axes="world"``. With ``"range"`` the pixels of perspective views are counted from 1, as
    theirs are, with ``"z"`` from 0.

    Args:
        files: the room.
        depth: of perspective views: ``"z"`` is along the viewing axis, ``"range"`` along the ray, with pixels from 1.
        axes: ``"world"`` gives the coordinates of the data set itself, right-handed, z up; ``"mirrored"`` exchanges two
            of its axes and so mirrors the rooms.

    Returns:
        The arrays, and notes: views that lack a file, which are left out.

    Raises:
        ValueError: an option is none of the above.
        BadFileError: a file cannot be read, or the room has no points.
        ImportError: Pillow is not installed.
    """
    if depth not in ("z", "range"):
        raise ValueError(f"depth must be 'z' or 'range', got {depth!r}")
    if axes not in ("world", "mirrored"):
        raise ValueError(f"axes must be 'world' or 'mirrored', got {axes!r}")
    parts, notes = [], []
    with _Archives() as archives:
        for view, entries in files.views.items():
            camera = "camera_xyz.txt" if view == "panorama" else "camera_pose.txt"
            lacking = [name for name in (*_PICTURES, camera) if name not in entries]
            if lacking:
                notes.append(f"{files.scene}/{files.room}/{view}: left out, lacks {', '.join(lacking)}")
                continue
            parts.append(_first_per_cell(_read_view(archives, entries, camera, depth)))
    if not parts:
        raise BadFileError(f"{files.scene}/{files.room}", "has no complete view in these archives")
    arrays = _first_per_cell({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    # The way back from y up to the world; or the exchange of the last two axes.
    order = [2, 0, 1] if axes == "world" else [0, 2, 1]
    for name in ("coord", "normal"):
        arrays[name] = np.ascontiguousarray(arrays[name][:, order], np.float32)
    if len(arrays["coord"]) == 0:
        raise BadFileError(f"{files.scene}/{files.room}", "has no pixel with depth and a class")
    return arrays, notes


def _first_per_cell(arrays: dict[str, Array]) -> dict[str, Array]:
    from pc3d.ops import voxelize

    rows = voxelize(torch.from_numpy(arrays["coord"]), _CELL).first.sort().values.numpy()
    return {name: values[rows] for name, values in arrays.items()}


def _read_view(
    archives: _Archives, entries: dict[str, tuple[str, str]], camera: str, meaning: DepthMeaning
) -> dict[str, Array]:
    """The usable pixels of one view, y up."""
    color, depth, semantic = (_picture(archives, *entries[name]) for name in _PICTURES)
    if color.shape[:2] != depth.shape or semantic.shape != depth.shape:
        raise BadFileError(
            "/".join(entries["depth.png"]),
            f"colour {color.shape}, depth {depth.shape}, semantic {semantic.shape} differ",
        )
    numbers = _camera(archives, *entries[camera], count=3 if camera == "camera_xyz.txt" else 11)
    metres = depth.astype(np.float64) / 1000
    position = _Y_UP @ numbers[:3] / 1000
    if camera == "camera_xyz.txt":
        seen = _panorama_rays(depth.shape) * metres[..., None]
    else:
        seen = _perspective_rays(depth.shape, numbers, meaning) * metres[..., None]
    normal = _normals(seen)
    distance = np.linalg.norm(seen, axis=2)
    facing = -(normal * seen).sum(axis=2) / np.maximum(distance, 1e-12)
    valid = (depth > 0) & (depth < _INVALID_DEPTH) & (semantic > 0) & (np.abs(facing) > _LEAST_COSINE)
    normal = normal * np.where(facing < 0, -1.0, 1.0)[..., None]
    return {
        "coord": (seen + position)[valid],
        "color": color[valid],
        "normal": normal[valid],
        "segment": _TRAIN_ID[semantic[valid]],
    }


def _perspective_rays(shape: tuple[int, ...], numbers: Array, meaning: DepthMeaning) -> Array:
    """Viewing directions ``(H, W, 3)``, y up, of length 1 along the viewing axis or along themselves."""
    height, width = shape
    front, above = numbers[3:6], numbers[6:9]
    rotation = _Y_UP @ np.stack([front, above, np.cross(front, above)], axis=1)
    focal_x, focal_y = width / 2 / math.tan(numbers[9]), height / 2 / math.tan(numbers[10])
    first = 1 if meaning == "range" else 0
    v, u = np.mgrid[first : height + first, first : width + first]
    rays = np.stack([np.ones((height, width)), -(v - height / 2) / focal_y, (u - width / 2) / focal_x], axis=2)
    if meaning == "range":
        rays /= np.linalg.norm(rays, axis=2, keepdims=True)
    return np.asarray(rays @ rotation.T)


def _panorama_rays(shape: tuple[int, ...]) -> Array:
    """Viewing directions ``(H, W, 3)`` of length 1, y up."""
    height, width = shape
    v, u = np.mgrid[0:height, 0:width]
    azimuth, elevation = 2 * np.pi * u / width - np.pi, np.pi / 2 - np.pi * v / height
    level = np.cos(elevation)
    return np.stack([np.cos(azimuth) * level, np.sin(elevation), np.sin(azimuth) * level], axis=2)


def _normals(points: Array) -> Array:
    """Unit cross products of the differences to the next pixel and to the next row; 0 where they vanish."""
    across, down = np.zeros_like(points), np.zeros_like(points)
    across[:, :-1] = points[:, 1:] - points[:, :-1]
    across[:, -1:] = across[:, -2:-1]
    down[:-1] = points[1:] - points[:-1]
    down[-1:] = down[-2:-1]
    normal = np.cross(across, down)
    length = np.linalg.norm(normal, axis=2, keepdims=True)
    return np.asarray(np.divide(normal, length, out=np.zeros_like(normal), where=length > 0))


class _Archives(ExitStack):
    """The archives of a room, each opened once: their directories name some hundred thousand files."""

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[str, zipfile.ZipFile] = {}

    def read(self, archive: str, entry: str) -> bytes:
        try:
            if archive not in self._open:
                self._open[archive] = self.enter_context(zipfile.ZipFile(archive))
            return self._open[archive].read(entry)
        except (zipfile.BadZipFile, OSError, KeyError) as error:
            raise BadFileError(f"{archive}/{entry}", f"cannot be read from the archive ({error})") from error


def _picture(archives: _Archives, archive: str, entry: str) -> Array:
    try:
        # semantic.png has a palette for the eye; the index itself is the class.
        return decode_picture(archives.read(archive, entry), palette_index=True)
    except OSError as error:
        raise BadFileError(f"{archive}/{entry}", f"cannot be decoded ({error})") from error


def _camera(archives: _Archives, archive: str, entry: str, count: int) -> Array:
    words = archives.read(archive, entry).decode("utf-8", "replace").split()
    try:
        numbers = np.array([float(word) for word in words])
    except ValueError:
        numbers = np.empty(0)
    if len(numbers) < count or not np.isfinite(numbers).all():
        raise BadFileError(f"{archive}/{entry}", f"must hold {count} numbers, has {' '.join(words)[:80]!r}")
    return numbers
