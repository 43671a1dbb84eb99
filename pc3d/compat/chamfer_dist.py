"""The classes of the ``chamfer_dist`` extension of the Point-MAE family."""

from __future__ import annotations

from torch import Tensor, nn

from pc3d import ops


class ChamferDistanceL2(nn.Module):
    """``mean d1 + mean d2`` of squared distances, over (B, N, 3) and (B, M, 3)."""

    def forward(self, xyz1: Tensor, xyz2: Tensor) -> Tensor:
        """A scalar."""
        return ops.chamfer_distance(xyz1, xyz2, kind="l2")


class ChamferDistanceL1(nn.Module):
    """``(mean sqrt d1 + mean sqrt d2) / 2``, over (B, N, 3) and (B, M, 3)."""

    def forward(self, xyz1: Tensor, xyz2: Tensor) -> Tensor:
        """A scalar."""
        return ops.chamfer_distance(xyz1, xyz2, kind="l1")
