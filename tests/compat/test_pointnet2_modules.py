"""The layers of pointnet2_ops, group by group, against plain matrix products."""

from __future__ import annotations

import pytest
import torch

from pc3d.compat import pointnet2_modules


@pytest.fixture
def cloud() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 50, 3, generator=generator), torch.randn(2, 4, 50, generator=generator)


def largest(rows: torch.Tensor, convolution: torch.nn.Module) -> torch.Tensor:
    assert isinstance(convolution, torch.nn.Conv2d)
    assert convolution.bias is not None
    return (rows @ convolution.weight.flatten(1).T + convolution.bias).relu().amax(0)


def test_set_abstraction_at_two_radii(cloud: tuple[torch.Tensor, torch.Tensor]) -> None:
    xyz, features = cloud
    layer = pointnet2_modules.PointnetSAModuleMSG(6, [1.2, 2.0], [50, 50], [[4, 5], [4, 8]], bn=False)
    centers, out = layer(xyz, features)
    assert centers.shape == (2, 6, 3)
    assert out.shape == (2, 13, 6)
    inside = (xyz[1] - centers[1, 3]).norm(dim=-1)
    for radius, mlp, part in zip((1.2, 2.0), layer.mlps, out[1, :, 3].split([5, 8]), strict=True):
        near = inside < radius
        assert 1 < near.sum() < 50
        rows = torch.cat([xyz[1, near] - centers[1, 3], features[1, :, near].T], 1)
        torch.testing.assert_close(part, largest(rows, mlp[0]))


def test_without_npoint_the_cloud_is_one_group(cloud: tuple[torch.Tensor, torch.Tensor]) -> None:
    xyz, features = cloud
    layer = pointnet2_modules.PointnetSAModule([4, 7], bn=False)
    centers, out = layer(xyz, features)
    assert centers is None
    torch.testing.assert_close(out[1, :, 0], largest(torch.cat([xyz[1], features[1].T], 1), layer.mlps[0][0]))


def test_propagation_weighs_the_three_nearest(cloud: tuple[torch.Tensor, torch.Tensor]) -> None:
    xyz, features = cloud
    known, coarse = xyz[:, :9] + 0.1, torch.randn(2, 6, 9)
    layer = pointnet2_modules.PointnetFPModule([10, 5], bn=False)
    distance, near = (xyz[1, 8] - known[1]).norm(dim=-1).topk(3, largest=False)
    weight = (1 / distance) / (1 / distance).sum()
    row = torch.cat([coarse[1][:, near] @ weight, features[1, :, 8]])
    torch.testing.assert_close(layer(xyz, known, features, coarse)[1, :, 8], largest(row[None], layer.mlp[0]))
    one = layer(xyz, None, features, coarse[..., :1])
    row = torch.cat([coarse[1, :, 0], features[1, :, 8]])
    torch.testing.assert_close(one[1, :, 8], largest(row[None], layer.mlp[0]))


def test_parameters_have_the_names_of_published_weights() -> None:
    names = set(pointnet2_modules.PointnetSAModule([0, 8, 16], 4, 0.2, 8).state_dict())
    assert {"mlps.0.0.weight", "mlps.0.1.running_mean", "mlps.0.3.weight", "mlps.0.4.bias"} <= names
    assert "mlps.0.0.bias" not in names
    assert "mlp.0.weight" in pointnet2_modules.PointnetFPModule([8, 16]).state_dict()


def test_points_without_a_radius_are_refused() -> None:
    with pytest.raises(ValueError, match="npoint=4 needs a radius"):
        pointnet2_modules.PointnetSAModule([0, 8], npoint=4)
