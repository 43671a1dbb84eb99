"""The optimiser, its parameter groups, and the learning-rate schedule of the masked point models."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, Protocol

import torch
from torch import nn

Stepping = Literal["clean", "official"]
ADAMW_BETAS = (0.9, 0.999)


class OptimizerFactory(Protocol):
    """A class of optimisers, or a ``functools.partial`` of one that sets its options; in a recipe, its ``class_path``.

    Learning rate and weight decay come with the parameter groups, and are no options of the class in a recipe.
    """

    def __call__(self, params: Any, /, *, lr: float, weight_decay: float = ...) -> torch.optim.Optimizer:
        """The optimiser of some parameters or groups of them."""
        ...


def build_optimizer(
    groups: list[dict[str, Any]],
    learning_rate: float,
    optimizer: OptimizerFactory | None = None,
    betas: tuple[float, float] = ADAMW_BETAS,
) -> torch.optim.Optimizer:
    """The optimiser of some groups of parameters.

    Args:
        groups: each with its ``weight_decay``.
        learning_rate: of groups that have no ``lr``.
        optimizer: what makes it; None for AdamW.
        betas: of AdamW.

    Raises:
        ValueError: ``betas`` for another optimiser than AdamW; or it does not take these parameters or groups, has no
            weight decay where a group is to have some, or cannot make a step.
    """
    if optimizer is None:
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas)
    built = _built(groups, learning_rate, optimizer, betas)
    _check_step(optimizer, next(parameter.device for group in groups for parameter in group["params"]))
    return built


def _built(
    groups: list[dict[str, Any]], learning_rate: float, optimizer: OptimizerFactory, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    name = _name_of(optimizer)
    if tuple(betas) != ADAMW_BETAS:
        raise ValueError(
            f"betas={tuple(betas)} are those of AdamW, which is not used beside an optimizer: leave them out, and give "
            f"{name} its own, if it has some, as optimizer.betas"
        )
    try:
        built = optimizer(groups, lr=learning_rate)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"optimizer: {name} cannot be used: {error}. It gets all trainable parameters (matrices, vectors, tokens), "
            "in groups with a weight_decay each, and lr"
        ) from error
    if "weight_decay" not in built.defaults and any(group["weight_decay"] for group in groups):
        raise ValueError(f"optimizer: {name} has no weight decay: set weight_decay of the optimisation to 0")
    return built


def check_optimizer(optimizer: OptimizerFactory | None, betas: tuple[float, float], weight_decay: float) -> None:
    """Raise what :func:`build_optimizer` would, before a run begins: try a matrix and a vector, as every model has."""
    if optimizer is None:
        return
    parameters = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))]
    _built([{"params": parameters, "weight_decay": weight_decay}], 1e-3, optimizer, betas)
    try:
        _check_step(optimizer, torch.device("cpu"))
    except ValueError:
        if not torch.cuda.is_available():
            raise
        _check_step(optimizer, torch.device("cuda"))  # some work on a GPU alone


def _check_step(optimizer: OptimizerFactory, device: torch.device) -> None:
    """Try a step as training makes it, on parameters of its own.

    Raises:
        ValueError: it wants other gradients, such as sparse ones or their graph.
    """
    parameters = [nn.Parameter(torch.ones(shape, device=device)) for shape in ((2, 2), (2,))]
    tried = optimizer([{"params": parameters, "weight_decay": 0.0}], lr=1e-3)

    @torch.enable_grad()  # as Lightning's, for steps without gradients that do not turn them on for it
    def closure() -> Any:
        tried.zero_grad()
        loss = torch.stack([parameter.square().sum() for parameter in parameters]).sum()
        loss.backward()
        return loss

    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            tried.step(closure=closure)
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"optimizer: {_name_of(optimizer)} cannot make a step: {error}. It gets dense gradients, without their "
            "graph: take an optimiser that needs no more, such as torch.optim.SGD"
        ) from error


def _name_of(factory: Any) -> str:
    """The name of the class that a factory makes, of which jsonargparse gives a partial of a function."""
    made = [part for part in getattr(factory, "args", ()) if isinstance(part, type)]
    made = made or [getattr(factory, "func", factory)]
    return getattr(made[0], "__name__", repr(factory))


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
