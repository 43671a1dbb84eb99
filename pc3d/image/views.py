"""Sets of cameras around an object, as in papers that render 3D models. z is up."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from pc3d.image.cameras import Camera

# Blender's lens of 35 mm before a sensor of 32 mm.
_OPENSHAPE_FOCAL, _OPENSHAPE_DISTANCE = 35 / 32, 1.2


def _on_sphere(polar: float, azimuth: float, distance: float) -> torch.Tensor:
    """A point by its angle from the z axis and around it, in degrees."""
    p, a = math.radians(polar), math.radians(azimuth)
    return distance * torch.tensor(
        [math.sin(p) * math.cos(a), math.sin(p) * math.sin(a), math.cos(p)], dtype=torch.float64
    )


def _around(
    places: list[tuple[float, float]], size: int, focal: float, distance: float, parallel: bool
) -> list[Camera]:
    origin = torch.zeros(3, dtype=torch.float64)
    return [
        Camera.look_at(_on_sphere(polar, azimuth, distance), origin, focal=focal, size=size, parallel=parallel)
        for polar, azimuth in places
    ]


def openshape_views(size: int = 512) -> list[Camera]:
    """OpenShape's twelve: three rings of four, 1.2 from the origin, for objects whose longest edge is 0.8.

    From its released rendering script: polar angles 60, 90 and 120 degrees, each ring turned by 30 against the last.
    """
    rings = [(60, (30, 120, 210, 300)), (90, (60, 150, 240, 330)), (120, (0, 90, 180, 270))]
    places = [(float(polar), float(azimuth)) for polar, ring in rings for azimuth in ring]
    return _around(places, size, _OPENSHAPE_FOCAL * size, _OPENSHAPE_DISTANCE, parallel=False)


def ulip_views(size: int = 224) -> list[Camera]:
    """ULIP's thirty: every 12 degrees around the up axis (section 3.2). It states no distance; ours is OpenShape's."""
    places = [(90.0, 12.0 * number) for number in range(30)]
    return _around(places, size, _OPENSHAPE_FOCAL * size, _OPENSHAPE_DISTANCE, parallel=False)


def pointclip_views(size: int = 224) -> list[Camera]:
    """PointCLIP's six: front, right, back, left, top, bottom; the object in the unit sphere, 1.6 away (released code).

    The picture plane spans -1 to 1 at distance 1: the focal length is half the size.
    """
    places = [(90.0, 0.0), (90.0, 90.0), (90.0, 180.0), (90.0, 270.0), (0.0, 0.0), (180.0, 0.0)]
    return _around(places, size, size / 2, 1.6, parallel=False)


def clip2point_views(size: int = 224) -> list[Camera]:
    """CLIP2Point's ten directions, parallel projection (released code): four around, four from 45 degrees, two poles.

    The object lies in the unit sphere, which fills the picture.
    """
    around = [(90.0, azimuth) for azimuth in (0.0, 90.0, 180.0, 270.0)]
    slanted = [(90.0 - elevation, azimuth) for azimuth in (225.0, 315.0) for elevation in (45.0, -45.0)]
    return _around([*around, *slanted, (0.0, 0.0), (180.0, 0.0)], size, size / 2, 2.0, parallel=True)


def axis_views(size: int = 224) -> list[Camera]:
    """Three parallel views along x, y and z (I2P-MAE, section 3.2); the unit sphere fills the picture."""
    return _around([(90.0, 0.0), (90.0, 90.0), (0.0, 0.0)], size, size / 2, 2.0, parallel=True)


VIEW_SETS: dict[str, Callable[[int], list[Camera]]] = {
    "openshape12": openshape_views,
    "ulip30": ulip_views,
    "pointclip6": pointclip_views,
    "clip2point10": clip2point_views,
    "axis3": axis_views,
}
"""Sets of cameras by name, for :func:`view_set`."""


def view_set(name: str, size: int) -> list[Camera]:
    """A set of cameras by its name.

    Args:
        name: one of ``VIEW_SETS``.
        size: side of the pictures in pixels.

    Raises:
        ValueError: there is no such set.
    """
    if name not in VIEW_SETS:
        raise ValueError(f"there is no view set {name!r}, only {', '.join(VIEW_SETS)}")
    return VIEW_SETS[name](size)


def extent(name: str) -> tuple[str, float]:
    """Object size that a view set expects: ``("edge", 0.8)``, the longest edge, or ``("radius", 1.0)``, of the ball."""
    return ("edge", 0.8) if name in ("openshape12", "ulip30") else ("radius", 1.0)


def fit(xyz: torch.Tensor, kind: str, size: float) -> tuple[torch.Tensor, float]:
    """Shift and scale that fit points to a view set.

    Args:
        xyz: ``(N, 3)``, one or more points.
        kind: ``"edge"``: the longest edge of the bounding box becomes ``size``; ``"radius"``: the farthest point is
            ``size`` from the middle of the box.
        size: see above.

    Returns:
        The ``(3,)`` centre and the factor: ``(xyz - centre) * factor`` fits.

    Raises:
        ValueError: all points are at one place.
    """
    if kind not in ("edge", "radius"):
        raise ValueError(f"kind must be 'edge' or 'radius', got {kind!r}")
    center = (xyz.amin(0) + xyz.amax(0)) / 2
    now = (xyz.amax(0) - xyz.amin(0)).max() if kind == "edge" else (xyz - center).norm(dim=1).max()
    if not float(now) > 0:
        raise ValueError("the object has no extent: all its points are at one place")
    return center, size / float(now)
