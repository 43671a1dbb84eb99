"""Neighbours: the k nearest points, and the points within a radius."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pc3d.ops import reference
from pc3d.ops._checks import Packed, check_enough_points, check_int, check_same_clouds, pack
from pc3d.ops._library import define, fake, gradient
from pc3d.ops.gathering import scatter_rows

MAX_K = 128
"""The largest number of neighbours."""

define("knn(Tensor xyz, Tensor offsets, Tensor query, Tensor query_offsets, int k) -> (Tensor, Tensor)", reference.knn)
define(
    "ball_query(Tensor xyz, Tensor offsets, Tensor query, Tensor query_offsets, float radius, int max_neighbors, "
    "bool nearest_first) -> (Tensor, Tensor)",
    reference.ball_query,
)


@fake("knn")
def _(xyz: Tensor, offsets: Tensor, query: Tensor, query_offsets: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (query.shape[0], k)
    return query.new_empty(shape, dtype=torch.int64), query.new_empty(shape)


@fake("ball_query")
def _(
    xyz: Tensor,
    offsets: Tensor,
    query: Tensor,
    query_offsets: Tensor,
    radius: float,
    max_neighbors: int,
    nearest_first: bool,
) -> tuple[Tensor, Tensor]:
    shape = (query.shape[0], max_neighbors)
    return query.new_empty(shape, dtype=torch.int64), query.new_empty(shape[:1], dtype=torch.int64)


def _knn_setup(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    xyz, _, query, _, _ = inputs
    ctx.save_for_backward(xyz, query, output[0])
    ctx.mark_non_differentiable(output[0])


def _knn_gradient(ctx: Any, grad_index: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
    xyz, query, index = ctx.saved_tensors
    rows = index.reshape(-1)
    difference = query[:, None] - torch.ops.pc3d.gather(xyz, rows).reshape(*index.shape, 3)
    push = 2 * grad[..., None] * difference
    grad_xyz = -scatter_rows(push.reshape(-1, 3), rows, xyz.shape[0])
    return grad_xyz, None, push.sum(1), None, None


gradient("knn", _knn_setup, _knn_gradient)


class Neighbors(NamedTuple):
    """The k nearest points of every query, nearest first."""

    index: Tensor  # type: ignore[assignment]  # a field, not the method of tuples
    """(B, M, k) int64 within each cloud, or (M, k) rows of packed points."""
    squared_distance: Tensor
    """Of the same shape, in squared units of the coordinates; float32, or float64 for float64 points."""


class BallNeighbors(NamedTuple):
    """The points within a radius of every query."""

    index: Tensor  # type: ignore[assignment]  # a field, not the method of tuples
    """(B, M, max_neighbors) int64 within each cloud, or (M, max_neighbors) rows of packed points."""
    count: Tensor  # type: ignore[assignment]
    """(B, M) or (M,) int64: how many slots hold a neighbour of their own."""


def _pack_both(
    xyz: Tensor, query: Tensor | None, offsets: Tensor | None, query_offsets: Tensor | None
) -> tuple[Packed, Packed]:
    points = pack(xyz, offsets, "xyz")
    if query is None:
        if query_offsets is not None:
            raise ValueError("query_offsets goes with query, which was left out")
        return points, points
    queries = pack(query, query_offsets, "query", "query_offsets")
    check_same_clouds(points, queries, "xyz", "query")
    if points.xyz.dtype == queries.xyz.dtype:
        return points, queries
    dtype = torch.promote_types(points.xyz.dtype, queries.xyz.dtype)
    return points._replace(xyz=points.xyz.to(dtype)), queries._replace(xyz=queries.xyz.to(dtype))


def _local(index: Tensor, points: Packed, queries: Packed) -> Tensor:
    """Packed rows turned into indices within each cloud where the input was dense."""
    if queries.dense_shape is None:
        return index
    index = index.reshape(*queries.dense_shape, index.shape[-1])
    # An empty slot, -1, stays: less the start of its cloud it is at most -1, whatever the start.
    return (index - points.offsets[:-1, None, None]).clamp_(min=-1)


def knn(
    xyz: Tensor,
    k: int,
    *,
    query: Tensor | None = None,
    offsets: Tensor | None = None,
    query_offsets: Tensor | None = None,
) -> Neighbors:
    """Finds the ``k`` nearest points of every query within its own cloud; exact.

    Sorted by distance; of equal distances the lowest index comes first (and is the one kept at the boundary).

    Args:
        xyz: dense (B, N, 3) or packed (N, 3) points, any floating type (computed in float32, or float64).
        k: neighbours, 1 to 128, at most the points of any cloud that has queries.
        query: (B, M, 3) or (M, 3); by default, the points themselves, each its own first neighbour (or a duplicate of
            a lower index).
        offsets: (B + 1,) int64 offsets of packed points; by default, (N, 3) is one cloud.
        query_offsets: (B + 1,) int64 offsets of packed queries.

    Returns:
        Indices and squared distances. The distances are differentiable with respect to points and queries. Memory
        beyond the result grows with the points, not with points times queries.

    Raises:
        TypeError: a wrong type of argument.
        ValueError: a wrong shape or value, ``k`` above 128 or above the points of a cloud, or NaN coordinates.
    """
    check_int(k, "k", 1, MAX_K)
    points, queries = _pack_both(xyz, query, offsets, query_offsets)
    check_enough_points(points, queries, k, "xyz")
    index, squared = torch.ops.pc3d.knn(points.xyz, points.offsets, queries.xyz, queries.offsets, k)
    if queries.dense_shape is not None:
        squared = squared.reshape(*queries.dense_shape, k)
    return Neighbors(_local(index, points, queries), squared)


def ball_query(
    xyz: Tensor,
    radius: float,
    max_neighbors: int,
    *,
    query: Tensor | None = None,
    offsets: Tensor | None = None,
    query_offsets: Tensor | None = None,
    order: str = "index",
) -> BallNeighbors:
    """Finds points closer than ``radius`` to every query within its own cloud; exact.

    Args:
        xyz: dense (B, N, 3) or packed (N, 3) points, any floating type (computed in float32, or float64).
        radius: in units of the coordinates; strict, ``distance^2 < radius^2``, as in PointNet++'s kernel.
        max_neighbors: slots of the result.
        query: (B, M, 3) or (M, 3); by default, the points themselves.
        offsets: (B + 1,) int64 offsets of packed points; by default, (N, 3) is one cloud.
        query_offsets: (B + 1,) int64 offsets of packed queries.
        order: which points are kept and how they are sorted: ``"index"``, the lowest indices, as in PointNet++'s
            kernel; ``"distance"``, the nearest, nearest first.

    Returns:
        Indices and counts. Slots past the count repeat the first neighbour; where no point is within the radius all
        slots are -1 (a zero row for :func:`pc3d.ops.gather`) and the count is 0.

    Raises:
        TypeError: a wrong type of argument.
        ValueError: a wrong shape or value, or NaN coordinates.

    Source:
        PointNet++ (Qi et al., 2017), section 3.2.
    """
    check_int(max_neighbors, "max_neighbors", 1)
    if isinstance(radius, bool) or not isinstance(radius, (Real, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"radius must be a number, got {type(radius).__name__} {radius!r}")
    if not 0 < radius < math.inf:
        raise ValueError(f"radius must be positive and finite, got {radius}")
    if order not in ("index", "distance"):
        raise ValueError(f"order must be 'index' or 'distance', got {order!r}")
    points, queries = _pack_both(xyz, query, offsets, query_offsets)
    index, count = torch.ops.pc3d.ball_query(
        points.xyz, points.offsets, queries.xyz, queries.offsets, float(radius), max_neighbors, order == "distance"
    )
    if queries.dense_shape is not None:
        count = count.reshape(queries.dense_shape)
    return BallNeighbors(_local(index, points, queries), count)
