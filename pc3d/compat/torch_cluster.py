"""Functions of ``torch_cluster`` that repositories for point clouds use, implemented with :mod:`pc3d.ops`.

``x`` is (N, F), or (N,) for one coordinate. ``batch`` (N,) is the cloud of each row, in ascending order. Edges are
(2, E) int64. Points of up to three coordinates use pc3d's operators. :func:`knn`, :func:`knn_graph` and
:func:`nearest` also take wider features, for which they compute all pairwise distances.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from pc3d import ops
from pc3d.ops.neighbors import MAX_K

_DISTANCES = 1 << 24
"""Number of pairwise distances in memory at a time: 64 MB in float32."""


def _rows(x: Tensor) -> Tensor:
    """(N, F) float32 or float64, padded with zeros to three coordinates, which does not change distances."""
    x = x[:, None] if x.dim() == 1 else x
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return pad(x, (0, max(0, 3 - x.shape[1])))


def _points(x: Tensor, function: str) -> Tensor:
    if x.dim() > 1 and x.shape[1] > 3:
        raise ValueError(f"{function} takes points of at most three coordinates, got shape {tuple(x.shape)}")
    return _rows(x)


def _offsets(
    batches: list[Tensor | None], rows: list[int], batch_size: int | None, device: torch.device
) -> list[Tensor]:
    """(B + 1,) offsets of each set of rows, for the same number of clouds B."""
    named = [int(batch.max()) + 1 for batch in batches if batch is not None and batch.numel()]
    num_clouds = max(named, default=1) if batch_size is None else batch_size
    if max(named, default=0) > num_clouds:
        raise ValueError(f"batch_size is {batch_size}, but a batch names cloud {max(named) - 1}")
    found = []
    for batch, n in zip(batches, rows, strict=True):
        if batch is None:
            batch = torch.zeros(n, dtype=torch.int64, device=device)
        if batch.shape != (n,) or bool((batch[1:] < batch[:-1]).any()):
            raise ValueError(f"batch must have shape ({n},), one for each row, and ascend; got {tuple(batch.shape)}")
        found.append(pad(torch.bincount(batch, minlength=num_clouds).cumsum(0), (1, 0)))
    return found


def _nearest_of_cloud(x: Tensor, y: Tensor, k: int) -> Tensor:
    if x.shape[1] == 3 and k <= MAX_K:
        return ops.knn(x, k, query=y).index
    # Without the matrix product, whose rounding errors are large far from the origin.
    exact = "donot_use_mm_for_euclid_dist"
    parts = y.split(max(1, _DISTANCES // x.shape[0]))
    return torch.cat([torch.cdist(part, x, compute_mode=exact).topk(k, largest=False).indices for part in parts])


def _nearest(x: Tensor, y: Tensor, k: int, cuts_x: Tensor, cuts_y: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (M, k) of ``x`` nearest to each row of ``y``, and a mask of the slots that hold a neighbour."""
    have = cuts_x.diff()
    if x.shape[1] == 3 and k <= MAX_K and bool((have >= k).all()):
        index = ops.knn(x, k, query=y, offsets=cuts_x, query_offsets=cuts_y).index
        return index, torch.ones_like(index, dtype=torch.bool)
    index, starts, ends = cuts_y.new_full((y.shape[0], k), -1), cuts_x.tolist(), cuts_y.tolist()
    for cloud, size in enumerate(have.tolist()):
        asking = slice(ends[cloud], ends[cloud + 1])
        points = x[starts[cloud] : starts[cloud + 1]]
        if size and asking.start < asking.stop:
            index[asking, : min(k, size)] = starts[cloud] + _nearest_of_cloud(points, y[asking], min(k, size))
    return index, index >= 0


def _edges(index: Tensor, there: Tensor) -> Tensor:
    """Edges (2, E): row of the query, and row of its neighbour."""
    asking, slot = there.nonzero(as_tuple=True)
    return torch.stack([asking, index[asking, slot]])


def _graph(index: Tensor, there: Tensor, loop: bool, flow: str) -> Tensor:
    if flow not in ("source_to_target", "target_to_source"):
        raise ValueError(f"flow must be source_to_target or target_to_source, got {flow!r}")
    if not loop:
        # With duplicate points, a point may not be among its own neighbours; then drop the last neighbour instead.
        there = there & (index != torch.arange(index.shape[0], device=index.device)[:, None])
        there[:, -1] &= there.sum(1) < index.shape[1]
    edges = _edges(index, there)
    return edges.flip(0) if flow == "source_to_target" else edges


def _knn(
    x: Tensor, y: Tensor, k: int, batches: list[Tensor | None], cosine: bool, batch_size: int | None
) -> tuple[Tensor, Tensor]:
    x, y = _rows(x).detach(), _rows(y).detach()
    cuts = _offsets(batches, [x.shape[0], y.shape[0]], batch_size, x.device)
    if cosine:  # for unit vectors, the smallest distance is the smallest angle
        x, y = torch.nn.functional.normalize(x), torch.nn.functional.normalize(y)
    return _nearest(x, y, k, *cuts)


def knn(
    x: Tensor,
    y: Tensor,
    k: int,
    batch_x: Tensor | None = None,
    batch_y: Tensor | None = None,
    cosine: bool = False,
    num_workers: int = 1,
    batch_size: int | None = None,
) -> Tensor:
    """Edges to the ``k`` rows of ``x`` nearest to each row of ``y``, nearest first: (row of y, row of x)."""
    return _edges(*_knn(x, y, k, [batch_x, batch_y], cosine, batch_size))


def knn_graph(
    x: Tensor,
    k: int,
    batch: Tensor | None = None,
    loop: bool = False,
    flow: str = "source_to_target",
    cosine: bool = False,
    num_workers: int = 1,
    batch_size: int | None = None,
) -> Tensor:
    """Edges from the ``k`` nearest rows to each row, or in reverse (``flow``); without itself unless ``loop``."""
    found = _knn(x, x, k if loop else k + 1, [batch, batch], cosine, batch_size)
    return _graph(*found, loop, flow)


def _radius(
    x: Tensor, y: Tensor, r: float, batches: list[Tensor | None], most: int, batch_size: int | None
) -> tuple[Tensor, Tensor]:
    points, queries = _points(x, "radius").detach(), _points(y, "radius").detach()
    cuts = _offsets(batches, [points.shape[0], queries.shape[0]], batch_size, points.device)
    most = max(1, min(most, points.shape[0]))
    index, count = ops.ball_query(points, r, most, query=queries, offsets=cuts[0], query_offsets=cuts[1])
    return index, torch.arange(most, device=index.device) < count[:, None]


def radius(
    x: Tensor,
    y: Tensor,
    r: float,
    batch_x: Tensor | None = None,
    batch_y: Tensor | None = None,
    max_num_neighbors: int = 32,
    num_workers: int = 1,
    batch_size: int | None = None,
) -> Tensor:
    """Edges to the rows of ``x`` closer than ``r`` to each row of ``y``: (row of y, row of x).

    If there are more than ``max_num_neighbors``, those with the lowest indices are kept.
    """
    return _edges(*_radius(x, y, r, [batch_x, batch_y], max_num_neighbors, batch_size))


def radius_graph(
    x: Tensor,
    r: float,
    batch: Tensor | None = None,
    loop: bool = False,
    max_num_neighbors: int = 32,
    flow: str = "source_to_target",
    num_workers: int = 1,
    batch_size: int | None = None,
) -> Tensor:
    """Edges from all rows closer than ``r`` to each row, or in reverse (``flow``); without itself unless ``loop``."""
    found = _radius(x, x, r, [batch, batch], max_num_neighbors + (not loop), batch_size)
    return _graph(*found, loop, flow)


def nearest(x: Tensor, y: Tensor, batch_x: Tensor | None = None, batch_y: Tensor | None = None) -> Tensor:
    """The row of ``y`` nearest to each row of ``x``, (N,)."""
    index, there = _knn(y, x, 1, [batch_y, batch_x], False, None)
    if not bool(there.all()):
        raise ValueError(f"row {int((~there).nonzero()[0, 0])} of x is in a cloud of which y has no points")
    return index[:, 0]


def fps(
    src: Tensor,
    batch: Tensor | None = None,
    ratio: Tensor | float | None = None,
    random_start: bool = True,
    batch_size: int | None = None,
    ptr: Tensor | list[int] | None = None,
) -> Tensor:
    """Rows of farthest points, in the order of sampling: a share ``ratio`` of each cloud (default 0.5), rounded up."""
    points = _points(src, "fps").detach()
    if ptr is None:
        (cuts,) = _offsets([batch], [points.shape[0]], batch_size, points.device)
    else:
        cuts = torch.as_tensor(ptr, device=points.device)
    # Rounded to the dtype of the input, and multiplied in the dtype of the operator.
    share = torch.as_tensor(0.5 if ratio is None else ratio, dtype=src.dtype, device=src.device).to(points.dtype)
    wanted = (cuts.diff() * share).ceil().long()
    return ops.farthest_point_sample(points, wanted, offsets=cuts, start="random" if random_start else "first")


def graclus_cluster(row: Tensor, col: Tensor, weight: Tensor | None = None, num_nodes: int | None = None) -> Tensor:
    """Refused; the name is here because ``torch_geometric`` imports it, though it calls it only to coarsen graphs."""
    raise NotImplementedError(
        "pc3d.compat has no graclus_cluster, which coarsens a graph: install torch_cluster itself for it"
    )


def grid_cluster(pos: Tensor, size: Tensor, start: Tensor | None = None, end: Tensor | None = None) -> Tensor:
    """Index (N,) of the grid cell of (N, F) positions; the first coordinate varies fastest."""
    pos = pos[:, None] if pos.dim() == 1 else pos
    start = pos.amin(0) if start is None else start
    end = pos.amax(0) if end is None else end
    cells = ((end - start) / size).long() + 1
    strides = pad(cells.cumprod(0)[:-1], (1, 0), value=1)
    return (((pos - start) / size).long() * strides).sum(1)
