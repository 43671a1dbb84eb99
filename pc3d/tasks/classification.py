"""Classification of objects: fine-tuning of a whole encoder, or of a head on a frozen one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pc3d.data.types import PointBatch
from pc3d.evaluation import ConfusionMatrix
from pc3d.models import classifier_of
from pc3d.models.classifier import HeadType
from pc3d.nn import mean_over_processes
from pc3d.tasks.fine_tuning import FineTuning
from pc3d.tasks.initial_encoder import ClassToken, start_from
from pc3d.tasks.model_folder import save_model
from pc3d.tasks.object_task import ObjectTask

PUBLISHED = FineTuning()
_FULL_RATE = 5e-4


class Classification(ObjectTask):
    """Classify objects: fine-tuning as in Point-MAE, or a head on a frozen encoder as in Point-CMAE.

    A :class:`PointViT` with one class token gets the head of the Point-MAE family (:class:`PointClassifier`). Any other
    encoder gets a head on its vector (:class:`VectorClassifier`).

    Args:
        backbone: the encoder.
        num_classes: K.
        class_names: names of the classes; if empty, their numbers.
        mode: ``"full"`` trains everything, with a head of three layers. ``"mlp3"`` trains the same head, and
            ``"linear"`` a linear one, on a frozen encoder, of which only the class token and its position are trained
            (274,728 and 31,528 parameters for the published encoder and 40 classes).
        encoder: where the backbone's weights come from (:func:`start_from`). None keeps the initial weights of the
            backbone, which for :class:`PointViT` are those of pre-training; the released code trains from scratch with
            PyTorch's default weights. The attribute ``initial`` reports what was loaded.
        class_token: ``"fresh"`` as in the released code, or ``"pretrained"``.
        freeze_bn: in the frozen modes, keep the encoder's batch norm at the statistics of pre-training. By default they
            follow the batches, as in the released code, which is not a clean probe of the encoder. Drop path stays
            active either way; it is an argument of the backbone.
        label_smoothing: share of the target that is spread over all classes; published: 0.
        optimisation: optimiser (AdamW by default) and its schedule; the published rate is 5e-4 for ``"full"`` and
            ``frozen_rate`` otherwise.
        frozen_rate: the published rate of the frozen modes: Point-CMAE has 1e-4, but 5e-4 for 8,192 points and 1e-3 for
            few-shot (released code). ``optimisation.learning_rate`` replaces it, as it does that of ``"full"``.
        seed: of the random draws within the network.

    Raises:
        ValueError: names that are not ``num_classes``, a rate that is not positive, or an option that is none of the
            known ones.
    """

    score = "accuracy"

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        class_names: Sequence[str] = (),
        mode: HeadType = "full",
        encoder: str | None = None,
        class_token: ClassToken = "fresh",
        freeze_bn: bool = False,
        label_smoothing: float = 0.0,
        optimisation: FineTuning = PUBLISHED,
        frozen_rate: float = 1e-4,
        seed: int = 0,
    ) -> None:
        names = tuple(class_names) or tuple(str(k) for k in range(num_classes))
        if len(names) != num_classes:
            raise ValueError(f"class_names must be {num_classes} names, got {len(names)}")
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        if not frozen_rate > 0:
            raise ValueError(f"frozen_rate must be positive, got {frozen_rate}")
        if class_token == "pretrained" and encoder is None:
            raise ValueError("class_token: 'pretrained' is that of an encoder, and none is given: add one")
        model = classifier_of(backbone, num_classes, mode)
        super().__init__(model, optimisation, _FULL_RATE if mode == "full" else frozen_rate, seed)
        self.initial = None if encoder is None else start_from(backbone, encoder, class_token)
        self.classes, self.mode, self.label_smoothing = names, mode, label_smoothing
        self.freeze_bn = freeze_bn and mode != "full"
        if mode != "full":
            model.freeze_encoder()

    def train(self, mode: bool = True) -> Classification:
        """Training mode, in which a frozen batch norm stays in evaluation mode."""
        super().train(mode)
        if self.freeze_bn:
            for module in self.encoder.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def loss(self, batch: PointBatch) -> tuple[Tensor, Tensor]:
        label = self._labels(batch)
        logits = self.model(batch.dense()).float()
        total = F.cross_entropy(logits, label, label_smoothing=self.label_smoothing, reduction="sum")
        count = mean_over_processes(torch.tensor(float(len(label)), device=total.device))
        return total / count, logits.detach().argmax(1) == label

    def judge(self, batch: PointBatch, tally: ConfusionMatrix, *, redraw: bool) -> None:
        label = self._labels(batch)
        tally.update(self.model(batch.dense()).argmax(1), label)

    def tally(self) -> _ClassTally:
        return _ClassTally(len(self.classes))

    def save(self, folder: Path, training: dict[str, Any]) -> None:
        start = "fresh weights" if self.initial is None else f"weights of {self.initial.source}"
        config = {
            "task": "classification",
            "classes": self.classes,
            "mode": self.mode,
            "training": {"start": start, "freeze_bn": self.freeze_bn, **training},
        }
        head = {name: value for name, value in self.model.state_dict().items() if not name.startswith("encoder.")}
        save_model(folder, self.encoder, head, config)

    def _labels(self, batch: PointBatch) -> Tensor:
        label = batch.label
        if label is None or label.min() < 0 or label.max() >= len(self.classes):
            found = "none" if label is None else f"{int(label.min())} to {int(label.max())}"
            raise ValueError(
                f"label must be in 0..{len(self.classes) - 1} for every object, got {found}: leave unlabelled objects "
                "out, and give the model as many classes as the data set has"
            )
        return label


class _ClassTally(ConfusionMatrix):
    """Counts of (true class, predicted class) over objects."""

    def means(self) -> dict[str, float]:
        counts = self.counts.double()
        hits, total = counts.diagonal(), counts.sum(1)
        present = total > 0
        return {
            "accuracy": float(hits.sum() / total.sum()),
            "mean_class_accuracy": float((hits[present] / total[present]).mean()),
        }
