"""Self-distillation without labels: the student predicts the output of the teacher for another view."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def self_distillation(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    center: Tensor,
    *,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    denominator: Tensor | None = None,
) -> Tensor:
    """Cross-entropy between centred, sharpened teacher and student, mean over pairs of different views.

    With ``p(g) = softmax((teacher_g - center) / teacher_temperature)``, without gradient, the loss is the mean of
    ``-sum_k p(g)_k log softmax(student_v / student_temperature)_k`` over all teacher views g and all student views v
    other than g, ``len(teacher) * (len(student) - 1)`` pairs. Subtraction of the centre prevents that one prototype
    dominates; the low temperature prevents a uniform distribution.

    Args:
        student: ``(B, K)`` logits of each view; the first views are those of the teacher, in the same order.
        teacher: ``(B, K)`` logits of each view.
        center: ``(K,)`` or ``(1, K)``, the running mean of the teacher's logits.
        student_temperature: positive.
        teacher_temperature: positive.
        denominator: scalar that replaces B as divisor of the sum over clouds; with several processes, the mean of B
            over them (:func:`pc3d.nn.mean_over_processes`).

    Returns:
        Scalar, float32 or wider.

    Raises:
        ValueError: views that differ in shape, too few views, or a temperature that is not positive.

    Source:
        DINO (Caron et al., 2021), equations 3 and 4.
    """
    if len(teacher) < 1 or len(student) < max(len(teacher), 2):
        raise ValueError(
            "there must be a teacher view, two student views, and a student view for each of the teacher's; got "
            f"{len(teacher)} of the teacher and {len(student)} of the student"
        )
    shapes = {tuple(view.shape) for view in (*student, *teacher)}
    if len(shapes) != 1 or teacher[0].ndim != 2:
        raise ValueError(f"all views must have the same shape (B, K), got {sorted(shapes)}")
    for name, value in (("student_temperature", student_temperature), ("teacher_temperature", teacher_temperature)):
        if not value > 0.0:
            raise ValueError(f"{name} must be positive, got {value}")
    with torch.autocast(student[0].device.type, enabled=False):
        dtype = torch.promote_types(student[0].dtype, torch.float32)
        predicted = [(view.to(dtype) / student_temperature).log_softmax(1) for view in student]
        targets = [((view.detach().to(dtype) - center) / teacher_temperature).softmax(1) for view in teacher]
        terms = [
            -(target * predicted[v]).sum()
            for g, target in enumerate(targets)
            for v in range(len(predicted))
            if v != g  # a view would be compared with itself
        ]
        clouds = torch.tensor(float(len(student[0])), device=center.device) if denominator is None else denominator
        return torch.stack(terms).mean() / clouds
