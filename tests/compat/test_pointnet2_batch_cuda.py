"""The stand-in for OpenPoints' compiled module: what is written into the result, against plain indexing."""

from __future__ import annotations

import pytest
import torch

from pc3d.compat import chamfer, pointnet2_batch_cuda


@pytest.fixture
def xyz() -> torch.Tensor:
    return torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0))


def test_farthest_points_count_those_near_the_origin(xyz: torch.Tensor) -> None:
    index = torch.empty(2, 40, dtype=torch.int32)
    xyz[:, 7] = 0.001
    pointnet2_batch_cuda.furthest_point_sampling_wrapper(2, 40, 40, xyz, torch.full((2, 40), 1e10), index)
    assert index[:, 0].tolist() == [0, 0]
    assert sorted(index[1].tolist()) == list(range(40))
    second = (xyz[0] - xyz[0, 0]).norm(dim=-1).argmax()
    assert index[0, 1] == second


def test_ball_query_takes_the_lowest_indices_and_leaves_an_empty_ball(xyz: torch.Tensor) -> None:
    centers = torch.cat([xyz[:, 5:6], torch.full((2, 1, 3), 100.0)], 1)
    index = torch.full((2, 2, 6), 9, dtype=torch.int32)
    pointnet2_batch_cuda.ball_query_wrapper(2, 40, 2, 0.9, 6, centers, xyz, index)
    inside = ((xyz[1] - xyz[1, 5]).norm(dim=-1) < 0.9).nonzero()[:, 0].tolist()
    assert len(inside) > 1
    assert index[1, 0].tolist() == (inside + [inside[0]] * 6)[:6]
    assert index[:, 1].eq(9).all()


def test_reading_and_its_gradient(xyz: torch.Tensor) -> None:
    features = torch.randn(2, 5, 40, requires_grad=True)
    for shape in [(2, 7), (2, 7, 3)]:
        index = torch.randint(0, 40, shape, dtype=torch.int32)
        expected = torch.stack([features[b][:, index[b].long()] for b in range(2)])
        out, grad, upstream = torch.empty_like(expected), torch.ones(2, 5, 40), torch.randn(expected.shape)
        if len(shape) == 2:
            pointnet2_batch_cuda.gather_points_wrapper(2, 5, 40, 7, features.data, index, out)
            pointnet2_batch_cuda.gather_points_grad_wrapper(2, 5, 40, 7, upstream, index, grad)
        else:
            pointnet2_batch_cuda.group_points_wrapper(2, 5, 40, 7, 3, features.data, index, out)
            pointnet2_batch_cuda.group_points_grad_wrapper(2, 5, 40, 7, 3, upstream, index, grad)
        assert torch.equal(out, expected)
        (of_autograd,) = torch.autograd.grad(expected, features, upstream)
        torch.testing.assert_close(grad, 1 + of_autograd)  # added to what is there


def test_three_nearest_and_their_weighted_sum(xyz: torch.Tensor) -> None:
    known = xyz[:, :20].contiguous() + 0.01
    squared, index = torch.empty(2, 40, 3), torch.empty(2, 40, 3, dtype=torch.int32)
    pointnet2_batch_cuda.three_nn_wrapper(2, 40, 20, xyz, known, squared, index)
    expected, order = torch.cdist(xyz.double(), known.double()).topk(3, largest=False)
    torch.testing.assert_close(squared.double(), expected**2, atol=1e-6, rtol=1e-5)
    assert torch.equal(index.long(), order)
    features, weight = torch.randn(2, 5, 20, requires_grad=True), torch.rand(2, 40, 3)
    summed = torch.stack([(features[b][:, order[b]] * weight[b]).sum(-1) for b in range(2)])
    out, grad, upstream = torch.empty(2, 5, 40), torch.zeros(2, 5, 20), torch.randn(2, 5, 40)
    pointnet2_batch_cuda.three_interpolate_wrapper(2, 5, 20, 40, features.data, index, weight, out)
    pointnet2_batch_cuda.three_interpolate_grad_wrapper(2, 5, 40, 20, upstream, index, weight, grad)
    torch.testing.assert_close(out, summed)
    torch.testing.assert_close(grad, torch.autograd.grad(summed, features, upstream)[0])


def test_chamfer_module_against_autograd_through_all_pairs() -> None:
    one = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    other = torch.randn(2, 14, 3, dtype=torch.float64, requires_grad=True)
    pairs = (one[:, :, None] - other[:, None]).square().sum(-1)
    dist1, dist2, idx1, idx2 = chamfer.forward(one, other)
    assert idx1.dtype == idx2.dtype == torch.int32
    assert torch.equal(idx1.long(), pairs.argmin(2))
    assert torch.equal(idx2.long(), pairs.argmin(1))
    torch.testing.assert_close(dist1, pairs.amin(2))
    torch.testing.assert_close(dist2, pairs.amin(1))
    up1, up2 = torch.randn_like(dist1), torch.randn_like(dist2)
    expected = torch.autograd.grad((pairs.amin(2), pairs.amin(1)), (one, other), (up1, up2))
    torch.testing.assert_close(chamfer.backward(one.data, other.data, idx1, idx2, up1, up2), expected)
