"""Common parts of the probes: a classifier with one free parameter, and the ways to choose it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pc3d._extras import require
from pc3d._progress import progress_bar, track
from pc3d.data import validation_mask
from pc3d.evaluation.features import Array, Features, Labels
from pc3d.evaluation.metrics import scores
from pc3d.evaluation.result import LEGACY_NOTE, PROTOCOLS, ProbeResult, data_fields

C_GRID = (0.001, 0.003, 0.01, 0.012, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Inverse regularisations that linear classifiers are tuned over."""
FOLDS = 5
VALIDATION_FRACTION = 0.2


@dataclass(frozen=True)
class Classifier:
    """A scikit-learn classifier with one free parameter; with ``unit_length`` on features of length 1."""

    task: str
    text: str
    module: str
    name: str
    parameter: str
    options: dict[str, Any]
    unit_length: bool = False

    def build(self, value: float, standardize: bool) -> Any:
        kind = getattr(require(self.module, extra="train", purpose=f"the {self.task} probe"), self.name)
        model = kind(**{self.parameter: value}, **self.options)
        preprocessing = require("sklearn.preprocessing", extra="train")
        steps = [preprocessing.StandardScaler()] if standardize else []
        steps += [preprocessing.Normalizer()] if self.unit_length else []
        return require("sklearn.pipeline", extra="train").make_pipeline(*steps, model) if steps else model


def probe(
    kind: Classifier,
    train: Features,
    test: Features,
    value: float,
    protocol: str,
    grid: Sequence[float],
    standardize: bool,
    seed: int,
    validation_fraction: float = VALIDATION_FRACTION,
    progress: bool = False,
) -> ProbeResult:
    fields, tried = data_fields(train, test), () if protocol == "fixed" else tuple(float(v) for v in grid)
    (x, y), (x_test, y_test) = train.labelled(), test.labelled()
    _check(kind, y, value, protocol, grid)
    if protocol == "fixed":
        selection = f"{kind.parameter} = {value:g} fixed beforehand"
    elif protocol == "tuned":
        value, selection = cross_validated(
            kind, x, y, grid, standardize, seed, train.labelled_groups(), progress=progress
        )
    elif protocol == "validation":
        value, selection = validated(
            kind,
            x,
            y,
            grid,
            standardize,
            seed,
            train.labelled_groups(),
            fraction=validation_fraction,
            progress=progress,
        )
    else:
        values = track(grid, f"try {kind.parameter}", "fits", visible=progress)
        accuracy = [kind.build(v, standardize).fit(x, y).score(x_test, y_test) for v in values]
        value = grid[int(np.argmax(accuracy))]
        selection = f"{LEGACY_NOTE} ({kind.parameter} out of {_list(grid)} by test accuracy)"
    predicted = kind.build(value, standardize).fit(x, y).predict(x_test)
    honest = (kind, train, test, value, "validation", grid, standardize, seed, validation_fraction, progress)
    return ProbeResult(
        **fields,
        task=kind.task,
        classifier=kind.text,
        parameter=(kind.parameter, float(value)),
        protocol=protocol,
        selection=selection,
        tried=tried,
        standardized=standardize,
        seed=seed,
        scores=scores(y_test, predicted, train.classes, seed=seed),
        honest=probe(*honest) if protocol == "legacy" else None,
    )


def fewest_to_learn_from(
    kind: Classifier,
    train: Features,
    value: float,
    protocol: str,
    grid: Sequence[float],
    seed: int,
    validation_fraction: float,
) -> int:
    """The smallest number of items that :func:`probe` fits the classifier to while it chooses, with these arguments.

    Raises:
        ValueError: as :func:`probe`.
    """
    (_, y), groups = train.labelled(), train.labelled_groups()
    _check(kind, y, value, protocol, grid)
    if protocol == "tuned":
        return min(len(rows) for rows, _ in _folds(y, groups, seed))
    held_out = 0 if protocol == "fixed" else int(validation_mask(y, groups, validation_fraction, seed).sum())
    return len(y) - held_out


def _check(kind: Classifier, y: Labels, value: float, protocol: str, grid: Sequence[float]) -> None:
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {PROTOCOLS}, got {protocol!r}")
    if protocol == "fixed" and not value > 0:
        raise ValueError(f"{kind.parameter} must be positive, got {value}")
    if protocol != "fixed" and (not len(grid) or not min(grid) > 0):
        raise ValueError(f"grid must hold positive values of {kind.parameter}, got {list(grid)}")
    if np.unique(y).size < 2:
        raise ValueError(f"the training split has items of one class only ({int(y[0])}): a probe needs at least two")


def cross_validated(
    kind: Classifier,
    x: Array,
    y: Labels,
    grid: Sequence[float],
    standardize: bool,
    seed: int,
    groups: Labels | None = None,
    *,
    progress: bool = False,
) -> tuple[float, str]:
    """The grid value with the best cross-validation accuracy on the training features, and a sentence on how.

    Raises:
        ValueError: the items of ``groups`` cannot be shared out among folds that leave two classes to train on.
    """
    smallest = int(np.unique(y, return_counts=True)[1].min())
    splits = _folds(y, groups, seed)
    accuracy = _tried(kind, x, y, grid, standardize, splits, progress)
    best = int(np.argmax(accuracy))
    sentence = (
        f"{kind.parameter} out of {_list(grid)} by stratified {len(splits)}-fold cross-validation on the training "
        f"features ({'' if groups is None else 'folds keep near-identical objects together; '}"
        f"accuracy {100 * accuracy[best]:.1f} %; smallest class {smallest}); the test split was not looked at"
    )
    return grid[best], sentence


def validated(
    kind: Classifier,
    x: Array,
    y: Labels,
    grid: Sequence[float],
    standardize: bool,
    seed: int,
    groups: Labels | None = None,
    *,
    fraction: float = VALIDATION_FRACTION,
    progress: bool = False,
) -> tuple[float, str]:
    """The grid value with the best accuracy on a validation part of the training features, and a sentence on how.

    The part is that of :func:`pc3d.data.split_train_validation` for the seed; the classifier that is judged learns
    from all training features again.

    Raises:
        ValueError: ``fraction`` is out of range, or the split leaves one class to train on.
    """
    held_out = validation_mask(y, groups, fraction, seed)
    if np.unique(y[~held_out]).size < 2:
        raise ValueError(
            "the validation split leaves training items of one class only, because the items of the other classes are "
            "too few or near-identical: use protocol='fixed'"
        )
    split = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    accuracy = _tried(kind, x, y, grid, standardize, [split], progress)
    best = int(np.argmax(accuracy))
    sentence = (
        f"{kind.parameter} out of {_list(grid)} by accuracy on {int(held_out.sum())} items held out of the training "
        f"split (share {fraction:g}, seed {seed}{'' if groups is None else ', near-identical objects on one side'}; "
        f"accuracy {100 * accuracy[best]:.1f} %), then trained on all of it; the test split was not looked at"
    )
    return grid[best], sentence


def _tried(
    kind: Classifier,
    x: Array,
    y: Labels,
    grid: Sequence[float],
    standardize: bool,
    splits: Sequence[tuple[Labels, Labels]],
    progress: bool,
) -> list[float]:
    """Accuracy with each value: the mean over splits, each of rows to learn from and rows to score on."""
    accuracy = []
    with progress_bar(len(grid) * len(splits), f"try {kind.parameter}", "fits", visible=progress) as advance:
        for value in grid:
            scored = []
            for a, b in splits:
                scored.append(kind.build(value, standardize).fit(x[a], y[a]).score(x[b], y[b]))
                advance(1)
            accuracy.append(float(np.mean(scored)))
    return accuracy


def _folds(y: Labels, groups: Labels | None, seed: int) -> list[tuple[Labels, Labels]]:
    """Training and validation rows of each fold, stratified by class, a group never in both."""
    selection = require("sklearn.model_selection", extra="train", purpose="cross-validation")
    # How many folds the rarest class can be in.
    units = np.arange(y.size) if groups is None else groups
    spread = min(np.unique(units[y == k]).size for k in np.unique(y))
    kind = selection.StratifiedKFold if groups is None else selection.StratifiedGroupKFold
    splitter = kind(n_splits=max(2, min(FOLDS, spread)), shuffle=True, random_state=seed)
    if groups is not None and np.unique(groups).size < 2:
        raise ValueError("all labelled training items are of one group of near-identical ones: use protocol='fixed'")
    if np.unique(y, return_counts=True)[1].max() < 2:
        raise ValueError("every class has a single training item, so no fold can be spared: use protocol='fixed'")
    with warnings.catch_warnings():
        # A class with a single item cannot be in every fold; the protocol says how small the smallest is.
        warnings.filterwarnings("ignore", message="The least populated class")
        splits: list[tuple[Labels, Labels]] = list(splitter.split(y[:, None], y, groups))
    if any(np.unique(y[rows]).size < 2 for rows, _ in splits):
        raise ValueError(
            "a fold of the cross-validation has training items of one class only, because the items of the other "
            "classes are too few or near-identical: use protocol='fixed'"
        )
    return splits


def _list(grid: Sequence[float]) -> str:
    return "{" + ", ".join(f"{value:g}" for value in grid) + "}"
