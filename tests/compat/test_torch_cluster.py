"""The stand-in for torch_cluster against loops over all pairs in float64; its own results were compared with 1.6.3."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pc3d.compat import torch_cluster

SIZES = [40, 0, 3, 25]
"""Of the clouds: one is empty, one has fewer points than are asked for."""
ASKING = [6, 2, 4, 0]


def cloud(sizes: list[int], width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    points = torch.rand(sum(sizes), width, generator=torch.Generator().manual_seed(seed))
    return points, torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


def nearest_of(
    x: torch.Tensor, batch_x: torch.Tensor, y: torch.Tensor, batch_y: torch.Tensor, k: int
) -> list[tuple[int, int]]:
    edges = []
    for row, (query, number) in enumerate(zip(y.double(), batch_y, strict=True)):
        mine = [(float((point - query).norm()), i) for i, point in enumerate(x.double()) if batch_x[i] == number]
        edges += [(row, i) for _, i in sorted(mine)[:k]]
    return edges


def pairs(edges: torch.Tensor) -> list[tuple[int, int]]:
    assert edges.dtype == torch.int64
    assert edges.shape[0] == 2
    return [(int(a), int(b)) for a, b in edges.T]


@pytest.mark.parametrize("width", [1, 2, 3, 7])
@pytest.mark.parametrize("k", [1, 5, 200])
def test_knn(width: int, k: int) -> None:
    (x, batch_x), (y, batch_y) = cloud(SIZES, width, 0), cloud(ASKING, width, 1)
    assert pairs(torch_cluster.knn(x, y, k, batch_x, batch_y)) == nearest_of(x, batch_x, y, batch_y, k)
    one = torch.zeros(len(x), dtype=torch.long), torch.zeros(len(y), dtype=torch.long)
    assert pairs(torch_cluster.knn(x, y, k)) == nearest_of(x, one[0], y, one[1], k)
    if width == 1:
        assert torch.equal(torch_cluster.knn(x[:, 0], y[:, 0], k), torch_cluster.knn(x, y, k))


def test_wide_features_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    (x, batch_x), (y, batch_y) = cloud(SIZES, 7, 0), cloud(ASKING, 7, 1)
    whole = torch_cluster.knn(x + 1000, y + 1000, 5, batch_x, batch_y)
    monkeypatch.setattr(torch_cluster, "_DISTANCES", 100)
    assert torch.equal(torch_cluster.knn(x + 1000, y + 1000, 5, batch_x, batch_y), whole)
    # Far from the origin, where a matrix product would round differences away.
    assert pairs(whole) == nearest_of(x + 1000, batch_x, y + 1000, batch_y, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [3, 7])
def test_features_of_half_precision(width: int, dtype: torch.dtype) -> None:
    """As a network in mixed precision has them; pairs that the rounding puts at one distance are avoided."""
    (x, batch_x), (y, batch_y) = cloud(SIZES, width, 0), cloud(ASKING, width, 4)
    x, y = (100 * x).to(dtype), (100 * y).to(dtype)
    assert pairs(torch_cluster.knn(x, y, 5, batch_x, batch_y)) == nearest_of(x, batch_x, y, batch_y, 5)


def test_farthest_points_of_half_precision_are_as_many_as_of_single() -> None:
    for size, share, number in (
        (4097, 1 / 2, 2049),
        (70_000, 1 / 64, 1094),
    ):  # float16 has no 4097, and nothing beyond 65,504
        points = cloud([size], 3, 0)[0].half()
        assert len(torch_cluster.fps(points, ratio=share)) == number


@pytest.mark.parametrize("width", [3, 7])
def test_nearest_by_angle(width: int) -> None:
    (x, batch_x), (y, batch_y) = cloud([30, 20], width, 0), cloud([4, 4], width, 1)
    x, y = 20 * (x - 0.5), 3 * (y - 0.5)
    unit_x, unit_y = x.double() / x.double().norm(dim=1)[:, None], y.double() / y.double().norm(dim=1)[:, None]
    expected = []
    for row in range(len(y)):
        angles = (unit_x @ unit_y[row]).clamp(-1, 1).acos()
        expected += [(row, int(i)) for i in angles.argsort() if batch_x[i] == batch_y[row]][:3]
    assert pairs(torch_cluster.knn(x, y, 3, batch_x, batch_y, cosine=True)) == expected


@pytest.mark.parametrize("width", [3, 7])
def test_knn_graph(width: int) -> None:
    x, batch = cloud(SIZES, width, 0)
    expected = [(i, j) for i, j in nearest_of(x, batch, x, batch, 5) if i != j]
    assert pairs(torch_cluster.knn_graph(x, 4, batch, flow="target_to_source")) == expected
    assert pairs(torch_cluster.knn_graph(x, 4, batch)) == [(j, i) for i, j in expected]
    looped = torch_cluster.knn_graph(x, 4, batch, loop=True, flow="target_to_source")
    assert pairs(looped) == nearest_of(x, batch, x, batch, 4)


def test_points_at_one_place_have_as_many_neighbours_as_others() -> None:
    centres = torch_cluster.knn_graph(torch.zeros(6, 3), 2)[1]
    assert centres.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    edges = torch_cluster.radius_graph(torch.zeros(6, 3), 1.0, max_num_neighbors=2)
    assert edges[1].tolist() == centres.tolist()
    assert not bool((edges[0] == edges[1]).any())


@pytest.mark.parametrize("width", [1, 2, 3])
def test_radius(width: int) -> None:
    (x, batch_x), (y, batch_y) = cloud(SIZES, width, 0), cloud(ASKING, width, 1)
    within = [
        (row, i)
        for row in range(len(y))
        for i in range(len(x))
        if batch_x[i] == batch_y[row] and float((x[i].double() - y[row].double()).norm()) < 0.4
    ]
    assert within
    assert pairs(torch_cluster.radius(x, y, 0.4, batch_x, batch_y, max_num_neighbors=1000)) == within
    first = [edge for edge in within if sum(edge[0] == other[0] for other in within[: within.index(edge)]) < 3]
    assert len(first) < len(within)
    assert pairs(torch_cluster.radius(x, y, 0.4, batch_x, batch_y, max_num_neighbors=3)) == first


def test_radius_graph() -> None:
    x, batch = cloud(SIZES, 3, 0)
    close = (torch.cdist(x.double(), x.double()) < 0.3) & (batch[:, None] == batch)
    assert pairs(torch_cluster.radius_graph(x, 0.3, batch, loop=True, flow="target_to_source")) == pairs(
        close.nonzero().T
    )
    close.fill_diagonal_(False)
    assert bool(close.any())
    assert pairs(torch_cluster.radius_graph(x, 0.3, batch)) == pairs(close.nonzero().T.flip(0))
    assert pairs(torch_cluster.radius(torch.tensor([0.0, 1, 2]), torch.zeros(1), 1.0)) == [(0, 0)]  # 1 is not closer


@pytest.mark.parametrize("ratio", [None, 0.25, 1.0])
def test_farthest_points(ratio: float | None) -> None:
    points, batch = cloud(SIZES, 2, 0)
    expected = []
    for number, size in enumerate(SIZES):
        mine, start = points[batch == number].double(), sum(SIZES[:number])
        chosen = [0] if size else []
        for _ in range(1, -(-size * (4 * (ratio or 0.5)) // 4).__int__()):
            chosen.append(int(torch.cdist(mine, mine[chosen]).amin(1).argmax()))
        expected += [start + i for i in chosen]
    assert torch_cluster.fps(points, batch, ratio, random_start=False).tolist() == expected
    ends = [0, 40, 40, 43, 68]
    assert torch_cluster.fps(points, None, ratio, random_start=False, ptr=ends).tolist() == expected
    assert torch_cluster.fps(points, None, ratio, random_start=False, ptr=torch.tensor(ends)).tolist() == expected


def test_farthest_points_with_a_ratio_for_each_cloud_and_a_random_start() -> None:
    points, batch = cloud([10, 20], 3, 0)
    found = torch_cluster.fps(points, batch, torch.tensor([0.5, 0.1]), random_start=False)
    assert found.tolist()[0] == 0
    assert (found < 10).tolist() == [True] * 5 + [False] * 2
    starts = {int(torch_cluster.fps(points, batch, 0.1)[0]) for _ in range(60)}
    assert len(starts) > 3


def test_grid() -> None:
    positions = torch.tensor([[0, 0], [11, 9], [2, 8], [2, 2], [8, 3.0]])
    assert torch_cluster.grid_cluster(positions, torch.tensor([5.0, 5.0])).tolist() == [0, 5, 3, 0, 1]
    within = {"start": torch.tensor([-5.0, 0.0]), "end": torch.tensor([14.0, 9.0])}
    assert torch_cluster.grid_cluster(positions, torch.tensor([5.0, 5.0]), **within).tolist() == [1, 7, 5, 1, 2]
    assert torch_cluster.grid_cluster(torch.tensor([0.1, 0.9, 0.5]), torch.tensor([0.3])).tolist() == [0, 2, 1]


def test_nearest() -> None:
    (x, batch_x), (y, batch_y) = cloud([5, 0, 7], 3, 0), cloud([4, 2, 9], 3, 1)
    expected = [i for _, i in nearest_of(y, batch_y, x, batch_x, 1)]
    assert torch_cluster.nearest(x, y, batch_x, batch_y).tolist() == expected
    with pytest.raises(ValueError, match="row 0 of x is in a cloud of which y has no points"):
        torch_cluster.nearest(x, y, torch.ones(12, dtype=torch.long), torch.zeros(15, dtype=torch.long))


def test_nothing_gives_no_edges() -> None:
    none, some = torch.zeros(0, 3), torch.rand(4, 3)
    for edges in (
        torch_cluster.knn(none, some, 2),
        torch_cluster.knn(some, none, 2),
        torch_cluster.radius(none, some, 1.0),
        torch_cluster.radius(some, none, 1.0),
        torch_cluster.knn_graph(none, 2),
        torch_cluster.radius_graph(none, 1.0),
    ):
        assert edges.shape == (2, 0)


X, BATCH = torch.zeros(4, 3), torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (r"batch must have shape \(4,\), .* got \(3,\)", lambda: torch_cluster.fps(X, BATCH[:3])),
        (r"batch must have .* and ascend", lambda: torch_cluster.knn(X, X, 1, BATCH.flip(0), BATCH)),
        ("batch_size is 1, but a batch names cloud 1", lambda: torch_cluster.knn(X, X, 1, BATCH, BATCH, batch_size=1)),
        ("flow must be .* got 'up'", lambda: torch_cluster.knn_graph(X, 1, flow="up")),
        (
            r"fps takes points of at most three coordinates, got shape \(4, 5\)",
            lambda: torch_cluster.fps(X.new_zeros(4, 5)),
        ),
        ("radius takes points of at most three", lambda: torch_cluster.radius_graph(X.new_zeros(4, 5), 1.0)),
    ],
)
def test_what_it_refuses(message: str, call: Any) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_the_name_that_torch_geometric_imports_is_there_but_refused() -> None:
    """``torch_geometric.nn.pool`` imports it if it finds a torch_cluster; without the name it cannot be imported."""
    edges = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(NotImplementedError, match="install torch_cluster"):
        torch_cluster.graclus_cluster(edges, edges)
