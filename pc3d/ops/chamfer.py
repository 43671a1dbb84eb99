"""Chamfer distance between point sets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pc3d.ops import reference
from pc3d.ops._checks import Packed, check_same_clouds, lengths, pack, values_are_readable
from pc3d.ops._library import define, fake, gradient
from pc3d.ops.gathering import scatter_rows

define(
    "nearest_both_ways(Tensor x, Tensor x_offsets, Tensor y, Tensor y_offsets) -> (Tensor, Tensor, Tensor, Tensor)",
    reference.nearest_both_ways,
)


@fake("nearest_both_ways")
def _(x: Tensor, x_offsets: Tensor, y: Tensor, y_offsets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, m = x.shape[0], y.shape[0]
    return (
        x.new_empty((n,)),
        x.new_empty((n,), dtype=torch.int64),
        y.new_empty((m,)),
        y.new_empty((m,), dtype=torch.int64),
    )


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    x, _, y, _ = inputs
    ctx.save_for_backward(x, y, output[1], output[3])
    ctx.mark_non_differentiable(output[1], output[3])


def _backward(ctx: Any, grad_x: Tensor, _i: Tensor, grad_y: Tensor, _j: Tensor) -> tuple[Tensor | None, ...]:
    x, y, y_of_x, x_of_y = ctx.saved_tensors
    ops = torch.ops.pc3d
    push_x = 2 * grad_x[:, None] * (x - ops.gather(y, y_of_x))
    push_y = 2 * grad_y[:, None] * (y - ops.gather(x, x_of_y))
    for_x = push_x - scatter_rows(push_y, x_of_y, x.shape[0])
    for_y = push_y - scatter_rows(push_x, y_of_x, y.shape[0])
    return for_x, None, for_y, None


gradient("nearest_both_ways", _setup, _backward)

_KINDS = ("l1", "l2", "squared")
_REDUCTIONS = ("mean", "none")


def chamfer_distance(
    x: Tensor,
    y: Tensor,
    *,
    x_offsets: Tensor | None = None,
    y_offsets: Tensor | None = None,
    kind: str = "l2",
    reduction: str = "mean",
) -> Tensor:
    """How far two point sets are apart: the mean distance of each point to the nearest of the other set, both ways.

    With ``d_i = min_j |x_i - y_j|^2`` and ``e_j = min_i |x_i - y_j|^2``, for each pair of clouds:

    * ``"l2"`` (the field's CD-L2): ``mean_i d_i + mean_j e_j``: *squared* distances, the sum of both ways, no half;
    * ``"squared"``: the same quantity, under the name that says what it is;
    * ``"l1"`` (the field's CD-L1): ``(mean_i sqrt(d_i) + mean_j sqrt(e_j)) / 2``: distances, the mean of both ways.
      Where two points coincide the gradient of the square root is taken as 0 rather than infinite.

    Args:
        x: dense (B, N, 3) or packed (N, 3), any floating type (computed in float32, or float64).
        y: (B, M, 3) or (M, 3), the same number of clouds.
        x_offsets: (B + 1,) int64 offsets of packed ``x``; left out, (N, 3) is one cloud.
        y_offsets: (B + 1,) int64 offsets of packed ``y``.
        kind: ``"l2"``, ``"squared"`` or ``"l1"``.
        reduction: ``"mean"`` over the clouds, or ``"none"``. Every cloud counts the same, whatever its size. A pair of
            empty clouds is at distance 0 and takes no part in the mean.

    Returns:
        A scalar, or (B,); float32, or float64 where either input is. Differentiable with respect to both sets.

    Raises:
        TypeError: a wrong type of argument.
        ValueError: a wrong shape or value, NaN coordinates, or a cloud that is empty on one side only.

    Source:
        Fan et al., A Point Set Generation Network, 2017; Point-MAE (Pang et al., 2022), section 3.3.
    """
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {kind!r}")
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(_REDUCTIONS)}, got {reduction!r}")
    first, second = pack(x, x_offsets, "x", "x_offsets"), pack(y, y_offsets, "y", "y_offsets")
    check_same_clouds(first, second, "x", "y")
    _check_both_filled(first, second)
    dtype = torch.promote_types(first.xyz.dtype, second.xyz.dtype)
    d, _, e, _ = torch.ops.pc3d.nearest_both_ways(
        first.xyz.to(dtype), first.offsets, second.xyz.to(dtype), second.offsets
    )
    if kind == "l1":
        d, e = _safe_sqrt(d), _safe_sqrt(e)
    value = _cloud_means(d, first) + _cloud_means(e, second)
    if kind == "l1":
        value = value / 2
    if reduction == "none":
        return value
    if first.sizes is not None:
        num_clouds, num_points = first.sizes
        return value.sum() / max(num_clouds if num_points > 0 else 0, 1)
    return value.sum() / (lengths(first.offsets) > 0).sum().clamp(min=1)


def _check_both_filled(first: Packed, second: Packed) -> None:
    lonely: list[int] = []
    if first.sizes is not None and second.sizes is not None:
        (num_clouds, n), (_, m) = first.sizes, second.sizes
        lonely = [0] if num_clouds > 0 and (n == 0) != (m == 0) else []
    elif values_are_readable(first.offsets, second.offsets):
        lonely = ((lengths(first.offsets) == 0) != (lengths(second.offsets) == 0)).nonzero()[:, 0].tolist()
    if lonely:
        raise ValueError(f"cloud {lonely[0]} is empty in one of x and y only; their distance is not defined")


def _safe_sqrt(squared: Tensor) -> Tensor:
    zero = squared == 0
    return torch.where(zero, 0, squared.masked_fill(zero, 1).sqrt())


def _cloud_means(values: Tensor, points: Packed) -> Tensor:
    if points.dense_shape is not None:
        if points.dense_shape[1] == 0:
            return values.new_zeros(points.dense_shape[0])
        return values.reshape(points.dense_shape).mean(1)
    # In float64 and segment by segment: float32 sums of a million terms drift, and atomic ones vary from run to run.
    sums = torch.segment_reduce(values.double(), "sum", offsets=points.offsets, initial=0)
    return (sums / lengths(points.offsets).clamp(min=1)).to(values.dtype)
