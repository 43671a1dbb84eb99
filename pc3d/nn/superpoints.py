"""Superpoints: small pieces of surface, computed from positions and normals."""

from __future__ import annotations

import torch
from torch import Tensor

from pc3d.ops import voxelize


@torch.no_grad()
def superpoints(xyz: Tensor, offsets: Tensor, cell_size: float, normal: Tensor | None = None) -> Tensor:
    """Divide the scenes of a packed batch into superpoints.

    Points belong to one superpoint if they lie in the same cube of a grid and their normals are nearest to the same one
    of the six axis directions (in a tie, the first of x, y, z; positive for a zero). The method has no parameters to
    learn and no randomness. Superpoints are smaller than objects that are larger than the cubes. They do not extend
    over edges between planes whose normals are nearest to different axis directions.

    Args:
        xyz: ``(N, 3)``.
        offsets: ``(B + 1,)`` int64; a superpoint does not extend over scenes.
        cell_size: edge of the cubes in the units of ``xyz``.
        normal: ``(N, 3)``, of any length; None divides by cubes only.

    Returns:
        ``(N,)`` int64; points have equal numbers if and only if they belong to one superpoint. Numbers need not be
        consecutive.

    Raises:
        ValueError: ``cell_size`` is not positive, or ``normal`` has another shape than ``xyz``.
    """
    if not cell_size > 0:
        raise ValueError(f"cell_size must be positive, got {cell_size}")
    cube = voxelize(xyz, cell_size, offsets=offsets).inverse
    if normal is None:
        return cube
    if normal.shape != xyz.shape:
        raise ValueError(f"normal must have the shape of xyz, {tuple(xyz.shape)}, got {tuple(normal.shape)}")
    axis = normal.abs().argmax(1)
    negative = normal.gather(1, axis[:, None])[:, 0] < 0
    return cube * 6 + axis * 2 + negative.long()
