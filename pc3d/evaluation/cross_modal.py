"""Recall of shapes by text or picture: how often the right shape is among the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lgamma

import numpy as np
from numpy.typing import NDArray

from pc3d.evaluation.metrics import wilson_interval
from pc3d.evaluation.result import percent, span

RANKS = (1, 5, 10)


@dataclass(frozen=True)
class CrossModalRecall:
    """Recall of a cross-modal retrieval; all values are fractions.

    Attributes:
        recall: K to the share of queries with a relevant shape among the first K.
        interval: K to its 95 % Wilson interval.
        chance: K to what a random ranking gives.
        median_rank: of the first relevant shape, from 1.
        num_queries: queries.
        num_shapes: shapes in the gallery.
    """

    recall: dict[int, float]
    interval: dict[int, tuple[float, float]]
    chance: dict[int, float]
    median_rank: float
    num_queries: int
    num_shapes: int

    def __str__(self) -> str:
        known = [
            (k, percent(share), span(self.interval[k]), percent(self.chance[k])) for k, share in self.recall.items()
        ]
        rows = [
            f"  first {k:<3}  {share:>7} (95 % interval {sure}), chance {chance}" for k, share, sure, chance in known
        ]
        first = f"{self.num_queries} queries, {self.num_shapes} shapes: a right one is among the"
        return "\n".join([first, *rows, f"  median rank of the first right one: {self.median_rank:g}"])


def cross_modal_recall(
    similarity: NDArray[np.floating], relevant: NDArray[np.bool_], ranks: Sequence[int] = RANKS
) -> CrossModalRecall:
    """Recall of shapes by texts or pictures.

    Args:
        similarity: ``(Q, N)`` of each query with each shape; of equal ones, the shape that is relevant counts as later.
        relevant: ``(Q, N)``, which shapes answer a query, at least one each.
        ranks: K of recall@K, at most N.

    Raises:
        ValueError: shapes that do not fit, a query without an answer, a similarity that is not a number, or a rank
            beyond the gallery.
    """
    if similarity.ndim != 2 or similarity.shape != relevant.shape or similarity.size == 0:
        raise ValueError(
            f"similarity and relevant must both be (Q, N), not empty, got {similarity.shape} and {relevant.shape}"
        )
    answers = relevant.sum(axis=1)
    if (answers == 0).any():
        raise ValueError(f"query {int(np.flatnonzero(answers == 0)[0])} has no relevant shape: leave it out")
    if np.isnan(similarity).any():
        # It is below nothing, so its query would count as answered.
        bad = int(np.flatnonzero(np.isnan(similarity).any(axis=1))[0])
        raise ValueError(f"similarity of query {bad} is not a number: look at its vector, or at those of the shapes")
    num_queries, num_shapes = similarity.shape
    if min(ranks) < 1 or max(ranks) > num_shapes:
        raise ValueError(f"ranks must be between 1 and the {num_shapes} shapes, got {list(ranks)}")
    best = np.where(relevant, similarity, -np.inf).max(axis=1)
    rank = 1 + ((similarity >= best[:, None]) & ~relevant).sum(axis=1)
    hits = {k: int((rank <= k).sum()) for k in ranks}
    return CrossModalRecall(
        recall={k: count / num_queries for k, count in hits.items()},
        interval={k: wilson_interval(count, num_queries) for k, count in hits.items()},
        chance={k: float(np.mean([_chance(num_shapes, int(r), k) for r in answers])) for k in ranks},
        median_rank=float(np.median(rank)),
        num_queries=num_queries,
        num_shapes=num_shapes,
    )


def _chance(total: int, relevant: int, k: int) -> float:
    """Probability that k of ``total``, drawn without repetition, hold one of the relevant."""
    others = total - relevant
    if k > others:
        return 1.0
    log_miss = lgamma(others + 1) - lgamma(others - k + 1) - lgamma(total + 1) + lgamma(total - k + 1)
    return 1.0 - float(np.exp(log_miss))
