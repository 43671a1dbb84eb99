"""ScanNet's ``.sens`` files: the colour and depth stream of a scan, with the camera's path."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pc3d.data.dataset import BadFileError
from pc3d.data.frames import Frame, FrameFolder, decode_color

_VERSION = 4
_COLOR = {0: "raw", 1: "png", 2: "jpeg"}
_DEPTH = {0: "raw", 1: "zlib"}
# Pose, two time stamps, the sizes of the colour and the depth data.
_FRAME = struct.Struct("<16f4Q")
_LONGEST_NAME = 10_000


@dataclass(frozen=True)
class _Place:
    """Where a frame's data lie, and what stands before them."""

    offset: int
    color_bytes: int
    depth_bytes: int
    pose: tuple[float, ...]
    color_time: int
    depth_time: int


class SensFile:
    """The frames of a ``.sens`` file, decoded when they are asked for: ``SensFile(path)[i]`` is a :class:`Frame`.

    Opening reads the header and finds the position of every frame. No picture is decoded and no file is kept open, so
    the object can be sent to other processes. If tracking was lost, ``frame.tracked`` is False.

    Poses are those of the depth camera, and its extrinsics lead from there to the colour camera, as the SDK of ScanNet
    has it (``sensorData.h``): a point p of the depth camera is at ``pose @ p`` in the scene and at
    ``depth_extrinsic @ p`` before the colour camera. Frames have ``pose_color`` where the extrinsics move it away;
    those that are the identity, all zero or not finite say nothing. The extrinsics of the colour camera have no part in
    this, as in the SDK.

    Attributes:
        sensor: name of the device.
        color_intrinsic, depth_intrinsic: ``(3, 3)`` float64 pinhole matrices in pixels.
        color_extrinsic, depth_extrinsic: ``(4, 4)`` float64 as stored; the identity in ScanNet.
        color_size, depth_size: (width, height) of the pictures.
        depth_shift: stored depth of one metre; 1000 in ScanNet.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        BadFileError: it is no ``.sens`` file of version 4, is truncated, packed in a way that is not read (the depth
            codec "occi"), or its depth camera has extrinsics that are no rotation and shift.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} does not exist or is not a file")
        self._bytes = self.path.stat().st_size
        with self.path.open("rb") as file:
            count = self._read_header(file)
            self._places = [self._read_place(file, number, count) for number in range(count)]

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Frame]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"SensFile({str(self.path)!r}, {len(self)} frames, {int(self.tracked.sum())} tracked)"

    @property
    def tracked(self) -> NDArray[np.bool_]:
        """``(len,)`` whether the pose of each frame was tracked, without decoding a picture."""
        return np.array([np.isfinite(place.pose).all() for place in self._places], dtype=bool)

    @property
    def times(self) -> NDArray[np.uint64]:
        """``(len, 2)`` time stamps of colour and depth, in the device's own units."""
        return np.array([(p.color_time, p.depth_time) for p in self._places], np.uint64).reshape(-1, 2)

    def __getitem__(self, index: int) -> Frame:
        """Decode one frame.

        Raises:
            IndexError: there is no such frame.
            BadFileError: its data cannot be decoded.
            ImportError: Pillow is not installed.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} frames")
        place = self._places[index]
        with self.path.open("rb") as file:
            file.seek(place.offset)
            color, depth = file.read(place.color_bytes), file.read(place.depth_bytes)
        pose = np.array(place.pose, np.float64).reshape(4, 4)
        color_to_depth = self._color_to_depth if np.isfinite(pose).all() else None
        try:
            return Frame(
                color=self._color(color),
                depth=(self._depth(depth) / self.depth_shift).astype(np.float32),
                pose=pose,
                intrinsic=self.color_intrinsic,
                intrinsic_depth=self.depth_intrinsic,
                pose_color=None if color_to_depth is None else pose @ color_to_depth,
            )
        except (OSError, ValueError, zlib.error) as error:
            raise BadFileError(self.path, f"frame {index % len(self)} cannot be decoded ({error})") from error

    def _color(self, data: bytes) -> NDArray[np.uint8]:
        width, height = self.color_size
        if self._color_format == "raw":
            return np.frombuffer(data, np.uint8).reshape(height, width, 3)
        picture = decode_color(data)
        if picture.shape != (height, width, 3):
            raise ValueError(f"the picture has the shape {picture.shape}, the header says {(height, width, 3)}")
        return picture

    def _depth(self, data: bytes) -> NDArray[np.uint16]:
        width, height = self.depth_size
        data = data if self._depth_format == "raw" else zlib.decompress(data)
        return np.frombuffer(data, "<u2").reshape(height, width)

    def _take(self, file: BinaryIO, layout: str) -> tuple[Any, ...]:
        data = file.read(struct.calcsize(layout))
        if len(data) < struct.calcsize(layout):
            raise BadFileError(self.path, f"is truncated: it ends after {self._bytes} bytes, within its header")
        return struct.unpack(layout, data)

    def _read_header(self, file: BinaryIO) -> int:
        version, length = self._take(file, "<IQ")
        if version != _VERSION or length > _LONGEST_NAME:
            raise BadFileError(self.path, f"is not a .sens file of version {_VERSION}: it begins with {version}")
        self.sensor = self._take(file, f"<{length}s")[0].decode("utf-8", "replace")
        matrices = [np.array(self._take(file, "<16f"), np.float64).reshape(4, 4) for _ in range(4)]
        self.color_intrinsic, self.color_extrinsic = matrices[0][:3, :3], matrices[1]
        self.depth_intrinsic, self.depth_extrinsic = matrices[2][:3, :3], matrices[3]
        self._color_to_depth = self._inverse(self.depth_extrinsic)
        color, depth = self._take(file, "<2i")
        if color not in _COLOR or depth not in _DEPTH:
            raise BadFileError(
                self.path,
                f"is packed as colour {color} and depth {depth}; colour {_COLOR} and depth {_DEPTH} are read",
            )
        self._color_format, self._depth_format = _COLOR[color], _DEPTH[depth]
        sizes = self._take(file, "<4I")
        self.color_size, self.depth_size = (sizes[0], sizes[1]), (sizes[2], sizes[3])
        self.depth_shift, count = self._take(file, "<fQ")
        if not self.depth_shift > 0:
            raise BadFileError(self.path, f"has the depth shift {self.depth_shift}, expected a positive number")
        return int(count)

    def _inverse(self, extrinsic: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """From the colour camera to that of the depth; None where nothing was written about it, or they are one."""
        if not np.isfinite(extrinsic).all() or not extrinsic.any() or (extrinsic == np.eye(4)).all():
            return None
        rotation = extrinsic[:3, :3]
        if (
            np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-2
            or np.linalg.det(rotation) < 0
            or np.abs(extrinsic[3] - np.eye(4)[3]).max() > 1e-6
        ):
            raise BadFileError(
                self.path, f"has extrinsics of the depth camera that are no rotation and shift: {extrinsic.tolist()}"
            )
        return np.asarray(np.linalg.inv(extrinsic), np.float64)

    def _read_place(self, file: BinaryIO, number: int, count: int) -> _Place:
        data = file.read(_FRAME.size)
        offset = file.tell()
        values = _FRAME.unpack(data) if len(data) == _FRAME.size else (0,) * 20
        color_bytes, depth_bytes = values[18:]
        if len(data) < _FRAME.size or offset + color_bytes + depth_bytes > self._bytes:
            raise BadFileError(self.path, f"is truncated: the header promises {count} frames, {number} are whole")
        file.seek(color_bytes + depth_bytes, 1)
        return _Place(offset, color_bytes, depth_bytes, tuple(values[:16]), values[16], values[17])


def open_frames(folder: Path | str, depth_shift: float = 1000.0, *, cropped: bool = False) -> SensFile | FrameFolder:
    """The frames of a scan: ``SCAN/SCAN.sens`` where it is there, else what ScanNet's exporter wrote into ``SCAN/``.

    Args:
        folder: of the scan.
        depth_shift: stored depth of one metre in exported pictures; a ``.sens`` file names its own.
        cropped: exported pictures may have their principal point anywhere, see :class:`FrameFolder`; those of a
            ``.sens`` file always may.

    Raises:
        FileNotFoundError: the folder has neither.
        BadFileError: it has, but they cannot be used.
    """
    folder = Path(folder)
    packed = folder / f"{folder.name}.sens"
    return SensFile(packed) if packed.is_file() else FrameFolder(folder, depth_shift=depth_shift, cropped=cropped)
