"""Self-distillation against a calculation by hand and against loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pc3d.losses import self_distillation


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def test_three_prototypes_by_hand() -> None:
    """One cloud, the teacher sees g1 and g2, the student these two and one local view: four pairs."""
    student = {"g1": [0.1, 0.2, 0.3], "g2": [0.0, 0.5, -0.5], "l1": [0.3, -0.1, 0.2]}
    teacher = {"g1": [0.2, 0.1, 0.0], "g2": [-0.1, 0.4, 0.1]}
    center = [0.05, 0.1, -0.05]
    terms = []
    for g, v in (("g1", "g2"), ("g1", "l1"), ("g2", "g1"), ("g2", "l1")):
        target = softmax([(t - c) / 0.04 for t, c in zip(teacher[g], center, strict=True)])
        predicted = softmax([s / 0.1 for s in student[v]])
        terms.append(-sum(t * math.log(p) for t, p in zip(target, predicted, strict=True)))
    value = self_distillation(
        [torch.tensor([view]) for view in student.values()],
        [torch.tensor([view]) for view in teacher.values()],
        torch.tensor(center),
    )
    assert value.item() == pytest.approx(sum(terms) / 4, rel=1e-5)


def views(count: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 7, generator=generator, requires_grad=True) for _ in range(count)]


@pytest.mark.parametrize(("num_student", "num_teacher"), [(10, 2), (2, 2), (4, 1)])
def test_the_number_of_pairs(num_student: int, num_teacher: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 global and 8 local views are 18 terms."""
    counted = []
    stack = torch.stack
    monkeypatch.setattr(torch, "stack", lambda terms: counted.append(len(terms)) or stack(terms))
    self_distillation(views(num_student, 0), views(num_teacher, 1), torch.zeros(1, 7))
    assert counted == [num_teacher * (num_student - 1)]


def test_no_gradient_reaches_the_teacher_and_each_view_of_the_student_gets_its_share() -> None:
    student, teacher = views(4, 0), views(2, 1)
    center = torch.zeros(1, 7)
    self_distillation(student, teacher, center).backward()
    assert all(view.grad is None for view in teacher)
    for v, view in enumerate(student):
        # d/dz of the cross-entropy is (softmax - target) / temperature, over 6 pairs and 5 clouds.
        targets = [(t.detach() / 0.04).softmax(1) for g, t in enumerate(teacher) if g != v]
        expected = torch.stack([((view / 0.1).softmax(1) - t) / 0.1 for t in targets]).sum(0) / (6 * 5)
        assert view.grad is not None
        torch.testing.assert_close(view.grad, expected.detach())


def test_shares_of_processes_and_half_precision() -> None:
    student, teacher, center = views(3, 0), views(2, 1), torch.zeros(1, 7)
    whole = self_distillation(student, teacher, center)
    shares = [
        self_distillation([v[part] for v in student], [v[part] for v in teacher], center, denominator=torch.tensor(2.5))
        for part in (slice(0, 2), slice(2, 5))
    ]
    torch.testing.assert_close(torch.stack(shares).mean(), whole)
    half = self_distillation([v.bfloat16() for v in student], [v.bfloat16() for v in teacher], center)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(whole.item(), rel=0.02)


def test_bad_arguments_are_refused() -> None:
    center = torch.zeros(1, 7)
    for student, teacher in ((1, 1), (2, 3), (2, 0)):
        with pytest.raises(ValueError, match=f"got {teacher} of the teacher and {student} of the student"):
            self_distillation(views(student, 0), views(teacher, 1), center)
    with pytest.raises(ValueError, match=r"same shape \(B, K\)"):
        self_distillation(views(2, 0), [view[:3] for view in views(2, 1)], center)
    with pytest.raises(ValueError, match="teacher_temperature must be positive, got 0"):
        self_distillation(views(2, 0), views(2, 1), center, teacher_temperature=0.0)
