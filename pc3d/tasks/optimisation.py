"""AdamW and the published learning-rate schedules of scene segmentation, set once per step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from pc3d.nn import TransformerBlock
from pc3d.nn.optim import warmup_cosine
from pc3d.nn.swin3d import SwinBlock

Schedule = Literal["one_cycle", "warmup_cosine", "multi_step", "constant"]
_BLOCKS = (SwinBlock, TransformerBlock)


@dataclass(frozen=True)
class SegmentationOptimisation:
    """AdamW with a smaller rate for transformer blocks, as Swin3D is trained (released code and configurations).

    Transformer blocks get ``learning_rate * block_factor``; weight decay applies to all parameters.

    Attributes:
        learning_rate: peak of the schedule; not scaled by the batch size.
        block_factor: of the rate of transformer blocks.
        weight_decay: of every parameter.
        betas: of AdamW; ``"one_cycle"`` moves the first between 0.95 and 0.85, against the rate.
        schedule: ``"one_cycle"``: cosine up from a tenth over the first ``warmup_share`` of the steps, cosine down to
            a ten-thousandth (``torch.optim.lr_scheduler.OneCycleLR``); ``"warmup_cosine"``: linear from
            ``min_learning_rate`` over ``warmup_steps``, then the cosine whose clock started at step 0;
            ``"multi_step"``: times 0.1 at each of ``milestones``; ``"constant"``.
        warmup_share: of ``"one_cycle"``.
        warmup_steps: of ``"warmup_cosine"``.
        min_learning_rate: of ``"warmup_cosine"``, start and end.
        milestones: of ``"multi_step"``, as shares of the whole.
        schedule_epochs: length of the schedule; the trainer's ``max_epochs`` when None.
    """

    learning_rate: float = 6e-3
    block_factor: float = 0.1
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Schedule = "one_cycle"
    warmup_share: float = 0.05
    warmup_steps: int = 3000
    min_learning_rate: float = 1e-6
    milestones: tuple[float, ...] = (0.6, 0.8)
    schedule_epochs: int | None = None

    def groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """The trainable parameters in groups for an optimiser: those of blocks last; an empty group is left out.

        Raises:
            ValueError: nothing is trainable.
        """
        of_blocks = {id(p) for block in module.modules() if isinstance(block, _BLOCKS) for p in block.parameters()}
        trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        members = (
            ([p for p in trainable if id(p) not in of_blocks], self.learning_rate),
            ([p for p in trainable if id(p) in of_blocks], self.learning_rate * self.block_factor),
        )
        found = [{"params": parameters, "lr": rate} for parameters, rate in members if parameters]
        if not found:
            raise ValueError(f"{type(module).__name__} has no trainable parameter: unfreeze some")
        return found

    def build(self, module: nn.Module, steps: int) -> dict[str, Any]:
        """Optimiser and scheduler in the form that Lightning takes from ``configure_optimizers``.

        Args:
            module: the whole model.
            steps: optimiser steps of the whole schedule.

        Raises:
            ValueError: no steps, nothing trainable, or an unknown schedule.
        """
        if steps < 1:
            raise ValueError(f"the learning-rate schedule needs a length of at least one step, got {steps}")
        groups = self.groups(module)
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas, weight_decay=self.weight_decay)
        schedule = self._schedule(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _schedule(self, optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        rates: list[float] = [group["lr"] for group in optimizer.param_groups]
        if self.schedule == "one_cycle":
            return torch.optim.lr_scheduler.OneCycleLR(
                optimizer, rates, total_steps=steps, pct_start=self.warmup_share, div_factor=10, final_div_factor=1000
            )
        if self.schedule == "warmup_cosine":
            return torch.optim.lr_scheduler.LambdaLR(optimizer, [self._factor(rate, steps) for rate in rates])
        if self.schedule == "multi_step":
            at = [round(share * steps) for share in self.milestones]
            return torch.optim.lr_scheduler.MultiStepLR(optimizer, at, gamma=0.1)
        if self.schedule == "constant":
            return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)
        raise ValueError(f"schedule must be one_cycle, warmup_cosine, multi_step or constant, got {self.schedule!r}")

    def _factor(self, peak: float, steps: int) -> Callable[[int], float]:
        def factor(step: int) -> float:
            # The formula of the masked point models with steps for epochs.
            rate = warmup_cosine(
                step, base=peak, minimum=self.min_learning_rate, warmup_epochs=self.warmup_steps, epochs=steps
            )
            return rate / peak

        return factor
