"""Accuracy with confidence intervals, as every protocol reports it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pc3d._extras import require

Labels = NDArray[np.int64]
_RESAMPLES = 2000


@dataclass(frozen=True)
class Scores:
    """Classification scores on a test split; all values are fractions in [0, 1].

    Attributes:
        overall_accuracy: correct items over all items.
        overall_interval: its 95 % Wilson score interval (Wilson 1927).
        mean_class_accuracy: mean over the classes present in the test split of the accuracy within the class.
        mean_class_interval: its 95 % bootstrap interval: how far the mean strays when as many items are drawn in each
            class, each correct at the rate that the class would have after one more hit and one more miss. (Our choice.
            To resample the items themselves takes a class for certain of which all or none are correct, as of a single
            item always: with few items in a class, that is much too narrow.)
        per_class_accuracy: class name to accuracy, for the classes present.
        per_class_count: class name to number of test items.
        confusion: ``(K, K)`` counts; row is the true class, column the predicted one, in the order of
            ``confusion_classes``.
        confusion_classes: names of the K classes that are present or predicted; one that is only predicted has no
            ``per_class_accuracy``.
    """

    overall_accuracy: float
    overall_interval: tuple[float, float]
    mean_class_accuracy: float
    mean_class_interval: tuple[float, float]
    per_class_accuracy: dict[str, float]
    per_class_count: dict[str, int]
    confusion: list[list[int]]
    confusion_classes: list[str]


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion.

    Args:
        correct: number of successes.
        total: number of trials, at least 1.
        confidence: coverage.

    Raises:
        ValueError: ``total`` is not positive or ``correct`` is outside ``0..total``.
    """
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"correct must be in 0..total with total >= 1, got correct={correct}, total={total}")
    stats = require("scipy.stats", extra="train", purpose="the Wilson interval")
    interval = stats.binomtest(int(correct), int(total)).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def scores(truth: Labels, predicted: Labels, classes: tuple[str, ...] = (), *, seed: int = 0) -> Scores:
    """Score predictions against the truth.

    Args:
        truth: ``(n,)`` class indices, none negative.
        predicted: ``(n,)`` class indices.
        classes: class names; indices stand in where a name is missing.
        seed: seed of the bootstrap.

    Raises:
        ValueError: no items, shapes that differ, or a negative class in ``truth``.
    """
    if truth.ndim != 1 or truth.shape != predicted.shape or not truth.size:
        raise ValueError(f"truth and predicted must be (n,) with n >= 1, got {truth.shape} and {predicted.shape}")
    if truth.min() < 0:
        raise ValueError("truth holds unlabelled items (-1): leave them out before scoring")
    metrics = require("sklearn.metrics", extra="train", purpose="the metrics of a probe")
    present = np.unique(truth)
    known = np.union1d(present, predicted)
    confusion: Any = metrics.confusion_matrix(truth, predicted, labels=known)
    names = {int(k): classes[k] if k < len(classes) else str(k) for k in known}
    hits = truth == predicted
    per_class = {names[int(k)]: float(hits[truth == k].mean()) for k in present}
    return Scores(
        overall_accuracy=float(metrics.accuracy_score(truth, predicted)),
        overall_interval=wilson_interval(int(hits.sum()), int(hits.size)),
        mean_class_accuracy=float(np.mean(list(per_class.values()))),
        mean_class_interval=_class_mean_interval([hits[truth == k] for k in present], seed),
        per_class_accuracy=per_class,
        per_class_count={names[int(k)]: int((truth == k).sum()) for k in present},
        confusion=[[int(count) for count in row] for row in confusion],
        confusion_classes=[names[int(k)] for k in known],
    )


def _class_mean_interval(hits: list[NDArray[np.bool_]], seed: int) -> tuple[float, float]:
    # Drawn within the class, every class is in every draw: some have a single test item.
    generator = np.random.default_rng(seed)
    size = np.array([h.size for h in hits])
    rate = (np.array([h.sum() for h in hits]) + 1) / (size + 2)
    strayed = (generator.binomial(size, rate, (_RESAMPLES, size.size)) / size - rate).mean(axis=1)
    low, high = np.mean([h.mean() for h in hits]) + np.percentile(strayed, [2.5, 97.5])
    return max(float(low), 0.0), min(float(high), 1.0)
