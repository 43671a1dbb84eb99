"""Posed colour and depth pictures of a scene, for the image path."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pc3d._extras import require
from pc3d.data.dataset import BadFileError


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
    """

    color: NDArray[np.uint8]
    depth: NDArray[np.float32]
    pose: NDArray[np.float64]
    intrinsic: NDArray[np.float64]
    intrinsic_depth: NDArray[np.float64]

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


class FrameFolder:
    """The frames of a scan as ScanNet's exporter writes them: ``FrameFolder(path)[i]`` is a :class:`Frame`.

    The folder holds ``color/N.jpg`` (or ``.png``), ``depth/N.png`` (millimetres), ``pose/N.txt`` (4 x 4, camera to
    scene) and ``intrinsic/intrinsic_color.txt`` and ``intrinsic_depth.txt``. Frames are ordered by their number, which
    need not be consecutive and may have zeros in front; pictures are decoded when they are asked for.

    Attributes:
        numbers: the number of each frame.

    Args:
        path: the folder.
        depth_shift: stored depth of one metre.

    Raises:
        FileNotFoundError: the folder has no poses, or a frame or the intrinsics lack a file.
        BadFileError: (also when a frame is asked for) a file cannot be used, or two files of a kind have one number.
    """

    def __init__(self, path: Path | str, *, depth_shift: float = 1000.0) -> None:
        if not depth_shift > 0:
            raise ValueError(f"depth_shift must be positive, got {depth_shift}")
        self.path, self.depth_shift = Path(path), float(depth_shift)
        kinds = ("color", "depth", "pose")
        files = {kind: _by_number(self.path / kind) for kind in kinds}
        self.numbers = sorted(files["pose"])
        if not self.numbers:
            raise FileNotFoundError(f"{self.path / 'pose'} holds no files like 0.txt: export the scan's frames first")
        missing = [f"{kind}/{n}.*" for n in self.numbers for kind in kinds if n not in files[kind]]
        if missing:
            raise FileNotFoundError(
                f"{self.path} has poses without pictures: {len(missing)} missing, first {missing[0]}"
            )
        self._files = [tuple(files[kind][n] for kind in kinds) for n in self.numbers]
        matrices = [_read_matrix(self.path / "intrinsic" / f"intrinsic_{kind}.txt") for kind in ("color", "depth")]
        self.color_intrinsic, self.depth_intrinsic = (matrix[:3, :3] for matrix in matrices)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Frame:
        """Decode one frame.

        Raises:
            IndexError: there is no such frame.
            BadFileError: a file of it cannot be decoded.
            ImportError: Pillow is not installed.
        """
        color, depth, pose = self._files[index]
        return Frame(
            color=_read_picture(color, 3),
            depth=(_read_picture(depth, 2) / self.depth_shift).astype(np.float32),
            pose=_read_matrix(pose),
            intrinsic=self.color_intrinsic,
            intrinsic_depth=self.depth_intrinsic,
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


def _read_picture(path: Path, dimensions: int) -> NDArray[Any]:
    try:
        picture = decode_picture(path.read_bytes())
    except OSError as error:
        raise BadFileError(path, f"cannot be decoded ({error})") from error
    if picture.ndim != dimensions:
        raise BadFileError(path, f"has the shape {picture.shape}: not a picture of this kind")
    return picture


def _read_matrix(path: Path) -> NDArray[np.float64]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        # float() knows "-inf", which stands where tracking was lost.
        matrix = np.array([float(word) for word in path.read_text(encoding="utf-8").split()])
    except ValueError as error:
        raise BadFileError(path, f"must hold numbers ({error})") from error
    if matrix.size != 16:
        raise BadFileError(path, f"must hold a 4 x 4 matrix, has {matrix.size} numbers")
    return matrix.reshape(4, 4)
