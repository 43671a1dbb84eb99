"""Parts of clouds: the points around a seed or beyond a plane, filled up to a fixed length so that crops form a batch.

The functions are pure: whatever is random about a crop comes in as numbers (:class:`pc3d.nn.SampleRandom`).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from pc3d.nn.sample_random import SampleRandom
from pc3d.ops import gather, knn

Completion = Literal["midpoints", "duplicates"]
"""How crops that are too small get their number of points."""
NEIGHBORS = 4
"""Points whose mean is a new point: a point and its three nearest."""


def share_of_points(ratio: float, num_points: int) -> int:
    """``ceil(ratio * num_points)``, where 0.7 of 10 is 7 although the product in floating point is a little more."""
    return math.ceil(round(ratio * num_points, 6))


def ball_crop(xyz: Tensor, seed: Tensor, length: int) -> Tensor:
    """The points nearest to one of them, nearest first: a spherical crop.

    Args:
        xyz: ``(B, N, 3)``.
        seed: ``(B,)`` int64, the point of each cloud around which to crop.
        length: how many points, at most N.

    Returns:
        ``(B, length)`` int64 indices; of equally distant points the lowest first.
    """
    center = gather(xyz, seed[:, None])
    return _lowest((xyz - center).square().sum(-1), length)


def half_space_crop(xyz: Tensor, direction: Tensor, length: int) -> Tensor:
    """The points farthest in a direction, farthest first: what lies beyond a plane.

    Args:
        xyz: ``(B, N, 3)``.
        direction: ``(B, 3)``, of any length.
        length: how many points, at most N.

    Returns:
        ``(B, length)`` int64 indices; of points that are equally far the lowest first, so that their number is right
        where the plane goes through many of them.
    """
    return _lowest(-(xyz * direction[:, None]).sum(-1), length)


def _lowest(value: Tensor, length: int) -> Tensor:
    return value.argsort(dim=1, stable=True)[:, :length]


def complete(
    points: Tensor, count: Tensor, smallest: int, draws: SampleRandom, completion: Completion = "midpoints"
) -> Tensor:
    """Fill the rows of clouds that hold no point yet.

    ``"midpoints"``: the mean of each point's four nearest, itself among them, is a new point; a random subset of the
    new ones is added, all of them at most, and so on until the rows are full. ``"duplicates"`` repeats random points.

    Args:
        points: ``(B, L, 3)``; of cloud b the rows from ``count[b]`` on are overwritten, the others stay.
        count: ``(B,)`` int64, at least 1, or 4 for midpoints.
        smallest: what no count is below; with L it says how many rounds there are, whatever the counts of this batch.
        draws: of the random choices.
        completion: see above.

    Returns:
        ``(B, L, 3)``.

    Raises:
        ValueError: ``smallest`` is below 4 and there are no midpoints of so few.
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
        # Which mean fills a row: the means of the points that are there, in random order.
        order = draws.uniform(length).masked_fill(slots >= count, 2.0).argsort(dim=1, stable=True)
        grown = (2 * count).clamp(max=length)
        source = order.gather(1, (slots - count).clamp(min=0))
        fresh = (slots >= count) & (slots < grown)
        points = torch.where(fresh[..., None], gather(means, source), points)
        count, smallest = grown, min(2 * smallest, length)
    return points


def _means_of_neighbors(points: Tensor, valid: Tensor) -> Tensor:
    """Mean of the four nearest of each valid point ``(B, L, 3)``, itself included; others 0."""
    packed = points[valid]
    offsets = torch.cat([valid.new_zeros(1, dtype=torch.int64), valid.sum(1).cumsum(0)])
    neighbors = knn(packed, NEIGHBORS, offsets=offsets).index
    means = torch.zeros_like(points)
    means[valid] = gather(packed, neighbors).mean(1)
    return means
