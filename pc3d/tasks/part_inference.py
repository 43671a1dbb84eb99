"""Part segmentation applied: to a data set, to evaluate it, and to an object of which only the category is known."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pc3d._progress import track
from pc3d.data import PointDataset, Transform, collate, sample_generator
from pc3d.data.dataset import Protocol
from pc3d.data.types import PointBatch
from pc3d.evaluation import Kept, PartTally, predict_parts
from pc3d.evaluation.kept import identity_of
from pc3d.models import PointPartSegmenter
from pc3d.ops import farthest_point_sample
from pc3d.tasks.draws import draws_of_step


class PartLabels(NamedTuple):
    """The predictions of a model for an object.

    Attributes:
        label: ``(N,)`` int64, the part of each point.
        confidence: ``(N,)`` float32, its probability among the parts of the object's category.
    """

    label: Tensor
    confidence: Tensor


@torch.no_grad()
def segment_object(
    model: PointPartSegmenter, xyz: Tensor, category: int, category_parts: Sequence[Sequence[int]]
) -> PartLabels:
    """Predict the part of every point of an object.

    Args:
        model: put into evaluation mode; computes where its parameters are. Its encoder sees the farthest points, as
            many as it is meant for (``num_points``), some of them again where there are too few.
        xyz: ``(N, 3)`` at least one point, prepared as the objects that the model was trained on.
        category: of the object.
        category_parts: the parts of each category.

    Returns:
        The labels, on the CPU.

    Raises:
        ValueError: an unknown category or one without parts, or no points.
    """
    if len(xyz) == 0:
        raise ValueError("xyz holds no points")
    if not 0 <= category < len(category_parts):
        raise ValueError(f"category must be in 0..{len(category_parts) - 1}, got {category}")
    device = next(model.parameters()).device
    model.eval()
    query, num_points = xyz.to(device), int(model.encoder.config["num_points"])
    seen = farthest_point_sample(query, min(num_points, len(query)))
    view = query[seen[torch.arange(num_points, device=device) * len(seen) // num_points]]
    of_object = torch.tensor([category], device=device)
    scores = model.segment(view[None], of_object, query, torch.tensor([0, len(query)], device=device))
    label = predict_parts(scores, of_object.expand(len(query)), category_parts)
    allowed = torch.tensor(list(category_parts[category]), device=device)
    among = scores[:, allowed].softmax(1)
    return PartLabels(label.cpu(), among.amax(1).float().cpu())


class _Question(NamedTuple):
    """Which points a model sees of a batch, and of which it is asked the part."""

    category: Tensor
    view: Tensor
    query: Tensor
    offsets: Tensor
    truth: list[Tensor | None]


def judge_parts(model: PointPartSegmenter, batch: PointBatch, tally: PartTally, *, redraw: bool = False) -> None:
    """Segment a batch of objects of any numbers of points and count what is right.

    Args:
        model: in evaluation mode; its encoder sees as many points of each object as it is meant for (``num_points``).
        batch: with categories and parts.
        tally: counts.
        redraw: False: the encoder sees an even selection of the stored points (some of them again where there are too
            few), and every stored point is evaluated once. True: as in the released evaluation of ShapeNetPart, points
            are drawn with replacement from PyTorch's default generator, and only those are evaluated.
    """
    question = _ask(model, batch, redraw)
    _count(tally, question, _answer(model, question, tally))


def _ask(model: PointPartSegmenter, batch: PointBatch, redraw: bool) -> _Question:
    """See :func:`judge_parts`."""
    category, clouds = batch.label, batch.unbind()
    assert category is not None
    num_points = int(model.encoder.config["num_points"])
    rows = [
        torch.randint(len(cloud), (num_points,)) if redraw else torch.arange(num_points) * len(cloud) // num_points
        for cloud in clouds
    ]
    view = torch.stack([cloud.xyz[index.to(cloud.xyz.device)] for cloud, index in zip(clouds, rows, strict=True)])
    query, offsets, truth = batch.xyz, batch.offsets, [cloud.segment for cloud in clouds]
    if redraw:
        query, offsets = view.flatten(0, 1), torch.arange(len(clouds) + 1, device=view.device) * num_points
        truth = [part[index.to(part.device)] for part, index in zip(truth, rows, strict=True) if part is not None]
    return _Question(category, view, query, offsets, truth)


@torch.no_grad()
def _answer(model: PointPartSegmenter, question: _Question, tally: PartTally) -> NDArray[np.int64]:
    """``(M,)`` the part of every point of a question."""
    category, view, query, offsets, _ = question
    scores = model.segment(view, category, query, offsets)
    of_point = category.repeat_interleave(offsets.diff())
    found: NDArray[np.int64] = predict_parts(scores, of_point, tally.category_parts).cpu().numpy()
    return found


def _count(tally: PartTally, question: _Question, answer: NDArray[np.int64]) -> None:
    predicted = torch.from_numpy(answer).split(question.offsets.diff().tolist())
    for found, part, label in zip(predicted, question.truth, question.category.tolist(), strict=True):
        assert part is not None
        tally.update(found, part.cpu(), label)


def evaluate_parts(
    model: PointPartSegmenter,
    dataset: PointDataset,
    tally: PartTally,
    transform: Transform | None = None,
    *,
    protocol: Protocol = "held_out",
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = False,
    kept: Kept | None = None,
) -> PartTally:
    """Evaluate a segmenter on every object of a data set.

    Args:
        model: put into evaluation mode; computes where its parameters are.
        dataset: with categories and parts.
        tally: an empty one.
        transform: deterministic preparation that keeps every point.
        protocol: ``"held_out"`` evaluates every stored point once; ``"legacy"`` draws points, see :func:`judge_parts`.
        seed: of the draws.
        batch_size: objects at a time.
        progress: show a progress bar on standard error.
        kept: returns the parts that were predicted before an interruption, batch by batch; use the same ``batch_size``.

    Returns:
        The tally.

    Raises:
        ValueError: an unknown protocol, an empty data set, or objects without parts.
    """
    if protocol not in get_args(Protocol):
        raise ValueError(f"protocol must be one of {', '.join(get_args(Protocol))}, got {protocol!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if len(dataset) == 0:
        raise ValueError("dataset is empty: nothing to judge")
    device = next(model.parameters()).device
    model.eval()
    made_by = [] if kept is None else [identity_of(model), str(device), repr(tally.category_parts)]
    starts = range(0, len(dataset), batch_size)
    for start in track(starts, "judge", "batches", visible=progress):
        clouds = []
        for index in range(start, min(start + batch_size, len(dataset))):
            generator = sample_generator(seed, 0, index)
            cloud = dataset.sample(index, generator)
            clouds.append(cloud if transform is None else transform(cloud, generator))
        batch = collate(clouds).to(device)
        if batch.segment is None:
            raise ValueError(f"{type(dataset).__name__} has no parts of points to judge by")
        with draws_of_step(seed, 0, start, device):
            question = _ask(model, batch, protocol == "legacy")
        answer = partial(_answer, model, question, tally)
        _count(tally, question, answer() if kept is None else kept.of([*made_by, *question[:4]], answer))
    return tally
