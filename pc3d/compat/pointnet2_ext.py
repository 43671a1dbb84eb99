"""The compiled module ``_ext`` of VoteNet's ``pointnet2`` and of ``pointnet2_ops``: channels first, int32 indices.

With it, a repository's own ``pointnet2_utils.py`` can be imported, with all classes that it defines. The functions have
no gradient of their own: the classes call the functions named ``_grad``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pc3d import ops
from pc3d.compat import pointnet2_ops

furthest_point_sampling = pointnet2_ops.furthest_point_sample
gather_points = pointnet2_ops.gather_operation
group_points = pointnet2_ops.grouping_operation
three_interpolate = pointnet2_ops.three_interpolate


def ball_query(new_xyz: Tensor, xyz: Tensor, radius: float, nsample: int) -> Tensor:
    """:func:`pc3d.compat.pointnet2_ops.ball_query`, with the centres first."""
    return pointnet2_ops.ball_query(radius, nsample, xyz, new_xyz)


def three_nn(unknown: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances and int32 indices (B, n, 3) of the points of (B, m, 3) nearest to each of (B, n, 3)."""
    index, squared = ops.knn(known, 3, query=unknown)
    return squared, index.int()


def gather_points_grad(grad_out: Tensor, idx: Tensor, n: int) -> Tensor:
    """The gradient (B, C, n) of the features of ``gather_points``, from that of its result (B, C, npoint)."""
    grad = torch.zeros(*grad_out.shape[:2], n, dtype=grad_out.dtype, device=grad_out.device)
    return grad.scatter_add_(2, idx.long()[:, None].expand_as(grad_out), grad_out)


def group_points_grad(grad_out: Tensor, idx: Tensor, n: int) -> Tensor:
    """The gradient (B, C, n) of the features of ``group_points``, from that of its result (B, C, npoint, nsample)."""
    return gather_points_grad(grad_out.flatten(2), idx.flatten(1), n)


def three_interpolate_grad(grad_out: Tensor, idx: Tensor, weight: Tensor, m: int) -> Tensor:
    """The gradient (B, C, m) of the features of ``three_interpolate``, from that of its result (B, C, n)."""
    return group_points_grad(grad_out[..., None] * weight[:, None], idx, m)
