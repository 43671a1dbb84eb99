"""Ball queries: brute force in numpy, both orders, ties, layouts, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from clouds import KINDS, make, offsets_of, squared_distances

from pc3d.data import Household
from pc3d.ops import ball_query, reference


def expected(points, queries, radius, max_neighbors, order):
    distance = squared_distances(queries, points)
    limit = np.square(distance.dtype.type(radius))
    rows, counts = [], []
    for row in distance:
        inside = np.flatnonzero(row < limit)
        if order == "distance":
            inside = inside[np.argsort(row[inside], kind="stable")]
        inside = inside[:max_neighbors]
        padding = inside[0] if len(inside) else -1
        rows.append([*inside, *[padding] * (max_neighbors - len(inside))])
        counts.append(len(inside))
    return rows, counts


RADIUS = {"normal": 0.4, "lattice": 0.5, "duplicates": 0.25, "sorted": 0.3, "line": 3.0, "huge": 0.4, "tiny": 4e-5}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("order", ["index", "distance"])
@pytest.mark.parametrize("max_neighbors", [1, 16, 40, 300])
def test_equals_brute_force(device, kind, dtype, order, max_neighbors):
    points, queries = make(kind, 600, dtype), make(kind, 50, dtype, seed=1)
    found = ball_query(points.to(device), RADIUS[kind], max_neighbors, query=queries.to(device), order=order)
    rows, counts = expected(points, queries, RADIUS[kind], max_neighbors, order)
    assert found.index.tolist() == rows
    assert found.count.tolist() == counts


@pytest.mark.parametrize("order", ["index", "distance"])
@pytest.mark.parametrize("radius", [1e-3, 0.6, 100.0])
def test_packed_clouds_equal_the_definition(device, order, radius):
    lengths, query_lengths = [200, 0, 40, 1300], [9, 4, 3, 20]
    offsets, query_offsets = offsets_of(lengths), offsets_of(query_lengths)
    points, queries = make("lattice", sum(lengths)), make("lattice", sum(query_lengths), seed=3)
    found = ball_query(
        points.to(device),
        radius,
        20,
        query=queries.to(device),
        offsets=offsets.to(device),
        query_offsets=query_offsets.to(device),
        order=order,
    )
    index, count = reference.ball_query(points, offsets, queries, query_offsets, radius, 20, order == "distance")
    assert torch.equal(found.index.cpu(), index)
    assert torch.equal(found.count.cpu(), count)
    assert bool((found.index[9:13] == -1).all())  # the queries of the empty cloud
    assert found.count[9:13].tolist() == [0, 0, 0, 0]


def test_real_objects(device):
    cloud = Household(split="train", num_points=1024)[1].xyz
    found = ball_query(cloud.to(device), 0.2, 32, query=cloud[:40].to(device))
    rows, counts = expected(cloud, cloud[:40], 0.2, 32, "index")
    assert found.index.tolist() == rows
    assert found.count.tolist() == counts


def test_the_radius_is_strict(device):
    points = torch.tensor([[1.0, 0, 0], [0.5, 0, 0], [0, 0, 0]], device=device)
    found = ball_query(points, 0.5, 3, query=torch.zeros(1, 3, device=device))
    assert found.index.tolist() == [[2, 2, 2]]
    assert found.count.tolist() == [1]


def test_orders_differ(device):
    points = torch.tensor([[0.3, 0, 0], [0.2, 0, 0], [0.1, 0, 0]], device=device)
    query = torch.zeros(1, 3, device=device)
    assert ball_query(points, 1, 2, query=query).index.tolist() == [[0, 1]]
    assert ball_query(points, 1, 2, query=query, order="distance").index.tolist() == [[2, 1]]
    assert ball_query(points, 1, 4, query=query, order="distance").index.tolist() == [[2, 1, 0, 2]]


@pytest.mark.parametrize("order", ["index", "distance"])
def test_dense_equals_packed_equals_one_at_a_time(device, order):
    points = make("lattice", 3 * 80).reshape(3, 80, 3).to(device)
    dense = ball_query(points, 0.5, 12, order=order)
    packed = ball_query(points.reshape(-1, 3), 0.5, 12, offsets=offsets_of([80] * 3).to(device), order=order)
    rows = dense.index + torch.arange(3, device=device)[:, None, None] * 80
    assert torch.equal(rows.reshape(-1, 12), packed.index)
    assert torch.equal(dense.count.reshape(-1), packed.count)
    for b in range(3):
        alone = ball_query(points[b], 0.5, 12, order=order)
        assert torch.equal(alone.index, dense.index[b])
        assert torch.equal(alone.count, dense.count[b])


def test_an_empty_ball_stays_minus_one_in_dense_clouds(device):
    points = torch.zeros(2, 4, 3, device=device)
    found = ball_query(points, 0.1, 3, query=torch.ones(2, 1, 3, device=device))
    assert found.index.tolist() == [[[-1] * 3]] * 2
    assert found.count.tolist() == [[0], [0]]


def test_no_clouds_and_no_queries(device):
    found = ball_query(torch.empty(0, 5, 3, device=device), 1.0, 2)
    assert found.index.shape == (0, 5, 2)
    assert found.count.shape == (0, 5)
    found = ball_query(torch.empty(2, 0, 3, device=device), 1.0, 2, query=torch.zeros(2, 3, 3, device=device))
    assert found.index.tolist() == [[[-1, -1]] * 3] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_float32(device, dtype):
    points = make("normal", 100).to(dtype).to(device)
    assert torch.equal(ball_query(points, 0.7, 9).index, ball_query(points.float(), 0.7, 9).index)


def test_strided_input(device):
    wide = make("normal", 300).reshape(50, 6, 3).transpose(0, 1).to(device)
    assert torch.equal(ball_query(wide, 0.8, 5).index, ball_query(wide.contiguous(), 0.8, 5).index)


BAD = [
    (TypeError, "radius must be a number, got str '1'", {"radius": "1"}),
    (ValueError, "radius must be positive and finite, got 0", {"radius": 0}),
    (ValueError, "radius must be positive and finite, got -1.0", {"radius": -1.0}),
    (ValueError, "radius must be positive and finite, got nan", {"radius": float("nan")}),
    (ValueError, "radius must be positive and finite, got inf", {"radius": float("inf")}),
    (ValueError, "max_neighbors must be at least 1, got 0", {"max_neighbors": 0}),
    (ValueError, "order must be 'index' or 'distance', got 'nearest'", {"order": "nearest"}),
    (ValueError, "xyz holds a NaN", {"xyz": torch.full((2, 5, 3), torch.nan)}),
    (TypeError, "xyz must have dtype", {"xyz": torch.zeros(2, 5, 3, dtype=torch.bool)}),
]


@pytest.mark.parametrize(("error", "message", "change"), BAD)
def test_bad_input_is_named(error, message, change):
    arguments = {"xyz": torch.zeros(2, 5, 3), "radius": 1.0, "max_neighbors": 2} | change
    with pytest.raises(error, match=message):
        ball_query(**arguments)
