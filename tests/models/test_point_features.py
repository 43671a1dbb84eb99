"""Features, attention and relevance of single points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pc3d.data import Household, Rooms, collate
from pc3d.models import (
    DGCNN,
    AlignedShapeEncoder,
    OpenShapeFCNN,
    OpenShapePointBERT,
    OpenShapeSparseConv,
    PointNet,
    PointViT,
    SparseUNet,
    UpcastFeatures,
    ViT3D,
    attention_map,
    object_features,
    point_attention,
    reads_scenes,
    scene_features,
    text_relevance,
)

SMALL: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 3, "group_size": 16, "num_points": 256}


@pytest.fixture(scope="module")
def xyz() -> Tensor:
    return Household("test")[7].xyz[:256].clone()


@pytest.mark.parametrize("num_cls_tokens", [0, 2])
def test_at_the_centre_of_a_token_stands_its_feature(xyz: Tensor, num_cls_tokens: int) -> None:
    torch.manual_seed(0)
    encoder = PointViT(**SMALL, num_groups=12, num_cls_tokens=num_cls_tokens).train()
    found = object_features(encoder, xyz, encoder.tokenizer.eval()(xyz[None]).centers[0])
    assert encoder.training
    with torch.no_grad():
        expected = encoder.eval()(xyz[None]).tokens[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert object_features(encoder, xyz).shape == (256, 24)


def test_carried_features_against_plain_loops(xyz: Tensor) -> None:
    torch.manual_seed(0)
    encoder = ViT3D(**SMALL, point_dim=8).eval()
    query = xyz[:5] + 0.03
    found = object_features(encoder, xyz, query)
    with torch.no_grad():
        tokens, centers, _ = encoder(xyz[None])
    for row, point in enumerate(query):
        squared = (centers[0] - point).double().square().sum(1)
        nearest = squared.argsort()[:3]
        weight = 1 / (squared[nearest] + 1e-8)
        expected = (weight[:, None] * tokens[0, nearest].double()).sum(0) / weight.sum()
        np.testing.assert_allclose(found[row].numpy(), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("encoder", [PointNet(16), DGCNN(16, k=8)], ids=["PointNet", "DGCNN"])
def test_encoders_of_points_say_it_themselves(xyz: Tensor, encoder: nn.Module) -> None:
    with torch.no_grad():
        expected = encoder.eval()(xyz[None])[0]
    torch.testing.assert_close(object_features(encoder, xyz), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("build", [OpenShapeSparseConv, OpenShapeFCNN])
def test_sparse_networks_say_it_at_every_point(xyz: Tensor, build: Any) -> None:
    torch.manual_seed(0)
    encoder, rgb = build(8, hidden_dim=8).eval(), torch.rand(256, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = encoder.local_features(xyz[None], rgb[None])[0]
    torch.testing.assert_close(object_features(encoder, xyz, rgb=rgb), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("axes", ["z_up", "mirrored", "y_up"])
def test_openshape_tokens_stand_in_the_frame_of_the_points(xyz: Tensor, axes: Any) -> None:
    torch.manual_seed(0)
    encoder = OpenShapePointBERT(
        8,
        width=32,
        depth=1,
        num_heads=2,
        mlp_dim=32,
        patch_dim=16,
        num_groups=10,
        group_size=8,
        axes=axes,
        start="random",
    ).eval()
    rgb = torch.rand(256, 3, generator=torch.Generator().manual_seed(1))
    state = torch.get_rng_state()
    with torch.no_grad():
        tokens = encoder.tokens(xyz[None], rgb[None])[0, 1:]
        torch.set_rng_state(state)
        centers, _ = encoder.cut(xyz[None], rgb[None])
    torch.set_rng_state(state)
    # The centres are points of the cloud, wherever the network thinks that up is.
    x, y, z = centers[0].unbind(1)
    own = {"z_up": (x, y, z), "mirrored": (x, -y, z), "y_up": (x, -z, y)}[axes]
    places = torch.stack(own, dim=1)
    assert torch.cdist(places, xyz).amin(1).max() < 1e-6
    torch.testing.assert_close(object_features(encoder, xyz, places, rgb), tokens, atol=1e-3, rtol=1e-3)
    assert torch.equal(torch.get_rng_state(), state)
    aligned = AlignedShapeEncoder(encoder)
    torch.set_rng_state(state)
    torch.testing.assert_close(object_features(aligned, xyz, places, rgb), tokens, atol=1e-3, rtol=1e-3)


def test_scenes() -> None:
    cloud = Rooms("test")[0].select(slice(None, None, 20))
    torch.manual_seed(0)
    encoder = SparseUNet((8, 12), (1, 1), 0.3, "xyz_rgb")
    found = scene_features(encoder, cloud)
    with torch.no_grad():
        expected = UpcastFeatures(encoder.eval()).point_features(collate([cloud]))
    torch.testing.assert_close(found, expected)
    assert found.shape == (len(cloud), 20)
    assert reads_scenes(encoder)
    assert not reads_scenes(PointNet(8))
    with pytest.raises(TypeError, match="PointNet is an encoder of objects"):
        scene_features(PointNet(8), cloud)
    with pytest.raises(ValueError, match="this batch has no rgb"):
        scene_features(encoder, cloud.replace(rgb=None))


def test_attention_is_that_of_the_map_in_units_of_even_attention(xyz: Tensor) -> None:
    torch.manual_seed(0)
    encoder = ViT3D(**SMALL, point_dim=8)
    expected = attention_map(encoder, xyz[None])
    found = point_attention(encoder, xyz)
    torch.testing.assert_close(found, expected.per_point[0] * 16)
    assert point_attention(encoder, xyz, xyz[:3] + 0.001).shape == (3, 3)
    with pytest.raises(ValueError, match="num_cls_tokens=0"):
        point_attention(PointViT(**SMALL, num_groups=12), xyz)
    with pytest.raises(TypeError, match="needs a PointViT or a ViT3D, got PointNet"):
        point_attention(PointNet(8), xyz)


def test_what_says_nothing_of_points_is_refused(xyz: Tensor) -> None:
    with pytest.raises(TypeError, match="Linear says nothing of single points"):
        object_features(nn.Linear(1, 1), xyz)


class _Sides(nn.Module):
    """Embeds a cloud as its share of points on either side of x = 0."""

    embed_dim = 2

    def encode(self, xyz: Tensor) -> Tensor:
        right = (xyz[..., 0] > 0).float().mean(1)
        return torch.stack([right, 1 - right], dim=1)


def test_relevance_of_parts_by_hand(xyz: Tensor) -> None:
    aligned = AlignedShapeEncoder(_Sides())
    text = torch.tensor([3.0, 0.0])  # "right"
    lost = text_relevance(aligned, xyz, text, num_parts=len(xyz), share=0.1)
    assert lost.shape == (len(xyz),)
    far = xyz[:, 0].abs() > 0.35
    assert (lost[far & (xyz[:, 0] > 0)] > 0).all()
    assert (lost[far & (xyz[:, 0] < 0)] < 0).all()
    # One centre, in plain loops: every point is a centre here, so each has its own value.
    row = int(xyz[:, 0].argmax())
    away = (xyz - xyz[row]).norm(dim=1)
    kept = away.argsort()[round(0.1 * len(xyz)) :]

    def cosine(points: Tensor) -> float:
        right, left = float((points[:, 0] > 0).double().mean()), float((points[:, 0] <= 0).double().mean())
        return float(right / np.hypot(right, left))

    assert float(lost[row]) == pytest.approx(cosine(xyz) - cosine(xyz[kept]), abs=1e-5)
    few = text_relevance(aligned, xyz, text, query=xyz[:7], num_parts=8, batch_size=3)
    assert few.shape == (7,)
    with pytest.raises(ValueError, match="share must leave some points"):
        text_relevance(aligned, xyz, text, share=0.0)
