"""Voxels of packed scenes, and convolutions on the occupied ones."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from pc3d.nn.batch_norm import GlobalBatchNorm
from pc3d.nn.spconv_backend import import_spconv, spconv_conv3d
from pc3d.ops import KernelMap, sparse_conv3d, voxelize

Module = TypeVar("Module", bound=nn.Module)
Signals = Literal["xyz", "xyz_rgb", "xyz_rgb_normal"]
"""Input signals of a voxel network: position in the voxel, colour, normal."""
SIGNALS: tuple[str, ...] = ("xyz", "xyz_rgb", "xyz_rgb_normal")
"""All values of :data:`Signals`, in ascending number of scalars."""


def num_signals(signals: Signals) -> int:
    """Number of scalars per voxel: 3, 6 or 9."""
    return 3 * (SIGNALS.index(signals) + 1)


class VoxelGrid(NamedTuple):
    """The occupied voxels of packed scenes, each with one representative point.

    Voxels are ordered by scene, then by their integer coordinates (x, y, z).

    Attributes:
        coords: ``(V, 3)`` int32, voxel ``floor(xyz / edge)``.
        offsets: ``(B + 1,)`` int64; the voxels of scene ``b`` are rows ``offsets[b]:offsets[b + 1]``.
        local: ``(V, 3)`` float32, position of the representative point in its voxel, 0 to 1 from the lower corner.
        point: ``(V,)`` int64, row of the representative point.
    """

    coords: Tensor
    offsets: Tensor
    local: Tensor
    point: Tensor

    def position(self) -> Tensor:
        """Positions ``(V, 3)`` float32 of the representative points, in voxels from the first voxel of their scene.

        Scenes far from the origin, such as those in map coordinates, keep their precision.
        """
        coords = self.coords.long()
        first = self.offsets[scene_of_rows(self.offsets, coords.shape[0])]
        return (coords - coords[first]).to(self.local.dtype) + self.local


def scene_of_rows(offsets: Tensor, num_rows: int) -> Tensor:
    """The scene ``(num_rows,)`` int64 that each packed row belongs to."""
    scenes = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    return torch.repeat_interleave(scenes, offsets.diff(), output_size=num_rows)


def voxel_grid(
    xyz: Tensor, voxel_size: float, offsets: Tensor, *, random_point: bool = False
) -> tuple[VoxelGrid, Tensor]:
    """Divide packed scenes into voxels.

    Args:
        xyz: ``(N, 3)``, in the units of ``voxel_size``.
        voxel_size: edge of a voxel.
        offsets: ``(B + 1,)`` int64.
        random_point: represent each voxel by a random point, drawn from PyTorch's default generator, instead of its
            first point. Swin3D trains with random points and evaluates with fixed ones.

    Returns:
        The grid, and the voxel of each point ``(N,)`` int64.

    Raises:
        ValueError: as :func:`pc3d.ops.voxelize`.
    """
    coords, voxel_offsets, inverse, point, _ = voxelize(xyz, voxel_size, offsets=offsets)
    if random_point and coords.shape[0] < xyz.shape[0]:
        point = _random_member(inverse, coords.shape[0])
    wide = xyz if xyz.dtype == torch.float64 else xyz.float()
    # By rounding, a point may lie slightly outside of its voxel if the voxel size is not a power of two.
    local = (wide[point] / voxel_size - coords.to(wide.dtype)).clamp_(0.0, 1.0).float()
    return VoxelGrid(coords, voxel_offsets, local, point), inverse


def _random_member(group: Tensor, num_groups: int) -> Tensor:
    """A uniformly random row of each group: the first one in a random order."""
    order = torch.randperm(len(group), device=group.device)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(group), device=group.device)
    best = rank.new_zeros(num_groups).scatter_reduce(0, group, rank, "amin", include_self=False)
    return order[best]


class SparseConv3d(nn.Module):
    """A convolution over occupied voxels only.

    Cross-correlation: ``out[p] = sum_k in[stride * p + offset_k] @ weight[k]``, with the offsets of
    :func:`pc3d.ops.kernel_map` (x slowest) and absent voxels as zeros.

    Args:
        in_channels: width of the input features.
        out_channels: width of the output features.
        kernel_size: K, edge of the kernel in voxels.
        transposed: apply a strided kernel map in reverse, from its outputs to its inputs.
        bias: add a learned bias.

    Attributes:
        backend: the kernels that compute: ``"pc3d"``, or ``"spconv"`` after :func:`use_spconv`. It is not stored with
            the weights: a loaded network uses pc3d's kernels.
    """

    backend: Literal["pc3d", "spconv"] = "pc3d"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        transposed: bool = False,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.transposed = transposed
        self.weight = nn.Parameter(torch.empty(kernel_size**3, in_channels, out_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set weights uniform within ``1 / sqrt(K^3 in_channels)``, and biases to 0."""
        bound = 1.0 / math.sqrt(self.weight.shape[0] * self.weight.shape[1])
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, features: Tensor, kernel_map: KernelMap) -> Tensor:
        """Map ``(N, in_channels)`` on the input voxels of the kernel map to ``(M, out_channels)`` on its output voxels;
        in reverse if transposed."""
        features = features.to(self.weight.dtype)
        convolve = spconv_conv3d if self.backend == "spconv" else sparse_conv3d
        return convolve(features, self.weight, kernel_map, self.bias, transposed=self.transposed)


def use_spconv(module: Module) -> Module:
    """Use spconv's kernels for all sparse convolutions of a network, see :func:`pc3d.nn.spconv_conv3d`.

    Args:
        module: a network with :class:`SparseConv3d` layers, such as :class:`pc3d.models.SparseUNet`.

    Returns:
        The network itself.

    Raises:
        MissingExtraError: spconv is not installed.
        ValueError: the network has no sparse convolution.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, SparseConv3d)]
    if not layers:
        raise ValueError(f"module has no SparseConv3d layer that could run on spconv: {type(module).__name__}")
    import_spconv()
    for layer in layers:
        layer.backend = "spconv"
    return module


class ConvNormReLU(nn.Module):
    """:class:`SparseConv3d` without bias, batch norm over all voxels of the batch, ReLU.

    Args:
        in_channels: width of the input features.
        out_channels: width of the output features.
        kernel_size: edge of the kernel in voxels.
        transposed: as in :class:`SparseConv3d`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, *, transposed: bool = False) -> None:
        super().__init__()
        self.conv = SparseConv3d(in_channels, out_channels, kernel_size, transposed=transposed)
        self.norm = GlobalBatchNorm(out_channels)

    def forward(self, features: Tensor, kernel_map: KernelMap) -> Tensor:
        """Map ``(N, in_channels)`` to ``(M, out_channels)``."""
        return torch.relu(self.norm(self.conv(features, kernel_map)))


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with a shortcut: ``relu(shortcut(x) + bn(conv(relu(bn(conv(x))))))``.

    Args:
        in_channels: width of the input features.
        out_channels: width of the output features. If it differs from ``in_channels``, the shortcut is a linear layer
            and batch norm.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = ConvNormReLU(in_channels, out_channels)
        self.conv = SparseConv3d(out_channels, out_channels)
        self.norm = GlobalBatchNorm(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Linear(in_channels, out_channels, bias=False), GlobalBatchNorm(out_channels)
            )

    def forward(self, features: Tensor, kernel_map: KernelMap) -> Tensor:
        """Map ``(N, in_channels)`` to ``(N, out_channels)``; the kernel map has stride 1."""
        changed = self.norm(self.conv(self.first(features, kernel_map), kernel_map))
        return torch.relu(changed + self.shortcut(features))
