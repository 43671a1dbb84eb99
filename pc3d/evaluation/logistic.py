"""Logistic regression on frozen features."""

from __future__ import annotations

from collections.abc import Sequence

from pc3d.evaluation.features import Features
from pc3d.evaluation.probe import C_GRID, VALIDATION_FRACTION, Classifier, probe
from pc3d.evaluation.result import ProbeResult


def logistic_regression(
    train: Features,
    test: Features,
    *,
    C: float = 1.0,
    protocol: str = "fixed",
    grid: Sequence[float] = C_GRID,
    standardize: bool = True,
    seed: int = 0,
    validation_fraction: float = VALIDATION_FRACTION,
    progress: bool = False,
) -> ProbeResult:
    """Multinomial logistic regression with an L2 penalty, by L-BFGS.

    Args:
        train: features of the training split.
        test: features of the test split.
        C: inverse strength of the penalty, used only by ``protocol="fixed"``.
        protocol: as in :func:`pc3d.evaluation.linear_svm`.
        grid: values that ``"tuned"``, ``"validation"`` and ``"legacy"`` try.
        standardize: scale each feature to zero mean and unit variance of the training split.
        seed: seed of the folds or the validation part, and of the bootstrap.
        validation_fraction: share of the training items that ``"validation"`` holds out.
        progress: show a bar on standard error while values are tried.

    Raises:
        ValueError: as :func:`pc3d.evaluation.linear_svm`.
    """
    kind = Classifier(
        "logistic regression",
        "LogisticRegression(max_iter=2000)",
        "sklearn.linear_model",
        "LogisticRegression",
        "C",
        {"max_iter": 2000},
    )
    return probe(kind, train, test, C, protocol, grid, standardize, seed, validation_fraction, progress)
