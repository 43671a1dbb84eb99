"""MoCo v3: identify the view of the same cloud, encoded by an averaged teacher, among those of the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pc3d.losses import info_nce
from pc3d.methods.method import Optimisation
from pc3d.methods.two_views import VIEW, TwoViews
from pc3d.models import ObjectEncoder
from pc3d.nn import (
    ProjectionHead,
    ViewAugmentation,
    cosine_between,
    gather_rows,
    make_teacher,
    mean_over_processes,
    share_of_batch,
    update_teacher,
)

PUBLISHED = Optimisation(learning_rate=1.5e-4, weight_decay=0.1, min_learning_rate=0.0, warmup_epochs=40)


class MoCoV3(TwoViews):
    """MoCo v3 for clouds: momentum contrast without a queue (Chen et al., ICCV 2021, arXiv 2104.02057).

    Encoder, projector and predictor compute queries of both views. An averaged copy of encoder and projector computes
    keys. Loss: InfoNCE of each view's queries with the other view's keys in the batch, both times 2 ``temperature`` as
    in the paper's algorithm 1. From the paper: temperature 0.2, projector and predictor of its vision transformers,
    momentum 0.99 rising to 1 by a cosine, weight decay 0.1, 40 epochs of warm-up; its learning rate of 1.5e-4 is per
    256 images (batches of 4,096). Ours: views of clouds; a learning rate set once per epoch by Point-MAE's schedule,
    whose cosine begins with the warm-up; and no decay of biases, norms and class tokens, while the released code decays
    everything. The patch embedding is not frozen at its initial weights, because a tokenizer of points has more to
    learn than a linear layer of pixels.

    The exported encoder is the trained one, as in the paper, not its average.

    Args:
        encoder: any encoder of objects.
        projector: hidden and output widths of the projector.
        predictor: hidden width of the predictor.
        temperature: of the loss.
        momentum: of the teacher, in the first step.
        view: how both views are made.
        optimisation: optimiser (AdamW by default) and its schedule.
        seed: of views and stochastic depth.

    Raises:
        ValueError: a momentum outside of [0, 1].
    """

    def __init__(
        self,
        encoder: ObjectEncoder,
        projector: Sequence[int] = (4096, 4096, 256),
        predictor: int = 4096,
        temperature: float = 0.2,
        momentum: float = 0.99,
        view: ViewAugmentation = VIEW,
        optimisation: Optimisation = PUBLISHED,
        seed: int = 0,
    ) -> None:
        head = ProjectionHead((encoder.embed_dim, *projector), last_norm=True)
        super().__init__(encoder, head, view, optimisation, seed)
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum must lie in [0, 1], got {momentum}")
        self.temperature, self.momentum = temperature, momentum
        self.predictor = ProjectionHead((projector[-1], predictor, projector[-1]), last_norm=True)
        self.teacher = make_teacher(encoder)
        self.teacher_projector = make_teacher(head)

    def losses(self, features: list[Tensor], views: list[Tensor]) -> dict[str, Tensor]:
        """InfoNCE in both directions, with the keys of all processes."""
        queries = [F.normalize(self.predictor(self.projector(rows)), dim=1) for rows in features]
        with torch.no_grad():
            projections = [self.teacher_projector(self.teacher.encode(view)) for view in views]
            keys = [gather_rows(F.normalize(rows, dim=1)) for rows in projections]
        start, _ = share_of_batch(len(queries[0]), queries[0].device)
        own = torch.arange(start, start + len(queries[0]), device=queries[0].device)
        count = mean_over_processes(torch.tensor(float(len(own)), device=own.device))
        both = [
            info_nce(query, key, own, temperature=self.temperature, denominator=count)
            for query, key in zip(queries, reversed(keys), strict=True)
        ]
        return {"loss": 2 * self.temperature * (both[0] + both[1])}

    def on_train_start(self) -> None:
        """Compute the number of steps over which the momentum rises.

        Raises:
            ValueError: the trainer has no limit of epochs or steps.
        """
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise ValueError("the momentum of the teacher rises over the whole training: set trainer.max_epochs")
        self.num_steps = int(steps)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """A step, then the update of the teacher, before a checkpoint of this step is written."""
        step = self.trainer.global_step
        super().optimizer_step(*args, **kwargs)
        momentum = cosine_between(step, self.num_steps, self.momentum, 1.0)
        update_teacher(self.teacher, self.backbone, momentum)
        update_teacher(self.teacher_projector, self.projector, momentum)
