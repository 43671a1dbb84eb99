"""Render a view from a camera without a display, a GPU or a system library.

Every point is a disc that faces the camera; the nearest one is seen. Depth is made visible by eye-dome lighting
(Boucheny, 2009): a pixel whose neighbours lie nearer is darkened. NumPy alone; a picture is drawn in strips that fit
the caches of the processor.
"""

from __future__ import annotations

from typing import NamedTuple

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
# Samples in a strip.
_STRIP = 1 << 19
# The depth of pixels that show nothing: finite, so that differences are numbers.
_FAR = np.finfo(np.float32).max


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
    diameter = None if point_size is None else _SAMPLES * point_size
    discs = _discs(xyz, camera, _SAMPLES * width, _SAMPLES * height, diameter)
    # The last is what rank -1 has.
    shown = np.concatenate([colors[discs.point], np.full((1, 3), BACKGROUND, np.uint8)]).astype(np.float32)
    picture: Picture = np.empty((height, width, 3), np.uint8)
    lines = max(1, _STRIP // (_SAMPLES**2 * width))
    for top in range(0, height, lines):
        strip = picture[top : top + lines]
        fine = _strip(discs, shown, _SAMPLES * top, _SAMPLES * (top + len(strip)))
        samples = (fine[row::_SAMPLES, column::_SAMPLES] for row in range(_SAMPLES) for column in range(_SAMPLES))
        strip[:] = np.round(sum(samples) / _SAMPLES**2)
    return picture


def check_mode(view: View, mode: str) -> None:
    """Refuses a mode that no cloud has, naming those that there are."""
    if mode not in view.modes:
        raise ValueError(f"mode: nothing here can be coloured by {mode!r}; the modes are {', '.join(view.modes)}")


class _Discs(NamedTuple):
    """The discs in a picture of ``width`` by ``height``, the farthest first: their places in this order are ranks.

    Attributes:
        point: which point each one is.
        depth: of it.
        radius: in pixels.
        by_row: the ranks in the order of the rows that their middles are in, those of a row the farthest first.
        row: the row of each one, in that order.
        column: likewise.
        width: of the picture.
        height: likewise.
    """

    point: NDArray[np.intp]
    depth: NDArray[np.float32]
    radius: NDArray[np.float32]
    by_row: NDArray[np.int32]
    row: NDArray[np.int32]
    column: NDArray[np.int32]
    width: int
    height: int


def _discs(xyz: FloatArray, camera: Viewpoint, width: int, height: int, diameter: float | None) -> _Discs:
    pixel, depth = camera.project(xyz, width, height)
    cell = np.floor(pixel).astype(np.int32)
    shown = (depth > 0.01 * camera.distance) & (cell >= 0).all(1) & (cell[:, 0] < width) & (cell[:, 1] < height)
    point = np.flatnonzero(shown)
    point = point[np.argsort(-depth[point])]
    depth, column, row = depth[point], cell[point, 0], cell[point, 1]
    radius = np.zeros(0, np.float32)
    if len(point):
        # Perspective: the discs are of one size in space.
        middle = float(np.median(depth))
        size = _closing_diameter(column, row, width, height) if diameter is None else diameter
        radius = np.minimum(size / 2 * middle / depth, _LARGEST * _SAMPLES).astype(np.float32)
    by_row = np.argsort(row, kind="stable").astype(np.int32)
    return _Discs(point, depth, radius, by_row, row[by_row], column[by_row], width, height)


def _strip(discs: _Discs, colors: NDArray[np.float32], first: int, end: int) -> NDArray[np.float32]:
    """Some rows of the picture, ``(end - first, width, 3)`` of 0..255.

    Args:
        discs: in it.
        colors: of them, and that of pixels without any.
        first: row.
        end: the row behind the last.
    """
    # The light of a pixel depends on those around.
    above, below = min(first, _SAMPLES), min(discs.height - end, _SAMPLES)
    rank = _seen(discs, first - above, end + below)
    # "wrap" takes -1 for the last as indexing does, in a third of its time.
    light = _lighting(np.take(np.append(discs.depth, _FAR), rank, mode="wrap"), _SAMPLES)
    inside = np.s_[above : len(rank) - below]
    light = np.where(rank < 0, np.float32(1), light)[inside]
    return np.asarray(np.take(colors, rank[inside], axis=0, mode="wrap") * light[:, :, None])


def _closing_diameter(column: NDArray[np.int32], row: NDArray[np.int32], width: int, height: int) -> float:
    """Diameter of discs that close surfaces: from the area that the points cover, of which they show both sides."""
    block = 16
    columns = -(-width // block)
    blocks = (row // block) * columns + column // block
    area = block * block * np.count_nonzero(np.bincount(blocks, minlength=columns * -(-height // block)))
    return float(np.clip(1.9 * np.sqrt(2 * area / len(row)), 2.0, 0.75 * _LARGEST * _SAMPLES))


def _seen(discs: _Discs, first: int, end: int) -> NDArray[np.int32]:
    """The highest rank among the discs that reach each pixel of some rows, ``(end - first, width)``; -1 for none.

    A point that is hidden in its own pixel cannot be seen in another: the disc before it is at least as large.
    """
    # The discs of these rows, and those above and below that may reach into them, on a canvas with room for all.
    largest = int(discs.radius.max(initial=0))
    start, stop = np.searchsorted(discs.row, (first - largest, end + largest))
    canvas = np.full((end - first + 4 * largest, discs.width + 2 * largest), -1, np.int32)
    row, column = discs.row[start:stop] - (first - 2 * largest), discs.column[start:stop] + largest
    canvas[row, column] = discs.by_row[start:stop]  # of equal places, the last one written stays
    spread = _scattered if 4 * np.count_nonzero(canvas >= 0) < canvas.size else _shifted
    return spread(canvas, discs.radius, largest)[2 * largest : 2 * largest + end - first, largest:][:, : discs.width]


def _steps(largest: int) -> list[tuple[int, int, float]]:
    """The pixels that a disc may reach from its middle: how many columns and rows away, and how far, the next first."""
    around = range(-largest, largest + 1)
    steps = [(dx, dy, float(np.hypot(dx, dy))) for dx in around for dy in around if dx or dy]
    return sorted(steps, key=lambda step: step[2])


def _scattered(canvas: NDArray[np.int32], radius: NDArray[np.float32], largest: int) -> NDArray[np.int32]:
    """Every disc is written to the pixels that it reaches: for few discs."""
    result: NDArray[np.int32] = canvas.reshape(-1).copy()
    place = np.flatnonzero(result >= 0)
    rank, last = result[place], 0.0
    for dx, dy, length in _steps(largest):
        if length > last:
            reaching, last = radius[rank] >= length, length
            place, rank = place[reaching], rank[reaching]
        to = place + (dy * canvas.shape[1] + dx)
        result[to] = np.maximum(result[to], rank)
    return result.reshape(canvas.shape)


def _shifted(canvas: NDArray[np.int32], radius: NDArray[np.float32], largest: int) -> NDArray[np.int32]:
    """Every pixel looks at those whose discs may reach it: for discs in many pixels."""
    result: NDArray[np.int32] = canvas.copy()
    reach, masked, last = np.where(canvas >= 0, radius[canvas], -1.0), canvas, 0.0
    height, width = canvas.shape
    for dx, dy, length in _steps(largest):
        if length > last:
            masked, last = np.where(reach >= length, canvas, -1), length
        to = np.s_[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)]
        source = np.s_[max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)]
        np.maximum(result[to], masked[source], out=result[to])
    return result


def _lighting(depth: NDArray[np.float32], step: int) -> NDArray[np.float32]:
    """Eye-dome lighting: a factor for each pixel that shows something, 1 where no neighbour is nearer."""
    level = np.log2(np.maximum(depth, 1e-12))
    total = np.zeros_like(level)
    height, width = level.shape
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (1, -1), (-1, 1)):
        shift_x, shift_y = step * dx, step * dy
        to = np.s_[max(shift_y, 0) : height + min(shift_y, 0), max(shift_x, 0) : width + min(shift_x, 0)]
        source = np.s_[max(-shift_y, 0) : height + min(-shift_y, 0), max(-shift_x, 0) : width + min(-shift_x, 0)]
        total[to] += np.clip(level[to] - level[source], 0.0, 0.1)
    factor: NDArray[np.float32] = np.maximum(np.exp(-_LIGHTING * total / 8), 0.35).astype(np.float32)
    return factor
