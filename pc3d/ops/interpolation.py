"""Features between points: interpolation by inverse distance."""

from __future__ import annotations

import torch
from torch import Tensor

from pc3d.ops._checks import check_tensor
from pc3d.ops.gathering import check_rows, global_rows
from pc3d.ops.neighbors import knn
from pc3d.ops.voxels import clamped_knn


def _distance(squared: Tensor) -> Tensor:
    """The square root, with gradient 0 where the points coincide rather than an infinite one."""
    zero = squared == 0
    return torch.where(zero, 0, squared.masked_fill(zero, 1).sqrt())


def interpolate(
    features: Tensor,
    xyz: Tensor,
    query: Tensor,
    *,
    k: int = 3,
    eps: float = 1e-8,
    power: int = 2,
    clamp: bool = False,
    offsets: Tensor | None = None,
    query_offsets: Tensor | None = None,
) -> Tensor:
    """Interpolates features from points to queries, weighted by inverse distance over the ``k`` nearest points.

    ``out[m] = sum_j w[m, j] * features[i[m, j]]`` with ``w`` proportional to ``1 / (d[m, j]^power + eps)`` and summing
    to 1. Differentiable with respect to the features and both sets of coordinates.

    Args:
        features: dense (B, N, C) or packed (N, C), any floating type.
        xyz: (B, N, 3) or (N, 3), where the features are.
        query: (B, M, 3) or (M, 3), where they are wanted.
        k: neighbours, at most the points of a cloud (unless ``clamp``).
        eps: keeps the weight finite where a query coincides with a point; in units of the distance to the power. The
            default is the published one, for objects in the unit sphere: scale it with the coordinates elsewhere.
        power: 2, the squared distance of PointNet++, or 1, the distance, as Swin3D weights its up-sampling.
        clamp: allow clouds with fewer than ``k`` points; their queries then use all points.
        offsets: (B + 1,) int64 offsets of packed ``xyz`` and ``features``.
        query_offsets: (B + 1,) int64 offsets of packed ``query``.

    Returns:
        (B, M, C) or (M, C), of the features' type.

    Raises:
        TypeError, ValueError: as :func:`pc3d.ops.knn` and :func:`gather`.

    Source:
        PointNet++ (Qi et al., 2017), section 3.4, equation 2; Swin3D (Yang et al., 2023) with p = 1.
    """
    if not eps > 0:
        raise ValueError(f"eps must be positive, or a query on a point has an infinite weight; got {eps}")
    if power not in (1, 2):
        raise ValueError(f"power must be 1 or 2, got {power!r}")
    own = None
    if clamp:
        (index, squared), own = clamped_knn(xyz, k, query, offsets, query_offsets)
    else:
        index, squared = knn(xyz, k, query=query, offsets=offsets, query_offsets=query_offsets)
    if check_tensor(features, "features").shape[:-1] != xyz.shape[:-1]:
        raise ValueError(f"features must have shape {(*xyz.shape[:-1], 'C')} to fit xyz, got {tuple(features.shape)}")
    features, index = check_rows(features, index)
    weight = 1 / ((squared if power == 2 else _distance(squared)) + eps)
    if own is not None:
        weight = weight * own
    weight = (weight / weight.sum(-1, keepdim=True)).to(features.dtype)
    rows = global_rows(index, features.shape[1]) if features.dim() == 3 else index
    flat = torch.ops.pc3d.weighted_gather(features.flatten(0, -2), rows.reshape(-1, k), weight.reshape(-1, k))
    return flat.reshape(*index.shape[:-1], features.shape[-1])  # type: ignore[no-any-return]
