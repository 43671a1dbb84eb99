"""k nearest neighbours: brute force in numpy, ties, layouts, gradient, size, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from clouds import KINDS, make, nearest, offsets_of, order_of_sums, pairs

from pc3d.data import Household
from pc3d.ops import knn, reference


def check(found, points, queries, k):
    index, squared = nearest(points, queries, k)
    assert found.index.dtype == torch.int64
    np.testing.assert_array_equal(found.index.cpu().numpy(), index)
    np.testing.assert_array_equal(found.squared_distance.detach().cpu().numpy(), squared)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 3, 16, 32, 33, 64, 100, 128])
def test_equals_brute_force(device, kind, dtype, k):
    points, queries = make(kind, 700, dtype), make(kind, 50, dtype, seed=1)
    check(knn(points.to(device), k, query=queries.to(device)), points, queries, k)


@pytest.mark.parametrize("kind", ["normal", "lattice", "duplicates"])
@pytest.mark.parametrize("num_points", [1, 2, 31, 1024, 2500])
def test_of_the_points_themselves(device, kind, num_points):
    points = make(kind, num_points)
    k = min(num_points, 16)
    check(knn(points.to(device), k), points, points, k)


@pytest.mark.parametrize("kind", ["normal", "lattice", "sorted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("lengths", "query_lengths"),
    [([200, 0, 40, 600], [9, 0, 3, 50]), ([70] * 6, [1, 0, 7, 2, 33, 5]), ([40, 50], [0, 0]), ([0, 300], [0, 9])],
)
@pytest.mark.parametrize("k", [1, 8, 40])
def test_packed_clouds_equal_the_definition(device, kind, dtype, lengths, query_lengths, k):
    offsets, query_offsets = offsets_of(lengths), offsets_of(query_lengths)
    points, queries = make(kind, sum(lengths), dtype), make(kind, sum(query_lengths), dtype, seed=5)
    found = knn(
        points.to(device),
        k,
        query=queries.to(device),
        offsets=offsets.to(device),
        query_offsets=query_offsets.to(device),
    )
    index, squared = reference.knn(points, offsets, queries, query_offsets, k)
    assert torch.equal(found.index.cpu(), index)
    assert torch.equal(found.squared_distance.cpu(), squared)
    for (begin, end), (low, high) in zip(pairs(offsets), pairs(query_offsets), strict=True):
        if low < high:
            alone = nearest(points[begin:end], queries[low:high], k)[0] + begin
            np.testing.assert_array_equal(found.index[low:high].cpu().numpy(), alone)


def test_groups_of_real_objects(device):
    cloud = Household(split="train", num_points=1024)[0].xyz
    check(knn(cloud.to(device), 32, query=cloud[:64].to(device)), cloud, cloud[:64], 32)


def test_agrees_with_cdist_where_nothing_ties(device):
    points, queries = make("normal", 500, torch.float64), make("normal", 60, torch.float64, seed=1)
    found = knn(points.to(device), 10, query=queries.to(device))
    distance, index = torch.cdist(queries, points, compute_mode="donot_use_mm_for_euclid_dist").topk(10, largest=False)
    assert torch.equal(found.index.cpu(), index)
    torch.testing.assert_close(found.squared_distance.cpu().sqrt(), distance)


def test_more_queries_than_a_gpu_serves_one_by_one(device):
    points, queries = make("normal", 60), make("normal", 70_000, seed=1)
    found = knn(points.to(device), 5, query=queries.to(device))
    index, squared = reference.knn(points, offsets_of([60]), queries, offsets_of([70_000]), 5)
    assert torch.equal(found.index.cpu(), index)
    assert torch.equal(found.squared_distance.cpu(), squared)


def test_more_than_two_to_the_31_distances(device):
    side = 37
    axis = torch.arange(side, dtype=torch.float32)
    grid = torch.cartesian_prod(axis, axis, axis)
    grid = grid[torch.randperm(len(grid), generator=torch.Generator().manual_seed(0))]
    assert len(grid) ** 2 > 2**31
    # Every query lies in the Voronoi cell of one lattice point, so its nearest is known without any search.
    shift = torch.tensor([0.25, -0.125, 0.375])
    found = knn(grid.to(device), 1, query=(grid + shift).to(device))
    assert torch.equal(found.index[:, 0].cpu(), torch.arange(len(grid)))
    assert torch.equal(found.squared_distance.cpu(), shift.square().sum().expand(len(grid), 1))


def test_dense_equals_packed_equals_one_at_a_time(device):
    points = make("lattice", 4 * 60).reshape(4, 60, 3).to(device)
    queries = make("lattice", 4 * 9, seed=2).reshape(4, 9, 3).to(device)
    dense = knn(points, 7, query=queries)
    packed = knn(
        points.reshape(-1, 3),
        7,
        query=queries.reshape(-1, 3),
        offsets=offsets_of([60] * 4).to(device),
        query_offsets=offsets_of([9] * 4).to(device),
    )
    rows = dense.index + torch.arange(4, device=device)[:, None, None] * 60
    assert torch.equal(rows.reshape(-1, 7), packed.index)
    assert torch.equal(dense.squared_distance.reshape(-1, 7), packed.squared_distance)
    assert dense.index.shape == (4, 9, 7)
    for b in range(4):
        alone = knn(points[b], 7, query=queries[b])
        assert torch.equal(alone.index, dense.index[b])


def test_moving_and_permuting(device):
    points, queries = make("lattice", 200), make("lattice", 30, seed=1)
    here = knn(points.to(device), 9, query=queries.to(device))
    moved = knn((points + 8).to(device), 9, query=(queries + 8).to(device))
    assert torch.equal(here.index, moved.index)
    assert torch.equal(here.squared_distance, moved.squared_distance)
    free = make("normal", 200)
    order = torch.randperm(200)
    permuted = knn(free[order].to(device), 9, query=queries.to(device)).index.cpu()
    assert torch.equal(order[permuted], knn(free.to(device), 9, query=queries.to(device)).index.cpu())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_float32(device, dtype):
    points = make("normal", 200).to(dtype).to(device)
    found = knn(points, 9)
    assert found.squared_distance.dtype == torch.float32
    assert torch.equal(found.index, knn(points.float(), 9).index)


def test_mixed_precision_computes_in_the_wider(device):
    points, queries = make("normal", 50, torch.float64).to(device), make("normal", 9, seed=1).to(device)
    found = knn(points, 3, query=queries)
    assert found.squared_distance.dtype == torch.float64
    assert torch.equal(found.index, knn(points, 3, query=queries.double()).index)


def test_strided_input(device):
    wide = make("normal", 300).reshape(50, 6, 3).transpose(0, 1).to(device)
    found, expected = knn(wide, 4), knn(wide.contiguous(), 4)
    assert torch.equal(found.index, expected.index)
    assert torch.equal(found.squared_distance, expected.squared_distance)


def test_no_clouds_and_no_queries(device):
    found = knn(torch.empty(0, 5, 3, device=device), 2)
    assert found.index.shape == found.squared_distance.shape == (0, 5, 2)
    found = knn(torch.zeros(2, 5, 3, device=device), 2, query=torch.empty(2, 0, 3, device=device))
    assert found.index.shape == (2, 0, 2)
    empty = torch.zeros(1, dtype=torch.int64, device=device)
    found = knn(torch.empty(0, 3, device=device), 2, offsets=empty)
    assert found.index.shape == (0, 2)


def test_gradient(device):
    points = make("normal", 2 * 12, torch.float64).reshape(2, 12, 3).to(device).requires_grad_()
    queries = make("normal", 2 * 5, torch.float64, seed=1).reshape(2, 5, 3).to(device).requires_grad_()

    def distances(a, b):
        return knn(a, 4, query=b).squared_distance

    assert torch.autograd.gradcheck(distances, (points, queries), nondet_tol=order_of_sums(device))
    assert torch.autograd.gradgradcheck(distances, (points, queries), nondet_tol=order_of_sums(device))
    assert torch.autograd.gradcheck(lambda a: knn(a, 4).squared_distance, (points,), nondet_tol=order_of_sums(device))


def test_gradient_is_that_of_the_distances_written_out(device):
    points = make("lattice", 40).to(device).requires_grad_()
    found = knn(points, 5)
    weight = torch.rand(found.squared_distance.shape, device=device)
    (written,) = torch.autograd.grad(((points[:, None] - points[found.index]).square().sum(-1) * weight).sum(), points)
    (own,) = torch.autograd.grad((found.squared_distance * weight).sum(), points)
    torch.testing.assert_close(own, written)
    assert not found.index.requires_grad


BAD = [
    (TypeError, "k must be an int, got float", {"k": 2.0}),
    (ValueError, "k must be between 1 and 128, got 0", {"k": 0}),
    (ValueError, "k must be between 1 and 128, got 129", {"k": 129}),
    (ValueError, "k is 6, but the clouds of xyz have only 5 points", {"k": 6}),
    (TypeError, "xyz must have dtype", {"xyz": torch.zeros(2, 5, 3, dtype=torch.int32)}),
    (TypeError, "query must be a torch.Tensor, got ndarray", {"query": np.zeros((2, 5, 3))}),
    (ValueError, r"query must have shape .*got \(2, 5, 2\)", {"query": torch.zeros(2, 5, 2)}),
    (ValueError, "xyz and query must both be dense", {"query": torch.zeros(5, 3)}),
    (ValueError, "same number of clouds, got 2 and 3", {"query": torch.zeros(3, 5, 3)}),
    (ValueError, "query_offsets goes with query", {"query_offsets": torch.tensor([0, 5])}),
    (ValueError, "query holds a NaN", {"query": torch.full((2, 1, 3), torch.nan)}),
    (ValueError, "xyz holds a NaN", {"xyz": torch.full((2, 5, 3), torch.inf)}),
    (ValueError, "xyz is on cpu, query on meta", {"query": torch.empty(2, 0, 3, device="meta")}),
]


@pytest.mark.parametrize(("error", "message", "change"), BAD)
def test_bad_input_is_named(error, message, change):
    arguments = {"xyz": torch.zeros(2, 5, 3), "k": 2} | change
    with pytest.raises(error, match=message):
        knn(**arguments)


def test_a_short_cloud_is_named():
    offsets, query_offsets = torch.tensor([0, 6, 10]), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="k is 5, but cloud 1 of xyz has only 4 points"):
        knn(torch.zeros(10, 3), 5, query=torch.zeros(2, 3), offsets=offsets, query_offsets=query_offsets)
    # A short cloud without queries is no matter.
    found = knn(torch.zeros(10, 3), 5, query=torch.zeros(1, 3), offsets=offsets, query_offsets=torch.tensor([0, 1, 1]))
    assert found.index.tolist() == [[0, 1, 2, 3, 4]]
