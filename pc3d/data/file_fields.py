"""What the readers of point files hand over, and what they share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pc3d.data.dataset import BadFileError

Array = NDArray[Any]
# Arrays of one file: xyz always, rgb in [0, 1] and normal where the file has them.
Fields = dict[str, Array]


def colours(values: Array) -> Array:
    """Colours in [0, 1]: integers by the range of their type, floats as they are or, above 1, as 0..255."""
    if values.dtype.kind in "ui":
        # 16-bit fields are often filled with 8-bit values (LAS files above all).
        top = 255 if values.dtype.itemsize == 1 or (values.size and values.max() <= 255) else np.iinfo(np.uint16).max
    else:
        # Rounding may lift a saturated channel a little above 1.
        top = 255 if values.size and values.max() > 1 + 1e-3 else 1
    return np.asarray(np.clip(values / top, 0, 1), np.float32)


def check_complete(path: Path, loaded: Any, promised: tuple[int, int]) -> None:
    """Refuse a file whose parser came back with fewer vertices or faces than its header promises."""
    found = len(loaded.vertices), len(getattr(loaded, "faces", ()))
    # A polygon becomes several triangles, so more faces than promised are fine.
    if found[0] != promised[0] or found[1] < promised[1]:
        raise BadFileError(
            path,
            f"the header promises {promised[0]} vertices and {promised[1]} faces, {found[0]} and {found[1]} are usable",
        )
