"""Rows by index: gather and group, and the weighted gather of interpolation, with their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pc3d.ops import reference
from pc3d.ops._checks import FLOATING, check_tensor, dense_offsets, values_are_readable
from pc3d.ops._library import define, fake, gradient

define("gather(Tensor features, Tensor index) -> Tensor", reference.gather)
define(
    "gather_backward(Tensor grad, Tensor index, SymInt num_rows, bool deterministic) -> Tensor",
    reference.gather_backward,
)
define("weighted_gather(Tensor features, Tensor index, Tensor weight) -> Tensor", reference.weighted_gather)
define(
    "weighted_gather_backward(Tensor grad, Tensor features, Tensor index, Tensor weight, bool deterministic) "
    "-> (Tensor, Tensor)",
    reference.weighted_gather_backward,
)


@fake("gather")
def _(features: Tensor, index: Tensor) -> Tensor:
    return features.new_empty((index.shape[0], features.shape[1]))


@fake("gather_backward")
def _(grad: Tensor, index: Tensor, num_rows: int, deterministic: bool) -> Tensor:
    return grad.new_empty((num_rows, grad.shape[1]))


@fake("weighted_gather")
def _(features: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    return features.new_empty((index.shape[0], features.shape[1]))


@fake("weighted_gather_backward")
def _(grad: Tensor, features: Tensor, index: Tensor, weight: Tensor, deterministic: bool) -> tuple[Tensor, Tensor]:
    return features.new_empty(features.shape), weight.new_empty(weight.shape)


def scatter_rows(grad: Tensor, index: Tensor, num_rows: int) -> Tensor:
    """The gradient of ``gather``: rows of ``grad`` summed into the rows they were read from.

    Kernels cannot see torch's switch for deterministic algorithms, so it is read here and handed to them.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    return torch.ops.pc3d.gather_backward(grad, index, num_rows, deterministic)  # type: ignore[no-any-return]


def _scatter_weighted(grad: Tensor, features: Tensor, index: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    return torch.ops.pc3d.weighted_gather_backward(  # type: ignore[no-any-return]
        grad, features, index, weight, deterministic
    )


def _gather_setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.num_rows = inputs[0].shape[0]


def _gather_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (index,) = ctx.saved_tensors
    return scatter_rows(grad, index, ctx.num_rows), None


def _gather_backward_setup(ctx: Any, inputs: tuple[Tensor, Tensor, int, bool], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _gather_backward_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    (index,) = ctx.saved_tensors
    return torch.ops.pc3d.gather(grad, index), None, None, None


def _weighted_setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _weighted_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
    features, index, weight = ctx.saved_tensors
    grad_features, grad_weight = _scatter_weighted(grad, features, index, weight)
    return grad_features, None, grad_weight


def _weighted_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4])


def _weighted_backward_gradient(ctx: Any, for_features: Tensor, for_weight: Tensor) -> tuple[Tensor | None, ...]:
    # The pair (grad_features, grad_weight) is bilinear in (grad, features, weight); each term is one of the two
    # operators again.
    grad, features, index, weight = ctx.saved_tensors
    ops = torch.ops.pc3d
    through_features = ops.weighted_gather(for_features, index, weight)
    through_weight = ops.weighted_gather(features, index, for_weight)
    grad_features, _ = _scatter_weighted(grad, features, index, for_weight)
    _, grad_weight = _scatter_weighted(grad, for_features, index, weight)
    return through_features + through_weight, grad_features, None, grad_weight, None


gradient("gather", _gather_setup, _gather_gradient)
gradient("gather_backward", _gather_backward_setup, _gather_backward_gradient)
gradient("weighted_gather", _weighted_setup, _weighted_gradient)
gradient("weighted_gather_backward", _weighted_backward_setup, _weighted_backward_gradient)


def global_rows(index: Tensor, num_points: int) -> Tensor:
    """Rows of a (B * N, ...) tensor for indices (B, ...) counted within clouds of N points; -1 stays."""
    starts = dense_offsets(index.shape[0], num_points, index.device)[:-1].reshape(-1, *[1] * (index.dim() - 1))
    rows = torch.where(index < 0, index, index + starts)
    if values_are_readable(index):
        return rows  # already checked
    # An index past its cloud must not read the next cloud: make it one past all rows, which the kernels refuse.
    return torch.where(index < num_points, rows, index.shape[0] * num_points)


def check_rows(features: object, index: object) -> tuple[Tensor, Tensor]:
    """Features and the index into them, checked to fit each other."""
    features = check_tensor(features, "features", FLOATING)
    index = check_tensor(index, "index", (torch.int64,))
    if features.dim() not in (2, 3):
        raise ValueError(f"features must have shape (B, N, C) or (N, C), got {tuple(features.shape)}")
    if features.dim() == 3 and (index.dim() < 1 or index.shape[0] != features.shape[0]):
        raise ValueError(
            f"index must have shape ({features.shape[0]}, ...) for features of shape {tuple(features.shape)}, "
            f"got {tuple(index.shape)}"
        )
    if index.device != features.device:
        raise ValueError(f"index is on {index.device}, features on {features.device}; move one of them with .to()")
    if index.numel() > 0 and values_are_readable(index):
        low, high = torch.stack(index.aminmax()).tolist()  # at once: each look at a value on a GPU waits for it
        if low < -1 or high >= features.shape[-2]:
            raise ValueError(f"index must lie in [-1, {features.shape[-2]}), found {low} to {high}")
    return features, index


def gather(features: Tensor, index: Tensor) -> Tensor:
    """Reads rows of features; the gradient adds up where a row was read more than once.

    Args:
        features: dense (B, N, C) or packed (N, C), any floating type.
        index: int64; (B, ...) within each cloud for dense features, any shape of rows for packed ones. -1 reads a zero
            row, which has no gradient.

    Returns:
        (B, ..., C) or (..., C), of the features' type. The gradient is deterministic on the CPU, and on CUDA under
        ``torch.use_deterministic_algorithms(True)``; half precision sums in float32.

    Raises:
        TypeError: a wrong type of argument.
        ValueError: shapes that do not fit, or an index outside of [-1, N).
    """
    features, index = check_rows(features, index)
    rows = global_rows(index, features.shape[1]) if features.dim() == 3 else index
    flat = torch.ops.pc3d.gather(features.flatten(0, -2), rows.flatten())
    return flat.reshape(*index.shape, features.shape[-1])  # type: ignore[no-any-return]


def group(xyz: Tensor, index: Tensor, centers: Tensor) -> Tensor:
    """Reads groups of points, each relative to its centre.

    Args:
        xyz: dense (B, N, 3) or packed (N, 3) coordinates.
        index: int64 (B, G, K) within each cloud, or (G, K) rows, e.g. from :func:`pc3d.ops.knn`.
        centers: (B, G, 3) or (G, 3).

    Returns:
        ``gather(xyz, index) - centers[..., None, :]``, (B, G, K, 3) or (G, K, 3).

    Raises:
        TypeError, ValueError: as :func:`gather`; centres that do not fit the index.
    """
    if check_tensor(xyz, "xyz").shape[-1] != 3:
        raise ValueError(f"xyz must have shape (B, N, 3) or (N, 3), got {tuple(xyz.shape)}")
    points = gather(xyz, index)
    centers = check_tensor(centers, "centers")
    if centers.shape != (*index.shape[:-1], 3):
        raise ValueError(f"centers must have shape {(*index.shape[:-1], 3)} to fit index, got {tuple(centers.shape)}")
    return points - centers.unsqueeze(-2)
