"""Every encoder of the package as the backbone of the segmentation task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_scenes import SmallRooms
from torch import nn

from pc3d import models
from pc3d.cli.main import main
from pc3d.data import PointCloud, collate
from pc3d.models import BlockFeatures
from pc3d.models.hub import ENCODERS
from pc3d.ops import voxelize
from pc3d.tasks import SemanticSegmentation, load_segmenter, segment_scene, segmentation_loss

CLASSES = SmallRooms("test").classes


def given(kind: str, **arguments: Any) -> dict[str, Any]:
    """As a configuration names a class."""
    return {"class_path": f"pc3d.models.{kind}", "init_args": arguments}


TOKENS = {"depth": 3, "num_heads": 2, "num_points": 48}
UNET = given("SparseUNet", channels=[8, 12], blocks=[1, 1], voxel_size=0.1, signals="xyz_rgb")
SMALL = {
    "PointViT": given("PointViT", embed_dim=16, num_groups=6, group_size=8, tokenizer_dims=[8, 8, 8], **TOKENS),
    "ViT3D": given("ViT3D", embed_dim=16, group_size=8, point_dim=8, **TOKENS),
    "PointNet": given("PointNet", embed_dim=16, num_points=48),
    "DGCNN": given("DGCNN", embed_dim=16, k=4, num_points=48),
    "Swin3D": given(
        "Swin3D",
        channels=[8, 16],
        depths=[1, 1],
        down_strides=[2],
        num_heads=[2, 2],
        window_sizes=[3, 3],
        voxel_size=0.1,
    ),
    "SparseUNet": UNET,
    "PointTransformerV3": given(
        "PointTransformerV3",
        channels=[16, 32],
        depths=[1, 2],
        decoder_channels=[16],
        decoder_depths=[1],
        patch_size=32,
        voxel_size=0.1,
        drop_path=0.1,
    ),
    "OpenShapePointBERT": given(
        "OpenShapePointBERT",
        embed_dim=16,
        width=16,
        mlp_dim=16,
        patch_dim=8,
        num_groups=6,
        group_size=8,
        axes="y_up",
        **TOKENS,
    ),
    # Of each cube 48 points instead of 10,000, or this one alone would take most of the time.
    "OpenShapeSparseConv": given(
        "BlockFeatures",
        encoder=given("OpenShapeSparseConv", embed_dim=16, layers=[1, 1, 1, 1], hidden_dim=8, voxel_size=0.1),
        num_points=48,
    ),
    "OpenShapeFCNN": given(
        "OpenShapeFCNN", embed_dim=16, channels=[4, 6, 6, 8, 8], merged_dim=8, hidden_dim=8, voxel_size=0.02
    ),
    "AlignedShapeEncoder": given("AlignedShapeEncoder", encoder=given("PointNet", embed_dim=16, num_points=48)),
    "BlockFeatures": given(
        "BlockFeatures",
        encoder=given("ViT3D", embed_dim=16, depth=4, num_heads=2, group_size=8, point_dim=8),
        block_size=0.8,
        feature_dim=20,
        layers=[0, 1, 2],
        num_points=40,
    ),
    "DistilledEncoder": given("DistilledEncoder", encoder=UNET, space_dim=5),
    "UpcastFeatures": given("UpcastFeatures", encoder=UNET),
}
OF_OBJECTS = {
    "PointViT",
    "ViT3D",
    "PointNet",
    "DGCNN",
    "OpenShapePointBERT",
    "OpenShapeSparseConv",
    "OpenShapeFCNN",
    "AlignedShapeEncoder",
    "BlockFeatures",
}


def build(spec: dict[str, Any]) -> nn.Module:
    arguments = {key: build(value) if isinstance(value, dict) else value for key, value in spec["init_args"].items()}
    encoder: nn.Module = getattr(models, spec["class_path"].rpartition(".")[2])(**arguments)
    return encoder


def task(name: str) -> SemanticSegmentation:
    torch.manual_seed(0)
    model = SemanticSegmentation(build(SMALL[name]), len(CLASSES), CLASSES)
    for module in model.modules():  # as if trained: every batch norm does something of its own
        if isinstance(module, nn.BatchNorm1d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model


@pytest.fixture(scope="module")
def clouds() -> list[PointCloud]:
    """A point in each voxel: which of several would stand for theirs depends on their order."""
    rooms = SmallRooms("test")
    thinned = [cloud.select(voxelize(cloud.xyz, 0.1).first) for cloud in (rooms[0], rooms[1])]
    return [thinned[0], thinned[0].select(slice(0)), thinned[1].select(slice(60))]


def test_every_encoder_of_the_package_is_tried() -> None:
    assert set(SMALL) == set(ENCODERS)


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_every_point_of_any_scene_gets_features_that_depend_on_its_scene_alone(
    name: str, clouds: list[PointCloud]
) -> None:
    model = task(name).eval()
    backbone: Any = model.encoder
    assert isinstance(backbone, BlockFeatures) == (name in OF_OBJECTS)
    together = backbone.point_features(collate(clouds))
    assert together.shape == (sum(map(len, clouds)), backbone.feature_dim)
    assert together.isfinite().all()
    assert (together.std(0) > 0).any()
    alone = torch.cat([backbone.point_features(collate([cloud])) for cloud in clouds if len(cloud)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)
    moved = [torch.randperm(len(cloud), generator=torch.Generator().manual_seed(1)) for cloud in clouds]
    shuffled = backbone.point_features(collate([c.select(rows) for c, rows in zip(clouds, moved, strict=True)]))
    first = len(clouds[0])
    expected = torch.cat([together[:first][moved[0]], together[first:][moved[2]]])
    torch.testing.assert_close(shuffled, expected, rtol=1e-4, atol=1e-4)


def test_in_blocks_with_a_cube_around_them_a_scene_gets_what_it_gets_as_a_whole() -> None:
    model, room = task("BlockFeatures").segmenter, SmallRooms("test")[0]
    room = room.select(room.xyz[:, 2] < room.xyz[:, 2].median())
    whole, parts = (torch.zeros(len(room), len(CLASSES)) for _ in range(2))
    segment_scene(model, room, probabilities=whole)
    found = segment_scene(model, room, max_points=280, context=0.8, probabilities=parts)
    assert found.notes == ()
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_all_of_the_encoder_that_is_trained_and_it_learns(name: str, clouds: list[PointCloud]) -> None:
    model, batch = task(name).train(), collate(clouds)
    assert batch.segment is not None
    first = segmentation_loss(model.segmenter(batch), batch.segment)
    first.backward()
    trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
    assert all(value.grad is not None and value.grad.isfinite().all() for value in trained.values())
    assert all(value.grad is None for key, value in model.named_parameters() if key not in trained)
    inside: Any = getattr(model.encoder, "encoder", model.encoder)
    assert any(value.grad is not None and value.grad.any() for value in inside.parameters())
    optimiser = torch.optim.Adam(trained.values(), 0.01)
    for _ in range(3):
        optimiser.step()
        optimiser.zero_grad()
        last = segmentation_loss(model.segmenter(batch), batch.segment)
        last.backward()
    assert last < first - 0.2


@pytest.mark.parametrize("name", SMALL)
def test_it_is_trained_kept_and_applied_by_the_command(name: str, tmp_path: Path) -> None:
    data = {
        "train": {"class_path": "pc3d.data.Rooms"},
        "train_transforms": [{"class_path": "pc3d.data.SphereCrop", "init_args": {"max_points": 300}}],
        "batch_size": 2,
        "validation_fraction": 0,
    }
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "max_steps": 1}
    config = {"seed": 0, "model": {"backbone": SMALL[name]}, "data": data, "trainer": quiet}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    run = tmp_path / "run"
    assert main(["segment", "train", "--config", str(tmp_path / "tiny.yaml"), "--output", str(run), "--quiet"]) == 0
    model = load_segmenter(run)
    assert isinstance(model.backbone, BlockFeatures) == (name in OF_OBJECTS)
    room = SmallRooms("test")[0]
    found = segment_scene(model, room, max_points=200)
    assert found.label.shape == (len(room),)
    assert ((found.label >= 0) & (found.label < len(CLASSES))).all()
