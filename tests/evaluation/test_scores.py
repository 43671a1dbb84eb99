"""Scores against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pc3d.evaluation import scores, wilson_interval

TRUTH = np.array([0, 0, 0, 0, 1, 1, 2, 2])
PREDICTED = np.array([0, 0, 0, 1, 1, 0, 2, 2])


def test_scores_by_hand() -> None:
    result = scores(TRUTH, PREDICTED, ("chair", "lamp", "table"))
    assert result.overall_accuracy == 6 / 8
    assert result.per_class_accuracy == {"chair": 3 / 4, "lamp": 1 / 2, "table": 1.0}
    assert result.mean_class_accuracy == pytest.approx((0.75 + 0.5 + 1.0) / 3)
    assert result.per_class_count == {"chair": 4, "lamp": 2, "table": 2}
    assert result.confusion == [[3, 1, 0], [1, 1, 0], [0, 0, 2]]
    assert result.confusion_classes == ["chair", "lamp", "table"]


def test_wilson_interval_is_the_formula() -> None:
    # (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), Wilson 1927, z of a 95 % interval.
    p, n, z = 62 / 124, 124, 1.959963984540054
    centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = ((centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n))
    assert wilson_interval(62, 124) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("correct", [0, 10])
def test_wilson_interval_stays_inside_and_open_at_the_ends(correct: int) -> None:
    low, high = wilson_interval(correct, 10)
    assert 0 <= low <= correct / 10 <= high <= 1
    assert high - low > 0.2


def test_bootstrap_interval_brackets_and_narrows() -> None:
    generator = np.random.default_rng(0)

    def interval(copies: int) -> tuple[float, float]:
        truth = np.repeat(np.arange(5), 20 * copies)
        wrong = generator.random(truth.size) < 0.3
        return scores(truth, np.where(wrong, (truth + 1) % 5, truth)).mean_class_interval

    narrow, wide = interval(16), interval(1)
    assert narrow[0] < 0.7 < narrow[1]
    # Sixteen times the items, a quarter of the width.
    assert (narrow[1] - narrow[0]) / (wide[1] - wide[0]) == pytest.approx(0.25, abs=0.08)


def test_interval_of_class_means_holds_the_truth_with_few_items_in_a_class() -> None:
    """Of 300 test splits with these numbers of items (ScanObjectNN's format, our objects), 95 % or so, and not 70 %."""
    size = np.array([1, 3, 17, 15, 1, 6, 14, 3, 5, 5, 2, 5, 4, 2, 1, 5, 11, 2, 2])
    truth = np.repeat(np.arange(size.size), size)
    generator = np.random.default_rng(0)
    inside = []
    for _ in range(300):
        rate = generator.random(size.size)
        right = generator.random(truth.size) < rate[truth]
        low, high = scores(truth, np.where(right, truth, size.size)).mean_class_interval
        inside.append(low <= rate.mean() <= high)
    assert np.mean(inside) > 0.92


def test_classes_of_one_item_are_not_certain() -> None:
    low, high = scores(np.arange(4), np.array([0, 1, 0, 0])).mean_class_interval
    # Two of four: a standard deviation of a quarter, about.
    assert low < 0.25
    assert high > 0.75


def test_bootstrap_is_seeded() -> None:
    first, again, other = (scores(TRUTH, PREDICTED, seed=seed).mean_class_interval for seed in (1, 1, 2))
    assert first == again
    assert first != other or first == pytest.approx(other, abs=0.1)


def test_predictions_outside_the_classes_present_count_as_wrong() -> None:
    result = scores(np.array([0, 0]), np.array([0, 5]), ("chair",))
    assert result.overall_accuracy == 0.5
    assert result.confusion == [[1, 1], [0, 0]]
    assert result.confusion_classes == ["chair", "5"]
    assert list(result.per_class_accuracy) == ["chair"]


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        ([], [], r"n >= 1"),
        ([0, 1], [0], r"\(2,\) and \(1,\)"),
        ([0, -1], [0, 0], "unlabelled"),
    ],
)
def test_scores_refuse(truth: list[int], predicted: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scores(np.array(truth, dtype=np.int64), np.array(predicted, dtype=np.int64))


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (-1, 3), (4, 3)])
def test_wilson_interval_refuses(correct: int, total: int) -> None:
    with pytest.raises(ValueError, match="correct must be in"):
        wilson_interval(correct, total)
