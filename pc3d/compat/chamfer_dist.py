"""The classes of the ``chamfer_dist`` extension of the Point-MAE family."""

from __future__ import annotations

from torch import Tensor, nn

from pc3d import ops


class _ChamferDistance(nn.Module):
    """``ignore_zeros`` drops points whose coordinates sum to 0 (padding) from a batch of one cloud, as the original."""

    def __init__(self, ignore_zeros: bool = False) -> None:
        super().__init__()
        self.ignore_zeros = ignore_zeros

    def _without_zeros(self, xyz1: Tensor, xyz2: Tensor) -> tuple[Tensor, Tensor]:
        if xyz1.shape[0] != 1 or not self.ignore_zeros:
            return xyz1, xyz2
        return xyz1[:, xyz1[0].sum(1) != 0], xyz2[:, xyz2[0].sum(1) != 0]


class ChamferDistanceL2(_ChamferDistance):
    """``mean d1 + mean d2`` of squared distances, over (B, N, 3) and (B, M, 3)."""

    def forward(self, xyz1: Tensor, xyz2: Tensor) -> Tensor:
        """A scalar."""
        return ops.chamfer_distance(*self._without_zeros(xyz1, xyz2), kind="l2")


class ChamferDistanceL2_split(_ChamferDistance):
    """``mean d1`` and ``mean d2`` of squared distances, separately."""

    def forward(self, xyz1: Tensor, xyz2: Tensor) -> tuple[Tensor, Tensor]:
        """Two scalars."""
        xyz1, xyz2 = self._without_zeros(xyz1, xyz2)
        there = ops.knn(xyz2, 1, query=xyz1).squared_distance.mean()
        return there, ops.knn(xyz1, 1, query=xyz2).squared_distance.mean()


class ChamferDistanceL1(_ChamferDistance):
    """``(mean sqrt d1 + mean sqrt d2) / 2``, over (B, N, 3) and (B, M, 3)."""

    def forward(self, xyz1: Tensor, xyz2: Tensor) -> Tensor:
        """A scalar."""
        return ops.chamfer_distance(*self._without_zeros(xyz1, xyz2), kind="l1")
