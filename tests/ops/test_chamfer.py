"""Chamfer distance: its definition in numpy, both kinds, gradients, layouts, size, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from clouds import KINDS, make, offsets_of, order_of_sums, pairs, squared_distances

from pc3d.data import Household
from pc3d.ops import chamfer_distance, reference


def exact(x, y, kind="l2"):
    distance = squared_distances(x.double(), y.double())
    there, back = distance.min(1), distance.min(0)
    if kind == "l1":
        return (np.sqrt(there).mean() + np.sqrt(back).mean()) / 2
    return there.mean() + back.mean()


def test_two_points_one_apart(device):
    p, q = torch.tensor([[[0.0, 0, 0]]], device=device), torch.tensor([[[1.0, 0, 0]]], device=device)
    assert chamfer_distance(p, q).item() == 2
    assert chamfer_distance(p, q, kind="squared").item() == 2
    assert chamfer_distance(p, q, kind="l1").item() == 1


@pytest.mark.parametrize("kind", ["l1", "l2", "squared"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (32, 32), (33, 5), (700, 400)])
def test_equals_the_definition(device, kind, n, m):
    x, y = make("normal", 3 * n).reshape(3, n, 3), make("normal", 3 * m, seed=1).reshape(3, m, 3)
    found = chamfer_distance(x.to(device), y.to(device), kind=kind, reduction="none")
    np.testing.assert_allclose(found.cpu(), [exact(a, b, kind) for a, b in zip(x, y, strict=True)], rtol=1e-5)
    mean = chamfer_distance(x.to(device), y.to(device), kind=kind)
    torch.testing.assert_close(mean, found.mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("lengths", "other_lengths"),
    [([200, 0, 40, 700], [9, 0, 3, 11]), ([32] * 20, [32] * 20), ([5, 1, 64], [100, 3, 1]), ([1000], [70])],
)
def test_nearest_rows_equal_the_definition(device, kind, dtype, lengths, other_lengths):
    x, y = make(kind, sum(lengths), dtype), make(kind, sum(other_lengths), dtype, seed=1)
    cuts, other_cuts = offsets_of(lengths), offsets_of(other_lengths)
    found = torch.ops.pc3d.nearest_both_ways(x.to(device), cuts.to(device), y.to(device), other_cuts.to(device))
    for own, right in zip(found, reference.nearest_both_ways(x, cuts, y, other_cuts), strict=True):
        assert torch.equal(own.cpu(), right)


def test_many_small_groups(device):
    x, y = make("lattice", 2100 * 32), make("lattice", 2100 * 32, seed=1)
    cuts = offsets_of([32] * 2100)
    found = torch.ops.pc3d.nearest_both_ways(x.to(device), cuts.to(device), y.to(device), cuts.to(device))
    distance = (x.reshape(-1, 32, 1, 3) - y.reshape(-1, 1, 32, 3)).square().sum(-1)  # exact on this lattice
    start = torch.arange(2100)[:, None] * 32
    assert torch.equal(found[0].cpu(), distance.amin(2).reshape(-1))
    assert torch.equal(found[2].cpu(), distance.amin(1).reshape(-1))
    first = torch.from_numpy(distance.numpy().argmin(2))
    assert torch.equal(found[1].cpu(), (first + start).reshape(-1))
    first = torch.from_numpy(distance.numpy().argmin(1))
    assert torch.equal(found[3].cpu(), (first + start).reshape(-1))


def test_zero_for_equal_sets_and_symmetric(device):
    x, y = make("normal", 100).to(device), make("normal", 80, seed=1).to(device)
    for kind in ("l1", "l2"):
        assert chamfer_distance(x, x[torch.randperm(100, device=device)], kind=kind).item() == 0
        torch.testing.assert_close(chamfer_distance(x, y, kind=kind), chamfer_distance(y, x, kind=kind))


def test_scales_with_the_units(device):
    x, y = make("normal", 50).to(device), make("normal", 40, seed=1).to(device)
    torch.testing.assert_close(chamfer_distance(8 * x, 8 * y), 64 * chamfer_distance(x, y))
    torch.testing.assert_close(chamfer_distance(8 * x, 8 * y, kind="l1"), 8 * chamfer_distance(x, y, kind="l1"))
    tiny = chamfer_distance(x * 2.0**-14, y * 2.0**-14)
    torch.testing.assert_close(tiny * 2.0**28, chamfer_distance(x, y))


def test_real_objects(device):
    data = Household(split="train", num_points=1024)
    x, y = data[0].xyz, data[1].xyz
    np.testing.assert_allclose(chamfer_distance(x.to(device), y.to(device)).item(), exact(x, y), rtol=1e-5)


def test_packed_clouds_count_the_same_whatever_their_size(device):
    lengths, other_lengths = [10, 0, 300], [40, 0, 7]
    cuts, other_cuts = offsets_of(lengths), offsets_of(other_lengths)
    x, y = make("normal", 310), make("normal", 47, seed=1)
    found = chamfer_distance(
        x.to(device),
        y.to(device),
        x_offsets=cuts.to(device),
        y_offsets=other_cuts.to(device),
        reduction="none",
    )
    right = [
        exact(x[a:b], y[c:d]) if a < b else 0.0 for (a, b), (c, d) in zip(pairs(cuts), pairs(other_cuts), strict=True)
    ]
    np.testing.assert_allclose(found.cpu(), right, rtol=1e-5)
    mean = chamfer_distance(x.to(device), y.to(device), x_offsets=cuts.to(device), y_offsets=other_cuts.to(device))
    np.testing.assert_allclose(mean.item(), (right[0] + right[2]) / 2, rtol=1e-5)


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_gradients(device, kind):
    x = make("normal", 2 * 6, torch.float64).reshape(2, 6, 3).to(device).requires_grad_()
    y = make("normal", 2 * 5, torch.float64, seed=1).reshape(2, 5, 3).to(device).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: chamfer_distance(a, b, kind=kind, reduction="none"), (x, y), nondet_tol=order_of_sums(device)
    )
    assert torch.autograd.gradgradcheck(
        lambda a, b: chamfer_distance(a, b, kind=kind), (x, y), nondet_tol=order_of_sums(device)
    )


def test_gradient_of_the_root_is_zero_where_points_coincide(device):
    x = make("normal", 10).to(device).requires_grad_()
    chamfer_distance(x, x.detach(), kind="l1").backward()
    assert not x.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_float32(device, dtype):
    x, y = make("normal", 60).to(dtype).to(device), make("normal", 50, seed=1).to(dtype).to(device)
    x.requires_grad_()
    value = chamfer_distance(x, y)
    assert value.dtype == torch.float32
    assert torch.equal(value, chamfer_distance(x.float(), y.float()))
    value.backward()
    assert x.grad.dtype == dtype


def test_mixed_precision_computes_in_the_wider(device):
    x, y = make("normal", 20, torch.float64).to(device), make("normal", 20, seed=1).to(device)
    assert chamfer_distance(x, y).dtype == torch.float64


def test_strided_input(device):
    x = make("normal", 120).reshape(30, 4, 3).transpose(0, 1).to(device)
    y = make("normal", 120, seed=1).reshape(4, 30, 3).to(device)
    assert torch.equal(chamfer_distance(x, y), chamfer_distance(x.contiguous(), y))


def test_no_clouds_and_empty_pairs(device):
    nothing = torch.empty(0, 4, 3, device=device)
    assert chamfer_distance(nothing, nothing).item() == 0
    assert chamfer_distance(nothing, nothing, reduction="none").shape == (0,)
    empty = torch.empty(3, 0, 3, device=device, requires_grad=True)
    value = chamfer_distance(empty, empty.detach(), reduction="none")
    assert value.tolist() == [0, 0, 0]


BAD = [
    (ValueError, "kind must be one of l1, l2, squared, got 'L2'", {"kind": "L2"}),
    (ValueError, "reduction must be one of mean, none, got 'sum'", {"reduction": "sum"}),
    (TypeError, "x must be a torch.Tensor, got NoneType", {"x": None}),
    (TypeError, "y must have dtype", {"y": torch.zeros(2, 5, 3, dtype=torch.int64)}),
    (ValueError, r"y must have shape .*got \(2, 5, 2\)", {"y": torch.zeros(2, 5, 2)}),
    (ValueError, "x and y must hold the same number of clouds, got 2 and 3", {"y": torch.zeros(3, 5, 3)}),
    (ValueError, "x and y must both be dense", {"y": torch.zeros(5, 3)}),
    (ValueError, "cloud 0 is empty in one of x and y only", {"y": torch.zeros(2, 0, 3)}),
    (ValueError, "y holds a NaN", {"y": torch.full((2, 5, 3), torch.nan)}),
    (ValueError, r"x_offsets goes with packed \(N, 3\) points", {"x_offsets": torch.tensor([0, 5])}),
    (ValueError, "x is on cpu, y on meta", {"x": torch.zeros(2, 0, 3), "y": torch.empty(2, 0, 3, device="meta")}),
]


@pytest.mark.parametrize(("error", "message", "change"), BAD)
def test_bad_input_is_named(error, message, change):
    arguments = {"x": torch.zeros(2, 5, 3), "y": torch.zeros(2, 5, 3)} | change
    with pytest.raises(error, match=message):
        chamfer_distance(**arguments)
