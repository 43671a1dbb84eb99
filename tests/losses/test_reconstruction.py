"""Chamfer distance of patches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pc3d.losses import patch_chamfer


def by_hand(predicted: Tensor, target: Tensor) -> tuple[float, float]:
    """CD-L2 and CD-L1 as means over all points of all patches."""
    forward, backward = [], []
    for p, q in zip(predicted.flatten(0, 1), target.flatten(0, 1), strict=True):
        squared = (p[:, None] - q[None]).square().sum(-1)
        forward += squared.min(1).values.tolist()
        backward += squared.min(0).values.tolist()
    f, b = torch.tensor(forward, dtype=torch.float64), torch.tensor(backward, dtype=torch.float64)
    return float(f.mean() + b.mean()), float((f.sqrt().mean() + b.sqrt().mean()) / 2)


def test_it_is_the_mean_over_points_of_all_patches() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, target = (torch.randn(2, 5, 7, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    squared, plain = by_hand(predicted, target)
    assert patch_chamfer(predicted, target).item() == pytest.approx(squared, abs=1e-12)
    assert patch_chamfer(predicted, target, kind="l1").item() == pytest.approx(plain, abs=1e-12)


def test_one_point_against_another() -> None:
    predicted, target = torch.zeros(1, 1, 1, 3), torch.tensor([1.0, 0, 0]).view(1, 1, 1, 3)
    assert patch_chamfer(predicted, target) == 2
    assert patch_chamfer(predicted, target, kind="l1") == 1
    assert patch_chamfer(target, target) == 0


def test_gradient_moves_the_prediction() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, target = (torch.randn(1, 2, 4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(lambda p: patch_chamfer(p, target), (predicted.requires_grad_(),))


def test_shares_of_two_processes_average_to_the_whole() -> None:
    predicted, target = torch.randn(3, 4, 5, 3), torch.randn(3, 4, 5, 3)
    parts = [
        patch_chamfer(predicted[part], target[part], denominator=torch.tensor(6.0))
        for part in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), patch_chamfer(predicted, target))


def test_half_precision_and_autocast_compute_in_float32() -> None:
    predicted, target = torch.randn(1, 3, 8, 3) * 0.03, torch.randn(1, 3, 8, 3) * 0.03
    assert patch_chamfer(predicted.bfloat16(), target).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = patch_chamfer(predicted, target)
    assert torch.equal(under, patch_chamfer(predicted, target))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"both be \(B, M, S, 3\), got \(1, 2, 3, 3\) and \(1, 2, 4, 3\)"):
        patch_chamfer(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 4, 3))


def test_predictions_that_diverged_are_told_from_bad_data() -> None:
    good, bad = torch.zeros(1, 2, 3, 3), torch.full((1, 2, 3, 3), float("nan"))
    with pytest.raises(ValueError, match="predicted holds points that are NaN or infinite: training has diverged"):
        patch_chamfer(bad, good)
    with pytest.raises(ValueError, match="holds a NaN or infinite coordinate, first in row 0; drop such points first"):
        patch_chamfer(good, bad)
