"""Posed colour and depth pictures of a scene, for the image path."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pc3d._extras import require
from pc3d.data.dataset import BadFileError

# Cameras have their principal point within a few hundredths of the picture's size of the middle; pictures scaled by 3/4
# or 3/2, without their intrinsics, have it a sixth off.
_OFF_MIDDLE = 0.15


@dataclass(frozen=True)
class Frame:
    """One shot of a moving colour and depth camera.

    A depth pixel (u, v) of d metres is the point ``pose @ [(u - cx) d / fx, (v - cy) d / fy, d, 1]`` of the scene, with
    fx, fy, cx and cy of ``intrinsic_depth``: x right, y down, z forward.

    Attributes:
        color: ``(H, W, 3)`` uint8.
        depth: ``(h, w)`` float32 metres along the viewing axis; 0 if the camera saw nothing.
        pose: ``(4, 4)`` float64 camera to scene. Not finite where tracking was lost, see ``tracked``.
        intrinsic: ``(3, 3)`` float64 pinhole matrix of the colour picture, in pixels.
        intrinsic_depth: the same of the depth picture.
        pose_color: ``(4, 4)`` float64 colour camera to scene, where it is not in the place of the depth camera, whose
            pose is ``pose`` then; None where both are in one place.
    """

    color: NDArray[np.uint8]
    depth: NDArray[np.float32]
    pose: NDArray[np.float64]
    intrinsic: NDArray[np.float64]
    intrinsic_depth: NDArray[np.float64]
    pose_color: NDArray[np.float64] | None = None

    @property
    def tracked(self) -> bool:
        """Whether the pose was tracked; the pose of other frames cannot be used."""
        return bool(np.isfinite(self.pose).all())

    def points(self) -> NDArray[np.float64]:
        """The pixels with depth as ``(M, 3)`` points of the scene, row by row.

        Raises:
            ValueError: tracking was lost.
        """
        if not self.tracked:
            raise ValueError("tracking was lost in this frame, so its pixels have no place in the scene: skip it")
        v, u = np.nonzero(self.depth > 0)
        depth = self.depth[v, u].astype(np.float64)
        matrix = self.intrinsic_depth
        x = (u - matrix[0, 2]) * depth / matrix[0, 0]
        y = (v - matrix[1, 2]) * depth / matrix[1, 1]
        return np.asarray(np.stack([x, y, depth], axis=1) @ self.pose[:3, :3].T + self.pose[:3, 3])


def decode_picture(data: bytes, palette_index: bool = False) -> NDArray[Any]:
    """The pixels of a JPEG or PNG file: uint8 ``(H, W, 3)`` colours, or ``(H, W)`` of a grey or 16-bit picture.

    Args:
        data: the file.
        palette_index: of a picture with a palette, give the indices ``(H, W)`` in place of the colours.

    Raises:
        OSError: it is no picture, or truncated.
        ImportError: Pillow is not installed.
    """
    image = require("PIL.Image", extra="io", purpose="pictures").open(io.BytesIO(data))
    kept = ("L", "I", "I;16", "I;16B", *(["P"] if palette_index else []))
    return np.asarray(image if image.mode in kept else image.convert("RGB"))


def decode_color(data: bytes) -> NDArray[np.uint8]:
    """The pixels of a JPEG or PNG file as ``(H, W, 3)`` colours, grey ones three times.

    Raises:
        OSError, ImportError: see :func:`decode_picture`.
        ValueError: it has more than 8 bits per channel.
    """
    picture = decode_picture(data)
    if picture.dtype != np.uint8:
        raise ValueError(f"has {8 * picture.dtype.itemsize} bits per pixel, expected colours or 8-bit grey")
    return np.repeat(picture[:, :, None], 3, axis=2) if picture.ndim == 2 else picture


class FrameFolder:
    """The frames of a scan as ScanNet's exporter writes them: ``FrameFolder(path)[i]`` is a :class:`Frame`.

    The folder holds ``color/N.jpg`` (or ``.png``), ``depth/N.png`` (16 bits, millimetres), ``pose/N.txt`` (4 x 4,
    camera to scene, x right, y down, z forward) and ``intrinsic/intrinsic_color.txt`` and ``intrinsic_depth.txt``, or,
    as in ScanNet's 25k frames, ``intrinsics_color.txt`` and ``intrinsics_depth.txt``: 4 x 4 or 3 x 3, pinhole without
    distortion, in pixels of the pictures as they are here. Depth and colour pictures may differ in size, but are taken
    from one place. Frames are ordered by their number, which need not be consecutive and may have zeros in front;
    pictures are decoded when they are asked for.

    Attributes:
        numbers: the number of each frame.

    Args:
        path: the folder.
        depth_shift: stored depth of one metre.
        cropped: the pictures were cut out of larger ones, and the intrinsics moved with them: the principal point may
            lie anywhere. Otherwise one far from the middle is refused, as intrinsics of another size.

    Raises:
        ValueError: ``depth_shift`` is not positive.
        FileNotFoundError: the folder has no poses, or a frame or the intrinsics lack a file.
        BadFileError: (also when a frame is asked for) a file cannot be used, two files of a kind have one number, or
            the intrinsics are not those of pictures of this size.
    """

    def __init__(self, path: Path | str, *, depth_shift: float = 1000.0, cropped: bool = False) -> None:
        if not depth_shift > 0:
            raise ValueError(f"depth_shift must be positive, got {depth_shift}")
        self.path, self.depth_shift, self.cropped = Path(path), float(depth_shift), cropped
        kinds = ("color", "depth", "pose")
        files = {kind: _by_number(self.path / kind) for kind in kinds}
        self.numbers = sorted(files["pose"])
        if not self.numbers:
            raise FileNotFoundError(f"{self.path / 'pose'} holds no files like 0.txt: export the scan's frames first")
        missing = [f"{kind}/{n}.*" for n in self.numbers for kind in kinds if n not in files[kind]]
        if missing:
            raise FileNotFoundError(
                f"{self.path} has poses without pictures: {len(missing)} missing, first {missing[0]}: add them or "
                "remove the poses"
            )
        self._files = [tuple(files[kind][n] for kind in kinds) for n in self.numbers]
        self._intrinsic_files = {kind: self._intrinsic_file(kind) for kind in ("color", "depth")}
        matrices = [_read_matrix(file, sides=(4, 3)) for file in self._intrinsic_files.values()]
        self.color_intrinsic, self.depth_intrinsic = (matrix[:3, :3] for matrix in matrices)

    def _intrinsic_file(self, kind: str) -> Path:
        """Where the exporter writes the intrinsics, or where ScanNet's 25k frames have them if they are only there."""
        exported, of_25k = self.path / "intrinsic" / f"intrinsic_{kind}.txt", self.path / f"intrinsics_{kind}.txt"
        return of_25k if of_25k.is_file() and not exported.is_file() else exported

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Frame:
        """Decode one frame.

        Raises:
            IndexError: there is no such frame.
            BadFileError: a file of it cannot be decoded.
            ImportError: Pillow is not installed.
        """
        files = self._files[index]
        color, depth = _read_color(files[0]), _read_depth(files[1])
        self._check_size("color", self.color_intrinsic, color)
        self._check_size("depth", self.depth_intrinsic, depth)
        return Frame(
            color=color,
            depth=(depth / self.depth_shift).astype(np.float32),
            pose=_read_matrix(files[2]),
            intrinsic=self.color_intrinsic,
            intrinsic_depth=self.depth_intrinsic,
        )

    def _check_size(self, kind: str, intrinsic: NDArray[np.float64], picture: NDArray[Any]) -> None:
        """Pictures are often scaled and their intrinsics forgotten, which puts the principal point off the middle.

        Raises:
            BadFileError: the principal point is too far from the middle of the picture.
        """
        if self.cropped:
            return
        size = np.array(picture.shape[1::-1])
        place = intrinsic[:2, 2]
        if np.abs((place + 0.5) / size - 0.5).max() > _OFF_MIDDLE:
            x, y = place.tolist()
            raise BadFileError(
                self._intrinsic_files[kind],
                f"has the principal point ({x:g}, {y:g}), far from the middle of the {kind} pictures of {size[0]} x "
                f"{size[1]} pixels: scale the intrinsics as the pictures were, or say that they were cropped "
                "(cropped=True, --cropped of a command)",
            )


def _by_number(folder: Path) -> dict[int, Path]:
    """The files whose names are numbers, with or without zeros in front."""
    files: dict[int, Path] = {}
    for file in sorted(folder.glob("*")):
        if file.stem.isdecimal():
            other = files.setdefault(int(file.stem), file)
            if other != file:
                raise BadFileError(file, f"has the number of {other.name}: keep one of them")
    return files


def _read_color(path: Path) -> NDArray[np.uint8]:
    try:
        return _decode_file(path, decode_color)
    except ValueError as error:
        raise BadFileError(path, str(error)) from error


def _read_depth(path: Path) -> NDArray[Any]:
    picture = _decode_file(path, decode_picture)
    if picture.ndim != 2:
        raise BadFileError(path, f"has the shape {picture.shape}, expected a 16-bit picture with one number per pixel")
    return picture


def _decode_file(path: Path, decode: Callable[[bytes], NDArray[Any]]) -> NDArray[Any]:
    try:
        return decode(path.read_bytes())
    except OSError as error:
        raise BadFileError(path, f"cannot be decoded ({error})") from error


def _read_matrix(path: Path, sides: tuple[int, ...] = (4,)) -> NDArray[np.float64]:
    """A square matrix from a text file, with as many rows as one of ``sides``."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        # float() knows "-inf", which stands where tracking was lost.
        matrix = np.array([float(word) for word in path.read_text(encoding="utf-8").split()])
    except ValueError as error:
        raise BadFileError(path, f"must hold numbers ({error})") from error
    for side in sides:
        if matrix.size == side * side:
            return matrix.reshape(side, side)
    expected = " or ".join(f"{side} x {side}" for side in sides)
    raise BadFileError(path, f"must hold a {expected} matrix, has {matrix.size} numbers")
