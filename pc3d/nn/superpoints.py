"""Superpoints: small pieces of surfaces, found from places and normals alone."""

from __future__ import annotations

import torch
from torch import Tensor

from pc3d.ops import voxelize


@torch.no_grad()
def superpoints(xyz: Tensor, offsets: Tensor, cell_size: float, normal: Tensor | None = None) -> Tensor:
    """Number the pieces of surface that each scene of a packed batch is made of.

    Points are of one superpoint if they lie in the same cube of a grid and their normals are nearest to the same of the
    six directions of the axes (the first of x, y, z in a tie, and its positive side for a zero). No learning, no seed:
    finer than objects where objects are larger than the cubes, and edges between planes are not crossed.

    Args:
        xyz: ``(N, 3)``.
        offsets: ``(B + 1,)`` int64; superpoints are of one scene.
        cell_size: edge of the cubes in the units of ``xyz``.
        normal: ``(N, 3)``, of any length; None splits by cubes alone.

    Returns:
        ``(N,)`` int64; points have equal numbers if and only if they are of one superpoint. Numbers are not
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
