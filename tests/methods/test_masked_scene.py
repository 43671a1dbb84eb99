"""Masked scene reconstruction: what is hidden stays hidden, what a step computes and draws, and whole runs."""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from tiny import QUIET, Stop, quiet
from torch import Tensor, nn

from pc3d import load_encoder
from pc3d.cli.main import main
from pc3d.data import PointBatch, PointCloud, Rooms, SceneDataModule, Selection, SphereCrop, collate
from pc3d.methods import MaskedScene, Optimisation, pretrain
from pc3d.methods.hidden_scene import HiddenScene
from pc3d.models import PointTransformerV3, SparseUNet, Swin3D, UpcastFeatures
from pc3d.models.voxel_features import upcast
from pc3d.ops import segment_reduce, voxelize
from pc3d.tasks import SemanticSegmentation

CROP = SphereCrop(900)


def unet(**changes: Any) -> SparseUNet:
    arguments: dict[str, Any] = {"voxel_size": 0.1, "signals": "xyz_rgb_normal", **changes}
    return SparseUNet((8, 12, 16), (1, 1, 1), **arguments)


def swin(**changes: Any) -> Swin3D:
    arguments: dict[str, Any] = {"channels": (8, 16), "depths": (2, 1), "down_strides": (2,), "voxel_size": 0.15}
    return Swin3D(**{**arguments, "num_heads": (2, 2), "window_sizes": (3, 3), **changes})


def ptv3(**changes: Any) -> PointTransformerV3:
    arguments: dict[str, Any] = {"channels": (16, 32), "depths": (1, 2), "decoder_channels": (16,), "patch_size": 32}
    return PointTransformerV3(**{**arguments, "decoder_depths": (1,), "voxel_size": 0.1, **changes})


def sonata(**changes: Any) -> PointTransformerV3:
    return ptv3(decoder_channels=(), variant="sonata", **changes)


def method(encoder: Callable[..., nn.Module] = unet, **changes: Any) -> MaskedScene:
    torch.manual_seed(0)
    arguments = {"head_dim": 32, "optimisation": Optimisation(learning_rate=3e-3, warmup_epochs=1), **changes}
    return MaskedScene(encoder(), **arguments)


@pytest.fixture(scope="module")
def clouds() -> list[PointCloud]:
    rooms, generator = Rooms("train"), torch.Generator().manual_seed(0)
    return [CROP(rooms[index], generator) for index in (0, 2)]


@pytest.fixture(scope="module")
def batch(clouds: list[PointCloud]) -> PointBatch:
    return collate(clouds)


def changed_where_hidden(batch: PointBatch, hidden: HiddenScene) -> PointBatch:
    """Other colours and normals for all points of hidden voxels, and other places within their voxels."""
    generator = torch.Generator().manual_seed(3)
    rows = hidden.mask[hidden.inverse, None]
    assert batch.rgb is not None
    assert batch.normal is not None
    rgb = torch.rand(batch.rgb.shape, generator=generator)
    normal = nn.functional.normalize(torch.randn(batch.normal.shape, generator=generator), dim=1)
    toward_middle = torch.lerp(batch.xyz, hidden.batch.xyz, torch.rand(len(rows), 1, generator=generator))
    return dataclasses.replace(
        batch,
        rgb=torch.where(rows, rgb, batch.rgb),
        normal=torch.where(rows, normal, batch.normal),
        xyz=torch.where(rows, toward_middle, batch.xyz),
    )


# ---- hiding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", [unet, swin, ptv3, sonata])
def test_the_encoder_sees_nothing_of_what_is_hidden(encoder: Any, batch: PointBatch) -> None:
    scene = method(encoder).eval()
    for parameter in scene.parameters():
        nn.init.normal_(parameter, std=0.3)  # tables and biases that matter
    hidden = scene.hide(batch, 0, 0)
    other = changed_where_hidden(batch, hidden)
    again = scene.hide(other, 0, 0)
    assert not torch.equal(other.xyz, batch.xyz)
    assert torch.equal(again.mask, hidden.mask)
    with torch.no_grad():
        features = scene.features(hidden)
        assert features.std() > 1e-3
        torch.testing.assert_close(scene.features(again), features)
        # The same change where nothing is hidden does matter.
        seen = changed_where_hidden(batch, hidden._replace(mask=~hidden.mask, batch=_centred(batch, hidden)))
        assert not torch.allclose(scene.features(scene.hide(seen, 0, 0)), features, atol=1e-3)
    targets = scene.targets(batch, hidden)
    assert all(not torch.allclose(value, scene.targets(other, again)[name]) for name, value in targets.items())


def _centred(batch: PointBatch, hidden: HiddenScene) -> PointBatch:
    mean = segment_reduce(batch.xyz, hidden.inverse, len(hidden.mask))
    return dataclasses.replace(batch, xyz=mean[hidden.inverse])


def test_the_share_of_hidden_cubes_is_exact_in_every_scene(batch: PointBatch) -> None:
    for ratio in (0.3, 0.6):
        hidden = method(mask_ratio=ratio).hide(batch, 0, 0)
        for start, stop in zip(hidden.cell_offsets[:-1].tolist(), hidden.cell_offsets[1:].tolist(), strict=True):
            of_scene = [hidden.mask[hidden.cell == cell] for cell in range(start, stop)]
            assert all(bool(mask.all()) or not bool(mask.any()) for mask in of_scene)  # cubes are hidden whole
            assert sum(bool(mask.all()) for mask in of_scene) == int(ratio * (stop - start)) > 0


def test_cubes_are_cubes_of_the_asked_size_on_a_grid_that_moves(batch: PointBatch) -> None:
    scene = method(cell_size=0.3)
    middle = (batch.xyz / 0.1).floor() * 0.1 + 0.05
    spans = set()
    for step in range(3):
        hidden = scene.hide(batch, 0, step)
        cell = hidden.cell[hidden.inverse]
        for number in range(int(hidden.cell_offsets[-1])):
            extent = middle[cell == number].amax(0) - middle[cell == number].amin(0)
            assert extent.max() < 0.3
        spans.add(tuple(hidden.cell.tolist()))
    assert len(spans) == 3


def test_points_that_are_seen_are_left_as_they_are(batch: PointBatch) -> None:
    hidden = method().hide(batch, 0, 0)
    rows = hidden.mask[hidden.inverse]
    assert 0 < rows.sum() < len(rows)
    assert batch.rgb is not None
    assert hidden.batch.rgb is not None
    assert hidden.batch.normal is not None
    assert torch.equal(hidden.batch.xyz[~rows], batch.xyz[~rows])
    assert torch.equal(hidden.batch.rgb[~rows], batch.rgb[~rows])
    assert (hidden.batch.rgb[rows] == 0.5).all()
    assert (hidden.batch.normal[rows] == 0).all()
    assert (hidden.batch.xyz - batch.xyz).abs().max() <= 0.05 + 1e-6
    assert torch.equal((hidden.batch.xyz / 0.1).floor(), (batch.xyz / 0.1).floor())  # the same voxels


# ---- a step ------------------------------------------------------------------------------------------------------


def test_targets_and_loss_are_those_of_hidden_voxels_alone(batch: PointBatch) -> None:
    scene = method(color_weight=2.0, normal_weight=3.0, offset_weight=0.5).eval()
    values = quiet(scene)
    hidden = scene.hide(batch, 0, 1)
    loss = scene.training_step(batch, 1)
    with torch.no_grad():
        predicted = scene.head(scene.features(hidden))
    terms: dict[str, list[float]] = {"color": [], "normal": [], "offset": []}
    assert batch.rgb is not None
    assert batch.normal is not None
    for voxel in hidden.mask.nonzero().flatten().tolist():
        rows = hidden.inverse == voxel
        color, normal, offset = predicted[voxel].split(3)
        place = batch.xyz[rows].double() / 0.1
        terms["color"].append(float((color - (2 * batch.rgb[rows] - 1).mean(0)).abs().mean()))
        mean = batch.normal[rows].mean(0)
        cosine = nn.functional.cosine_similarity(normal, mean, dim=0)
        terms["normal"].append(float(1 - cosine) if mean.norm() > 0.1 else 0.0)
        terms["offset"].append(float((offset - (place - place.floor()).mean(0)).abs().mean()))
    expected = {name: sum(errors) / len(errors) for name, errors in terms.items()}
    for name, value in expected.items():
        assert values[f"train/{name}"] == pytest.approx(value, rel=1e-4), name
    total = 2 * expected["color"] + 3 * expected["normal"] + 0.5 * expected["offset"]
    assert loss.item() == values["train/loss"] == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("encoder", [unet, swin, ptv3, sonata])
def test_gradients_reach_all_of_the_encoder_and_nothing_of_the_decoder(encoder: Any, batch: PointBatch) -> None:
    scene = method(lambda: encoder() if encoder is unet else encoder(drop_path=0.0))
    quiet(scene)
    for name, parameter in scene.named_parameters():
        if "table" in name:
            nn.init.normal_(parameter, std=0.3)
    scene.training_step(batch, 0).backward()
    for name, parameter in scene.named_parameters():
        of_decoder = name.startswith("backbone.") and name.split(".")[1] in ("upsamples", "decoder")
        assert parameter.requires_grad != of_decoder, name
        assert (parameter.grad is None) == of_decoder, name
        assert of_decoder or parameter.grad.abs().sum() > 0, name  # type: ignore[union-attr]


class OwnScenes(nn.Module):
    """An encoder of voxels as a user writes it: one level, other names of modules, and something like a decoder."""

    decoder_only: tuple[str, ...] = ("after",)
    signals, voxel_size, channels = "xyz_rgb", 0.2, (6,)

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.first, self.block, self.after = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def scene(self, batch: PointBatch) -> Any:
        assert batch.rgb is not None
        voxels = voxelize(batch.xyz, self.voxel_size, offsets=batch.offsets)
        return SimpleNamespace(
            levels=[SimpleNamespace(parent=None)], inverse=voxels.inverse, rgb=batch.rgb[voxels.first]
        )

    def embed(self, scene: Any) -> Tensor:
        return torch.as_tensor(self.first(scene.rgb))

    def encode_voxels(self, scene: Any, features: Tensor) -> list[Tensor]:
        return [self.block(features)]


def test_an_own_encoder_is_trained_whatever_its_modules_are_called(batch: PointBatch) -> None:
    scene = method(OwnScenes)
    quiet(scene)
    scene.training_step(batch, 0).backward()
    trained = {
        name.split(".")[1] for name, value in scene.named_parameters() if "backbone" in name and value.grad is not None
    }
    assert trained == {"first", "block"}
    fixed = {name for name, value in scene.backbone.named_parameters() if not value.requires_grad}
    assert fixed == {"after.weight", "after.bias"}

    wrong = type("Wrong", (OwnScenes,), {"decoder_only": ("decoder",)})
    with pytest.raises(ValueError, match="decoder_only of Wrong names 'decoder', which is none of its modules"):
        method(wrong)


def test_a_step_is_a_function_of_seed_epoch_and_index_alone(batch: PointBatch) -> None:
    scene = method(swin)  # draws of its own: drop path, and which point stands for a voxel
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


def test_only_what_the_encoder_reads_is_predicted(clouds: list[PointCloud]) -> None:
    bare = collate([cloud.replace(rgb=None, normal=None) for cloud in clouds])
    scene = method(lambda: unet(signals="xyz"))
    values = quiet(scene)
    assert scene.training_step(bare, 0).isfinite()
    assert set(values) == {"train/loss", "train/offset"}
    with pytest.raises(ValueError, match=r"this batch has no rgb and no normal"):
        method().training_step(bare, 0)


def test_the_loss_falls_on_one_room(batch: PointBatch) -> None:
    scene = method(seed=2)
    values = quiet(scene)
    optimizer = torch.optim.AdamW(scene.parameters(), lr=5e-3)
    course = []
    for step in range(60):
        loss: Tensor = scene.training_step(batch, step % 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append([values[f"train/{name}"] for name in ("color", "normal", "offset")])
    first, last = (torch.tensor(part).mean(0) for part in (course[:4], course[-4:]))
    assert (last < first * torch.tensor([0.5, 0.5, 0.9])).all(), (first, last)


def test_bad_arguments_are_refused(batch: PointBatch) -> None:
    with pytest.raises(
        TypeError, match=r"SparseUNet, a Swin3D or a PointTransformerV3, got Linear; .* Linear lacks scene, embed, "
    ):
        method(lambda: nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"mask_ratio must lie strictly between 0 and 1, got 1\.0"):
        method(mask_ratio=1.0)
    with pytest.raises(ValueError, match=r"cell_size must be at least the encoder's voxel_size, 0\.1, got 0\.05"):
        method(cell_size=0.05)
    with pytest.raises(ValueError, match=r"no cube of 50\.0 can be hidden .* metres"):
        method(cell_size=50.0).training_step(batch, 0)


# ---- whole runs --------------------------------------------------------------------------------------------------


def data(**changes: Any) -> SceneDataModule:
    rooms = Selection(Rooms("train"), range(4))
    return SceneDataModule(train=rooms, train_transforms=[CROP], batch_size=2, **changes)


def run(folder: Path, stop: int | None = None, resume: bool = False) -> dict[str, Tensor]:
    scene = method(seed=1)
    torch.manual_seed(int(time.time()))
    callbacks = [] if stop is None else [Stop(stop)]
    pretrain(scene, data(seed=4), folder, resume=resume, every_n_steps=1, callbacks=callbacks, max_epochs=3, **QUIET)
    return scene.state_dict()


def test_a_run_that_is_broken_off_ends_bit_for_bit_as_one_that_is_not(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    for stop in (2, 3):  # at the end of an epoch, and within one
        with pytest.raises(InterruptedError):
            run(tmp_path / str(stop), stop=stop)
        resumed = run(tmp_path / str(stop), resume=True)
        assert all(torch.equal(resumed[name], value) for name, value in whole.items())


@pytest.mark.parametrize("encoder", [unet, swin, ptv3, sonata])
def test_a_segmentation_starts_from_the_exported_encoder(encoder: Any, tmp_path: Path, batch: PointBatch) -> None:
    scene = method(encoder)
    pretrain(scene, data(), tmp_path, max_epochs=1, **QUIET)
    loaded = load_encoder(tmp_path)
    assert type(loaded) is type(scene.encoder)
    torch.manual_seed(9)
    fresh = encoder()
    task = SemanticSegmentation(fresh, 3, encoder=str(tmp_path))
    assert task.initial.fresh == ()
    for name, value in scene.encoder.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value)
    assert all(parameter.requires_grad for parameter in task.parameters())
    with torch.no_grad():
        ours, theirs = (UpcastFeatures(e.eval()).point_features(batch) for e in (scene.encoder, loaded))
    assert torch.equal(ours, theirs)


TINY = """
model:
  class_path: pc3d.methods.MaskedScene
  init_args:
    encoder:
      class_path: pc3d.models.SparseUNet
      init_args: {channels: [8, 12], blocks: [1, 1], voxel_size: 0.2, signals: xyz_rgb}
data:
  train: {class_path: pc3d.data.Rooms}
  train_transforms:
    - {class_path: pc3d.data.SphereCrop, init_args: {max_points: 500}}
  batch_size: 4
trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
"""


def test_the_command_runs_it(tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY)
    output = str(tmp_path / "run")
    assert main(["pretrain", "--config", str(config), "--output", output, "--model.mask_ratio", "0.5"]) == 0
    assert load_encoder(tmp_path / "run").config["channels"] == [8, 12]
    assert "train/normal" not in (tmp_path / "run" / "metrics.csv").read_text()  # xyz_rgb reads no normals


def test_the_defaults_are_those_of_the_full_recipe_and_the_small_one_names_its_own() -> None:
    recipes = Path(__file__).parents[2] / "pc3d" / "configs" / "pretrain"
    full, small = (
        yaml.safe_load((recipes / f"{name}.yaml").read_text())["model"]["init_args"]
        for name in ("masked_scene", "masked_scene_rooms")
    )
    defaults = inspect.signature(MaskedScene).parameters
    for name in ("cell_size", "mask_ratio", "head_dim"):
        assert full[name] == defaults[name].default
    assert small["head_dim"] == 256


# ---- up-casting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", [unet, swin, ptv3, sonata])
def test_every_voxel_is_joined_with_those_that_contain_it(encoder: Any, batch: PointBatch) -> None:
    torch.manual_seed(0)
    model = encoder().eval()
    with torch.no_grad():
        levels = model.encode(batch)
        scene = model.scene(batch)
        joined = upcast(scene, [level.features for level in levels])
        of_points = UpcastFeatures(model).point_features(batch)
    rows = torch.arange(len(levels[0].coords))
    parts = []
    for level in levels:
        parts.append(level.features[rows])
        rows = rows if level.parent is None else level.parent[rows]
    assert torch.equal(joined, torch.cat(parts, 1))
    assert torch.equal(of_points, joined[scene.inverse])
    assert of_points.shape == (len(batch.xyz), UpcastFeatures(model).feature_dim)
