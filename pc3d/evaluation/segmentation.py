"""Semantic segmentation scored by one confusion matrix over a whole data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_EPSILON = 1e-10


class ConfusionMatrix:
    """Counts of (true class, predicted class) over points, accumulated step by step.

    Points whose *label* is the ignore index are left out. Row is the true class, column the predicted one; a last
    column counts predictions outside of ``0..K-1``, which are false negatives of their class and false positives of
    none.

    Args:
        num_classes: K.
        ignore_index: label of points that do not count; it may lie inside ``0..K-1`` or outside.

    Raises:
        ValueError: fewer than one class.

    Attributes:
        counts: ``(K, K + 1)`` int64.
        scenes: names of the scenes counted, as far as they were told.
    """

    scenes: tuple[str, ...] = ()

    def __init__(self, num_classes: int, ignore_index: int = -1) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.counts = torch.zeros(num_classes, num_classes + 1, dtype=torch.int64)

    @torch.no_grad()
    def update(self, predicted: Tensor, label: Tensor, scene: str | None = None) -> None:
        """Count some points.

        Args:
            predicted: ``(N,)`` classes, integers of any range.
            label: ``(N,)`` true classes in ``0..K-1``, or the ignore index.
            scene: name of the scene that they belong to; matrices with a scene in common cannot be added.

        Raises:
            TypeError: not integers.
            ValueError: the shapes differ, or a label is neither a class nor the ignore index.
        """
        for name, value in (("predicted", predicted), ("label", label)):
            if value.is_floating_point() or value.dtype == torch.bool:
                raise TypeError(f"{name} must hold integers, got {value.dtype}")
        if predicted.ndim != 1 or predicted.shape != label.shape:
            raise ValueError(
                f"predicted and label must both be (N,), got {tuple(predicted.shape)} and {tuple(label.shape)}"
            )
        if scene is not None and scene not in self.scenes:
            self.scenes = (*self.scenes, scene)
        # The mask comes from the labels alone: a prediction that equals the ignore index is a prediction.
        kept = label != self.ignore_index
        label, predicted = label[kept].long(), predicted[kept].long()
        if not label.numel():
            return
        if label.min() < 0 or label.max() >= self.num_classes:
            wrong = label[(label < 0) | (label >= self.num_classes)][0]
            raise ValueError(
                f"label must be in 0..{self.num_classes - 1} or the ignore index {self.ignore_index}, got "
                f"{int(wrong)}: map the labels of the data set, or set num_classes or ignore_index"
            )
        outside = (predicted < 0) | (predicted >= self.num_classes)
        column = predicted.masked_fill(outside, self.num_classes)
        cell = label * (self.num_classes + 1) + column
        self.counts += torch.bincount(cell, minlength=self.counts.numel()).view_as(self.counts).to(self.counts.device)

    def scores(self, classes: Sequence[str] = ()) -> SegmentationScores:
        """The scores of what was counted so far; see :func:`segmentation_scores`."""
        return segmentation_scores(self.counts, classes)

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """The matrix of both sets of points.

        Raises:
            ValueError: the matrices differ in the number of classes or in the ignore index, or count a scene twice.
        """
        ours, theirs = (self.num_classes, self.ignore_index), (other.num_classes, other.ignore_index)
        if ours != theirs:
            raise ValueError(f"matrices must agree in (num_classes, ignore_index), got {ours} and {theirs}")
        twice = sorted(set(self.scenes) & set(other.scenes))
        if twice:
            raise ValueError(f"scene {twice[0]!r} is in both matrices: its points would count twice")
        result = ConfusionMatrix(*ours)
        result.scenes = self.scenes + other.scenes
        result.counts = self.counts + other.counts
        return result


@dataclass(frozen=True)
class SegmentationScores:
    """Scores of a segmentation; all values are fractions in [0, 1].

    ``miou`` and ``macc`` are the published formulas: means over all K classes, in which a class that is neither in the
    labels nor among the predictions counts as 0. On a small data set that lacks some classes this says little, so
    ``miou_present`` is the mean over the classes that occur in the labels.

    Attributes:
        miou: mean over all classes of the intersection over union.
        macc: mean over all classes of the share of the class that was found.
        allacc: share of all points that is right.
        miou_present: mean IoU over the ``num_present`` classes that occur in the labels.
        num_present: how many classes occur in the labels.
        classes: names of the K classes.
        iou: IoU of each class.
        accuracy: share found of each class.
        support: labelled points of each class.
        num_points: labelled points in all.
        confusion: ``(K, K + 1)`` counts; see :class:`ConfusionMatrix`.
    """

    miou: float
    macc: float
    allacc: float
    miou_present: float
    num_present: int
    classes: tuple[str, ...]
    iou: tuple[float, ...]
    accuracy: tuple[float, ...]
    support: tuple[int, ...]
    num_points: int
    confusion: tuple[tuple[int, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """The scores as plain data, ready for JSON; values per class are keyed by its name."""
        by_class = {
            name: {"iou": iou, "accuracy": accuracy, "points": points}
            for name, iou, accuracy, points in zip(self.classes, self.iou, self.accuracy, self.support, strict=True)
        }
        head = {name: getattr(self, name) for name in ("miou", "macc", "allacc", "miou_present", "num_present")}
        return {**head, "num_points": self.num_points, "per_class": by_class, "confusion": self.confusion}

    def miou_of_groups(self, groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
        """Mean IoU of each group of classes, over those of its classes that occur in the labels; 0 if none does.

        Raises:
            ValueError: a group names a class that is none of these.
        """
        number = {name: place for place, name in enumerate(self.classes)}
        unknown = [name for names in groups.values() for name in names if name not in number]
        if unknown:
            raise ValueError(f"groups must be of the {len(number)} classes that were scored, got {unknown[0]!r}")
        found = {}
        for group, names in groups.items():
            values = [self.iou[number[name]] for name in names if self.support[number[name]]]
            found[group] = sum(values) / max(1, len(values))
        return found

    def __str__(self) -> str:
        width = max(5, *map(len, self.classes))
        lines = [f"{'class':<{width}}  {'IoU':>6}  {'acc':>6}  {'points':>10}"]
        for name, iou, accuracy, points in zip(self.classes, self.iou, self.accuracy, self.support, strict=True):
            values = f"{100 * iou:6.2f}  {100 * accuracy:6.2f}" if points else f"{'-':>6}  {'-':>6}"
            lines.append(f"{name:<{width}}  {values}  {points:>10,}")
        lines += [
            f"mIoU {100 * self.miou:.2f} %   mAcc {100 * self.macc:.2f} %   allAcc {100 * self.allacc:.2f} %   "
            f"({len(self.classes)} classes, {self.num_points:,} labelled points)",
        ]
        if self.num_present < len(self.classes):
            lines.append(
                f"mIoU over the {self.num_present} classes that occur in the labels: {100 * self.miou_present:.2f} %"
            )
        return "\n".join(lines)


def segmentation_scores(counts: Tensor, classes: Sequence[str] = ()) -> SegmentationScores:
    """Compute scores from a confusion matrix, as ScanNet, S3DIS and Structured3D define them.

    With I the diagonal, T the sums of rows, P those of columns and U = P + T - I, over the whole data set:
    IoU = I / (U + 1e-10), accuracy = I / (T + 1e-10), allAcc = sum I / (sum T + 1e-10).

    Args:
        counts: ``(K, K + 1)`` or ``(K, K)`` integers, row the true class; see :class:`ConfusionMatrix`.
        classes: names of the K classes; if empty, their numbers.

    Raises:
        ValueError: another shape, or another number of names.
    """
    if counts.ndim != 2 or counts.shape[1] - counts.shape[0] not in (0, 1) or not counts.shape[0]:
        raise ValueError(f"counts must be (K, K + 1) or (K, K) with K >= 1, got {tuple(counts.shape)}")
    num_classes = counts.shape[0]
    if classes and len(classes) != num_classes:
        raise ValueError(f"classes must name the {num_classes} classes of the matrix, got {len(classes)}: {classes}")
    counts = counts.cpu()
    exact = counts.double()
    intersection, total = exact.diagonal(), exact.sum(1)
    union = exact[:, :num_classes].sum(0) + total - intersection
    iou, accuracy = intersection / (union + _EPSILON), intersection / (total + _EPSILON)
    present = total > 0
    return SegmentationScores(
        miou=float(iou.mean()),
        macc=float(accuracy.mean()),
        allacc=float(intersection.sum() / (total.sum() + _EPSILON)),
        miou_present=float(iou[present].mean()) if present.any() else 0.0,
        num_present=int(present.sum()),
        classes=tuple(classes) or tuple(str(k) for k in range(num_classes)),
        iou=tuple(iou.tolist()),
        accuracy=tuple(accuracy.tolist()),
        support=tuple(int(count) for count in counts.sum(1)),
        num_points=int(counts.sum()),
        confusion=tuple(tuple(int(count) for count in row) for row in counts),
    )


def sum_folds(folds: Iterable[ConfusionMatrix]) -> ConfusionMatrix:
    """The matrix of several folds together, from which the scores of S3DIS 6-fold are computed.

    Intersections and unions are summed over the folds before they are divided; it is not the mean of the folds' mIoU.

    Args:
        folds: one matrix per held-out part.

    Raises:
        ValueError: there are none, they differ in their classes, or two have a scene in common.
    """
    matrices = list(folds)
    if not matrices:
        raise ValueError("folds is empty: give a confusion matrix per fold")
    return sum(matrices[1:], start=matrices[0])
