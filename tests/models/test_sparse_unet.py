"""The U-Net of sparse convolutions: what goes in, what comes out, and what must not matter."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pc3d.data import PointBatch, PointCloud, Rooms, collate
from pc3d.models import PointViT, SparseUNet, load_encoder, save_encoder

SMALL: dict[str, Any] = {"channels": (8, 16, 24), "blocks": (1, 1, 1), "voxel_size": 0.2}


def small(**changes: Any) -> SparseUNet:
    torch.manual_seed(0)
    return SparseUNet(**{**SMALL, **changes})


@pytest.fixture(scope="module")
def clouds() -> list[PointCloud]:
    """Corners of two scanned rooms, a crumb of a third, and nothing at all."""
    rooms = Rooms("train")
    cut = [room.select((room.xyz[:, :2] < 1.6).all(1)) for room in (rooms[0], rooms[1])]
    empty = torch.zeros(0, dtype=torch.int64)
    return [cut[0].select(slice(None, None, 4)), cut[1].select(slice(None, None, 3)), rooms[2].select(slice(3)),
            rooms[2].select(empty)]  # fmt: skip


@torch.no_grad()
def test_every_point_gets_the_features_of_its_voxel(clouds: list[PointCloud]) -> None:
    model, batch = small().eval(), collate(clouds)
    features = model.point_features(batch)
    assert features.shape == (len(batch.xyz), model.feature_dim) == (len(batch.xyz), 8)
    cells = torch.floor(clouds[0].xyz / 0.2).tolist()
    rows: dict[tuple[float, ...], int] = {}
    for row, cell in enumerate(cells):
        first = rows.setdefault(tuple(cell), row)
        assert torch.equal(features[row], features[first])
    assert len(features[: len(cells)].unique(dim=0)) > len(rows) // 2


@torch.no_grad()
def test_levels(clouds: list[PointCloud]) -> None:
    batch = collate(clouds)
    levels = small().eval().encode(batch)
    assert [level.stride for level in levels] == [1, 2, 4]
    assert [level.features.shape[1] for level in levels] == [8, 16, 24]
    for fine, coarse in pairwise(levels):
        assert fine.parent is not None
        assert torch.equal(coarse.coords[fine.parent], torch.div(fine.coords, 2, rounding_mode="floor"))
        scene = torch.bucketize(fine.parent, coarse.offsets[1:], right=True)
        assert torch.equal(scene, torch.bucketize(torch.arange(len(fine.coords)), fine.offsets[1:], right=True))
        children = fine.xyz[fine.parent == 3]
        torch.testing.assert_close(coarse.xyz[3], children.mean(0))
    assert levels[-1].parent is None
    assert len({len(level.offsets) for level in levels}) == 1


@torch.no_grad()
def test_a_scene_alone_and_in_a_batch(clouds: list[PointCloud]) -> None:
    model = small().eval()
    together = model.point_features(collate(clouds))
    alone = torch.cat([model.point_features(collate([cloud])) for cloud in clouds])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_shifts_by_whole_coarsest_voxels_change_nothing(clouds: list[PointCloud]) -> None:
    model = small(voxel_size=0.25).eval()
    batch = collate(clouds)
    shift = torch.tensor([3.0, -2.0, 1.0]) * 0.25 * 4
    moved = PointBatch(batch.xyz.double() + shift, batch.offsets, rgb=batch.rgb)
    still = PointBatch(batch.xyz.double(), batch.offsets, rgb=batch.rgb)
    torch.testing.assert_close(model.point_features(moved), model.point_features(still), rtol=1e-4, atol=1e-5)


def test_all_parameters_learn_and_training_draws_points(clouds: list[PointCloud]) -> None:
    model, batch = small().train(), collate(clouds)
    torch.manual_seed(0)
    first = model.point_features(batch)
    first.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    assert not torch.equal(first, model.point_features(batch))
    torch.manual_seed(0)
    assert torch.equal(small().train().point_features(batch), small().train().point_features(batch))


def test_gradients_are_the_differences_of_the_loss(clouds: list[PointCloud]) -> None:
    """Along one random direction through all parameters, in float64, by steps too short to meet a kink."""
    model, batch = small().double().eval(), collate([cloud.select((cloud.xyz < 0.7).all(1)) for cloud in clouds[:2]])
    for name, value in model.named_parameters():
        if name.endswith("norm.bias"):
            torch.nn.init.normal_(value, std=0.3)  # or absent neighbours are exactly at the kink of the ReLU
    weight = torch.randn(len(batch.xyz), model.feature_dim, dtype=torch.float64)
    parameters = list(model.parameters())

    def loss() -> Tensor:
        return (model.point_features(batch) * weight).sum()

    slopes = torch.autograd.grad(loss(), parameters)
    direction = [torch.randn_like(p) for p in parameters]
    wanted = sum(float((g * d).sum()) for g, d in zip(slopes, direction, strict=True))
    ends = []
    with torch.no_grad():
        for step in (1e-8, -2e-8):
            for parameter, towards in zip(parameters, direction, strict=True):
                parameter += step * towards
            ends.append(float(loss()))
    assert (ends[0] - ends[1]) / 2e-8 == pytest.approx(wanted, rel=1e-4)


def test_a_step_fits_a_room_better(clouds: list[PointCloud]) -> None:
    model, batch = small().train(), collate(clouds)
    head = torch.nn.Linear(8, 24)
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=0.01)
    losses = []
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(head(model.point_features(batch)), batch.segment, ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@torch.no_grad()
def test_saved_and_loaded(clouds: list[PointCloud], tmp_path: Path) -> None:
    model = small(signals="xyz").eval()
    save_encoder(model, tmp_path)
    loaded = load_encoder(tmp_path, expect=SparseUNet)
    assert loaded.config == model.config
    batch = collate(clouds)
    assert torch.equal(loaded.point_features(batch), model.point_features(batch))
    with pytest.raises(ValueError, match="holds a SparseUNet, but a PointViT is needed here"):
        load_encoder(tmp_path, expect=PointViT)


def test_missing_fields_are_explained(clouds: list[PointCloud]) -> None:
    bare = PointBatch(clouds[0].xyz, torch.tensor([0, len(clouds[0])]))
    with pytest.raises(ValueError, match=r"signals='xyz_rgb', but this batch has no rgb: .* signals='xyz'"):
        small().point_features(bare)
    colored = PointBatch(clouds[0].xyz, torch.tensor([0, len(clouds[0])]), rgb=clouds[0].rgb)
    with pytest.raises(ValueError, match=r"this batch has no normal: .* signals='xyz_rgb'"):
        small(signals="xyz_rgb_normal").point_features(colored)
    assert small(signals="xyz").eval().point_features(bare).shape == (len(clouds[0]), 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": ()}, "channels must be one or more positive widths"),
        ({"blocks": (1, 1)}, "blocks must be 3 positive numbers"),
        ({"voxel_size": 0.0}, "voxel_size must be positive, got 0.0"),
        ({"signals": "rgb"}, "signals must be one of xyz, xyz_rgb, xyz_rgb_normal, got 'rgb'"),
    ],
)
def test_bad_sizes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)
