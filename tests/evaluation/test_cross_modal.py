"""Recall of shapes by texts and pictures."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from pc3d.evaluation import CrossModalRecall, cross_modal_recall


def test_recall_and_median_rank_by_hand() -> None:
    similarity = np.array([[0.9, 0.1, 0.2, 0.3], [0.4, 0.8, 0.6, 0.5], [0.1, 0.2, 0.3, 0.3], [0.5, 0.6, 0.7, 0.8]])
    relevant = np.eye(4, dtype=bool)
    relevant[3] = [True, True, False, False]
    # First relevant shapes: rank 1; rank 1; tied with another, so rank 2; 0.6 after 0.7 and 0.8, rank 3.
    found = cross_modal_recall(similarity, relevant, (1, 2, 3))
    assert found.recall == {1: 0.5, 2: 0.75, 3: 1.0}
    assert found.median_rank == 1.5
    assert (found.num_queries, found.num_shapes) == (4, 4)
    assert found.interval[1][0] < 0.5 < found.interval[1][1]


@pytest.mark.parametrize(("total", "answers", "k"), [(6, 1, 2), (6, 2, 3), (5, 4, 2), (7, 3, 1)])
def test_chance_is_the_share_of_all_draws(total: int, answers: int, k: int) -> None:
    draws = list(combinations(range(total), k))
    expected = sum(min(draw) < answers for draw in draws) / len(draws)
    relevant = np.arange(total)[None] < answers
    assert cross_modal_recall(np.zeros((1, total)), relevant, (k,)).chance[k] == pytest.approx(expected)


def test_it_reads_as_a_table() -> None:
    found = CrossModalRecall({1: 0.125, 10: 1.0}, {1: (0.02, 0.4), 10: (0.7, 1.0)}, {1: 0.05, 10: 0.5}, 2.5, 8, 20)
    assert str(found).splitlines() == [
        "8 queries, 20 shapes: a right one is among the",
        "  first 1     12.5 % (95 % interval 2.0 to 40.0 %), chance 5.0 %",
        "  first 10   100.0 % (95 % interval 70.0 to 100.0 %), chance 50.0 %",
        "  median rank of the first right one: 2.5",
    ]


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must both be \(Q, N\), not empty, got \(2, 3\) and \(2, 2\)"):
        cross_modal_recall(np.zeros((2, 3)), np.ones((2, 2), bool))
    with pytest.raises(ValueError, match="query 1 has no relevant shape"):
        cross_modal_recall(np.zeros((2, 2)), np.array([[True, False], [False, False]]), (1,))
    unknown = np.array([[1.0, 0.0], [np.nan, 0.0]])
    with pytest.raises(ValueError, match="similarity of query 1 is not a number"):
        cross_modal_recall(unknown, np.eye(2, dtype=bool), (1,))
    with pytest.raises(ValueError, match=r"ranks must be between 1 and the 2 shapes, got \[1, 5, 10\]"):
        cross_modal_recall(np.zeros((2, 2)), np.eye(2, dtype=bool))
