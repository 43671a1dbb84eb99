"""An optimiser whose learning rate and weight decay are set before every step (DINO's recipe)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from pc3d.nn import cosine_between, weight_decay_groups
from pc3d.nn.optim import ADAMW_BETAS, OptimizerFactory, build_optimizer, check_optimizer


@dataclass(frozen=True)
class StepOptimisation:
    """Optimiser (AdamW by default) with a linear warm-up from 0 and cosine schedules of learning rate and weight decay.

    The defaults are those of POS-BERT's released code, which are DINO's except for the learning rate.

    Attributes:
        learning_rate: learning rate at the end of the warm-up. The default is for a global batch of 64. It is not
            scaled by the batch size (the released code multiplies it by global batch / 64).
        min_learning_rate: learning rate at the end of the cosine.
        warmup_epochs: length of the warm-up.
        weight_decay: first and last value of a half cosine over all steps; one-dimensional parameters are not decayed.
        betas: of AdamW.
        clip: largest norm of the gradient of each single parameter tensor; None for no limit. (The trainer's
            ``gradient_clip_val`` limits the norm of all together.)
        schedule_epochs: length of the schedules; None for the trainer's ``max_epochs``.
        optimizer: another optimiser than AdamW, by its class, with the same groups and schedules.
    """

    learning_rate: float = 5e-3
    min_learning_rate: float = 1e-5
    warmup_epochs: int = 20
    weight_decay: tuple[float, float] = (0.04, 0.4)
    betas: tuple[float, float] = ADAMW_BETAS
    clip: float | None = 3.0
    schedule_epochs: int | None = None
    optimizer: OptimizerFactory | None = None

    def __post_init__(self) -> None:
        if not self.learning_rate > 0.0 or self.warmup_epochs < 0:
            raise ValueError(
                "learning_rate must be positive and warmup_epochs not negative, got "
                f"{self.learning_rate} and {self.warmup_epochs}"
            )
        if self.clip is not None and not self.clip > 0.0:
            raise ValueError(f"clip must be positive, or None for no limit, got {self.clip}")
        check_optimizer(self.optimizer, self.betas, max(self.weight_decay))

    def steps(self, trainer: pl.Trainer) -> tuple[int, int]:
        """Steps of the warm-up and of the whole schedule.

        Raises:
            ValueError: neither ``schedule_epochs`` nor the trainer sets the length of the schedule.
        """
        per_epoch = math.ceil(_batches(trainer) / trainer.accumulate_grad_batches)
        if self.schedule_epochs is None and trainer.max_steps > 0:
            total = trainer.max_steps
        else:
            total = per_epoch * (self.schedule_epochs or trainer.max_epochs or 0)
        if total < 1:
            raise ValueError(
                f"the schedules need a length: set trainer.max_epochs (got {trainer.max_epochs}) or schedule_epochs "
                f"(got {self.schedule_epochs})"
            )
        return min(self.warmup_epochs * per_epoch, total), total

    def rate(self, step: int, warmup: int, total: int) -> float:
        """Learning rate of a step, from 0; it peaks at the last step of the warm-up and the first of the cosine."""
        if step < warmup:
            return self.learning_rate * step / max(warmup - 1, 1)
        return cosine_between(step - warmup, max(total - warmup, 1), self.learning_rate, self.min_learning_rate)

    def build(self, module: nn.Module, undecayed: Iterable[nn.Parameter], warmup: int, total: int) -> dict[str, Any]:
        """Optimiser and scheduler in the form that Lightning expects from ``configure_optimizers``.

        Args:
            module: whose trainable parameters to optimise.
            undecayed: parameters without weight decay, besides one-dimensional ones.
            warmup: number of steps of the warm-up, see :meth:`steps`.
            total: number of steps of the whole schedule.
        """
        groups = weight_decay_groups(module, self.weight_decay[0], undecayed)
        optimizer = build_optimizer(groups, self.learning_rate, self.optimizer, self.betas)

        def factor(step: int) -> float:
            # Read the groups each time, because a resumed optimiser has new ones.
            optimizer.param_groups[0]["weight_decay"] = cosine_between(step, total, *self.weight_decay)
            return self.rate(step, warmup, total) / self.learning_rate

        # LambdaLR calls the function for each group; it sets the weight decay of the first, the only group with decay.
        schedule = LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def clip_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Limit the norm of each tensor's gradient."""
        if self.clip is None:
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                nn.utils.clip_grad_norm_([parameter], self.clip)


def _batches(trainer: pl.Trainer) -> int:
    """Number of training batches of an epoch."""
    data: pl.LightningDataModule | None = getattr(trainer, "datamodule", None)
    if data is None:
        _ = trainer.estimated_stepping_batches  # loads the data
        return int(trainer.num_training_batches)
    # Lightning's own estimate would start the train loader before a resumed run restores its position in the epoch.
    batches, limit = len(data.train_dataloader()), trainer.limit_train_batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


PER_STEP = StepOptimisation()
