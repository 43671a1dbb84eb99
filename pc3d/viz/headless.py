"""Render a view from a camera without a display, a GPU or a system library.

Every point is a disc that faces the camera; the nearest one is seen. Depth is made visible by eye-dome lighting
(Boucheny, 2009): a pixel whose neighbours lie nearer is darkened. NumPy alone, about a second for five million points.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pc3d.viz.camera import Viewpoint
from pc3d.viz.view import View

FloatArray = NDArray[np.floating]
Picture = NDArray[np.uint8]
BACKGROUND = 255
_LARGEST = 12.0
_SAMPLES = 2
_LIGHTING = 12.0


def render(
    view: View,
    mode: str,
    camera: Viewpoint,
    width: int,
    height: int,
    *,
    point_size: float | None = None,
    max_points: int = 2_000_000,
) -> Picture:
    """Render the clouds of a view in the colours of a mode.

    Args:
        view: what to show.
        mode: name of a layer; clouds without it are grey.
        camera: where from.
        width: of the picture in pixels.
        height: likewise.
        point_size: diameter of the discs in pixels, in the middle of the depths; so that surfaces close when None.
        max_points: level of detail, see :meth:`View.thin`.

    Returns:
        ``(height, width, 3)`` uint8, white where there is nothing.

    Raises:
        ValueError: a mode that no cloud has, or sizes that are not positive.
    """
    check_mode(view, mode)
    if width < 1 or height < 1 or (point_size is not None and not point_size > 0):
        raise ValueError(f"width, height and point_size must be positive, got {width}, {height} and {point_size}")
    view = view.thin(max(max_points, len(view.clouds)))
    xyz = np.concatenate([cloud.placed for cloud in view.clouds])
    colors = np.concatenate([cloud.colors(mode) for cloud in view.clouds])
    # Two by two samples for each pixel make the edges of discs smooth.
    fine_width, fine_height = _SAMPLES * width, _SAMPLES * height
    diameter = None if point_size is None else _SAMPLES * point_size
    nearest, depth = _nearest_discs(xyz, camera, fine_width, fine_height, diameter)
    hit = nearest >= 0
    fine = np.full((fine_height, fine_width, 3), BACKGROUND, np.float32)
    fine[hit] = colors[nearest[hit]] * _lighting(depth, _SAMPLES)[hit][:, None]
    mean = fine.reshape(height, _SAMPLES, width, _SAMPLES, 3).mean((1, 3))
    picture: Picture = np.round(mean).astype(np.uint8)
    return picture


def check_mode(view: View, mode: str) -> None:
    """Refuses a mode that no cloud has, naming those that there are."""
    if mode not in view.modes:
        raise ValueError(f"mode: nothing here can be coloured by {mode!r}; the modes are {', '.join(view.modes)}")


def _nearest_discs(
    xyz: FloatArray, camera: Viewpoint, width: int, height: int, diameter: float | None
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The point whose disc is seen in each pixel, -1 for none, and its depth, infinite for none."""
    pixel, depth = camera.project(xyz, width, height)
    cell = np.floor(pixel).astype(np.int32)
    shown = (depth > 0.01 * camera.distance) & (cell >= 0).all(1) & (cell[:, 0] < width) & (cell[:, 1] < height)
    rows = np.flatnonzero(shown)
    # The farthest first: a point's place in this order is its rank, and the highest rank in a pixel is seen.
    rows = rows[np.argsort(-depth[rows])]
    flat = cell[rows, 1] * np.int32(width) + cell[rows, 0]
    rank = np.full(width * height, -1, np.int32)
    rank[flat] = np.arange(len(rows), dtype=np.int32)  # of equal places, the last one written stays
    if len(rows):
        # Perspective: the discs are of one size in space.
        middle = float(np.median(depth[rows]))
        size = _closing_diameter(flat, len(rows), width, height) if diameter is None else diameter
        radius = np.minimum(size / 2 * middle / depth[rows], _LARGEST * _SAMPLES).astype(np.float32)
        rank = _spread(rank.reshape(height, width), radius).reshape(-1)
    seen = rank >= 0
    nearest, far = np.full(width * height, -1, np.intp), np.full(width * height, np.inf, np.float32)
    nearest[seen] = rows[rank[seen]]
    far[seen] = depth[nearest[seen]]
    return nearest.reshape(height, width), far.reshape(height, width)


def _closing_diameter(flat: NDArray[np.int32], num_points: int, width: int, height: int) -> float:
    """Diameter of discs that close surfaces: from the area that the points cover, of which they show both sides."""
    block = 16
    columns = -(-width // block)
    blocks = (flat // width // block) * columns + flat % width // block
    area = block * block * np.count_nonzero(np.bincount(blocks, minlength=columns * -(-height // block)))
    return float(np.clip(1.9 * np.sqrt(2 * area / num_points), 2.0, 0.75 * _LARGEST * _SAMPLES))


def _spread(rank: NDArray[np.int32], radius: NDArray[np.float32]) -> NDArray[np.int32]:
    """Every pixel takes the highest rank among the discs that reach it.

    A point that is hidden in its own pixel cannot be seen in another: the disc before it is at least as large.
    """
    height, width = rank.shape
    reach = np.where(rank >= 0, radius[rank], -1.0)
    largest = int(reach.max())
    result: NDArray[np.int32] = rank.copy()
    offsets = [(dx, dy) for dx in range(-largest, largest + 1) for dy in range(-largest, largest + 1)]
    masked, length = rank, 0.0
    for dx, dy in sorted(offsets, key=lambda offset: np.hypot(*offset)):
        if np.hypot(dx, dy) > length:
            length = float(np.hypot(dx, dy))
            masked = np.where(reach >= length, rank, -1)
        if length == 0.0 or length > reach.max():
            continue
        to = np.s_[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)]
        source = np.s_[max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)]
        np.maximum(result[to], masked[source], out=result[to])
    return result


def _lighting(depth: NDArray[np.float32], step: int) -> NDArray[np.float32]:
    """Eye-dome lighting: a factor for each pixel, 1 where no neighbour is nearer."""
    level = np.log2(np.maximum(depth, 1e-12))
    total = np.zeros_like(level)
    height, width = level.shape
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (1, -1), (-1, 1)):
        shift_x, shift_y = step * dx, step * dy
        to = np.s_[max(shift_y, 0) : height + min(shift_y, 0), max(shift_x, 0) : width + min(shift_x, 0)]
        source = np.s_[max(-shift_y, 0) : height + min(-shift_y, 0), max(-shift_x, 0) : width + min(-shift_x, 0)]
        with np.errstate(invalid="ignore"):  # infinity less infinity, where there is nothing
            nearer = np.fmax(level[to] - level[source], 0.0)
        total[to] += np.where(np.isfinite(nearer), np.minimum(nearer, 0.1), 0.0)
    factor: NDArray[np.float32] = np.maximum(np.exp(-_LIGHTING * total / 8), 0.35).astype(np.float32)
    return factor
