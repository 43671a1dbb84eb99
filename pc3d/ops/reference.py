"""What every operator computes, in plain PyTorch.

These definitions are the oracle of the tests, and run on devices for which no kernel was compiled. They are written to
be read: loops over clouds, no cleverness. All take packed input, already checked.

Squared distances are ``((dx * dx) + (dy * dy)) + (dz * dz)`` in this order and without fused multiply-adds, in the
kernels too, so that all of them round alike and agree on ties, which the lowest index wins.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

NEAR_ORIGIN_SQUARED_NORM = 1e-3
"""Points with at most this squared norm are never sampled under the rule of the MAE family's kernel."""

_QUERIES_PER_CHUNK_ELEMENTS = 1 << 24


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances between ``a`` (..., 3) and ``b`` (..., 3), broadcast."""
    difference = a - b
    square = difference * difference
    return (square[..., 0] + square[..., 1]) + square[..., 2]


def _clouds(offsets: Tensor) -> list[tuple[int, int]]:
    bounds = offsets.tolist()
    return list(pairwise(bounds))


def farthest_point_sample(
    xyz: Tensor,
    offsets: Tensor,
    sample_offsets: Tensor,
    num_total: int,
    start: Tensor,
    ignore_near_origin: bool,
    largest: int = -1,
) -> Tensor:
    """Rows of ``xyz`` taken by farthest point sampling; see :func:`pc3d.ops.farthest_point_sample`."""
    out = torch.empty(num_total, dtype=torch.int64, device=xyz.device)
    starts = start.tolist()
    for b, ((begin, end), (out_begin, out_end)) in enumerate(
        zip(_clouds(offsets), _clouds(sample_offsets), strict=True)
    ):
        if out_begin == out_end:
            continue
        points = xyz[begin:end]
        nearest = torch.full((end - begin,), torch.inf, dtype=xyz.dtype, device=xyz.device)
        if ignore_near_origin:
            norm = squared_distances(points, torch.zeros_like(points))
            nearest[norm <= NEAR_ORIGIN_SQUARED_NORM] = -1
        current = starts[b]
        out[out_begin] = begin + current
        for s in range(out_begin + 1, out_end):
            if not ignore_near_origin:
                nearest[current] = -1
            distance = squared_distances(points, points[current])
            nearest = torch.minimum(nearest, distance)
            current = int((nearest == nearest.max()).nonzero()[0]) if bool((nearest >= 0).any()) else 0
            out[s] = begin + current
    return out


def knn(xyz: Tensor, offsets: Tensor, query: Tensor, query_offsets: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Rows and squared distances of the ``k`` nearest points of each query; see :func:`pc3d.ops.knn`."""
    index = torch.empty((query.shape[0], k), dtype=torch.int64, device=query.device)
    squared = torch.empty((query.shape[0], k), dtype=query.dtype, device=query.device)
    for (begin, end), (query_begin, query_end) in zip(_clouds(offsets), _clouds(query_offsets), strict=True):
        step = max(1, _QUERIES_PER_CHUNK_ELEMENTS // max(1, end - begin))
        for low in range(query_begin, query_end, step):
            high = min(low + step, query_end)
            distance = squared_distances(query[low:high, None], xyz[None, begin:end])
            # A stable sort keeps equal distances in the order of their index.
            ordered, order = distance.sort(dim=1, stable=True)
            index[low:high] = order[:, :k] + begin
            squared[low:high] = ordered[:, :k]
    return index, squared


def ball_query(
    xyz: Tensor,
    offsets: Tensor,
    query: Tensor,
    query_offsets: Tensor,
    radius: float,
    max_neighbors: int,
    nearest_first: bool,
) -> tuple[Tensor, Tensor]:
    """Rows within a radius of each query, and how many; see :func:`pc3d.ops.ball_query`."""
    index = torch.full((query.shape[0], max_neighbors), -1, dtype=torch.int64, device=query.device)
    count = torch.zeros(query.shape[0], dtype=torch.int64, device=query.device)
    limit = torch.tensor(radius, dtype=xyz.dtype, device=xyz.device).square()
    for (begin, end), (query_begin, query_end) in zip(_clouds(offsets), _clouds(query_offsets), strict=True):
        for m in range(query_begin, query_end):
            distance = squared_distances(xyz[begin:end], query[m])
            inside = (distance < limit).nonzero()[:, 0]
            if nearest_first:
                inside = inside[distance[inside].sort(stable=True).indices]
            inside = inside[:max_neighbors]
            count[m] = inside.shape[0]
            if inside.shape[0] > 0:
                index[m] = inside[0] + begin
                index[m, : inside.shape[0]] = inside + begin
    return index, count


def nearest_both_ways(x: Tensor, x_offsets: Tensor, y: Tensor, y_offsets: Tensor) -> tuple[Tensor, ...]:
    """For each row of ``x`` the nearest of ``y``, and the other way round: squared distances and rows."""
    y_of_x, x_squared = knn(y, y_offsets, x, x_offsets, 1)
    x_of_y, y_squared = knn(x, x_offsets, y, y_offsets, 1)
    return x_squared[:, 0], y_of_x[:, 0], y_squared[:, 0], x_of_y[:, 0]


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def gather(features: Tensor, index: Tensor) -> Tensor:
    """Rows ``features[index]``, zero where the index is -1."""
    if features.shape[0] == 0:
        return features.new_zeros((index.shape[0], features.shape[1]))
    rows = features[index.clamp(min=0)]
    return rows.masked_fill((index < 0)[:, None], 0)


def gather_backward(grad: Tensor, index: Tensor, num_rows: int, deterministic: bool = True) -> Tensor:
    """Sum of the rows of ``grad`` that each target row was read into (``index_add`` heeds torch's own switch)."""
    out = torch.zeros((num_rows, grad.shape[1]), dtype=_sum_dtype(grad.dtype), device=grad.device)
    kept = index >= 0
    return out.index_add(0, index[kept], grad[kept].to(out.dtype)).to(grad.dtype)


def weighted_gather(features: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """``out[m] = sum_j weight[m, j] * features[index[m, j]]``."""
    dtype = _sum_dtype(features.dtype)
    rows = gather(features.to(dtype), index.reshape(-1)).reshape(*index.shape, features.shape[1])
    return (rows * weight.to(dtype)[:, :, None]).sum(1).to(features.dtype)


def weighted_gather_backward(
    grad: Tensor, features: Tensor, index: Tensor, weight: Tensor, deterministic: bool = True
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`weighted_gather` with respect to the features and the weights."""
    dtype = _sum_dtype(features.dtype)
    spread = grad.to(dtype)[:, None, :] * weight.to(dtype)[:, :, None]
    grad_features = gather_backward(spread.reshape(-1, grad.shape[1]), index.reshape(-1), features.shape[0])
    rows = gather(features.to(dtype), index.reshape(-1)).reshape(*index.shape, features.shape[1])
    grad_weight = (rows * grad.to(dtype)[:, None, :]).sum(2)
    return grad_features.to(features.dtype), grad_weight.to(weight.dtype)
