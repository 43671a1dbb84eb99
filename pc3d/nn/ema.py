"""A teacher that follows its student: an exponential moving average of its weights."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def make_teacher(student: AnyModule) -> AnyModule:
    """A copy of a network that no gradient reaches; :func:`update_teacher` moves it."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float, *, buffers: bool = False) -> None:
    """``teacher <- momentum * teacher + (1 - momentum) * student``, for every parameter.

    Args:
        teacher: of :func:`make_teacher`.
        student: the network it is a copy of.
        momentum: in [0, 1]; 1 leaves the teacher as it is, 0 makes it the student.
        buffers: average floating-point buffers (the running statistics of batch norm) too and copy others. Otherwise
            the teacher keeps those of its own forward passes.

    Raises:
        ValueError: a momentum outside of [0, 1], or networks of different parameters.
    """
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"momentum must lie in [0, 1], got {momentum}")
    _average(dict(teacher.named_parameters()), dict(student.named_parameters()), momentum)
    if buffers:
        _average(dict(teacher.named_buffers()), dict(student.named_buffers()), momentum)


def _average(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], momentum: float) -> None:
    if ours.keys() != theirs.keys():
        odd = sorted(ours.keys() ^ theirs.keys())
        raise ValueError(f"teacher and student differ in {len(odd)} tensors: {', '.join(odd[:4])}")
    for name, value in ours.items():
        if value.is_floating_point():
            value.lerp_(theirs[name].to(value.dtype), 1.0 - momentum)
        else:
            value.copy_(theirs[name])


def cosine_between(step: int, steps: int, start: float, end: float) -> float:
    """A half cosine from ``start`` at step 0 to ``end`` at step ``steps`` and after.

    With 0.996 and 1.0 it is the momentum of a teacher in DINO and BYOL; with 0.04 and 0.4 DINO's weight decay.

    Raises:
        ValueError: no steps, or a negative step.
    """
    if steps < 1 or step < 0:
        raise ValueError(f"steps must be at least 1 and step at least 0, got {steps} and {step}")
    return end + (start - end) / 2 * (1.0 + math.cos(math.pi * min(step / steps, 1.0)))
