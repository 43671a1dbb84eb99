"""The functions of ``pointnet2_ops.pointnet2_utils``: channels first, int32 indices, dense clouds only."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from pc3d import ops

pointnet2_utils = sys.modules[__name__]  # `from pointnet2_ops import pointnet2_utils`


def furthest_point_sample(xyz: Tensor, npoint: int) -> Tensor:
    """(B, N, 3) points to (B, npoint) int32 indices, from index 0; ignores points near the origin, as the original."""
    return ops.farthest_point_sample(xyz, npoint, ignore_near_origin=True).int()


def gather_operation(features: Tensor, idx: Tensor) -> Tensor:
    """Gather (B, C, N) features at (B, npoint) indices: (B, C, npoint)."""
    return ops.gather(features.transpose(1, 2), idx.long()).transpose(1, 2).contiguous()


def grouping_operation(features: Tensor, idx: Tensor) -> Tensor:
    """Gather (B, C, N) features at (B, npoint, nsample) indices: (B, C, npoint, nsample)."""
    return ops.gather(features.transpose(1, 2), idx.long()).permute(0, 3, 1, 2).contiguous()


def three_nn(unknown: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """The three points of ``known`` (B, m, 3) nearest to each of ``unknown`` (B, n, 3).

    Returns distances (not squared) and int32 indices, both (B, n, 3); no gradient.
    """
    index, squared = ops.knn(known.detach(), 3, query=unknown.detach())
    return squared.sqrt(), index.int()


def three_interpolate(features: Tensor, idx: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums (B, C, n) of (B, C, m) features, with (B, n, 3) indices and weights."""
    rows = ops.gather(features.transpose(1, 2), idx.long())
    return (rows * weight[..., None]).sum(2).transpose(1, 2).contiguous()


def ball_query(radius: float, nsample: int, xyz: Tensor, new_xyz: Tensor) -> Tensor:
    """(B, N, 3) points around (B, npoint, 3) centres: (B, npoint, nsample) int32 indices, all 0 for an empty ball."""
    return ops.ball_query(xyz, radius, nsample, query=new_xyz).index.clamp(min=0).int()


class QueryAndGroup(nn.Module):
    """Ball query and grouping; coordinates relative to the centre come before the features."""

    def __init__(self, radius: float, nsample: int, use_xyz: bool = True) -> None:
        super().__init__()
        self.radius, self.nsample, self.use_xyz = radius, nsample, use_xyz

    def forward(self, xyz: Tensor, new_xyz: Tensor, features: Tensor | None = None) -> Tensor:
        """Points (B, N, 3), centres (B, npoint, 3) and features (B, C, N) to groups (B, 3 + C, npoint, nsample)."""
        idx = ball_query(self.radius, self.nsample, xyz, new_xyz)
        grouped = grouping_operation(xyz.transpose(1, 2), idx) - new_xyz.transpose(1, 2)[..., None]
        if features is None:
            if not self.use_xyz:
                raise ValueError("features is None and use_xyz is False: nothing is left to group")
            return grouped
        grouped_features = grouping_operation(features, idx)
        return torch.cat([grouped, grouped_features], dim=1) if self.use_xyz else grouped_features


class GroupAll(nn.Module):
    """The whole cloud as one group."""

    def __init__(self, use_xyz: bool = True) -> None:
        super().__init__()
        self.use_xyz = use_xyz

    def forward(self, xyz: Tensor, new_xyz: Tensor | None, features: Tensor | None = None) -> Tensor:
        """Points (B, N, 3) and features (B, C, N) to one group (B, 3 + C, 1, N); ``new_xyz`` is not used."""
        grouped = xyz.transpose(1, 2).unsqueeze(2)
        if features is None:
            return grouped
        return torch.cat([grouped, features.unsqueeze(2)], dim=1) if self.use_xyz else features.unsqueeze(2)
