"""DCGLR: views, terms, teacher, what is remembered, and what the optimiser may move."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from small_dcglr import SIZES, dcglr, small_data
from tiny import QUIET, same
from torch import Tensor, nn

import pc3d
from pc3d import load_encoder
from pc3d.cli.pretrain import build_parser
from pc3d.data import Household, PointBatch, Selection
from pc3d.evaluation import extract_features, linear_svm
from pc3d.losses import info_nce, self_distillation
from pc3d.methods import DCGLR, Distillation, InstanceContrast, MultiCrop, StepOptimisation, pretrain
from pc3d.models import DGCNN, ObjectEncoder, PointNet, PointViT, ViT3D
from pc3d.nn import DistillationHead, SampleRandom, ViewAugmentation, cosine_between

GLOBAL, LOCAL = 58, 32  # points of views of 64 points


@pytest.fixture(scope="module")
def batch() -> PointBatch:
    result: PointBatch = next(iter(small_data(batch_size=6).train_dataloader()))
    return result


def logged(method: DCGLR, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    values: dict[str, float] = {}
    monkeypatch.setattr(method, "log", lambda name, value, **_: values.__setitem__(name, float(value)))
    return values


def seen_by(encoder: nn.Module) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    assert isinstance(encoder, ObjectEncoder)
    encode = encoder.encode
    encoder.encode = lambda xyz: shapes.append(tuple(xyz.shape)) or encode(xyz)  # type: ignore[method-assign]
    return shapes


def test_the_teacher_sees_the_global_views_alone(batch: PointBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    method = dcglr(crops=MultiCrop(num_local=3, low_resolution=(16, 24)))
    logged(method, monkeypatch)
    student, teacher = seen_by(method.student.encoder), seen_by(method.teacher.encoder)
    method.training_step(batch, 0)
    assert teacher == [(12, GLOBAL, 3)]
    assert student == [(12, GLOBAL, 3), (18, LOCAL, 3), (12, 16, 3), (12, 24, 3)]


def test_views_that_no_term_looks_at_are_not_made(batch: PointBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, expected in (({}, [(12, GLOBAL, 3)]), ({"local_to_global": True}, [(12, GLOBAL, 3), (12, LOCAL, 3)])):
        method = dcglr(objective="contrast", contrast=InstanceContrast(**SIZES["contrast"], **options))
        logged(method, monkeypatch)
        student = seen_by(method.student.encoder)
        method.training_step(batch, 0)
        assert student == expected


def test_a_step_is_the_formula(batch: PointBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each view by itself, each pair in a loop; evaluation mode, in which no view changes another."""
    method = dcglr(contrast=InstanceContrast(**SIZES["contrast"], weight=0.7, local_to_global=True), seed=5).eval()
    with torch.no_grad():
        for parameter in method.student.parameters():  # a student that is not its teacher
            parameter.add_(0.1 * torch.randn_like(parameter))
        method.center.normal_(0, 0.1)
    values = logged(method, monkeypatch)
    method.queue.enqueue(torch.nn.functional.normalize(torch.randn(3, 8), dim=1))
    past, center = method.queue.keys(), method.center.clone()
    loss = method.training_step(batch, 4)

    draws, xyz = SampleRandom(5, 0, 4, batch_size=6), batch.dense()
    views = [ViewAugmentation((0.5, 0.9))(xyz, draws) for _ in range(2)]
    views += [ViewAugmentation((0.2, 0.5))(xyz, draws) for _ in range(2)]
    distillation: Any = [network.distillation for network in (method.student, method.teacher)]
    projection: Any = [network.projection for network in (method.student, method.teacher)]
    features: Any = [[n.encoder.encode(v) for v in views] for n in (method.student, method.teacher)]  # type: ignore[operator]
    expected = self_distillation(
        [distillation[0](f) for f in features[0]], [distillation[1](f) for f in features[1][:2]], center
    )
    unit = torch.nn.functional.normalize
    pairs = [(v, g) for g in range(2) for v in range(4) if v != g]
    terms = [
        info_nce(
            unit(projection[0](features[0][v]), dim=1),
            unit(projection[1](features[1][g]), dim=1),
            torch.arange(6),
            queue=past,
        )
        for v, g in pairs
    ]
    contrast = torch.stack(terms).sum() / len(pairs)
    torch.testing.assert_close(loss, expected + 0.7 * contrast, rtol=1e-4, atol=1e-5)
    assert values["train/distillation"] == pytest.approx(expected.item(), rel=1e-4)
    assert values["train/contrast"] == pytest.approx(contrast.item(), rel=1e-4)

    # After the loss: the centre moves, the teacher's keys of both global views are queued.
    logits = torch.cat([distillation[1](f) for f in features[1][:2]])
    torch.testing.assert_close(method.center, 0.9 * center + 0.1 * logits.mean(0, keepdim=True))
    assert int(method.queue.seen) == 3 + 12
    torch.testing.assert_close(method.queue.keys()[3:9], unit(projection[1](features[1][0]), dim=1))


def test_the_n_pair_term_is_its_formula(batch: PointBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = InstanceContrast(**{**SIZES["contrast"], "kind": "npair_shared_head"}, weight=0.01)
    method = dcglr(contrast=kind).eval()
    assert method.student.projection is None
    values = logged(method, monkeypatch)
    loss = method.training_step(batch, 0)
    views = method.crops(batch.dense(), SampleRandom(0, 0, 0, batch_size=6))
    head: Any = method.student.distillation  # the teacher is its copy still
    logits = [head(method.student.encoder.encode(v)).double() for v in (*views.whole, *views.parts)]
    total, terms = 0.0, 0
    for g in range(2):
        for v in range(len(logits)):  # the teacher's own view among them, as released
            anchor = (logits[g] / 0.04).softmax(1)
            for i in range(6):
                scores = [64 * (anchor[i] @ logits[v][j]).item() / 0.1 for j in range(6)]
                total += math.log(sum(math.exp(s - scores[i]) for s in scores))
                terms += 1
    assert values["train/contrast"] == pytest.approx(total / terms, rel=1e-3)
    assert loss.item() == pytest.approx(values["train/distillation"] + 0.01 * values["train/contrast"], rel=1e-5)


def test_the_objective_decides_what_there_is() -> None:
    heads = {
        objective: (method.student.distillation is not None, method.student.projection is not None)
        for objective in ("distill", "contrast", "both")
        for method in [dcglr(objective=objective)]
    }
    assert heads == {"distill": (True, False), "contrast": (False, True), "both": (True, True)}
    assert dcglr(objective="distill")._weight("distillation") == dcglr(objective="contrast")._weight("contrast") == 1.0


@pytest.mark.parametrize("objective", ["distill", "contrast", "both"])
def test_everything_of_the_student_is_trained_and_nothing_of_the_teacher(
    objective: Any, batch: PointBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = dcglr(objective=objective)
    logged(method, monkeypatch)
    method.training_step(batch, 0).backward()
    assert all(parameter.grad is not None for parameter in method.student.parameters())
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())


class Record(pl.Callback):
    """What the networks and the optimiser were after each step."""

    def __init__(self) -> None:
        self.student: list[dict[str, Tensor]] = []
        self.teacher: list[dict[str, Tensor]] = []
        self.decay: list[float] = []
        self.rate: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        groups = trainer.optimizers[0].param_groups
        assert groups[1]["weight_decay"] == 0.0
        self.decay.append(groups[0]["weight_decay"])
        self.rate.append(groups[0]["lr"])

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, DCGLR)
        self.student.append(copy.deepcopy(dict(pl_module.student.state_dict())))
        self.teacher.append(copy.deepcopy(dict(pl_module.teacher.state_dict())))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[DCGLR, dict[str, Tensor], Record, Path]:
    """Three epochs of two steps."""
    folder, record = tmp_path_factory.mktemp("dcglr"), Record()
    optimisation = StepOptimisation(learning_rate=1e-2, warmup_epochs=1)
    method = dcglr(momentum=(0.5, 1.0), optimisation=optimisation)
    fresh = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    pretrain(method, small_data(240), folder, max_epochs=3, callbacks=[record], **QUIET)
    return method, fresh, record, folder


def test_the_teacher_follows_every_step(run: tuple[DCGLR, dict[str, Tensor], Record, Path]) -> None:
    method, before, record, _ = run
    parameters = {name for name, _ in method.student.named_parameters()}
    for step, (student, teacher) in enumerate(zip(record.student, record.teacher, strict=True)):
        momentum = cosine_between(step, 6, 0.5, 1.0)
        for name in parameters:
            expected = momentum * before[name] + (1 - momentum) * student[name]
            torch.testing.assert_close(teacher[name], expected, msg=name)
        before = teacher
    # Running statistics of its own: of global views only.
    statistics = [name for name in record.teacher[-1] if name.endswith("running_mean")]
    assert all(not torch.equal(record.teacher[-1][name], record.student[-1][name]) for name in statistics)


def test_prototypes_rest_in_the_first_epoch(run: tuple[DCGLR, dict[str, Tensor], Record, Path]) -> None:
    _, before, record, _ = run
    prototypes = [state["distillation.prototypes"] for state in record.student]
    assert torch.equal(prototypes[0], before["distillation.prototypes"])
    assert torch.equal(prototypes[1], prototypes[0])
    assert not torch.equal(prototypes[3], prototypes[1])
    assert not torch.equal(record.student[1]["distillation.mlp.0.weight"], before["distillation.mlp.0.weight"])


def test_rate_and_decay_follow_their_schedules(run: tuple[DCGLR, dict[str, Tensor], Record, Path]) -> None:
    _, _, record, _ = run
    cosine = [1e-5 + (1e-2 - 1e-5) / 2 * (1 + math.cos(math.pi * t / 4)) for t in range(4)]
    assert record.rate == pytest.approx([0.0, 1e-2, *cosine])  # numpy.linspace(0, 1e-2, 2), then the cosine
    assert record.decay == pytest.approx([0.4 - 0.36 / 2 * (1 + math.cos(math.pi * t / 6)) for t in range(6)])


def test_the_warm_up_is_that_of_dino() -> None:
    """``numpy.linspace(0, 5e-3, 5)`` of POS-BERT's released schedule, whose cosine begins with all of it once more."""
    optimisation = StepOptimisation()
    rates = [optimisation.rate(step, 5, 9) for step in range(6)]
    assert rates == pytest.approx([0.0, 1.25e-3, 2.5e-3, 3.75e-3, 5e-3, 5e-3])
    assert optimisation.rate(0, 1, 9) == 0.0


def test_the_run_exports_the_teacher(run: tuple[DCGLR, dict[str, Tensor], Record, Path]) -> None:
    method, _, record, folder = run
    encoder = load_encoder(folder)
    ours = {name.removeprefix("encoder."): v for name, v in record.teacher[-1].items() if name.startswith("encoder.")}
    assert same(dict(encoder.state_dict()), ours)
    assert isinstance(method.encoder, ViT3D)


def test_the_metrics_tell_of_collapse(run: tuple[DCGLR, dict[str, Tensor], Record, Path]) -> None:
    header = (run[3] / "metrics.csv").read_text().splitlines()[0].split(",")
    names = ("feature_spread", "effective_rank", "mean_entropy", "entropy_of_mean", "distillation", "contrast")
    assert {f"train/{name}_epoch" for name in names} <= set(header)


def test_scores_of_the_encoder_are_reproducible(run: tuple[DCGLR, dict[str, Tensor], Record, Path]) -> None:
    objects = Selection(Household("train", num_points=64), range(0, 487, 8))
    scores = []
    for _ in range(2):
        encoder: Any = load_encoder(run[3])
        features = extract_features(encoder, objects, num_points=64, pooling="cls")
        scores.append(linear_svm(features, features, seed=0).to_dict())
    assert scores[0] == scores[1]


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_gradients_are_limited_tensor_by_tensor(clip: float | None) -> None:
    first, second = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(2))
    first.grad, second.grad = torch.ones(4), torch.tensor([1e-4, 0.0])
    StepOptimisation(clip=clip).clip_gradients(torch.optim.SGD([first, second]))
    assert first.grad.norm().item() == pytest.approx(2.0 if clip is None else 1e-3, rel=1e-4)
    assert second.grad.tolist() == pytest.approx([1e-4, 0.0])


@pytest.mark.parametrize(
    "encoder",
    [
        lambda: PointNet(16),
        lambda: DGCNN(16, k=4),
        lambda: PointViT(16, 2, 2, num_groups=8, group_size=8, num_cls_tokens=1, tokenizer_dims=(8, 8, 8)),
    ],
)
def test_any_encoder_of_objects_is_trained(encoder: Any, batch: PointBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    method = dcglr(encoder())
    logged(method, monkeypatch)
    loss = method.training_step(batch, 0)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None for p in method.student.parameters())


def test_the_teacher_drops_no_paths_and_the_student_as_the_step_says(
    batch: PointBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = dcglr(ViT3D(16, 2, 2, group_size=8, point_dim=8, drop_path=0.5))
    assert method.teacher.encoder.transformer.drop_path_rates == [0.0, 0.0]  # type: ignore[union-attr]
    assert method.student.encoder.transformer.drop_path_rates == [0.0, 0.5]  # type: ignore[union-attr]
    logged(method, monkeypatch)
    state = copy.deepcopy(method.state_dict())

    def step(index: int) -> float:
        method.load_state_dict(state)
        torch.manual_seed(torch.seed())
        return method.training_step(batch, index).item()

    assert step(3) == step(3) != step(4)


def test_eight_objects_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Overfitting: of eight clouds each view finds its own, where chance has one in eight."""
    few: PointBatch = next(iter(small_data(batch_size=8).train_dataloader()))
    contrast = InstanceContrast(**{**SIZES["contrast"], "queue_length": 0})
    torch.manual_seed(0)  # of the encoder, which is built before the method
    method = dcglr(PointNet(32), objective="contrast", contrast=contrast)
    values = logged(method, monkeypatch)
    optimizer = torch.optim.AdamW(method.student.parameters(), lr=1e-2)
    course = []
    for step in range(60):
        optimizer.zero_grad()
        method.training_step(few, step).backward()
        optimizer.step()
        with torch.no_grad():
            for ours, theirs in zip(method.teacher.parameters(), method.student.parameters(), strict=True):
                ours.lerp_(theirs, 0.1)
        course.append(values["train/contrast"])
    assert sum(course[:10]) / 10 > math.log(8)
    assert sum(course[-10:]) / 10 < 0.6 * math.log(8)


def test_the_temperature_of_the_teacher() -> None:
    rising = Distillation(teacher_temperature=(0.04, 0.07), teacher_temperature_epochs=30)
    assert [rising.sharpness(epoch) for epoch in (0, 15, 30, 300)] == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert Distillation().sharpness(0) == Distillation().sharpness(50) == 0.04


def test_bad_arguments_are_refused() -> None:
    for build, message in (
        (lambda: dcglr(objective="none"), 'objective must be "distill", "contrast" or "both", got \'none\''),
        (lambda: dcglr(momentum=(0.9, 1.1)), r"momentum must be two numbers in \[0, 1\]"),
        (lambda: InstanceContrast(kind="triplet"), "kind must be .* got 'triplet'"),  # type: ignore[arg-type]
        (lambda: MultiCrop(num_local=-1), "num_local must not be negative, got -1"),
        (lambda: MultiCrop(low_resolution=(0,)), "low_resolution must be numbers of points"),
        (lambda: StepOptimisation(clip=0.0), "clip must be positive"),
        (lambda: StepOptimisation(learning_rate=0.0), "learning_rate must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            build()


def test_the_recipe_of_paper_size() -> None:
    parser = build_parser()
    config = Path(pc3d.__file__).parent / "configs" / "pretrain" / "dcglr.yaml"
    options = parser.parse_args(["--config", str(config), "--output", "nowhere"])
    assert (options.trainer.max_epochs, options.data.batch_size) == (300, 64)
    options.data.train = None  # ShapeNet-55 is not here
    method = parser.instantiate(options).model
    assert isinstance(method, DCGLR)
    assert sum(p.numel() for p in method.student.encoder.parameters()) == 17_158_080
    assert isinstance(method.student.distillation, DistillationHead)
    assert method.student.distillation.prototypes.shape == (512, 256)
    assert (method.objective, method.contrast.weight, method.queue.length) == ("both", 0.5, 4096)
    assert (method.momentum, method.distillation.center_momentum) == ((0.996, 1.0), 0.9)
    crops, optimisation = method.crops, method.optimisation
    lengths = [view.length(1024) for view in (crops.global_view, crops.local_view)]
    assert (lengths, crops.num_local, list(crops.low_resolution)) == ([922, 512], 8, [])
    assert (optimisation.learning_rate, optimisation.warmup_epochs, optimisation.clip) == (5e-3, 20, 3.0)
    assert optimisation.weight_decay == (0.04, 0.4)
