"""The result of a probe, which prints the protocol that made it."""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import Any

from pc3d._extras import require
from pc3d.data.dataset import check_same_classes
from pc3d.evaluation.features import Features
from pc3d.evaluation.metrics import Scores
from pc3d.evaluation.rows import SELECTIONS, Row, data_hash

PROTOCOLS = SELECTIONS
LEGACY_NOTE = "LEGACY: selected on the test split; an upper envelope, not an estimate"


def versions() -> dict[str, str]:
    """Versions of what takes part in a probe."""
    import numpy
    import torch

    from pc3d._version import __version__

    sklearn = require("sklearn", extra="train", purpose="the probes")
    return {
        "pc3d": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "scikit-learn": sklearn.__version__,
    }


def points_in_words(num_points: int | None, sampling: str) -> str:
    """How many points of each cloud went in, see :class:`Features`."""
    if num_points is None:
        return "all points"
    taken = "drawn with replacement" if sampling == "replacement" else sampling
    return f"{'at most ' if sampling == 'random' else ''}{num_points} points ({taken})"


@dataclass(frozen=True, kw_only=True)
class FrozenResult(ABC):
    """Data and features of a result, common to all protocols on frozen features.

    Attributes:
        encoder: name of what computed the features.
        data: name of the data set.
        train_hash: content hash of the training split, see :class:`Features`.
        test_hash: content hash of the test split.
        num_train: labelled training items used.
        num_test: labelled test items used.
        num_unlabelled: training and test items left out because they have no label.
        num_points: points per cloud, None for all.
        sampling: how those points were taken, see :class:`Features`.
        normalize: how clouds were centred and scaled, see :class:`Features`.
        pooling: how tokens became one vector.
        feature_dim: length of that vector.
        seed: of what the protocol draws.
        versions: versions of the software.
    """

    encoder: str
    data: str
    train_hash: str
    test_hash: str
    num_train: int
    num_test: int
    num_unlabelled: tuple[int, int]
    num_points: int | None
    sampling: str
    normalize: str
    pooling: str
    feature_dim: int
    seed: int
    versions: dict[str, str] = field(default_factory=versions)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data, ready for JSON."""
        return asdict(self)

    def to_rows(self, method: str | None = None, cost: dict[str, float] | None = None) -> list[Row]:
        """The result as rows of a table, that of the protocol that was asked for first.

        Args:
            method: name in the table; by default what computed the features.
            cost: see :class:`pc3d.evaluation.Row`.
        """
        return [self.to_row(method, cost)]

    @abstractmethod
    def to_row(self, method: str | None = None, cost: dict[str, float] | None = None) -> Row:
        """The result as one row, see :meth:`to_rows`."""

    def describe_data(self) -> list[str]:
        """Two lines on data and features."""
        train, test = self.num_unlabelled
        points = points_in_words(self.num_points, self.sampling)
        frame = "as stored" if self.normalize == "none" else f"centred ({self.normalize}), scaled to the unit sphere"
        return [
            f"  data        {self.data}: {self.num_train} train [{self.train_hash}], "
            f"{self.num_test} test [{self.test_hash}]; unlabelled and left out: {train} train, {test} test",
            f"  features    {points} of each cloud, {frame}, pooling {self.pooling}, {self.feature_dim} dimensions, "
            "no masking, no augmentation",
        ]

    def describe_versions(self) -> str:
        """A line on the software."""
        return f"  versions    {', '.join(f'{key} {value}' for key, value in self.versions.items())}"

    def feature_settings(self) -> dict[str, Any]:
        """How the features were made."""
        names = ("num_points", "sampling", "normalize", "pooling", "feature_dim")
        return {name: getattr(self, name) for name in names}

    def row_fields(self, method: str | None, cost: dict[str, float] | None) -> dict[str, Any]:
        """The fields of a row that all these results fill alike."""
        return {
            "method": method or self.encoder,
            "data": self.data,
            "data_hash": data_hash(self.train_hash, self.test_hash),
            "seed": self.seed,
            "num_train": self.num_train,
            "num_test": self.num_test,
            "versions": self.versions,
            "cost": cost or {},
        }


@dataclass(frozen=True, kw_only=True)
class ProbeResult(FrozenResult):
    """Scores of a classifier on frozen features, with the whole protocol.

    Attributes:
        task: ``"linear SVM"``, ``"logistic regression"``, ``"kNN"`` or ``"MLP-3"``.
        classifier: the classifier in scikit-learn's words.
        parameter: name and value of the classifier's free parameter, for example ``("C", 0.012)``.
        protocol: ``"fixed"``, ``"tuned"``, ``"validation"`` or ``"legacy"``.
        selection: how the parameter's value was found, in words.
        tried: the values that it was chosen from; empty where it was fixed.
        standardized: whether features were scaled to zero mean and unit variance on the training split.
        scores: the scores; the seed is that of the folds, the classifier and the bootstrap.
        honest: beside ``"legacy"``, what ``"validation"`` gives on the same features; None for the others.
    """

    task: str
    classifier: str
    parameter: tuple[str, float]
    protocol: str
    selection: str
    tried: tuple[float, ...]
    standardized: bool
    scores: Scores
    honest: ProbeResult | None = None

    def to_rows(self, method: str | None = None, cost: dict[str, float] | None = None) -> list[Row]:
        """The result as rows of a table: with ``"legacy"`` also the one that did not look at the test split.

        Args:
            method: name in the table; by default what computed the features.
            cost: see :class:`pc3d.evaluation.Row`.
        """
        beside = [] if self.honest is None else self.honest.to_rows(method, cost)
        return [self.to_row(method, cost), *beside]

    def to_row(self, method: str | None = None, cost: dict[str, float] | None = None) -> Row:
        """The result as a row of a table.

        Args:
            method: name in the table; by default what computed the features.
            cost: see :class:`pc3d.evaluation.Row`.
        """
        name, value = self.parameter
        choice = {name: value} if self.protocol == "fixed" else {"tried": self.tried}
        return Row(
            **self.row_fields(method, cost),
            protocol=self.task,
            selection=self.protocol,
            metrics={
                "overall_accuracy": self.scores.overall_accuracy,
                "mean_class_accuracy": self.scores.mean_class_accuracy,
            },
            config={
                **self.feature_settings(),
                "classifier": self.classifier,
                "standardized": self.standardized,
                **choice,
            },
            details={
                "encoder": self.encoder,
                name: value,
                "selection": self.selection,
                "overall_interval": self.scores.overall_interval,
                "mean_class_interval": self.scores.mean_class_interval,
            },
        )

    def _note_on_one_class(self) -> list[str]:
        unscaled = not self.standardized and self.task == "linear SVM"
        said = only_class(self.scores)
        return [] if said is None else [note_on_one_class(said, UNSCALED if unscaled else ": look at the features")]

    def __str__(self) -> str:
        name, value = self.parameter
        lines = [
            *([f"*** {LEGACY_NOTE} ***"] if self.protocol == "legacy" else []),
            f"{self.task} on frozen features of {self.encoder}",
            *self.describe_data(),
            f"  classifier  {self.classifier}, {name} = {value:g}"
            f"{', features standardised on train' if self.standardized else ', features as they are'}",
            f"  selection   {self.selection}",
            f"  seed        {self.seed}",
            self.describe_versions(),
            *_describe_scores(self.scores),
            *self._note_on_one_class(),
        ]
        if self.honest is not None:
            name, value = self.honest.parameter
            lines += [
                "  beside it, chosen without the test split:",
                f"  selection   {name} = {value:g}; {self.honest.selection}",
                *_describe_scores(self.honest.scores),
            ]
        return "\n".join(lines)


UNSCALED = ", because features may be too small for it as they are: pc3d probe --standardize true scales them"
"""What to do about a linear SVM on unscaled features, see :func:`note_on_one_class`."""


def only_class(scores: Scores) -> str | None:
    """The class that every test item is said to be of, although there are others; None where several are named."""
    columns = zip(scores.confusion_classes, zip(*scores.confusion, strict=True), strict=True)
    said = [name for name, counts in columns if any(counts)]
    return said[0] if len(said) == 1 and len(scores.per_class_count) > 1 else None


def note_on_one_class(name: str, remedy: str) -> str:
    """A line on a classifier that tells no classes apart, whose accuracy is the share of one class.

    Args:
        name: of the class that it gives to every test item.
        remedy: what to do about it.
    """
    return f"  note        every test item is said to be of one class, {name!r}{remedy}"


def _describe_scores(scores: Scores) -> list[str]:
    overall, mean = scores.overall_accuracy, scores.mean_class_accuracy
    return [
        f"  overall accuracy     {percent(overall)}  (95 % Wilson interval {span(scores.overall_interval)})",
        f"  mean class accuracy  {percent(mean)}  (95 % bootstrap interval {span(scores.mean_class_interval)})",
    ]


def percent(fraction: float) -> str:
    """``0.5`` to ``"50.0 %"``."""
    return f"{100 * fraction:.1f} %"


def span(interval: tuple[float, float]) -> str:
    """An interval of fractions, in percent."""
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def data_fields(train: Features, test: Features) -> dict[str, Any]:
    """The fields of a result that come from the two splits.

    Raises:
        ValueError: the splits were encoded differently, or their classes differ.
    """
    check_same_classes({"train": train.classes, "test": test.classes})
    for name in ("num_points", "sampling", "normalize", "pooling"):
        ours, theirs = getattr(train, name), getattr(test, name)
        if name == "num_points" and train.sampling == "random" and None not in (ours, theirs):
            continue  # of the largest cloud of each
        if ours != theirs:
            raise ValueError(f"train and test must agree in {name}, got {ours!r} and {theirs!r}")
    if train.values.shape[1] != test.values.shape[1]:
        raise ValueError(
            f"train and test must have features of one length, got {train.values.shape[1]} and {test.values.shape[1]}"
        )
    return {
        "encoder": train.encoder,
        "data": train.data,
        "train_hash": train.content_hash,
        "test_hash": test.content_hash,
        "num_train": len(train) - train.num_unlabelled,
        "num_test": len(test) - test.num_unlabelled,
        "num_unlabelled": (train.num_unlabelled, test.num_unlabelled),
        "num_points": max((train.num_points, test.num_points), key=lambda points: points or 0),
        "sampling": train.sampling,
        "normalize": train.normalize,
        "pooling": train.pooling,
        "feature_dim": int(train.values.shape[1]),
    }
