"""Part segmentation of objects whose category is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from pc3d.data.types import PointBatch
from pc3d.evaluation import PartTally
from pc3d.models import ObjectEncoder, PointPartSegmenter
from pc3d.nn import mean_over_processes
from pc3d.tasks.fine_tuning import FineTuning
from pc3d.tasks.initial_encoder import start_from
from pc3d.tasks.model_folder import save_model
from pc3d.tasks.object_task import ObjectTask
from pc3d.tasks.part_inference import judge_parts

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
        optimisation: optimiser (AdamW by default) and its schedule; published with a rate of 2e-4.
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
            raise ValueError(f"num_parts, of the data set, must be at least 1, got {num_parts}: take one with parts")
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
