"""Render point clouds with a disc for every point, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, normalize, pad

from pc3d.data.types import PointCloud
from pc3d.image.cameras import Camera
from pc3d.image.meshes import GREY
from pc3d.image.rendering import Rendering, shade
from pc3d.image.visibility import footprints, nearest_discs, point_spacing


def render_points(
    cloud: PointCloud,
    cameras: Sequence[Camera],
    *,
    spacing: float | None = None,
    disc_factor: float = 1.2,
    max_pixels: float = 8.0,
    shaded: bool | None = None,
    close_holes: bool = True,
) -> list[Rendering]:
    """Render pictures of a cloud with depth, normals and the point behind every pixel.

    The nearest disc gives depth, normal and point. The colour is the mean over the discs up to two spacings behind it,
    which smooths overlapping discs.

    Args:
        cloud: its colours are used if it has any, else grey.
        cameras: where from.
        spacing: mean spacing of the points; by default it is estimated.
        disc_factor: radius of a disc in spacings.
        max_pixels: largest radius of a disc on the picture.
        shaded: darken by the normals; by default only if there are normals and no colours (the colours of scans are lit
            already).
        close_holes: fill the colour of pixels without a point that are enclosed by some (a 3 x 3 closing). Depth and
            point stay empty there.

    Raises:
        ValueError: the cloud is empty, or ``shaded`` and without normals.
    """
    if len(cloud) == 0:
        raise ValueError("the cloud is empty: there is nothing to draw")
    if shaded and cloud.normal is None:
        raise ValueError("shaded=True needs a cloud with normals")
    if spacing is None:
        spacing = point_spacing(cloud.xyz) if len(cloud) > 1 else 0.0
    shaded = cloud.normal is not None and cloud.rgb is None if shaded is None else shaded
    options = {"disc": disc_factor * spacing, "max_pixels": max_pixels}
    return [_render(cloud, camera, spacing, options, shaded, close_holes) for camera in cameras]


def _render(
    cloud: PointCloud, camera: Camera, spacing: float, options: dict[str, float], shaded: bool, close_holes: bool
) -> Rendering:
    uv, z = camera.project(cloud.xyz)
    pieces = footprints(camera, uv, z, **options)
    depth, index = nearest_discs(camera, z, pieces)
    shape = depth.shape
    normal = torch.zeros(*shape, 3, dtype=torch.float64)
    colors = torch.tensor(GREY).expand(len(cloud), 3) if cloud.rgb is None else cloud.rgb.float().cpu()
    hit = index >= 0
    if cloud.normal is not None:
        towards = _to_camera(camera, cloud.xyz)
        turned = normalize(cloud.normal.double().cpu(), dim=1)
        turned = torch.where((turned * towards).sum(dim=1, keepdim=True) < 0, -turned, turned)
        normal[hit] = turned[index[hit]]
        if shaded:
            colors = colors * shade(turned, towards)[:, None].float()
    color = _mean_color(pieces, z, colors, depth.reshape(-1) + 2 * spacing)
    color, alpha = color.reshape(*shape, 3), hit
    if close_holes:
        color, alpha = _closed(color, hit)
    rgba = torch.cat([color * alpha[:, :, None], alpha[:, :, None].float()], dim=2)
    picture = (rgba * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    return Rendering(camera, picture, depth, normal, index, spacing)


def _to_camera(camera: Camera, xyz: Tensor) -> Tensor:
    if camera.parallel:
        return -camera.forward.expand(len(xyz), 3)
    return normalize(camera.center - xyz.double().cpu(), dim=1)


def _mean_color(pieces: list[tuple[Tensor, Tensor]], z: Tensor, colors: Tensor, farthest: Tensor) -> Tensor:
    """``(H * W, 3)`` mean colour of the discs no deeper than ``farthest``, ``(H * W,)``."""
    total, count = torch.zeros(len(farthest), 3), torch.zeros(len(farthest))
    for point, pixel in pieces:
        front = z[point] <= farthest[pixel]
        total.index_add_(0, pixel[front], colors[point[front]])
        count.index_add_(0, pixel[front], torch.ones(int(front.sum())))
    return total / count.clamp(min=1)[:, None]


def _closed(color: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Alpha after a 3 x 3 closing; new pixels have the mean colour of their neighbours that have one."""
    solid = alpha[None, None].float()
    grown = max_pool2d(solid, 3, stride=1, padding=1)
    # Beyond the picture counts as solid, so that its edge does not wear off.
    closed = -max_pool2d(pad(-grown, (1, 1, 1, 1), value=-1.0), 3, stride=1)
    weighted = torch.cat([color.permute(2, 0, 1)[None] * solid, solid], dim=1)
    summed = torch.nn.functional.avg_pool2d(weighted, 3, stride=1, padding=1, divisor_override=1)
    mean = (summed[0, :3] / summed[0, 3:].clamp(min=1)).permute(1, 2, 0)
    alpha_now = closed[0, 0] > 0
    return torch.where((alpha_now & ~alpha)[:, :, None], mean, color), alpha_now | alpha
