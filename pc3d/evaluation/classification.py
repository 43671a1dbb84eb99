"""Evaluate a trained classifier on a data set, once or by votes over several views of each object."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pc3d._progress import track
from pc3d.data import BadFileError, PointCloud, PointDataset, Transform, sample_generator
from pc3d.evaluation.features import leave_out_batch
from pc3d.evaluation.kept import Kept, identity_of
from pc3d.evaluation.metrics import Scores, wilson_interval
from pc3d.evaluation.result import LEGACY_NOTE, note_on_one_class, only_class, percent, span, versions
from pc3d.evaluation.rows import Row, data_hash
from pc3d.nn._checks import TooFewPointsError

Logits = NDArray[np.float32]
OFFICIAL_NOTE = "OFFICIAL BEST OF N: the best of repeated votes, chosen on the test split; an upper envelope"


def predict_logits(
    model: Callable[[Tensor], Tensor],
    dataset: PointDataset,
    transform: Transform | None = None,
    *,
    seed: int = 0,
    draw: int = 0,
    batch_size: int = 64,
    progress: bool = False,
    kept: Kept | None = None,
    leave_out: Callable[[int, BadFileError], None] | None = None,
) -> tuple[Logits, str]:
    """Compute the logits of every object of a data set, in its order.

    Args:
        model: maps ``(B, N, 3)`` to ``(B, K)``. A ``torch.nn.Module`` is put into evaluation mode and computes where
            its parameters are.
        dataset: its own transform applies.
        transform: applied after it, with random draws that are a function of (seed, draw, position) alone.
        seed: of those draws.
        draw: which view of the objects, where the transform is random.
        batch_size: objects per call of ``model``; those that differ in points are never batched together.
        progress: show a progress bar on standard error.
        kept: returns the logits that were computed before an interruption, batch by batch; use the same ``batch_size``.
        leave_out: is told the position of each object whose file cannot be used, and why; the object has no row in the
            result. By default such a file is refused.

    Returns:
        ``(n, K)`` float32, ``(0, 0)`` if all objects are left out, and the first 16 hexadecimal digits of SHA-256 over
        the coordinates that were seen.

    Raises:
        ValueError: the data set is empty, or ``batch_size`` is below 1.
        BadFileError: a file cannot be used, and nothing is to be left out.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if len(dataset) == 0:
        raise ValueError("dataset is empty: nothing to judge")
    device = next((p.device for p in model.parameters()), None) if isinstance(model, torch.nn.Module) else None
    if isinstance(model, torch.nn.Module):
        model.eval()
    digest, blocks = hashlib.sha256(), []
    made_by = "" if kept is None else identity_of(model)
    with torch.no_grad():
        for rows, clouds in _batches(dataset, transform, seed, draw, batch_size, progress, leave_out):
            xyz = torch.stack([cloud.xyz.float() for cloud in clouds])
            compute = partial(_logits, model, xyz, device)
            try:
                blocks.append(compute() if kept is None else kept.of([made_by, str(device), xyz], compute))
            except TooFewPointsError as error:
                leave_out_batch(clouds, rows, error, leave_out)
                continue
            digest.update(np.ascontiguousarray(xyz.numpy()).tobytes())
    return np.concatenate(blocks) if blocks else np.empty((0, 0), np.float32), digest.hexdigest()[:16]


def _logits(model: Callable[[Tensor], Tensor], xyz: Tensor, device: torch.device | None) -> Logits:
    logits: Logits = model(xyz.to(device)).float().cpu().numpy()
    return logits


def vote_logits(
    model: Callable[[Tensor], Tensor],
    dataset: PointDataset,
    transform: Transform,
    votes: int,
    *,
    first_draw: int = 0,
    **options: Any,
) -> Logits:
    """Average the logits over several random views of each object (Point-BERT's and Point-MAE's voting).

    The published view is a random subset of a slightly larger set of farthest points, scaled and shifted as in
    training: pass it as ``transform``. (In the released code, farthest point sampling starts at the first point; a
    training transform starts at a random one.)

    Args:
        model: see :func:`predict_logits`.
        dataset: see :func:`predict_logits`.
        transform: random.
        votes: views of each object, published with 10.
        first_draw: number of the first view.
        **options: of :func:`predict_logits`.

    Returns:
        ``(n, K)`` float32.

    Raises:
        ValueError: ``votes`` is below 1.
    """
    if votes < 1:
        raise ValueError(f"votes must be at least 1, got {votes}")
    draws = range(first_draw, first_draw + votes)
    total = sum(predict_logits(model, dataset, transform, draw=draw, **options)[0].astype(np.float64) for draw in draws)
    return np.asarray(total / votes, dtype=np.float32)


def content_hash(dataset: PointDataset) -> str:
    """First 16 hexadecimal digits of SHA-256 over what a data set stores: coordinates, parts of points, classes."""
    digest = hashlib.sha256()
    for index in range(len(dataset)):
        cloud = dataset.load(index)
        digest.update(np.ascontiguousarray(cloud.xyz.float().numpy()).tobytes())
        if cloud.segment is not None:
            digest.update(np.ascontiguousarray(cloud.segment.numpy()).tobytes())
    digest.update(dataset.labels.numpy().astype(np.int64).tobytes())
    return digest.hexdigest()[:16]


def _batches(
    dataset: PointDataset,
    transform: Transform | None,
    seed: int,
    draw: int,
    size: int,
    progress: bool,
    leave_out: Callable[[int, BadFileError], None] | None,
) -> Iterator[tuple[list[int], list[PointCloud]]]:
    """The objects, prepared, batch by batch, with their positions."""
    pending: list[PointCloud] = []
    rows: list[int] = []
    for index in track(range(len(dataset)), "judge", "objects", visible=progress):
        generator = sample_generator(seed, draw, index)
        try:
            cloud = dataset.sample(index, generator)
            cloud = cloud if transform is None else transform(cloud, generator)
        except BadFileError as error:
            if leave_out is None:
                raise
            leave_out(index, error)
            continue
        if pending and (len(pending) == size or len(pending[0]) != len(cloud)):
            yield rows, pending
            rows, pending = [], []
        rows.append(index)
        pending.append(cloud)
    if pending:
        yield rows, pending


@dataclass(frozen=True)
class Votes:
    """The results of voting.

    Attributes:
        votes: views of each object whose logits are averaged.
        accuracy: overall accuracy of the first round of votes.
        interval: its 95 % Wilson interval.
        repeats: rounds in all, each over views of its own.
        mean: over the rounds.
        best: of the rounds, which is what the released code reports; equal to ``accuracy`` for one round.
    """

    votes: int
    accuracy: float
    interval: tuple[float, float]
    repeats: int
    mean: float
    best: float

    @classmethod
    def of(cls, truth: NDArray[np.int64], rounds: list[Logits], votes: int) -> Votes:
        """From the averaged logits of each round."""
        hits = [int((logits.argmax(1) == truth).sum()) for logits in rounds]
        shares = [count / len(truth) for count in hits]
        interval = wilson_interval(hits[0], len(truth))
        return cls(votes, shares[0], interval, len(rounds), float(np.mean(shares)), max(shares))


@dataclass(frozen=True)
class ClassificationResult:
    """Scores of a fine-tuned classifier on a test split, with the whole protocol.

    Attributes:
        mode: ``"full"``, ``"mlp3"`` or ``"linear"``.
        encoder: class of the encoder.
        start: where its weights came from before this training.
        run: the run folder.
        data: name of the data set.
        split: name of the split.
        train_hash: hash of the training split, see :func:`content_hash`.
        test_hash: hash of the coordinates that were evaluated, see :func:`predict_logits`.
        num_train: objects trained on.
        num_validation: objects that chose the epoch; None where there were none.
        num_test: objects evaluated.
        preparation: what happened to an object before the model saw it.
        selection: which epoch was kept and why, see :class:`pc3d.tasks.EpochSelection`.
        seed: of the training.
        scores: of one deterministic view of each object.
        votes: the results of voting, if requested.
        settings: of the training, as rows keep them.
        cost: of the training, as rows keep it.
        versions: of the software.
    """

    mode: str
    encoder: str
    start: str
    run: str
    data: str
    split: str
    train_hash: str
    test_hash: str
    num_train: int
    num_validation: int | None
    num_test: int
    preparation: str
    selection: dict[str, Any]
    seed: int
    scores: Scores
    votes: Votes | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=versions)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data, ready for JSON."""
        return {"task": "classification", **asdict(self)}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> ClassificationResult:
        """The result that :meth:`to_dict` made ``found`` of, or that was read from its JSON."""
        fields = {name: value for name, value in found.items() if name != "task"}
        votes = None if found["votes"] is None else Votes(**found["votes"])
        return cls(**{**fields, "scores": Scores(**found["scores"]), "votes": votes})

    def to_rows(self, method: str | None = None) -> list[Row]:
        """The result as rows of a table.

        One for a single view of each object, one for votes and, with the selection ``"legacy"``, one each for the best
        epoch on the test split and the best of several rounds of votes.

        Args:
            method: name in the table; by default the encoder's class and how it started.
        """
        protocol = f"fine-tuning ({self.mode})"
        s = self.scores
        values = {"overall_accuracy": s.overall_accuracy, "mean_class_accuracy": s.mean_class_accuracy}
        rows = training_rows(self, method, protocol, values, "overall_accuracy")
        if self.votes is not None:
            voted = f"{protocol}, {self.votes.votes} votes"
            rows.append(replace(rows[0], protocol=voted, metrics={"overall_accuracy": self.votes.accuracy}))
            if self.votes.repeats > 1:
                best = {"overall_accuracy": self.votes.best}
                name = f"{voted}, best of {self.votes.repeats} rounds"
                rows.append(replace(rows[0], protocol=name, selection="legacy", metrics=best))
        return rows

    def __str__(self) -> str:
        s = self.scores
        lines = [
            f"classification ({self.mode}) with {self.encoder}, started from {self.start}",
            f"  data        {self.data}: {self.num_train} train, {self.num_validation or 'no'} validation, "
            f"{self.num_test} {self.split} [{self.test_hash}]",
            f"  objects     {self.preparation}; one view of each, no votes",
            f"  selection   {describe_selection(self.selection)}",
            f"  seed        {self.seed}",
            f"  versions    {', '.join(f'{key} {value}' for key, value in self.versions.items())}",
            f"  overall accuracy     {percent(s.overall_accuracy)}  (95 % Wilson interval {span(s.overall_interval)})",
            f"  mean class accuracy  {percent(s.mean_class_accuracy)}  "
            f"(95 % bootstrap interval {span(s.mean_class_interval)})",
            *describe_legacy(self.selection, "overall accuracy"),
        ]
        said = only_class(s)
        if said is not None:
            remedy = f": train longer or at another learning rate; pc3d report {self.run} shows the curves"
            lines.append(note_on_one_class(said, remedy))
        if self.votes is not None:
            lines += self._describe_votes(self.votes)
        return "\n".join(lines)

    def _describe_votes(self, votes: Votes) -> list[str]:
        interval = span(votes.interval)
        lines = [f"  with {votes.votes} votes        {percent(votes.accuracy)}  (95 % Wilson interval {interval})"]
        if votes.repeats > 1:
            lines += [
                f"  *** {OFFICIAL_NOTE} ***",
                f"  best of {votes.repeats} rounds   {percent(votes.best)}  (their mean {percent(votes.mean)})",
            ]
        return lines


def training_rows(
    result: Any, method: str | None, protocol: str, metrics: dict[str, float], legacy_metric: str
) -> list[Row]:
    """Rows of a result of training, which has the fields that those of the tasks share.

    Args:
        result: a :class:`ClassificationResult` or its like.
        method: name in the table.
        protocol: how it was judged.
        metrics: of the kept epoch.
        legacy_metric: which of them the best epoch on the test split is known by.
    """
    started = "from scratch" if result.start == "fresh weights" else "pre-trained"
    row = Row(
        method=method or f"{result.encoder}, {started}",
        protocol=protocol,
        selection="fixed" if result.selection["validation"] is None else "validation",
        data=result.data,
        data_hash=data_hash(result.train_hash, result.test_hash),
        seed=result.seed,
        metrics=metrics,
        num_train=result.num_train,
        num_test=result.num_test,
        config={"started": started, "preparation": result.preparation, "split": result.split, **result.settings},
        details={"start": result.start, "selection": result.selection},
        versions=result.versions,
        cost=result.cost,
    )
    legacy = result.selection["legacy"]
    if legacy is None:
        return [row]
    return [row, replace(row, selection="legacy", metrics={legacy_metric: legacy["test"]})]


def describe_selection(selection: dict[str, Any]) -> str:
    """Which epoch was kept, in words."""
    text = f"epoch {selection['epoch']}: {selection['by']}"
    return text if selection["validation"] is None else f"{text} ({percent(selection['validation'])})"


def describe_legacy(selection: dict[str, Any], score: str) -> list[str]:
    """What the best epoch on the test split would have said, if the run looked."""
    legacy = selection.get("legacy")
    if legacy is None:
        return []
    return [
        f"  *** {LEGACY_NOTE} ***",
        f"  {score} of the best test epoch ({legacy['epoch']}): {percent(legacy['test'])}",
    ]
