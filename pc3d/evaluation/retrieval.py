"""Retrieval on frozen features, scored by class, without any training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pc3d.evaluation.features import Features, Labels
from pc3d.evaluation.result import FrozenResult, data_fields, percent, span
from pc3d.evaluation.rows import Row

Gallery = Literal["test", "train"]
RANKS = (1, 5, 10)
_QUERIES = 1024  # at a time
_RESAMPLES = 2000
_WORDS = {"test": "every test item against the other test items", "train": "every test item against the training items"}


@dataclass(frozen=True, kw_only=True)
class RetrievalResult(FrozenResult):
    """Retrieval scores with the whole protocol; all scores are fractions, means over the queries.

    Attributes:
        gallery: ``"test"`` (leave one out) or ``"train"``.
        centered: whether the mean training feature was subtracted before computing the cosines.
        num_queries: test items used as queries.
        num_without_match: labelled test items left out because the gallery has nothing of their class.
        num_excluded: near-identical items that were removed from galleries, over all queries.
        mean_average_precision: mean over the queries of the average precision of the whole ranking.
        interval: its 95 % percentile bootstrap interval over the queries.
        recall: K to the share of queries with an item of their class among the first K.
        precision: K to the mean share of items of the query's class among the first K.

    The other fields are those of :class:`pc3d.evaluation.FrozenResult`; ``num_train`` and ``num_test`` count labelled
    items, ``num_unlabelled`` those that are neither asked about nor in a gallery.
    """

    gallery: Gallery
    centered: bool
    num_queries: int
    num_without_match: int
    num_excluded: int
    mean_average_precision: float
    interval: tuple[float, float]
    recall: dict[int, float]
    precision: dict[int, float]

    def to_row(self, method: str | None = None, cost: dict[str, float] | None = None) -> Row:
        """The result as a row of a table, mean average precision first.

        Args:
            method: name in the table; by default what computed the features.
            cost: see :class:`pc3d.evaluation.Row`.
        """
        recall = {f"recall@{k}": value for k, value in self.recall.items()}
        precision = {f"precision@{k}": value for k, value in self.precision.items()}
        return Row(
            **self.row_fields(method, cost),
            protocol=f"retrieval ({'leave one out' if self.gallery == 'test' else 'training gallery'})",
            selection="fixed",
            metrics={"map": self.mean_average_precision, **recall, **precision},
            config={**self.feature_settings(), "centered": self.centered},
            details={"encoder": self.encoder, "num_queries": self.num_queries, "map_interval": self.interval},
        )

    def __str__(self) -> str:
        left_out = f"; {self.num_without_match} test items without any match left out" if self.num_without_match else ""
        near = f"; near-identical items taken out {self.num_excluded} times" if self.num_excluded else ""
        centre = ", the mean training feature taken off" if self.centered else ""
        return "\n".join(
            [
                f"retrieval on frozen features of {self.encoder}",
                *self.describe_data(),
                f"  queries     {self.num_queries}, {_WORDS[self.gallery]}{left_out}{near}",
                f"  ranking     by cosine{centre}; equal ones as in the data set; nothing is trained or chosen",
                self.describe_versions(),
                f"  mean average precision  {percent(self.mean_average_precision)}  "
                f"(95 % bootstrap interval {span(self.interval)})",
                *(f"  recall@{k:<5} {percent(value)}" for k, value in self.recall.items()),
                *(f"  precision@{k:<2} {percent(value)}" for k, value in self.precision.items()),
            ]
        )


def retrieval(
    train: Features,
    test: Features,
    *,
    gallery: Gallery = "test",
    center: bool = False,
    ranks: Sequence[int] | None = None,
    seed: int = 0,
) -> RetrievalResult:
    """Rank a gallery by cosine for every test item, and score how early items of its class come.

    An item is relevant to a query of the same class. The query itself never counts, and near-identical items (the same
    ``groups``) neither as hits nor as misses: they are removed from the ranking. A query whose class has no other item
    in the gallery has no average precision and is left out, which the result counts.

    With r_1 < r_2 < ... the ranks of the R relevant items, the average precision is the mean of i / r_i, which is what
    ``sklearn.metrics.average_precision_score`` computes where no two similarities are equal. Recall at K is, as in
    metric learning, the share of queries with at least one relevant item among the first K.

    Args:
        train: features of the training split: the gallery, or only the source of the mean.
        test: features of the test split: the queries.
        gallery: ``"test"`` ranks the other test items, ``"train"`` the training items. Splits are taken to share no
            near-identical items, so groups count within the test split alone.
        center: subtract the mean training feature first. Features of a network with a final ReLU or a large common
            offset all point in a similar direction, and without this the angles between them say little.
        ranks: the K of recall and precision; by default 1, 5 and 10, those of them that no gallery is too small for.
        seed: seed of the bootstrap.

    Raises:
        ValueError: an unknown gallery, a rank beyond the gallery, no query with a match, or splits that do not match.
    """
    if gallery not in _WORDS:
        raise ValueError(f"gallery must be one of {tuple(_WORDS)}, got {gallery!r}")
    fields = data_fields(train, test)
    mean = train.values.mean(0, dtype=np.float64) if center else 0.0
    (x, y), groups = test.labelled(), test.labelled_groups()
    items, classes = (x, y) if gallery == "test" else train.labelled()
    unique = np.arange(len(y)) if groups is None else groups
    excluded = (lambda rows: unique[rows, None] == unique[None]) if gallery == "test" else None
    found = list(_rankings(_unit(x - mean), y, _unit(items - mean), classes, excluded))
    matched = [hits for hits, _ in found if hits.any()]
    if not matched:
        raise ValueError(f"no test item of {test.data} has another item of its class in the gallery")
    shortest = min(hits.size for hits in matched)
    if ranks is None:
        ranks = [k for k in RANKS if k <= shortest]
    if not ranks or min(ranks) < 1 or max(ranks) > shortest:
        raise ValueError(f"ranks must be between 1 and the {shortest} items that every gallery has, got {list(ranks)}")
    precisions = np.array([average_precision(hits) for hits in matched])
    generator = np.random.default_rng(seed)
    resampled = [generator.choice(precisions, precisions.size).mean() for _ in range(_RESAMPLES)]
    low, high = np.percentile(resampled, [2.5, 97.5])
    return RetrievalResult(
        **fields,
        gallery=gallery,
        centered=center,
        num_queries=len(matched),
        num_without_match=len(found) - len(matched),
        num_excluded=sum(count for _, count in found),
        mean_average_precision=float(precisions.mean()),
        interval=(float(low), float(high)),
        recall={k: float(np.mean([hits[:k].any() for hits in matched])) for k in ranks},
        precision={k: float(np.mean([hits[:k].mean() for hits in matched])) for k in ranks},
        seed=seed,
    )


def average_precision(hits: NDArray[np.bool_]) -> float:
    """Mean over the relevant items of the share of relevant items among all items up to it.

    Args:
        hits: ``(n,)`` whether the item at each rank is relevant, best first; at least one is.
    """
    ranks = np.flatnonzero(hits) + 1
    return float(np.mean(np.arange(1, ranks.size + 1) / ranks))


def _unit(values: NDArray[Any]) -> NDArray[np.float64]:
    wide = np.asarray(values, dtype=np.float64)
    # A feature of length zero has no direction: its cosine with everything is taken as 0.
    unit: NDArray[np.float64] = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(float).tiny)
    return unit


def _rankings(
    queries: NDArray[np.float64], labels: Labels, items: NDArray[np.float64], classes: Labels, excluded: Any
) -> Iterator[tuple[NDArray[np.bool_], int]]:
    """For each query, whether its ranked gallery items are of its class, and how many near-identical were taken out."""
    for start in range(0, len(queries), _QUERIES):
        rows = np.arange(start, min(start + _QUERIES, len(queries)))
        order = np.argsort(-(queries[rows] @ items.T), axis=1, kind="stable")
        relevant = np.take_along_axis(classes[None] == labels[rows, None], order, axis=1)
        out = np.zeros_like(relevant) if excluded is None else np.take_along_axis(excluded(rows), order, axis=1)
        for hits, gone in zip(relevant, out, strict=True):
            # In its own split a query is of its own group.
            yield hits[~gone], int(gone.sum()) - (excluded is not None)
