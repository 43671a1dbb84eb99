"""The functions of Pointcept's ``pointops`` that its models call: packed clouds, int32 rows.

``offset`` (B,) holds the end of every cloud, without the leading 0 of the offsets in :mod:`pc3d.ops`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pc3d import ops
from pc3d.ops.voxels import clamped_knn

_NOTHING = 1e5
"""Distance of a missing neighbour: the square root of the initial value in the kernel."""


def _with_zero(offset: Tensor) -> Tensor:
    return torch.cat([offset.new_zeros(1), offset]).long()


def farthest_point_sampling(xyz: Tensor, offset: Tensor, new_offset: Tensor) -> Tensor:
    """Rows of farthest points of (N, 3), from the first point of each cloud on; ``new_offset`` sets their numbers."""
    wanted = _with_zero(new_offset).diff()
    return ops.farthest_point_sample(xyz, wanted, offsets=_with_zero(offset)).int()


def knn_query(
    nsample: int, xyz: Tensor, offset: Tensor, new_xyz: Tensor | None = None, new_offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The nearest of (N, 3) points to each of (M, 3): rows and distances (not squared), (M, nsample); no gradient.

    If a cloud has fewer points, the remaining slots have row -1 and distance 1e5.
    """
    if new_xyz is None or new_offset is None:
        new_xyz, new_offset = xyz, offset
    (index, squared), own = clamped_knn(
        xyz.detach(), nsample, new_xyz.detach(), _with_zero(offset), _with_zero(new_offset)
    )
    distance = squared.sqrt()
    if own is not None:
        index, distance = index.masked_fill(~own, -1), distance.masked_fill(~own, _NOTHING)
    return index.int(), distance


def grouping(idx: Tensor, feat: Tensor, xyz: Tensor, new_xyz: Tensor | None = None, with_xyz: bool = False) -> Tensor:
    """Gather (N, C) features at (M, nsample) rows; row -1 gives 0.

    ``with_xyz`` puts coordinates relative to ``new_xyz`` before the features.
    """
    rows = idx.long()
    grouped = ops.gather(feat, rows)
    if not with_xyz:
        return grouped
    relative = ops.group(xyz, rows, xyz if new_xyz is None else new_xyz) * (rows >= 0)[..., None]
    return torch.cat([relative, grouped], dim=-1)


def knn_query_and_group(
    feat: Tensor,
    xyz: Tensor,
    offset: Tensor | None = None,
    new_xyz: Tensor | None = None,
    new_offset: Tensor | None = None,
    idx: Tensor | None = None,
    nsample: int | None = None,
    with_xyz: bool = False,
) -> tuple[Tensor, Tensor]:
    """Apply :func:`knn_query`, unless ``idx`` is given, and :func:`grouping`; returns groups and rows."""
    if idx is None:
        if nsample is None or offset is None:
            raise ValueError(f"without idx, nsample and offset are needed; got nsample={nsample}, offset={offset}")
        idx, _ = knn_query(nsample, xyz, offset, new_xyz, new_offset)
    return grouping(idx, feat, xyz, new_xyz, with_xyz), idx


def interpolation(xyz: Tensor, new_xyz: Tensor, feat: Tensor, offset: Tensor, new_offset: Tensor, k: int = 3) -> Tensor:
    """Interpolate (N, C) features of (N, 3) points to (M, 3) points by inverse distance; coordinates get no gradient.

    If a cloud has fewer than ``k`` points, only these are used. The original adds the last row of the whole batch with
    a very small weight.
    """
    offsets, new_offsets = _with_zero(offset), _with_zero(new_offset)
    return ops.interpolate(
        feat, xyz.detach(), new_xyz.detach(), k=k, power=1, clamp=True, offsets=offsets, query_offsets=new_offsets
    )


def offset2batch(offset: Tensor) -> Tensor:
    """Convert ends (B,) to the cloud of every row, (N,) int64."""
    return torch.arange(offset.shape[0], device=offset.device).repeat_interleave(_with_zero(offset).diff())


def batch2offset(batch: Tensor) -> Tensor:
    """Convert the cloud of every row, (N,), to ends (B,) int32."""
    return batch.bincount().cumsum(0).int()
