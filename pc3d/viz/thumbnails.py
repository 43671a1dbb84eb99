"""Small pictures of objects, many in one sheet."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pc3d._extras import require
from pc3d.viz.colors import height_colors, shade
from pc3d.viz.projection import project
from pc3d.viz.view import box_of

FloatArray = NDArray[np.floating]
Picture = NDArray[np.uint8]


def thumbnail(xyz: FloatArray, rgb: FloatArray | None = None, size: int = 64) -> Picture:
    """A picture of an object on white, the nearest point in each pixel, points two pixels wide.

    Strays far away (:func:`pc3d.viz.view.box_of`) may lie outside, and change the colours of no others.

    Args:
        xyz: ``(N, 3)`` points, z up.
        rgb: ``(N, 3)`` colours in [0, 1]; by height when None.
        size: side in pixels.

    Returns:
        ``(size, size, 3)``.
    """
    picture = np.full((size, size, 3), 255, dtype=np.uint8)
    if not len(xyz):
        return picture
    flat, nearness = project(xyz.astype(np.float64))
    low, high = box_of(flat)
    span = max(float((high - low).max()), 1e-9)
    cell = ((flat - (low + high) / 2) / span * (size - 4) + size / 2 - 0.5).round().astype(np.int64)
    # Nor does a stray take the heights and depths of the others their difference.
    kept = np.clip(xyz, *box_of(xyz))
    colors = shade(height_colors(kept) if rgb is None else rgb, project(kept)[1])
    order = np.argsort(nearness, kind="stable")  # the nearest is written last
    for right in (0, 1):
        for down in (0, 1):
            column, row = cell[order, 0] + right, size - 1 - cell[order, 1] + down
            inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
            picture[row[inside], column[inside]] = (255 * colors[order[inside]]).round()
    return picture


def sheet(pictures: Sequence[Picture], size: int = 64) -> tuple[bytes, int]:
    """Pictures side by side in one JPEG, row by row.

    Args:
        pictures: ``(H, W, 3)`` each; scaled to squares.
        size: side of a square in pixels.

    Returns:
        The JPEG and the number of pictures in a row.

    Raises:
        ValueError: no pictures.
    """
    if not pictures:
        raise ValueError("pictures is empty: there is nothing to lay out")
    pillow = require("PIL.Image", extra="viz", purpose="thumbnails")
    columns = math.ceil(math.sqrt(len(pictures)))
    whole = pillow.new("RGB", (columns * size, math.ceil(len(pictures) / columns) * size), "white")
    for number, picture in enumerate(pictures):
        image = pillow.fromarray(np.ascontiguousarray(picture)).resize((size, size), pillow.Resampling.LANCZOS)
        whole.paste(image, (number % columns * size, number // columns * size))
    data = io.BytesIO()
    whole.save(data, "JPEG", quality=80, optimize=True)
    return data.getvalue(), columns
