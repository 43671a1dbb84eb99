"""The compiled module ``pointops_cuda`` of Point Transformer, MaskPoint and OpenPoints: packed clouds, int32 rows.

Results are written into the last arguments. ``offset`` (B,) holds the end of every cloud. The sizes of the tensors come
first; they are ignored. PointWeb's module of the same name, for dense clouds, has other arguments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pc3d import ops
from pc3d.compat.pointops import _with_zero, farthest_point_sampling, offset2batch
from pc3d.ops.voxels import clamped_knn

_NOTHING = 1e10
"""Squared distance of a missing neighbour: the initial value in the kernel."""


def furthestsampling_cuda(
    b: int, n_max: int, xyz: Tensor, offset: Tensor, new_offset: Tensor, tmp: Tensor, idx: Tensor
) -> None:
    """Rows of farthest points of (N, 3), from the first point of each cloud on; ``new_offset`` sets their numbers."""
    idx.copy_(farthest_point_sampling(xyz, offset, new_offset))


def knnquery_cuda(
    m: int,
    nsample: int,
    xyz: Tensor,
    new_xyz: Tensor,
    offset: Tensor,
    new_offset: Tensor,
    idx: Tensor,
    dist2: Tensor,
) -> None:
    """Rows and squared distances (m, nsample) of the points of (N, 3) nearest to each of (m, 3).

    If a cloud has fewer points, the remaining slots have the row of its first point and distance 1e10.
    """
    if not isinstance(xyz, Tensor):
        raise TypeError(
            f"knnquery_cuda takes packed points (N, 3) and the ends of clouds, as Point Transformer's module does; got "
            f"{xyz!r} as xyz. If the caller is made for PointWeb's module, which takes dense clouds (B, N, 3), call "
            "pc3d.ops.knn there"
        )
    begins = _with_zero(offset)
    (index, squared), own = clamped_knn(xyz, nsample, new_xyz, begins, _with_zero(new_offset))
    if own is not None:
        first = begins[offset2batch(new_offset)][:, None]
        index, squared = index.where(own, first), squared.masked_fill(~own, _NOTHING)
    idx.copy_(index)
    dist2.copy_(squared)


def ballquery_cuda(
    m: int, radius: float, nsample: int, xyz: Tensor, new_xyz: Tensor, offset: Tensor, new_offset: Tensor, idx: Tensor
) -> None:
    """Rows (m, nsample) of the points closer than ``radius`` to each of (m, 3); those of empty balls are unchanged."""
    found = ops.ball_query(
        xyz, radius, nsample, query=new_xyz, offsets=_with_zero(offset), query_offsets=_with_zero(new_offset)
    )
    idx.copy_(found.index.where(found.index >= 0, idx.long()))


def grouping_forward_cuda(m: int, nsample: int, c: int, input: Tensor, idx: Tensor, output: Tensor) -> None:
    """Gather (N, C) features at (m, nsample) rows: (m, nsample, C)."""
    output.copy_(input[idx.long()])


def _add_to_rows(rows: Tensor, idx: Tensor, values: Tensor) -> None:
    rows.index_add_(0, idx.flatten().long(), values.flatten(0, 1))


def grouping_backward_cuda(m: int, nsample: int, c: int, grad_output: Tensor, idx: Tensor, grad_input: Tensor) -> None:
    """Add to the gradient (N, C) of the features of :func:`grouping_forward_cuda`."""
    _add_to_rows(grad_input, idx, grad_output)


def interpolation_forward_cuda(
    n: int, c: int, k: int, input: Tensor, idx: Tensor, weight: Tensor, output: Tensor
) -> None:
    """Add weighted sums of (M, C) features to (n, C), with (n, k) rows and weights."""
    output.add_((input[idx.long()] * weight[..., None]).sum(1))


def interpolation_backward_cuda(
    n: int, c: int, k: int, grad_output: Tensor, idx: Tensor, weight: Tensor, grad_input: Tensor
) -> None:
    """Add to the gradient (M, C) of the features of :func:`interpolation_forward_cuda`."""
    _add_to_rows(grad_input, idx, grad_output[:, None] * weight[..., None])


def subtraction_forward_cuda(
    n: int, nsample: int, c: int, input1: Tensor, input2: Tensor, idx: Tensor, output: Tensor
) -> None:
    """Features (n, C) minus those of (n, nsample) rows of ``input2``: (n, nsample, C)."""
    output.copy_(input1[:, None] - input2[idx.long()])


def subtraction_backward_cuda(
    n: int, nsample: int, c: int, idx: Tensor, grad_output: Tensor, grad_input1: Tensor, grad_input2: Tensor
) -> None:
    """Add to the gradients of both inputs of :func:`subtraction_forward_cuda`."""
    grad_input1.add_(grad_output.sum(1))
    _add_to_rows(grad_input2, idx, -grad_output)


def _of_each_channel(weight: Tensor, c: int) -> Tensor:
    """(n, nsample, w_c) weights, repeated over C channels: channel i uses weight i modulo w_c."""
    return weight[..., torch.arange(c, device=weight.device) % weight.shape[-1]]


def aggregation_forward_cuda(
    n: int,
    nsample: int,
    c: int,
    w_c: int,
    input: Tensor,
    position: Tensor,
    weight: Tensor,
    idx: Tensor,
    output: Tensor,
) -> None:
    """Add weighted sums over (n, nsample) rows of features plus ``position`` (n, nsample, C) to (n, C)."""
    output.add_(((input[idx.long()] + position) * _of_each_channel(weight, c)).sum(1))


def aggregation_backward_cuda(
    n: int,
    nsample: int,
    c: int,
    w_c: int,
    input: Tensor,
    position: Tensor,
    weight: Tensor,
    idx: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_position: Tensor,
    grad_weight: Tensor,
) -> None:
    """Add to the gradients of the features and weights of :func:`aggregation_forward_cuda`; set that of positions."""
    spread = grad_output[:, None] * _of_each_channel(weight, c)
    grad_position.copy_(spread)
    _add_to_rows(grad_input, idx, spread)
    by_channel = grad_output[:, None] * (input[idx.long()] + position)
    grad_weight.index_add_(2, torch.arange(c, device=weight.device) % w_c, by_channel)
