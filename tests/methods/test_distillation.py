"""Dense distillation: what a step computes and draws, what leaves a run, and whole runs."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import QUIET, Stop, quiet
from torch import Tensor, nn
from torch.nn import functional as F

from pc3d import load_encoder
from pc3d.cli.main import main
from pc3d.data import LiftedSet, PointBatch, PointCloud, Rooms, SceneDataModule, Selection, SphereCrop, collate
from pc3d.image.features import precompute
from pc3d.methods import DenseDistillation, Optimisation, pretrain
from pc3d.models import BlockFeatures, DistilledEncoder, PointViT, SparseUNet, Swin3D, UpcastFeatures
from pc3d.tasks import SemanticSegmentation

WIDTH = 6


def unet(**changes: Any) -> SparseUNet:
    arguments: dict[str, Any] = {"voxel_size": 0.1, "signals": "xyz_rgb_normal", **changes}
    return SparseUNet((8, 12, 16), (1, 1, 1), **arguments)


def swin(**changes: Any) -> Swin3D:
    arguments: dict[str, Any] = {"channels": (8, 16), "depths": (2, 1), "down_strides": (2,), "voxel_size": 0.15}
    return Swin3D(**{**arguments, "num_heads": (2, 2), "window_sizes": (3, 3), **changes})


def objects() -> BlockFeatures:
    return BlockFeatures(
        PointViT(16, 3, 2, num_groups=8, group_size=8, num_points=64, tokenizer_dims=(8, 12, 16)), feature_dim=12
    )


def method(encoder: Callable[..., nn.Module] = unet, **changes: Any) -> DenseDistillation:
    torch.manual_seed(0)
    arguments = {"optimisation": Optimisation(learning_rate=3e-3, warmup_epochs=1), **changes}
    return DenseDistillation(encoder(), WIDTH, **arguments)


class Means:
    """In place of a tower: colours, normals and a constant, of two points in three."""

    def __call__(self, content: Any) -> dict[str, Tensor]:
        _, rgb, normal = (torch.from_numpy(part) for part in content)
        shown = torch.arange(len(rgb)) % 3 > 0
        return {"feature": torch.cat([rgb - 0.4, normal], dim=1)[shown], "num_views": shown.long()}

    def identity(self) -> dict[str, Any]:
        return {"name": "stand-in"}


@pytest.fixture(scope="module")
def lifted(tmp_path_factory: pytest.TempPathFactory) -> LiftedSet:
    rooms = Selection(Rooms("train"), range(4))
    clouds = (rooms.load(i) for i in range(len(rooms)))
    items = ((c.meta["id"], [c.xyz.numpy(), c.rgb.numpy(), c.normal.numpy()]) for c in clouds)  # type: ignore[union-attr]
    return LiftedSet(rooms, precompute(items, Means(), tmp_path_factory.mktemp("lifted")), transform=SphereCrop(900))


@pytest.fixture(scope="module")
def clouds(lifted: LiftedSet) -> list[PointCloud]:
    return [lifted.sample(index, torch.Generator().manual_seed(index)) for index in (0, 2)]


@pytest.fixture(scope="module")
def batch(clouds: list[PointCloud]) -> PointBatch:
    return collate(clouds)


# ---- a step ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", [True, False])
def test_regression_is_that_of_the_points_that_pictures_show(decoder: bool, batch: PointBatch) -> None:
    scene = method(decoder=decoder).eval()
    values = quiet(scene)
    loss = scene.training_step(batch, 1)
    with torch.no_grad():
        inner = scene.encoder.encoder
        features = (inner if decoder else UpcastFeatures(inner)).point_features(batch)  # type: ignore[operator]
        predicted = scene.encoder.projection(features).double().tolist()
    assert batch.feature is not None
    errors = []
    for p, f in zip(predicted, batch.feature.double().tolist(), strict=True):
        if any(f):
            dot, lengths = sum(a * b for a, b in zip(p, f, strict=True)), math.hypot(*p) * math.hypot(*f)
            errors.append(1 - dot / lengths)
    assert loss.item() == values["train/loss"] == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    assert values["train/shown"] == pytest.approx(len(errors) / len(predicted))
    assert 0.5 < values["train/shown"] < 0.8


def test_contrast_of_points_draws_so_many_of_each_scene(batch: PointBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = method(objective="ppkt", pairs_per_scene=40, embed_dim=5, temperature=0.2).eval()
    quiet(scene)
    assert batch.feature is not None
    # Targets that tell which points were drawn.
    unlike = torch.randn(batch.feature.shape, generator=torch.Generator().manual_seed(0))
    batch = dataclasses.replace(batch, feature=unlike * batch.feature.any(1)[:, None])
    drawn: list[Tensor] = []
    original = scene.teacher_head.forward

    def spied(rows: Tensor) -> Tensor:
        drawn.append(rows)
        return original(rows)

    monkeypatch.setattr(scene.teacher_head, "forward", spied)
    value = scene.training_step(batch, 0).item()
    (targets,) = drawn
    assert targets.shape == (80, WIDTH)
    assert batch.feature is not None
    assert bool(targets.any(1).all())
    with torch.no_grad():
        in_space = scene.encoder.in_space(scene.encoder.point_features(batch))
        places = [(batch.feature == row).all(1).nonzero().flatten() for row in targets]
        assert all(len(place) == 1 for place in places)
        number = torch.cat(places)
        assert (number[:40] < batch.lengths[0]).all()
        assert (number[40:] >= batch.lengths[0]).all()
        assert len(number.unique()) == 80
        scores = F.normalize(in_space[number], dim=1) @ F.normalize(original(targets), dim=1).T / 0.2
    assert value == pytest.approx(float(-scores.double().log_softmax(1).diagonal().mean()), rel=1e-5)


def test_contrast_of_superpoints_is_of_pieces_on_a_grid_that_moves(batch: PointBatch) -> None:
    scene = method(objective="slidr", superpoint_size=0.5, embed_dim=None, temperature=0.2).eval()
    quiet(scene)
    value = scene.training_step(batch, 0).item()
    segment = scene.segments(batch, scene.draws(batch, 0, 0))
    assert batch.feature is not None
    shown = batch.feature.any(1)
    means = []
    with torch.no_grad():
        sides = scene.encoder.in_space(scene.encoder.point_features(batch)), batch.feature
    for side in sides:
        rows = F.normalize(side.double(), dim=1)
        means.append(torch.stack([rows[shown & (segment == s)].mean(0) for s in segment[shown].unique()]))
    scores = means[0] @ means[1].T / 0.2
    assert value == pytest.approx(float(-scores.log_softmax(1).diagonal().mean()), rel=1e-5)
    spans = set()
    for step in range(3):
        other = scene.segments(batch, scene.draws(batch, 0, step))
        for s in other.unique():
            piece = batch.xyz[other == s]
            assert (piece.amax(0) - piece.amin(0)).max() < 0.5
        spans.add(tuple(other.unique(return_inverse=True)[1].tolist()))
    assert len(spans) == 3


def test_points_that_no_picture_shows_do_not_count_but_are_seen(batch: PointBatch) -> None:
    scene = method(lambda: unet(signals="xyz_rgb")).eval()
    quiet(scene)
    assert batch.feature is not None
    assert batch.rgb is not None
    before = scene.training_step(batch, 0).item()
    shown = batch.feature.any(1)
    hidden = dataclasses.replace(batch, rgb=torch.where(shown[:, None], batch.rgb, 1 - batch.rgb))
    assert scene.training_step(hidden, 0).item() != pytest.approx(before, rel=1e-6)
    bare = dataclasses.replace(batch, feature=torch.zeros_like(batch.feature))
    loss = scene.training_step(bare, 0)
    assert loss.item() == 0
    loss.backward()


def test_regression_of_two_processes_is_that_of_one(
    clouds: list[PointCloud], batch: PointBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process divides by the mean number of targets, since the mean over processes is what is minimised."""
    scene = method().eval()
    quiet(scene)
    whole = scene.training_step(batch, 0).item()
    fewer = clouds[1].select(slice(300))
    uneven = scene.training_step(collate([clouds[0], fewer]), 0).item()
    assert uneven != pytest.approx(whole, rel=1e-4)
    counts = [int(c.feature.any(1).sum()) for c in (clouds[0], fewer)]  # type: ignore[union-attr]
    monkeypatch.setattr("pc3d.methods.distillation.mean_over_processes", lambda _: torch.tensor(sum(counts) / 2))
    shares = [scene.training_step(collate([cloud]), 0).item() for cloud in (clouds[0], fewer)]
    assert sum(shares) / 2 == pytest.approx(uneven, rel=1e-5)


@pytest.mark.parametrize("encoder", [unet, swin, objects])
@pytest.mark.parametrize("decoder", [True, False])
def test_gradients_reach_all_that_is_trained(encoder: Any, decoder: bool, batch: PointBatch) -> None:
    if encoder is objects and not decoder:
        with pytest.raises(TypeError, match="SparseUNet, a Swin3D or a PointTransformerV3, got BlockFeatures"):
            method(encoder, decoder=False)
        return
    scene = method(lambda: encoder(drop_path=0.0) if encoder is swin else encoder(), decoder=decoder, objective="ppkt")
    quiet(scene)
    for name, parameter in scene.named_parameters():
        if "table" in name:
            nn.init.normal_(parameter, std=0.3)
    scene.training_step(batch, 0).backward()
    for name, parameter in scene.named_parameters():
        idle = not decoder and name.startswith("model.encoder.") and name.split(".")[2] in ("upsamples", "decoder")
        assert parameter.requires_grad != idle, name
        assert (parameter.grad is None) == idle, name
        # A bias before a norm, as the tokenizer of objects has one, has a gradient of 0.
        assert idle or parameter.ndim == 1 or parameter.grad.abs().sum() > 0, name  # type: ignore[union-attr]


@pytest.mark.parametrize("objective", ["cosine", "ppkt", "slidr"])
def test_a_step_is_a_function_of_seed_epoch_and_index_alone(objective: str, batch: PointBatch) -> None:
    # Draws of its own: drop path, and which point stands for a voxel.
    scene = method(swin, objective=objective, pairs_per_scene=50)
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


@pytest.mark.parametrize("objective", ["cosine", "l1", "smooth_l1", "ppkt", "slidr"])
def test_the_loss_falls_on_two_rooms(objective: str, batch: PointBatch) -> None:
    scene = method(objective=objective, decoder=False, pairs_per_scene=100)
    quiet(scene)
    optimizer = torch.optim.AdamW(scene.parameters(), lr=5e-3)
    course = []
    for step in range(30):
        loss = scene.training_step(batch, step % 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    last = sum(course[-4:]) / 4
    if objective == "ppkt":  # points of one wall cannot be told apart: one pixel in a hundred or so stays
        assert last < math.log(200) - 0.7, course
    else:  # what is predicted, colours and normals, is what the encoder reads
        assert last < (0.5 if objective in ("cosine", "l1") else 0.7) * sum(course[:4]) / 4, course


def test_bad_arguments_and_data_are_refused(clouds: list[PointCloud], batch: PointBatch) -> None:
    with pytest.raises(TypeError, match=r"point_features\(batch\) and feature_dim.* Linear has not"):
        method(lambda: nn.Linear(1, 1))
    with pytest.raises(ValueError, match="objective must be one of cosine, l1, smooth_l1, ppkt, slidr, got 'clip'"):
        method(objective="clip")
    for name, value in (("pairs_per_scene", 0), ("temperature", 0.0), ("superpoint_size", -1.0)):
        with pytest.raises(ValueError, match=f"{name} must be .*, got {value}"):
            method(**{name: value})
    with pytest.raises(ValueError, match="space_dim must be at least 1, got 0"):
        method(objective="ppkt", embed_dim=0)
    with pytest.raises(ValueError, match=r"the batch has no feature.* LiftedSet"):
        method().training_step(collate([cloud.replace(feature=None) for cloud in clouds]), 0)
    with pytest.raises(ValueError, match="features have 6 dimensions, the method was built with teacher_dim=9"):
        DenseDistillation(unet(), 9).training_step(batch, 0)
    with pytest.raises(ValueError, match="features are of stand-in, the method has teacher='offline:xfeat'"):
        method(teacher="offline:xfeat").training_step(batch, 0)


def test_files_of_one_name_are_told_apart_by_their_weights(clouds: list[PointCloud]) -> None:
    first, second = (
        collate([cloud.replace(meta={**cloud.meta, "teacher_weights": weights * 64}) for cloud in clouds])
        for weights in "ab"
    )
    scene = method(teacher="stand-in")
    quiet(scene)
    scene.training_step(first, 0)
    assert scene.encoder.config["space_weights"] == scene.encoder.space_weights == "a" * 64
    scene.training_step(first, 1)
    message = "several towers 'stand-in', whose weights differ .SHA-256 aaaaaaaaaaaa and bbbbbbbbbbbb"
    with pytest.raises(ValueError, match=message):
        scene.training_step(second, 2)
    with pytest.raises(ValueError, match=message):
        method(teacher="stand-in").targets(collate([*first.unbind(), *second.unbind()]))
    contrast = method(objective="slidr")  # its space is no tower's, its data are of one all the same
    contrast.targets(first)
    assert contrast.encoder.space_weights == ""
    with pytest.raises(ValueError, match="of several towers, whose weights differ"):
        contrast.targets(second)


@pytest.mark.parametrize(
    ("given", "space_weights"), [({"teacher": "stand-in"}, "a" * 64), ({"objective": "slidr"}, "")]
)
def test_a_run_that_goes_on_knows_whose_weights_its_features_are_of(
    clouds: list[PointCloud], given: dict[str, Any], space_weights: str
) -> None:
    first, second = (
        collate([cloud.replace(meta={**cloud.meta, "teacher_weights": weights * 64}) for cloud in clouds])
        for weights in "ab"
    )
    scene, resumed, checkpoint = method(**given), method(**given), dict[str, Any]()
    scene.targets(first)
    scene.on_save_checkpoint(checkpoint)
    resumed.on_load_checkpoint(checkpoint)
    assert resumed.encoder.space_weights == space_weights
    with pytest.raises(ValueError, match="SHA-256 aaaaaaaaaaaa and bbbbbbbbbbbb"):
        resumed.targets(second)
    assert resumed.targets(first) is first.feature


# ---- whole runs --------------------------------------------------------------------------------------------------


def run(lifted: LiftedSet, folder: Path, stop: int | None = None, resume: bool = False) -> dict[str, Tensor]:
    scene = method(seed=1, objective="slidr")
    torch.manual_seed(int(time.time()))
    callbacks = [] if stop is None else [Stop(stop)]
    data = SceneDataModule(train=lifted, batch_size=2, seed=4)
    pretrain(scene, data, folder, resume=resume, every_n_steps=1, callbacks=callbacks, max_epochs=3, **QUIET)
    return scene.state_dict()


def test_a_run_that_is_broken_off_ends_bit_for_bit_as_one_that_is_not(lifted: LiftedSet, tmp_path: Path) -> None:
    whole = run(lifted, tmp_path / "whole")
    for stop in (2, 3):  # at the end of an epoch, and within one
        with pytest.raises(InterruptedError):
            run(lifted, tmp_path / str(stop), stop=stop)
        resumed = run(lifted, tmp_path / str(stop), resume=True)
        assert all(torch.equal(resumed[name], value) for name, value in whole.items())


@pytest.mark.parametrize("encoder", [unet, swin, objects])
def test_what_leaves_a_run_is_a_backbone_and_starts_a_segmentation(
    encoder: Any, lifted: LiftedSet, tmp_path: Path, batch: PointBatch
) -> None:
    scene = method(encoder, decoder=encoder is not swin, teacher="stand-in")
    pretrain(scene, SceneDataModule(train=lifted, batch_size=2), tmp_path, max_epochs=1, **QUIET)
    loaded = load_encoder(tmp_path, expect=DistilledEncoder)
    assert (loaded.space, loaded.space_dim, loaded.decoder) == ("stand-in", WIDTH, encoder is not swin)
    with torch.no_grad():
        ours, theirs = (e.in_space(e.point_features(batch)) for e in (scene.encoder.eval(), loaded))
    assert torch.equal(ours, theirs)
    assert theirs.shape == (len(batch.xyz), WIDTH)
    torch.manual_seed(9)
    fresh = encoder()
    task = SemanticSegmentation(fresh, 3, encoder=str(tmp_path))
    assert task.initial is not None
    assert task.initial.fresh == task.initial.unknown == ()
    for name, value in scene.encoder.encoder.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value)
    assert all(parameter.requires_grad for parameter in task.parameters())


def test_contrast_in_a_space_of_its_own_is_no_teachers_space() -> None:
    assert method(objective="ppkt", teacher="offline:xfeat").encoder.space == ""
    own = method(objective="ppkt", teacher="offline:xfeat", embed_dim=None)
    assert (own.encoder.space, own.encoder.space_dim) == ("offline:xfeat", WIDTH)
    assert not list(own.teacher_head.parameters())


TINY = """
model:
  class_path: pc3d.methods.DenseDistillation
  init_args:
    encoder:
      class_path: pc3d.models.SparseUNet
      init_args: {channels: [8, 12], blocks: [1, 1], voxel_size: 0.2, signals: xyz_rgb}
    teacher_dim: 6
    decoder: false
data:
  train:
    class_path: pc3d.data.LiftedSet
    init_args:
      dataset: {class_path: pc3d.data.Rooms}
      features: {class_path: pc3d.image.FeatureStore, init_args: {folder: FOLDER}}
      transform: {class_path: pc3d.data.SphereCrop, init_args: {max_points: 500}}
  batch_size: 4
trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
"""


def test_the_command_runs_it(tmp_path: Path) -> None:
    rooms = Rooms("train")
    clouds = (rooms.load(i) for i in range(len(rooms)))
    items = ((c.meta["id"], [c.xyz.numpy(), c.rgb.numpy(), c.normal.numpy()]) for c in clouds)  # type: ignore[union-attr]
    precompute(items, Means(), tmp_path / "lifted")
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY.replace("FOLDER", str(tmp_path / "lifted")))
    output = str(tmp_path / "run")
    assert main(["pretrain", "--config", str(config), "--output", output, "--model.objective", "slidr"]) == 0
    assert load_encoder(tmp_path / "run", expect=DistilledEncoder).space_dim == 64
