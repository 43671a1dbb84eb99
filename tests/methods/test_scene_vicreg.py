"""VICReg of scenes: which points are compared, what a step computes and draws, and whole runs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import QUIET, Stop, quiet
from torch import Tensor, nn

from pc3d import load_encoder
from pc3d.cli.main import main
from pc3d.data import (
    CenterShift,
    GridSample,
    PointBatch,
    RandomRotate,
    Rooms,
    SceneDataModule,
    Selection,
    Transform,
    ViewPairs,
    collate,
)
from pc3d.methods import Optimisation, SceneVICReg, pretrain
from pc3d.methods.hidden_scene import HiddenScene, hide_cells
from pc3d.models import PointTransformerV3, SparseUNet, Swin3D

VIEW: list[Transform] = [CenterShift(), RandomRotate("z", 180.0, probability=1.0), GridSample(0.1)]
PAIRS = ViewPairs(VIEW, radius=0.8, distance=0.3)


def unet() -> SparseUNet:
    return SparseUNet((8, 12, 16), (1, 1, 1), voxel_size=0.1, signals="xyz_rgb_normal")


def swin(drop_path: float = 0.2) -> Swin3D:
    sizes: dict[str, Any] = {"channels": (8, 16), "depths": (2, 1), "down_strides": (2,), "window_sizes": (3, 3)}
    return Swin3D(**sizes, voxel_size=0.15, num_heads=(2, 2), drop_path=drop_path)


def ptv3(drop_path: float = 0.2) -> PointTransformerV3:
    sizes: dict[str, Any] = {"channels": (16, 32), "depths": (1, 2), "decoder_channels": (16,), "decoder_depths": (1,)}
    return PointTransformerV3(**sizes, patch_size=32, voxel_size=0.1, drop_path=drop_path)


def method(encoder: Callable[[], nn.Module] = unet, **changes: Any) -> SceneVICReg:
    torch.manual_seed(0)
    arguments = {"projector": (32, 24), "pairs_per_scene": 200, **changes}
    return SceneVICReg(encoder(), optimisation=Optimisation(learning_rate=3e-3, warmup_epochs=1), **arguments)


@pytest.fixture(scope="module")
def batch() -> PointBatch:
    rooms = [Rooms("train")[index] for index in (0, 2)]
    return PAIRS(rooms, torch.Generator().manual_seed(0))


# ---- matches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0.05, 0.2])
def test_matches_are_the_nearest_places_of_the_other_view(limit: float, batch: PointBatch) -> None:
    scene = method(pairs_per_scene=10**6, match_distance=limit)
    first, second = scene.pairs(batch, scene.draws(batch, 0, 0))
    assert batch.feature is not None
    expected = {}
    for b in range(len(batch) // 2):
        start, middle, end = batch.offsets[2 * b : 2 * b + 3].tolist()
        places = batch.feature.double()
        distance, nearest = torch.cdist(places[start:middle], places[middle:end]).min(1)
        for row in (distance <= limit).nonzero().flatten().tolist():
            expected[start + row] = middle + int(nearest[row])
    assert 100 < len(expected) < len(batch.xyz) / 2
    assert dict(zip(first.tolist(), second.tolist(), strict=True)) == expected


def test_so_many_are_drawn_of_each_scene_by_the_step(batch: PointBatch) -> None:
    scene = method(pairs_per_scene=50)
    every = method(pairs_per_scene=10**6)
    all_first, all_second = every.pairs(batch, every.draws(batch, 0, 0))
    partner = dict(zip(all_first.tolist(), all_second.tolist(), strict=True))
    drawn = [scene.pairs(batch, scene.draws(batch, 0, step)) for step in (0, 0, 1)]
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert not torch.equal(drawn[0][0], drawn[2][0])
    for first, second in drawn:
        assert first.unique().numel() == len(first) == 100
        assert ((first >= batch.offsets[0]) & (first < batch.offsets[1])).sum() == 50
        assert [partner[row] for row in first.tolist()] == second.tolist()


# ---- masks -------------------------------------------------------------------------------------------------------


def hidden_of(scene: SceneVICReg, batch: PointBatch, step: int = 0) -> HiddenScene:
    """What a step hides: drawn after its matches."""
    draws = scene.draws(batch, 0, step)
    scene.pairs(batch, draws)
    return hide_cells(batch, scene.model.voxel_size, scene.cell_size, scene.mask_ratio, draws)


def step_features(scene: SceneVICReg, batch: PointBatch) -> Tensor:
    """Of all points, as the first step sees them."""
    draws = scene.draws(batch, 0, 0)
    scene.pairs(batch, draws)
    with torch.no_grad(), scene.default_draws(0, 0, batch.xyz.device):
        return scene.point_features(batch, draws)


@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_the_share_of_hidden_cubes_is_exact_in_both_views_and_other_places_are_hidden_in_each(
    ratio: float, batch: PointBatch
) -> None:
    scene = method(mask_ratio=ratio, pairs_per_scene=10**6)
    hidden = hidden_of(scene, batch)
    for start, stop in zip(hidden.cell_offsets[:-1].tolist(), hidden.cell_offsets[1:].tolist(), strict=True):
        of_cube = [hidden.mask[hidden.cell == cell] for cell in range(start, stop)]
        assert all(bool(mask.all()) or not bool(mask.any()) for mask in of_cube)
        assert sum(bool(mask.all()) for mask in of_cube) == int(ratio * (stop - start)) > 0
    first, second = scene.pairs(batch, scene.draws(batch, 0, 0))
    of_point = hidden.mask[hidden.inverse]
    one_sided = (of_point[first] != of_point[second]).float().mean()
    assert one_sided == pytest.approx(2 * ratio * (1 - ratio), abs=0.15)  # of independent masks; same ones: 0


@pytest.mark.parametrize("encoder", [unet, swin, ptv3])
def test_no_feature_knows_of_what_is_hidden(encoder: Any, batch: PointBatch) -> None:
    scene = method(encoder, mask_ratio=0.5).eval()
    for parameter in scene.parameters():
        nn.init.normal_(parameter, std=0.3)  # tables and biases that matter
    rows = (hidden := hidden_of(scene, batch)).mask[hidden.inverse, None]
    assert batch.rgb is not None
    assert batch.normal is not None
    rgb, normal = 1.0 - batch.rgb, -batch.normal
    middle = torch.where(rows, hidden.batch.xyz, batch.xyz)
    of_hidden = {"rgb": torch.where(rows, rgb, batch.rgb), "normal": torch.where(rows, normal, batch.normal)}
    of_seen = {"rgb": torch.where(rows, batch.rgb, rgb), "normal": torch.where(rows, batch.normal, normal)}
    features = step_features(scene, batch)
    assert features.std() > 1e-3
    torch.testing.assert_close(step_features(scene, dataclasses.replace(batch, xyz=middle, **of_hidden)), features)
    assert not torch.allclose(step_features(scene, dataclasses.replace(batch, **of_seen)), features, atol=1e-2)
    unmasked = method(encoder).eval()
    unmasked.load_state_dict(scene.state_dict(), strict=False)
    assert not torch.allclose(step_features(unmasked, batch), features, atol=1e-2)


def test_without_masks_there_is_no_token_and_all_is_seen(batch: PointBatch) -> None:
    scene = method().eval()
    assert not any("token" in name for name, _ in scene.named_parameters())
    with torch.no_grad():
        assert torch.equal(step_features(scene, batch), scene.model.point_features(batch))
    masked = method(mask_ratio=0.4).state_dict()
    assert masked.pop("mask_token").shape == (1, 8)
    assert all(torch.equal(masked[name], value) for name, value in scene.state_dict().items())  # weights begin the same


# ---- a step ------------------------------------------------------------------------------------------------------


def test_the_loss_is_vicreg_of_the_projected_features(batch: PointBatch) -> None:
    scene = method(invariance_weight=3.0, variance_weight=2.0, covariance_weight=0.5).eval()
    values = quiet(scene)
    loss = scene.training_step(batch, 0)
    with torch.no_grad():
        rows = scene.pairs(batch, scene.draws(batch, 0, 0))
        features = scene.model.point_features(batch)
        first, second = (scene.projector(features[of_view]).double() for of_view in rows)
    invariance = float(((first - second) ** 2).mean())
    variance = covariance = 0.0
    for view in (first, second):
        matrix = torch.cov(view.T)
        variance += float((1 - (matrix.diagonal() + 1e-4).sqrt()).clamp(min=0).mean())
        covariance += float((matrix - matrix.diagonal().diag()).square().sum() / view.shape[1])
    for name, expected in (("invariance", invariance), ("variance", variance), ("covariance", covariance)):
        assert values[f"train/{name}"] == pytest.approx(expected, rel=1e-4), name
    assert loss.item() == pytest.approx(3 * invariance + 2 * variance + 0.5 * covariance, rel=1e-4)


@pytest.mark.parametrize("mask_ratio", [0.0, 0.4])
@pytest.mark.parametrize("encoder", [unet, swin, ptv3])
def test_gradients_reach_all_of_the_encoder_and_nothing_of_the_decoder(
    encoder: Any, mask_ratio: float, batch: PointBatch
) -> None:
    scene = method(lambda: unet() if encoder is unet else encoder(0.0), mask_ratio=mask_ratio)
    assert (scene.mask_token is not None) == (mask_ratio > 0)
    quiet(scene)
    for name, parameter in scene.named_parameters():
        if "table" in name:
            nn.init.normal_(parameter, std=0.3)
    scene.training_step(batch, 0).backward()
    for name, parameter in scene.named_parameters():
        of_decoder = name.startswith("model.encoder.") and name.split(".")[2] in ("upsamples", "decoder")
        assert parameter.requires_grad != of_decoder, name
        assert (parameter.grad is None) == of_decoder, name
        assert of_decoder or parameter.grad.abs().sum() > 0, name  # type: ignore[union-attr]


@pytest.mark.parametrize("mask_ratio", [0.0, 0.4])
def test_a_step_is_a_function_of_seed_epoch_and_index_alone(mask_ratio: float, batch: PointBatch) -> None:
    scene = method(swin, mask_ratio=mask_ratio)  # draws of its own: drop path, and which point stands for a voxel
    quiet(scene)

    def step(index: int, seed: int = 0) -> float:
        scene.seed = seed
        torch.manual_seed(torch.seed())  # whatever the default generator holds
        before = torch.get_rng_state()
        loss = scene.train().training_step(batch, index).item()
        assert torch.equal(torch.get_rng_state(), before)
        return loss

    assert step(3) == step(3)
    assert len({step(0), step(1), step(0, seed=1)}) == 3


@pytest.mark.parametrize("collapses", [False, True])
def test_places_become_like_themselves_and_unlike_others_unless_nothing_keeps_them_apart(
    collapses: bool, batch: PointBatch
) -> None:
    weights = {"variance_weight": 0.0, "covariance_weight": 0.0} if collapses else {}
    scene = method(**weights)
    quiet(scene)
    optimizer = torch.optim.AdamW(scene.parameters(), lr=3e-3)
    for step in range(40):
        loss: Tensor = scene.training_step(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    rows = scene.pairs(batch, scene.draws(batch, 0, 99))
    with torch.no_grad():
        features = scene.model.point_features(batch)
        first, second = (scene.projector(features[of_view]) for of_view in rows)
    spread = float(first.std(0).mean())
    if collapses:
        assert spread < 0.1
    else:
        assert spread > 0.5
        assert (first - second).norm(dim=1).mean() < 0.4 * torch.cdist(first, second).mean()


def test_what_is_hidden_is_told_from_what_is_around_it(batch: PointBatch) -> None:
    scene = method(mask_ratio=0.4, pairs_per_scene=10**6)
    quiet(scene)
    optimizer = torch.optim.AdamW(scene.parameters(), lr=3e-3)

    def nearer() -> float:
        """Distance between views where the first is hidden and the second is not, over that of any two places."""
        hidden = hidden_of(scene, batch, 99)
        of_point = hidden.mask[hidden.inverse]
        draws = scene.draws(batch, 0, 99)
        rows = scene.pairs(batch, draws)
        with torch.no_grad():
            features = scene.point_features(batch, draws)
            first, second = (scene.projector(features[of_view]) for of_view in rows)
        one_sided = of_point[rows[0]] & ~of_point[rows[1]]
        assert one_sided.sum() > 100
        apart = (first - second).norm(dim=1)[one_sided].mean()
        return float(apart / torch.cdist(first[one_sided], second[one_sided]).mean())

    before = nearer()
    for step in range(40):
        loss: Tensor = scene.training_step(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert nearer() < 0.4 < 0.9 < before


def test_bad_input_is_named(batch: PointBatch) -> None:
    with pytest.raises(TypeError, match="SparseUNet, a Swin3D or a PointTransformerV3, got Linear"):
        method(lambda: nn.Linear(1, 1))
    with pytest.raises(ValueError, match="pairs_per_scene must be at least 2, got 1"):
        method(pairs_per_scene=1)
    with pytest.raises(
        ValueError, match=r"must be numbers of at least 0, .* got \(25\.0, -1\.0, 1\.0\): VICReg's are 25"
    ):
        method(variance_weight=-1.0)
    with pytest.raises(ValueError, match=r"one of them above 0, got \(0\.0, 0\.0, 0\.0\)"):
        method(invariance_weight=0.0, variance_weight=0.0, covariance_weight=0.0)
    with pytest.raises(ValueError, match=r"must be numbers of at least 0, .* got \(nan, 25\.0, 1\.0\)"):
        method(invariance_weight=float("nan"))
    with pytest.raises(ValueError, match=r"match_distance must be positive, got -1\.0"):
        method(match_distance=-1.0)
    for ratio in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=f"mask_ratio must be at least 0 and less than 1, got {ratio}"):
            method(mask_ratio=ratio)
    with pytest.raises(ValueError, match=r"cell_size must be at least the encoder's voxel_size, 0\.1, got 0\.05"):
        method(mask_ratio=0.4, cell_size=0.05)
    with pytest.raises(ValueError, match=r"no cube of 50\.0 can be hidden at mask_ratio 0\.1, .* smaller cell_size"):
        method(mask_ratio=0.1, cell_size=50.0).training_step(batch, 0)
    with pytest.raises(ValueError, match=r"got 4 clouds and a feature of width 0: give .* train_collate=ViewPairs"):
        method().training_step(dataclasses.replace(batch, feature=None), 0)
    room = Rooms("train")[0]
    with pytest.raises(ValueError, match="got 1 clouds and a feature of width 3"):
        method().training_step(collate([room.replace(feature=room.xyz)]), 0)
    assert batch.feature is not None
    far = batch.feature + torch.arange(len(batch.feature))[:, None]
    with pytest.raises(ValueError, match=r"0 points of the views lie within match_distance=0\.15 .* metres"):
        method().training_step(dataclasses.replace(batch, feature=far), 0)


# ---- whole runs --------------------------------------------------------------------------------------------------


def run(folder: Path, stop: int | None = None, resume: bool = False) -> dict[str, Tensor]:
    scene = method(seed=1, mask_ratio=0.4)
    torch.manual_seed(int(time.time()))
    data = SceneDataModule(train=Selection(Rooms("train"), range(4)), train_collate=PAIRS, batch_size=2, seed=4)
    callbacks = [] if stop is None else [Stop(stop)]
    pretrain(scene, data, folder, resume=resume, every_n_steps=1, callbacks=callbacks, max_epochs=2, **QUIET)
    return scene.state_dict()


def test_a_run_that_is_broken_off_ends_bit_for_bit_as_one_that_is_not(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        run(tmp_path / "broken", stop=3)
    resumed = run(tmp_path / "broken", resume=True)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert type(load_encoder(tmp_path / "broken")) is SparseUNet


def test_validation_is_on_the_same_pairs_every_epoch(tmp_path: Path) -> None:
    rooms = Rooms("train")
    data = SceneDataModule(Selection(rooms, range(2)), Selection(rooms, [2]), train_collate=PAIRS, batch_size=2)
    scene = method()
    scene.model.requires_grad_(False)  # so that only what is seen could make a difference
    scene.projector.requires_grad_(False)
    scene.projector[-1].weight.requires_grad_(True)
    scene.optimisation = Optimisation(learning_rate=1e-12, min_learning_rate=1e-12, weight_decay=0.0, warmup_epochs=0)
    for norm in (m for m in scene.modules() if hasattr(m, "running_mean")):
        norm.momentum = 0.0
    pretrain(scene, data, tmp_path, max_epochs=2, **QUIET)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("validation/loss")
    losses = [float(line.split(",")[column]) for line in lines[1:] if line.split(",")[column]]
    assert len(losses) == 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_recipe_runs_by_its_command_with_masks(tmp_path: Path) -> None:
    changes = {"max_epochs": "1", "enable_progress_bar": "false", "enable_model_summary": "false"}
    flags = [part for name, value in changes.items() for part in (f"--trainer.{name}", value)]
    command = ["pretrain", "--config", "scene_vicreg_rooms", "--output", str(tmp_path / "run"), *flags]
    small = ["--data.train_collate.init_args.radius", "0.8", "--model.pairs_per_scene", "100"]
    small += ["--model.mask_ratio", "0.4"]
    assert main([*command, *small]) == 0
    assert load_encoder(tmp_path / "run").config["channels"] == [16, 32, 64, 128]
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]["mask_token"].any()
    assert "train/covariance_epoch" in (tmp_path / "run" / "metrics.csv").read_text()
