"""The function of ``dgl.geometry`` that repositories for point clouds call."""

from __future__ import annotations

from torch import Tensor

from pc3d import ops


def farthest_point_sampler(pos: Tensor, npoints: int, start_idx: int | None = None) -> Tensor:
    """(B, N, 3) points to (B, npoints) int64 indices, from ``start_idx`` on, or from a random point of each cloud."""
    if pos.dim() != 3 or pos.shape[2] != 3:
        raise ValueError(
            f"farthest_point_sampler takes points (B, N, 3), got shape {tuple(pos.shape)}; for features of other "
            "widths install dgl"
        )
    return ops.farthest_point_sample(pos.detach(), npoints, start="random" if start_idx is None else start_idx)
