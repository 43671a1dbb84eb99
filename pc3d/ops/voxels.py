"""Voxels: the integer cells that points fall into, and neighbours between levels of them.

What works on voxels once they exist is in :mod:`pc3d.ops.segments` and :mod:`pc3d.ops.sparse_conv`, and can be
imported from here too.
"""

from __future__ import annotations

import math
from itertools import pairwise
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from pc3d.ops import reference_voxels
from pc3d.ops._checks import check_coords, check_finite, check_int, check_tensor, lengths, pack, values_are_readable
from pc3d.ops._library import define, fake
from pc3d.ops.neighbors import MAX_K, Neighbors, knn
from pc3d.ops.segments import gather_max, segment_reduce
from pc3d.ops.sparse_conv import KernelMap, kernel_map, sparse_conv3d

__all__ = [
    "KernelMap",
    "Voxels",
    "gather_max",
    "kernel_map",
    "segment_reduce",
    "sparse_conv3d",
    "voxel_neighbors",
    "voxelize",
    "voxelize_coords",
]

define(
    "voxelize(Tensor xyz, Tensor offsets, float voxel_size) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference_voxels.voxelize,
)
define(
    "unique_voxels(Tensor coords, Tensor offsets, int factor) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference_voxels.unique_voxels,
)


def _fake_voxels(points: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from torch.fx.experimental.symbolic_shapes import (
        statically_known_true,
    )  # slow to import, and only tracing comes here

    # Batch norm and others cannot be traced with rows of which there might be none.
    num_voxels = torch.library.get_ctx().new_dynamic_size(min=int(statically_known_true(points.shape[0] > 0)))
    return (
        points.new_empty((num_voxels, 3), dtype=torch.int32),
        offsets.new_empty(offsets.shape),
        offsets.new_empty((points.shape[0],)),
        offsets.new_empty((num_voxels,)),
        offsets.new_empty((num_voxels,)),
    )


@fake("voxelize")
def _(xyz: Tensor, offsets: Tensor, voxel_size: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _fake_voxels(xyz, offsets)


@fake("unique_voxels")
def _(coords: Tensor, offsets: Tensor, factor: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _fake_voxels(coords, offsets)


class Voxels(NamedTuple):
    """The occupied voxels of packed clouds, ordered by cloud, then lexicographically by (x, y, z)."""

    coords: Tensor
    """(V, 3) int32 voxel coordinates."""
    offsets: Tensor
    """(B + 1,) int64: the voxels of cloud b are rows offsets[b] to offsets[b + 1]."""
    inverse: Tensor
    """(N,) int64: the voxel row of every point."""
    first: Tensor
    """(V,) int64: the lowest row of the points in each voxel."""
    count: Tensor  # type: ignore[assignment]  # a field, not the method of tuples
    """(V,) int64: points in each voxel, at least 1."""


def _check_voxel_size(voxel_size: float) -> float:
    if isinstance(voxel_size, bool) or not isinstance(voxel_size, (Real, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"voxel_size must be a number, got {type(voxel_size).__name__} {voxel_size!r}")
    if not 0 < voxel_size < math.inf:
        raise ValueError(f"voxel_size must be positive and finite, got {voxel_size}")
    return float(voxel_size)


def voxelize(xyz: Tensor, voxel_size: float, *, offsets: Tensor | None = None) -> Voxels:
    """Finds the voxels that points fall into: ``floor(xyz / voxel_size)``, each voxel once.

    Computed in the type of the points (half precision in float32), on every device alike. Coordinates may be negative;
    the grid is anchored at the origin, so that equal positions of two clouds fall into equal voxels.

    Args:
        xyz: packed (N, 3) coordinates, any floating type.
        voxel_size: edge of a voxel, in units of the coordinates.
        offsets: (B + 1,) int64 offsets of the clouds; by default, one cloud.

    Returns:
        The voxels, and which points they hold. ``features[voxels.first]`` takes the first point of every voxel,
        :func:`pc3d.ops.segment_reduce` with ``voxels.inverse`` reduces over all of them.

    Raises:
        TypeError: a wrong type of argument.
        ValueError: a wrong shape or value, NaN coordinates, or a voxel beyond the range of int32.
    """
    voxel_size = _check_voxel_size(voxel_size)
    if check_tensor(xyz, "xyz").dim() == 3:
        raise ValueError(
            f"xyz must be packed (N, 3), got {tuple(xyz.shape)}: pass xyz.flatten(0, 1) with offsets = "
            "torch.arange(B + 1) * N"
        )
    points = pack(xyz, offsets, "xyz", must_be_finite=False)
    if points.xyz.numel() and values_are_readable(points.xyz):
        # One pass and, on a GPU, one wait for both bounds; they are finite only if everything is.
        low, high = (v / voxel_size for v in torch.stack(points.xyz.detach().aminmax()).tolist())
        if not (math.isfinite(low) and math.isfinite(high)):
            check_finite(points.xyz, "xyz")
        if low < reference_voxels.INT32.min or high >= reference_voxels.INT32.max:
            raise ValueError(
                f"voxel_size {voxel_size} puts coordinates into voxels {low:.4g} to {high:.4g}, beyond the range of "
                "int32; take a larger voxel_size, or subtract the mean of the coordinates first"
            )
    return Voxels(*torch.ops.pc3d.voxelize(points.xyz.detach(), points.offsets, voxel_size))


def voxelize_coords(coords: Tensor, factor: int, *, offsets: Tensor | None = None) -> Voxels:
    """Finds the coarser voxels that voxels fall into: ``floor(coords / factor)``, each once.

    Args:
        coords: (N, 3) int32 voxel coordinates.
        factor: edge of a coarse voxel in fine ones, at least 1; 1 removes duplicates.
        offsets: (B + 1,) int64 offsets of the clouds; by default, one cloud.

    Returns:
        The coarse voxels (in coarse units), and which rows of ``coords`` they hold.

    Raises:
        TypeError: a wrong type of argument.
        ValueError: a wrong shape or value.
    """
    check_int(factor, "factor", 1, reference_voxels.INT32.max)
    return Voxels(*torch.ops.pc3d.unique_voxels(*check_coords(coords, offsets), factor))


def voxel_neighbors(
    xyz: Tensor,
    k: int,
    *,
    query: Tensor,
    offsets: Tensor | None = None,
    query_offsets: Tensor | None = None,
) -> Neighbors:
    """The ``k`` nearest points of every query, as :func:`pc3d.ops.knn`; a cloud with fewer repeats the nearest.

    Meant for pooling between levels of voxels, where the coarsest may hold a handful of points and a repeated
    neighbour changes no maximum.

    Args:
        xyz: dense (B, N, 3) or packed (N, 3) points.
        k: neighbours, 1 to 128.
        query: (B, M, 3) or (M, 3).
        offsets: (B + 1,) int64 offsets of packed points; by default, (N, 3) is one cloud.
        query_offsets: (B + 1,) int64 offsets of packed queries.

    Returns:
        Indices and squared distances as :func:`pc3d.ops.knn`; slots past the points of a cloud repeat the first. A
        compiled graph cannot see the sizes of packed clouds: there they must hold ``k`` points.

    Raises:
        TypeError: a wrong type of argument.
        ValueError: a wrong shape or value, NaN coordinates, or queries in a cloud without points.
    """
    return clamped_knn(xyz, k, query, offsets, query_offsets)[0]


def clamped_knn(
    xyz: Tensor, k: int, query: Tensor, offsets: Tensor | None, query_offsets: Tensor | None
) -> tuple[Neighbors, Tensor | None]:
    """:func:`voxel_neighbors`, and which slots hold a neighbour of their own (None where all do)."""
    check_int(k, "k", 1, MAX_K)
    points, queries = pack(xyz, offsets, "xyz"), pack(query, query_offsets, "query", "query_offsets")
    if points.dense_shape is not None:
        have = points.dense_shape[1]
        if have >= k or queries.dense_shape is None:
            return knn(xyz, k, query=query), None  # which refuses a mixture of dense and packed
        _refuse_empty(have == 0 and queries.xyz.shape[0] > 0, 0)
        found = _repeat_first(knn(xyz, max(have, 1), query=query), k)
        return found, (torch.arange(k, device=xyz.device) < have).expand(found.index.shape)
    same_clouds = points.offsets.shape == queries.offsets.shape
    if not (queries.dense_shape is None and same_clouds and values_are_readable(points.offsets, queries.offsets)):
        return knn(xyz, k, query=query, offsets=offsets, query_offsets=query_offsets), None
    short = ((lengths(points.offsets) < k) & (lengths(queries.offsets) > 0)).nonzero()[:, 0].tolist()
    if not short:
        return knn(xyz, k, query=query, offsets=offsets, query_offsets=query_offsets), None
    return _knn_cloud_by_cloud(xyz, k, query, points.offsets.tolist(), queries.offsets.tolist())


def _refuse_empty(empty: bool, cloud: int) -> None:
    if empty:
        raise ValueError(f"cloud {cloud} of xyz has no points, but query has rows in it; there is nothing nearest")


def _repeat_first(found: Neighbors, k: int) -> Neighbors:
    pad = k - found.index.shape[-1]
    first = found.index[..., :1], found.squared_distance[..., :1]
    return Neighbors(*(torch.cat([x, f.expand(*f.shape[:-1], pad)], -1) for x, f in zip(found, first, strict=True)))


def _knn_cloud_by_cloud(
    xyz: Tensor, k: int, query: Tensor, offsets: list[int], query_offsets: list[int]
) -> tuple[Neighbors, Tensor]:
    indices, distances, own = [], [], []
    for cloud, (begin, end) in enumerate(pairwise(offsets)):
        rows = query[query_offsets[cloud] : query_offsets[cloud + 1]]
        _refuse_empty(begin == end and rows.shape[0] > 0, cloud)
        if rows.shape[0] == 0:
            continue
        found = _repeat_first(knn(xyz[begin:end], min(k, end - begin), query=rows), k)
        indices.append(found.index + begin)
        distances.append(found.squared_distance)
        own.append((torch.arange(k, device=xyz.device) < end - begin).expand(found.index.shape))
    return Neighbors(torch.cat(indices), torch.cat(distances)), torch.cat(own)
