"""Crops of clouds: the points nearest to a seed or beyond a plane, filled up to a fixed length to form a batch.

The functions are pure: random numbers are arguments (:class:`pc3d.nn.SampleRandom`).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from pc3d.nn.sample_random import SampleRandom
from pc3d.ops import gather, knn

Completion = Literal["midpoints", "duplicates"]
"""How crops with too few points are filled up."""
NEIGHBORS = 4
"""Number of points whose mean is a new point: a point and its three nearest neighbours."""


def share_of_points(ratio: float, num_points: int) -> int:
    """``ceil(ratio * num_points)``, robust to rounding: 0.7 of 10 is 7, although the product in floating point is
    slightly larger."""
    return math.ceil(round(ratio * num_points, 6))


def ball_crop(xyz: Tensor, seed: Tensor, length: int) -> Tensor:
    """A spherical crop: the points nearest to a seed point, nearest first.

    Args:
        xyz: ``(B, N, 3)``.
        seed: ``(B,)`` int64, index of the seed point of each cloud.
        length: number of points to keep, at most N.

    Returns:
        ``(B, length)`` int64 indices; of equally distant points, the lowest index comes first.
    """
    center = gather(xyz, seed[:, None])
    return _lowest((xyz - center).square().sum(-1), length)


def half_space_crop(xyz: Tensor, direction: Tensor, length: int) -> Tensor:
    """A half-space crop: the points farthest in a direction, farthest first.

    Args:
        xyz: ``(B, N, 3)``.
        direction: ``(B, 3)``, of any length.
        length: number of points to keep, at most N.

    Returns:
        ``(B, length)`` int64 indices; of equally far points, the lowest index comes first, so the number of points is
        exact even if many of them lie on the plane.
    """
    return _lowest(-(xyz * direction[:, None]).sum(-1), length)


def _lowest(value: Tensor, length: int) -> Tensor:
    return value.argsort(dim=1, stable=True)[:, :length]


def complete(
    points: Tensor, count: Tensor, smallest: int, draws: SampleRandom, completion: Completion = "midpoints"
) -> Tensor:
    """Fill up clouds with too few points to a common length.

    ``"midpoints"`` works in rounds. A round computes one new point for each point of a cloud, the mean of its four
    nearest points, itself included. It adds as many of these as fit, chosen at random, or all of them. Rounds follow
    until the rows are full. ``"duplicates"`` repeats random points.

    Args:
        points: ``(B, L, 3)``; in cloud b, rows from ``count[b]`` on are overwritten, the others are kept.
        count: ``(B,)`` int64, number of points of each cloud: at least 1, or at least 4 for midpoints.
        smallest: a lower bound of all counts. Together with L it fixes the number of rounds, independent of the counts
            of this batch.
        draws: source of the random choices.
        completion: see above.

    Returns:
        ``(B, L, 3)``.

    Raises:
        ValueError: ``"midpoints"`` with ``smallest`` below 4 (and below L).
    """
    length = points.shape[1]
    slots, count = torch.arange(length, device=points.device), count[:, None]
    if completion == "duplicates":
        chosen = torch.minimum((draws.uniform(length) * count).long(), count - 1)
        return gather(points, torch.where(slots < count, slots, chosen))
    if smallest < min(NEIGHBORS, length):
        raise ValueError(
            f"a crop of {smallest} points has no means of {NEIGHBORS} neighbours to complete it with: raise the lower "
            'bound of crop, take larger clouds, or completion="duplicates"'
        )
    while smallest < length:
        means = _means_of_neighbors(points, slots < count)
        # The means of the present points, in random order, fill the empty rows.
        order = draws.uniform(length).masked_fill(slots >= count, 2.0).argsort(dim=1, stable=True)
        grown = (2 * count).clamp(max=length)
        source = order.gather(1, (slots - count).clamp(min=0))
        fresh = (slots >= count) & (slots < grown)
        points = torch.where(fresh[..., None], gather(means, source), points)
        count, smallest = grown, min(2 * smallest, length)
    return points


def _means_of_neighbors(points: Tensor, valid: Tensor) -> Tensor:
    """Means ``(B, L, 3)`` of the four points nearest to each valid point, itself included; 0 for other points."""
    packed = points[valid]
    offsets = torch.cat([valid.new_zeros(1, dtype=torch.int64), valid.sum(1).cumsum(0)])
    neighbors = knn(packed, NEIGHBORS, offsets=offsets).index
    means = torch.zeros_like(points)
    means[valid] = gather(packed, neighbors).mean(1)
    return means
