"""The class of ``knn_cuda``."""

from __future__ import annotations

from torch import Tensor, nn

from pc3d import ops


class KNN(nn.Module):
    """The k nearest reference points of every query: distances (not squared) and indices, nearest first.

    Args:
        k: number of neighbours, at most 128.
        transpose_mode: if True, points are (B, N, 3) and results (B, M, k); if False, (B, 3, N) and (B, k, M).
    """

    def __init__(self, k: int, transpose_mode: bool = False) -> None:
        super().__init__()
        self.k, self.transpose_mode = k, transpose_mode

    def forward(self, ref: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Find the neighbours of ``query`` in ``ref``; no gradient, as in the original."""
        if not self.transpose_mode:
            ref, query = ref.transpose(1, 2), query.transpose(1, 2)
        index, squared = ops.knn(ref.detach(), self.k, query=query.detach())
        distance = squared.sqrt()
        if self.transpose_mode:
            return distance, index
        return distance.transpose(1, 2).contiguous(), index.transpose(1, 2).contiguous()  # callers use .view on them
