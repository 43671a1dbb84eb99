"""Part segmentation of objects whose category is known."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pc3d._progress import track
from pc3d.data import PointDataset, Transform, collate, sample_generator
from pc3d.data.object_module import Protocol
from pc3d.data.types import PointBatch
from pc3d.evaluation import Kept, PartTally, predict_parts
from pc3d.evaluation.kept import identity_of
from pc3d.models import ObjectEncoder, PointPartSegmenter, load_encoder
from pc3d.nn import mean_over_processes
from pc3d.tasks.draws import draws_of_step
from pc3d.tasks.fine_tuning import FineTuning
from pc3d.tasks.initial_encoder import start_from
from pc3d.tasks.model_folder import does_not_fit, head_config, head_weights, save_model
from pc3d.tasks.object_task import ObjectTask

PUBLISHED = FineTuning()
_RATE = 2e-4
_UNKNOWN = -1


class PartSegmentation(ObjectTask):
    """Segment the parts of objects, as in the fine-tuning of Point-MAE on ShapeNetPart.

    The loss is the negative log-likelihood over all parts of all categories, averaged over the points of a known part.
    Predictions are restricted to the parts of the object's category. The released loop steps the optimiser twice on the
    same gradients; here it steps once, with clipped gradients.

    Args:
        backbone: a :class:`PointViT` without class token, published with 128 patches of 2,048 points; a :class:`ViT3D`,
            for which the released code of POS-BERT has the same rate, epochs and batches; or another that
            :class:`PointPartSegmenter` accepts, and that has ``num_points`` among its arguments.
        num_categories: K.
        num_parts: P, over all categories.
        category_names: names of the categories; if empty, their numbers.
        part_names: names of the parts; if empty, their numbers.
        category_parts: the parts of each category; if empty, all parts for each.
        encoder: where the backbone's weights come from (:func:`start_from`); None for fresh ones. Class tokens of a
            pre-trained encoder are dropped. The attribute ``initial`` reports what was loaded.
        layers: which three blocks to read, as in :class:`pc3d.models.PointPartSegmenter`.
        head_dims: widths of the layers that run for every point, as in :class:`pc3d.models.PointPartSegmenter`.
        optimisation: AdamW and its schedule; published with a rate of 2e-4.
        seed: of the random draws within the network.

    Raises:
        TypeError: a backbone without features of points within an object.
        ValueError: class tokens in ``backbone``, or none of ``num_points``; names or parts that do not go with the
            numbers.
    """

    score = "instance_miou"
    model: PointPartSegmenter

    def __init__(
        self,
        backbone: ObjectEncoder,
        num_categories: int,
        num_parts: int,
        category_names: Sequence[str] = (),
        part_names: Sequence[str] = (),
        category_parts: Sequence[Sequence[int]] = (),
        encoder: str | None = None,
        layers: tuple[int, int, int] | None = None,
        head_dims: tuple[int, int, int, int] | None = None,
        optimisation: FineTuning = PUBLISHED,
        seed: int = 0,
    ) -> None:
        if num_parts < 1:
            raise ValueError(f"num_parts must be at least 1, got {num_parts}: has the data set parts of points?")
        categories = tuple(category_names) or tuple(map(str, range(num_categories)))
        parts = tuple(part_names) or tuple(map(str, range(num_parts)))
        of = tuple(map(tuple, category_parts)) or (tuple(range(num_parts)),) * num_categories
        if len(categories) != num_categories or len(of) != num_categories or len(parts) != num_parts:
            raise ValueError(
                f"category_names and category_parts must be {num_categories} and part_names {num_parts}, got "
                f"{len(categories)}, {len(of)} and {len(parts)}"
            )
        wrong = [part for members in of for part in members if not 0 <= part < num_parts]
        if wrong:
            raise ValueError(f"category_parts must be in 0..{num_parts - 1}, got {wrong[0]}")
        if "num_points" not in getattr(backbone, "config", {}):
            raise ValueError(
                f"backbone: a {type(backbone).__name__} does not say how many points of an object it is meant to see: "
                "let its constructor take num_points and keep it in self.config"
            )
        model = PointPartSegmenter(backbone, num_parts, num_categories, layers, head_dims)
        super().__init__(model, optimisation, _RATE, seed)
        self.initial = None if encoder is None else start_from(backbone, encoder)
        self.categories, self.parts, self.category_parts = categories, parts, of

    def loss(self, batch: PointBatch) -> tuple[Tensor, Tensor]:
        category, part = self._labels(batch)
        scores = self.model(batch.dense(), category).flatten(0, 1).float()
        known = part != _UNKNOWN
        total = F.nll_loss(scores, part, ignore_index=_UNKNOWN, reduction="sum")
        loss = total / mean_over_processes(known.sum().to(total.dtype)).clamp(min=1e-6)
        return loss, (scores.detach().argmax(1) == part)[known]

    def judge(self, batch: PointBatch, tally: PartTally, *, redraw: bool) -> None:
        self._labels(batch)
        judge_parts(self.model, batch, tally, redraw=redraw)

    def tally(self) -> PartTally:
        return PartTally(self.categories, self.category_parts)

    def save(self, folder: Path, training: dict[str, Any]) -> None:
        start = "fresh weights" if self.initial is None else f"weights of {self.initial.source}"
        config = {
            "task": "part segmentation",
            "categories": self.categories,
            "parts": self.parts,
            "category_parts": self.category_parts,
            "layers": self.model.layers,
            "head_dims": self.model.head_dims,
            "training": {"start": start, **training},
        }
        head = {name: value for name, value in self.model.state_dict().items() if not name.startswith("encoder.")}
        save_model(folder, self.encoder, head, config)

    def _labels(self, batch: PointBatch) -> tuple[Tensor, Tensor]:
        category, part = batch.label, batch.segment
        if category is None or category.min() < 0 or category.max() >= len(self.categories):
            raise ValueError(f"label, the category, must be in 0..{len(self.categories) - 1} for every object")
        if part is None or part.min() < _UNKNOWN or part.max() >= len(self.parts):
            found = "none" if part is None else f"{int(part.min())} to {int(part.max())}"
            raise ValueError(
                f"segment, the part of each point, must be in 0..{len(self.parts) - 1}, or -1 for unknown, got {found}"
            )
        return category, part


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


def load_part_segmenter(folder: str | os.PathLike[str]) -> tuple[PointPartSegmenter, dict[str, Any]]:
    """Load what ``pc3d parts train`` wrote, in evaluation mode, on the CPU.

    Args:
        folder: the run folder.

    Returns:
        The model, and a description of it: ``categories``, ``parts``, ``category_parts``, and ``training``, how it was
        trained.

    Raises:
        FileNotFoundError: the folder holds no part segmenter, or the run in it has not finished.
        ValueError: the files do not fit one another.
    """
    config = head_config(folder, "parts", "part segmenter")
    if config.get("task") != "part segmentation":
        raise FileNotFoundError(f"{folder} holds no part segmenter but the model of another task")
    encoder = load_encoder(Path(folder) / "encoder")
    if not isinstance(encoder, ObjectEncoder):
        raise ValueError(f"{folder} holds a {type(encoder).__name__}, which no part segmenter is built on")
    layers = None if config["layers"] is None else tuple(config["layers"])
    sizes = len(config["parts"]), len(config["categories"])
    model = PointPartSegmenter(encoder, *sizes, layers, tuple(config["head_dims"]))
    try:
        missing, unknown = model.load_state_dict(head_weights(folder), strict=False)
        lost = [name for name in missing if not name.startswith("encoder.")]
        if lost or unknown:
            raise RuntimeError(f"missing {lost}, unknown {unknown}")
    except RuntimeError as error:
        raise does_not_fit(folder, error) from error
    return model.eval(), config
