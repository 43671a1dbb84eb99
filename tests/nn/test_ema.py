"""A teacher that follows its student, and half cosines."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pc3d.nn import GlobalBatchNorm, cosine_between, make_teacher, update_teacher


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(3, 4), GlobalBatchNorm(4))
    teacher = make_teacher(student)
    student(torch.randn(8, 3))  # moves the student's running statistics
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter))
    return teacher, student


def test_a_teacher_starts_as_a_copy_without_gradient() -> None:
    student = nn.Linear(3, 4)
    teacher = make_teacher(student)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), student.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("buffers", [False, True])
def test_the_update_is_the_formula(momentum: float, buffers: bool) -> None:
    teacher, student = networks()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    update_teacher(teacher, student, momentum, buffers=buffers)
    parameters = {name for name, _ in teacher.named_parameters()}
    for name, value in teacher.state_dict().items():
        theirs = student.state_dict()[name]
        if name not in parameters and not buffers:
            assert torch.equal(value, before[name]), name
        elif value.is_floating_point():
            expected = momentum * before[name].double() + (1 - momentum) * theirs.double()
            torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-6, msg=name)
        else:
            assert torch.equal(value, theirs), name
    if momentum == 1.0 and not buffers:
        assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    if momentum == 0.0 and buffers:
        assert all(torch.equal(value, student.state_dict()[name]) for name, value in teacher.state_dict().items())


def test_half_cosines() -> None:
    assert cosine_between(0, 100, 0.996, 1.0) == pytest.approx(0.996)
    assert cosine_between(50, 100, 0.996, 1.0) == pytest.approx(0.998)
    assert cosine_between(100, 100, 0.996, 1.0) == cosine_between(1000, 100, 0.996, 1.0) == 1.0
    assert cosine_between(25, 100, 0.04, 0.4) == pytest.approx(0.4 - 0.36 * (1 + math.sqrt(0.5)) / 2)


def test_bad_arguments_are_refused() -> None:
    teacher, student = networks()
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\], got 1\.5"):
        update_teacher(teacher, student, 1.5)
    with pytest.raises(ValueError, match=r"differ in 2 tensors: 1\.bias, 1\.weight"):
        update_teacher(teacher, nn.Sequential(nn.Linear(3, 4)), 0.5)
    for step, steps in ((0, 0), (-1, 5)):
        with pytest.raises(ValueError, match="steps must be at least 1 and step at least 0"):
            cosine_between(step, steps, 0.0, 1.0)
