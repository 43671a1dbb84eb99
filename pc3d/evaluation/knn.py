"""Nearest neighbours among frozen features."""

from __future__ import annotations

from collections.abc import Sequence

from pc3d.evaluation.features import Features
from pc3d.evaluation.probe import VALIDATION_FRACTION, Classifier, fewest_to_learn_from, probe
from pc3d.evaluation.result import ProbeResult

K_GRID = (1, 3, 5, 10, 20)
"""Numbers of neighbours that kNN is tuned over."""


def knn_probe(
    train: Features,
    test: Features,
    *,
    k: int = 5,
    protocol: str = "fixed",
    grid: Sequence[int] = K_GRID,
    seed: int = 0,
    validation_fraction: float = VALIDATION_FRACTION,
    progress: bool = False,
) -> ProbeResult:
    """Majority vote of the ``k`` nearest training features by cosine distance, votes weighted by inverse distance.

    Args:
        train: features of the training split.
        test: features of the test split.
        k: number of neighbours, used only by ``protocol="fixed"``.
        protocol: as in :func:`pc3d.evaluation.linear_svm`, for ``k`` instead of ``C``.
        grid: values that ``"tuned"``, ``"validation"`` and ``"legacy"`` try.
        seed: seed of the folds or the validation part, and of the bootstrap.
        validation_fraction: share of the training items that ``"validation"`` holds out.
        progress: show a bar on standard error while values are tried.

    Raises:
        ValueError: as :func:`pc3d.evaluation.linear_svm`; also ``k`` larger than the training split.
    """
    kind = Classifier(
        "kNN",
        "KNeighborsClassifier(metric='cosine', weights='distance')",
        "sklearn.neighbors",
        "KNeighborsClassifier",
        "n_neighbors",
        {"metric": "cosine", "weights": "distance"},
    )
    labelled = len(train) - train.num_unlabelled
    if protocol == "fixed" and not 1 <= k <= labelled:
        raise ValueError(f"k must be between 1 and the {labelled} labelled training items, got {k}")
    # What is held back, a fold or the validation part, cannot be among the neighbours.
    fewest = fewest_to_learn_from(kind, train, k, protocol, grid, seed, validation_fraction)
    usable = [value for value in grid if value <= fewest] or [1]
    return probe(kind, train, test, k, protocol, usable, False, seed, validation_fraction, progress)
