"""Posed colour and depth pictures: what the image path reads beside a scene's points."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pc3d._extras import require


@dataclass(frozen=True)
class Frame:
    """One shot of a moving colour and depth camera.

    A depth pixel (u, v) of d metres is the point ``pose @ [(u - cx) d / fx, (v - cy) d / fy, d, 1]`` of the scene, with
    fx, fy, cx and cy of ``intrinsic_depth``: x right, y down, z forward.

    Attributes:
        color: ``(H, W, 3)`` uint8.
        depth: ``(h, w)`` float32 metres along the viewing axis; 0 where the camera saw nothing.
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
        """Whether the camera knew where it was; the pose of other frames is of no use."""
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
