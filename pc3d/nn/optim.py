"""Parameter groups for the optimiser, and the learning-rate schedule of the masked point models."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

Stepping = Literal["clean", "official"]


def weight_decay_groups(
    module: nn.Module, weight_decay: float, undecayed: Iterable[nn.Parameter]
) -> list[dict[str, Any]]:
    """Split the trainable parameters by whether weight decay applies.

    Weight decay does not apply to one-dimensional parameters (biases, LayerNorm, BatchNorm) and to those in
    ``undecayed`` (class and mask tokens). Tokens are passed as parameters, not found by name, so renaming one cannot
    change the optimisation.

    Args:
        module: the module whose parameters are grouped.
        weight_decay: weight decay of the first group.
        undecayed: parameters of ``module`` without weight decay, of any shape.

    Returns:
        Two groups for a ``torch.optim`` optimiser: decayed, then undecayed.

    Raises:
        ValueError: ``undecayed`` holds a parameter that does not belong to the module.
    """
    exempt = {id(parameter) for parameter in undecayed}
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    unknown = exempt - {id(parameter) for parameter in module.parameters()}
    if unknown:
        raise ValueError(f"undecayed holds {len(unknown)} parameters that do not belong to {type(module).__name__}")
    decayed = [p for p in trainable if p.ndim > 1 and id(p) not in exempt]
    spared = [p for p in trainable if p.ndim <= 1 or id(p) in exempt]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]


def warmup_cosine(
    time: float, *, base: float = 1e-3, minimum: float = 1e-6, warmup_epochs: int = 10, epochs: int = 300
) -> float:
    """Learning rate at ``time`` epochs: linear warm-up from ``minimum``, then a cosine down to ``minimum``.

    The phase of the cosine counts from epoch 0, not from the end of the warm-up. The cosine therefore starts slightly
    below ``base``, and the rate never reaches ``base`` (the schedule of the Point-MAE family).
    """
    if time < warmup_epochs:
        return minimum + time * (base - minimum) / warmup_epochs
    if time < epochs:
        return minimum + 0.5 * (base - minimum) * (1.0 + math.cos(math.pi * time / epochs))
    return minimum


def epoch_learning_rate(
    epoch: int,
    *,
    stepping: Stepping = "clean",
    base: float = 1e-3,
    minimum: float = 1e-6,
    warmup_epochs: int = 10,
    epochs: int = 300,
) -> float:
    """Learning rate of an epoch.

    Args:
        epoch: from 0.
        stepping: ``"clean"`` sets the rate before the epoch. ``"official"`` repeats the released loops, which step the
            schedule after each epoch with the number of the epoch just finished: epochs 0 and 1 both run at
            ``minimum``, and every later epoch runs one epoch behind.
        base: peak of the schedule.
        minimum: start and end of the schedule.
        warmup_epochs: length of the linear warm-up.
        epochs: length of the schedule.
    """
    time = epoch if stepping == "clean" else max(epoch - 1, 0)
    return warmup_cosine(time, base=base, minimum=minimum, warmup_epochs=warmup_epochs, epochs=epochs)
