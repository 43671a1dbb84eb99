"""Pictures in 8 bits, and colours at places between their pixels."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Of TIFF: how many bits a number has, whether 0 is white (0) or black (1), and whether numbers have a sign (not 1).
_BITS, _BLACK, _KIND = 258, 262, 339


def eight_bits(image: Any, name: str) -> NDArray[np.uint8]:
    """A picture of Pillow as it is shown.

    Args:
        image: as it was opened; copies of TIFF files have forgotten what their numbers mean.
        name: of the picture, for warnings.

    Returns:
        ``(H, W, 3)``, or ``(H, W, 4)`` if parts of it are transparent.

    Raises:
        ValueError: it holds numbers whose black and white it does not tell.
    """
    if image.mode == "F":
        raise ValueError("holds floats, of which nothing tells which are black and white: store 8 bits")
    if image.mode.startswith("I"):  # grey of which Pillow would make everything above 255 white
        return _grey(image, name)
    # "P" and "RGB" may have a transparent colour.
    transparent = "A" in image.getbands() or "transparency" in image.info
    return np.asarray(image.convert("RGBA" if transparent else "RGB"))


def _grey(image: Any, name: str) -> NDArray[np.uint8]:
    values = np.asarray(image).astype(np.int64)
    low, high, bits = values.min(), values.max(), 16
    tags = getattr(image, "tag_v2", None)
    if tags is not None:
        bits = tags.get(_BITS, (bits,))[0]
        if bits > 16 or tags.get(_KIND, (1,))[0] != 1:
            # By the format, white would be the largest number there is; programs put 8 or 16 bits in there as they are.
            stored, bits = bits, 8 if high <= 255 else 16
            if 0 <= low <= high < 1 << bits:
                warnings.warn(
                    f"{name}: holds grey of {low} to {high} in {stored}-bit whole numbers, of which nothing tells "
                    f"which is white: read as {bits} bits, white being {(1 << bits) - 1}",
                    stacklevel=2,
                )
    if not 0 <= low <= high < 1 << bits:
        raise ValueError(f"holds grey of {low} to {high}, expected {bits} bits: store 8 bits")
    shade = np.round(values * 255 / ((1 << bits) - 1)).astype(np.uint8)
    if tags is not None and tags.get(_BLACK) == 0:
        shade = 255 - shade
    if "transparency" not in image.info:
        return np.repeat(shade[:, :, None], 3, axis=2)
    alpha = np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)
    return np.stack([shade, shade, shade, alpha], axis=2)


def texture_colours(picture: NDArray[np.uint8], uv: NDArray[np.floating]) -> NDArray[np.float32]:
    """Bilinear colours of a texture that repeats.

    Args:
        picture: ``(H, W, 3)``, or ``(H, W, 4)``, whose transparency does not count.
        uv: ``(N, 2)`` places; (0, 0) is the lower left corner of the lower left pixel, (1, 1) the upper right one of
            the upper right one. What is not finite counts as 0.

    Returns:
        ``(N, 3)`` in [0, 1].
    """
    height, width = picture.shape[:2]
    u, v = np.nan_to_num(uv.astype(np.float64), posinf=0, neginf=0).T
    x, y = u * width - 0.5, (1 - v) * height - 0.5
    column, row = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    right, down = (x - column)[:, None], (y - row)[:, None]

    def texel(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.uint8]:
        return picture[rows % height, columns % width, :3]

    upper = texel(row, column) * (1 - right) + texel(row, column + 1) * right
    lower = texel(row + 1, column) * (1 - right) + texel(row + 1, column + 1) * right
    return np.asarray((upper * (1 - down) + lower * down) / 255, np.float32)
