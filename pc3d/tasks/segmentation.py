"""Semantic segmentation of scenes: a backbone, a head, cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from pc3d.data.module import PointDataModule
from pc3d.data.types import PointBatch
from pc3d.evaluation import ConfusionMatrix
from pc3d.evaluation.scene_probe import fit_linear_head
from pc3d.models import BlockFeatures, DistilledEncoder, UpcastFeatures, scene_backbone
from pc3d.models.voxel_features import freeze_decoder
from pc3d.nn import all_reduce_sum, mean_over_processes, take_from_first
from pc3d.tasks.draws import draws_of_step
from pc3d.tasks.initial_weights import take_weights
from pc3d.tasks.language import LanguageGuidance
from pc3d.tasks.optimisation import SegmentationOptimisation
from pc3d.tasks.segmenter import HeadKind, SceneSegmenter

PUBLISHED = SegmentationOptimisation()
_UNLABELLED = -1


def segmentation_loss(logits: Tensor, label: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy averaged over the labelled points of the global batch.

    Args:
        logits: ``(N, K)``.
        label: ``(N,)`` int64 classes, -1 for points that do not count.
        class_weights: ``(K,)``; the mean is weighted, each point by its class. None: equal weights.

    Returns:
        This process's share: the mean over processes is the mean over all labelled points. 0 where there are none.

    Raises:
        ValueError: a label is beyond the K classes, or below -1.
    """
    labelled = label != _UNLABELLED
    if len(label) > 0:
        low, high = torch.stack(label.aminmax()).tolist()  # at once: each look at a value on a GPU waits for it
        if low < _UNLABELLED or high >= logits.shape[1]:
            raise ValueError(
                f"segment must be in 0..{logits.shape[1] - 1}, or -1 for unlabelled points, got {low} to {high}: has "
                "the data set more classes than the model?"
            )
    total = nn.functional.cross_entropy(logits.float(), label, class_weights, ignore_index=_UNLABELLED, reduction="sum")
    count = labelled.sum() if class_weights is None else class_weights[label[labelled]].sum()
    return total / mean_over_processes(count.to(total.dtype)).clamp(min=1e-6)


class SemanticSegmentation(pl.LightningModule):
    """Train a backbone and a head for semantic segmentation of scenes.

    Supervised pre-training is the same task on a larger data set. Train it with :func:`pc3d.methods.pretrain`, which
    writes a run folder, or with your own ``Trainer``. With ``Trainer(sync_batchnorm=True)``, batch statistics are those
    of all processes; this always holds for pc3d's own layers.

    Dropout, drop path and the random point of a voxel are drawn in each step from (seed, epoch, step, process), so an
    interrupted and resumed run ends like an uninterrupted one, bit for bit on a CPU.

    Args:
        backbone: any encoder of the package. :class:`pc3d.models.Swin3D`, ``SparseUNet`` and ``PointTransformerV3``
            read scenes themselves, with or without decoder (:class:`pc3d.models.UpcastFeatures`); encoders of objects
            are applied to one cube of the scene after the other (:class:`pc3d.models.BlockFeatures`, whose options are
            the default's if it is not given itself). Or any module with ``point_features(batch)`` and ``feature_dim``.
        num_classes: K.
        class_names: names of the classes; if empty, their numbers.
        head: ``"mlp"`` as in Swin3D, ``"linear"``, or ``"language"``, :class:`pc3d.nn.LanguageHead`.
        language: options of the ``"language"`` head.
        encoder: folder or Hub id of an exported encoder, or official file, to start the backbone from; the attribute
            ``initial`` reports what was loaded.
        skip: parts of that encoder to leave out, see :func:`take_weights`.
        y_up: ``encoder`` is an official file of Swin3D whose weights were trained with y up (the authors' ``xyz_rgb``).
        freeze: keep the backbone fixed, in evaluation mode, and train only the head: with ``head="linear"`` a linear
            probe. The backbone includes the layer of :class:`pc3d.models.BlockFeatures` after the encoder, which is
            freshly initialised if ``encoder`` is an encoder of objects. Then the output of a random layer is probed,
            not the encoder. Train an encoder of objects with the head instead, or freeze a saved ``BlockFeatures``.
        probe_first: first fit the head, which must be ``"linear"``, to frozen features of the training scenes, then
            train everything (:func:`pc3d.evaluation.scene_probe.fit_linear_head`): an untrained head then does not
            disturb a pre-trained backbone. Use a low learning rate, such as 1e-3. Up to 4,000 labelled points of each
            scene are used, a million in all.
        class_weights: of each class in the loss, so that rare ones count in it; if empty, equal weights. Validation
            losses are unweighted.
        optimisation: optimiser (AdamW by default) and its schedule.
        seed: of the random draws within the networks.

    Raises:
        ValueError: names or weights that are not ``num_classes``, a weight that is not positive, a negative seed,
            ``language`` or ``probe_first`` with another head, or ``y_up`` or ``skip`` without an encoder.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        class_names: Sequence[str] = (),
        head: HeadKind = "mlp",
        language: LanguageGuidance | None = None,
        encoder: str | None = None,
        skip: Sequence[str] = (),
        y_up: bool = False,
        freeze: bool = False,
        probe_first: bool = False,
        class_weights: Sequence[float] = (),
        optimisation: SegmentationOptimisation = PUBLISHED,
        seed: int = 0,
    ) -> None:
        super().__init__()
        names = tuple(class_names) or tuple(str(k) for k in range(num_classes))
        if len(names) != num_classes:
            raise ValueError(f"class_names must be {num_classes} names, got {len(names)}")
        if class_weights and (len(class_weights) != num_classes or not all(0 < w < math.inf for w in class_weights)):
            raise ValueError(
                f"class_weights must be {num_classes} positive numbers, one for each class, or [] for all alike, got "
                f"{len(class_weights)}: {list(class_weights)}"
            )
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        if language is not None and head != "language":
            raise ValueError(f"language: these are options of head 'language', got head {head!r}")
        if probe_first and (head != "linear" or freeze):
            raise ValueError(
                f"probe_first fits a linear head and trains all from there: take head='linear' and freeze=False, got "
                f"head={head!r} and freeze={freeze}"
            )
        if y_up and encoder is None:
            raise ValueError("y_up: there are no weights to turn, give the official file as encoder")
        if skip and encoder is None:
            raise ValueError(f"skip: there is no encoder to leave out {', '.join(skip)} of: give one, or leave it out")
        backbone = scene_backbone(backbone)
        self.initial = None if encoder is None else take_weights(backbone, encoder, skip, y_up=y_up)
        self.language = None
        if head == "language":
            self.language = language or LanguageGuidance()
            self.segmenter = SceneSegmenter(backbone, names, self.language.head(backbone, names))
        else:
            self.segmenter = SceneSegmenter(backbone, names, head)
        self.freeze_backbone, self.probe_first = freeze, probe_first
        self.optimisation, self.seed = optimisation, seed
        _train(self.segmenter.backbone, not freeze)
        self._matrix = ConfusionMatrix(num_classes)
        weights = torch.tensor(class_weights, dtype=torch.float32) if class_weights else None
        self.register_buffer("class_weights", weights, persistent=False)

    @property
    def encoder(self) -> nn.Module:
        """The backbone, which leaves the run."""
        return self.segmenter.backbone

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.segmenter.classes

    def export(self, folder: Path) -> None:
        """Write the whole model: ``head/`` and ``encoder/``."""
        self.segmenter.save(folder)

    def train(self, mode: bool = True) -> SemanticSegmentation:
        """Training mode, in which a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.freeze_backbone:
            self.segmenter.backbone.eval()
        return self

    def on_fit_start(self) -> None:
        """Fit the head first if asked for, and train all: Lightning keeps the modes that a loaded backbone has."""
        if self.probe_first and self.trainer.ckpt_path is None:  # otherwise weights are about to be those of the run
            self.fit_head(
                getattr(self.trainer, "datamodule", None),
                progress=self.trainer.is_global_zero and self.trainer.progress_bar_callback is not None,
            )
        self.train()

    def fit_head(self, data: pl.LightningDataModule | None, *, progress: bool = False) -> None:
        """What ``probe_first`` does, on the training scenes of a data module, as validation would see them.

        Of several processes each fits, since batch norms count over all of them, and all take what the first has found:
        the last bits may differ from one device to another.

        Args:
            data: of scenes, with a train set.
            progress: show bars on standard error.

        Raises:
            ValueError: it is not a data module of scenes.
        """
        if not isinstance(data, PointDataModule) or data.train is None:
            raise ValueError(
                "probe_first needs the labelled scenes: train with a SceneDataModule that has a train set, got "
                f"{type(data).__name__}"
            )
        head = self.segmenter.head
        assert isinstance(head, nn.Linear)  # the constructor saw to it
        weight, bias = fit_linear_head(
            self.segmenter.backbone, data.train, transform=data.eval_transform, seed=self.seed, progress=progress
        )
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)
        take_from_first([*head.parameters(), *self.segmenter.backbone.buffers()])

    def training_step(self, batch: PointBatch, batch_idx: int) -> Tensor:
        """One step."""
        label = _labels(batch)
        with draws_of_step(self.seed, self.current_epoch, batch_idx, batch.xyz.device):
            logits, scores = self.segmenter.with_scores(batch)
        loss = segmentation_loss(logits, label, self.class_weights)
        options: dict[str, Any] = {"batch_size": len(batch), "on_step": True, "on_epoch": True, "sync_dist": True}
        if scores is not None and self.language is not None:
            auxiliary = segmentation_loss(scores, label, self.class_weights)
            self.log("train/score_loss", auxiliary.detach(), **options)
            loss = loss + self.language.auxiliary_weight * auxiliary
        labelled = label != _UNLABELLED
        hits = (logits.detach().argmax(1) == label)[labelled].float()
        self.log("train/loss", loss.detach(), prog_bar=True, **options)
        self.log("train/accuracy", hits.mean() if hits.numel() else hits.new_zeros(()), **options)
        self.log("train/learning_rate", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        return loss

    def on_validation_epoch_start(self) -> None:
        """Begin a new confusion matrix."""
        self._matrix = ConfusionMatrix(len(self.classes))

    def validation_step(self, batch: PointBatch, batch_idx: int) -> None:
        """Whole scenes in one pass, every point judged."""
        label = _labels(batch)
        logits = self.segmenter(batch)
        self.log("validation/loss", segmentation_loss(logits, label), batch_size=len(batch), sync_dist=True)
        self._matrix.update(logits.argmax(1), label)

    def on_validation_epoch_end(self) -> None:
        """Log the scores over the whole validation set."""
        self._matrix.counts = all_reduce_sum(self._matrix.counts.to(self.device)).cpu()
        scores = self._matrix.scores(self.classes)
        for name in ("miou", "macc", "allacc", "miou_present"):
            self.log(f"validation/{name}", getattr(scores, name), prog_bar=name == "miou", sync_dist=True)

    def configure_optimizers(self) -> Any:
        """The optimiser and its schedule, as long as the run or as ``schedule_epochs`` says."""
        return self.optimisation.build(self, _schedule_steps(self.trainer, self.optimisation.schedule_epochs))


def _train(backbone: nn.Module, trained: bool) -> None:
    """Make a backbone trainable, or not; parts that it keeps fixed itself stay so."""
    if isinstance(backbone, BlockFeatures | DistilledEncoder | UpcastFeatures):
        backbone.train_encoder(trained)
    if not trained:
        backbone.requires_grad_(False)
    elif not any(parameter.requires_grad for parameter in backbone.parameters()):
        backbone.requires_grad_(True)  # an earlier probe has frozen it
    else:  # pre-training freezes a decoder that it does not use
        freeze_decoder(backbone, frozen=False)


def _schedule_steps(trainer: pl.Trainer, schedule_epochs: int | None) -> int:
    """Optimiser steps of the whole schedule."""
    data: pl.LightningDataModule | None = getattr(trainer, "datamodule", None)
    if data is None:
        steps, epochs = int(trainer.estimated_stepping_batches), trainer.max_epochs
        return steps if schedule_epochs is None or not epochs else max(1, steps * schedule_epochs // epochs)
    # Lightning's own estimate would set the train loader up before a resumed run gives it its place in the epoch.
    batches, limit = len(data.train_dataloader()), trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    if schedule_epochs is not None:
        return per_epoch * schedule_epochs
    if trainer.max_steps > 0:
        return trainer.max_steps
    if trainer.max_epochs is None or trainer.max_epochs < 1:
        raise ValueError("the learning-rate schedule needs a length: set trainer.max_epochs or schedule_epochs")
    return per_epoch * trainer.max_epochs


def _labels(batch: PointBatch) -> Tensor:
    if batch.segment is None:
        raise ValueError("the batch has no segment, the classes of its points: take a data set with labels")
    return batch.segment
