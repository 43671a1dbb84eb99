"""The optimiser and the published learning-rate schedules of scene segmentation, set once per step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, LambdaLR, LRScheduler, MultiStepLR

from pc3d.nn import TransformerBlock
from pc3d.nn.optim import ADAMW_BETAS, OptimizerFactory, build_optimizer, check_optimizer, warmup_cosine
from pc3d.nn.point_transformer_v3 import PTv3Block
from pc3d.nn.swin3d import SwinBlock

Schedule = Literal["one_cycle", "warmup_cosine", "multi_step", "constant"]
_BLOCKS = (SwinBlock, PTv3Block, TransformerBlock)


def one_cycle(step: int, steps: int, warmup_share: float) -> tuple[float, float]:
    """The one-cycle schedule of learning rate and momentum of Swin3D and Pointcept (Smith and Topin 2017).

    With w = max(``warmup_share * steps`` - 1, 0): a cosine from a tenth of the rate at step 0 to all of it at step w,
    and from there another one to a ten-thousandth at the last step; the first beta of Adam goes from 0.95 to 0.85 and
    back. It is the curve of ``torch.optim.lr_scheduler.OneCycleLR``, which does not allow w = 0 or steps beyond the
    last. Here, a warm-up of less than a step is the first step, and later steps are like the last.

    Args:
        step: from 0.
        steps: of the whole cycle.
        warmup_share: of the steps; 0 starts at the full rate.

    Returns:
        Rate as a share of its peak, and the first beta.
    """
    top = max(warmup_share * steps - 1, 0.0)
    if warmup_share > 0 and step <= top:
        return _cosine(0.1, 1.0, step / top if top else 0.0), _cosine(0.95, 0.85, step / top if top else 0.0)
    along = (step - top) / (steps - 1 - top) if step < steps - 1 else 1.0
    return _cosine(1.0, 1e-4, along), _cosine(0.85, 0.95, along)


def _cosine(start: float, end: float, along: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * along))


@dataclass(frozen=True)
class SegmentationOptimisation:
    """Optimiser (AdamW by default) with a smaller rate for transformer blocks, as in Swin3D's released code.

    Transformer blocks get ``learning_rate * block_factor``; weight decay applies to all parameters.

    Attributes:
        learning_rate: peak of the schedule; not scaled by the batch size.
        block_factor: of the rate of transformer blocks.
        backbone_factor: of the rate of the whole backbone, blocks included; below 1 keeps more of a pre-trained one.
        weight_decay: of every parameter.
        betas: of AdamW; ``"one_cycle"`` moves the first between 0.95 and 0.85, against the rate.
        schedule: ``"one_cycle"``: :func:`one_cycle`; ``"warmup_cosine"``: linear from ``min_learning_rate`` over
            ``warmup_steps``, then the cosine whose clock started at step 0 (Swin3D's released loop is one step late);
            ``"multi_step"``: times 0.1 at each of ``milestones``; ``"constant"``.
        warmup_share: of ``"one_cycle"``, in [0, 1].
        warmup_steps: of ``"warmup_cosine"``.
        min_learning_rate: of ``"warmup_cosine"``, start and end.
        milestones: of ``"multi_step"``, as shares of the whole.
        schedule_epochs: length of the schedule; None for the trainer's ``max_epochs``. Training beyond it continues at
            the last rate.
        optimizer: another optimiser than AdamW, by its class, with the same groups and schedule. ``"one_cycle"`` moves
            the first of its ``betas``, or without them its ``momentum``, as ``OneCycleLR`` does, whatever was given;
            where there is neither, only the rate.
    """

    learning_rate: float = 6e-3
    block_factor: float = 0.1
    backbone_factor: float = 1.0
    weight_decay: float = 0.05
    betas: tuple[float, float] = ADAMW_BETAS
    schedule: Schedule = "one_cycle"
    warmup_share: float = 0.05
    warmup_steps: int = 3000
    min_learning_rate: float = 1e-6
    milestones: tuple[float, ...] = (0.6, 0.8)
    schedule_epochs: int | None = None
    optimizer: OptimizerFactory | None = None

    def __post_init__(self) -> None:
        check_optimizer(self.optimizer, self.betas, self.weight_decay)

    def groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """The trainable parameters in groups of one rate for an optimiser, from the highest.

        Raises:
            ValueError: nothing is trainable.
        """
        of_blocks = {id(p) for block in module.modules() if isinstance(block, _BLOCKS) for p in block.parameters()}
        backbone = getattr(getattr(module, "segmenter", None), "backbone", None)
        of_backbone = set() if backbone is None else {id(p) for p in backbone.parameters()}
        members: dict[float, list[nn.Parameter]] = {}
        for parameter in (parameter for parameter in module.parameters() if parameter.requires_grad):
            rate = self.learning_rate * (self.block_factor if id(parameter) in of_blocks else 1.0)
            rate *= self.backbone_factor if id(parameter) in of_backbone else 1.0
            members.setdefault(rate, []).append(parameter)
        found = [
            {"params": parameters, "lr": rate, "weight_decay": self.weight_decay}
            for rate, parameters in sorted(members.items(), reverse=True)
        ]
        if not found:
            raise ValueError(f"{type(module).__name__} has no trainable parameter: unfreeze some")
        return found

    def build(self, module: nn.Module, steps: int) -> dict[str, Any]:
        """Optimiser and scheduler in the form that Lightning takes from ``configure_optimizers``.

        Args:
            module: the whole model.
            steps: optimiser steps of the whole schedule.

        Raises:
            ValueError: no steps, nothing trainable, an unknown schedule, or a ``warmup_share`` outside of [0, 1].
        """
        if steps < 1:
            raise ValueError(f"the learning-rate schedule needs a length of at least one step, got {steps}")
        optimizer = build_optimizer(self.groups(module), self.learning_rate, self.optimizer, self.betas)
        schedule = self._schedule(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _schedule(self, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
        groups = range(len(optimizer.param_groups))
        if self.schedule == "one_cycle":
            if not 0.0 <= self.warmup_share <= 1.0:
                raise ValueError(f"warmup_share must be between 0 and 1, got {self.warmup_share}")
            return LambdaLR(optimizer, [self._cycle(optimizer, group, steps) for group in groups])
        if self.schedule == "warmup_cosine":
            return LambdaLR(optimizer, [self._factor(group["lr"], steps) for group in optimizer.param_groups])
        if self.schedule == "multi_step":
            at = [round(share * steps) for share in self.milestones]
            return MultiStepLR(optimizer, at, gamma=0.1)
        if self.schedule == "constant":
            return ConstantLR(optimizer, factor=1.0, total_iters=0)
        raise ValueError(f"schedule must be one_cycle, warmup_cosine, multi_step or constant, got {self.schedule!r}")

    def _cycle(self, optimizer: torch.optim.Optimizer, number: int, steps: int) -> Callable[[int], float]:
        def factor(step: int) -> float:
            rate, beta = one_cycle(step, steps, self.warmup_share)
            # Looked up each time: a resumed optimiser has new groups.
            group = optimizer.param_groups[number]
            if "betas" in group:
                group["betas"] = (beta, *group["betas"][1:])
            elif "momentum" in group:
                group["momentum"] = beta
            return rate

        return factor

    def _factor(self, peak: float, steps: int) -> Callable[[int], float]:
        def factor(step: int) -> float:
            # The formula of the masked point models with steps for epochs.
            rate = warmup_cosine(
                step, base=peak, minimum=self.min_learning_rate, warmup_epochs=self.warmup_steps, epochs=steps
            )
            return rate / peak

        return factor
