"""Furnished rooms scanned by simulated depth cameras: a small set inside the package, a larger one in a folder."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pc3d.data.dataset import BadFileError, MissingDataError, PointDataset
from pc3d.data.frames import Frame, decode_picture
from pc3d.data.transforms import Transform
from pc3d.data.types import PointCloud

_UNKNOWN = 255
_POINT_KEYS = ("coord_mm", "color", "normal", "segment", "instance")
_FRAME_KEYS = ("frames", "frame_size", "pose", "intrinsic")


class Rooms(PointDataset):
    """Rooms furnished with real models at real size, scanned by simulated depth cameras: 24 semantic classes.

    Scans have the holes, occlusions and noise of 20 views, and one point per cell of 3.5 cm. The classes are wall,
    floor, ceiling and those of :class:`Household`, and the furniture of the test rooms is that of its test split: no
    model is in both. The set inside the package has 8 training rooms and 3 test rooms. The large form, of which it is a
    part, has 27 and 8, and posed colour and depth pictures (``root=``). A room is read on demand and kept in memory as
    stored, with 14 bytes per point.

    Items have ``xyz`` in metres (z up), ``rgb``, ``normal`` (towards the camera that saw the point), ``segment``,
    ``instance`` (0 floor, 1 ceiling, 2 to 5 walls, then the furniture) and ``meta`` with ``id``, ``room`` (its kind),
    ``size_m`` and ``objects``: the item, its class and, in the embedded set, creator and licence of every instance.

    The format: ``SPLIT.json`` (``classes`` and a list ``rooms``) and ``NAME.npz`` for each room, with ``coord_mm``
    uint16 and ``origin`` (metres are ``coord_mm / 1000 + origin``), ``color`` uint8, ``normal`` int8 (x 127),
    ``segment`` and ``instance`` uint8 (255 = none), and, for the pictures, ``frames`` uint8 (JPEG and 16-bit PNG
    files in turn), ``frame_size``, ``pose`` and ``intrinsic``.

    Args:
        split: ``"train"`` or ``"test"``.
        root: a folder with the large form; None for the embedded set.
        transform: applied to every item.

    Raises:
        MissingDataError: the folder, the split or a room is not there.
        BadFileError: a file is truncated, or its content is not as above.
    """

    source = "a small set ships inside the package pc3d: reinstall it; a larger one is any folder in the same format"
    terms = "CC BY 3.0 or CC0 per model, see NOTICE"

    def __init__(
        self, split: str = "train", root: Path | str | None = None, *, transform: Transform | None = None
    ) -> None:
        self.root = Path(__file__).parent / "rooms" if root is None else Path(root)
        self.split, self.transform = split, transform
        path = self.root / f"{split}.json"
        description = self._read_description(path)
        self.classes = tuple(description["classes"])
        self.rooms: list[dict[str, Any]] = description["rooms"]
        self.paths = [self.root / f"{room['name']}.npz" for room in self.rooms]
        missing: list[Path | str] = [path for path in self.paths if not path.is_file()]
        if missing:
            raise MissingDataError.of(f"Rooms split {split!r}", missing, self.root, self.source, self.terms)
        # A room has no class of its own.
        self.labels = torch.full((len(self.rooms),), -1)
        self._arrays: dict[int, dict[str, NDArray[Any]]] = {}

    def __repr__(self) -> str:
        return f"Rooms({self.split!r}, {len(self)} rooms, {len(self.classes)} classes)"

    def load(self, index: int) -> PointCloud:
        if index not in self._arrays:
            self._arrays[index] = self._read(self.paths[index])
        arrays, room = self._arrays[index], self.rooms[index]
        normal = torch.from_numpy(arrays["normal"].astype(np.float32))
        return PointCloud(
            xyz=torch.from_numpy((arrays["coord_mm"] / 1000 + arrays["origin"]).astype(np.float32)),
            rgb=torch.from_numpy(arrays["color"].astype(np.float32) / 255.0),
            normal=torch.nn.functional.normalize(normal, dim=1),
            segment=_ids(arrays["segment"]),
            instance=_ids(arrays["instance"]),
            meta={
                "id": room["name"],
                "path": str(self.paths[index]),
                **{key: room[key] for key in ("room", "size_m", "objects") if key in room},
            },
        )

    def frames(self, index: int) -> list[Frame]:
        """The posed colour and depth pictures of a room.

        Raises:
            MissingDataError: the set has no pictures, like the one inside the package.
            BadFileError: they cannot be decoded.
            ImportError: Pillow is not installed.
        """
        path = self.paths[self._checked(index)]
        with np.load(path, allow_pickle=False) as archive:
            missing: list[Path | str] = [f"{key} in {path.name}" for key in _FRAME_KEYS if key not in archive]
        if missing:
            raise MissingDataError.of(
                "the pictures of Rooms", missing, self.root, "the large form of the set, see root=", self.terms
            )
        arrays = _read_keys(path, _FRAME_KEYS)
        data, ends = arrays["frames"].tobytes(), arrays["frame_size"].cumsum()
        intrinsic = arrays["intrinsic"].astype(np.float64)
        if len(ends) != 2 * len(arrays["pose"]) or (len(ends) > 0 and int(ends[-1]) != len(data)):
            raise BadFileError(path, "frames, frame_size and pose do not go together")
        try:
            sizes = arrays["frame_size"]
            pictures = [decode_picture(data[stop - size : stop]) for stop, size in zip(ends, sizes, strict=True)]
        except OSError as error:
            raise BadFileError(path, f"has a picture that cannot be decoded ({error})") from error
        return [
            Frame(color, (depth / 1000).astype(np.float32), pose.astype(np.float64), intrinsic, intrinsic)
            for color, depth, pose in zip(pictures[::2], pictures[1::2], arrays["pose"], strict=True)
        ]

    def _read(self, path: Path) -> dict[str, NDArray[Any]]:
        arrays = _read_keys(path, (*_POINT_KEYS, "origin"))
        num_points = len(arrays["coord_mm"])
        for key in _POINT_KEYS:
            shape = (num_points,) if key in ("segment", "instance") else (num_points, 3)
            if arrays[key].shape != shape:
                raise BadFileError(path, f"{key} has shape {arrays[key].shape}, {shape} goes with coord_mm")
        segment = arrays["segment"]
        largest = int(segment[segment != _UNKNOWN].max(initial=0))
        if largest >= len(self.classes):
            raise BadFileError(path, f"has class {largest}, {self.split}.json names {len(self.classes)}")
        return arrays

    def _read_description(self, path: Path) -> dict[str, Any]:
        if not path.is_file():
            found = sorted(p.stem for p in self.root.glob("*.json")) if self.root.is_dir() else []
            name = f"Rooms split {self.split!r}"
            if found:  # a wrong name, or a part of the set that was not fetched
                name = f"Rooms has no split {self.split!r}; splits found there: {found}"
            raise MissingDataError.of(name, [path], self.root, self.source, self.terms)
        try:
            description = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BadFileError(path, f"not valid JSON ({error})") from error
        if not isinstance(description, dict) or not {"classes", "rooms"} <= set(description):
            raise BadFileError(path, "must have a list 'classes' and a list 'rooms' with a record per room")
        return description


def _read_keys(path: Path, keys: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in keys if key not in archive]
            if missing:
                raise BadFileError(path, f"keys {missing} are missing; it has {sorted(archive.files)}")
            return {key: archive[key] for key in keys}
    except BadFileError:
        raise
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise BadFileError(path, f"not a readable .npz file ({error}); truncated or still being copied?") from error


def _ids(values: NDArray[np.uint8]) -> torch.Tensor:
    ids = values.astype(np.int64)
    return torch.from_numpy(np.where(ids == _UNKNOWN, -1, ids))
