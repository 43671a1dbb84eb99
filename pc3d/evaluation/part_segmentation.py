"""Part segmentation scored as on ShapeNetPart: IoU of the parts of each object's category, averaged over objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from pc3d.evaluation.classification import describe_legacy, describe_selection, training_rows
from pc3d.evaluation.result import percent, span, versions
from pc3d.evaluation.rows import Row

UNKNOWN = -1
_RESAMPLES = 2000
RANDOM_NOTE = "LEGACY: points drawn with replacement, as the released code judges; another draw gives another figure"


def predict_parts(scores: Tensor, category: Tensor, category_parts: Sequence[Sequence[int]]) -> Tensor:
    """Predict for each point the best part among those of its object's category; other parts are ignored.

    Args:
        scores: ``(M, P)`` of M points, larger is better.
        category: ``(M,)`` int64 category of the object that each point is of.
        category_parts: the parts of each category.

    Returns:
        ``(M,)`` int64.

    Raises:
        ValueError: a category is none of those known, or has no parts.
    """
    allowed = torch.zeros(len(category_parts), scores.shape[1], dtype=torch.bool, device=scores.device)
    for index, parts in enumerate(category_parts):
        allowed[index, list(parts)] = True
    if len(category) and (category.min() < 0 or category.max() >= len(category_parts)):
        raise ValueError(
            f"category must be in 0..{len(category_parts) - 1}, got {int(category.min())} to {int(category.max())}"
        )
    mask = allowed[category]
    if not mask.any(1).all():
        empty = int(category[~mask.any(1)][0])
        raise ValueError(
            f"category {empty} has no parts, since the training split has no labelled object of it: leave its objects "
            "out, or train on some"
        )
    return scores.masked_fill(~mask, -torch.inf).argmax(1)


def shape_iou(predicted: Tensor, part: Tensor, parts: Sequence[int]) -> float | None:
    """IoU of one object: the mean over the parts of its category, 1 for a part that is neither present nor predicted.

    The rule of ShapeNetPart's released evaluations (Yi et al. 2016; PointNet). A part of the object that is not among
    the parts of its category counts, too: it cannot be predicted, so its IoU is 0.

    Args:
        predicted: ``(N,)`` int64.
        part: ``(N,)`` int64 true parts, -1 for points whose part is not known, which do not count.
        parts: of the category.

    Returns:
        In [0, 1]; None where no point of the object has a known part.
    """
    known = part != UNKNOWN
    predicted, part = predicted[known], part[known]
    if not part.numel():
        return None
    values = []
    for index in sorted({*parts, *part.unique().tolist()}):
        ours, theirs = predicted == index, part == index
        union = int((ours | theirs).sum())
        values.append(int((ours & theirs).sum()) / union if union else 1.0)
    return sum(values) / len(values)


@dataclass(frozen=True)
class PartScores:
    """Scores of a part segmentation; all values are fractions in [0, 1].

    Attributes:
        instance_miou: mean IoU over objects.
        instance_interval: its 95 % percentile bootstrap interval over objects.
        class_miou: mean over categories of the mean IoU over their objects.
        class_interval: its 95 % bootstrap interval, deviations resampled within their category.
        accuracy: share of all points of a known part that is right.
        category_iou: category to the mean IoU over its objects; those without objects are left out.
        category_count: category to the number of its objects.
        num_shapes: objects that count.
        num_points: points that count.
        num_unknown: points whose part is not known, which do not.
        num_left_out: objects without a point of a known part, which do not.
    """

    instance_miou: float
    instance_interval: tuple[float, float]
    class_miou: float
    class_interval: tuple[float, float]
    accuracy: float
    category_iou: dict[str, float]
    category_count: dict[str, int]
    num_shapes: int
    num_points: int
    num_unknown: int
    num_left_out: int


class PartTally:
    """IoU of objects, gathered one by one.

    Args:
        categories: names of the categories.
        category_parts: the parts of each.

    Attributes:
        counts: ``(C + 1, 2)`` float64: of each category the sum of IoU and the number of objects; at last the points
            that are right and those of a known part. Tallies of parts of a data set add up.
        ious: IoU of each object and its category, in the order of :meth:`update`.

    Raises:
        ValueError: ``categories`` and ``category_parts`` differ in length.
    """

    def __init__(self, categories: Sequence[str], category_parts: Sequence[Sequence[int]]) -> None:
        if len(categories) != len(category_parts):
            raise ValueError(
                f"categories and category_parts must be of one length, got {len(categories)} and {len(category_parts)}"
            )
        self.categories, self.category_parts = tuple(categories), tuple(map(tuple, category_parts))
        self.counts = torch.zeros(len(categories) + 1, 2, dtype=torch.float64)
        self.ious: list[tuple[float, int]] = []
        self.num_unknown, self.num_left_out = 0, 0

    def update(self, predicted: Tensor, part: Tensor, category: int) -> None:
        """Count an object.

        Args:
            predicted: ``(N,)`` int64.
            part: ``(N,)`` int64, -1 for unknown.
            category: of the object.

        Raises:
            ValueError: the shapes differ.
        """
        if predicted.shape != part.shape or part.ndim != 1:
            raise ValueError(
                f"predicted and part must both be (N,), got {tuple(predicted.shape)} and {tuple(part.shape)}"
            )
        value = shape_iou(predicted, part, self.category_parts[category])
        known = part != UNKNOWN
        self.num_unknown += int((~known).sum())
        if value is None:
            self.num_left_out += 1
            return
        self.ious.append((value, category))
        self.counts[category] += torch.tensor([value, 1.0], dtype=torch.float64)
        right = (predicted == part)[known].sum()
        self.counts[-1] += torch.tensor([float(right), float(known.sum())], dtype=torch.float64)

    def means(self) -> dict[str, float]:
        """``instance_miou``, ``class_miou`` and ``accuracy`` from the counts.

        Raises:
            ValueError: nothing was counted.
        """
        sums, numbers = self.counts[:-1].unbind(1)
        if not numbers.sum():
            raise ValueError("no object with a point of a known part was counted")
        present = numbers > 0
        return {
            "instance_miou": float(sums.sum() / numbers.sum()),
            "class_miou": float((sums[present] / numbers[present]).mean()),
            "accuracy": float(self.counts[-1, 0] / self.counts[-1, 1]),
        }

    def scores(self, seed: int = 0) -> PartScores:
        """The scores with intervals.

        Args:
            seed: of the bootstrap.
        """
        means, (sums, numbers) = self.means(), self.counts[:-1].unbind(1)
        values = torch.tensor([value for value, _ in self.ious], dtype=torch.float64)
        of = torch.tensor([category for _, category in self.ious])
        present = [k for k in range(len(self.categories)) if numbers[k] > 0]
        return PartScores(
            **means,
            instance_interval=_interval([values], seed),
            class_interval=_interval([values[of == k] for k in present], seed),
            category_iou={self.categories[k]: float(sums[k] / numbers[k]) for k in present},
            category_count={self.categories[k]: int(numbers[k]) for k in present},
            num_shapes=len(self.ious),
            num_points=int(self.counts[-1, 1]),
            num_unknown=self.num_unknown,
            num_left_out=self.num_left_out,
        )


def _interval(groups: list[Tensor], seed: int) -> tuple[float, float]:
    """Bootstrap of the mean of the groups' means: percentiles of how far it strays when deviations are drawn again.

    Deviations from the mean of n values are too small by sqrt((n - 1) / n). A single value shows none: it strays as
    those of the other groups do.
    """
    generator = torch.Generator().manual_seed(seed)
    deviations = [(values - values.mean()) * (len(values) / max(len(values) - 1, 1)) ** 0.5 for values in groups]
    several = [group for group in deviations if len(group) > 1]
    shared = torch.cat(several) if several else torch.cat(groups) - torch.cat(groups).mean()
    strayed = []
    for group in deviations:
        source = group if len(group) > 1 else shared
        strayed.append(source[torch.randint(len(source), (_RESAMPLES, len(group)), generator=generator)].mean(1))
    bounds = torch.tensor([0.025, 0.975], dtype=torch.float64)
    mean = torch.stack([values.mean() for values in groups]).mean()
    low, high = (mean + torch.stack(strayed).mean(0).quantile(bounds)).clamp(0, 1).tolist()
    return low, high


@dataclass(frozen=True)
class PartResult:
    """Scores of a part segmentation on a test split, with the whole protocol.

    Attributes:
        encoder: class of the encoder.
        start: where its weights came from before this training.
        run: the run folder.
        data: name of the data set.
        split: name of the split.
        train_hash: hash of the training split.
        test_hash: hash of the coordinates and parts that were evaluated.
        num_train: objects trained on.
        num_validation: objects that chose the epoch; None where there were none.
        num_test: objects evaluated.
        preparation: what happened to an object before the model saw it.
        protocol: ``"held_out"`` evaluates every stored point once; ``"legacy"`` evaluates points drawn with
            replacement.
        num_points: points of an object that the encoder sees.
        selection: which epoch was kept and why, see :class:`pc3d.tasks.EpochSelection`.
        seed: of the training.
        scores: the scores.
        settings: of the training, as rows keep them.
        cost: of the training, as rows keep it.
        versions: of the software.
    """

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
    protocol: str
    num_points: int
    selection: dict[str, Any]
    seed: int
    scores: PartScores
    settings: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=versions)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data, ready for JSON."""
        return {"task": "part segmentation", **asdict(self)}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> PartResult:
        """The result that :meth:`to_dict` made ``found`` of, or that was read from its JSON."""
        fields = {name: value for name, value in found.items() if name != "task"}
        return cls(**{**fields, "scores": PartScores(**found["scores"])})

    def to_rows(self, method: str | None = None) -> list[Row]:
        """The result as rows of a table; what the best epoch on the test split would have said is one of its own.

        Args:
            method: name in the table; by default the encoder's class and how it started.
        """
        s, drawn = self.scores, ", points drawn with replacement" if self.protocol == "legacy" else ""
        values = {"instance_miou": s.instance_miou, "class_miou": s.class_miou, "accuracy": s.accuracy}
        return training_rows(self, method, f"part segmentation{drawn}", values, "instance_miou")

    def __str__(self) -> str:
        s = self.scores
        legacy = self.protocol == "legacy"
        judged = (
            f"{self.num_points} points of each, drawn with replacement"
            if legacy
            else f"every stored point; the encoder sees {self.num_points} of each"
        )
        width = max(len(name) for name in s.category_iou)
        lines = [
            *([f"*** {RANDOM_NOTE} ***"] if legacy else []),
            f"part segmentation with {self.encoder}, started from {self.start}",
            f"  data        {self.data}: {self.num_train} train, {self.num_validation or 'no'} validation, "
            f"{self.num_test} {self.split} [{self.test_hash}]",
            f"  objects     {self.preparation}; {judged}",
            f"  counted     {s.num_shapes} objects, {s.num_points:,} points; of an unknown part and left out: "
            f"{s.num_unknown:,} points, {s.num_left_out} whole objects",
            f"  selection   {describe_selection(self.selection)}",
            f"  seed        {self.seed}",
            f"  versions    {', '.join(f'{key} {value}' for key, value in self.versions.items())}",
            *(
                f"  {name:<{width}}  {percent(s.category_iou[name])}  ({s.category_count[name]})"
                for name in s.category_iou
            ),
            f"  instance mIoU  {percent(s.instance_miou)}  (95 % bootstrap interval {span(s.instance_interval)})",
            f"  class mIoU     {percent(s.class_miou)}  (95 % bootstrap interval {span(s.class_interval)})",
            f"  accuracy       {percent(s.accuracy)}  of points",
            *describe_legacy(self.selection, "instance mIoU"),
        ]
        return "\n".join(lines)
