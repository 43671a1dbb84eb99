"""Blocks of a scene, which bound the memory that a network needs for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pc3d.ops import voxelize
from pc3d.tasks.scene_checks import check_bounds

# Class sums exist for every point that a block predicts, however many of them share a voxel.
_CORE_POINTS_PER_VOXEL = 16


class Block(NamedTuple):
    """A part of a scene with its surroundings.

    Attributes:
        rows: ``(R,)`` int64 rows of the scene, ascending, so that the first point of a voxel is that of the scene.
        is_core: ``(R,)`` bool, the rows that this block is to predict; the others are their surroundings.
        context: up to this distance around the core, nothing is left out; less than requested if the block was full.
    """

    rows: Tensor
    is_core: Tensor
    context: float


def scene_blocks(xyz: Tensor, max_points: int, context: float, *, voxel_size: float | None = None) -> Iterator[Block]:
    """Cut a scene into blocks that one forward pass can hold.

    A scene of at most ``max_points`` is one block. A larger one is halved at the median of the longest side of its box
    until each part has at most ``max_points / 2`` points. A block is such a part together with the points within
    ``context`` of its box along every axis, or the nearest of these if there are too many.

    With a ``voxel_size``, a block consists of whole voxels, and voxels are counted: a network that reads one point of
    each voxel sees no more at once, however dense the scan is. Cores then hold at most 16 ``max_points`` points.

    Args:
        xyz: ``(N, 3)``.
        max_points: most points, or voxels, of a block.
        context: in the units of ``xyz``.
        voxel_size: edge of the voxels; None counts points.

    Returns:
        Blocks whose cores are all points, each once, in an order that depends on the points alone.

    Raises:
        ValueError: ``max_points`` below 2, a negative ``context``, or a ``voxel_size`` that is not positive.
    """
    check_bounds(max_points, context)
    if voxel_size is None:
        return _blocks(xyz, torch.ones(len(xyz), dtype=torch.int64), max_points, context)
    voxels = voxelize(xyz, voxel_size)
    order = voxels.inverse.argsort(stable=True)
    return _blocks_of_voxels(voxels.coords, voxels.count, order, voxel_size, max_points, context)


def _blocks(xyz: Tensor, weight: Tensor, max_rows: int, context: float) -> Iterator[Block]:
    """Blocks of rows, each of which stands for ``weight`` points."""
    everything, most = torch.arange(len(xyz)), _CORE_POINTS_PER_VOXEL * max_rows
    if len(xyz) <= max_rows and int(weight.sum()) <= most:
        if len(xyz):
            yield Block(everything, torch.ones(len(xyz), dtype=torch.bool), context)
        return
    waiting = [(everything, everything[:0])]
    while waiting:
        core, around = waiting.pop()
        points = xyz[core]
        low, high = points.amin(0), points.amax(0)
        # To the box of the core, the largest of the three axes: convolutions look as far along diagonals.
        distance = (xyz[around] - xyz[around].clamp(low, high)).abs().amax(1)
        around, distance = around[distance <= context], distance[distance <= context]
        if len(core) > max_rows // 2 or (len(core) > 1 and int(weight[core].sum()) > most):
            half = len(core) // 2
            along = points[:, int((high - low).argmax())].numpy()
            order = torch.from_numpy(np.argpartition(along, half))
            first, second = core[order[:half]], core[order[half:]]
            waiting += [(second, torch.cat([around, first])), (first, torch.cat([around, second]))]
            continue
        reached, room = context, max_rows - len(core)
        if len(around) > room:
            nearest = distance.argsort(stable=True)
            reached = float(distance[nearest[room]])
            around = around[nearest[:room]]
        rows, order = torch.cat([core, around]).sort()
        yield Block(rows, order < len(core), reached)


def _blocks_of_voxels(
    coords: Tensor, count: Tensor, order: Tensor, voxel_size: float, max_voxels: int, context: float
) -> Iterator[Block]:
    """Blocks of whole voxels; ``order`` sorts the points by voxel, ``count`` says how many each one has."""
    start = count.cumsum(0) - count
    # Points of two voxels may be nearer to one another than the voxels' corners, by less than an edge.
    for block in _blocks(coords * voxel_size, count, max_voxels, context + voxel_size):
        sizes = count[block.rows]
        skipped = start[block.rows] - (sizes.cumsum(0) - sizes)
        rows = order[torch.arange(int(sizes.sum())) + skipped.repeat_interleave(sizes)]
        rows, by_row = rows.sort()
        is_core = block.is_core.repeat_interleave(sizes)[by_row]
        yield Block(rows, is_core, max(block.context - voxel_size, 0.0))
