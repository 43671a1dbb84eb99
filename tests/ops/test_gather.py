"""gather, group and interpolate: plain indexing, gradients of both orders, half precision, determinism, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from clouds import make, nearest, offsets_of, order_of_sums

from pc3d.ops import gather, group, interpolate, knn, reference, segment_reduce

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def features(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def indices(low, high, *shape, seed=0):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7, 16, 96])
def test_gather_is_plain_indexing(device, dtype, channels):
    rows, index = features(2, 30, channels, dtype=dtype), indices(0, 30, 2, 5, 4)
    found = gather(rows.to(device), index.to(device))
    written = np.stack([rows[b].double().numpy()[index[b].numpy()] for b in range(2)])
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.double().cpu().numpy(), written)
    packed = gather(rows[0].to(device), index[0].to(device))
    assert torch.equal(packed, found[0])


def test_minus_one_reads_a_zero_row(device):
    rows = torch.ones(2, 3, 4, device=device)
    found = gather(rows, torch.tensor([[-1, 2], [0, -1]], device=device))
    assert found.sum(-1).tolist() == [[0.0, 4.0], [4.0, 0.0]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [3, 33])
def test_gradient_adds_up_in_float32(device, dtype, channels):
    index = indices(-1, 6, 4000)
    grad = features(4000, channels, dtype=dtype)
    rows = features(6, channels, dtype=dtype).to(device).requires_grad_()
    gather(rows, index.to(device)).backward(grad.to(device))
    exact = torch.zeros(7, channels, dtype=torch.float64).index_add(0, index % 7, grad.double())[:6]
    own = {torch.float16: 2**-11, torch.bfloat16: 2**-8}.get(dtype, 0.0)  # half a unit of the result's own type
    accumulated = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(
        rows.grad.double().cpu(), exact, rtol=own + accumulated, atol=1e-3 if own == 0.0 else 2e-2
    )
    assert rows.grad.dtype == dtype


def test_gradients_of_gather(device):
    rows = features(2, 6, 3, dtype=torch.float64).to(device).requires_grad_()
    index = indices(-1, 6, 2, 4, 3).to(device)
    assert torch.autograd.gradcheck(lambda f: gather(f, index), (rows,), nondet_tol=order_of_sums(device))
    assert torch.autograd.gradgradcheck(lambda f: gather(f, index), (rows,), nondet_tol=order_of_sums(device))


def test_deterministic_gradient_is_the_same_every_time(device):
    index = indices(0, 50, 200_000).to(device)
    grad = features(200_000, 3).to(device)
    weight = features(200_000, 1).to(device)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        runs = []
        for _ in range(3):
            rows = features(50, 3).to(device).requires_grad_()
            gather(rows, index).backward(grad)
            blend = features(50, 3).to(device).requires_grad_()
            found = torch.ops.pc3d.weighted_gather(blend, index[:, None], weight)
            found.backward(grad)
            runs.append((rows.grad, blend.grad))
    finally:
        torch.use_deterministic_algorithms(before)
    for plain, weighted in runs[1:]:
        assert torch.equal(plain, runs[0][0])
        assert torch.equal(weighted, runs[0][1])
    exact = torch.zeros(50, 3, dtype=torch.float64).index_add(0, index.cpu(), grad.double().cpu())
    torch.testing.assert_close(runs[0][0].double().cpu(), exact, rtol=1e-5, atol=1e-2)


def test_strided_features_index_and_gradient(device):
    rows = features(8, 40, 2).transpose(0, 2).to(device)  # (2, 40, 8)
    index = indices(0, 40, 5, 2).t().to(device)
    found = gather(rows, index)
    assert torch.equal(found, gather(rows.contiguous(), index.contiguous()))
    leaf = features(2, 40, 8).to(device).requires_grad_()
    (strided,) = torch.autograd.grad(gather(leaf, index), leaf, torch.ones(2, 5, 1, device=device).expand(2, 5, 8))
    (plain,) = torch.autograd.grad(gather(leaf, index), leaf, torch.ones(2, 5, 8, device=device))
    assert torch.equal(strided, plain)


@pytest.mark.parametrize(
    ("rows", "index"), [((0, 5, 3), (0, 4)), ((2, 5, 3), (2, 0)), ((2, 5, 0), (2, 4)), ((0, 3), (0,))]
)
def test_nothing_to_gather(device, rows, index):
    leaf = torch.zeros(rows, device=device, requires_grad=True)
    found = gather(leaf, torch.zeros(index, dtype=torch.int64, device=device))
    assert found.shape == (*index, rows[-1])
    found.sum().backward()
    assert leaf.grad.shape == leaf.shape
    assert not leaf.grad.any()


def test_rows_of_an_empty_cloud_can_only_be_minus_one(device):
    empty = torch.zeros(0, 3, device=device)
    assert gather(empty, torch.tensor([-1, -1], device=device)).tolist() == [[0.0] * 3] * 2
    with pytest.raises(ValueError, match=r"index must lie in \[-1, 0\), found 0 to 0"):
        gather(empty, torch.tensor([0], device=device))


@pytest.mark.parametrize(("low", "high"), [(-2, 3), (0, 5)])
def test_an_index_out_of_range_is_refused(device, low, high):
    index = torch.tensor([low, high], device=device)
    with pytest.raises(ValueError, match=rf"index must lie in \[-1, 5\), found {low} to {high}"):
        gather(torch.zeros(5, 3, device=device), index)


BAD = [
    (TypeError, "features must have dtype .*, got int32", {"features": torch.zeros(2, 5, 3, dtype=torch.int32)}),
    (TypeError, "index must have dtype int64, got int32", {"index": torch.zeros(2, 4, dtype=torch.int32)}),
    (TypeError, "index must be a torch.Tensor, got list", {"index": [[0], [1]]}),
    (ValueError, r"features must have shape .*, got \(5,\)", {"features": torch.zeros(5)}),
    (ValueError, r"index must have shape \(2, ...\)", {"index": torch.zeros(3, 4, dtype=torch.int64)}),
    (ValueError, "index is on meta, features on cpu", {"index": torch.zeros(2, 4, dtype=torch.int64, device="meta")}),
]


@pytest.mark.parametrize(("error", "message", "change"), BAD)
def test_bad_input_is_named(error, message, change):
    arguments = {"features": torch.zeros(2, 5, 3), "index": torch.zeros(2, 4, dtype=torch.int64)} | change
    with pytest.raises(error, match=message):
        gather(**arguments)


def test_group_is_relative_to_the_centres(device):
    xyz = make("normal", 2 * 40).reshape(2, 40, 3)
    centers, index = xyz[:, :6], indices(0, 40, 2, 6, 5)
    found = group(xyz.to(device), index.to(device), centers.to(device)).cpu()
    for b, g, s in np.ndindex(2, 6, 5):
        assert torch.equal(found[b, g, s], xyz[b, index[b, g, s]] - centers[b, g])
    packed = group(xyz[0].to(device), index[0].to(device), centers[0].to(device))
    assert torch.equal(packed.cpu(), found[0])
    with pytest.raises(ValueError, match=r"centers must have shape \(2, 6, 3\) to fit index, got \(2, 5, 3\)"):
        group(xyz, index, centers[:, :5])


def test_gradients_of_group(device):
    xyz = make("normal", 2 * 7, torch.float64).reshape(2, 7, 3).to(device).requires_grad_()
    centers = make("normal", 2 * 3, torch.float64, seed=1).reshape(2, 3, 3).to(device).requires_grad_()
    index = indices(0, 7, 2, 3, 4).to(device)
    assert torch.autograd.gradcheck(lambda x, c: group(x, index, c), (xyz, centers), nondet_tol=order_of_sums(device))


@pytest.mark.parametrize("dtype", DTYPES)
def test_interpolate_weights_by_inverse_squared_distance(device, dtype):
    xyz, query, rows = make("normal", 50), make("normal", 20, seed=1), features(50, 6, dtype=dtype)
    found = interpolate(rows.to(device), xyz.to(device), query.to(device), k=3)
    index, squared = nearest(xyz.double(), query.double(), 3)
    weight = 1 / (squared + 1e-8)
    weight /= weight.sum(1, keepdims=True)
    exact = (rows.double().numpy()[index] * weight[..., None]).sum(1)
    tolerance = {torch.float16: 4e-3, torch.bfloat16: 3e-2}.get(dtype, 1e-5)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.double().cpu().numpy(), exact, rtol=0, atol=tolerance)


def test_interpolate_gives_back_constants_and_the_points_themselves(device):
    xyz = make("normal", 2 * 30).reshape(2, 30, 3).to(device)
    constant = torch.full((2, 30, 4), 2.5, device=device)
    torch.testing.assert_close(interpolate(constant, xyz, xyz + 0.1), constant)
    rows = features(2, 30, 4).to(device)
    torch.testing.assert_close(interpolate(rows, xyz, xyz, eps=1e-20), rows)


def test_interpolate_packed_equals_dense(device):
    xyz, query, rows = make("normal", 60).to(device), make("normal", 14, seed=1).to(device), features(60, 5).to(device)
    dense = interpolate(rows.reshape(2, 30, 5), xyz.reshape(2, 30, 3), query.reshape(2, 7, 3))
    cuts = {"offsets": offsets_of([30, 30]).to(device), "query_offsets": offsets_of([7, 7]).to(device)}
    assert torch.equal(interpolate(rows, xyz, query, **cuts), dense.reshape(14, 5))


def test_gradients_of_interpolate(device):
    xyz = make("normal", 2 * 9, torch.float64).reshape(2, 9, 3).to(device).requires_grad_()
    query = make("normal", 2 * 4, torch.float64, seed=1).reshape(2, 4, 3).to(device).requires_grad_()
    rows = features(2, 9, 3, dtype=torch.float64).to(device).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f, x, q: interpolate(f, x, q), (rows, xyz, query), nondet_tol=order_of_sums(device)
    )
    assert torch.autograd.gradgradcheck(
        lambda f, x, q: interpolate(f, x, q), (rows, xyz, query), nondet_tol=order_of_sums(device)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 3, 8])
def test_weighted_kernels_equal_the_definition(device, dtype, k):
    rows, index, weight = features(20, 10, dtype=dtype), indices(-1, 20, 35, k), features(35, k, dtype=dtype, seed=1)
    grad = features(35, 10, dtype=dtype, seed=2)
    ops = torch.ops.pc3d
    found = [ops.weighted_gather(rows.to(device), index.to(device), weight.to(device))]
    found += ops.weighted_gather_backward(grad.to(device), rows.to(device), index.to(device), weight.to(device), False)
    exact = [reference.weighted_gather(rows.double(), index, weight.double())]
    exact += reference.weighted_gather_backward(grad.double(), rows.double(), index, weight.double())
    tolerance = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-6}.get(dtype, 1e-14)
    for own, right in zip(found, exact, strict=True):
        assert own.dtype == dtype
        torch.testing.assert_close(own.double().cpu(), right, rtol=tolerance, atol=10 * tolerance)


def test_interpolate_refuses_features_of_other_points():
    with pytest.raises(ValueError, match=r"features must have shape \(2, 5, 'C'\) to fit xyz, got \(2, 6, 3\)"):
        interpolate(torch.zeros(2, 6, 3), torch.zeros(2, 5, 3), torch.zeros(2, 1, 3))
    with pytest.raises(ValueError, match=r"eps must be positive, .* got -1"):
        interpolate(torch.zeros(2, 5, 3), torch.zeros(2, 5, 3), torch.zeros(2, 1, 3), eps=-1)
    with pytest.raises(ValueError, match="k is 3, but the clouds of xyz have only 2 points"):
        interpolate(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.zeros(1, 1, 3))


def test_padded_balls_gather_to_zero(device):
    xyz = make("normal", 20).to(device)
    neighbors = knn(xyz, 2).index
    neighbors[3] = -1
    assert not gather(xyz, neighbors)[3].any()


@pytest.mark.parametrize("read", ["gather", "segment_reduce"])
def test_indices_are_looked_at_once(read: str) -> None:
    """Each look at a value of a tensor on a GPU waits for all that was asked of it."""
    rows, index = torch.randn(6, 3), torch.tensor([0, 2, 1, 2, 0, 1])
    with torch.profiler.profile() as profiled:
        _ = gather(rows, index) if read == "gather" else segment_reduce(rows, index, 3)
    looks = {event.key: event.count for event in profiled.key_averages()}
    assert looks["aten::aminmax"] == 1
    assert looks.get("aten::_local_scalar_dense", 0) == 0
