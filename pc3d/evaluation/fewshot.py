"""Few-shot classification on frozen features: N ways, K shots, several independent episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pc3d._extras import require
from pc3d.evaluation.features import Features, Labels
from pc3d.evaluation.result import FrozenResult, data_fields, percent
from pc3d.evaluation.rows import Row

USUAL_QUERIES = 20


@dataclass(frozen=True)
class Episode:
    """One episode: ``classes`` ``(way,)``, and the rows of the training and test features that are used."""

    classes: NDArray[np.int64]
    support: NDArray[np.int64]
    query: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class FewShotResult(FrozenResult):
    """Accuracies over the episodes, with the whole protocol.

    Attributes:
        way: classes per episode.
        shot: training items per class.
        num_queries: test items per class.
        fewer_queries: whether these are fewer than the usual 20 because the test split has no more.
        num_episodes: drawn independently.
        num_eligible: classes with enough items to be drawn; of given episodes, the classes that occur.
        given: whether the episodes were given, such as published ones, not drawn.
        classifier: which one was trained on each episode.
        C: its regularisation, fixed beforehand.
        standardized: whether features were standardised by the training items of the episode.
        accuracies: overall accuracy of each episode, fractions.
        mean: their mean.
        standard_deviation: their sample standard deviation (``ddof=1``).

    The other fields are those of :class:`pc3d.evaluation.FrozenResult`.
    """

    way: int
    shot: int
    num_queries: int
    fewer_queries: bool
    num_episodes: int
    num_eligible: int
    given: bool = False
    classifier: str
    C: float
    standardized: bool
    accuracies: tuple[float, ...]
    mean: float
    standard_deviation: float

    def to_row(self, method: str | None = None, cost: dict[str, float] | None = None) -> Row:
        """The result as a row of a table: the mean over the episodes.

        Args:
            method: name in the table; by default what computed the features.
            cost: see :class:`pc3d.evaluation.Row`.
        """
        settings = ("way", "shot", "num_queries", "num_episodes", "classifier", "C", "standardized")
        return Row(
            **self.row_fields(method, cost),
            protocol=f"few-shot {self.way}-way {self.shot}-shot",
            selection="fixed",
            metrics={"accuracy": self.mean},
            config={
                **self.feature_settings(),
                **{name: getattr(self, name) for name in settings},
                **({"episodes": "given"} if self.given else {}),
            },
            details={
                "encoder": self.encoder,
                "accuracies": self.accuracies,
                "standard_deviation_over_episodes": self.standard_deviation,
                "num_eligible": self.num_eligible,
            },
        )

    def _why_fewer(self) -> str:
        usual = f"{USUAL_QUERIES} is usual, {self.num_queries} the most that leaves {self.way} classes to draw"
        return f" ({usual})" if self.fewer_queries else ""

    def _how_drawn(self) -> str:
        return ", as given" if self.given else f"{self._why_fewer()}, seed {self.seed}"

    def __str__(self) -> str:
        return "\n".join(
            [
                f"few-shot, {self.way}-way {self.shot}-shot, on frozen features of {self.encoder}",
                *self.describe_data(),
                f"  episodes    {self.num_episodes}, each {self.way} of {self.num_eligible} eligible classes, "
                f"{self.shot} train and {self.num_queries} test items per class{self._how_drawn()}",
                f"  classifier  {self.classifier}, C = {self.C:g} fixed beforehand"
                f"{', features standardised on the training items of the episode' if self.standardized else ''}",
                self.describe_versions(),
                f"  accuracy    {percent(self.mean)} +/- {percent(self.standard_deviation)} "
                "(mean and sample standard deviation, ddof=1, over the episodes)",
            ]
        )


def draw_episodes(
    train_labels: Labels,
    test_labels: Labels,
    *,
    way: int,
    shot: int,
    num_queries: int = 20,
    num_episodes: int = 10,
    seed: int = 0,
) -> list[Episode]:
    """Draw classes, then training and test items within them, without replacement.

    Args:
        train_labels: ``(n,)`` classes of the training items, -1 for unlabelled, which are never drawn.
        test_labels: ``(m,)`` classes of the test items.
        way: classes per episode.
        shot: training items per class.
        num_queries: test items per class.
        num_episodes: how many, drawn independently.
        seed: the same seed gives the same episodes.

    Raises:
        ValueError: a count is too small, or fewer than ``way`` classes have enough items.
    """
    for name, value, least in (("way", way, 2), ("shot", shot, 1), ("num_queries", num_queries, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if num_episodes < 2:
        raise ValueError(f"num_episodes must be at least 2, or there is no standard deviation; got {num_episodes}")
    eligible = _eligible(train_labels, test_labels, way, shot, num_queries)
    generator = np.random.default_rng(seed)

    def pick(labels: Labels, wanted: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        rows = [generator.choice(np.flatnonzero(labels == k), count, replace=False) for k in wanted]
        return np.concatenate(rows)

    episodes = []
    for _ in range(num_episodes):
        classes = generator.choice(eligible, way, replace=False)
        support = pick(train_labels, classes, shot)
        episodes.append(Episode(classes, support, pick(test_labels, classes, num_queries)))
    return episodes


def _eligible(train: Labels, test: Labels, way: int, shot: int, num_queries: int) -> NDArray[np.int64]:
    classes = np.unique(train[train >= 0])
    in_train = np.array([(train == k).sum() for k in classes])
    in_test = np.array([(test == k).sum() for k in classes])
    eligible = classes[(in_train >= shot) & (in_test >= num_queries)]
    if eligible.size >= way:
        return eligible
    message = (
        f"way={way}, shot={shot}, num_queries={num_queries} needs {way} classes with {shot} training and {num_queries} "
        f"test items; {eligible.size} of {classes.size} have them"
    )
    most = _most_queries(train, test, way, shot)
    if ((in_train >= shot) & (in_test >= most)).sum() >= way:
        message += f"; num_queries={most} is the largest that leaves {way}"
    raise ValueError(message)


def _most_queries(train: Labels, test: Labels, way: int, shot: int) -> int:
    """The largest number of queries for which ``way`` classes have enough items, 1 where there is none."""
    counts = [int((test == k).sum()) for k in np.unique(train[train >= 0]) if (train == k).sum() >= shot]
    return max(1, sorted(counts, reverse=True)[way - 1]) if len(counts) >= way > 0 else 1


def few_shot(
    train: Features,
    test: Features,
    *,
    way: int = 5,
    shot: int = 10,
    num_queries: int | None = 20,
    num_episodes: int = 10,
    C: float = 1.0,
    standardize: bool = True,
    seed: int = 0,
    episodes: Sequence[Episode] | None = None,
) -> FewShotResult:
    """Fit a linear SVM to the support items of each episode; mean and standard deviation of its accuracy on queries.

    The task is that of Sharma and Kaul (2020): ``way`` classes, ``shot`` training items each from the training split,
    ``num_queries`` (20 in the literature) unseen test items each from the test split, ten episodes. The classifier and
    its ``C`` are fixed beforehand: no episode is used to choose anything.

    Args:
        train: features of the training split.
        test: features of the test split.
        way: classes per episode.
        shot: training items per class.
        num_queries: test items per class. None takes 20; if the test split does not have ``way`` classes with that
            many, as many as it has, which the result states.
        num_episodes: how many, drawn independently.
        C: regularisation of the linear SVM.
        standardize: scale features by the mean and deviation of the episode's training items.
        seed: seed of the episodes.
        episodes: drawn elsewhere, for example published folds; replaces the five arguments of the draw.

    Raises:
        ValueError: too few classes or items for an episode, or splits that do not match.
    """
    if not C > 0:
        raise ValueError(f"C must be positive, got {C}")
    svm = require("sklearn.svm", extra="train", purpose="the few-shot probe")
    preprocessing = require("sklearn.preprocessing", extra="train")
    fewer, given = False, episodes is not None
    if episodes is None:
        if num_queries is None:
            num_queries = min(USUAL_QUERIES, _most_queries(train.labels, test.labels, way, shot))
            fewer = num_queries < USUAL_QUERIES
        episodes = draw_episodes(
            train.labels,
            test.labels,
            way=way,
            shot=shot,
            num_queries=num_queries,
            num_episodes=num_episodes,
            seed=seed,
        )
        num_eligible = int(_eligible(train.labels, test.labels, way, shot, num_queries).size)
    else:
        way, shot, num_queries = _shape(episodes)
        num_episodes, num_eligible = len(episodes), int(np.unique(np.concatenate([e.classes for e in episodes])).size)
    accuracies = []
    for episode in episodes:
        x, x_query = train.values[episode.support], test.values[episode.query]
        if standardize:
            scaler = preprocessing.StandardScaler().fit(x)
            x, x_query = scaler.transform(x), scaler.transform(x_query)
        model = svm.SVC(kernel="linear", C=C).fit(x, train.labels[episode.support])
        accuracies.append(float(model.score(x_query, test.labels[episode.query])))
    return FewShotResult(
        **data_fields(train, test),
        way=way,
        shot=shot,
        num_queries=num_queries,
        fewer_queries=fewer,
        num_episodes=num_episodes,
        num_eligible=num_eligible,
        given=given,
        classifier="SVC(kernel='linear')",
        C=C,
        standardized=standardize,
        seed=seed,
        accuracies=tuple(accuracies),
        mean=float(np.mean(accuracies)),
        standard_deviation=float(np.std(accuracies, ddof=1)),
    )


def _shape(episodes: Sequence[Episode]) -> tuple[int, int, int]:
    shapes = {(e.classes.size, e.support.size // e.classes.size, e.query.size // e.classes.size) for e in episodes}
    if len(episodes) < 2 or len(shapes) != 1:
        raise ValueError(f"episodes must be at least two of one way, shot and number of queries, got {shapes}")
    return shapes.pop()
