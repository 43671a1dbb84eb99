"""Part segmentation as a task, on household objects cut into thirds of their height."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import QUIET
from tiny_objects import CLASSES, encoder, objects
from torch import nn

from pc3d.data import (
    IsotropicScaleShift,
    ObjectDataModule,
    PointBatch,
    PointCloud,
    PointDataset,
    RandomSubsample,
    Selection,
    collate,
    parts_of_categories,
)
from pc3d.evaluation import Kept, PartTally, predict_parts, shape_iou
from pc3d.methods import pretrain
from pc3d.models import PointNet, PointPartSegmenter, PointViT, ViT3D, save_encoder
from pc3d.tasks import (
    Classification,
    FineTuning,
    PartSegmentation,
    evaluate_parts,
    judge_parts,
    load_classifier,
    load_part_segmenter,
)

PARTS = ("foot", "middle", "top")


class Thirds(PointDataset):
    """Every third of an object's height is a part; of each seventh point it is not known. Lengths differ."""

    def __init__(self, split: str = "train", num_items: int = 60) -> None:
        self.whole = objects(split, num_items)
        self.classes, self.labels, self.parts = self.whole.classes, self.whole.labels, PARTS

    def load(self, index: int) -> PointCloud:
        cloud = self.whole.load(index).select(slice(100 + 10 * (index % 9)))
        z = cloud.xyz[:, 2]
        part = (3 * (z - z.min()) / (z.max() - z.min())).long().clamp(max=2)
        part[::7] = -1
        return cloud.replace(segment=part)


def backbone(num_cls_tokens: int = 0) -> PointViT:
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"num_groups": 12, "group_size": 8, "num_points": 96, "tokenizer_dims": (8, 12, 16)}
    return PointViT(16, 3, 2, num_cls_tokens=num_cls_tokens, **sizes)


def task(**changes: Any) -> PartSegmentation:
    fast = {"optimisation": FineTuning(learning_rate=0.01, warmup_epochs=1), "head_dims": (16, 24, 24, 16)}
    arguments: dict[str, Any] = {**fast, **changes}
    own = arguments.pop("backbone", None) or backbone()
    torch.manual_seed(0)
    return PartSegmentation(own, len(CLASSES), 3, CLASSES, PARTS, **arguments)


def data(**changes: Any) -> ObjectDataModule:
    arguments: dict[str, Any] = {
        "train": Thirds(),
        "test": Thirds("test", 20),
        "train_transforms": [RandomSubsample(96), IsotropicScaleShift()],
        "validation_fraction": 0.3,
        "batch_size": 20,
        "eval_batch_size": 7,
        **changes,
    }
    return ObjectDataModule(**arguments)


@pytest.fixture(scope="module")
def batch() -> PointBatch:
    return collate([Thirds("test", 5).load(i) for i in range(5)])


@torch.no_grad()
def by_hand(model: PointPartSegmenter, dataset: PointDataset) -> float:
    """Instance mIoU, one object at a time; each point has an object of its own copied 96 times around it or not."""
    values = []
    for index in range(len(dataset)):
        cloud = dataset.load(index)
        seen = cloud.xyz[[i * len(cloud) // 96 for i in range(96)]]
        category = dataset.labels[index : index + 1]
        scores = model.segment(seen[None], category, cloud.xyz, torch.tensor([0, len(cloud)]))
        assert cloud.segment is not None
        value = shape_iou(scores.argmax(1), cloud.segment, (0, 1, 2))
        assert value is not None
        values.append(value)
    return float(np.mean(values))


# ---- the model and the judgement ---------------------------------------------------------------------------------


@torch.no_grad()
def test_any_points_can_be_segmented_and_those_that_the_encoder_sees_as_always() -> None:
    model = task().model.eval()
    xyz = torch.rand(2, 96, 3)
    category = torch.tensor([3, 5])
    expected = model(xyz, category)
    assert expected.exp().sum(-1) == pytest.approx(1)
    query = torch.cat([xyz[0, 10:20], xyz[1, :40]])
    found = model.segment(xyz, category, query, torch.tensor([0, 10, 50]))
    torch.testing.assert_close(found, torch.cat([expected[0, 10:20], expected[1, :40]]))


def test_every_stored_point_is_judged_once_and_in_any_batches(batch: PointBatch) -> None:
    model, dataset = task().model.eval(), Thirds("test", 20)
    everything = [(0, 1, 2)] * len(CLASSES)
    expected = by_hand(model, dataset)
    for batch_size in (3, 20):
        tally = evaluate_parts(model, dataset, PartTally(CLASSES, everything), batch_size=batch_size)
        scores = tally.scores()
        assert scores.instance_miou == pytest.approx(expected)
        known = [int((dataset.load(i).segment >= 0).sum()) for i in range(20)]  # type: ignore[operator]
        assert (scores.num_points, scores.num_shapes) == (sum(known), 20)
        assert scores.num_points + scores.num_unknown == sum(len(dataset.load(i)) for i in range(20))


def test_the_legacy_protocol_draws_and_another_seed_gives_another_figure() -> None:
    model, dataset = task().model.eval(), Thirds("test", 8)

    def figure(seed: int) -> tuple[float, int]:
        tally = PartTally(CLASSES, [(0, 1, 2)] * len(CLASSES))
        scores = evaluate_parts(model, dataset, tally, protocol="legacy", seed=seed).scores()
        return scores.instance_miou, scores.num_points + scores.num_unknown

    assert figure(0) == figure(0)
    assert figure(0)[0] != figure(1)[0]
    assert figure(0)[1] == 8 * 96


def test_judging_goes_on_where_it_was_and_takes_nothing_of_other_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything, sizes, stop_at = ((0, 1, 2),) * len(CLASSES), [], 2
    segment = PointPartSegmenter.segment

    def counted(self: PointPartSegmenter, view: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
        if len(sizes) == stop_at:
            raise KeyboardInterrupt
        sizes.append(len(view))
        return segment(self, view, *args)

    def judged(kept: Kept | None = None, **changes: Any) -> PartTally:
        options = {"model": model, "dataset": dataset, "batch_size": 3, "protocol": "legacy", "seed": 1, **changes}
        tally = PartTally(CLASSES, options.pop("category_parts", everything))
        return evaluate_parts(tally=tally, kept=kept, **options)

    model, dataset, folder = task().model.eval(), Thirds("test", 8), tmp_path / "kept"
    expected = judged()
    monkeypatch.setattr(PointPartSegmenter, "segment", counted)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"), Kept(folder) as kept:
        judged(kept)
    stop_at = -1
    other = task().model.eval()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    for change in (
        {"seed": 2},
        {"protocol": "held_out"},
        {"batch_size": 2},
        {"model": other},
        {"dataset": Selection(dataset, [7, 6, 5, 4, 3, 2, 1, 0])},
        {"category_parts": ((0, 1),) * len(CLASSES)},
    ):
        store = Kept(folder)
        judged(store, **change)
        assert store.given_back == 0, change
    sizes.clear()
    with Kept(folder) as kept:
        found = judged(kept)
    assert sizes == [2]  # of 3, 3 and 2
    assert found.ious == expected.ious
    assert found.scores() == expected.scores()


def test_predictions_stay_within_the_category(batch: PointBatch) -> None:
    model = task().model.eval()
    only = [(1,)] * len(CLASSES)
    tally = PartTally(CLASSES, only)
    judge_parts(model, batch, tally)
    for (value, _), cloud in zip(tally.ious, batch.unbind(), strict=True):
        assert cloud.segment is not None
        assert value == pytest.approx(shape_iou(torch.ones_like(cloud.segment), cloud.segment, (1,)))
    assert predict_parts(torch.rand(4, 3), torch.zeros(4, dtype=torch.int64), only).tolist() == [1] * 4


def test_parts_of_a_category_are_those_of_its_training_objects() -> None:
    dataset = Thirds(num_items=12)
    found = parts_of_categories(dataset)
    for label, parts in enumerate(found):
        members = [i for i in range(12) if int(dataset.labels[i]) == label]
        seen = {int(p) for i in members for p in dataset.load(i).segment}  # type: ignore[union-attr]
        assert set(parts) == seen - {-1}
    with pytest.raises(ValueError, match="object 0 of Household has no segment"):
        parts_of_categories(objects())
    module = data(train=Thirds(num_items=30))
    assert module.category_parts == parts_of_categories(Thirds(num_items=30))  # validation objects included
    named = Selection(dataset, range(3))
    named.category_parts = ((0, 1),) * len(CLASSES)
    assert parts_of_categories(Selection(named, [1])) == named.category_parts


# ---- the loss ----------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_points_of_a_known_part() -> None:
    method = task().eval()
    clouds = [Thirds(num_items=4).load(i).select(slice(96)) for i in range(4)]
    few = collate(clouds)
    with torch.no_grad():
        loss, hits = method.loss(few)
        assert few.label is not None
        scores = method.model(few.dense(), few.label)
    chosen = [
        float(row[int(part)])
        for index, cloud in enumerate(clouds)
        for row, part in zip(scores[index], cloud.segment, strict=True)  # type: ignore[arg-type]
        if part >= 0
    ]
    assert float(loss) == pytest.approx(-np.mean(chosen), rel=1e-5)
    assert len(hits) == len(chosen)


def test_bad_batches_and_arguments_are_refused(batch: PointBatch) -> None:
    method = task()
    clouds = [cloud.select(slice(96)) for cloud in batch.unbind()]
    with pytest.raises(ValueError, match=r"segment, the part of each point, .* got none"):
        method.loss(collate([cloud.replace(segment=None) for cloud in clouds]))
    with pytest.raises(ValueError, match=r"in 0\.\.2, or -1 for unknown, got 9 to 9"):
        method.loss(collate([cloud.replace(segment=torch.full((96,), 9)) for cloud in clouds]))
    with pytest.raises(ValueError, match=r"the category, must be in 0\.\.20"):
        method.loss(collate([cloud.replace(label=-1) for cloud in clouds]))
    with pytest.raises(ValueError, match="num_parts, of the data set, must be at least 1, got 0: take one with parts"):
        PartSegmentation(backbone(), 3, 0)
    with pytest.raises(ValueError, match=r"must be 3 and part_names 2, got 3, 1 and 2"):
        PartSegmentation(backbone(), 3, 2, category_parts=[(0, 1)])
    with pytest.raises(ValueError, match=r"category_parts must be in 0\.\.1, got 2"):
        PartSegmentation(backbone(), 1, 2, category_parts=[(0, 2)])
    with pytest.raises(ValueError, match="num_cls_tokens=0, got 1"):
        task(backbone=backbone(1))
    unsaid = PointNet(16)
    del unsaid.config["num_points"]
    with pytest.raises(ValueError, match=r"a PointNet does not say how many points .* take num_points"):
        task(backbone=unsaid)
    with pytest.raises(ValueError, match="head_dims must be four positive widths"):
        task(head_dims=(1, 2, 3))
    with pytest.raises(ValueError, match="protocol must be one of held_out, legacy"):
        evaluate_parts(method.model, Thirds(num_items=1), method.tally(), protocol="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no parts of points to judge by"):
        evaluate_parts(method.model, objects(num_items=2), method.tally())


# ---- whole runs --------------------------------------------------------------------------------------------------


def test_a_run_learns_keeps_its_best_epoch_and_leaves_a_model_that_gives_the_same(tmp_path: Path) -> None:
    method, module = task(), data(protocol="legacy", batch_size=6)
    untrained = by_hand(method.model.eval(), module.test)  # type: ignore[arg-type]
    pretrain(method, module, tmp_path, max_epochs=8, **QUIET)
    model, config = load_part_segmenter(tmp_path)
    kept = method.selection.kept()
    assert kept is not None
    assert module.validation is not None
    assert by_hand(model, module.validation) == pytest.approx(kept.validation)
    assert by_hand(model, module.test) > untrained + 0.1  # type: ignore[arg-type]
    assert (config["parts"], config["training"]["num_train"]) == (list(PARTS), len(module.train))  # type: ignore[arg-type]
    legacy = config["training"]["legacy"]
    assert legacy["test"] == max(score.test for score in method.selection.history if score.test is not None)
    with pytest.raises(FileNotFoundError, match="holds no classifier but the model of another task"):
        load_classifier(tmp_path)


def test_vit3d_is_trained_on_parts_from_its_own_weights(tmp_path: Path) -> None:
    def small() -> ViT3D:
        return ViT3D(16, 3, 2, group_size=8, point_dim=8, num_points=96)

    torch.manual_seed(7)
    source = small()
    save_encoder(source, tmp_path / "source" / "encoder")
    method = task(backbone=small(), encoder=str(tmp_path / "source"))
    ours, theirs = method.encoder.state_dict(), source.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    module = data()
    pretrain(method, module, tmp_path / "run", max_epochs=1, **QUIET)
    model, config = load_part_segmenter(tmp_path / "run")
    assert isinstance(model.encoder, ViT3D)
    assert config["layers"] == [0, 1, 2]
    changed = model.encoder.state_dict()
    assert not all(torch.equal(changed[name], value) for name, value in theirs.items())
    kept = method.selection.kept()
    assert kept is not None
    assert by_hand(model, module.validation) == pytest.approx(kept.validation)  # type: ignore[arg-type]


def test_an_encoder_without_tokens_is_trained_on_parts(tmp_path: Path) -> None:
    method, module = task(backbone=PointNet(16, num_points=96)), data()
    pretrain(method, module, tmp_path, max_epochs=1, **QUIET)
    model, config = load_part_segmenter(tmp_path)
    assert isinstance(model.encoder, PointNet)
    assert config["layers"] is None
    kept = method.selection.kept()
    assert kept is not None
    assert by_hand(model, module.validation) == pytest.approx(kept.validation)  # type: ignore[arg-type]


def test_a_pre_trained_encoder_starts_it_without_its_class_tokens(tmp_path: Path) -> None:
    source = backbone(2)
    nn.init.normal_(source.norm.weight)
    save_encoder(source, tmp_path / "encoder")
    method = task(encoder=str(tmp_path))
    assert method.initial is not None
    assert method.initial.unknown == ("cls_token", "cls_position")
    assert torch.equal(method.encoder.norm.weight, source.norm.weight)  # type: ignore[union-attr,arg-type]
    with pytest.raises(FileNotFoundError, match="holds no part segmenter: give the run folder of pc3d parts train"):
        load_part_segmenter(tmp_path)
    Classification(encoder(), 2).save(tmp_path, {})
    with pytest.raises(FileNotFoundError, match="holds no part segmenter but the model of another task"):
        load_part_segmenter(tmp_path)
