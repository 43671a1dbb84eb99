"""A small multilayer perceptron on frozen features."""

from __future__ import annotations

from collections.abc import Sequence

from pc3d.evaluation.features import Features
from pc3d.evaluation.probe import VALIDATION_FRACTION, Classifier, probe
from pc3d.evaluation.result import ProbeResult

ALPHA_GRID = (1e-4, 1e-3, 1e-2, 1e-1)
"""Penalties that the perceptron is tuned over."""


def mlp_probe(
    train: Features,
    test: Features,
    *,
    alpha: float = 0.01,
    hidden: int = 256,
    protocol: str = "fixed",
    grid: Sequence[float] = ALPHA_GRID,
    standardize: bool = True,
    seed: int = 0,
    validation_fraction: float = VALIDATION_FRACTION,
    progress: bool = False,
) -> ProbeResult:
    """Fit three linear layers with two ReLU hidden layers (MLP-3), with L-BFGS until the loss converges.

    The widths are those of the three-layer head of the Point-MAE family. There, the head is trained for 300 epochs on
    augmented clouds, with batch norm and dropout. This probe sees one feature vector per cloud and is regularised by an
    L2 penalty instead, so its scores are not comparable with published "MLP-3" rows.

    Args:
        train: features of the training split.
        test: features of the test split.
        alpha: strength of the penalty, used only by ``protocol="fixed"``. Our default: no paper states one.
        hidden: width of both hidden layers.
        protocol: as in :func:`pc3d.evaluation.linear_svm`, for ``alpha`` instead of ``C``.
        grid: values that ``"tuned"``, ``"validation"`` and ``"legacy"`` try.
        standardize: scale each feature to zero mean and unit variance of the training split.
        seed: seed of the initial weights, of the folds or the validation part, and of the bootstrap.
        validation_fraction: share of the training items that ``"validation"`` holds out.
        progress: show a bar on standard error while values are tried.

    Raises:
        ValueError: as :func:`pc3d.evaluation.linear_svm`.
    """
    if hidden < 1:
        raise ValueError(f"hidden must be at least 1, got {hidden}")
    kind = Classifier(
        "MLP-3",
        f"MLPClassifier(hidden_layer_sizes=({hidden}, {hidden}), solver='lbfgs', max_iter=1000)",
        "sklearn.neural_network",
        "MLPClassifier",
        "alpha",
        {"hidden_layer_sizes": (hidden, hidden), "solver": "lbfgs", "max_iter": 1000, "random_state": seed},
    )
    return probe(kind, train, test, alpha, protocol, grid, standardize, seed, validation_fraction, progress)
