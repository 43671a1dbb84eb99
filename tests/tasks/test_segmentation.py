"""Semantic segmentation as a task: what a step computes, what it trains, and that it can be broken off."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import QUIET, Stop
from tiny_scenes import Pointwise, SmallRooms, unet
from torch import Tensor, nn

from pc3d.data import PointBatch, PointDataModule, collate
from pc3d.evaluation.scene_probe import fit_linear_head
from pc3d.methods import MaskedScene, pretrain
from pc3d.models import (
    AlignedShapeEncoder,
    BlockFeatures,
    PointNet,
    PointViT,
    Swin3D,
    UpcastFeatures,
    load_encoder,
    save_encoder,
)
from pc3d.nn.heads import SegmentationHead
from pc3d.nn.sparse import Signals
from pc3d.nn.swin3d import SwinBlock
from pc3d.tasks import (
    SceneSegmenter,
    SegmentationOptimisation,
    SemanticSegmentation,
    load_segmenter,
    segmentation_loss,
    take_weights,
)
from pc3d.tasks.model_folder import save_model

CLASSES = SmallRooms("test").classes
FAST = SegmentationOptimisation(learning_rate=0.03)


def task(**changes: Any) -> SemanticSegmentation:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"optimisation": FAST, **changes}
    return SemanticSegmentation(unet(), len(CLASSES), CLASSES, **arguments)


def data(**changes: Any) -> PointDataModule:
    return PointDataModule(train=SmallRooms(), batch_size=2, validation_fraction=0.25, **changes)


@pytest.fixture(scope="module")
def batch() -> PointBatch:
    rooms = SmallRooms("test")
    return collate([rooms[0], rooms[1]])


# ---- the loss ----------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_labelled_points() -> None:
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label = torch.arange(50) % 7 - 1
    chosen = [(row, int(k)) for row, k in zip(logits, label, strict=True) if k >= 0]
    by_hand = torch.stack([row.logsumexp(0) - row[k] for row, k in chosen]).mean()
    assert segmentation_loss(logits, label).item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_with_class_weights_the_loss_is_their_weighted_mean() -> None:
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label = torch.arange(50) % 7 - 1
    weights = [0.5, 3.0, 1.0, 0.01, 10.0, 2.0]
    total = count = 0.0
    for row, k in zip(logits, label.tolist(), strict=True):
        if k >= 0:
            total += weights[k] * (row.logsumexp(0) - row[k]).item()
            count += weights[k]
    assert segmentation_loss(logits, label, torch.tensor(weights)).item() == pytest.approx(total / count, rel=1e-6)


@pytest.mark.parametrize("wrong", [[1.0], [0.0] * len(CLASSES), [float("nan")] * len(CLASSES)])
def test_class_weights_that_do_not_fit_are_refused(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match=rf"class_weights must be {len(CLASSES)} positive .*, or \[\] for"):
        task(class_weights=wrong)


def test_a_batch_without_labels_has_loss_and_gradient_zero() -> None:
    logits = torch.randn(5, 3, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((5,), -1))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(5, 3))


@pytest.mark.parametrize("wrong", [3, 255, -100])
def test_labels_beyond_the_classes_are_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match=r"segment must be in 0\.\.2, or -1 for unlabelled"):
        segmentation_loss(torch.zeros(2, 3), torch.tensor([0, wrong]))


def test_labels_are_looked_at_once() -> None:
    """Each look at a value of a tensor on a GPU waits for all that was asked of it."""
    with torch.profiler.profile() as profiled:
        segmentation_loss(torch.randn(4, 3), torch.tensor([0, 2, -1, 1]))
    looks = {event.key: event.count for event in profiled.key_averages()}
    assert looks["aten::aminmax"] == 1
    assert looks.get("aten::_local_scalar_dense", 0) == 0


# ---- a step ------------------------------------------------------------------------------------------------------


def logged(method: SemanticSegmentation, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    values: dict[str, float] = {}
    monkeypatch.setattr(method, "log", lambda name, value, **_: values.__setitem__(name, float(value)))
    monkeypatch.setattr(method, "optimizers", lambda: torch.optim.SGD(method.parameters(), lr=0.5))
    return values


def test_a_step_is_a_function_of_seed_and_index_alone(batch: PointBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    method = task()
    values = logged(method, monkeypatch)

    def step(index: int, seed: int = 0) -> float:
        method.seed = seed
        torch.manual_seed(torch.seed())  # whatever the default generator holds
        before = torch.get_rng_state()
        loss = method.train().training_step(batch, index).item()
        assert torch.equal(torch.get_rng_state(), before)
        return loss

    assert step(3) == step(3) == values["train/loss"]
    assert len({step(0), step(1), step(0, seed=1)}) == 3
    assert values["train/learning_rate"] == 0.5
    with pytest.raises(ValueError, match="has no segment"):
        method.training_step(collate([cloud.replace(segment=None) for cloud in batch.unbind()]), 0)


def test_a_step_weighs_classes_and_validation_does_not(batch: PointBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    def losses(*class_weights: float) -> tuple[float, float]:
        method = task(class_weights=class_weights)
        values = logged(method, monkeypatch)
        with torch.no_grad():
            method.train().training_step(batch, 0)
            method.eval().validation_step(batch, 0)
        return values["train/loss"], values["validation/loss"]

    plain, validated = losses()
    assert losses(*[2.0] * len(CLASSES)) == pytest.approx((plain, validated))
    uneven = losses(100.0, *[1.0] * (len(CLASSES) - 1))
    assert uneven[0] != pytest.approx(plain, rel=1e-3)
    assert uneven[1] == pytest.approx(validated)


def test_a_frozen_backbone_is_left_as_it_is(tmp_path: Path) -> None:
    frozen = task(freeze=True, head="linear")
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    pretrain(frozen, data(), tmp_path, max_epochs=1, **QUIET)
    changed = {name for name, value in frozen.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"segmenter.head.weight", "segmenter.head.bias"}  # not even statistics of batch norm


def test_training_begins_with_the_head_of_a_probe(tmp_path: Path) -> None:
    still = SegmentationOptimisation(learning_rate=1e-12, weight_decay=0.0, schedule="constant")
    begun = without_decoder(head="linear", probe_first=True, optimisation=still)
    pretrain(begun, data(), tmp_path / "run", max_epochs=1, **QUIET)
    module = data()
    assert module.train is not None
    fresh = without_decoder(head="linear").segmenter.backbone
    weight, bias = fit_linear_head(fresh, module.train, seed=begun.seed)
    assert isinstance(begun.segmenter.head, nn.Linear)
    torch.testing.assert_close(begun.segmenter.head.weight, weight, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(begun.segmenter.head.bias, bias, atol=1e-5, rtol=1e-4)


def test_what_is_resumed_is_not_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    fit = SemanticSegmentation.fit_head
    monkeypatch.setattr(
        SemanticSegmentation, "fit_head", lambda self, *data, **how: (calls.append(1), fit(self, *data, **how))[1]
    )
    for resume, epochs in ((False, 1), (True, 2)):
        begun = without_decoder(head="linear", probe_first=True)
        pretrain(begun, data(), tmp_path, resume=resume, max_epochs=epochs, **QUIET)
        assert calls == [1]


def test_a_probe_is_of_a_linear_head_and_of_scenes() -> None:
    with pytest.raises(ValueError, match=r"take head='linear' and freeze=False, got head='mlp' and freeze=False"):
        without_decoder(probe_first=True)
    with pytest.raises(ValueError, match="got head='linear' and freeze=True"):
        without_decoder(probe_first=True, head="linear", freeze=True)
    with pytest.raises(ValueError, match=r"probe_first needs the labelled scenes: .* got NoneType"):
        without_decoder(probe_first=True, head="linear").fit_head(None)


def without_decoder(**changes: Any) -> SemanticSegmentation:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"optimisation": FAST, **changes}
    return SemanticSegmentation(UpcastFeatures(unet()), len(CLASSES), CLASSES, **arguments)


def test_an_encoder_without_decoder_is_trained_kept_and_read_back(tmp_path: Path, batch: PointBatch) -> None:
    torch.manual_seed(1)
    start = unet()
    save_encoder(start, tmp_path / "start")
    method = without_decoder(encoder=str(tmp_path / "start"))
    assert method.initial is not None
    assert method.initial.fresh == ()
    pretrain(method, data(), tmp_path / "run", max_epochs=1, **QUIET)

    before, after = start.state_dict(), method.encoder.encoder.state_dict()  # type: ignore[union-attr,operator]
    parameters = dict(start.named_parameters())
    changed = {name for name in parameters if not torch.equal(before[name], after[name])}
    assert changed == {name for name in parameters if name.startswith(("stem.", "levels.", "downsamples."))}

    loaded = load_segmenter(tmp_path / "run")
    assert isinstance(loaded.backbone, UpcastFeatures)
    with torch.no_grad():
        assert torch.equal(loaded(batch), method.segmenter.eval()(batch))


def test_a_decoder_that_takes_no_part_waits_for_no_gradient() -> None:
    for freeze in (False, True):
        backbone = without_decoder(freeze=freeze).segmenter.backbone
        trained = {name.split(".")[1] for name, value in backbone.named_parameters() if value.requires_grad}
        assert trained == (set() if freeze else {"stem", "levels", "downsamples"})


def test_a_backbone_that_keeps_a_part_of_itself_fixed_still_does() -> None:
    backbone = unet()
    backbone.stem.requires_grad_(False)
    for freeze in (False, True):
        method = SemanticSegmentation(backbone, len(CLASSES), CLASSES, freeze=freeze)
        trained = {
            name.split(".")[0] for name, value in method.segmenter.backbone.named_parameters() if value.requires_grad
        }
        assert trained == (set() if freeze else {"levels", "downsamples", "upsamples", "decoder"})


def test_a_backbone_that_was_pre_trained_without_its_decoder_or_probed_is_trained_whole() -> None:
    backbone = unet()
    MaskedScene(backbone)  # freezes the decoder
    for freeze in (False, True, False):
        method = SemanticSegmentation(backbone, len(CLASSES), CLASSES, freeze=freeze)
        assert {value.requires_grad for value in method.segmenter.backbone.parameters()} == {not freeze}


# ---- optimisation ------------------------------------------------------------------------------------------------


def test_blocks_learn_at_a_tenth_and_everything_decays() -> None:
    method = SemanticSegmentation(Swin3D.tiny(), 3)
    others, blocks = SegmentationOptimisation().build(method, 10)["optimizer"].param_groups
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    in_blocks = {names[id(parameter)] for parameter in blocks["params"]}
    assert all(".levels." in name or ".upsamples." in name for name in in_blocks)
    assert "segmenter.backbone.levels.0.0.attention.qkv.weight" in in_blocks
    assert any(".block." in name for name in in_blocks)  # the decoder's
    rest = {names[id(parameter)] for parameter in others["params"]}
    assert in_blocks | rest == set(names.values())
    assert not in_blocks & rest
    assert not any(".levels." in name for name in rest)
    assert blocks["initial_lr"] == pytest.approx(others["initial_lr"] / 10)
    assert (others["weight_decay"], blocks["weight_decay"]) == (0.05, 0.05)


def test_a_backbone_learns_at_its_share_of_the_rate() -> None:
    method = SemanticSegmentation(Swin3D.tiny(), 3)
    groups = SegmentationOptimisation(learning_rate=0.1, block_factor=0.5, backbone_factor=0.3).groups(method)
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    in_blocks = {
        id(parameter)
        for module in method.modules()
        if isinstance(module, SwinBlock)
        for parameter in module.parameters()
    }
    for name, parameter in method.named_parameters():
        expected = (0.1 if ".head." in name else 0.03) * (0.5 if id(parameter) in in_blocks else 1.0)
        assert rate[id(parameter)] == pytest.approx(expected)
    assert {round(group["lr"], 6) for group in groups} == {0.1, 0.03, 0.015}
    assert sum(len(group["params"]) for group in groups) == len(list(method.parameters()))


def rates(optimisation: SegmentationOptimisation, steps: int) -> list[float]:
    built = optimisation.build(torch.nn.Linear(1, 1), steps)
    optimizer, schedule = built["optimizer"], built["lr_scheduler"]["scheduler"]
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return values


def test_schedules_are_the_published_ones() -> None:
    one_cycle = rates(SegmentationOptimisation(learning_rate=0.006), 100)
    assert one_cycle[0] == pytest.approx(0.0006)
    assert max(one_cycle) == pytest.approx(0.006)
    assert one_cycle.index(max(one_cycle)) == 4  # five per cent
    assert one_cycle[-1] == pytest.approx(0.0006 / 1000)
    cosine = rates(SegmentationOptimisation(learning_rate=0.006, schedule="warmup_cosine", warmup_steps=10), 100)
    assert cosine[0] == pytest.approx(1e-6)
    assert cosine[5] == pytest.approx(1e-6 + 0.5 * (0.006 - 1e-6))
    # The cosine's clock began at step 0.
    assert cosine[50] == pytest.approx(1e-6 + 0.5 * (0.006 - 1e-6))
    steps = rates(SegmentationOptimisation(learning_rate=0.006, schedule="multi_step"), 100)
    assert [steps[i] for i in (0, 59, 60, 79, 80, 99)] == pytest.approx([6e-3, 6e-3, 6e-4, 6e-4, 6e-5, 6e-5])
    assert set(rates(SegmentationOptimisation(learning_rate=0.006, schedule="constant"), 5)) == {0.006}
    with pytest.raises(ValueError, match="schedule must be one_cycle"):
        rates(SegmentationOptimisation(schedule="linear"), 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one step, got 0"):
        rates(SegmentationOptimisation(), 0)


def cycle(scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler], steps: int) -> Tensor:
    """Rate and first beta of every step."""
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.006, betas=(0.9, 0.99))
    schedule, values = scheduler(optimizer), []
    for _ in range(steps):
        group = optimizer.param_groups[0]
        assert group["betas"][1] == 0.99
        values.append([group["lr"], group["betas"][0]])
        optimizer.step()
        schedule.step()
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("steps", [21, 33, 40, 100, 173])
def test_one_cycle_is_that_of_torch_with_its_momentum(steps: int) -> None:
    expected = cycle(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o, 0.006, total_steps=steps, pct_start=0.05, div_factor=10, final_div_factor=1000
        ),
        steps,
    )
    found = cycle(lambda o: SegmentationOptimisation()._schedule(o, steps), steps)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("factory", [torch.optim.SGD, torch.optim.RMSprop])
def test_one_cycle_moves_the_momentum_of_what_has_no_betas(factory: Any) -> None:
    def momenta(make: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]) -> list[float]:
        optimizer = factory([torch.zeros(1, requires_grad=True)], lr=0.006)
        schedule, values = make(optimizer), []
        for _ in range(40):
            values.append(optimizer.param_groups[0]["momentum"])
            optimizer.step()
            schedule.step()
        return values

    expected = momenta(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.006, total_steps=40, pct_start=0.05, div_factor=10)
    )
    assert momenta(lambda o: SegmentationOptimisation()._schedule(o, 40)) == pytest.approx(expected, rel=1e-9)


def test_one_cycle_without_betas_or_momentum_is_that_of_the_rate() -> None:
    usual = rates(SegmentationOptimisation(), 40)
    assert rates(SegmentationOptimisation(optimizer=torch.optim.Adagrad), 40) == usual


@pytest.mark.parametrize("steps", [1, 2, 7, 19, 20])
def test_one_cycle_of_few_steps_warms_up_in_the_first(steps: int) -> None:
    """Where torch divides by zero (20 steps at 5 %) or leaves the warm-up out (fewer)."""
    values = rates(SegmentationOptimisation(learning_rate=0.006), steps)
    last = max(steps - 1, 1)
    down = [6e-7 + 0.5 * (0.006 - 6e-7) * (1 + math.cos(math.pi * step / last)) for step in range(steps)]
    assert values == pytest.approx([0.0006, *down[1:]])
    assert rates(SegmentationOptimisation(learning_rate=0.006, warmup_share=0.0), steps)[1:] == pytest.approx(down[1:])
    with pytest.raises(ValueError, match=r"warmup_share must be between 0 and 1, got 1.5"):
        rates(SegmentationOptimisation(warmup_share=1.5), steps)


def test_a_schedule_shorter_than_the_run_stays_at_its_last_rate() -> None:
    built = SegmentationOptimisation(learning_rate=0.006).build(torch.nn.Linear(1, 1), 10)
    for _ in range(25):
        built["optimizer"].step()
        built["lr_scheduler"]["scheduler"].step()
    (group,) = built["optimizer"].param_groups
    assert group["lr"] == pytest.approx(6e-7)
    assert group["betas"] == pytest.approx((0.95, 0.999))


# ---- whole runs --------------------------------------------------------------------------------------------------


def test_a_run_learns_and_leaves_a_model_that_gives_the_same(tmp_path: Path, batch: PointBatch) -> None:
    method = task()
    module = data()
    trainer = pretrain(method, module, tmp_path, max_epochs=6, **QUIET)
    assert module.validation is not None
    label = torch.cat([cloud.segment for cloud in module.validation if cloud.segment is not None])
    guess = label.bincount().max() / len(label)  # always the most frequent class
    assert float(trainer.callback_metrics["validation/allacc"]) > guess + 0.05
    loaded = load_segmenter(tmp_path)
    assert loaded.classes == CLASSES
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(batch), method.eval().segmenter(batch))
    again = task(encoder=str(tmp_path))  # the exported encoder starts another run
    assert again.initial is not None
    assert len(again.initial.taken) == len(again.segmenter.backbone.state_dict())
    assert again.initial.fresh == ()


def run(folder: Path, stop: int | None = None, resume: bool = False) -> dict[str, Tensor]:
    method = task()
    torch.manual_seed(int(time.time()))
    callbacks = [] if stop is None else [Stop(stop)]
    pretrain(method, data(seed=4), folder, resume=resume, every_n_steps=2, callbacks=callbacks, max_epochs=3, **QUIET)
    return method.state_dict()


@pytest.mark.parametrize("step", [2, 4, 7, 8])
def test_a_run_that_is_broken_off_ends_bit_for_bit_as_one_that_is_not(step: int, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        run(tmp_path / "broken", stop=step)
    resumed = run(tmp_path / "broken", resume=True)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    states = [torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "broken")]
    assert states[0]["global_step"] == states[1]["global_step"] == 9
    assert states[0]["lr_schedulers"] == states[1]["lr_schedulers"]


@pytest.mark.parametrize("schedule_epochs", [None, 1])
def test_a_finished_run_goes_on_for_more_epochs(schedule_epochs: int | None, tmp_path: Path) -> None:
    optimisation = SegmentationOptimisation(learning_rate=0.03, schedule_epochs=schedule_epochs)
    for max_epochs in (2, 4):
        method = task(optimisation=optimisation)
        pretrain(method, data(), tmp_path, resume=max_epochs == 4, max_epochs=max_epochs, **QUIET)
    assert method.trainer.global_step == 12
    (group, *_) = method.trainer.optimizers[0].param_groups
    # The schedule of the longer run where it is as long as the run; the last rate where it is shorter.
    assert group["lr"] == pytest.approx(3e-6)
    assert group["betas"] == pytest.approx((0.95, 0.999))


# ---- starting from an encoder ------------------------------------------------------------------------------------


def test_weights_are_taken_by_name_and_shape_and_the_report_says_which(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = swin()
    folder = save_encoder(source, tmp_path / "encoder")
    own = swin(window_sizes=(3, 7))
    before = {name: value.clone() for name, value in own.state_dict().items()}
    report = take_weights(own, folder, skip=["upsamples"])
    decoder = {name for name in before if name.startswith("upsamples")}
    assert set(report.skipped) == decoder
    tables = {f"levels.0.0.attention.{name}_table" for name in ("query", "key", "value")}
    assert set(report.other_shape) == tables
    assert report.in_part == ()
    assert set(report.fresh) == decoder | tables
    assert set(report.taken) == set(before) - set(report.fresh)
    for name, value in own.state_dict().items():
        assert torch.equal(value, source.state_dict()[name] if name in report.taken else before[name]), name
    assert f"{len(report.taken)} tensors taken, {len(decoder)} skipped as asked, 3 of another shape" in str(report)
    with pytest.raises(ValueError, match=r"0 % of the weights of .* fit the backbone Pointwise"):
        take_weights(Pointwise(), folder)
    with pytest.raises(ValueError, match="has 'norm3' in its name"):
        take_weights(own, folder, skip=["norm3"])
    with pytest.raises(ValueError, match="0 % of the weights of"):
        take_weights(own, folder, skip=["."])


def swin(**changes: Any) -> Swin3D:
    sizes: dict[str, Any] = {"channels": (8, 16), "depths": (1, 1), "down_strides": (2,), "voxel_size": 0.4}
    return Swin3D(**{**sizes, "num_heads": (2, 2), "drop_path": 0.0, **changes})


def test_arguments_that_change_no_shape_are_told(tmp_path: Path) -> None:
    """The same weights compute something else with voxels of another size, and nothing else would show it."""
    folder = save_encoder(swin(voxel_size=0.2), tmp_path)
    report = take_weights(swin(), folder)
    assert report.fresh == ()
    assert str(report).endswith("; it was built with other arguments: voxel_size=0.2 (here 0.4)")
    assert "other arguments" not in str(take_weights(swin(voxel_size=0.2), folder))


@pytest.mark.parametrize(
    ("own", "source", "message"),
    [
        (lambda: swin(), lambda: swin(channels=(12, 20)), r"channels=\[12, 20\] \(here \[8, 16\]\)"),
        (lambda: UpcastFeatures(unet()), lambda: unet(channels=(16, 24)), r"channels=\[16, 24\] \(here \[8, 12\]\)"),
        (lambda: swin(), lambda: unet(), r"class_path pc3d\.models\.SparseUNet"),
    ],
)
def test_an_encoder_of_another_size_is_refused_and_nothing_is_changed(
    own: Callable[[], nn.Module], source: Callable[[], nn.Module], message: str, tmp_path: Path
) -> None:
    """Counters of batch norm are scalars, which fit whatever the network."""
    backbone, folder = own(), save_encoder(source(), tmp_path)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(ValueError, match=rf"\d % of the weights of .* that it was built with: .*{message}"):
        take_weights(backbone, folder)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_what_fits_half_of_the_smaller_network_is_taken(tmp_path: Path) -> None:
    """More or fewer blocks, no decoder attention, and a part that is left out on purpose."""
    shallow, deep = save_encoder(unet(), tmp_path / "shallow"), save_encoder(unet(blocks=(6, 6)), tmp_path / "deep")
    assert take_weights(unet(blocks=(6, 6)), shallow).unknown == ()
    assert take_weights(unet(), deep).fresh == ()
    assert take_weights(UpcastFeatures(unet()), deep).fresh == ()
    with_attention = save_encoder(swin(), tmp_path / "attention")
    assert take_weights(swin(decoder_attention=False), with_attention).fresh == ()
    own, narrower = unet(channels=(8, 48)), save_encoder(unet(channels=(8, 40)), tmp_path / "narrower")
    with pytest.raises(ValueError, match="name with skip what is to stay fresh"):
        take_weights(own, narrower)
    rest = take_weights(own, narrower, skip=["levels.1", "downsamples", "upsamples"])
    assert {name.split(".")[0] for name in rest.taken} == {"stem", "levels", "decoder"}


@pytest.mark.parametrize(
    ("there", "here"), [("xyz_rgb_normal", "xyz_rgb"), ("xyz_rgb_normal", "xyz"), ("xyz_rgb", "xyz")]
)
def test_of_other_signals_what_both_read_is_taken(
    there: Signals, here: Signals, batch: PointBatch, tmp_path: Path
) -> None:
    """The wider network computes what the narrower one does once all that it knows of its other signals is 0.

    And they are alike at all points, since of the voxels within a coarser one they too choose which stands for it.

    As S3DIS, which has colours alone, is fine-tuned from Structured3D.
    """
    torch.manual_seed(1)
    wide, narrow = swin(signals=there).eval(), swin(signals=here).eval()
    with torch.no_grad():
        for parameter in wide.parameters():  # tables as large as the rest, so that one of them cannot hide
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    report = take_weights(narrow, save_encoder(wide, tmp_path))
    assert report.fresh == report.other_shape == ()
    assert len(report.in_part) == 1 + 3 * 3  # the stem, and three tables in each of three blocks
    assert "tensors taken, 10 for the signals that both read (stem.conv.weight, " in str(report)

    # The stem reads colour, normal, place; tables have rows of x, y, z, then 32 for each further scalar.
    scalars = {"xyz": 0, "xyz_rgb": 3, "xyz_rgb_normal": 6}
    extra = scalars[there] - scalars[here]
    with torch.no_grad():
        wide.stem.conv.weight[:, scalars[here] : scalars[there]] = 0
        for name, parameter in wide.named_parameters():
            if name.endswith("_table"):
                parameter[-32 * extra :] = 0
        alike = PointBatch(batch.xyz, batch.offsets, rgb=batch.rgb, normal=torch.ones_like(batch.xyz))
        if here == "xyz":
            alike = PointBatch(batch.xyz, batch.offsets, rgb=torch.ones_like(batch.xyz), normal=alike.normal)
        expected, found = wide.point_features(alike), narrow.point_features(alike)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_signals_that_the_source_lacks_stay_fresh(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source, own = swin(signals="xyz_rgb"), swin(signals="xyz_rgb_normal")
    before = {name: value.clone() for name, value in own.state_dict().items()}
    report = take_weights(own, save_encoder(source, tmp_path))
    given, after = source.state_dict(), own.state_dict()
    for name in report.in_part:
        columns = [0, 1, 2, 6, 7, 8] if name == "stem.conv.weight" else range(len(given[name]))
        dim = 1 if name == "stem.conv.weight" else 0
        index = torch.tensor(list(columns))
        assert torch.equal(after[name].index_select(dim, index), given[name])
        others = torch.tensor([k for k in range(after[name].shape[dim]) if k not in set(columns)])
        assert torch.equal(after[name].index_select(dim, others), before[name].index_select(dim, others))
    unread = unet(signals="xyz_rgb_normal")
    assert take_weights(unread, save_encoder(unet(), tmp_path / "unet")).in_part == ("stem.conv.weight",)


def test_an_encoder_of_objects_starts_what_applies_it_to_scenes(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"depth": 3, "embed_dim": 24, "num_heads": 2, "num_groups": 8, "group_size": 8}
    source = PointViT(num_cls_tokens=1, **sizes)
    own = BlockFeatures(PointViT(**sizes), feature_dim=16)
    before = own.propagation[0].weight.clone()
    report = take_weights(own, save_encoder(source, tmp_path / "objects"))
    assert report.fresh == ()
    assert set(report.unknown) == {"cls_token", "cls_position"}
    given = source.state_dict()
    assert all(torch.equal(value, given[name]) for name, value in own.encoder.state_dict().items())
    assert torch.equal(own.propagation[0].weight, before)
    again = BlockFeatures(PointViT(**sizes), feature_dim=16)
    assert take_weights(again, save_encoder(own, tmp_path / "scenes")).fresh == ()
    assert torch.equal(again.propagation[0].weight, before)


def test_an_aligned_encoder_starts_what_applies_it_to_scenes(tmp_path: Path) -> None:
    source = save_encoder(AlignedShapeEncoder(PointNet(16), text_dim=8), tmp_path / "aligned")
    model = SemanticSegmentation(PointNet(16), 2, encoder=str(source))
    assert isinstance(model.encoder, BlockFeatures)
    assert model.initial is not None
    assert (model.initial.unknown, model.initial.fresh) == ((), ())
    given = load_encoder(source, expect=AlignedShapeEncoder).encoder.state_dict()
    assert all(torch.equal(value, given[name]) for name, value in model.encoder.encoder.state_dict().items())


def test_a_trained_classifier_comes_with_its_network(tmp_path: Path) -> None:
    """As those of an official checkpoint, which are evaluated without training."""
    torch.manual_seed(0)
    backbone, head, batch = unet(), SegmentationHead(unet().feature_dim, 3), collate([SmallRooms()[0]])
    head(torch.randn(50, unet().feature_dim))  # statistics of its batch norm
    SceneSegmenter(backbone.eval(), ["a", "b", "c"], head.eval()).save(tmp_path)
    with torch.no_grad():
        expected = head(backbone.point_features(batch))
        torch.testing.assert_close(load_segmenter(tmp_path)(batch), expected)
    with pytest.raises(ValueError, match="head is for 3 classes, got the names of 2"):
        SceneSegmenter(backbone, ["a", "b"], head)


def test_bad_models_are_refused() -> None:
    with pytest.raises(TypeError, match="Linear is no backbone for scenes"):
        SceneSegmenter(torch.nn.Linear(1, 1), ["a"])
    with pytest.raises(ValueError, match="classes is empty"):
        SceneSegmenter(Pointwise(), [])
    with pytest.raises(ValueError, match="class_names must be 3 names, got 2"):
        SemanticSegmentation(Pointwise(), 3, ["a", "b"])


def test_folders_without_a_model_are_explained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_segmenter(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="holds no segmentation model: give the run folder"):
        load_segmenter(tmp_path)
    save_model(tmp_path / "parts", unet(), {}, {"task": "part segmentation", "categories": ["a"]})
    with pytest.raises(FileNotFoundError, match=r"no segmentation model but the model of another task: give the run"):
        load_segmenter(tmp_path / "parts")
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(FileNotFoundError, match=r"has not finished: pc3d segment train .* --resume"):
        load_segmenter(tmp_path)
