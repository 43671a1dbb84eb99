"""Visibility of points from a camera: by a depth picture, by discs instead of points, or by hidden point removal."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, normalize

from pc3d import ops
from pc3d._extras import require
from pc3d.image.cameras import Camera

# Mean spacing sqrt(area / N) over the median distance to the nearest neighbour: of points drawn independently in a
# plane none lies within r with probability exp(-pi r^2 / spacing^2), so the median is sqrt(ln 2 / pi) = 0.47 spacings.
_INDEPENDENT = 1 / math.sqrt(math.log(2) / math.pi)
# Share of the largest extent below which points have none: rounding, far above what Qhull takes for flat.
_FLAT = 1e-12


def point_spacing(xyz: Tensor, factor: float = _INDEPENDENT) -> float:
    """Mean spacing ``sqrt(area / N)`` of points on a surface, from their nearest neighbours.

    Args:
        xyz: ``(N, 3)``, two or more points.
        factor: spacing over the median distance to the nearest neighbour: 2.13 for independent uniform samples, which
            is exact in the plane, 1.2 to 1.3 for evenly spread ones (blue noise, farthest points).

    Raises:
        ValueError: there are fewer than two points.
    """
    if xyz.ndim != 2 or len(xyz) < 2:
        raise ValueError(f"xyz must have shape (N, 3) with two or more points, got {tuple(xyz.shape)}")
    nearest = ops.knn(xyz.float(), 2).squared_distance[:, 1]
    return factor * float(nearest.sqrt().median())


def pixel_of(uv: Tensor, inside: Tensor, width: int) -> Tensor:
    """Row-by-row number of the pixel that each place lies in; 0 where it is not inside."""
    column, row = torch.where(inside[:, None], uv, 0).floor().long().unbind(1)
    return row * width + column


def visible_by_depth(
    camera: Camera,
    xyz: Tensor,
    depth: Tensor,
    *,
    tolerance: float | None = None,
    relative_tolerance: float | None = None,
    border: float = 0.0,
) -> Tensor:
    """Points that a depth picture of the same camera confirms: ``|depth of the pixel - depth of the point| <=
    tolerance``.

    OpenScene (Peng et al. 2023, section 3.1) uses a quarter of the depth in rooms. For an object of unit size this
    accepts half of the hidden points; 0.02 does not.

    Args:
        camera: of the depth picture.
        xyz: ``(N, 3)``.
        depth: ``(H, W)`` along the viewing axis; 0 where nothing was seen.
        tolerance: absolute, in units of the coordinates; 0.02 if neither tolerance is given.
        relative_tolerance: share of the pixel's depth, instead of the absolute tolerance.
        border: pixels at the edge of the picture that do not count.

    Returns:
        ``(N,)`` bool.

    Raises:
        ValueError: the depth picture is not of the camera's size, or both tolerances were given.
    """
    if tuple(depth.shape) != (camera.height, camera.width):
        raise ValueError(
            f"depth has the shape {tuple(depth.shape)}, the camera {(camera.height, camera.width)}: "
            "camera.resized(width, height) fits it"
        )
    if tolerance is not None and relative_tolerance is not None:
        raise ValueError("give tolerance or relative_tolerance, not both")
    uv, z = camera.project(xyz)
    inside = camera.inside(uv, z, border)
    seen = depth.reshape(-1).to(torch.float64)[pixel_of(uv, inside, camera.width)]
    allowed = (
        seen * relative_tolerance if relative_tolerance is not None else (0.02 if tolerance is None else tolerance)
    )
    return inside & (seen > 0) & ((seen - z).abs() <= allowed)


def depth_edges(depth: Tensor, threshold: float) -> Tensor:
    """Pixels whose 3 x 3 neighbourhood spans more depth than a threshold, or has none: unsafe to lift from.

    Args:
        depth: ``(H, W)``; 0 where nothing was seen.
        threshold: in units of the depth.

    Returns:
        ``(H, W)`` bool.
    """
    picture = depth[None, None].to(torch.float64)
    far = max_pool2d(picture, 3, stride=1, padding=1)
    near = -max_pool2d(-torch.where(picture > 0, picture, -math.inf), 3, stride=1, padding=1)
    # A neighbour without depth makes the nearest -inf, and the span infinite.
    return (far - near > threshold)[0, 0]


def facing(
    camera: Camera, xyz: Tensor, normal: Tensor, max_degrees: float = 80.0, *, two_sided: bool = False
) -> Tensor:
    """``(N,)`` whether the surface faces the camera: its normal at most ``max_degrees`` from the ray back.

    ``two_sided``: or its opposite, for normals that may point to either side of the surface.
    """
    cosine = cosine_to_camera(camera, xyz, normal)
    return (cosine.abs() if two_sided else cosine) >= math.cos(math.radians(max_degrees))


def cosine_to_camera(camera: Camera, xyz: Tensor, normal: Tensor) -> Tensor:
    """``(N,)`` cosine between the normals ``(N, 3)`` and the direction to the camera."""
    if normal.shape != xyz.shape:
        raise ValueError(f"normal must have the shape of xyz, {tuple(xyz.shape)}, got {tuple(normal.shape)}")
    back = -camera.forward.expand(len(xyz), 3) if camera.parallel else camera.center - xyz.to("cpu", torch.float64)
    return (normalize(back, dim=1) * normalize(normal.to("cpu", torch.float64), dim=1)).sum(dim=1)


def hidden_point_removal(xyz: Tensor, center: Tensor, radius: float | None = None) -> Tensor:
    """Points seen from a place, without normals or a surface (Katz, Tal, Basri, SIGGRAPH 2007).

    Points are flipped over a sphere around the place, and those on the convex hull of the flipped points and the place
    itself are visible. The larger the sphere, the more points on curved surfaces are found, and the more hidden points
    are accepted.

    Args:
        xyz: ``(N, 3)``.
        center: ``(3,)`` the place.
        radius: of the sphere, in units of the coordinates; by default 100 times the size (longest edge) of the cloud
            below 4,000 points and 300 times from 10,000, in proportion between them, and at least twice the way to the
            farthest point. It must reach beyond every point.

    Returns:
        ``(N,)`` bool; of points at one place, all or none.

    Raises:
        ValueError: a point is at the place, or beyond the radius.
        ImportError: SciPy is not installed.
    """
    every = xyz.to("cpu", torch.float64) - center.to("cpu", torch.float64)
    if len(every) < 4:
        return torch.ones(len(every), dtype=torch.bool)
    # A hull has one corner where points coincide.
    points, place = every.unique(dim=0, return_inverse=True)
    length = points.norm(dim=1, keepdim=True)
    farthest = float(length.max())
    if radius is None:
        size = float((points.amax(0) - points.amin(0)).max())
        radius = max(size * float(np.interp(len(every), [4_000, 10_000], [100.0, 300.0])), 2 * farthest)
    if not bool((length > 0).all()):
        raise ValueError("a point of xyz is where the camera is: leave it out")
    if farthest > radius:
        raise ValueError(f"radius {radius:g} must reach beyond the farthest point, {farthest:g} away")
    flipped = points + 2 * (radius - length) * points / length
    return _hull_corners(torch.cat([flipped, flipped.new_zeros(1, 3)]))[:-1][place]


def _hull_corners(points: Tensor) -> Tensor:
    """``(N,)`` bool, the corners of the convex hull of points, the origin among them; also of a plane or a line."""
    _, spread, axes = torch.linalg.svd(points, full_matrices=False)
    # A flat object seen from within its plane has no hull in space.
    across = points @ axes[: int((spread > _FLAT * spread[0]).sum())].T
    corners = torch.zeros(len(points), dtype=torch.bool)
    if across.shape[1] == 1:
        corners[[int(across.argmin()), int(across.argmax())]] = True
        return corners
    spatial = require("scipy.spatial", extra="image", purpose="hidden point removal")
    corners[torch.from_numpy(spatial.ConvexHull(across.numpy()).vertices.astype(np.int64))] = True
    return corners


def disc_depth(camera: Camera, xyz: Tensor, disc: float, max_pixels: float = 32.0) -> tuple[Tensor, Tensor]:
    """A depth picture of points drawn as discs that face the camera, and the point that each pixel shows.

    Args:
        camera: of the picture.
        xyz: ``(N, 3)``.
        disc: radius in units of the coordinates; on the picture at least half a pixel.
        max_pixels: largest radius on the picture.

    Returns:
        ``(H, W)`` float64 depth of the nearest disc, 0 where there is none, and ``(H, W)`` int64 the point (the lowest
        number wins a tie), -1 where there is none.
    """
    uv, z = camera.project(xyz)
    return nearest_discs(camera, z, footprints(camera, uv, z, disc, max_pixels))


def nearest_discs(camera: Camera, z: Tensor, pieces: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """What :func:`disc_depth` gives, from the points' depth ``(N,)`` and the pieces of :func:`footprints`."""
    depth = torch.full((camera.height * camera.width,), math.inf, dtype=torch.float64)
    point = torch.full_like(depth, len(z), dtype=torch.int64)
    for number, pixel in pieces:
        depth.scatter_reduce_(0, pixel, z[number], "amin")
    for number, pixel in pieces:
        front = z[number] == depth[pixel]
        point.scatter_reduce_(0, pixel[front], number[front], "amin")
    empty = depth.isinf()
    shape = (camera.height, camera.width)
    return torch.where(empty, 0.0, depth).reshape(shape), torch.where(empty, -1, point).reshape(shape)


def footprints(
    camera: Camera, uv: Tensor, depth: Tensor, disc: float, max_pixels: float = 32.0
) -> list[tuple[Tensor, Tensor]]:
    """Pairs (point, pixel) of all discs, in pieces; a pixel is under a disc if its centre is."""
    focal = float(camera.intrinsic[0, 0] + camera.intrinsic[1, 1]) / 2
    scale = torch.full_like(depth, focal) if camera.parallel else focal / depth
    radius = (disc * scale).clamp(0.5, max_pixels)
    # Discs that reach into the picture from outside count too.
    reach = (uv > -max_pixels) & (uv < torch.tensor([camera.width, camera.height], dtype=torch.float64) + max_pixels)
    chosen = torch.nonzero((depth > 0) & reach.all(dim=1)).flatten()
    pieces: list[tuple[Tensor, Tensor]] = []
    if len(chosen) == 0:
        return pieces
    half = math.ceil(float(radius[chosen].max()))
    row, column = torch.meshgrid(torch.arange(-half, half + 1), torch.arange(-half, half + 1), indexing="ij")
    step = torch.stack([column, row], dim=-1).reshape(-1, 2)
    for part in chosen.split(max(1, 4_000_000 // len(step))):
        pixel = uv[part].floor().long()[:, None] + step
        near = (pixel + 0.5 - uv[part][:, None]).square().sum(dim=2) <= radius[part][:, None].square()
        # The pixel that a point lies in is always its own, however small the disc.
        near |= (step == 0).all(dim=1)
        near &= ((pixel >= 0) & (pixel < torch.tensor([camera.width, camera.height]))).all(dim=2)
        which, offset = torch.nonzero(near, as_tuple=True)
        place = pixel[which, offset]
        pieces.append((part[which], place[:, 1] * camera.width + place[:, 0]))
    return pieces


def visible_by_discs(
    camera: Camera,
    xyz: Tensor,
    *,
    spacing: float | None = None,
    disc_factor: float = 1.0,
    tolerance_factor: float = 3.0,
) -> Tensor:
    """Points that are not behind the discs of others; needs neither a depth picture nor SciPy.

    Args:
        camera: a coarse one serves best; 224 pixels for an object.
        xyz: ``(N, 3)``.
        spacing: mean spacing of the points; by default it is estimated (:func:`point_spacing`).
        disc_factor: radius of a disc in spacings; 1.5 hides points more reliably and finds fewer.
        tolerance_factor: depth behind the nearest disc that still counts as seen, in spacings.

    Returns:
        ``(N,)`` bool.
    """
    spacing = point_spacing(xyz) if spacing is None else spacing
    depth, _ = disc_depth(camera, xyz, disc_factor * spacing)
    uv, z = camera.project(xyz)
    inside = camera.inside(uv, z)
    nearest = depth.reshape(-1)[pixel_of(uv, inside, camera.width)]
    return inside & (z <= nearest + tolerance_factor * spacing)
