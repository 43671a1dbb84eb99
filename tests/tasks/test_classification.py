"""Classification as a task: what it trains, which epoch it keeps, and that it can be broken off."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from tiny import QUIET
from tiny_objects import CLASSES, data, encoder, objects
from torch import Tensor, nn

from pc3d.data import FirstPoints, Household, ObjectDataModule, PointBatch, PointDataset, collate
from pc3d.methods import pretrain
from pc3d.models import PointViT, VectorClassifier, save_encoder
from pc3d.tasks import Classification, FineTuning, load_classifier

FAST = FineTuning(learning_rate=0.01, warmup_epochs=1)


def task(**changes: Any) -> Classification:
    arguments: dict[str, Any] = {"optimisation": FAST, **changes}
    backbone = arguments.pop("backbone", None) or encoder()
    torch.manual_seed(0)
    return Classification(backbone, len(CLASSES), CLASSES, **arguments)


@pytest.fixture(scope="module")
def batch() -> PointBatch:
    return collate([objects("test").load(i).select(slice(96)) for i in range(8)])


def accuracy(model: nn.Module, dataset: PointDataset) -> float:
    """One object at a time."""
    hits = 0
    with torch.no_grad():
        for index in range(len(dataset)):
            xyz = dataset.load(index).xyz[None, :96]
            hits += int(model(xyz)[0].argmax()) == int(dataset.labels[index])
    return hits / len(dataset)


# ---- what is trained ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "count", "rate"), [("linear", 31_528, 1e-4), ("mlp3", 274_728, 1e-4)])
def test_frozen_modes_train_the_published_number_of_parameters_at_the_published_rate(
    mode: str, count: int, rate: float
) -> None:
    method = Classification(PointViT(num_cls_tokens=1), 40, mode=mode)  # type: ignore[arg-type]
    groups = method.optimisation.groups(method.model, method.encoder, method.peak)
    assert sum(p.numel() for group in groups for p in group["params"]) == count
    assert {group["lr"] for group in groups} == {rate}


def test_full_mode_trains_everything() -> None:
    method = Classification(PointViT(num_cls_tokens=1), 40)
    groups = method.optimisation.groups(method.model, method.encoder, method.peak)
    # Point-MAE's classifier has 22,099,752 parameters.
    assert sum(p.numel() for group in groups for p in group["params"]) == 22_099_752
    assert {group["lr"] for group in groups} == {5e-4}


def changed_by_an_epoch(method: Classification, folder: Path) -> set[str]:
    before = {name: value.clone() for name, value in method.model.state_dict().items()}
    pretrain(method, data(validation_fraction=0.0), folder, max_epochs=1, **QUIET)
    return {name for name, value in method.model.state_dict().items() if not torch.equal(value, before[name])}


FROZEN = {"encoder.cls_token", "encoder.cls_position"}


@pytest.mark.parametrize("mode", ["linear", "mlp3"])
def test_a_frozen_encoder_changes_in_its_class_token_alone(mode: str, tmp_path: Path) -> None:
    method = task(mode=mode, freeze_bn=True, optimisation=FineTuning(learning_rate=0.01, warmup_epochs=0))
    head = {name for name in method.model.state_dict() if name.startswith("head.")}
    assert changed_by_an_epoch(method, tmp_path) == head | FROZEN


def test_without_freeze_bn_the_statistics_of_a_frozen_encoder_follow_the_batches_as_in_the_released_code(
    tmp_path: Path,
) -> None:
    method = task(mode="linear", optimisation=FineTuning(learning_rate=0.01, warmup_epochs=0))
    changed = changed_by_an_epoch(method, tmp_path) - FROZEN - {"head.0.weight", "head.0.bias"}
    assert changed == {
        name
        for name in method.model.state_dict()
        if name.startswith("encoder.tokenizer")
        and name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    }


def test_full_mode_changes_everything_that_a_gradient_reaches(tmp_path: Path) -> None:
    method = task(optimisation=FineTuning(learning_rate=0.01, warmup_epochs=0))
    unchanged = set(method.model.state_dict()) - changed_by_an_epoch(method, tmp_path)
    # Biases that batch norm takes out again have no gradient in training.
    assert unchanged == {f"encoder.tokenizer.network.{name}.bias" for name in ("mix", "first.0", "first.3")}


# ---- optimisation ------------------------------------------------------------------------------------------------


def test_layers_learn_the_slower_the_lower_they_are() -> None:
    """Two blocks: patches, positions and class token three below the head, the blocks two and one below."""
    method = task()
    groups = FineTuning(layer_decay=0.5).groups(method.model, method.encoder, 0.8)
    names = {id(parameter): name for name, parameter in method.model.named_parameters()}
    rate = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    decay = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert set(rate) == set(names.values())
    assert sum(len(group["params"]) for group in groups) == len(names)
    for name, value in rate.items():
        expected = 0.8
        if name.startswith(("encoder.tokenizer", "encoder.position", "encoder.cls")):
            expected = 0.1
        elif name.startswith("encoder.transformer.blocks.0."):
            expected = 0.2
        elif name.startswith("encoder.transformer.blocks.1."):
            expected = 0.4
        assert value == pytest.approx(expected), name
    shapes = {name: parameter.ndim for name, parameter in method.model.named_parameters()}
    assert {name for name, value in decay.items() if value == 0} == {
        name for name, ndim in shapes.items() if ndim == 1 or name == "encoder.cls_token"
    }
    assert set(decay.values()) == {0.0, 0.05}


def test_the_schedule_is_the_published_one() -> None:
    method = task()
    built = FineTuning().build(method.model, method.encoder, 5e-4, 300)
    optimizer, schedule = built["optimizer"], built["lr_scheduler"]["scheduler"]
    assert built["lr_scheduler"]["interval"] == "epoch"
    found = []
    for _ in range(300):
        found.append(optimizer.param_groups[-1]["lr"])
        optimizer.step()
        schedule.step()
    span = 5e-4 - 1e-6
    expected = {0: 1e-6, 5: 1e-6 + span / 2, 10: 1e-6 + span * (1 + math.cos(math.pi / 30)) / 2, 150: 1e-6 + span / 2}
    assert {epoch: found[epoch] for epoch in expected} == pytest.approx(expected)


def test_bad_optimisation_is_refused() -> None:
    method = task()
    with pytest.raises(ValueError, match=r"layer_decay must be in \(0, 1\], got 0"):
        FineTuning(layer_decay=0.0).groups(method.model, method.encoder, 1.0)
    with pytest.raises(ValueError, match=r"needs an encoder with transformer blocks, Linear has none"):
        FineTuning(layer_decay=0.5).groups(method.model, nn.Linear(1, 1), 1.0)
    with pytest.raises(ValueError, match=r"set trainer.max_epochs \(got None\)"):
        FineTuning().build(method.model, method.encoder, 1.0, None)
    method.model.requires_grad_(False)
    with pytest.raises(ValueError, match="has no trainable parameter"):
        FineTuning().groups(method.model, method.encoder, 1.0)


# ---- a step ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_cross_entropy_with_a_smoothed_target(smoothing: float, batch: PointBatch) -> None:
    method = task(label_smoothing=smoothing).eval()
    with torch.no_grad():
        loss, hits = method.loss(batch)
        logits = method.model(batch.dense()).double()
    assert batch.label is not None
    total = 0.0
    for row, label in zip(logits, batch.label.tolist(), strict=True):
        log_share = row - row.exp().sum().log()
        target = torch.full((len(CLASSES),), smoothing / len(CLASSES), dtype=torch.float64)
        target[label] += 1 - smoothing
        total -= float((target * log_share).sum())
    assert float(loss) == pytest.approx(total / len(batch), rel=1e-5)
    assert hits.tolist() == [int(row.argmax()) == label for row, label in zip(logits, batch.label, strict=True)]


def test_objects_without_a_class_are_refused(batch: PointBatch) -> None:
    method = task()
    for label in (None, torch.full((8,), -1), torch.full((8,), len(CLASSES))):
        batch.label, kept = label, batch.label
        try:
            with pytest.raises(ValueError, match=r"label must be in 0\.\.20 for every object, got"):
                method.loss(batch)
        finally:
            batch.label = kept


class Moments(nn.Module):
    """An encoder that is no transformer: a linear layer on means and deviations."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = 10
        self.layer = nn.Linear(6, 10)

    def encode(self, xyz: Tensor) -> Tensor:
        return torch.relu(self.layer(torch.cat([xyz.mean(1), xyz.std(1)], dim=1)))


def test_any_encoder_with_a_vector_gets_a_head(batch: PointBatch) -> None:
    torch.manual_seed(0)
    backbone = Moments()
    method = task(backbone=backbone, mode="linear").eval()
    assert isinstance(method.model, VectorClassifier)
    trained = {name for name, parameter in method.model.named_parameters() if parameter.requires_grad}
    assert trained == {"head.0.weight", "head.0.bias"}
    xyz = batch.dense()
    expected = backbone.encode(xyz) @ method.model.head[0].weight.T + method.model.head[0].bias
    torch.testing.assert_close(method.model(xyz), expected)
    with pytest.raises(TypeError, match=r"encode\(xyz\) and embed_dim.*Linear has not"):
        task(backbone=nn.Linear(1, 1))
    without_token = task(backbone=encoder(0), mode="linear").eval()
    vector = without_token.encoder.encode(xyz)
    torch.testing.assert_close(without_token.model(xyz), without_token.model.head(vector))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="class_names must be 3 names, got 2"):
        Classification(encoder(), 3, ["a", "b"])
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\), got 1"):
        task(label_smoothing=1.0)
    with pytest.raises(ValueError, match="head must be one of full, mlp3, linear, got 'mlp'"):
        task(mode="mlp")
    with pytest.raises(ValueError, match="seed must be at least 0"):
        task(seed=-1)


# ---- whole runs --------------------------------------------------------------------------------------------------


def test_the_epoch_that_was_best_on_validation_leaves_the_run_and_the_test_split_only_watches(tmp_path: Path) -> None:
    method, module = task(), data(protocol="legacy")
    pretrain(method, module, tmp_path / "legacy", max_epochs=6, **QUIET)
    assert module.watched == ("validation", "test")
    assert module.validation is not None
    assert module.test is not None
    history = method.selection.history
    assert [score.epoch for score in history] == [1, 2, 3, 4, 5, 6]
    values = [score.validation for score in history]
    best = int(np.argmax(values))
    assert best < 5, "choose another seed: here the last epoch is the best, so that keeping it shows nothing"
    model, config = load_classifier(tmp_path / "legacy")
    assert accuracy(model, module.validation) == pytest.approx(values[best])
    assert accuracy(model, module.test) == pytest.approx(history[best].test)
    training = config["training"]
    assert (training["epoch"], training["validation"]) == (best + 1, pytest.approx(values[best]))
    assert training["legacy"]["test"] == max(score.test for score in history if score.test is not None)
    assert (training["num_train"], training["num_validation"]) == (len(module.train), len(module.validation))  # type: ignore[arg-type]
    # Watching changes nothing.
    held_out = task()
    pretrain(held_out, data(), tmp_path / "held_out", max_epochs=6, **QUIET)
    assert [(score.validation, score.test) for score in held_out.selection.history] == [(v, None) for v in values]
    again, config = load_classifier(tmp_path / "held_out")
    assert config["training"]["legacy"] is None
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def test_without_validation_the_last_epoch_leaves_the_run(tmp_path: Path) -> None:
    method = task()
    pretrain(method, data(validation_fraction=0.0, protocol="legacy"), tmp_path, max_epochs=2, **QUIET)
    model, config = load_classifier(tmp_path)
    assert (config["training"]["epoch"], config["training"]["by"]) == (2, "the last epoch")
    assert config["training"]["legacy"] is not None
    assert all(torch.equal(value, method.model.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_few_objects_are_learned_by_heart(tmp_path: Path) -> None:
    few = objects(num_items=24)
    method = task(backbone=encoder(drop_path=0.0), optimisation=FineTuning(learning_rate=5e-3, warmup_epochs=2))
    module = data(train=few, test=None, train_transforms=[FirstPoints(96)], validation_fraction=0.0, batch_size=8)
    pretrain(method, module, tmp_path, max_epochs=40, **QUIET)
    assert few.labels.bincount().max() < 12
    assert accuracy(load_classifier(tmp_path)[0], few) > 0.8


class Stop(pl.Callback):
    """Breaks off at a step, with nothing saved for the occasion."""

    def __init__(self, step: int, validating: bool) -> None:
        self.step, self.validating = step, validating

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not self.validating:
            raise InterruptedError

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and self.validating:
            raise InterruptedError


def run(folder: Path, stop: Stop | None = None, resume: bool = False, **changes: Any) -> Classification:
    method = task()
    torch.manual_seed(int(time.time()))
    module = data(seed=4, protocol="legacy")
    callbacks = [] if stop is None else [stop]
    options = {"every_n_steps": 3, "callbacks": callbacks, "max_epochs": 4, **QUIET, **changes}
    pretrain(method, module, folder, resume=resume, **options)
    return method


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Classification:
    return run(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(("step", "validating"), [(5, False), (6, False), (9, True)])
def test_a_run_that_is_broken_off_ends_bit_for_bit_as_one_that_is_not(
    step: int, validating: bool, whole: Classification, tmp_path: Path
) -> None:
    assert whole.trainer.global_step == 12  # three steps an epoch
    with pytest.raises(InterruptedError):
        run(tmp_path, stop=Stop(step, validating))
    resumed = run(tmp_path, resume=True)
    assert resumed.selection.history == whole.selection.history
    assert all(torch.equal(resumed.model.state_dict()[name], value) for name, value in whole.model.state_dict().items())


def test_validation_within_an_epoch_is_not_forgotten_by_what_goes_on_after_it(tmp_path: Path) -> None:
    """A checkpoint and a validation fall on the same step."""
    options = {"val_check_interval": 1, "every_n_steps": 1, "max_epochs": 1}
    whole = run(tmp_path / "whole", **options)
    assert len(whole.selection.history) == 3
    with pytest.raises(InterruptedError):
        run(tmp_path / "broken", stop=Stop(2, False), **options)
    resumed = run(tmp_path / "broken", resume=True, **options)
    assert resumed.selection.history == whole.selection.history
    assert all(torch.equal(resumed.model.state_dict()[name], value) for name, value in whole.model.state_dict().items())


# ---- data --------------------------------------------------------------------------------------------------------


def test_the_validation_part_does_not_depend_on_the_seed_of_the_run() -> None:
    first, second = data(seed=1), data(seed=2)
    other = data(seed=1, validation_seed=3)
    for module in (first, second, other):
        assert module.validation is not None
    assert torch.equal(first.validation.indices, second.validation.indices)  # type: ignore[union-attr]
    assert not torch.equal(first.validation.indices, other.validation.indices)  # type: ignore[union-attr]
    assert [len(loader.dataset) for loader in data(protocol="legacy").val_dataloader()] == [  # type: ignore[arg-type]
        len(first.validation),  # type: ignore[arg-type]
        60,
    ]
    assert data(validation_fraction=0.0).val_dataloader() == []


def test_bad_data_are_refused() -> None:
    with pytest.raises(ValueError, match=r"122 of the 487 objects of train have no class: .*labelled_only true"):
        ObjectDataModule(train=Household("train", num_points=16))
    with pytest.raises(ValueError, match="protocol must be one of held_out, legacy, got 'test'"):
        data(protocol="test")
    with pytest.raises(ValueError, match="judges the test split after each epoch, and there is none"):
        data(protocol="legacy", test=None)
    with pytest.raises(ValueError, match="give validation or validation_fraction, not both"):
        data(validation=objects("test"))
    with pytest.raises(ValueError, match="needs a train set to cut from"):
        data(train=None)
    other = objects("test")
    other.classes = (*other.classes[1:], other.classes[0])
    with pytest.raises(ValueError, match=r"train and test must have the same classes.*: the order differs"):
        data(test=other)
    other.classes = ("bolt", *CLASSES[1:])
    with pytest.raises(ValueError, match=f"'{CLASSES[0]}' in train alone, 'bolt' in validation alone"):
        data(validation_fraction=0.0, validation=other)


def test_folders_without_a_classifier_are_explained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no classifier: give the run folder of pc3d classify train"):
        load_classifier(tmp_path)
    task().save(tmp_path, {})
    save_encoder(PointViT(24, 2, 2, num_groups=12, group_size=8, num_cls_tokens=1), tmp_path / "encoder")
    with pytest.raises(ValueError, match="does not fit the encoder beside it"):
        load_classifier(tmp_path)
