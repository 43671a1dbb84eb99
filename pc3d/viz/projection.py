"""From 3D points to the plane of a picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]


def project(xyz: FloatArray, *, azimuth: float = -55.0, elevation: float = 22.0) -> tuple[FloatArray, FloatArray]:
    """Parallel projection, z up.

    Args:
        xyz: ``(N, 3)`` points.
        azimuth: degrees, direction of the camera around the z axis, counted from the x axis.
        elevation: degrees of the camera above the horizon.

    Returns:
        ``(N, 2)`` picture coordinates (right, up) in the units of ``xyz``, and ``(N,)`` nearness: the larger, the
        closer to the camera.

    Raises:
        ValueError: ``xyz`` is not ``(N, 3)``.
    """
    if xyz.ndim != 2 or xyz.shape[1] != 3:
        raise ValueError(f"xyz must have shape (N, 3), got {xyz.shape}")
    a, e = np.deg2rad(azimuth), np.deg2rad(elevation)
    right = np.array([-np.sin(a), np.cos(a), 0.0])
    towards = np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
    up = np.cross(towards, right)
    return xyz @ np.stack([right, up], axis=1), xyz @ towards
