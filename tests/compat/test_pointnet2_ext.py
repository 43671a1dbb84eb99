"""The stand-in for the compiled module of VoteNet's pointnet2 against all pairs and plain indexing."""

from __future__ import annotations

import pytest
import torch

from pc3d.compat import pointnet2_ext


@pytest.fixture
def xyz() -> torch.Tensor:
    return torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0))


def test_farthest_points_avoid_the_origin(xyz: torch.Tensor) -> None:
    xyz[:, 7] = 0.001
    index = pointnet2_ext.furthest_point_sampling(xyz, 39)
    assert (index.dtype, index.shape) == (torch.int32, (2, 39))
    for found, points in zip(index.tolist(), xyz.double(), strict=True):
        taken = [0]
        while len(taken) < 39:
            nearest = torch.cdist(points, points[taken]).amin(1)
            nearest[7] = -1
            taken.append(int(nearest.argmax()))
        assert found == taken


def test_ball_query_takes_the_centres_first_and_repeats_the_first_neighbor(xyz: torch.Tensor) -> None:
    centers = torch.cat([xyz[:, 5:8] + 0.01, torch.full((2, 1, 3), 100.0)], 1)
    index = pointnet2_ext.ball_query(centers, xyz, 0.9, 6)
    assert (index.dtype, index.shape) == (torch.int32, (2, 4, 6))
    for cloud, center in [(0, 0), (0, 1), (1, 2)]:
        inside = ((xyz[cloud] - centers[cloud, center]).norm(dim=-1) < 0.9).nonzero()[:, 0].tolist()
        assert inside
        assert index[cloud, center].tolist() == (inside + [inside[0]] * 6)[:6]
    assert not index[:, 3].any()


def test_three_nearest_have_squared_distances(xyz: torch.Tensor) -> None:
    known = xyz[:, :20] + 0.01
    squared, index = pointnet2_ext.three_nn(xyz, known)
    expected, order = torch.cdist(xyz.double(), known.double()).topk(3, largest=False)
    torch.testing.assert_close(squared.double(), expected**2, atol=1e-6, rtol=1e-5)
    assert index.dtype == torch.int32
    assert torch.equal(index.long(), order)


@pytest.mark.parametrize("shape", [(2, 7), (2, 7, 3)])
def test_reading_and_its_gradient(shape: tuple[int, ...]) -> None:
    features = torch.randn(2, 5, 40, requires_grad=True)
    index = torch.randint(0, 40, shape, dtype=torch.int32)
    expected = torch.stack([features[b][:, index[b].long()] for b in range(2)])
    name = "gather_points" if len(shape) == 2 else "group_points"
    assert torch.equal(getattr(pointnet2_ext, name)(features, index), expected)
    upstream = torch.randn(expected.shape)
    (of_autograd,) = torch.autograd.grad(expected, features, upstream)
    torch.testing.assert_close(getattr(pointnet2_ext, f"{name}_grad")(upstream, index, 40), of_autograd)


def test_weighted_sum_and_its_gradient() -> None:
    features, weight = torch.randn(2, 5, 20, requires_grad=True), torch.rand(2, 40, 3)
    index = torch.randint(0, 20, (2, 40, 3), dtype=torch.int32)
    summed = torch.stack([(features[b][:, index[b].long()] * weight[b]).sum(-1) for b in range(2)])
    torch.testing.assert_close(pointnet2_ext.three_interpolate(features, index, weight), summed)
    upstream = torch.randn(2, 5, 40)
    (of_autograd,) = torch.autograd.grad(summed, features, upstream)
    torch.testing.assert_close(pointnet2_ext.three_interpolate_grad(upstream, index, weight, 20), of_autograd)
