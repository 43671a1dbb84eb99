"""A view as one web page that opens from the disk, without a server or a network.

The page draws with WebGL 2 by itself. plotly, which the reports use, was tried first: its scatter3d turns every point
into a mesh of triangles, and took over ten seconds to recolour 20,000 points where this takes a fraction of one for
200,000 (both in software, on one machine).
"""

from __future__ import annotations

import base64
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pc3d.viz.colors import gradient
from pc3d.viz.page import PAGE_LIMIT, render_page, write_page
from pc3d.viz.view import Layer, View, ViewCloud

MAX_POINTS = 300_000
COMPONENTS = 32
_LEVELS = 65535  # coordinates and numbers are kept to 16 bits of their range
# How many times the box without strays the points may take for 16 bits to tell them apart.
_STRAYED = 4


def write_html(
    view: View, path: str | os.PathLike[str], *, mode: str | None = None, max_points: int = MAX_POINTS
) -> Path:
    """Write a view as one page of at most 10 MB: modes, point size, selection by a click, legend, colour bar.

    Coordinates and numbers are kept to 16 bits of their range, colours as they are. Where clouds have features of
    points, a click recolours by their cosine to those of the point; the page holds the 32 leading components of the
    features, in 8 bits each.

    Args:
        view: what to show.
        path: the ``.html`` file.
        mode: name of the layer that is shown first; the first one when None.
        max_points: of all clouds together; of more, as many are drawn at random (:meth:`View.thin`), and so of a view
            whose page would be too large. The page says how many.

    Returns:
        The path.

    Raises:
        ValueError: no points, a coordinate that is not a finite number, no such mode, or another suffix.
    """
    path = Path(path)
    if path.suffix != ".html":
        raise ValueError(f"path must end in .html, got {str(path)!r}")
    if not view.num_points:
        raise ValueError("view has no points: there is nothing to show")
    bad = next((cloud.name for cloud in view.clouds if not np.isfinite(cloud.xyz).all()), None)
    if bad is not None:
        raise ValueError(f"coordinates of {bad} are not all finite numbers: leave such points out")
    if mode is not None and mode not in view.modes:
        raise ValueError(f"mode must be one of {', '.join(view.modes) or 'none'}, got {mode!r}")
    axes = _leading_components(view)
    while True:
        thin = view.thin(max_points)
        page = _page(thin, view.num_points, axes, mode)
        if len(page) <= PAGE_LIMIT:
            return write_page(page, path)
        max_points = int(0.95 * thin.num_points * PAGE_LIMIT / len(page))


def _page(view: View, num_points: int, axes: NDArray[np.float32] | None, mode: str | None) -> str:
    blob = _Blob()
    clouds = [_cloud(cloud, blob, axes) for cloud in view.clouds if len(cloud)]
    shown = view.num_points
    count = f"{shown:,} points" if shown == num_points else f"{shown:,} of {num_points:,} points, drawn at random"
    modes = _modes(view, axes)
    first = next((place for place, entry in enumerate(modes) if entry["name"] == mode), 0)
    manifest = {"clouds": clouds, "modes": modes, "first": first, "gradient": gradient("turbo").tolist()}
    return render_page(
        "view.html", title=view.title or "Point clouds", count=count, manifest=manifest, data=blob.packed()
    )


def _modes(view: View, axes: NDArray[np.float32] | None) -> list[dict[str, Any]]:
    modes: list[dict[str, Any]] = []
    for name in view.modes:
        scale = view.scale(name)
        bar = None
        if scale is not None:
            bar = {"minimum": scale.minimum, "maximum": scale.maximum, "unit": scale.unit}
            bar["gradient"] = gradient(scale.colormap).tolist()
        modes.append({"name": name, "legend": view.legend(name), "scale": bar})
    if axes is not None:
        modes.append({"name": "similarity to point", "clickable": True})
    return modes or [{"name": "plain"}]


class _Blob:
    """Arrays one after the other, compressed together."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, values: NDArray[Any]) -> dict[str, Any]:
        """Where the page finds the array: type, place in bytes, number of values."""
        data = np.ascontiguousarray(values).tobytes()
        entry = {"type": values.dtype.str[1:], "at": self._size, "length": int(values.size)}
        data += bytes(-len(data) % 4)  # typed arrays of a browser start at multiples of their item
        self._pieces.append(data)
        self._size += len(data)
        return entry

    def packed(self) -> str:
        return base64.b64encode(zlib.compress(b"".join(self._pieces), 6)).decode("ascii")


def _cloud(cloud: ViewCloud, blob: _Blob, axes: NDArray[np.float32] | None) -> dict[str, Any]:
    placed = cloud.placed.astype(np.float64)
    low, high = placed.min(0), placed.max(0)
    extent = np.where(high > low, high - low, 1.0)
    box = cloud.box
    # Strays far away would leave the rest few of the levels of 16 bits.
    kind = "<u2" if (high - low).max() <= _STRAYED * (box[1] - box[0]).max() else "<u4"
    places = np.round((placed - low) / extent * np.iinfo(kind).max).astype(kind)
    entry: dict[str, Any] = {
        "name": cloud.name,
        "count": len(cloud),
        "low": low.tolist(),
        "extent": extent.tolist(),
        # Without strays: what the camera looks at.
        "box": [corner.tolist() for corner in box],
        "offset": cloud.offset.tolist(),
        # Points are drawn as wide as those of a surface are apart.
        "spacing": 1.3 * float(np.linalg.norm(box[1] - box[0])) / len(cloud) ** 0.5,
        "places": blob.add(places),
        "levels": int(np.iinfo(kind).max),
        "rows": None if cloud.rows is None else blob.add(cloud.rows.astype("<u4")),
        "layers": [_layer(layer, blob) for layer in cloud.layers.values()],
    }
    if axes is not None and cloud.embedding is not None:
        components = cloud.embedding.astype(np.float32) @ axes
        largest = np.maximum(np.abs(components).max(1, keepdims=True), np.finfo(np.float32).tiny)
        entry["embedding"] = blob.add(np.round(127 * components / largest).astype("i1"))
        entry["channels"] = axes.shape[1]
    return entry


def _layer(layer: Layer, blob: _Blob) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": layer.name}
    codes = layer.colors.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    known, index = np.unique(codes, return_inverse=True)
    if len(known) <= 256:  # classes, and scalars by a colour map
        entry["palette"] = np.stack([known >> 16, known >> 8 & 255, known & 255], 1).tolist()
        entry["colors"] = blob.add(index.astype("u1"))
    else:
        entry["colors"] = blob.add(layer.colors)
    if layer.values is None:
        return entry
    if np.issubdtype(layer.values.dtype, np.integer):
        entry["names"] = list(layer.names)
        entry["values"] = blob.add(layer.values.astype("<i4"))
        return entry
    values = layer.values.astype(np.float64)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    step = (high - low) / _LEVELS or 1.0
    entry["values"] = blob.add(np.round((values - low) / step).astype("<u2"))
    return {**entry, "minimum": low, "step": step, "unit": layer.scale.unit if layer.scale else ""}


def _leading_components(view: View) -> NDArray[np.float32] | None:
    """The directions ``(C, 32)`` along which features are longest, joint over clouds; None where there are none."""
    features = [cloud.embedding for cloud in view.clouds if cloud.embedding is not None and len(cloud)]
    if not features:
        return None
    channels = {embedding.shape[1] for embedding in features}
    if len(channels) > 1:
        raise ValueError(f"features of points must have the same channels in all clouds, got {sorted(channels)}")
    (width,) = channels
    if width <= COMPONENTS:
        return np.eye(width, dtype=np.float32)
    moments = np.zeros((width, width))
    for embedding in features:
        rows = embedding[:: -(-len(embedding) // 50_000)].astype(np.float64)
        moments += rows.T @ rows / np.maximum((rows**2).sum() / len(rows), 1e-30)
    return np.ascontiguousarray(np.linalg.eigh(moments)[1][:, -COMPONENTS:], dtype=np.float32)
