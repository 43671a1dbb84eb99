"""Point clouds that are hard on operators, and plain numpy statements of what the operators compute."""

from __future__ import annotations

import itertools
import os

import numpy as np
import torch
from torch import Tensor

KINDS = ("normal", "lattice", "duplicates", "sorted", "line", "huge", "tiny")
LENGTHS = ([200], [7, 0, 130, 1, 64], [0, 0, 33], [300, 301])


def order_of_sums(device: torch.device) -> float:
    """By how much gradients in float64 may differ from call to call: a GPU adds atomically, in an order that varies."""
    return 1e-12 if device.type == "cuda" or "PC3D_EMULATED_CUDA" in os.environ else 0.0


def make(kind: str, num_points: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """(num_points, 3) of a kind; "lattice", "duplicates" and "line" are exact in every type, and full of ties."""
    random = torch.Generator().manual_seed(seed)
    normal = torch.randn(num_points, 3, generator=random, dtype=torch.float64)
    lattice = torch.randint(-2, 3, (num_points, 3), generator=random).double() / 4
    points = {
        "normal": normal,
        "lattice": lattice,
        "duplicates": lattice[torch.randint(0, max(1, num_points // 8), (num_points,), generator=random)]
        if num_points
        else lattice,
        "sorted": normal.sort(0).values,
        "line": torch.arange(num_points)[:, None].double() * torch.tensor([1.0, 0.0, 0.0]),
        "huge": 1e4 + normal,
        "tiny": 1e-4 * normal,
    }[kind]
    return points.to(dtype)


def offsets_of(lengths: list[int]) -> Tensor:
    """(B + 1,) int64 offsets of clouds of these lengths."""
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int64)


def pairs(offsets: Tensor) -> list[tuple[int, int]]:
    """(begin, end) of each cloud."""
    bounds = offsets.tolist()
    return list(itertools.pairwise(bounds))


def squared_distances(a: Tensor, b: Tensor) -> np.ndarray:
    """(n, m) squared distances, rounded after every operation in the type of the points, as numpy does."""
    a, b = a.cpu().numpy(), b.cpu().numpy()
    d = a[:, None] - b[None]
    return (d[..., 0] * d[..., 0] + d[..., 1] * d[..., 1]) + d[..., 2] * d[..., 2]


def nearest(points: Tensor, queries: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and squared distances of the k nearest, by (distance, index)."""
    distance = squared_distances(queries, points)
    index = np.broadcast_to(np.arange(points.shape[0]), distance.shape)
    order = np.lexsort((index, distance), axis=-1)[:, :k]
    return order, np.take_along_axis(distance, order, axis=1)


def greedy(points: Tensor, num_samples: int, start: int = 0) -> np.ndarray:
    """Farthest point sampling by its definition: the untaken point farthest from all taken, lowest index first."""
    distance = squared_distances(points, points)
    taken = [start]
    while len(taken) < num_samples:
        to_taken = distance[:, taken].min(1)
        to_taken[taken] = -1
        taken.append(int(to_taken.argmax()))
    return np.array(taken)
