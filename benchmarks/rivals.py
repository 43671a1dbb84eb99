"""What a user would pick instead of each operator: functions that take the inputs of a row and give a call to time.

A rival that works on one cloud runs in a loop over the clouds, as its user would run it; building its search tree is
part of the call, since pc3d's operators build theirs in every call. A rival returns None where it does not apply.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Call = Callable[[], object]
MAX_PLAIN_ELEMENTS = 1 << 29  # a distance matrix of 2 GB; nobody forms a larger one
MAX_COMPARED_PAIRS = {"cpu": 2e9, "cuda": 2e11}  # for rivals that compare every pair: more takes seconds, or minutes


@dataclass(frozen=True)
class Rival:
    """A competitor: its name in the table, the module it needs, how to get that, and how to make the call to time."""

    name: str
    module: str
    install: str
    make: Callable[..., Call | None]
    devices: tuple[str, ...] = ("cpu",)

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        try:
            importlib.import_module(self.module)
        except (ImportError, OSError) as error:
            return f"not installed ({self.install}): {error}"
        return None


def _numpy(points: Tensor) -> list[Any]:
    return [cloud.numpy() for cloud in points]


def _batch(points: Tensor) -> Tensor:
    return torch.arange(points.shape[0], device=points.device).repeat_interleave(points.shape[1])


def _pairs(points: Tensor, queries: Tensor) -> int:
    return points.shape[0] * points.shape[1] * queries.shape[1]


# Farthest point sampling: points (B, N, 3), num_samples.


def _fpsample(points: Tensor, num_samples: int) -> Call:
    import fpsample

    clouds, n = _numpy(points), points.shape[1]
    # The fastest height of its tree at each size, as measured.
    height = 3 if n <= 2048 else 5 if n <= 20_000 else 7 if n <= 200_000 else 9
    return lambda: [fpsample.bucket_fps_kdline_sampling(c, num_samples, h=height, start_idx=0) for c in clouds]


def _torch_fps(points: Tensor, num_samples: int) -> Call | None:
    import torch_fps

    if points.shape[1] * num_samples > 2e9:
        return None  # looks at every point in every step: minutes on a CPU, many seconds on a GPU
    mask = torch.ones(points.shape[:2], dtype=torch.bool, device=points.device)
    return lambda: torch_fps.farthest_point_sampling(points, mask, num_samples, random_start=False)


def _torch_cluster_fps(points: Tensor, num_samples: int) -> Call | None:
    import torch_cluster

    if points.shape[1] * num_samples > 2e9:
        return None
    flat, batch, ratio = points.reshape(-1, 3), _batch(points), num_samples / points.shape[1]
    return lambda: torch_cluster.fps(flat, batch, ratio, random_start=False)


def _pytorch3d_fps(points: Tensor, num_samples: int) -> Call | None:
    from pytorch3d.ops import sample_farthest_points

    if points.shape[1] * num_samples > 2e9:
        return None
    return lambda: sample_farthest_points(points, K=num_samples)


def _plain_fps(points: Tensor, num_samples: int) -> Call | None:
    """The loop of PyTorch that many repositories carry, all clouds of a batch at once."""
    if points.shape[1] * num_samples > 2e9:
        return None

    def sample() -> Tensor:
        clouds, width, _ = points.shape
        chosen = torch.zeros(clouds, num_samples, dtype=torch.long, device=points.device)
        nearest = torch.full((clouds, width), torch.inf, device=points.device)
        each = torch.arange(clouds, device=points.device)
        last = chosen[:, 0]
        for step in range(1, num_samples):
            nearest = torch.minimum(nearest, (points - points[each, last][:, None]).square().sum(2))
            last = chosen[:, step] = nearest.argmax(1)
        return chosen

    return sample


# Neighbours: points (B, N, 3), queries (B, M, 3), k.


def _scipy_knn(points: Tensor, queries: Tensor, k: int) -> Call:
    from scipy.spatial import cKDTree

    pairs = list(zip(_numpy(points), _numpy(queries), strict=True))
    return lambda: [cKDTree(p).query(q, k=k, workers=torch.get_num_threads()) for p, q in pairs]


def _pykdtree_knn(points: Tensor, queries: Tensor, k: int) -> Call:
    from pykdtree.kdtree import KDTree

    pairs = list(zip(_numpy(points), _numpy(queries), strict=True))
    return lambda: [KDTree(p).query(q, k=k) for p, q in pairs]


def _open3d_knn(points: Tensor, queries: Tensor, k: int) -> Call:
    from open3d import core

    def search(p: Any, q: Any) -> object:
        index = core.nns.NearestNeighborSearch(p)
        index.knn_index()
        return index.knn_search(q, k)

    pairs = [tuple(map(core.Tensor.from_numpy, pair)) for pair in zip(_numpy(points), _numpy(queries), strict=True)]
    return lambda: [search(p, q) for p, q in pairs]


def _torch_cluster_knn(points: Tensor, queries: Tensor, k: int) -> Call | None:
    import torch_cluster

    if points.is_cuda and _pairs(points, queries) > MAX_COMPARED_PAIRS["cuda"]:
        return None  # on a CPU it has a tree
    flat, query, batch, query_batch = points.reshape(-1, 3), queries.reshape(-1, 3), _batch(points), _batch(queries)
    return lambda: torch_cluster.knn(flat, query, k, batch, query_batch)


def _pytorch3d_knn(points: Tensor, queries: Tensor, k: int) -> Call | None:
    from pytorch3d.ops import knn_points

    if _pairs(points, queries) > MAX_COMPARED_PAIRS[points.device.type]:
        return None
    return lambda: knn_points(queries, points, K=k)


def _plain_knn(points: Tensor, queries: Tensor, k: int) -> Call | None:
    if _pairs(points, queries) > MAX_PLAIN_ELEMENTS:
        return None
    return lambda: torch.cdist(queries, points).topk(k, largest=False)


# Radius search: points (B, N, 3), queries (B, M, 3), radius, max_neighbors.


def _scipy_radius(points: Tensor, queries: Tensor, radius: float, max_neighbors: int) -> Call:
    from scipy.spatial import cKDTree

    pairs = list(zip(_numpy(points), _numpy(queries), strict=True))
    return lambda: [cKDTree(p).query_ball_point(q, radius, workers=torch.get_num_threads()) for p, q in pairs]


def _open3d_radius(points: Tensor, queries: Tensor, radius: float, max_neighbors: int) -> Call:
    from open3d import core

    def search(p: Any, q: Any) -> object:
        index = core.nns.NearestNeighborSearch(p)
        index.hybrid_index(radius)
        return index.hybrid_search(q, radius, max_neighbors)

    pairs = [tuple(map(core.Tensor.from_numpy, pair)) for pair in zip(_numpy(points), _numpy(queries), strict=True)]
    return lambda: [search(p, q) for p, q in pairs]


def _torch_cluster_radius(points: Tensor, queries: Tensor, radius: float, max_neighbors: int) -> Call | None:
    import torch_cluster

    if points.is_cuda and _pairs(points, queries) > MAX_COMPARED_PAIRS["cuda"]:
        return None  # on a CPU it has a tree
    flat, query, batch, query_batch = points.reshape(-1, 3), queries.reshape(-1, 3), _batch(points), _batch(queries)
    return lambda: torch_cluster.radius(flat, query, radius, batch, query_batch, max_neighbors)


def _pytorch3d_radius(points: Tensor, queries: Tensor, radius: float, max_neighbors: int) -> Call | None:
    from pytorch3d.ops import ball_query

    if _pairs(points, queries) > MAX_COMPARED_PAIRS[points.device.type]:
        return None
    return lambda: ball_query(queries, points, K=max_neighbors, radius=radius, return_nn=False)


def _plain_radius(points: Tensor, queries: Tensor, radius: float, max_neighbors: int) -> Call | None:
    if _pairs(points, queries) > MAX_PLAIN_ELEMENTS:
        return None

    def search() -> tuple[Tensor, Tensor]:
        found = torch.cdist(queries, points).topk(max_neighbors, largest=False)
        return found.indices, found.values <= radius

    return search


# Chamfer distance: x and y (B, N, 3), whether to run backward.


def _pytorch3d_chamfer(x: Tensor, y: Tensor, backward: bool) -> Call:
    from pytorch3d.loss import chamfer_distance

    def distance() -> Tensor:
        leaf = x.detach().requires_grad_(backward)
        loss: Tensor = chamfer_distance(leaf, y)[0]
        if backward:
            loss.backward()
        return loss

    return distance


def _plain_chamfer(x: Tensor, y: Tensor, backward: bool) -> Call | None:
    if _pairs(x, y) > MAX_PLAIN_ELEMENTS:
        return None

    def distance() -> Tensor:
        leaf = x.detach().requires_grad_(backward)
        squared = torch.cdist(leaf, y).square()
        loss = squared.amin(2).mean() + squared.amin(1).mean()
        if backward:
            loss.backward()
        return loss

    return distance


_SCIPY = ("scipy.spatial", "pip install scipy")
_OPEN3D = ("open3d", "pip install open3d-cpu; Debian: apt-get install libusb-1.0-0")
_CLUSTER = ("torch_cluster", "pip install --no-build-isolation torch-cluster; compiles for more than 15 minutes")
_PYTORCH3D = (
    "pip install --no-build-isolation . in a clone of github.com/facebookresearch/pytorch3d, "
    "for torch 2.14 with c++20 in place of c++17 in its setup.py; compiles for half an hour"
)
_BOTH = ("cpu", "cuda")

RIVALS: dict[str, list[Rival]] = {
    "fps": [
        Rival("fpsample", "fpsample", "pip install fpsample", _fpsample),
        Rival("torch-fps", "torch_fps", "pip install torch-fps", _torch_fps, _BOTH),
        Rival("torch_cluster", *_CLUSTER, _torch_cluster_fps, _BOTH),
        Rival("pytorch3d", "pytorch3d.ops", _PYTORCH3D, _pytorch3d_fps, _BOTH),
        Rival("torch", "torch", "pip install torch", _plain_fps, ("cuda",)),
    ],
    "knn": [
        Rival("scipy", *_SCIPY, _scipy_knn),
        Rival("pykdtree", "pykdtree.kdtree", "pip install pykdtree", _pykdtree_knn),
        Rival("open3d", *_OPEN3D, _open3d_knn),
        Rival("torch_cluster", *_CLUSTER, _torch_cluster_knn, _BOTH),
        Rival("pytorch3d", "pytorch3d.ops", _PYTORCH3D, _pytorch3d_knn, _BOTH),
        Rival("torch", "torch", "pip install torch", _plain_knn, _BOTH),
    ],
    "radius": [
        Rival("scipy", *_SCIPY, _scipy_radius),
        Rival("open3d", *_OPEN3D, _open3d_radius),
        Rival("torch_cluster", *_CLUSTER, _torch_cluster_radius, _BOTH),
        Rival("pytorch3d", "pytorch3d.ops", _PYTORCH3D, _pytorch3d_radius, _BOTH),
        Rival("torch", "torch", "pip install torch", _plain_radius, ("cuda",)),
    ],
    "chamfer": [
        Rival("pytorch3d", "pytorch3d.loss", _PYTORCH3D, _pytorch3d_chamfer, _BOTH),
        Rival("torch", "torch", "pip install torch", _plain_chamfer, _BOTH),
    ],
}
