"""Sparse convolution: which voxels each output voxel reads, and the convolution over them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pc3d.ops import reference_voxels
from pc3d.ops._checks import check_coords, check_int, check_tensor, values_are_readable
from pc3d.ops._library import define, fake, gradient

define(
    "kernel_map(Tensor coords, Tensor offsets, Tensor out_coords, Tensor out_offsets, int kernel_size, int stride, "
    "int low) -> (Tensor, Tensor)",
    reference_voxels.kernel_map,
)
define(
    "sparse_conv(Tensor features, Tensor weight, Tensor neighbors, Tensor reverse) -> Tensor",
    reference_voxels.sparse_conv,
)
define(
    "sparse_conv_weight_gradient(Tensor features, Tensor grad, Tensor neighbors, Tensor reverse) -> Tensor",
    reference_voxels.sparse_conv_weight_gradient,
)


@fake("kernel_map")
def _(
    coords: Tensor,
    offsets: Tensor,
    out_coords: Tensor,
    out_offsets: Tensor,
    kernel_size: int,
    stride: int,
    low: int,
) -> tuple[Tensor, Tensor]:
    taps = kernel_size**3
    return coords.new_empty((out_coords.shape[0], taps)), coords.new_empty((coords.shape[0], taps))


@fake("sparse_conv")
def _(features: Tensor, weight: Tensor, neighbors: Tensor, reverse: Tensor) -> Tensor:
    return features.new_empty((neighbors.shape[0], weight.shape[2]))


@fake("sparse_conv_weight_gradient")
def _(features: Tensor, grad: Tensor, neighbors: Tensor, reverse: Tensor) -> Tensor:
    return features.new_empty((neighbors.shape[1], features.shape[1], grad.shape[1]))


# Each operator's gradients are the two operators again: what a tap read, `reverse` says who read it.


def _conv_setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _conv_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    features, weight, neighbors, reverse = ctx.saved_tensors
    ops = torch.ops.pc3d
    grad_features = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_features = ops.sparse_conv(grad, weight.transpose(1, 2), reverse, neighbors)
    if ctx.needs_input_grad[1]:
        grad_weight = ops.sparse_conv_weight_gradient(features, grad, neighbors, reverse)
    return grad_features, grad_weight, None, None


def _weight_gradient_setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _weight_gradient_gradient(ctx: Any, for_weight: Tensor) -> tuple[Tensor | None, ...]:
    features, grad, neighbors, reverse = ctx.saved_tensors
    ops = torch.ops.pc3d
    for_features = ops.sparse_conv(grad, for_weight.transpose(1, 2), reverse, neighbors)
    return for_features, ops.sparse_conv(features, for_weight, neighbors, reverse), None, None


gradient("sparse_conv", _conv_setup, _conv_gradient)
gradient("sparse_conv_weight_gradient", _weight_gradient_setup, _weight_gradient_gradient)


class KernelMap(NamedTuple):
    """What a sparse convolution reads: N input voxels, M output voxels, K taps of the kernel."""

    neighbors: Tensor
    """(M, K) int32: the input row that tap k of an output voxel reads, or -1."""
    reverse: Tensor
    """(N, K) int32: the output row that reads an input voxel through tap k, or -1."""
    coords: Tensor
    """(M, 3) int32 coordinates of the output voxels, in units of the stride."""
    offsets: Tensor
    """(B + 1,) int64 offsets of the output voxels."""


def kernel_map(coords: Tensor, *, offsets: Tensor | None = None, kernel_size: int = 3, stride: int = 1) -> KernelMap:
    """Finds what every output voxel of a sparse convolution reads.

    * ``stride=1``, odd kernel: sub-manifold, the output voxels are the input voxels;
    * ``stride=kernel_size``: the output voxels are ``unique(floor(coords / stride))``, their windows do not overlap
      (``stride * out + 0 ... stride - 1``);
    * an odd kernel of at least ``2 * stride - 1``: the same output voxels, windows centred at ``stride * out``.

    So every input voxel is read at least once. Taps are numbered with x slowest:
    ``k = (ix * kernel_size + iy) * kernel_size + iz``; tap 0 is the lowest corner of the window.

    Args:
        coords: (N, 3) int32 voxel coordinates, each voxel of a cloud once. Any order is allowed; the order of
            :func:`pc3d.ops.voxelize` is fastest.
        offsets: (B + 1,) int64 offsets of the clouds; by default, one cloud.
        kernel_size: edge of the window in voxels.
        stride: edge of an output voxel in input voxels.

    Returns:
        The tables, for :func:`sparse_conv3d`; build them once for all layers of a level. Output voxels of a strided
        map are ordered by cloud, then lexicographically.

    Raises:
        TypeError: a wrong type of argument.
        ValueError: a wrong shape or value, a duplicate voxel, or a kernel that would skip voxels.

    Source:
        Graham et al., 3D Semantic Segmentation with Submanifold Sparse Convolutional Networks, 2018, section 3.
    """
    check_int(kernel_size, "kernel_size", 1, 31)
    check_int(stride, "stride", 1)
    centred = kernel_size % 2 == 1 and kernel_size >= 2 * stride - 1
    if kernel_size != stride and not centred:
        raise ValueError(
            f"kernel_size must equal stride, or be odd and at least 2 * stride - 1 = {2 * stride - 1}, so that every "
            f"voxel is read; got kernel_size {kernel_size} with stride {stride}"
        )
    coords, cuts = check_coords(coords, offsets)
    out_coords, out_cuts = coords, cuts
    if stride > 1:
        out_coords, out_cuts, *_ = torch.ops.pc3d.unique_voxels(coords, cuts, stride)
    low = 0 if kernel_size == stride else -(kernel_size // 2)
    neighbors, reverse = torch.ops.pc3d.kernel_map(coords, cuts, out_coords, out_cuts, kernel_size, stride, low)
    _check_unique(neighbors, reverse, kernel_size, stride)
    return KernelMap(neighbors, reverse, out_coords, out_cuts)


def _check_unique(neighbors: Tensor, reverse: Tensor, kernel_size: int, stride: int) -> None:
    """Refuses voxels that were there twice: nobody reads the second."""
    if not values_are_readable(neighbors, reverse) or reverse.shape[0] == 0:
        return
    if stride == 1:  # the centre of every voxel is itself
        own = torch.arange(reverse.shape[0], device=reverse.device, dtype=torch.int32)
        lost = reverse[:, kernel_size**3 // 2] != own
    else:
        lost = reverse.amax(1) < 0
    if bool(lost.any()):
        row = int(lost.nonzero()[0])
        raise ValueError(
            f"coords must hold every voxel of a cloud once, but row {row} is there twice; "
            "use voxelize_coords(coords, 1, offsets=offsets) first"
        )


def sparse_conv3d(
    features: Tensor,
    weight: Tensor,
    kernel_map: KernelMap,
    bias: Tensor | None = None,
    *,
    transposed: bool = False,
) -> Tensor:
    """Convolves features on voxels: ``out[m] = sum_k features[neighbors[m, k]] @ weight[k] + bias``.

    A cross-correlation, as in every deep-learning library. Half precision sums in float32. The gradients are
    deterministic: they use the reverse table, no atomics.

    Args:
        features: (N, C_in) of the map's input voxels, any floating type; ``transposed``: (M, C_in) of its outputs.
        weight: (K, C_in, C_out), K = kernel_size^3, taps with x slowest; of the type of the features (under autocast
            both are cast).
        kernel_map: from :func:`kernel_map`.
        bias: (C_out,).
        transposed: the transposed convolution, from the map's outputs back to its inputs:
            ``out[n] = sum_k features[reverse[n, k]] @ weight[k]``, the up-sampling of a decoder.

    Returns:
        (M, C_out); ``transposed``: (N, C_out).

    Raises:
        TypeError: a wrong type of argument.
        ValueError: shapes, types or devices that do not fit.
    """
    if not isinstance(kernel_map, KernelMap):
        raise TypeError(f"kernel_map must come from kernel_map(coords, ...), got {type(kernel_map).__name__}")
    check_tensor(features, "features")
    check_tensor(weight, "weight")
    features, weight = _autocast(features, weight)
    reads, read_by = kernel_map.neighbors, kernel_map.reverse
    if transposed:
        reads, read_by = read_by, reads
    _check_conv(features, weight, reads, read_by)
    out = torch.ops.pc3d.sparse_conv(features, weight, reads, read_by)
    if bias is None:
        return out  # type: ignore[no-any-return]
    check_tensor(bias, "bias")
    if bias.shape != weight.shape[2:]:
        raise ValueError(f"bias must have shape ({weight.shape[2]},), got {tuple(bias.shape)}")
    return out + bias.to(out.dtype)  # type: ignore[no-any-return]


def _autocast(features: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    device = features.device.type
    if torch.is_autocast_enabled(device) and torch.float64 not in (features.dtype, weight.dtype):
        dtype = torch.get_autocast_dtype(device)
        return features.to(dtype), weight.to(dtype)
    return features, weight


def _check_conv(features: Tensor, weight: Tensor, reads: Tensor, read_by: Tensor) -> None:
    if features.dim() != 2 or features.shape[0] != read_by.shape[0]:
        raise ValueError(
            f"features must have shape ({read_by.shape[0]}, C_in), a row for each voxel of the map, "
            f"got {tuple(features.shape)}"
        )
    if weight.dim() != 3 or weight.shape[0] != reads.shape[1] or weight.shape[1] != features.shape[1]:
        raise ValueError(
            f"weight must have shape ({reads.shape[1]}, {features.shape[1]}, C_out) to fit the map and the features, "
            f"got {tuple(weight.shape)}"
        )
    if weight.dtype != features.dtype:
        raise ValueError(f"weight is {weight.dtype}, features are {features.dtype}; cast one of them with .to()")
    for name, tensor in (("weight", weight), ("kernel_map", reads)):
        if tensor.device != features.device:
            raise ValueError(
                f"{name} is on {tensor.device}, features on {features.device}; move one of them with .to()"
            )
