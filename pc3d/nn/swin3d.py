"""Layers of Swin3D: window attention with signal tables, down-sampling, up-sampling (Yang et al., 2023).

Where paper and released code differ, these layers follow the code; docstrings state the differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pc3d.nn.init import init_token
from pc3d.nn.sparse import Signals, VoxelGrid, num_signals
from pc3d.ops import gather_max, interpolate, segment_reduce, voxel_neighbors, voxelize_coords
from pc3d.ops._checks import check_finite
from pc3d.ops.attention import Windows, window_attention, window_partition

BINS_PER_VOXEL = 4
BINS_PER_UNIT = 8
"""Table bins per unit of colour and normal, whose differences lie in (-2, 2)."""
DOWN_NEIGHBORS, UP_NEIGHBORS = 16, 3
_EQUAL = 1e-4
SIGNAL_DIVISOR = 1.001
"""Divisor of colours and normals that keeps their differences strictly within (-2, 2), the range of the tables."""


def signal_rows(window_size: int, signals: Signals) -> tuple[int, ...]:
    """Rows of the table of each scalar: 40 for x, y, z in windows of 5 voxels, 56 for 7; 32 for colour and normal."""
    position = 2 * window_size * BINS_PER_VOXEL
    return (position,) * 3 + (4 * BINS_PER_UNIT,) * (num_signals(signals) - 3)


class WindowContext(NamedTuple):
    """The input that attention in the windows of one level needs besides features.

    Attributes:
        windows: the voxels of each window.
        signals: ``(V, D)`` float32, position in the window, colour and normal of each voxel, in bins of the tables.
    """

    windows: Windows
    signals: Tensor


def window_context(grid: VoxelGrid, signals: Tensor, window_size: int, *, shifted: bool) -> WindowContext:
    """Compute the windows of a level and the signals of its voxels.

    Positions are in units of the grid, so a bin is a quarter of a voxel for any voxel size.

    Args:
        grid: the level, with coordinates in voxels of this level.
        signals: ``(V, 0)``, ``(V, 3)`` or ``(V, 6)`` colour and normal in (-1, 1).
        window_size: edge of a window in voxels.
        shifted: move the windows by half their edge along all axes. They do not wrap around: windows at a border are
            smaller.

    Raises:
        ValueError: a signal that is not finite.
    """
    shift = window_size // 2 if shifted else 0
    windows = window_partition(grid.coords, window_size, offsets=grid.offsets, shift=shift)
    position = torch.remainder(grid.coords.long() + shift, window_size) + grid.local
    signals = torch.cat([position * BINS_PER_VOXEL, signals * BINS_PER_UNIT], dim=1)
    check_finite(signals, "signals")
    return WindowContext(windows, signals)


class SignalAttention(nn.Module):
    """Attention in windows with contextual relative signal encoding (Swin3D, section 3.2; cRSE).

    The differences of position, colour and normal between a query and a key, divided into bins, select rows of three
    tables, whose sums are Tq, Tk and Tv: ``e_ij = q_i.k_j + q_i.Tq_ij + k_j.Tk_ij`` and
    ``o_i = sum_j softmax(e)_ij (v_j + Tv_ij)``. As in the released code, queries are scaled by ``d^-0.5`` first, so the
    term of the key is not scaled (the paper scales all three).

    Args:
        embed_dim: C.
        num_heads: H, each ``d = C / H`` wide.
        window_size: edge of a window in voxels.
        signals: the signals that have tables.

    Raises:
        ValueError: ``embed_dim`` is not a multiple of ``num_heads``.
    """

    def __init__(self, embed_dim: int, num_heads: int, window_size: int, signals: Signals) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"channels must be a multiple of num_heads, got channels={embed_dim}, {num_heads} heads")
        self.num_heads, self.head_dim = num_heads, embed_dim // num_heads
        self.axis_rows = signal_rows(window_size, signals)
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.projection = nn.Linear(embed_dim, embed_dim)
        shape = (sum(self.axis_rows), num_heads, self.head_dim)
        self.query_table = nn.Parameter(init_token(torch.empty(shape)))
        self.key_table = nn.Parameter(init_token(torch.empty(shape)))
        self.value_table = nn.Parameter(init_token(torch.empty(shape)))

    def forward(self, features: Tensor, context: WindowContext) -> Tensor:
        """Map ``(V, C)`` to ``(V, C)``."""
        qkv = self.qkv(features).view(features.shape[0], 3, self.num_heads, self.head_dim)
        query, key, value = qkv.unbind(1)
        mixed = window_attention(
            query * self.head_dim**-0.5,
            key,
            value,
            context.signals,
            context.windows,
            self.query_table,
            self.key_table,
            self.value_table,
            self.axis_rows,
            check_values=False,  # window_context has checked them for all layers of the level
        )
        result: Tensor = self.projection(mixed.flatten(1))
        return result


class SwinBlock(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``.

    Args:
        embed_dim: C.
        num_heads: attention heads.
        window_size: edge of a window in voxels.
        signals: the signals that have tables.
        drop_path: probability of dropping a residual branch, drawn separately for each voxel and branch.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, window_size: int, signals: Signals, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(embed_dim)
        self.attention = SignalAttention(embed_dim, num_heads, window_size, signals)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.mlp = nn.Sequential(nn.Linear(embed_dim, 4 * embed_dim), nn.GELU(), nn.Linear(4 * embed_dim, embed_dim))

    def forward(self, features: Tensor, context: WindowContext) -> Tensor:
        """Map ``(V, C)`` to ``(V, C)``."""
        features = features + self._thin(self.attention(self.norm1(features), context))
        return features + self._thin(self.mlp(self.norm2(features)))

    def _thin(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return branch
        keep = 1.0 - self.drop_path
        kept = torch.rand(branch.shape[0], 1, device=branch.device) < keep
        return branch * (kept / keep).to(branch.dtype)


class Coarser(NamedTuple):
    """The next level of a grid.

    Attributes:
        grid: its voxels; ``point`` is the row of the representative voxel in the finer level.
        signals: ``(V', D - 3)`` colour and normal of the representatives.
        parent: ``(V,)`` int64, row of the voxel of this level that contains each finer voxel.
    """

    grid: VoxelGrid
    signals: Tensor
    parent: Tensor


@torch.no_grad()
def coarsen(grid: VoxelGrid, signals: Tensor, factor: int, stride: int) -> Coarser:
    """Merge blocks of ``factor`` x ``factor`` x ``factor`` voxels; one child represents each block.

    It is the child whose vector of position (in voxels of the finest level), colour and normal is nearest to the mean
    over the children, and the first of equally near ones. This follows the released code; the paper takes the child
    nearest to the centre. Two children are always equally near, so distances that differ by rounding count as equal.

    Args:
        grid: the finer level.
        signals: ``(V, D - 3)`` colour and normal of its voxels.
        factor: number of children along an axis.
        stride: edge of a voxel of the finer level in voxels of the finest.
    """
    coords, offsets, parent, _, _ = voxelize_coords(grid.coords, factor, offsets=grid.offsets)
    inside = (grid.coords.long() - coords.long()[parent] * factor) + grid.local
    described = torch.cat([inside * stride, signals], dim=1)
    mean = segment_reduce(described, parent, coords.shape[0], "mean")
    distance = (described - mean[parent]).square().sum(1)
    nearest = distance.new_zeros(coords.shape[0]).scatter_reduce(0, parent, distance, "amin", include_self=False)
    rows = torch.arange(parent.shape[0], device=parent.device)
    candidate = torch.where(distance <= nearest[parent] * (1 + _EQUAL), rows, parent.shape[0])
    child = parent.new_zeros(coords.shape[0]).scatter_reduce(0, parent, candidate, "amin", include_self=False)
    return Coarser(VoxelGrid(coords, offsets, inside[child] / factor, child), signals[child], parent)


class DownSample(nn.Module):
    """Layer norm and a linear layer on fine voxels, then the maximum over the 16 nearest to each coarse voxel.

    The published order (gather, norm, linear, maximum) gives the same result, because norm and linear layer act on each
    row separately.

    Args:
        in_channels: width of the finer level.
        out_channels: width of the coarser one.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_channels)
        self.linear = nn.Linear(in_channels, out_channels, bias=False)

    def forward(self, features: Tensor, neighbors: Tensor) -> Tensor:
        """Map ``(V, in_channels)`` to ``(V', out_channels)``, given the rows ``(V', 16)`` of :func:`down_neighbors`."""
        return gather_max(self.linear(self.norm(features)), neighbors)


@torch.no_grad()
def down_neighbors(fine: Tensor, coarse: Tensor, fine_offsets: Tensor, coarse_offsets: Tensor) -> Tensor:
    """Rows ``(V', 16)`` of the fine voxels nearest to each coarse one, from positions ``(V, 3)`` and ``(V', 3)``.

    They may lie outside of the coarse voxel. In scenes of fewer than 16 voxels, the nearest is repeated.
    """
    found = voxel_neighbors(fine, DOWN_NEIGHBORS, query=coarse, offsets=fine_offsets, query_offsets=coarse_offsets)
    return found.index


class UpSample(nn.Module):
    """Up-sampling to the finer level: interpolated coarse features plus a skip connection.

    Layer norm and a linear layer are applied to both. Interpolation uses the 3 nearest coarse voxels, weighted by
    inverse distance.

    Args:
        coarse_channels: width of the coarser level.
        fine_channels: width of the finer level and of the result.
        block: attention in the (unshifted) windows of the finer level, or None.
    """

    def __init__(self, coarse_channels: int, fine_channels: int, block: SwinBlock | None = None) -> None:
        super().__init__()
        self.skip = nn.Sequential(nn.LayerNorm(fine_channels), nn.Linear(fine_channels, fine_channels))
        self.coarse = nn.Sequential(nn.LayerNorm(coarse_channels), nn.Linear(coarse_channels, fine_channels))
        self.block = block

    def forward(self, coarse: Tensor, skip: Tensor, positions: Sequence[Tensor], offsets: Sequence[Tensor]) -> Tensor:
        """Join two levels. The caller applies the block, if there is one.

        Args:
            coarse: ``(V', C')`` features of the coarser level.
            skip: ``(V, C)`` features of the finer level.
            positions: positions of the coarse and of the fine voxels, ``(V', 3)`` and ``(V, 3)``.
            offsets: offsets of the coarse and of the fine voxels.

        Returns:
            ``(V, C)``.
        """
        carried = interpolate(
            self.coarse(coarse),
            positions[0],
            positions[1],
            k=UP_NEIGHBORS,
            power=1,
            clamp=True,
            offsets=offsets[0],
            query_offsets=offsets[1],
        )
        result: Tensor = self.skip(skip) + carried
        return result
