"""Part segmentation scores against cases worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pc3d.data import SHAPENET_PARTS
from pc3d.evaluation import PartResult, PartTally, predict_parts, read_rows, shape_iou, write_rows
from pc3d.evaluation.part_segmentation import _interval

# A chair of three parts 0, 1, 2 and a mug of two, 3 and 4.
PARTS = ((0, 1, 2), (3, 4))


def t(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize(
    ("predicted", "part", "expected"),
    [
        (t(0, 0, 1, 1), t(0, 0, 1, 1), 1.0),  # part 2 is neither there nor predicted: 1
        (t(0, 0, 0, 1), t(0, 0, 1, 1), (2 / 3 + 1 / 2 + 1) / 3),
        (t(2, 0, 1, 1), t(0, 0, 1, 1), (1 / 2 + 1 + 0) / 3),  # predicted and not there: 0
        (t(0, 0, 0, 0), t(0, 0, 1, 2), (2 / 4 + 0 + 0) / 3),  # there and not predicted: 0
        (t(0, 0, 0, 1), t(0, -1, -1, 1), 1.0),  # points of an unknown part do not count
        (t(0, 0, 1, 1), t(0, 0, 1, 7), (1 + 1 / 2 + 1 + 0) / 4),  # a part that the category is not known to have
    ],
)
def test_iou_of_an_object(predicted: Tensor, part: Tensor, expected: float) -> None:
    assert shape_iou(predicted, part, PARTS[0]) == pytest.approx(expected)


def test_an_object_of_unknown_parts_has_no_iou() -> None:
    assert shape_iou(t(0, 1), t(-1, -1), PARTS[0]) is None


def tally() -> PartTally:
    """Two chairs of IoU 1 and (2/3 + 1/2 + 1)/3, and a mug of (1/2 + 0)/2; one chair that nothing is known of."""
    found = PartTally(["chair", "mug", "lamp"], [*PARTS, (5,)])
    found.update(t(0, 0, 1, 1), t(0, 0, 1, 1), 0)
    found.update(t(0, 0, 0, 1), t(0, 0, 1, 1), 0)
    found.update(t(3, 3), t(3, 4), 1)
    found.update(t(0, 0), t(-1, -1), 0)
    return found


def test_instances_and_classes_are_averaged_as_they_are_called() -> None:
    first, second, mug = 1.0, (2 / 3 + 1 / 2 + 1) / 3, 1 / 4
    scores = tally().scores()
    assert scores.instance_miou == pytest.approx((first + second + mug) / 3)
    assert scores.class_miou == pytest.approx(((first + second) / 2 + mug) / 2)  # no lamp was there
    assert scores.accuracy == pytest.approx(8 / 10)
    assert scores.category_iou == {"chair": pytest.approx((first + second) / 2), "mug": pytest.approx(mug)}
    assert scores.category_count == {"chair": 2, "mug": 1}
    assert (scores.num_shapes, scores.num_points, scores.num_unknown, scores.num_left_out) == (3, 10, 2, 1)
    # Two chairs stray by their distance from their mean times the root of 2, often both to one side; the mug, which is
    # alone, strays as a chair does.
    strays = 2**0.5 * (first - second) / 2
    assert scores.class_interval == pytest.approx((scores.class_miou - strays, scores.class_miou + strays))
    assert 0 <= scores.instance_interval[0] < scores.instance_miou < scores.instance_interval[1] <= 1


def test_intervals_hold_the_truth_with_few_objects_in_a_category() -> None:
    """Of 200 test splits, 95 % or so; where objects alone are resampled, 60 %."""
    generator = torch.Generator().manual_seed(0)
    sizes = [1] * 10 + [2] * 6 + [3] * 5 + [8] * 3
    inside = []
    for _ in range(200):
        truth = 0.3 + 0.4 * torch.rand(len(sizes), generator=generator, dtype=torch.float64)
        drawn = [torch.rand(n, generator=generator, dtype=torch.float64) for n in sizes]
        values = [mean + 0.6 * draw - 0.3 for mean, draw in zip(truth, drawn, strict=True)]
        low, high = _interval(values, seed=0)
        inside.append(low <= float(truth.mean()) <= high)
    assert sum(inside) / 200 > 0.9


def test_objects_that_are_each_alone_in_their_category_stray_from_the_mean_of_all() -> None:
    alone = [torch.tensor([value], dtype=torch.float64) for value in (0.2, 0.4, 0.6, 0.8)]
    low, high = _interval(alone, seed=0)
    assert low < 0.35
    assert high > 0.65


def test_counts_of_two_tallies_add_up() -> None:
    whole, half = tally(), tally()
    whole.counts = whole.counts + half.counts
    assert whole.means() == pytest.approx(half.means())
    with pytest.raises(ValueError, match="no object with a point of a known part"):
        PartTally(["chair"], [(0,)]).means()
    with pytest.raises(ValueError, match="must be of one length, got 2 and 1"):
        PartTally(["chair", "mug"], [(0,)])
    with pytest.raises(ValueError, match=r"must both be \(N,\), got \(1,\) and \(2,\)"):
        half.update(t(1), t(1, 1), 0)


def test_parts_of_other_categories_are_never_predicted() -> None:
    scores = torch.tensor([[0.1, 0.3, 0.2, 0.9, 0.8], [0.9, 0.3, 0.2, 0.1, 0.2], [0.0, 0.0, 0.0, -5.0, -4.0]])
    assert predict_parts(scores, t(0, 1, 1), PARTS).tolist() == [1, 4, 4]
    assert predict_parts(scores[:0], t(), PARTS).tolist() == []
    with pytest.raises(ValueError, match=r"category must be in 0\.\.1, got 0 to 2"):
        predict_parts(scores, t(0, 1, 2), PARTS)
    with pytest.raises(ValueError, match="category 1 has no parts, since the training split has no labelled object"):
        predict_parts(scores, t(0, 1, 1), ((0,), ()))


def test_the_categories_of_shapenetpart_cover_its_fifty_parts_once() -> None:
    spans = list(SHAPENET_PARTS.values())
    assert [part for first, last in spans for part in range(first, last + 1)] == list(range(50))
    assert len(spans) == 16


def result(**changes: object) -> PartResult:
    selection = {
        "epoch": 2,
        "by": "highest instance_miou on validation, of 5 epochs",
        "score": "instance_miou",
        "validation": 0.5,
        "legacy": {"epoch": 3, "test": 0.9},
    }
    fields: dict[str, object] = {
        "encoder": "PointViT",
        "start": "fresh weights",
        "run": "run",
        "data": "ObjectSet",
        "split": "test",
        "train_hash": "0123",
        "test_hash": "4567",
        "num_train": 80,
        "num_validation": 20,
        "num_test": 4,
        "preparation": "as stored",
        "protocol": "held_out",
        "num_points": 2048,
        "selection": selection,
        "seed": 3,
        "scores": tally().scores(),
        **changes,
    }
    return PartResult(**fields)  # type: ignore[arg-type]


def test_a_result_says_how_it_came_about_and_becomes_rows(tmp_path: object) -> None:
    text = str(result())
    assert "every stored point; the encoder sees 2048 of each" in text
    assert "instance mIoU  65.7 %" in text
    assert "instance mIoU of the best test epoch (3): 90.0 %" in text
    assert "drawn with replacement" not in text
    assert "*** LEGACY: points drawn with replacement" in str(result(protocol="legacy"))
    write_rows(result().to_rows("mine"), str(tmp_path))
    rows = {row.selection: row for row in read_rows([str(tmp_path)])}
    assert set(rows) == {"validation", "legacy"}
    assert rows["validation"].metrics["class_miou"] == pytest.approx(tally().scores().class_miou)
    assert rows["legacy"].metrics == {"instance_miou": 0.9}
    assert {row.method for row in rows.values()} == {"mine"}
