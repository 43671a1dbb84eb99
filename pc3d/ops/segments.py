"""Reductions over groups of rows: segments of any length, and the maximum over gathered rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pc3d.ops import reference_voxels
from pc3d.ops._checks import check_int, check_tensor, values_are_readable
from pc3d.ops._library import define, fake, gradient

define("gather_max(Tensor features, Tensor index) -> (Tensor, Tensor)", reference_voxels.gather_max)
define(
    "segment_max(Tensor values, Tensor index, SymInt num_segments) -> (Tensor, Tensor)",
    reference_voxels.segment_max,
)
define(
    "max_gradient(Tensor grad, Tensor source, SymInt num_rows, bool deterministic) -> Tensor",
    reference_voxels.max_gradient,
)

REDUCTIONS = ("mean", "sum", "max", "first")


@fake("gather_max")
def _(features: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    shape = (index.shape[0], features.shape[1])
    return features.new_empty(shape), index.new_empty(shape)


@fake("segment_max")
def _(values: Tensor, index: Tensor, num_segments: int) -> tuple[Tensor, Tensor]:
    shape = (num_segments, values.shape[1])
    return values.new_empty(shape), index.new_empty(shape)


@fake("max_gradient")
def _(grad: Tensor, source: Tensor, num_rows: int, deterministic: bool) -> Tensor:
    return grad.new_empty((num_rows, grad.shape[1]))


def _max_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.num_rows = inputs[0].shape[0]
    ctx.num_inputs = len(inputs)
    ctx.mark_non_differentiable(output[1])


def _max_gradient(ctx: Any, grad: Tensor, _grad_source: Tensor) -> tuple[Tensor | None, ...]:
    (source,) = ctx.saved_tensors
    deterministic = torch.are_deterministic_algorithms_enabled()
    grad_rows = torch.ops.pc3d.max_gradient(grad, source, ctx.num_rows, deterministic)
    return grad_rows, *[None] * (ctx.num_inputs - 1)


def _max_gradient_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _max_gradient_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (source,) = ctx.saved_tensors
    if grad.shape[0] == 0:
        return grad.new_zeros(source.shape), None, None, None
    return grad.gather(0, source.clamp(min=0)).masked_fill(source < 0, 0), None, None, None


gradient("gather_max", _max_setup, _max_gradient)
gradient("segment_max", _max_setup, _max_gradient)
gradient("max_gradient", _max_gradient_setup, _max_gradient_gradient)


def gather_max(features: Tensor, index: Tensor) -> Tensor:
    """The maximum over gathered rows, channel by channel, without the gathered (M, k, C) tensor.

    Args:
        features: (N, C), any floating type.
        index: (M, k) int64 rows of ``features``; -1 slots are ignored, and a row of only -1 gives zeros.

    Returns:
        (M, C), ``max_j features[index[m, j]]``. The gradient goes to the first slot that attains the maximum; it is
        deterministic on the CPU, and on CUDA under ``torch.use_deterministic_algorithms(True)``.

    Raises:
        TypeError: a wrong type of argument.
        ValueError: shapes that do not fit, or an index outside of [-1, N).
    """
    _check_values(features, "features")
    index = _check_index(index, 2, "(M, k)", features, -1, features.shape[0])
    return torch.ops.pc3d.gather_max(features, index)[0]  # type: ignore[no-any-return]


def segment_reduce(values: Tensor, index: Tensor, num_segments: int, reduction: str = "mean") -> Tensor:
    """Reduces the rows that share a segment, e.g. the points of every voxel.

    Deterministic on every device, forward and backward. Half precision sums in float32.

    Args:
        values: (N, C), any floating type.
        index: (N,) int64, the segment of every row, in any order, e.g. ``voxelize(...).inverse``.
        num_segments: segments S; those without a row give zeros.
        reduction: ``"mean"``, ``"sum"``, ``"max"`` (of equals, the gradient goes to the lowest row) or ``"first"``
            (the lowest row).

    Returns:
        (S, C), of the type of the values.

    Raises:
        TypeError: a wrong type of argument.
        ValueError: shapes that do not fit, an index outside of [0, S), or an unknown reduction.
    """
    _check_values(values, "values")
    check_int(num_segments, "num_segments", 0)
    index = _check_index(index, 1, "(N,)", values, 0, num_segments)
    if index.shape[0] != values.shape[0]:
        raise ValueError(f"index must have shape ({values.shape[0]},) to fit values, got {tuple(index.shape)}")
    ops = torch.ops.pc3d
    if reduction == "max":
        return ops.segment_max(values, index, num_segments)[0]  # type: ignore[no-any-return]
    if reduction == "sum":
        return ops.gather_backward(values, index, num_segments, True)  # type: ignore[no-any-return]
    if reduction == "mean":
        # A half sum may overflow where the mean does not.
        wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
        count = index.new_zeros(num_segments).index_add(0, index, torch.ones_like(index)).clamp(min=1)
        total = ops.gather_backward(wide, index, num_segments, True)
        return (total / count[:, None]).to(values.dtype)  # type: ignore[no-any-return]
    if reduction == "first":
        n = values.shape[0]
        rows = torch.arange(n, device=index.device)
        first = index.new_full((num_segments,), n).scatter_reduce(0, index, rows, "amin")
        return ops.gather(values, first.masked_fill(first == n, -1))  # type: ignore[no-any-return]
    raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")


def _check_values(values: object, name: str) -> None:
    if (tensor := check_tensor(values, name)).dim() != 2:
        raise ValueError(f"{name} must have shape (N, C), got {tuple(tensor.shape)}")


def _check_index(index: object, dim: int, shape: str, values: Tensor, low: int, high: int) -> Tensor:
    index = check_tensor(index, "index", (torch.int64,))
    if index.dim() != dim:
        raise ValueError(f"index must have shape {shape}, got {tuple(index.shape)}")
    if index.device != values.device:
        raise ValueError(f"index is on {index.device}, the rows are on {values.device}; move one of them with .to()")
    if values_are_readable(index) and index.numel() > 0:
        lowest, highest = torch.stack(index.aminmax()).tolist()  # at once, as in check_offsets
        if lowest < low or highest >= high:
            raise ValueError(f"index must lie in [{low}, {high}), found {lowest} to {highest}")
    return index
