"""Colours of points."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pc3d._extras import require

FloatArray = NDArray[np.floating]


def height_colors(xyz: FloatArray, colormap: str = "viridis") -> FloatArray:
    """Colour points by their height.

    Args:
        xyz: ``(N, 3)`` points, z up.
        colormap: name of a matplotlib colour map.

    Returns:
        ``(N, 3)`` colours in [0, 1]; points of one height all get the middle of the map.
    """
    matplotlib = require("matplotlib", extra="viz", purpose="pictures")
    z = xyz[:, 2]
    span = float(z.max() - z.min()) if z.size else 0.0
    level = (z - z.min()) / span if span > 0 else np.full(z.shape, 0.5)
    # The ends of the map are near black and near white, which vanish on a page.
    colors: FloatArray = matplotlib.colormaps[colormap](0.08 + 0.84 * level)[:, :3]
    return colors


def shade(colors: FloatArray, nearness: FloatArray, strength: float = 0.45) -> FloatArray:
    """Fade far points towards white, which lets a cloud be read as a body.

    Args:
        colors: ``(N, 3)`` in [0, 1].
        nearness: ``(N,)``, larger is closer (:func:`pc3d.viz.project`).
        strength: 0 leaves colours as they are; 1 makes the farthest point white.
    """
    span = float(nearness.max() - nearness.min()) if nearness.size else 0.0
    far = (nearness.max() - nearness) / span if span > 0 else np.zeros(nearness.shape)
    return colors + (1.0 - colors) * (strength * far)[:, None]
