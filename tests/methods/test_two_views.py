"""SimCLR, MoCo v3, VICReg and Barlow Twins: what a step computes and draws, and whole runs (of PCP-MAE, too)."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny import QUIET, Stop, encoder, quiet
from torch import Tensor, nn
from torch.nn import functional as F

from pc3d import load_encoder
from pc3d.data import Household, PointBatch, PointDataModule, RandomSubsample, Selection, collate
from pc3d.losses import barlow_twins, nt_xent, vicreg
from pc3d.methods import PCPMAE, BarlowTwins, Method, MoCoV3, Optimisation, SimCLR, TwoViews, VICReg, pretrain
from pc3d.models import DGCNN, ObjectEncoder, PointNet
from pc3d.nn import SampleRandom, ViewAugmentation, update_teacher

QUICK = Optimisation(learning_rate=3e-3, warmup_epochs=1)
VIEW = ViewAugmentation(rotate="z")
UNSEEN = range(1, 9)  # seeds; methods train with 0


def simclr(**changes: Any) -> SimCLR:
    return SimCLR(changes.pop("encoder", encoder(1)), projector=(16, 8), view=VIEW, optimisation=QUICK, **changes)


def moco(**changes: Any) -> MoCoV3:
    sizes: dict[str, Any] = {"projector": (16, 16, 8), "predictor": 16}
    return MoCoV3(changes.pop("encoder", encoder(1)), **sizes, view=VIEW, optimisation=QUICK, **changes)


def vic(**changes: Any) -> VICReg:
    return VICReg(changes.pop("encoder", encoder(1)), projector=(16, 16), view=VIEW, optimisation=QUICK, **changes)


def barlow(**changes: Any) -> BarlowTwins:
    return BarlowTwins(changes.pop("encoder", encoder(1)), projector=(16, 16), view=VIEW, optimisation=QUICK, **changes)


def pcp(**changes: Any) -> PCPMAE:
    sizes = {"decoder_depth": 1, "decoder_num_heads": 2}
    return PCPMAE(changes.pop("encoder", encoder(0)), **sizes, optimisation=QUICK, **changes)  # type: ignore[arg-type]


METHODS: dict[str, Callable[..., TwoViews]] = {"SimCLR": simclr, "MoCoV3": moco, "VICReg": vic, "BarlowTwins": barlow}
each_method = pytest.mark.parametrize("name", METHODS)


def build(name: str, **changes: Any) -> TwoViews:
    torch.manual_seed(0)
    return METHODS[name](**changes)


@pytest.fixture(scope="module")
def batch() -> PointBatch:
    objects = Household("train", num_points=96)
    return collate([objects[index] for index in range(0, 480, 80)])


# ---- a step ------------------------------------------------------------------------------------------------------


def by_hand(method: TwoViews, batch: PointBatch) -> Tensor:
    """Step 4 of epoch 0: both views, features, projections, and the loss of the paper."""
    draws = SampleRandom(method.seed, 0, 4, batch_size=len(batch))
    views = [method.view(batch.dense(), draws) for _ in range(2)]
    first, second = (method.projector(method.encoder.encode(view)) for view in views)
    if isinstance(method, SimCLR):
        return nt_xent(first, second, 0.1)
    if isinstance(method, VICReg):
        terms = vicreg(first, second)
        return 25 * terms.invariance + 25 * terms.variance + terms.covariance
    if isinstance(method, BarlowTwins):
        both = barlow_twins(first, second)
        return both.invariance + 0.005 * both.redundancy
    assert isinstance(method, MoCoV3)
    keys = [method.teacher_projector(method.teacher.encode(view)) for view in views]
    total = torch.zeros(())
    for rows, key in ((first, keys[1]), (second, keys[0])):
        query = method.predictor(rows)
        for i in range(len(batch)):
            scores = torch.stack([F.cosine_similarity(query[i], other, dim=0) / 0.2 for other in key])
            total = total + 2 * 0.2 * (scores.logsumexp(0) - scores[i]) / len(batch)
    return total


@each_method
def test_the_loss_is_the_published_one_of_both_views(name: str, batch: PointBatch) -> None:
    method = build(name, seed=5).eval()  # no stochastic depth, fixed statistics
    if isinstance(method, MoCoV3):  # a teacher of its own
        nn.init.normal_(method.teacher.norm.weight)
    values = quiet(method)
    loss = method.training_step(batch, 4)
    torch.testing.assert_close(loss, by_hand(method, batch))
    assert values["train/loss"] == pytest.approx(loss.item())
    assert {"train/feature_spread", "train/effective_rank"} <= set(values)


@each_method
def test_a_step_is_a_function_of_seed_epoch_and_index_alone(name: str, batch: PointBatch) -> None:
    method = build(name)  # with stochastic depth
    quiet(method)

    def step(index: int, seed: int = 0) -> float:
        method.seed = seed
        torch.manual_seed(torch.seed())  # whatever the default generator holds
        before = torch.get_rng_state()
        loss = method.train().training_step(batch, index).item()
        assert torch.equal(torch.get_rng_state(), before)
        return loss

    assert step(3) == step(3)
    assert len({step(0), step(1), step(0, seed=1)}) == 3


@each_method
def test_every_trained_parameter_gets_a_gradient_and_no_other(name: str, batch: PointBatch) -> None:
    method = build(name)
    quiet(method)
    method.training_step(batch, 0).backward()
    for path, parameter in method.named_parameters():
        assert parameter.requires_grad != path.startswith("teacher"), path
        assert (parameter.grad is not None) == parameter.requires_grad, path


@each_method
def test_views_of_clouds_become_alike_while_clouds_stay_apart(name: str, batch: PointBatch) -> None:
    """In double precision: the steps amplify rounding, and in single precision processors end in different places."""
    torch.manual_seed(0)
    method = build(name, encoder=encoder(0, drop_path=0.0)).double()
    batch = replace(batch, xyz=batch.xyz.double())
    quiet(method)
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)

    def margin(seed: int) -> float:
        """How much nearer the views of one cloud are than those of two, in features that views never trained."""
        draws = SampleRandom(seed, 0, 0, batch_size=len(batch))
        with torch.no_grad():
            views = [method.view(batch.dense(), draws) for _ in range(2)]
            rows = [method.encoder.encode(view) for view in views]
        rows = [F.normalize(row - row.mean(0), dim=1) for row in rows]
        similarity = rows[0] @ rows[1].T
        own = similarity.diagonal().mean()
        return float(own - (similarity.sum() - similarity.diagonal().sum()) / (len(batch) * (len(batch) - 1)))

    before = statistics.mean(map(margin, UNSEEN))
    for step in range(80):
        loss = method.training_step(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if isinstance(method, MoCoV3):  # as a training does after a step
            update_teacher(method.teacher, method.backbone, method.momentum)
            update_teacher(method.teacher_projector, method.projector, method.momentum)
    after = statistics.mean(map(margin, UNSEEN))
    assert after > before + 0.05, (before, after)


@pytest.mark.parametrize("of", [PointNet(12), DGCNN(12, k=4)], ids=["PointNet", "DGCNN"])
def test_any_encoder_of_objects_can_be_trained(of: ObjectEncoder, batch: PointBatch) -> None:
    method = build("MoCoV3", encoder=of)
    quiet(method)
    method.training_step(batch, 0).backward()
    assert all(parameter.grad is not None for parameter in method.encoder.parameters())


def test_published_values_are_the_defaults() -> None:
    small = encoder(0)

    def widths(head: nn.Module) -> list[int]:
        return [layer.out_features for layer in head.modules() if isinstance(layer, nn.Linear)]

    with torch.device("meta"):  # nothing is computed, and a gigabyte of weights not made
        first, second, third, fourth = SimCLR(small), MoCoV3(small), VICReg(small), BarlowTwins(small)
    assert (widths(first.projector), first.temperature) == ([2048, 128], 0.1)
    assert (widths(second.projector), widths(second.predictor)) == ([4096, 4096, 256], [4096, 256])
    assert (second.temperature, second.momentum) == (0.2, 0.99)
    assert second.optimisation == Optimisation(1.5e-4, 0.1, min_learning_rate=0.0, warmup_epochs=40)
    assert (widths(third.projector), third.weights) == ([8192, 8192, 8192], (25.0, 25.0, 1.0))
    assert (widths(fourth.projector), fourth.redundancy_weight) == ([8192, 8192, 8192], 0.005)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\], got 1\.5"):
        build("MoCoV3", momentum=1.5)
    with pytest.raises(ValueError, match="seed must be at least 0"):
        build("SimCLR", seed=-1)


# ---- two processes -----------------------------------------------------------------------------------------------


def gradients(name: str, batch: PointBatch) -> dict[str, Tensor]:
    """Of one step of an encoder without stochastic depth, the mean over processes; the loss; running statistics."""
    torch.manual_seed(0)
    method = build(name, encoder=encoder(1, drop_path=0.0)).double()
    quiet(method)
    loss = method.training_step(batch, 2)
    loss.backward()
    found = {path: parameter.grad for path, parameter in method.named_parameters() if parameter.grad is not None}
    found["loss"] = loss.detach()
    if dist.is_initialized():
        for value in found.values():
            dist.all_reduce(value)
            value /= dist.get_world_size()
    return found | {path: value for path, value in method.named_buffers() if value.is_floating_point()}


def worker(rank: int, folder: str, clouds: list[Tensor]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    part = clouds[:2] if rank == 0 else clouds[2:]  # uneven on purpose
    batch = PointBatch(torch.cat(part), torch.arange(len(part) + 1) * 96)
    torch.save({name: gradients(name, batch) for name in METHODS}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_compute_what_one_does(batch: PointBatch, tmp_path: Path) -> None:
    whole = PointBatch(batch.xyz.double(), batch.offsets)
    mp.spawn(worker, args=(str(tmp_path), list(whole.dense())), nprocs=2)  # type: ignore[no-untyped-call,attr-defined]
    for rank in (0, 1):
        saved = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name in METHODS:
            expected = gradients(name, whole)
            assert saved[name].keys() == expected.keys()
            for path, value in expected.items():
                torch.testing.assert_close(saved[name][path], value, rtol=1e-7, atol=1e-10, msg=f"{name} {path}")


# ---- whole runs --------------------------------------------------------------------------------------------------


def data() -> PointDataModule:
    objects = Selection(Household("train", num_points=128), range(0, 480, 20))
    return PointDataModule(train=objects, train_transforms=[RandomSubsample(96)], batch_size=8, seed=4)


def run(name: str, folder: Path, stop: int | None = None, resume: bool = False) -> Method:
    torch.manual_seed(0)
    method = pcp() if name == "PCPMAE" else build(name)
    torch.manual_seed(int(time.time()))  # a resumed process has another state of PyTorch's default generator
    callbacks = [] if stop is None else [Stop(stop)]
    pretrain(method, data(), folder, resume=resume, every_n_steps=1, callbacks=callbacks, max_epochs=2, **QUIET)
    return method


@pytest.mark.parametrize("name", [*METHODS, "PCPMAE"])
def test_a_run_that_is_broken_off_ends_bit_for_bit_as_one_that_is_not(name: str, tmp_path: Path) -> None:
    whole = run(name, tmp_path / "whole")
    with pytest.raises(InterruptedError):
        run(name, tmp_path / "broken", stop=4)  # within the second epoch
    resumed = run(name, tmp_path / "broken", resume=True).state_dict()
    for path, value in whole.state_dict().items():
        assert torch.equal(resumed[path], value), path
    loaded = load_encoder(tmp_path / "broken")
    for path, value in whole.encoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[path], value), path


class Weights(pl.Callback):
    """Keeps the student's and the teacher's weights of every step."""

    def __init__(self) -> None:
        self.steps: list[tuple[Tensor, Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(module, MoCoV3)
        self.steps.append((module.backbone.norm.weight.detach().clone(), module.teacher.norm.weight.clone()))


def test_the_teacher_is_the_average_whose_momentum_rises_to_one(tmp_path: Path) -> None:
    method, weights = moco(momentum=0.9), Weights()
    teacher = method.teacher.norm.weight.clone()
    pretrain(method, data(), tmp_path, callbacks=[weights], max_epochs=2, **QUIET)
    assert len(weights.steps) == 6
    for step, (student, averaged) in enumerate(weights.steps):
        momentum = 1 - 0.1 * (1 + math.cos(math.pi * step / 6)) / 2
        teacher = momentum * teacher + (1 - momentum) * student
        torch.testing.assert_close(averaged, teacher, rtol=0, atol=1e-6)
    assert not torch.equal(weights.steps[-1][0], weights.steps[-1][1])


def test_a_momentum_that_rises_needs_an_end(tmp_path: Path) -> None:
    method = moco()
    method.optimisation = Optimisation(schedule_epochs=3)
    with pytest.raises(ValueError, match=r"momentum of the teacher .* set trainer\.max_epochs"):
        pretrain(method, data(), tmp_path, max_epochs=-1, **QUIET)
