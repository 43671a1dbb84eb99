"""Self-distillation without labels: the student's views predict what the teacher says of another view."""

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
    """Cross-entropy of the student to the centred and sharpened teacher, mean over pairs of different views.

    With ``p(g) = softmax((teacher_g - center) / teacher_temperature)``, without gradient, it is the mean over teacher
    views g and student views v other than g of ``-sum_k p(g)_k log softmax(student_v / student_temperature)_k``:
    ``len(teacher) * (len(student) - 1)`` pairs. Subtracting the centre keeps one prototype from taking all clouds,
    the low temperature keeps all from being alike.

    Args:
        student: ``(B, K)`` logits per view; the first are the teacher's views in the teacher's order.
        teacher: ``(B, K)`` logits per view.
        center: ``(K,)`` or ``(1, K)``, the running mean of the teacher's logits.
        student_temperature: positive.
        teacher_temperature: positive.
        denominator: scalar to divide the sum over clouds by instead of B; with several processes, its mean over them
            (:func:`pc3d.nn.mean_over_processes`).

    Returns:
        Scalar, float32 or wider.

    Raises:
        ValueError: views that differ in shape, too few of them, or a temperature that is not positive.

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
            if v != g  # a view says nothing new about itself
        ]
        clouds = torch.tensor(float(len(student[0])), device=center.device) if denominator is None else denominator
        return torch.stack(terms).mean() / clouds
