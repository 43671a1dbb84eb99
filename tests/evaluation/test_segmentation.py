"""The scores of a segmentation, by hand-computed cases and an independent formula."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from pc3d.evaluation import ConfusionMatrix, segmentation_scores, sum_folds


def matrix(predicted: list[int], label: list[int], num_classes: int, ignore_index: int = -1) -> ConfusionMatrix:
    result = ConfusionMatrix(num_classes, ignore_index)
    result.update(torch.tensor(predicted), torch.tensor(label))
    return result


def test_a_case_computed_by_hand() -> None:
    # label      0 0 0 1 1 2 -1
    # predicted  0 0 1 1 2 2  0
    scores = matrix([0, 0, 1, 1, 2, 2, 0], [0, 0, 0, 1, 1, 2, -1], 3).scores(["a", "b", "c"])
    assert scores.iou == pytest.approx([2 / 3, 1 / 3, 1 / 2])
    assert scores.accuracy == pytest.approx([2 / 3, 1 / 2, 1])
    assert scores.miou == pytest.approx((2 / 3 + 1 / 3 + 1 / 2) / 3)
    assert scores.macc == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert scores.allacc == pytest.approx(4 / 6)
    assert scores.support == (3, 2, 1)
    assert scores.num_points == 6
    assert scores.confusion == ((2, 1, 0, 0), (0, 1, 1, 0), (0, 0, 1, 0))


def test_groups_of_classes_are_meant_over_those_that_occur() -> None:
    scores = matrix([0, 0, 1, 1, 2, 2, 3], [0, 0, 0, 1, 1, 2, -1], 4).scores(["a", "b", "c", "d"])
    found = scores.miou_of_groups({"first": ["a", "c"], "second": ["b", "d"], "third": ["d"]})
    assert found == pytest.approx({"first": (2 / 3 + 1 / 2) / 2, "second": 1 / 3, "third": 0.0})
    with pytest.raises(ValueError, match="of the 4 classes that were scored, got 'e'"):
        scores.miou_of_groups({"first": ["e"]})


def test_a_prediction_outside_the_classes_is_a_miss_and_no_false_alarm() -> None:
    for outside in (-1, 3, 40, 255):
        scores = matrix([0, outside, 1, 2], [0, 0, 1, 2], 3).scores()
        assert scores.iou == pytest.approx([1 / 2, 1, 1])
        assert scores.allacc == pytest.approx(3 / 4)


def test_an_ignore_index_inside_the_classes_masks_labels_and_not_predictions() -> None:
    # Label 2 does not count; that the second point is *predicted* 2 is a miss of class 0 and a false alarm of class 2.
    scores = matrix([0, 2, 1, 0, 2], [0, 0, 1, 2, 2], 3, ignore_index=2).scores()
    assert scores.support == (2, 1, 0)
    assert scores.iou == pytest.approx([1 / 2, 1, 0])
    assert scores.allacc == pytest.approx(2 / 3)
    assert scores.confusion[0] == (1, 0, 1, 0)


@pytest.mark.parametrize("ignore_index", [-1, -100, 255])
def test_an_ignore_index_outside_the_classes(ignore_index: int) -> None:
    scores = matrix([0, 1, 1], [0, 1, ignore_index], 2, ignore_index).scores()
    assert (scores.miou, scores.allacc, scores.num_points) == (pytest.approx(1), pytest.approx(1), 2)


def test_an_absent_class_counts_as_zero_in_the_published_mean_and_not_in_the_other() -> None:
    scores = matrix([0, 1], [0, 1], 4).scores()
    assert scores.iou == pytest.approx([1, 1, 0, 0])
    assert (scores.miou, scores.macc) == (pytest.approx(0.5), pytest.approx(0.5))
    assert (scores.miou_present, scores.num_present) == (pytest.approx(1), 2)
    falsely_seen = matrix([0, 3], [0, 1], 4).scores()
    assert (falsely_seen.num_present, falsely_seen.miou_present) == (2, pytest.approx(0.5))


def test_nothing_labelled_is_zero_and_not_nan() -> None:
    scores = matrix([0, 1], [-1, -1], 2).scores()
    assert (scores.miou, scores.macc, scores.allacc, scores.miou_present, scores.num_points) == (0, 0, 0, 0, 0)


def by_histograms(predicted: Tensor, label: Tensor, k: int, ignore: int) -> tuple[float, float, float]:
    """The published computation in numpy: three histograms with K bins."""
    p, t = predicted.numpy()[label.numpy() != ignore], label.numpy()[label.numpy() != ignore]
    edges = np.arange(k + 1) - 0.5
    area_i, area_p, area_t = (np.histogram(x, bins=edges)[0] for x in (p[p == t], p, t))
    union = area_p + area_t - area_i
    return (
        float(np.mean(area_i / (union + 1e-10))),
        float(np.mean(area_i / (area_t + 1e-10))),
        float(area_i.sum() / (area_t.sum() + 1e-10)),
    )


@pytest.mark.parametrize("ignore_index", [-1, 4, 7])
def test_random_points_agree_with_the_histograms_however_they_are_cut(ignore_index: int) -> None:
    generator = torch.Generator().manual_seed(ignore_index + 2)
    label = torch.randint(0, 7, (5000,), generator=generator)
    label[torch.rand(5000, generator=generator) < 0.1] = ignore_index
    predicted = torch.where(
        torch.rand(5000, generator=generator) < 0.6, label, torch.randint(-1, 9, (5000,), generator=generator)
    )
    whole, pieces = ConfusionMatrix(7, ignore_index), ConfusionMatrix(7, ignore_index)
    whole.update(predicted, label)
    for start in range(0, 5000, 777):
        pieces.update(predicted[start : start + 777], label[start : start + 777].int())
    assert torch.equal(whole.counts, pieces.counts)
    scores = whole.scores()
    assert (scores.miou, scores.macc, scores.allacc) == pytest.approx(
        by_histograms(predicted, label, 7, ignore_index), abs=1e-12
    )


def test_folds_are_summed_before_they_are_divided() -> None:
    first, second = matrix([0] * 9 + [1], [0] * 9 + [1], 2), matrix([1, 1], [0, 1], 2)
    together = sum_folds([first, second]).scores()
    assert together.iou == pytest.approx([9 / 10, 2 / 3])
    mean_of_folds = (first.scores().miou + second.scores().miou) / 2
    assert together.miou != pytest.approx(mean_of_folds)
    assert first.counts.sum() == 10  # the folds are left alone


def test_folds_with_a_scene_in_common_are_refused() -> None:
    folds = []
    for scenes in (["a", "b", "b"], ["c"], ["d", "b"]):
        fold = ConfusionMatrix(2)
        for scene in scenes:
            fold.update(torch.tensor([0]), torch.tensor([1]), scene)
        folds.append(fold)
    assert folds[0].scenes == ("a", "b")  # a scene may come in pieces
    assert sum_folds(folds[:2]).scenes == ("a", "b", "c")
    assert sum_folds(folds[:2]).counts.tolist() == [[0, 0, 0], [4, 0, 0]]
    with pytest.raises(ValueError, match="scene 'b' is in both matrices: its points would count twice"):
        sum_folds(folds)


def test_table_and_json_name_every_class() -> None:
    scores = matrix([0, 0, 1], [0, 1, 1], 3).scores(["wall", "floor", "lamp"])
    rows = [line.split() for line in str(scores).splitlines()]
    assert rows[1:4] == [["wall", "50.00", "100.00", "1"], ["floor", "50.00", "50.00", "2"], ["lamp", "-", "-", "0"]]
    assert "over the 2 classes that occur in the labels: 50.00 %" in str(scores)
    data = json.loads(json.dumps(scores.to_dict()))
    assert data["per_class"]["floor"] == {"iou": pytest.approx(0.5), "accuracy": pytest.approx(0.5), "points": 2}
    assert data["miou"] == pytest.approx(1 / 3)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"label must be in 0\.\.1 or the ignore index -1, got 2"):
        matrix([0], [2], 2)
    with pytest.raises(ValueError, match="got -100"):
        matrix([0], [-100], 2)
    with pytest.raises(TypeError, match=r"predicted must hold integers, got torch\.float32"):
        ConfusionMatrix(2).update(torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"must both be \(N,\), got \(2,\) and \(1,\)"):
        matrix([0, 1], [0], 2)
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        ConfusionMatrix(0)
    with pytest.raises(ValueError, match="must name the 2 classes"):
        matrix([0], [0], 2).scores(["a"])
    with pytest.raises(ValueError, match=r"\(2, 4\)"):
        segmentation_scores(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="must agree"):
        matrix([0], [0], 2) + matrix([0], [0], 3)
    with pytest.raises(ValueError, match="folds is empty"):
        sum_folds([])
