"""DCGLR: self-distillation and contrast between global and local views of a shape."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pc3d.data.types import PointBatch
from pc3d.losses import info_nce, self_distillation
from pc3d.methods.collapse import CollapseWatch
from pc3d.methods.method import Method
from pc3d.methods.multi_crop import MULTI_CROP, MultiCrop, Views
from pc3d.methods.step_optimisation import PER_STEP, StepOptimisation
from pc3d.models import ObjectEncoder
from pc3d.nn import (
    DistillationHead,
    KeyQueue,
    ProjectionHead,
    SampleRandom,
    Transformer,
    cosine_between,
    gather_rows,
    make_teacher,
    mean_over_processes,
    share_of_batch,
    update_teacher,
)

Objective = Literal["distill", "contrast", "both"]


@dataclass(frozen=True)
class Distillation:
    """Settings of the term that predicts the teacher's distribution over prototypes (POS-BERT's code, after DINO).

    Attributes:
        num_prototypes: K, far below the number of training clouds.
        hidden: width of the head's MLP.
        bottleneck: width before the prototypes.
        student_temperature: of the student's distribution.
        teacher_temperature: of the teacher's, in the first epoch and from ``teacher_temperature_epochs`` on, linear
            between; DINO goes from 0.04 to 0.07.
        teacher_temperature_epochs: see above.
        center_momentum: of the running mean of the teacher's logits.
        frozen_epochs: number of epochs at the start in which the prototypes are frozen.
    """

    num_prototypes: int = 512
    hidden: int = 2048
    bottleneck: int = 256
    student_temperature: float = 0.1
    teacher_temperature: tuple[float, float] = (0.04, 0.04)
    teacher_temperature_epochs: int = 30
    center_momentum: float = 0.9
    frozen_epochs: int = 1

    def sharpness(self, epoch: int) -> float:
        """The teacher's temperature in an epoch."""
        first, last = self.teacher_temperature
        return first + (last - first) * min(epoch / max(self.teacher_temperature_epochs, 1), 1.0)


@dataclass(frozen=True)
class InstanceContrast:
    """Settings of the contrastive term, which identifies the teacher's view of the same cloud; none is published.

    Attributes:
        kind: ``"infonce"`` on separate projections (ours, after MoCo); ``"npair_shared_head"``: the N-pair term in
            POS-BERT's released code, off there by default. The teacher's distribution is compared with the student's
            logits of all clouds of the batch, in each view, also the teacher's own: ``64 <p_T(i), z_S(j) /
            student_temperature>``.
        weight: of the term, relative to distillation; the released code has 0.01 for its N-pair term.
        temperature: of InfoNCE; 0.1 as in CrossPoint (Afham et al., 2022).
        queue_length: keys of earlier batches that serve as negatives. Keep it well below the number of clouds of an
            epoch times two: a cloud's own earlier keys are among them.
        hidden: width of the projection's hidden layer.
        dim: width of the projection.
        local_to_global: local views are also matched with their cloud, not only the global views with each other.
    """

    kind: Literal["infonce", "npair_shared_head"] = "infonce"
    weight: float = 0.5
    temperature: float = 0.1
    queue_length: int = 4096
    hidden: int = 2048
    dim: int = 256
    local_to_global: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("infonce", "npair_shared_head"):
            raise ValueError(f'kind must be "infonce" or "npair_shared_head", got {self.kind!r}')


NPAIR_SCALE = 64.0
DISTILLATION, CONTRAST = Distillation(), InstanceContrast()


class Networks(nn.Module):
    """An encoder and its heads, once for the student and once for the teacher.

    Args:
        encoder: encoder of clouds.
        distillation: head that computes logits of prototypes, or None.
        projection: head that computes keys, or None.
    """

    def __init__(self, encoder: ObjectEncoder, distillation: nn.Module | None, projection: nn.Module | None) -> None:
        super().__init__()
        self.encoder, self.distillation, self.projection = encoder, distillation, projection

    def encode(self, views: list[Tensor]) -> list[Tensor]:
        """Features ``(B, C)`` of each view; consecutive views of equal length are encoded together."""
        features: list[Tensor] = []
        for _, alike in groupby(views, key=lambda view: view.shape):
            together = list(alike)
            features += self.encoder.encode(torch.cat(together)).chunk(len(together))
        return features

    def logits(self, features: list[Tensor]) -> list[Tensor]:
        """Cosines with the prototypes, ``(B, K)`` for each view."""
        return _together(self.distillation, features)

    def keys(self, features: list[Tensor]) -> list[Tensor]:
        """Projections of unit length, ``(B, d)`` for each view."""
        projected = _together(self.projection, features)
        return [F.normalize(view.to(torch.promote_types(view.dtype, torch.float32)), dim=1) for view in projected]


def _together(head: nn.Module | None, features: list[Tensor]) -> list[Tensor]:
    assert head is not None
    return list(head(torch.cat(features)).chunk(len(features)))


class DCGLR(Method):
    """DCGLR: a student that sees parts predicts its teacher's output for the whole cloud, and distinguishes clouds.

    Distillation with Contrast is All You Need for Self-Supervised Point Cloud Representation Learning (Fu et al., 2022,
    arXiv 2202.04241). There are two global and several local crops of each cloud. The teacher, an average of earlier
    students, sees the global ones. Loss: ``distillation + contrast.weight * contrast``, or one of them.

    The paper has no official code and states few settings. The other settings come from the released code of POS-BERT
    by the same first author, from DINO and MoCo, or are ours, as the documentation of each part states. This is the
    framework that the paper describes, not a reproduction of its numbers. ``objective`` selects the paper's ablations.

    The teacher runs in training mode with its own running statistics, and without drop path. The run exports its
    encoder.

    Views, and everything else a step draws, are a function of (seed, epoch, batch index, position in the global batch).
    Drop path within an encoder also depends on the process.

    Args:
        encoder: any encoder of objects that takes clouds of different numbers of points: :class:`pc3d.models.ViT3D`
            (as in the paper), :class:`pc3d.models.PointNet`, :class:`pc3d.models.DGCNN`, :class:`pc3d.models.PointViT`.
        objective: ``"both"``, or one term alone: ``"distill"`` is DINO on point clouds, ``"contrast"`` is MoCo.
        crops: the views.
        distillation: the head and temperatures of the distillation term.
        contrast: head, negatives and weight of the contrastive term.
        momentum: of the teacher, at the first and the last step, with a half cosine in between. DINO advises a higher
            first value for small batches: 0.999 below 64 clouds.
        average_buffers: also average the running statistics of batch norm, instead of letting the teacher collect its
            own.
        optimisation: optimiser (AdamW by default) and its schedules.
        seed: of views and drop path.

    Raises:
        ValueError: an unknown objective, or numbers out of range.
    """

    def __init__(
        self,
        encoder: ObjectEncoder,
        objective: Objective = "both",
        crops: MultiCrop = MULTI_CROP,
        distillation: Distillation = DISTILLATION,
        contrast: InstanceContrast = CONTRAST,
        momentum: tuple[float, float] = (0.996, 1.0),
        average_buffers: bool = False,
        optimisation: StepOptimisation = PER_STEP,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if objective not in ("distill", "contrast", "both"):
            raise ValueError(f'objective must be "distill", "contrast" or "both", got {objective!r}')
        if not 0.0 <= min(momentum) <= max(momentum) <= 1.0:
            raise ValueError(f"momentum must be two numbers in [0, 1], got {momentum}")
        self.objective, self.crops, self.distillation, self.contrast = objective, crops, distillation, contrast
        self.momentum, self.average_buffers, self.optimisation = momentum, average_buffers, optimisation
        self.distils, self.contrasts = objective != "contrast", objective != "distill"
        shared_head = self.contrasts and contrast.kind == "npair_shared_head"
        own_head = self.contrasts and contrast.kind == "infonce"
        self.student = Networks(
            encoder,
            DistillationHead(
                encoder.embed_dim, distillation.num_prototypes, distillation.hidden, distillation.bottleneck
            )
            if self.distils or shared_head
            else None,
            ProjectionHead((encoder.embed_dim, contrast.hidden, contrast.dim)) if own_head else None,
        )
        self.teacher = make_teacher(self.student)
        for module in self.teacher.modules():
            if isinstance(module, Transformer):
                module.drop_path_rates = [0.0] * len(module.drop_path_rates)
        self.center: Tensor
        self.register_buffer("center", torch.zeros(1, distillation.num_prototypes))
        self.queue = KeyQueue(contrast.queue_length if own_head else 0, contrast.dim)
        self.watch = CollapseWatch()
        self._total_steps = 0

    @property
    def encoder(self) -> nn.Module:
        """The teacher's encoder."""
        return self.teacher.encoder

    def training_step(self, batch: PointBatch, batch_idx: int) -> Tensor:
        """One step on clouds of equal length."""
        return self._step(batch, self.current_epoch, batch_idx, "train")

    def validation_step(self, batch: PointBatch, batch_idx: int) -> Tensor:
        """The training loss in evaluation mode, on the same views in every epoch; centre and queue do not change."""
        return self._step(batch, 0, batch_idx, "validation")

    def _step(self, batch: PointBatch, epoch: int, batch_idx: int, stage: str) -> Tensor:
        # The views of each cloud; local ones only if a term uses them.
        views = self.views(batch.dense(), self.draws(batch, epoch, batch_idx))

        # The teacher gets the global views, the student all views.
        with self.default_draws(epoch, batch_idx, batch.xyz.device):
            student = self.student.encode([*views.whole, *views.parts])
        with torch.no_grad():
            teacher = self.teacher.encode(views.whole)

        losses, remembered = self.losses(student, teacher)
        loss = torch.stack([self._weight(name) * value for name, value in losses.items()]).sum()
        self._log(stage, {"loss": loss, **losses}, teacher[0], remembered.get("logits"))
        if stage == "train":
            self.remember(remembered)
        return loss

    def views(self, xyz: Tensor, draws: SampleRandom) -> Views:
        """The views of clouds ``(B, N, 3)`` that the objective needs."""
        return self.crops(xyz, draws, parts=self.distils or self.contrast.local_to_global)

    def losses(self, student: list[Tensor], teacher: list[Tensor]) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
        """The unweighted terms, averaged over the global batch, and the values for :meth:`remember`.

        With several processes each value is this process's share: the mean over processes is the global loss.

        Args:
            student: features of all views, the global ones first.
            teacher: features of the global views.
        """
        clouds = mean_over_processes(torch.tensor(float(len(student[0])), device=student[0].device))
        losses, remembered = {}, {}
        if self.student.distillation is not None:
            logits, targets = self.student.logits(student), self._of_teacher("logits", teacher)
            remembered["logits"] = targets
            if self.distils:
                losses["distillation"] = self_distillation(
                    logits,
                    targets,
                    self.center,
                    student_temperature=self.distillation.student_temperature,
                    teacher_temperature=self.distillation.sharpness(self.current_epoch),
                    denominator=clouds,
                )
            if self.contrasts and self.contrast.kind == "npair_shared_head":
                losses["contrast"] = self._n_pair(logits, targets, clouds)
        if self.student.projection is not None:
            seeing = student if self.contrast.local_to_global else student[: len(teacher)]
            keys = [gather_rows(view) for view in self._of_teacher("keys", teacher)]
            remembered["keys"] = keys
            losses["contrast"] = self._info_nce(self.student.keys(seeing), keys, clouds)
        return losses, remembered

    @torch.no_grad()
    def _of_teacher(self, what: Literal["logits", "keys"], features: list[Tensor]) -> list[Tensor]:
        return self.teacher.logits(features) if what == "logits" else self.teacher.keys(features)

    def _info_nce(self, queries: list[Tensor], keys: list[Tensor], clouds: Tensor) -> Tensor:
        """Mean over pairs of different views; candidates are all keys of the teacher's view, and the queue."""
        own, past = self._own(queries[0]), self.queue.keys()
        terms = [
            info_nce(query, key, own, queue=past, temperature=self.contrast.temperature, denominator=clouds)
            for g, key in enumerate(keys)
            for v, query in enumerate(queries)
            if v != g
        ]
        return torch.stack(terms).mean()

    def _n_pair(self, logits: list[Tensor], targets: list[Tensor], clouds: Tensor) -> Tensor:
        """Mean over pairs of views; compares the teacher's distribution with the student's logits of all clouds."""
        own, sharpness = self._own(logits[0]), self.distillation.sharpness(self.current_epoch)
        seeing = logits if self.distils or self.contrast.local_to_global else logits[: len(targets)]
        candidates = [gather_rows(view / self.distillation.student_temperature) for view in seeing]
        terms = [
            info_nce(
                ((target - self.center) / sharpness).softmax(1),
                candidate,
                own,
                temperature=1.0 / NPAIR_SCALE,
                denominator=clouds,
            )
            for target in targets
            for candidate in candidates
        ]
        return torch.stack(terms).mean()

    def _own(self, rows: Tensor) -> Tensor:
        start, _ = share_of_batch(len(rows), rows.device)
        return start + torch.arange(len(rows), device=rows.device)

    @torch.no_grad()
    def remember(self, remembered: dict[str, list[Tensor]]) -> None:
        """Move the centre towards the mean of the teacher's logits and add its keys to the queue, after the loss.

        Args:
            remembered: from :meth:`losses`: ``logits`` of this process's clouds, ``keys`` of all.
        """
        if "logits" in remembered:
            logits = torch.cat(remembered["logits"]).to(self.center.dtype)
            count = mean_over_processes(logits.new_tensor(float(len(logits))))
            mean = mean_over_processes(logits.sum(0, keepdim=True)) / count
            self.center.lerp_(mean, 1.0 - self.distillation.center_momentum)
        if "keys" in remembered:
            self.queue.enqueue(torch.cat(remembered["keys"]))

    def _weight(self, name: str) -> float:
        return self.contrast.weight if name == "contrast" and self.distils else 1.0

    def _log(self, stage: str, losses: dict[str, Tensor], features: Tensor, logits: list[Tensor] | None) -> None:
        sharpened = None
        if logits is not None:
            sharpened = (logits[0] - self.center) / self.distillation.sharpness(self.current_epoch)
        measured = self.watch(features, sharpened) if stage == "train" else {}
        for name, value in {**losses, **measured}.items():
            self.log(
                f"{stage}/{name}",
                value.detach(),
                on_step=stage == "train",
                on_epoch=True,
                prog_bar=name in losses,
                sync_dist=True,
                batch_size=len(features),
            )

    def configure_optimizers(self) -> Any:
        """The optimiser of the student, with schedules of learning rate and weight decay per step."""
        warmup, self._total_steps = self.optimisation.steps(self.trainer)
        undecayed = self.student.encoder.undecayed()
        return self.optimisation.build(self.student, undecayed, warmup, self._total_steps)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Freeze the prototypes in the first epochs."""
        head = self.student.distillation
        if isinstance(head, DistillationHead) and self.current_epoch < self.distillation.frozen_epochs:
            head.prototypes.grad = None

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Limit the norm of the gradient of each tensor and, if the trainer has a limit, of all together."""
        self.optimisation.clip_gradients(optimizer)
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """A step of the student, then the update of the teacher.

        The update is not in a hook after the batch, because that hook runs after the callback that writes checkpoints.
        """
        super().optimizer_step(*arguments, **options)
        momentum = cosine_between(self.trainer.global_step, self._total_steps, *self.momentum)
        update_teacher(self.teacher, self.student, momentum, buffers=self.average_buffers)
