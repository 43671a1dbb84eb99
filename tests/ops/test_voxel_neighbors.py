"""Neighbours between levels of voxels: clamped to what a cloud has, for pooling and for interpolation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from clouds import LENGTHS, make, nearest, offsets_of, order_of_sums, pairs

from pc3d.ops import gather_max, interpolate, knn, voxel_neighbors


@pytest.mark.parametrize("k", [1, 3, 16])
@pytest.mark.parametrize("lengths", [*LENGTHS, [3, 1, 0, 40]])
def test_a_small_cloud_repeats_its_nearest_point(device, lengths, k):
    xyz, offsets = make("lattice", sum(lengths)), offsets_of(lengths)
    asked = [min(n, 1) * (5 + b) for b, n in enumerate(lengths)]
    query, query_offsets = make("normal", sum(asked), seed=1), offsets_of(asked)
    cuts = {"offsets": offsets.to(device), "query_offsets": query_offsets.to(device)}
    found = voxel_neighbors(xyz.to(device), k, query=query.to(device), **cuts)
    assert found.index.shape == found.squared_distance.shape == (sum(asked), k)
    for (begin, end), (low, high) in zip(pairs(offsets), pairs(query_offsets), strict=True):
        if low == high:
            continue
        index, squared = nearest(xyz[begin:end], query[low:high], k)
        pad = ((0, 0), (0, k - index.shape[1]))
        index, squared = (np.where(np.arange(k) < x.shape[1], np.pad(x, pad), x[:, :1]) for x in (index, squared))
        np.testing.assert_array_equal(found.index[low:high].cpu().numpy(), index + begin)
        np.testing.assert_array_equal(found.squared_distance[low:high].cpu().numpy(), squared)


def test_dense_clouds_are_clamped_too(device):
    xyz, query = make("normal", 8).reshape(2, 4, 3).to(device), make("normal", 10).reshape(2, 5, 3).to(device)
    found, exact = voxel_neighbors(xyz, 6, query=query), knn(xyz, 4, query=query)
    assert torch.equal(found.index, torch.cat([exact.index, *[exact.index[..., :1]] * 2], -1))
    enough = voxel_neighbors(xyz, 4, query=query)
    assert torch.equal(enough.index, exact.index)


def test_pooling_over_what_there_is(device):
    xyz, query = make("normal", 5).to(device), make("normal", 7, seed=1).to(device)
    features = torch.randn(5, 3, device=device)
    pooled = gather_max(features, voxel_neighbors(xyz, 16, query=query).index)
    assert torch.equal(pooled, features.amax(0).expand(7, 3))


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("dense", [False, True])
def test_interpolation_uses_every_point_once(device, power, dense):
    xyz, query = make("normal", 4, torch.float64), make("normal", 6, torch.float64, seed=1)
    features = make("normal", 4, torch.float64, seed=2)
    lengths, asked = ([2, 2], [3, 3]) if dense else ([1, 3], [2, 4])
    exact = []
    for (begin, end), (low, high) in zip(pairs(offsets_of(lengths)), pairs(offsets_of(asked)), strict=True):
        distance = (query[low:high, None] - xyz[None, begin:end]).norm(dim=-1)
        weight = 1 / (distance**power + 1e-8)
        exact.append(weight / weight.sum(1, keepdim=True) @ features[begin:end])
    tensors = [t.to(device) for t in (features, xyz, query)]
    if dense:
        own = interpolate(*(t.reshape(2, -1, 3) for t in tensors), power=power, clamp=True).flatten(0, 1)
    else:
        cuts = {"offsets": offsets_of(lengths).to(device), "query_offsets": offsets_of(asked).to(device)}
        own = interpolate(*tensors, power=power, clamp=True, **cuts)
    torch.testing.assert_close(own.cpu(), torch.cat(exact), rtol=1e-12, atol=1e-12)


def test_inverse_distance_of_many_points(device):
    xyz, query, features = make("normal", 80), make("normal", 30, seed=1), make("normal", 80, seed=2)
    own = interpolate(features.to(device), xyz.to(device), query.to(device), power=1)
    index, squared = nearest(xyz.double(), query.double(), 3)
    weight = 1 / (np.sqrt(squared) + 1e-8)
    weight /= weight.sum(1, keepdims=True)
    exact = (features.double().numpy()[index] * weight[..., None]).sum(1)
    np.testing.assert_allclose(own.cpu().numpy(), exact, rtol=0, atol=1e-5)
    # Where a query is a point, that point's features; the gradient stays finite.
    leaf = xyz.to(device).requires_grad_()
    same = interpolate(features.to(device), leaf, leaf, power=1)
    torch.testing.assert_close(same, features.to(device), rtol=1e-4, atol=1e-4)
    same.sum().backward()
    assert bool(leaf.grad.isfinite().all())


def test_gradients_of_clamped_inverse_distance(device):
    def leaf(n, seed):
        return make("normal", n, torch.float64, seed=seed).to(device).requires_grad_()

    cuts = {"offsets": offsets_of([2, 5]).to(device), "query_offsets": offsets_of([2, 3]).to(device)}

    def carry(features, xyz, query):
        return interpolate(features, xyz, query, power=1, clamp=True, **cuts)

    assert torch.autograd.gradcheck(carry, (leaf(7, 0), leaf(7, 1), leaf(5, 2)), nondet_tol=order_of_sums(device))


X = torch.rand(4, 3)
BAD = [
    (ValueError, "power must be 1 or 2, got 3", lambda: interpolate(X, X, X, power=3)),
    (ValueError, "k is 5, but cloud 0 of xyz has only 4 points", lambda: interpolate(X, X, X, k=5)),
    (ValueError, "k must be between 1 and 128, got 0", lambda: voxel_neighbors(X, 0, query=X)),
    (ValueError, "cloud 0 of xyz has no points, but query has rows in it",
     lambda: voxel_neighbors(X[:0], 3, query=X)),
    (ValueError, "cloud 1 of xyz has no points, but query has rows in it",
     lambda: voxel_neighbors(X, 3, query=X, offsets=offsets_of([4, 0]), query_offsets=offsets_of([1, 3]))),
    (ValueError, "cloud 0 of xyz has no points", lambda: voxel_neighbors(X[None, :0], 3, query=X[None])),
    (ValueError, "must both be dense", lambda: voxel_neighbors(X[None], 6, query=X)),
    (ValueError, "must both be dense", lambda: voxel_neighbors(X, 6, query=X[None])),
    (ValueError, "the same number of clouds", lambda: voxel_neighbors(X, 6, query=X, query_offsets=offsets_of([2, 2]))),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "call"), BAD)
def test_bad_input_is_named(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_a_graph_without_breaks(device):
    def levels(features, xyz, query, offsets, query_offsets):
        cuts = {"offsets": offsets, "query_offsets": query_offsets}
        pooled = gather_max(features, voxel_neighbors(xyz, 4, query=query, **cuts).index)
        back = {"offsets": query_offsets, "query_offsets": offsets}
        return interpolate(pooled, query, xyz, power=1, clamp=True, **back).square().sum()

    arguments = [make("normal", n, seed=n).to(device) for n in (40, 40, 12)]
    arguments += [offsets_of([25, 15]).to(device), offsets_of([5, 7]).to(device)]
    compiled = torch.compile(levels, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), levels(*arguments))
