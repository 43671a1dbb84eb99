"""Colours of points."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pc3d._extras import require
from pc3d.ops import farthest_point_sample

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


def class_colors(num_classes: int) -> FloatArray:
    """Distinguishable colours ``(K, 3)`` in [0, 1]; class k has the same colour for every K.

    Each is the farthest from all before it in CIELAB, among colours that are neither pale nor dark, grey nor glaring.
    24 are at least 29 apart, where 2.3 can just be told. There are some thousand; after these they begin again.
    """
    return colors_of_classes(np.arange(num_classes))


def colors_of_classes(label: NDArray[np.integer]) -> FloatArray:
    """Colours ``(N, 3)`` in [0, 1] of classes ``(N,)``, none below 0, those of :func:`class_colors`, however large."""
    palette = _palette()
    colors: FloatArray = palette[label % len(palette)]
    return colors


@functools.cache
def _palette() -> FloatArray:
    steps = np.linspace(0, 1, 18)
    rgb = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _lab(rgb)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    usable = (lab[:, 0] > 35) & (lab[:, 0] < 88) & (chroma > 18) & (chroma < 72)
    rgb, lab = rgb[usable], lab[usable]
    blue = int(np.abs(rgb - (0.27, 0.5, 0.77)).sum(1).argmin())
    order = farthest_point_sample(torch.from_numpy(lab), len(lab), start=blue)
    palette: FloatArray = rgb[order.numpy()]
    return palette


def _lab(rgb: FloatArray) -> FloatArray:
    """CIELAB ``(N, 3)`` of sRGB ``(N, 3)`` under daylight (D65); Euclidean distance is about what the eye sees."""
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    ratio = linear @ to_xyz.T / (0.95047, 1.0, 1.08883)
    x, y, z = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def shade(colors: FloatArray, nearness: FloatArray, strength: float = 0.45) -> FloatArray:
    """Fade far points towards white, so that a cloud looks three-dimensional.

    Args:
        colors: ``(N, 3)`` in [0, 1].
        nearness: ``(N,)``, larger is closer (:func:`pc3d.viz.project`).
        strength: 0 leaves colours as they are; 1 makes the farthest point white.
    """
    span = float(nearness.max() - nearness.min()) if nearness.size else 0.0
    far = (nearness.max() - nearness) / span if span > 0 else np.zeros(nearness.shape)
    return colors + (1.0 - colors) * (strength * far)[:, None]


def gradient(colormap: str, steps: int = 256) -> NDArray[np.uint8]:
    """``(steps, 3)`` uint8 colours of a matplotlib colour map from its first to its last, for scalars and their bar.

    Raises:
        ValueError: no colour map of that name.
    """
    matplotlib = require("matplotlib", extra="viz", purpose="pictures")
    if colormap not in matplotlib.colormaps:
        raise ValueError(f"colormap: matplotlib has none called {colormap!r}; viridis, turbo and magma are some")
    # The ends of the map are near black and near white, which vanish on a page.
    levels = np.linspace(0.06, 0.94, steps)
    return to_bytes(matplotlib.colormaps[colormap](levels)[:, :3])


def scalar_colors(values: NDArray[Any], low: float, high: float, colormap: str = "viridis") -> NDArray[np.uint8]:
    """Colours of numbers.

    Args:
        values: ``(N,)``; those beyond the ends get the colours of the ends.
        low: number of the first colour.
        high: number of the last; where it is not above ``low``, all get the middle colour.
        colormap: see :func:`gradient`.

    Returns:
        ``(N, 3)`` uint8.

    Raises:
        ValueError: one of the numbers is NaN or infinite, or there is no such colour map.
    """
    _check_finite("values", values)
    table = gradient(colormap)
    if not high > low:
        return np.tile(table[len(table) // 2], (len(values), 1))
    level = np.clip((values.astype(np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    colors: NDArray[np.uint8] = table[np.round(level * (len(table) - 1)).astype(np.intp)]
    return colors


def normal_colors(normal: FloatArray) -> NDArray[np.uint8]:
    """Unit normals ``(N, 3)`` as ``(N, 3)`` uint8 colours: x, y and z from -1 to 1 are red, green and blue."""
    return to_bytes((normal + 1) / 2)


def to_bytes(colors: FloatArray) -> NDArray[np.uint8]:
    """Colours in [0, 1] as uint8; what lies outside gets the nearest end.

    Raises:
        ValueError: a colour is NaN or infinite.
    """
    _check_finite("colors", colors)
    scaled: NDArray[np.uint8] = np.round(255 * np.clip(colors, 0, 1)).astype(np.uint8)
    return scaled


def _check_finite(name: str, values: NDArray[Any]) -> None:
    bad = len(values) - int(np.isfinite(values).reshape(len(values), -1).all(1).sum())
    if bad:
        raise ValueError(f"{name} of {bad} of {len(values)} points are not finite numbers: leave these points out")
