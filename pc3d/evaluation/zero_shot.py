"""Zero-shot classification: the class whose text is nearest, without any training on the classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pc3d.evaluation.features import Features
from pc3d.evaluation.metrics import Scores, scores
from pc3d.evaluation.result import percent, points_in_words, span, versions
from pc3d.evaluation.rows import Row, data_hash

RANKS = (1, 3, 5)


@dataclass(frozen=True)
class ZeroShotResult:
    """Zero-shot scores with the whole protocol; all scores are fractions.

    Attributes:
        encoder: name of what computed the features of shapes.
        texts: what the class vectors were made from: tower and prompts.
        data: name of the data set and its split.
        test_hash: content hash, see :class:`pc3d.evaluation.Features`.
        num_test: labelled items that were scored.
        num_unlabelled: items left out because they have no label.
        num_points: points per cloud, of the largest; None for all.
        sampling: how they were taken.
        normalize: how clouds were centred and scaled.
        feature_dim: width of the space.
        num_classes: classes to choose from.
        top: K to the share of items whose class is among the K nearest.
        scores: of the nearest class alone, with the mean over the classes that occur.
        seed: of the bootstrap.
        versions: versions of the software.
    """

    encoder: str
    texts: str
    data: str
    test_hash: str
    num_test: int
    num_unlabelled: int
    num_points: int | None
    sampling: str
    normalize: str
    feature_dim: int
    num_classes: int
    top: dict[int, float]
    scores: Scores
    seed: int
    versions: dict[str, str] = field(default_factory=versions)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data, ready for JSON."""
        return asdict(self)

    def to_row(self, method: str | None = None, cost: dict[str, float] | None = None) -> Row:
        """The result as a row of a table, top-1 first.

        Args:
            method: name in the table; by default what computed the features.
            cost: see :class:`pc3d.evaluation.Row`.
        """
        return Row(
            method=method or self.encoder,
            protocol="zero-shot classification",
            selection="fixed",
            data=self.data,
            data_hash=data_hash("none", self.test_hash),
            seed=self.seed,
            metrics={
                **{f"top@{k}": value for k, value in self.top.items()},
                "mean_class_accuracy": self.scores.mean_class_accuracy,
            },
            num_train=0,
            num_test=self.num_test,
            config={
                name: getattr(self, name)
                for name in ("texts", "num_points", "sampling", "normalize", "feature_dim", "num_classes")
            },
            details={"encoder": self.encoder, "overall_interval": self.scores.overall_interval},
            versions=self.versions,
            cost=cost or {},
        )

    def __str__(self) -> str:
        points = points_in_words(self.num_points, self.sampling)
        frame = "as stored" if self.normalize == "none" else f"centred ({self.normalize}), scaled to the unit sphere"
        s = self.scores
        return "\n".join(
            [
                f"zero-shot classification by {self.encoder}",
                f"  data        {self.data}: {self.num_test} items [{self.test_hash}]; unlabelled and left out: "
                f"{self.num_unlabelled}",
                f"  shapes      {points} of each cloud, {frame}, {self.feature_dim} dimensions",
                f"  classes     {self.num_classes}, {self.texts}",
                f"  versions    {', '.join(f'{key} {value}' for key, value in self.versions.items())}",
                *(f"  top-{k:<3} {percent(value)}" for k, value in self.top.items()),
                f"  top-1 interval       {span(s.overall_interval)} (95 % Wilson)",
                f"  mean class accuracy  {percent(s.mean_class_accuracy)}  "
                f"(95 % bootstrap interval {span(s.mean_class_interval)})",
            ]
        )


def rank_classes(features: NDArray[Any], class_vectors: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Classes by descending cosine for each feature (ties: the first class first), and the cosines: both ``(n, C)``.

    Raises:
        ValueError: widths that differ, or a class vector that is not finite.
    """
    if features.ndim != 2 or class_vectors.ndim != 2 or features.shape[1] != class_vectors.shape[1]:
        raise ValueError(
            f"features and class_vectors must be (n, D) and (C, D), got {features.shape} and {class_vectors.shape}"
        )
    if not np.isfinite(class_vectors).all():
        bad = int(np.flatnonzero(~np.isfinite(class_vectors).all(axis=1))[0])
        raise ValueError(f"class_vectors of class {bad} are not finite numbers: look at its text, or at the tower")
    units = [
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (features, class_vectors)
    ]
    cosine = units[0].astype(np.float64) @ units[1].astype(np.float64).T
    order = np.argsort(-cosine, axis=1, kind="stable")
    return order.astype(np.int64), np.take_along_axis(cosine, order, axis=1)


def zero_shot(
    test: Features,
    class_vectors: NDArray[Any],
    *,
    texts: str = "unnamed",
    ranks: Sequence[int] = RANKS,
    seed: int = 0,
) -> ZeroShotResult:
    """Classify every labelled item by its nearest class texts, and score the result.

    Args:
        test: features in the space of the texts, such as of ``aligned.view("text")``.
        class_vectors: ``(C, D)`` one per class, in the order of the labels (:func:`pc3d.image.prompt_ensemble`).
        texts: what made them, for reports.
        ranks: K of top-K; those above C are left out.
        seed: of the bootstrap.

    Raises:
        ValueError: no labelled item, a label without vector, or widths that differ.
    """
    values, labels = test.labelled()
    if labels.max() >= len(class_vectors):
        raise ValueError(f"labels go up to {labels.max()}, but there are {len(class_vectors)} class_vectors")
    order, _ = rank_classes(values, class_vectors)
    hit = order == labels[:, None]
    return ZeroShotResult(
        encoder=test.encoder,
        texts=texts,
        data=f"{test.data} {test.split}".strip(),
        test_hash=test.content_hash,
        num_test=len(labels),
        num_unlabelled=test.num_unlabelled,
        num_points=test.num_points,
        sampling=test.sampling,
        normalize=test.normalize,
        feature_dim=int(values.shape[1]),
        num_classes=len(class_vectors),
        top={k: float(hit[:, :k].any(1).mean()) for k in ranks if k <= len(class_vectors)},
        scores=scores(labels, order[:, 0], test.classes, seed=seed),
        seed=seed,
    )
