"""The optimiser and its schedule for fine-tuning of classification and part segmentation, set once per epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from pc3d.nn import epoch_learning_rate, weight_decay_groups
from pc3d.nn.optim import ADAMW_BETAS, OptimizerFactory, Stepping, build_optimizer, check_optimizer


@dataclass(frozen=True)
class FineTuning:
    """Optimiser (AdamW by default) as in fine-tuning of Point-MAE's family: warm-up, cosine, no decay of 1D parameters.

    Attributes:
        learning_rate: peak of the schedule, not scaled by the batch size; None for the task's published value.
        weight_decay: of everything but one-dimensional parameters and class tokens.
        betas: of AdamW.
        layer_decay: the learning rate of a layer divided by that of the layer above it. 1 turns it off, as published
            for this family. With d blocks and a decay r, the patch embedding, the position embedding and the class
            tokens learn at r^(d + 1) of the rate, block i (from 0) at r^(d - i), the final norm and the head at the
            full rate, as in the fine-tuning of BEiT and MAE.
        min_learning_rate: start of the warm-up and end of the cosine, at the full rate.
        warmup_epochs: length of the linear warm-up.
        schedule_epochs: length of the schedule; None for the trainer's ``max_epochs``.
        stepping: ``"clean"`` sets the rate before each epoch; ``"official"`` repeats the released loops, which lag an
            epoch behind (:func:`pc3d.nn.epoch_learning_rate`).
        optimizer: another optimiser than AdamW, by its class, with the same groups and schedule.
    """

    learning_rate: float | None = None
    weight_decay: float = 0.05
    betas: tuple[float, float] = ADAMW_BETAS
    layer_decay: float = 1.0
    min_learning_rate: float = 1e-6
    warmup_epochs: int = 10
    schedule_epochs: int | None = None
    stepping: Stepping = "clean"
    optimizer: OptimizerFactory | None = None

    def __post_init__(self) -> None:
        check_optimizer(self.optimizer, self.betas, self.weight_decay)

    def groups(self, model: nn.Module, encoder: nn.Module, peak: float) -> list[dict[str, Any]]:
        """The trainable parameters in groups for an optimiser, from the lowest layer up; an empty one is left out.

        Args:
            model: whose parameters to group.
            encoder: the part of it that has layers.
            peak: learning rate of the topmost layer.

        Raises:
            ValueError: ``layer_decay`` is not in (0, 1], it is below 1 and the encoder has no blocks, or nothing is
                trainable.
        """
        if not 0.0 < self.layer_decay <= 1.0:
            raise ValueError(f"layer_decay must be in (0, 1], got {self.layer_decay}; 1 is off")
        spared: list[nn.Parameter] = getattr(encoder, "undecayed", list)()
        found: list[dict[str, Any]] = []
        for members, height in _layers(model, encoder, self.layer_decay):
            rate = peak * self.layer_decay**height
            own = {id(parameter) for parameter in members.parameters()}
            undecayed = [parameter for parameter in spared if id(parameter) in own]
            found += [{**group, "lr": rate} for group in weight_decay_groups(members, self.weight_decay, undecayed)]
        found = [group for group in found if group["params"]]
        if not found:
            raise ValueError(f"{type(model).__name__} has no trainable parameter: unfreeze some")
        return found

    def build(self, model: nn.Module, encoder: nn.Module, peak: float, max_epochs: int | None) -> dict[str, Any]:
        """Optimiser and scheduler in the form that Lightning takes from ``configure_optimizers``.

        Args:
            model: see :meth:`groups`.
            encoder: see :meth:`groups`.
            peak: the task's published learning rate, which ``learning_rate`` replaces.
            max_epochs: of the trainer.

        Raises:
            ValueError: as :meth:`groups`, or nothing says how long the schedule is.
        """
        peak = peak if self.learning_rate is None else self.learning_rate
        epochs = self.schedule_epochs if self.schedule_epochs is not None else max_epochs
        if epochs is None or epochs < 1:
            raise ValueError(
                f"the learning-rate schedule needs a length: set trainer.max_epochs (got {max_epochs}) "
                f"or schedule_epochs (got {self.schedule_epochs})"
            )
        optimizer = build_optimizer(self.groups(model, encoder, peak), peak, self.optimizer, self.betas)

        def factor(epoch: int) -> float:
            rate = epoch_learning_rate(
                epoch,
                stepping=self.stepping,
                base=peak,
                minimum=self.min_learning_rate,
                warmup_epochs=self.warmup_epochs,
                epochs=epochs,
            )
            return rate / peak

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "epoch"}}


class _Members(nn.Module):
    """Some parameters, as a module whose others they are."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__()
        self.members = nn.ParameterList(parameters)


def _layers(model: nn.Module, encoder: nn.Module, decay: float) -> list[tuple[nn.Module, int]]:
    """The parameters of each layer, and how many layers are above it."""
    if decay == 1.0:
        return [(model, 0)]
    blocks = getattr(getattr(encoder, "transformer", None), "blocks", None)
    if blocks is None:
        raise ValueError(
            f"layer_decay={decay} needs an encoder with transformer blocks, {type(encoder).__name__} has none: leave "
            "it at 1"
        )
    above = {id(parameter): len(blocks) - i for i, block in enumerate(blocks) for parameter in block.parameters()}
    top = {id(parameter) for parameter in getattr(encoder, "norm", nn.Identity()).parameters()}
    below = {id(p): len(blocks) + 1 for p in encoder.parameters() if id(p) not in above and id(p) not in top}
    heights = {**above, **below}
    levels: dict[int, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        levels.setdefault(heights.get(id(parameter), 0), []).append(parameter)
    return [(_Members(levels[height]), height) for height in sorted(levels, reverse=True)]
