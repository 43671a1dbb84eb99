"""Teacher networks: exponential moving averages of the weights of a student."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def make_teacher(student: AnyModule) -> AnyModule:
    """A copy of a network without gradients; :func:`update_teacher` updates it."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float, *, buffers: bool = False) -> None:
    """``teacher <- momentum * teacher + (1 - momentum) * student``, for every parameter.

    Args:
        teacher: from :func:`make_teacher`.
        student: the network that the teacher was copied from.
        momentum: in [0, 1]; 1 does not change the teacher, 0 copies the student.
        buffers: also average floating-point buffers (running statistics of batch norm) and copy the other buffers.
            If False, the teacher keeps the buffers of its own forward passes.

    Raises:
        ValueError: a momentum outside of [0, 1], or networks with different parameters.
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
    """A half cosine from ``start`` at step 0 to ``end`` at step ``steps``, constant afterwards.

    From 0.996 to 1.0 it is the momentum of the teacher in DINO and BYOL; from 0.04 to 0.4, DINO's weight decay.

    Raises:
        ValueError: ``steps`` below 1, or a negative step.
    """
    if steps < 1 or step < 0:
        raise ValueError(f"steps must be at least 1 and step at least 0, got {steps} and {step}")
    return end + (start - end) / 2 * (1.0 + math.cos(math.pi * min(step / steps, 1.0)))
