"""Layers of a view, from arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pc3d.viz.colors import colors_of_classes, normal_colors, scalar_colors, to_bytes
from pc3d.viz.features import feature_colors
from pc3d.viz.view import Color, Layer, Scale, class_name

FloatArray = NDArray[np.floating]
Labels = NDArray[np.integer]
RIGHT, WRONG, UNLABELLED = (146, 190, 146), (214, 38, 41), (200, 200, 200)


def rgb_layer(rgb: FloatArray) -> Layer:
    """The colours ``(N, 3)`` in [0, 1] that a cloud came with."""
    return Layer("rgb", to_bytes(rgb))


def normal_layer(normal: FloatArray) -> Layer:
    """Unit normals ``(N, 3)``."""
    return Layer("normal", normal_colors(normal))


def height_layers(clouds: Sequence[FloatArray], unit: str = "") -> list[Layer]:
    """The z of points ``(N, 3)``, on one scale over all clouds that leaves out the last thousandth at either end."""
    heights = [np.ascontiguousarray(xyz[:, 2], np.float32) for xyz in clouds]
    everything = np.concatenate(heights) if heights else np.zeros(0, np.float32)
    low, high = np.percentile(everything, [0.1, 99.9]).tolist() if everything.size else (0.0, 0.0)
    scale = Scale(low, high, unit, "viridis")
    return [Layer("height", scalar_colors(z, low, high, "viridis"), scale=scale, values=z) for z in heights]


def scalar_layers(
    name: str,
    values: Sequence[FloatArray],
    *,
    unit: str = "",
    colormap: str = "magma",
    low: float | None = None,
    high: float | None = None,
) -> list[Layer]:
    """A finite number for each point ``(N,)``, on one scale over all clouds.

    Args:
        name: of the layers.
        values: of each cloud.
        unit: of the numbers.
        colormap: see :func:`pc3d.viz.gradient`.
        low: where the scale begins; at the smallest number when None.
        high: where it ends; at the largest when None.
    """
    found = [value.astype(np.float32, copy=False) for value in values]
    low = min((float(value.min()) for value in found if value.size), default=0.0) if low is None else low
    high = max((float(value.max()) for value in found if value.size), default=low) if high is None else high
    scale = Scale(low, high, unit, colormap)
    return [Layer(name, scalar_colors(value, low, high, colormap), scale=scale, values=value) for value in found]


def class_layer(name: str, label: Labels, names: Sequence[str] = ()) -> Layer:
    """Classes ``(N,)``, -1 for unlabelled; class k has the same colour in every cloud and mode.

    Args:
        name: of the layer, such as ``"label"`` or ``"prediction"``.
        label: of each point.
        names: of the classes; those beyond are called by their number.
    """
    known = np.maximum(label, -1).astype(np.int64)
    found, place = np.unique(known, return_inverse=True)
    palette = to_bytes(colors_of_classes(found))
    palette[found < 0] = UNLABELLED
    legend = tuple((class_name(int(k), names), _color(color)) for k, color in zip(found, palette, strict=True))
    return Layer(name, palette[place], legend=legend, values=known, names=tuple(names))


def error_layer(prediction: Labels, label: Labels) -> Layer:
    """Where a prediction ``(N,)`` is right and where it is wrong; grey where the label is -1."""
    if prediction.shape != label.shape:
        raise ValueError(f"prediction and label must be of one shape, got {prediction.shape} and {label.shape}")
    state = np.where(label < 0, 2, np.where(prediction == label, 0, 1)).astype(np.int64)
    names = ("right", "wrong", "unlabelled")
    colors = np.array([RIGHT, WRONG, UNLABELLED], np.uint8)
    legend = tuple((names[k], _color(colors[k])) for k in _occurring(state))
    return Layer("error", colors[state], legend=legend, values=state, names=names)


def feature_layers(embeddings: Sequence[FloatArray | None]) -> list[Layer | None]:
    """Principal components of features ``(N, C)``, joint over the clouds that have some."""
    present = [embedding for embedding in embeddings if embedding is not None]
    colors = iter(feature_colors(present) if present else [])
    return [None if embedding is None else Layer("features", next(colors)) for embedding in embeddings]


def _occurring(label: Labels) -> list[int]:
    return [int(k) for k in np.unique(label)]


def _color(row: NDArray[np.uint8]) -> Color:
    red, green, blue = row.tolist()
    return red, green, blue
