"""Cameras: projection of points to pixels and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from pc3d.data.frames import Frame

# From the axes of OpenGL and Blender (y up, z backward) to those used here; its own inverse.
_OPENGL = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))


@dataclass(frozen=True)
class Camera:
    """A pinhole or parallel camera; x right, y down, z forward, as OpenCV and ScanNet have it.

    Pixel (column i, row j) covers ``[i, i + 1) x [j, j + 1)`` of the picture plane, so its centre is at (i + 0.5, j +
    0.5): a camera is scaled without extra terms. Intrinsics that count pixel centres as integers, as those of most
    data sets and of :class:`pc3d.data.Frame`, have a principal point half a pixel less; see :meth:`of_frame`.

    Attributes:
        intrinsic: ``(3, 3)`` float64, in pixels. The focal lengths of a parallel camera are pixels per unit.
        pose: ``(4, 4)`` float64, camera to world; a rotation and a translation.
        width, height: of the picture, in pixels.
        parallel: orthographic projection.
    """

    intrinsic: Tensor
    pose: Tensor
    width: int
    height: int
    parallel: bool = False

    def __post_init__(self) -> None:
        for name, shape in (("intrinsic", (3, 3)), ("pose", (4, 4))):
            matrix = torch.as_tensor(getattr(self, name), dtype=torch.float64)
            if matrix.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(matrix.shape)}")
            if not matrix.isfinite().all():
                raise ValueError(f"{name} is not finite: was tracking lost in this frame? skip it (Frame.tracked)")
            object.__setattr__(self, name, matrix)
        rotation = self.pose[:3, :3]
        # ScanNet's poses are rotations to about a thousandth.
        if (rotation @ rotation.T - torch.eye(3, dtype=torch.float64)).abs().max() > 1e-2 or rotation.det() < 0:
            raise ValueError(f"pose must be a rotation and a translation, got the 3 x 3 part {rotation.tolist()}")
        if (self.pose[3] - torch.eye(4, dtype=torch.float64)[3]).abs().max() > 1e-6:
            last = self.pose[3].tolist()
            raise ValueError(
                f"pose must have the last row 0 0 0 1, got {last}: transpose a matrix written column by column"
            )
        if self.width < 1 or self.height < 1 or min(self.intrinsic[0, 0], self.intrinsic[1, 1]) <= 0:
            raise ValueError(
                f"width, height and focal lengths must be positive, got {self.width} x {self.height} and "
                f"{float(self.intrinsic[0, 0])}, {float(self.intrinsic[1, 1])}"
            )

    @classmethod
    def of_frame(cls, frame: Frame, picture: Literal["color", "depth"] = "depth") -> Camera:
        """The camera of a frame's colour or depth picture, with the principal point for half-integer pixel centres.

        Raises:
            ValueError: tracking was lost.
        """
        if picture not in ("color", "depth"):
            raise ValueError(f"picture must be 'color' or 'depth', got {picture!r}")
        matrix = frame.intrinsic if picture == "color" else frame.intrinsic_depth
        height, width = (frame.color if picture == "color" else frame.depth).shape[:2]
        intrinsic = torch.from_numpy(np.array(matrix, dtype=np.float64))
        intrinsic[:2, 2] += 0.5
        pose = frame.pose if picture == "depth" or frame.pose_color is None else frame.pose_color
        return cls(intrinsic, torch.from_numpy(np.array(pose, dtype=np.float64)), width, height)

    @classmethod
    def look_at(
        cls,
        eye: Tensor,
        target: Tensor,
        *,
        focal: float,
        size: int | tuple[int, int],
        up: Tensor | None = None,
        parallel: bool = False,
    ) -> Camera:
        """A camera at ``eye`` that looks at ``target``.

        Args:
            eye, target: ``(3,)``.
            focal: focal length in pixels, or pixels per unit of a parallel camera.
            size: side of a square picture, or (width, height).
            up: ``(3,)`` direction that is up in the picture; by default z, or y if the camera looks along z.
            parallel: make it a parallel camera.

        Raises:
            ValueError: ``eye`` is ``target``.
        """
        eye, target = (torch.as_tensor(point, dtype=torch.float64) for point in (eye, target))
        if torch.equal(eye, target):
            raise ValueError(f"eye and target must differ, both are {eye.tolist()}")
        forward = normalize(target - eye, dim=0)
        above = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64) if up is None else up.to(torch.float64)
        right = torch.linalg.cross(forward, above)
        if right.norm() < 1e-9 * above.norm():
            right = torch.linalg.cross(forward, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
        right = normalize(right, dim=0)
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, 0], pose[:3, 1], pose[:3, 2] = right, torch.linalg.cross(forward, right), forward
        pose[:3, 3] = eye
        width, height = (size, size) if isinstance(size, int) else size
        intrinsic = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float64)
        return cls(intrinsic, pose, width, height, parallel)

    @classmethod
    def from_opengl(cls, intrinsic: Tensor, pose: Tensor, width: int, height: int) -> Camera:
        """A camera whose pose is in the axes of OpenGL and Blender: y up, z backward."""
        return cls(intrinsic, torch.as_tensor(pose, dtype=torch.float64) @ _OPENGL, width, height)

    def opengl_pose(self) -> Tensor:
        """The pose ``(4, 4)`` in the axes of OpenGL and Blender."""
        return self.pose @ _OPENGL

    @property
    def center(self) -> Tensor:
        """``(3,)`` position of the camera."""
        return self.pose[:3, 3]

    @property
    def forward(self) -> Tensor:
        """``(3,)`` unit viewing direction."""
        return self.pose[:3, 2]

    def to_camera(self, xyz: Tensor) -> Tensor:
        """Points ``(N, 3)`` of the world in the camera's axes, float64."""
        if xyz.ndim != 2 or xyz.shape[1] != 3:
            raise ValueError(f"xyz must have shape (N, 3), got {tuple(xyz.shape)}")
        return (xyz.to("cpu", torch.float64) - self.center) @ self.pose[:3, :3]

    def project(self, xyz: Tensor) -> tuple[Tensor, Tensor]:
        """Project points to positions in the picture.

        Args:
            xyz: ``(N, 3)`` in the world.

        Returns:
            ``(N, 2)`` float64 column and row, not finite for points in the plane of a pinhole camera, and ``(N,)``
            depth along the viewing axis. Points behind the camera have a depth of 0 or less, and still a position.
        """
        local = self.to_camera(xyz)
        depth = local[:, 2]
        plane = local[:, :2] if self.parallel else local[:, :2] / depth[:, None]
        skewed = plane @ self.intrinsic[:2, :2].T + self.intrinsic[:2, 2]
        return skewed, depth

    def back_project(self, uv: Tensor, depth: Tensor) -> Tensor:
        """Places ``(N, 2)`` in the picture and their depth ``(N,)`` to points ``(N, 3)`` of the world, float64."""
        depth = depth.to(torch.float64)
        plane = (uv.to(torch.float64) - self.intrinsic[:2, 2]) @ self.intrinsic[:2, :2].inverse().T
        if not self.parallel:
            plane = plane * depth[:, None]
        return torch.cat([plane, depth[:, None]], dim=1) @ self.pose[:3, :3].T + self.center

    def inside(self, uv: Tensor, depth: Tensor, border: float = 0.0) -> Tensor:
        """``(N,)`` whether places are in the picture, ``border`` pixels from its edge, and in front of the camera."""
        limit = torch.tensor([self.width, self.height], dtype=torch.float64) - border
        return (depth > 0) & ((uv >= border) & (uv < limit)).all(dim=1)

    def pixel_centers(self) -> Tensor:
        """``(height * width, 2)`` float64 places of the pixels' centres, row by row."""
        row, column = torch.meshgrid(torch.arange(self.height), torch.arange(self.width), indexing="ij")
        return torch.stack([column, row], dim=-1).reshape(-1, 2).to(torch.float64) + 0.5

    def rays(self, uv: Tensor) -> tuple[Tensor, Tensor]:
        """Origins and directions ``(N, 3)`` of the rays through places ``(N, 2)``.

        A direction is one unit long along the viewing axis, so the distance along a ray in its own units is the depth.
        """
        if self.parallel:
            origins = self.back_project(uv, torch.zeros(len(uv)))
            return origins, self.forward.expand(len(uv), 3)
        origins = self.center.expand(len(uv), 3)
        return origins, self.back_project(uv, torch.ones(len(uv))) - self.center

    def resized(self, width: int, height: int) -> Camera:
        """The camera of the same picture, scaled to another size."""
        scale = torch.tensor([width / self.width, height / self.height, 1.0], dtype=torch.float64)
        return Camera(self.intrinsic * scale[:, None], self.pose, width, height, self.parallel)

    def cropped(self, left: int, top: int, width: int, height: int) -> Camera:
        """The camera of a part of the picture; the part may reach beyond it."""
        intrinsic = self.intrinsic.clone()
        intrinsic[0, 2] -= left
        intrinsic[1, 2] -= top
        return Camera(intrinsic, self.pose, width, height, self.parallel)


def focal_length(width: int, field_of_view: float) -> float:
    """Focal length in pixels for a picture width in pixels and a horizontal angle of view in degrees."""
    if not 0 < field_of_view < 180:
        raise ValueError(f"field_of_view must be between 0 and 180 degrees, got {field_of_view}")
    return width / 2 / math.tan(math.radians(field_of_view) / 2)
