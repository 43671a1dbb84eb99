"""The result of a renderer for one camera, and how it is stored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pc3d._extras import require
from pc3d.image.cameras import Camera


@dataclass(frozen=True)
class Rendering:
    """A picture of an object with the geometry behind every pixel.

    Attributes:
        camera: that it was taken with.
        color: ``(H, W, 4)`` uint8 red, green, blue, alpha; the colour is not mixed with a background.
        depth: ``(H, W)`` float64 along the viewing axis through pixel centres; 0 where nothing was hit.
        normal: ``(H, W, 3)`` float64 unit normals in the world, turned to the camera; 0 where nothing was hit, or where
            points had none.
        index: ``(H, W)`` int64: of a mesh the face behind each pixel, of a cloud the point; -1 where nothing was hit.
        spacing: of the points that were drawn as discs, which is how coarse the depth is; 0 of a mesh.
    """

    camera: Camera
    color: NDArray[np.uint8]
    depth: Tensor
    normal: Tensor
    index: Tensor
    spacing: float = 0.0

    def position(self) -> Tensor:
        """``(H, W, 3)`` float64 the place in the world behind each pixel; not a number where nothing was hit."""
        xyz = self.camera.back_project(self.camera.pixel_centers(), self.depth.reshape(-1))
        xyz = xyz.reshape(*self.depth.shape, 3)
        return torch.where((self.depth > 0)[:, :, None], xyz, torch.nan)

    def on(self, background: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> NDArray[np.uint8]:
        """``(H, W, 3)`` uint8 picture on a background colour in [0, 1]."""
        alpha = self.color[:, :, 3:].astype(np.float64) / 255
        mixed = self.color[:, :, :3] * alpha + 255 * np.asarray(background) * (1 - alpha)
        return np.round(mixed).astype(np.uint8)

    def save(self, folder: Path | str, name: str) -> list[Path]:
        """Write ``NAME.png`` (with alpha) and ``NAME.npz`` (depth, normal, index, intrinsic, pose, parallel).

        Returns:
            The two files.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        picture, geometry = folder / f"{name}.png", folder / f"{name}.npz"
        require("PIL.Image", extra="image", purpose="pictures").fromarray(self.color).save(picture)
        np.savez_compressed(
            geometry,
            depth=self.depth.float().numpy(),
            normal=self.normal.half().numpy(),
            index=self.index.int().numpy(),
            intrinsic=self.camera.intrinsic.numpy(),
            pose=self.camera.pose.numpy(),
            parallel=self.camera.parallel,
        )
        return [picture, geometry]


AMBIENT, HEAD, SIDE = 0.45, 0.4, 0.15
_SIDE_DIRECTION = torch.nn.functional.normalize(torch.tensor([0.5, -0.3, 0.8], dtype=torch.float64), dim=0)


def shade(normal: Tensor, to_camera: Tensor) -> Tensor:
    """Brightness ``(...)`` in 0..1 of surfaces: ambient light, a lamp at the camera and a fainter one above the object.

    Args:
        normal: ``(..., 3)`` unit normals turned to the camera.
        to_camera: ``(..., 3)`` unit directions to the camera.
    """
    head = (normal * to_camera).sum(dim=-1).clamp(min=0)
    return AMBIENT + HEAD * head + SIDE * (normal @ _SIDE_DIRECTION).clamp(min=0)
