"""Few-shot draws and their average."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from pc3d.evaluation import Features, draw_episodes, few_shot

Make = Callable[..., Features]


def test_episodes_have_the_asked_shape_and_no_repeats(planted: Make) -> None:
    train, test = planted(12, 8, seed=1, unlabelled=9), planted(10, 8, seed=2)
    for episode in draw_episodes(train.labels, test.labels, way=5, shot=3, num_queries=4, num_episodes=10):
        assert np.unique(episode.classes).size == 5
        assert np.unique(episode.support).size == 15
        assert np.unique(episode.query).size == 20
        assert (train.labels[episode.support] == np.repeat(episode.classes, 3)).all()
        assert (test.labels[episode.query] == np.repeat(episode.classes, 4)).all()


def test_episodes_differ_and_follow_the_seed(planted: Make) -> None:
    labels = planted(12, 8).labels

    def draws(seed: int) -> list[list[int]]:
        options = {"way": 5, "shot": 3, "num_queries": 4, "num_episodes": 4, "seed": seed}
        return [episode.support.tolist() for episode in draw_episodes(labels, labels, **options)]

    assert draws(0) == draws(0)
    assert draws(0) != draws(1)
    assert len({tuple(support) for support in draws(0)}) == 4


def test_planted_classes_are_found(planted: Make) -> None:
    train, test = planted(seed=1, signal=40), planted(seed=2, signal=40)
    result = few_shot(train, test, way=4, shot=5, num_queries=6, standardize=False)
    assert result.mean == 1.0
    assert result.standard_deviation == 0.0
    assert len(result.accuracies) == result.num_episodes == 10


def test_noise_gives_chance(planted: Make) -> None:
    options = {"way": 5, "shot": 10, "num_queries": 20, "num_episodes": 20}
    result = few_shot(planted(30, 8, signal=0, seed=1), planted(30, 8, signal=0, seed=2), **options)
    # Chance is 0.2; the mean of 2,000 answers has a standard error of 0.009, within classes somewhat more.
    assert result.mean == pytest.approx(0.2, abs=0.04)


def test_mean_and_sample_deviation(planted: Make) -> None:
    result = few_shot(planted(seed=1, signal=1.0), planted(seed=2, signal=1.0), way=4, shot=2, num_queries=6)
    n, mean = len(result.accuracies), sum(result.accuracies) / len(result.accuracies)
    variance = sum((a - mean) ** 2 for a in result.accuracies) / (n - 1)
    assert variance > 0
    assert result.mean == pytest.approx(mean)
    assert result.standard_deviation == pytest.approx(variance**0.5)
    assert "sample standard deviation, ddof=1" in str(result)


def test_given_episodes_are_used(planted: Make) -> None:
    train, test = planted(12, 8, seed=1), planted(12, 8, seed=2)
    episodes = draw_episodes(train.labels, test.labels, way=3, shot=4, num_queries=5, num_episodes=6, seed=9)
    given = few_shot(train, test, episodes=episodes)
    drawn = few_shot(train, test, way=3, shot=4, num_queries=5, num_episodes=6, seed=9)
    assert given.accuracies == drawn.accuracies
    assert (given.way, given.shot, given.num_queries, given.num_episodes) == (3, 4, 5, 6)


def test_too_few_items_say_what_would_do(planted: Make) -> None:
    train, test = planted(12, 8, seed=1), planted(6, 8, seed=2)
    with pytest.raises(ValueError, match=r"0 of 8 have them; num_queries=6 is the largest that leaves 5"):
        few_shot(train, test, way=5, shot=10)
    with pytest.raises(ValueError, match="needs 9 classes"):
        few_shot(train, test, way=9, shot=2, num_queries=2)


def test_test_labels_only_score(planted: Make) -> None:
    """The classifier of a draw is fitted on its support items: mutated query features change no other answer."""
    train, test = planted(seed=1, signal=40), planted(seed=2, signal=40)
    broken = replace(test, values=np.zeros_like(test.values))
    assert few_shot(train, broken, way=4, shot=5, num_queries=6).mean == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"way": 1}, "way must be at least 2"),
        ({"shot": 0}, "shot must be at least 1"),
        ({"num_queries": 0}, "num_queries must be at least 1"),
        ({"num_episodes": 1}, "num_episodes must be at least 2"),
        ({"C": -1.0}, "C must be positive"),
        ({"episodes": []}, "at least two of one way"),
    ],
)
def test_bad_options_are_refused(options: dict[str, float], message: str, planted: Make) -> None:
    with pytest.raises(ValueError, match=message):
        few_shot(planted(seed=1), planted(seed=2), **options)  # type: ignore[arg-type]


def test_default_number_of_queries_is_twenty_or_what_there_is(planted: Make) -> None:
    train = planted(12, signal=40, seed=1)
    plenty = few_shot(train, planted(30, signal=40, seed=2), way=3, num_queries=None)
    assert (plenty.num_queries, plenty.fewer_queries) == (20, False)
    assert plenty.accuracies == few_shot(train, planted(30, signal=40, seed=2), way=3).accuracies
    test = planted(30, signal=40, seed=2)
    labels = np.concatenate([np.repeat(k, n) for k, n in enumerate((7, 5, 6, 102))])
    scarce = few_shot(train, replace(test, labels=labels), way=3, num_queries=None)
    assert (scarce.num_queries, scarce.num_eligible, scarce.fewer_queries) == (6, 3, True)
    with pytest.raises(ValueError, match="needs 3 classes with 13 training"):
        few_shot(train, test, way=3, shot=13, num_queries=None)
