"""Retrieval against cases worked out by hand, a plain loop, and scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from pc3d.data import Household
from pc3d.evaluation import Features, ShapeDescriptor, average_precision, extract_features, retrieval

Make = Callable[..., Features]


def on_circle(degrees: list[float], labels: list[int], groups: list[int] | None = None) -> Features:
    """Features at given angles: the nearest by cosine is the nearest by angle, whatever the length."""
    angles = np.deg2rad(np.array(degrees))
    lengths = 1 + np.arange(angles.size)  # which must not matter
    values = (lengths * np.stack([np.cos(angles), np.sin(angles)])).T.astype(np.float32)
    wanted = None if groups is None else np.array(groups)
    return Features(values, np.array(labels), ("a", "b", "c"), data="circle", groups=wanted)


def test_average_precision_by_hand() -> None:
    # Relevant at ranks 1, 3 and 6: (1/1 + 2/3 + 3/6) / 3.
    hits = np.array([True, False, True, False, False, True])
    assert average_precision(hits) == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)
    assert average_precision(np.array([False, False, True])) == pytest.approx(1 / 3)


def test_leave_one_out_by_hand() -> None:
    test = on_circle([0, 10, 25, 45, 170], [0, 0, 1, 0, 1])
    result = retrieval(test, test, ranks=(1, 2, 4))
    # Query by query, the ranked labels of the others.
    # 0: 10 a, 25 b, 45 a, 170 b    -> AP (1 + 2/3) / 2
    # 10: 0 a, 25 b, 45 a, 170 b    -> the same
    # 25 (b): 10 a, 45 a, 0 a, 170 b -> AP 1/4
    # 45: 25 b, 10 a, 0 a, 170 b    -> AP (1/2 + 2/3) / 2
    # 170 (b): 45 a, 25 b, 10 a, 0 a -> AP 1/2
    expected = [5 / 6, 5 / 6, 1 / 4, 7 / 12, 1 / 2]
    assert result.mean_average_precision == pytest.approx(np.mean(expected))
    assert result.recall == {1: 2 / 5, 2: 4 / 5, 4: 1.0}
    assert result.precision == {
        1: pytest.approx(2 / 5),
        2: pytest.approx(np.mean([1 / 2, 1 / 2, 0, 1 / 2, 1 / 2])),
        4: pytest.approx(np.mean([1 / 2, 1 / 2, 1 / 4, 1 / 2, 1 / 4])),
    }
    assert (result.num_queries, result.num_without_match, result.num_excluded) == (5, 0, 0)


def test_ranks_beyond_a_small_gallery_are_left_out_by_default() -> None:
    small = on_circle([0, 10, 25, 45, 170], [0, 0, 1, 0, 1])
    assert retrieval(small, small).recall == {1: 2 / 5}
    larger = on_circle([0, 10, 25, 45, 170, 300], [0, 0, 1, 0, 1, 2])
    result = retrieval(larger, larger)
    assert (set(result.recall), set(result.precision)) == ({1, 5}, {1, 5})
    assert result.recall[5] == 1.0


def test_training_gallery_by_hand() -> None:
    train = on_circle([0, 20, 60, 300], [0, 1, 0, 1])
    test = on_circle([5, 50], [0, 1])
    result = retrieval(train, test, gallery="train", ranks=(1, 3))
    # 5 (a): 0 a, 20 b, 60 a, 300 b -> (1 + 2/3) / 2; 50 (b): 60 a, 20 b, 0 a, 300 b -> (1/2 + 2/4) / 2.
    assert result.mean_average_precision == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert result.recall == {1: 0.5, 3: 1.0}


def test_near_identical_items_count_neither_way() -> None:
    # The copy of the first is nearest to it: without groups a hit, with them not there.
    test = on_circle([0, 1, 30, 50, 80], [0, 0, 1, 0, 1], groups=[7, 7, 1, 2, 3])
    plain = retrieval(test, replace(test, groups=None), ranks=(1,))
    grouped = retrieval(test, test, ranks=(1,))
    assert (plain.num_excluded, grouped.num_excluded) == (0, 2)
    # 0: 30 b, 50 a, 80 b -> 1/2; 1: the same; 30 (b): 50 a, 1 a, 0 a, 80 b -> 1/4;
    # 50 (a): 30 b, 80 b, 1 a, 0 a -> (1/3 + 2/4) / 2; 80 (b): 50 a, 30 b, ... -> 1/2.
    assert grouped.mean_average_precision == pytest.approx(np.mean([1 / 2, 1 / 2, 1 / 4, 5 / 12, 1 / 2]))
    assert plain.mean_average_precision > grouped.mean_average_precision
    assert "near-identical items taken out 2 times" in str(grouped)


def test_queries_without_a_match_are_left_out_and_counted() -> None:
    test = on_circle([0, 10, 25, 90], [0, 0, 2, 1])
    result = retrieval(test, test, ranks=(1,))
    assert (result.num_queries, result.num_without_match) == (2, 2)
    assert result.mean_average_precision == 1.0
    assert "2 test items without any match left out" in str(result)
    with pytest.raises(ValueError, match="no test item of circle has another item of its class"):
        retrieval(test, on_circle([0, 10], [0, 1]))


def test_equal_similarities_are_in_the_order_of_the_data_set() -> None:
    test = on_circle([0, 40, 40, 320], [0, 1, 0, 0])
    # Nearest to the first are three at 40 degrees exactly, in order b, a, a.
    values = np.array([[1, 0], [0, 1], [0, 1], [0, -1]], dtype=np.float32)
    result = retrieval(test, replace(test, values=values), ranks=(1,))
    # 0: b a a -> (1/2 + 2/3) / 2; third (a): the b, then first, then fourth -> (1/2 + 2/3) / 2;
    # fourth (a): first 0, then the two at -1: b, a -> (1 + 2/3) / 2.
    assert result.mean_average_precision == pytest.approx(np.mean([7 / 12, 7 / 12, 5 / 6]))


@pytest.mark.parametrize("gallery", ["test", "train"])
@pytest.mark.parametrize("center", [False, True])
def test_a_plain_loop_and_scikit_learn_agree(gallery: str, center: bool, planted: Make) -> None:
    generator = np.random.default_rng(3)
    train, test = planted(9, signal=1.5, seed=1, unlabelled=4), planted(7, signal=1.5, seed=2, unlabelled=3)
    shifted = [replace(features, values=features.values + 2) for features in (train, test)]
    groups = generator.integers(0, 20, len(test))
    train, test = shifted[0], replace(shifted[1], groups=groups)
    result = retrieval(train, test, gallery=gallery, center=center)  # type: ignore[arg-type]
    mean = train.values.astype(np.float64).mean(0) if center else np.zeros(16)
    precisions, first, excluded = [], [], 0
    others = test if gallery == "test" else train
    for q in np.flatnonzero(test.labels >= 0):
        similarity, relevant = [], []
        for i in np.flatnonzero(others.labels >= 0):
            if gallery == "test" and (i == q or groups[i] == groups[q]):
                excluded += i != q
                continue
            a, b = test.values[q].astype(np.float64) - mean, others.values[i].astype(np.float64) - mean
            similarity.append(a @ b / np.sqrt((a @ a) * (b @ b)))
            relevant.append(others.labels[i] == test.labels[q])
        precisions.append(average_precision_score(relevant, similarity))
        first.append([relevant[i] for i in np.argsort(similarity)[::-1]])
    assert result.mean_average_precision == pytest.approx(np.mean(precisions))
    assert result.recall == {k: pytest.approx(np.mean([any(r[:k]) for r in first])) for k in (1, 5, 10)}
    assert result.precision == {k: pytest.approx(np.mean([sum(r[:k]) / k for r in first])) for k in (1, 5, 10)}
    assert result.num_excluded == excluded
    assert result.num_unlabelled == (4, 3)


def test_centring_takes_a_common_offset_off(planted: Make) -> None:
    train, test = planted(20, signal=3, seed=1), planted(20, signal=3, seed=2)
    offset = [replace(features, values=features.values + 100) for features in (train, test)]
    found, expected = retrieval(*offset, center=True), retrieval(train, test, center=True)
    assert found.mean_average_precision == pytest.approx(expected.mean_average_precision, abs=1e-3)  # float32 + 100
    assert retrieval(*offset).mean_average_precision < found.mean_average_precision


def test_interval_brackets_and_is_seeded(planted: Make) -> None:
    train, test = planted(10, signal=2, seed=1), planted(10, signal=2, seed=2)
    low, high = retrieval(train, test).interval
    assert low < retrieval(train, test).mean_average_precision < high
    assert retrieval(train, test).interval == (low, high)
    assert retrieval(train, test, seed=1).interval != (low, high)


def test_real_objects_beat_chance_and_become_a_row() -> None:
    train, test = (extract_features(ShapeDescriptor(), Household(split), num_points=128) for split in ("train", "test"))
    result = retrieval(train, test, center=True)
    # With random features the expected average precision is near the class's share, 10 % for the largest.
    assert result.mean_average_precision > 0.2
    assert result.num_queries + result.num_without_match == 124
    row = result.to_row("descriptor")
    assert next(iter(row.metrics)) == "map"
    assert row.metrics["recall@5"] == result.recall[5]
    assert (row.protocol, row.selection, row.config["centered"]) == ("retrieval (leave one out)", "fixed", True)
    assert retrieval(train, test, gallery="train").to_row().protocol == "retrieval (training gallery)"


def test_bad_options_are_refused(planted: Make) -> None:
    train, test = planted(3, seed=1), planted(3, seed=2)
    with pytest.raises(ValueError, match="gallery must be one of"):
        retrieval(train, test, gallery="both")  # type: ignore[arg-type]
    for ranks in ((), (0,), (12,)):
        with pytest.raises(ValueError, match="ranks must be between 1 and the 11 items"):
            retrieval(train, test, ranks=ranks)
    with pytest.raises(ValueError, match="agree in pooling"):
        retrieval(train, replace(test, pooling="mean"))
