"""An encoder of objects as a backbone for scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pc3d.data import PointBatch, PointCloud, Rooms, collate
from pc3d.models import PointViT, PointViTFeatures, load_encoder, save_encoder


def small(block_size: float = 0.8, **changes: Any) -> PointViTFeatures:
    torch.manual_seed(0)
    sizes = {"num_groups": 16, "group_size": 8, "num_points": 128, "tokenizer_dims": (8, 16, 16), **changes}
    return PointViTFeatures(PointViT(24, 3, 4, **sizes), block_size, feature_dim=20)


@pytest.fixture(scope="module")
def clouds() -> list[PointCloud]:
    room = Rooms("train")[0]
    corner = room.select((room.xyz < 1.3).all(1))
    return [corner, corner.select(slice(0)), corner.select(slice(5))]


@torch.no_grad()
def test_any_number_of_points_gives_a_row_each_whatever_the_batch(clouds: list[PointCloud]) -> None:
    model = small().eval()
    together = model.point_features(collate(clouds))
    assert together.shape == (sum(map(len, clouds)), 20)
    alone = torch.cat([model.point_features(collate([cloud])) for cloud in clouds])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    assert (together.std(0) > 0).any()


@torch.no_grad()
def test_a_point_has_the_features_that_part_segmentation_would_carry_to_it(clouds: list[PointCloud]) -> None:
    """One cube with as many points as the encoder takes: nothing is sampled, nothing repeated."""
    model = small(block_size=2.0).eval()
    xyz = torch.rand(128, 3, generator=torch.Generator().manual_seed(0)) * 1.9
    unit = ((xyz / 2.0) * 2 - 1) / 3**0.5
    encoder = model.encoder
    patches = encoder.tokenizer(unit[None])
    _, kept = encoder.transformer.layers(patches.tokens, encoder.position(patches.centers), keep=(0, 1, 2))
    at_centers = torch.cat([encoder.norm(layer) for layer in kept], dim=-1)[0]
    squared, nearest = torch.cdist(unit.double(), patches.centers[0].double()).square().topk(3, largest=False)
    weight = 1 / (squared + 1e-8)
    carried = ((weight / weight.sum(1, keepdim=True))[..., None] * at_centers.double()[nearest]).sum(1).float()
    expected = model.propagation(torch.cat([unit, carried], dim=1))
    features = model.point_features(PointBatch(xyz, torch.tensor([0, 128])))
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


def test_it_learns_and_training_draws_points(clouds: list[PointCloud]) -> None:
    model, batch = small().train(), collate(clouds)
    first = model.point_features(batch)
    first.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not torch.equal(first, model.point_features(batch))


@torch.no_grad()
def test_saved_and_loaded(clouds: list[PointCloud], tmp_path: Path) -> None:
    model, batch = small().eval(), collate(clouds)
    loaded = load_encoder(save_encoder(model, tmp_path), expect=PointViTFeatures)
    assert loaded.config == model.config
    assert torch.equal(loaded.point_features(batch), model.point_features(batch))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="num_cls_tokens=0, got 1"):
        small(num_cls_tokens=1)
    with pytest.raises(ValueError, match="block_size and feature_dim must be positive, got -1"):
        small(block_size=-1.0)
    with pytest.raises(ValueError, match=r"three ascending blocks of 0\.\.2, got \(2, 1, 0\)"):
        PointViTFeatures(PointViT(24, 3, 4), layers=(2, 1, 0))
