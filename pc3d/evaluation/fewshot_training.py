"""Few-shot classification by fine-tuning: the results of several episodes as one."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pc3d.evaluation.result import LEGACY_NOTE, percent, versions
from pc3d.evaluation.rows import Row, data_hash


@dataclass(frozen=True)
class FewShotTrainingResult:
    """Accuracies of classifiers that were each trained on a few objects, with the whole protocol.

    Attributes:
        mode: ``"full"``, ``"mlp3"`` or ``"linear"``.
        encoder: class of the encoder.
        start: where its weights came from.
        data: name of the data set.
        data_hash: of the contents of all episodes.
        way: classes per episode.
        num_train: training objects of an episode.
        num_test: test objects of an episode.
        preparation: what happened to an object before the model saw it.
        epochs: of each training, of which the last one counts.
        accuracies: of each episode, fractions.
        legacy: of each episode, at the best epoch on its test objects; None unless the runs evaluated it.
        seed: of the trainings.
        settings: of the trainings, as rows keep them.
        cost: of all trainings, as rows keep it.
        versions: of the software.
    """

    mode: str
    encoder: str
    start: str
    data: str
    data_hash: str
    way: int
    num_train: int
    num_test: int
    preparation: str
    epochs: int
    accuracies: tuple[float, ...]
    legacy: tuple[float, ...] | None
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=versions)

    @classmethod
    def of(cls, folds: list[dict[str, Any]]) -> FewShotTrainingResult:
        """From what :class:`pc3d.evaluation.ClassificationResult` keeps of each episode.

        Raises:
            ValueError: fewer than two episodes, or episodes of different sizes.
        """
        sizes = {(fold["num_train"], fold["num_test"], len(fold["scores"]["per_class_count"])) for fold in folds}
        if len(folds) < 2 or len(sizes) != 1:
            raise ValueError(
                f"there must be two or more episodes of one size, got {len(folds)} of the sizes {sorted(sizes)}"
            )
        (num_train, num_test, way), first = sizes.pop(), folds[0]
        legacy = [fold["selection"]["legacy"] for fold in folds]
        costs = [fold["cost"] for fold in folds]
        return cls(
            **{name: first[name] for name in ("mode", "encoder", "start", "data", "preparation", "seed", "settings")},
            data_hash=data_hash(*(_joined([fold[f"{side}_hash"] for fold in folds]) for side in ("train", "test"))),
            way=way,
            num_train=num_train,
            num_test=num_test,
            epochs=first["selection"]["epoch"],
            accuracies=tuple(fold["scores"]["overall_accuracy"] for fold in folds),
            legacy=tuple(found["test"] for found in legacy) if all(legacy) else None,
            cost={**costs[0], "cpu_seconds": sum(cost["cpu_seconds"] for cost in costs)},
        )

    @property
    def shot(self) -> int:
        """Training objects per class."""
        return self.num_train // self.way

    @property
    def mean(self) -> float:
        """Over the episodes."""
        return float(np.mean(self.accuracies))

    @property
    def standard_deviation(self) -> float:
        """Over the episodes; that of a sample (``ddof=1``)."""
        return float(np.std(self.accuracies, ddof=1))

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data, ready for JSON."""
        found = {"shot": self.shot, "mean": self.mean, "standard_deviation": self.standard_deviation}
        return {"task": "few-shot fine-tuning", **asdict(self), **found}

    def to_rows(self, method: str | None = None) -> list[Row]:
        """The result as rows of a table; a second one where the best test epochs are known.

        Args:
            method: name in the table; by default the encoder's class and how it started.
        """
        started = "from scratch" if self.start == "fresh weights" else "pre-trained"
        found = [("fixed", self.mean)]
        if self.legacy is not None:
            found.append(("legacy", float(np.mean(self.legacy))))
        return [
            Row(
                method=method or f"{self.encoder}, {started}",
                protocol=f"few-shot fine-tuning ({self.mode}) {self.way}-way {self.shot}-shot",
                selection=selection,
                data=self.data,
                data_hash=self.data_hash,
                seed=self.seed,
                metrics={"accuracy": mean},
                num_train=self.num_train,
                num_test=self.num_test,
                config={
                    "started": started,
                    "num_episodes": len(self.accuracies),
                    "preparation": self.preparation,
                    **self.settings,
                },
                details={
                    "start": self.start,
                    "accuracies": self.accuracies,
                    "standard_deviation_over_episodes": self.standard_deviation,
                },
                versions=self.versions,
                cost=self.cost,
            )
            for selection, mean in found
        ]

    def __str__(self) -> str:
        lines = [
            f"few-shot fine-tuning ({self.mode}), {self.way}-way {self.shot}-shot, with {self.encoder}, started from "
            f"{self.start}",
            f"  data        {self.data}: {len(self.accuracies)} episodes of {self.num_train} train and {self.num_test} "
            f"test objects [{self.data_hash}]",
            f"  objects     {self.preparation}; one view of each, no votes",
            f"  selection   epoch {self.epochs}, the last one: nothing was chosen on an episode",
            f"  seed        {self.seed}",
            f"  versions    {', '.join(f'{key} {value}' for key, value in self.versions.items())}",
            f"  accuracy    {percent(self.mean)} +/- {percent(self.standard_deviation)} (mean and sample standard "
            "deviation, ddof=1, over the episodes)",
        ]
        if self.legacy is not None:
            best = f"{percent(float(np.mean(self.legacy)))} +/- {percent(float(np.std(self.legacy, ddof=1)))}"
            lines += [f"  *** {LEGACY_NOTE} ***", f"  accuracy of the best test epoch of each episode: {best}"]
        return "\n".join(lines)


def _joined(hashes: list[str]) -> str:
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:16]
