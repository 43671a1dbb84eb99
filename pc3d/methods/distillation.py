"""Dense distillation: train an encoder of scenes to predict features of a frozen image model at every point."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pc3d.data.types import PointBatch
from pc3d.losses import feature_regression, point_pixel_contrast, superpoint_contrast
from pc3d.methods.masked_scene import SCENES
from pc3d.methods.method import Method, Optimisation
from pc3d.models import DistilledEncoder
from pc3d.nn import SampleRandom, mean_over_processes, superpoints

Objective = Literal["cosine", "l1", "smooth_l1", "ppkt", "slidr"]


class DenseDistillation(Method):
    """Dense distillation, by regression or contrast, of image features that were lifted onto the points of scenes.

    The data are a :class:`pc3d.data.LiftedSet`: the target of each point is the mean of the teacher's dense feature
    over the pictures that show it. Points that no picture shows are not in the loss, but the encoder sees them.

    * ``"cosine"``: ``1 - cos`` between the projected feature of a point and its target (OpenScene, Peng et al., 2023,
      section 3.2). The projection ends in the teacher's space. If the teacher shares a space with texts, points can be
      compared with texts: ``pc3d segment openvocab``.
    * ``"l1"``, ``"smooth_l1"``: other distances (:func:`pc3d.losses.feature_regression`).
    * ``"ppkt"``: InfoNCE that identifies the feature of each drawn point among those of all drawn points (PPKT, Liu et
      al., 2021).
    * ``"slidr"``: the same with means over superpoints (SLidR, Sautier et al., 2022). There, segments are superpixels
      of one picture; here targets are means over pictures already, and segments are pieces of surface in cubes whose
      grid is moved at random (:func:`pc3d.nn.superpoints`).

    The contrast is within the batch of each process, as in SLidR's code. There, points are compared with a trainable
    last layer on a frozen image network. Here, that layer reads the lifted feature, and both it and the projection of
    points have ``embed_dim`` outputs. The published runs use outdoor scans. Nothing is published for rooms, so sizes of
    superpoints and numbers of pairs are our defaults unless stated otherwise.

    A batch's draws are a function of (seed, epoch, batch index, position in the global batch), those within the encoder
    of (seed, epoch, batch index, process): nothing of them needs to be stored to resume.

    Args:
        encoder: has ``point_features(batch)`` and ``feature_dim``, such as :class:`pc3d.models.SparseUNet`,
            :class:`pc3d.models.Swin3D` or :class:`pc3d.models.BlockFeatures`.
        teacher_dim: width of the targets.
        teacher: name of the tower that computed them, stored with the encoder and compared with that of the data; empty
            for no check. A hash of its weights is taken from the data, stored and compared in the same way.
        objective: see above.
        decoder: train the decoder of a voxel encoder as well; False distils into the features of all levels without it
            (:class:`pc3d.models.UpcastFeatures`).
        embed_dim: with ``"ppkt"`` and ``"slidr"``, width of the space of the contrast (published 64); None contrasts in
            the teacher's own space, with no layer on its side.
        pairs_per_scene: with ``"ppkt"``, points drawn from each scene (published: 4,096 from a batch of four).
        temperature: with ``"ppkt"`` and ``"slidr"`` (published 0.07).
        superpoint_size: with ``"slidr"``, edge of the cubes in the units of the points.
        optimisation: optimiser (AdamW by default) and its schedule.
        seed: of all draws.

    Raises:
        TypeError: the encoder computes no features of points.
        ValueError: an unknown objective, or a number out of range.
    """

    def __init__(
        self,
        encoder: nn.Module,
        teacher_dim: int,
        teacher: str = "",
        objective: Objective = "cosine",
        decoder: bool = True,
        embed_dim: int | None = 64,
        pairs_per_scene: int = 1024,
        temperature: float = 0.07,
        superpoint_size: float = 0.5,
        optimisation: Optimisation = SCENES,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if objective not in get_args(Objective):
            raise ValueError(f"objective must be one of {', '.join(get_args(Objective))}, got {objective!r}")
        for name, value in (("teacher_dim", teacher_dim), ("pairs_per_scene", pairs_per_scene)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name, size in (("temperature", temperature), ("superpoint_size", superpoint_size)):
            if not size > 0:
                raise ValueError(f"{name} must be positive, got {size}")
        self.objective, self.teacher, self.teacher_dim = objective, teacher, teacher_dim
        self.pairs_per_scene, self.temperature, self.superpoint_size = pairs_per_scene, temperature, superpoint_size
        self.optimisation = optimisation
        own_space = embed_dim is not None and objective in ("ppkt", "slidr")
        width = embed_dim if own_space and embed_dim is not None else teacher_dim
        self.model = DistilledEncoder(encoder, width, "" if own_space else teacher, decoder).train()
        self._teacher_weights = ""
        self.teacher_head = nn.Linear(teacher_dim, width) if own_space else nn.Identity()

    @property
    def encoder(self) -> DistilledEncoder:
        """The encoder with its projection."""
        return self.model

    def training_step(self, batch: PointBatch, batch_idx: int) -> Tensor:
        """One step on scenes of any size."""
        return self._step(batch, self.current_epoch, batch_idx, "train")

    def validation_step(self, batch: PointBatch, batch_idx: int) -> Tensor:
        """The training loss in evaluation mode, with the same draws in every epoch."""
        return self._step(batch, 0, batch_idx, "validation")

    def _step(self, batch: PointBatch, epoch: int, batch_idx: int, stage: str) -> Tensor:
        target = self.targets(batch)
        draws = self.draws(batch, epoch, batch_idx)
        with self.default_draws(epoch, batch_idx, batch.xyz.device):
            features = self.model.point_features(batch)
        shown = target.ne(0).any(1)
        loss = self.loss(features, target, shown, batch, draws)
        self.log_step(stage, {"loss": loss, "shown": shown.float().mean()}, len(batch))
        return loss

    def targets(self, batch: PointBatch) -> Tensor:
        """The teacher's feature ``(sum N, teacher_dim)`` of every point.

        Raises:
            ValueError: the batch has no features, or features of another width or teacher (by name or weights).
        """
        if batch.feature is None:
            raise ValueError(
                "the batch has no feature, what a tower says of its points: take a LiftedSet of features that "
                "data_tools/lift_features.py wrote, and keep the field if there is a KeepFields"
            )
        if batch.feature.shape[1] != self.teacher_dim:
            raise ValueError(
                f"the data's features have {batch.feature.shape[1]} dimensions, the method was built with "
                f"teacher_dim={self.teacher_dim}"
            )
        others = {str(meta["teacher"]) for meta in batch.meta if meta.get("teacher")} - {self.teacher}
        if self.teacher and others:
            raise ValueError(f"the data's features are of {others.pop()}, the method has teacher={self.teacher!r}")
        self._check_weights({str(meta["teacher_weights"]) for meta in batch.meta if meta.get("teacher_weights")})
        return batch.feature

    def _check_weights(self, found: set[str]) -> None:
        """Check that all features come from the same weights, because different weights may have the same name."""
        known = self._teacher_weights or min(found, default="")
        if others := found - {known}:
            towers = f"towers {self.teacher!r}" if self.teacher else "towers"
            raise ValueError(
                f"the data's features are of several {towers}, whose weights differ (SHA-256 {known[:12]} and "
                f"{min(others)[:12]}): lift all scenes with the same"
            )
        if known and not self._teacher_weights:
            self._name_weights(known)

    def _name_weights(self, weights: str) -> None:
        self._teacher_weights = weights
        if self.model.space:
            self.model.name_weights(weights)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the hash of the teacher's weights."""
        checkpoint["teacher_weights"] = self._teacher_weights

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the hash of the teacher's weights: features of other weights raise an error."""
        if weights := checkpoint.get("teacher_weights"):
            self._name_weights(weights)

    def loss(self, features: Tensor, target: Tensor, shown: Tensor, batch: PointBatch, draws: SampleRandom) -> Tensor:
        """The objective of a batch.

        Args:
            features: ``(sum N, feature_dim)`` from the encoder.
            target: ``(sum N, teacher_dim)``.
            shown: ``(sum N,)`` bool, True for points with a target.
            batch: the scenes.
            draws: random numbers of this step.
        """
        if self.objective == "ppkt":
            rows = draws.some_rows(shown, batch.offsets, self.pairs_per_scene)
        else:
            rows = shown.nonzero().flatten()
        points, pixels = self.model.in_space(features[rows]), self.teacher_head(target[rows])
        if self.objective == "ppkt":
            return point_pixel_contrast(points, pixels, temperature=self.temperature)
        if self.objective == "slidr":
            segment = self.segments(batch, draws)[rows]
            return superpoint_contrast(points, pixels, segment, temperature=self.temperature)
        count = mean_over_processes(points.new_tensor(float(len(rows)), dtype=torch.float32))
        return feature_regression(points, pixels, kind=self.objective, denominator=count)

    def segments(self, batch: PointBatch, draws: SampleRandom) -> Tensor:
        """The superpoint ``(sum N,)`` of every point, on a grid with a random shift per scene."""
        shift = draws.uniform(3).to(batch.xyz.dtype) * self.superpoint_size
        xyz = batch.xyz + shift.repeat_interleave(batch.lengths, dim=0)
        return superpoints(xyz, batch.offsets, self.superpoint_size, batch.normal)

    def configure_optimizers(self) -> Any:
        """The optimiser with its warm-up and cosine schedule."""
        return self.optimisation.build(self, (), self.trainer.max_epochs)
