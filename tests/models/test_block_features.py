"""An encoder of objects as a backbone for scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pc3d.data import PointBatch, PointCloud, Rooms, collate
from pc3d.models import (
    DGCNN,
    AlignedShapeEncoder,
    BlockFeatures,
    OpenShapeFCNN,
    OpenShapePointBERT,
    OpenShapeSparseConv,
    PointNet,
    PointViT,
    SparseUNet,
    ViT3D,
    load_encoder,
    save_encoder,
    scene_backbone,
)
from pc3d.models.block_features import scattered
from pc3d.models.local_features import local_features


def bert(**changes: Any) -> OpenShapePointBERT:
    sizes: dict[str, Any] = {"width": 24, "depth": 3, "num_heads": 2, "mlp_dim": 24, "patch_dim": 8, "num_groups": 16}
    return OpenShapePointBERT(8, group_size=8, num_points=128, **{**sizes, **changes})


ENCODERS = {
    "PointViT": lambda: PointViT(24, 3, 4, num_groups=16, group_size=8, num_points=128, tokenizer_dims=(8, 16, 16)),
    "ViT3D": lambda: ViT3D(24, 3, 4, group_size=8, point_dim=8, num_points=128),
    "PointNet": lambda: PointNet(16, num_points=128),
    "DGCNN": lambda: DGCNN(16, k=6, num_points=128),
    "OpenShapePointBERT": lambda: bert(axes="mirrored"),
    "OpenShapeSparseConv": lambda: OpenShapeSparseConv(8, (1, 1, 1, 1), 8, voxel_size=0.05),
    "OpenShapeFCNN": lambda: OpenShapeFCNN(8, (4, 6, 6, 8, 8), 8, 8),
}


def small(block_size: float = 0.8, **changes: Any) -> BlockFeatures:
    torch.manual_seed(0)
    sizes = {"num_groups": 16, "group_size": 8, "num_points": 128, "tokenizer_dims": (8, 16, 16), **changes}
    return BlockFeatures(PointViT(24, 3, 4, **sizes), block_size, feature_dim=20)


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
@pytest.mark.parametrize("name", ENCODERS)
def test_a_point_has_what_the_encoder_says_nearby_by_plain_loops(name: str) -> None:
    """One cube of 200 points, of which the encoder sees 128."""
    torch.manual_seed(0)
    model = BlockFeatures(ENCODERS[name](), block_size=2.0, feature_dim=20, num_points=128).eval()
    generator = torch.Generator().manual_seed(0)
    xyz, rgb = torch.rand(200, 3, generator=generator) * 1.9, torch.rand(200, 3, generator=generator)
    unit = ((xyz / 2.0) * 2 - 1) / 3**0.5
    order = scattered(xyz).argsort()
    seen = [int(order[step * 200 // 128]) for step in range(128)]
    features, places = local_features(model.encoder, unit[seen][None], rgb[seen][None])
    linear, norm, _ = model.propagation
    assert isinstance(norm, nn.BatchNorm1d)
    found = model.point_features(PointBatch(xyz, torch.tensor([0, 200]), rgb=rgb))
    for row in range(0, 200, 7):
        squared = [float((unit[row].double() - place.double()).square().sum()) for place in places[0]]
        nearest = sorted(range(len(squared)), key=squared.__getitem__)[:3]
        weight = [1 / (squared[index] + 1e-8) for index in nearest]
        carried = sum(w * features[0, i].double() for w, i in zip(weight, nearest, strict=True)) / sum(weight)
        joined = torch.cat([unit[row].double(), torch.as_tensor(carried)])
        # A fresh batch norm divides by the root of 1 + eps.
        expected = (linear.weight.double() @ joined / (1 + norm.eps) ** 0.5).clamp(min=0)
        torch.testing.assert_close(found[row].double(), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_transformers_say_it_by_three_blocks(clouds: list[PointCloud]) -> None:
    model = small(block_size=2.0).eval()
    encoder, xyz = model.encoder, clouds[0].xyz[None, :128]
    assert isinstance(encoder, PointViT)
    patches = encoder.tokenizer(xyz)
    _, kept = encoder.transformer.layers(patches.tokens, encoder.position(patches.centers), keep=(0, 1, 2))
    features, places = local_features(encoder, xyz)
    torch.testing.assert_close(features, torch.cat([encoder.norm(layer) for layer in kept], dim=-1))
    assert torch.equal(places, patches.centers)


@torch.no_grad()
def test_openshape_says_it_by_three_blocks_in_the_frame_of_the_points(clouds: list[PointCloud]) -> None:
    encoder, xyz = bert(depth=6, axes="y_up").eval(), clouds[0].xyz[None, :128]
    features, places = local_features(encoder, xyz)
    assert (places[0][:, None] == xyz[0]).all(2).any(1).all()
    of_blocks = features.chunk(3, dim=2)
    for depth, found in zip((2, 4, 6), of_blocks, strict=True):
        shallower = bert(depth=depth, axes="y_up").eval()
        shallower.load_state_dict(
            {key: value for key, value in encoder.state_dict().items() if key in shallower.state_dict()}
        )
        torch.testing.assert_close(found, shallower.tokens(xyz)[:, 1:])


def levels_of(encoder: OpenShapeSparseConv, xyz: Tensor, rgb: Tensor) -> list[Tensor]:
    """Outputs of the last block of each level."""
    seen: list[Tensor] = []
    hooks = [level[-1].register_forward_hook(lambda _, __, output: seen.append(output)) for level in encoder.levels]  # type: ignore[index]
    encoder.encode(xyz[None], rgb=rgb[None])
    for hook in hooks:
        hook.remove()
    return seen


@torch.no_grad()
def test_a_point_has_the_features_of_the_voxels_that_hold_it(clouds: list[PointCloud]) -> None:
    xyz, rgb = clouds[0].xyz[:300] - 0.6, torch.as_tensor(clouds[0].rgb)[:300]
    torch.manual_seed(0)
    encoder = OpenShapeSparseConv(8, (1, 1, 1, 1), 8, voxel_size=0.05).eval()
    found = encoder.local_features(xyz[None], rgb[None])[0]
    expected = []
    for level, features in enumerate(levels_of(encoder, xyz, rgb)):
        voxel = np.floor(np.floor(xyz.numpy() / np.float32(0.05)) / 2 ** (level + 1)).astype(int)
        _, inverse = np.unique(voxel, axis=0, return_inverse=True)
        expected.append(features[torch.from_numpy(inverse.reshape(-1))])
    torch.testing.assert_close(found, torch.cat(expected, dim=1))


@torch.no_grad()
def test_stages_of_the_small_sparse_network_are_constant_on_their_voxels(clouds: list[PointCloud]) -> None:
    xyz, rgb = clouds[0].xyz[:300] - 0.6, torch.as_tensor(clouds[0].rgb)[:300]
    torch.manual_seed(0)
    found = OpenShapeFCNN(8, (4, 6, 6, 8, 8), 8, 8).eval().local_features(xyz[None], rgb[None])[0]
    fine = np.floor(xyz.numpy() / np.float32(0.02))
    for edge, stage in zip((2, 8, 32, 128), found.split((6, 6, 8, 8), dim=1), strict=True):
        _, first, inverse = np.unique(np.floor(fine / edge), axis=0, return_index=True, return_inverse=True)
        assert torch.equal(stage, stage[torch.from_numpy(first[inverse.reshape(-1)])])
        assert len(stage.unique(dim=0)) > len(first) // 2


def test_the_order_looks_random_and_depends_on_coordinates_alone() -> None:
    line = torch.linspace(0, 1, 1000)[:, None] * torch.tensor([1.0, 0.0, 0.0])
    rank = scattered(line).argsort().argsort()
    # Of random ranks the correlation with the place has a standard deviation of 1 / sqrt(999).
    assert abs(np.corrcoef(rank.numpy(), np.arange(1000))[0, 1]) < 4 / 999**0.5
    grid = torch.cartesian_prod(*[torch.arange(20.0) / 8] * 3)
    assert len(scattered(grid).unique()) == len(grid)
    moved = torch.randperm(len(grid), generator=torch.Generator().manual_seed(0))
    assert torch.equal(scattered(grid[moved]), scattered(grid)[moved])
    assert torch.equal(scattered(-torch.zeros(1, 3)), scattered(torch.zeros(1, 3)))


def test_it_learns_and_training_draws_points(clouds: list[PointCloud]) -> None:
    model, batch = small().train(), collate(clouds)
    first = model.point_features(batch)
    first.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not torch.equal(first, model.point_features(batch))


def test_what_only_a_vector_needs_is_not_trained() -> None:
    model = BlockFeatures(DGCNN(16, k=4))
    model.train_encoder()
    idle = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert idle == {"encoder.linear.weight", "encoder.norm.weight", "encoder.norm.bias"}
    model.train_encoder(False)
    assert {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"propagation"}


@pytest.mark.parametrize("build", [lambda: PointViT(24, 4, 4), lambda: ViT3D(24, 4, 4), lambda: bert(depth=4)])
def test_blocks_after_the_last_chosen_one_are_not_trained(build: Any) -> None:
    model = BlockFeatures(build(), layers=(0, 1, 2))
    for _ in range(2):  # as built, and as asked for
        idle = {name for name, p in model.named_parameters() if not p.requires_grad}
        idle -= {"encoder.projection.weight", "encoder.projection.bias"}
        blocks = "encoder.blocks" if isinstance(model.encoder, OpenShapePointBERT) else "encoder.transformer.blocks"
        assert idle == {name for name, _ in model.named_parameters() if name.startswith(f"{blocks}.3.")} != set()
        model.train_encoder()


@torch.no_grad()
@pytest.mark.parametrize("name", ["PointViT", "OpenShapeFCNN"])
def test_saved_and_loaded(name: str, clouds: list[PointCloud], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, batch = BlockFeatures(ENCODERS[name](), 0.8, 20).eval(), collate(clouds)
    loaded = load_encoder(save_encoder(model, tmp_path), expect=BlockFeatures)
    assert loaded.config == model.config
    assert torch.equal(loaded.point_features(batch), model.point_features(batch))


def test_encoders_of_objects_become_backbones_and_others_stay() -> None:
    encoder, scenes = PointNet(16), SparseUNet((8, 12), (1, 1), 0.3)
    found = scene_backbone(AlignedShapeEncoder(encoder))
    assert isinstance(found, BlockFeatures)
    assert found.encoder is encoder
    assert (found.num_points, found.block_size, found.signals) == (1024, 1.0, "xyz")
    assert scene_backbone(scenes) is scenes
    assert scene_backbone(found) is found
    assert BlockFeatures(OpenShapeFCNN(8)).num_points == 10_000


def test_bad_arguments_are_refused(clouds: list[PointCloud]) -> None:
    with pytest.raises(ValueError, match="num_cls_tokens=0, got 1"):
        small(num_cls_tokens=1)
    with pytest.raises(ValueError, match="block_size, feature_dim and num_points must be positive, got -1"):
        small(block_size=-1.0)
    with pytest.raises(ValueError, match=r"three ascending blocks of 0\.\.2, got \(2, 1, 0\)"):
        BlockFeatures(PointViT(24, 3, 4), layers=(2, 1, 0))
    with pytest.raises(ValueError, match="layers: a PointNet has no blocks to choose from"):
        BlockFeatures(PointNet(8), layers=(0, 1, 2))
    with pytest.raises(ValueError, match="20 and 0"):
        BlockFeatures(PointNet(8), feature_dim=20, num_points=0)
    with pytest.raises(
        TypeError, match=r"Linear is no backbone for scenes: .*PointViT, ViT3D, OpenShapePointBERT, PointN"
    ):
        scene_backbone(nn.Linear(1, 1))
    with pytest.raises(TypeError, match="BlockFeatures takes an encoder of objects"):
        BlockFeatures(SparseUNet((8, 12), (1, 1), 0.3))
    with pytest.raises(ValueError, match="OpenShapePointBERT reads colours, but this batch has no rgb"):
        BlockFeatures(bert()).point_features(collate([clouds[0].replace(rgb=None)]))
    for encoder, least in ((DGCNN(16), 20), (PointViT(24, 3, 4), 64), (ViT3D(24, 3, 4), 32), (bert(), 16)):
        with pytest.raises(ValueError, match=f"num_points must be at least {least}, .*got {least - 1}"):
            BlockFeatures(encoder, num_points=least - 1)
        assert BlockFeatures(encoder, num_points=least).point_features(collate(clouds)).isfinite().all()
    with pytest.raises(ValueError, match="take a PointViT of depth >= 3, got 2"):
        BlockFeatures(PointViT(24, 2, 4))
    with pytest.raises(ValueError, match="needs an encoder with start='first'"):
        BlockFeatures(bert(start="random"))
