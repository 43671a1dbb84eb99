"""Depth maps of clouds, which PointCLIP and CLIP2Point use as pictures for an image tower."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pc3d.image.cameras import Camera
from pc3d.image.pictures import Preprocessing
from pc3d.image.views import clip2point_views, fit, pointclip_views
from pc3d.image.visibility import disc_depth

POINTCLIP_PROMPT = ("point cloud depth map of a {}.",)
"""The prompt template of PointCLIP (Zhang et al. 2022)."""
CLIP2POINT_PROMPT = ("image of a {}",)
"""The prompt template of CLIP2Point (Huang et al. 2023), in its released code without a full stop."""
_GRID = 128
_DISC, _FARTHEST = 0.02, 200 / 255


def pointclip_maps(xyz: Tensor, cameras: Sequence[Camera] | None = None, *, size: int = 224) -> Tensor:
    """Sparse depth maps of a cloud (PointCLIP, Zhang et al. 2022, section 3.1, and its released code).

    Every point is projected to one cell of a grid of 128. A cell has the harmonic mean of the depths of its points, or
    0 without points. The grid is enlarged bilinearly, so that its corner cells are the corner pixels. Towers get these
    depths without their own normalisation. With :func:`pc3d.image.multi_view_logits` and ``POINTCLIP_PROMPT``, this
    classifies without training on shapes. The quality depends on the tower; the paper uses CLIP.

    Args:
        xyz: ``(N, 3)`` at any place, of any size: the cloud is fitted into the unit sphere.
        cameras: for that sphere, of 128 pixels; by default those of the view set pointclip6.
        size: side of the maps in pixels.

    Returns:
        ``(V, 3, size, size)`` float32, for :meth:`ImageTower.global_features`.

    Raises:
        ValueError: the cloud has no extent, or a camera another size.
    """
    fitted = _fitted(xyz)
    maps = []
    for camera in pointclip_views(_GRID) if cameras is None else cameras:
        if (camera.width, camera.height) != (_GRID, _GRID):
            raise ValueError(f"cameras must have {_GRID} x {_GRID} pixels, got {camera.width} x {camera.height}")
        uv, depth = camera.project(fitted)
        # The cell whose number is nearest, the lower one of two: numbers are at the cells' left edges there.
        cell = torch.ceil(uv - 0.5).long()
        kept = (depth > 0) & ((cell >= 0) & (cell < _GRID)).all(dim=1)
        place = cell[kept, 1] * _GRID + cell[kept, 0]
        inverse = torch.zeros(_GRID * _GRID, dtype=torch.float64).index_add(0, place, 1 / depth[kept])
        count = torch.bincount(place, minlength=len(inverse))
        maps.append(torch.where(count > 0, count / inverse.clamp(min=1e-12), 0.0).reshape(_GRID, _GRID))
    enlarged = interpolate(torch.stack(maps)[:, None].float(), size=(size, size), mode="bilinear", align_corners=True)
    return enlarged.expand(-1, 3, -1, -1).contiguous()


def clip2point_maps(
    xyz: Tensor, preprocessing: Preprocessing, cameras: Sequence[Camera] | None = None, *, size: int = 224
) -> Tensor:
    """Dense depth maps of a cloud (CLIP2Point, Huang et al. 2023, section 3.2, and its released code).

    Points are drawn as discs of radius 0.02; the nearest disc counts. With d the depth of a pixel, from a camera at
    distance 1, and d_min and d_max the smallest and largest depth of the view, its value is ``200 / 255 * (d - d_min) /
    d_max``, or 1 without a point. The tower's own normalisation follows.

    Args:
        xyz: ``(N, 3)`` at any place, of any size: the cloud is fitted into the unit sphere.
        preprocessing: of the tower; its mean and standard deviation are used.
        cameras: parallel cameras for that sphere; by default those of the view set clip2point10.
        size: side of the maps in pixels for the default cameras.

    Returns:
        ``(V, 3, height, width)`` float32, for :meth:`ImageTower.global_features`.

    Raises:
        ValueError: the cloud has no extent, a camera is not parallel, or a view shows none of the cloud.
    """
    fitted = _fitted(xyz)
    maps = []
    for number, camera in enumerate(clip2point_views(size) if cameras is None else cameras):
        if not camera.parallel:
            raise ValueError(f"cameras must be parallel ones, view {number} is not: build it with parallel=True")
        depth, point = disc_depth(camera, fitted, _DISC)
        shown = point >= 0
        if not bool(shown.any()):
            raise ValueError(f"cameras: view {number} shows no point of the cloud")
        depth = depth - float(camera.center.norm()) + 1
        least, largest = depth[shown].min(), depth[shown].max()
        maps.append(torch.where(shown, _FARTHEST * (depth - least) / largest, 1.0))
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return (torch.stack(maps)[:, None].float() - mean) / std


def _fitted(xyz: Tensor) -> Tensor:
    center, factor = fit(xyz, "radius", 1.0)
    return (xyz - center) * factor
