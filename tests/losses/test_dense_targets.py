"""Distillation of dense features: each loss against loops in float64, gradients, what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pc3d.losses import Regression, feature_regression, point_pixel_contrast, superpoint_contrast


def rows(count: int, seed: int, width: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(count, width, generator=generator, dtype=torch.float64) + 1


def length(vector: list[float]) -> float:
    return math.sqrt(sum(x * x for x in vector))


def cosine(p: list[float], f: list[float]) -> float:
    return sum(a * b for a, b in zip(p, f, strict=True)) / length(p) / length(f)


def slow_regression(predicted: list[list[float]], target: list[list[float]], kind: str) -> float:
    total = 0.0
    for p, f in zip(predicted, target, strict=True):
        if kind == "cosine":
            total += 1 - cosine(p, f)
            continue
        if kind == "smooth_l1":
            mean = sum(f) / len(f)
            deviation = math.sqrt(sum((x - mean) ** 2 for x in f) / len(f) + 1e-5)
            f = [(x - mean) / deviation for x in f]
        away = [abs(a - b) for a, b in zip(p, f, strict=True)]
        if kind == "smooth_l1":
            away = [d * d / 2 if d < 1 else d - 0.5 for d in away]
        total += sum(away) / len(away)
    return total / len(predicted)


def slow_nce(points: list[list[float]], pixels: list[list[float]], temperature: float) -> float:
    total = 0.0
    for i, p in enumerate(points):
        scores = [math.exp(sum(a * b for a, b in zip(p, f, strict=True)) / temperature) for f in pixels]
        total -= math.log(scores[i] / sum(scores))
    return total / len(points)


def unit(values: list[list[float]]) -> list[list[float]]:
    return [[x / length(row) for x in row] for row in values]


@pytest.mark.parametrize("kind", ["cosine", "l1", "smooth_l1"])
def test_regression_is_the_formula(kind: Regression) -> None:
    predicted, target = rows(7, 0), rows(7, 1)
    value = feature_regression(predicted, target, kind=kind)
    assert value.item() == pytest.approx(slow_regression(predicted.tolist(), target.tolist(), kind), rel=1e-12)
    third = feature_regression(predicted, target, kind=kind, denominator=torch.tensor(21.0))
    assert third.item() == pytest.approx(value.item() / 3)
    again = feature_regression(target.clone(), target, kind=kind)
    if kind != "smooth_l1":  # whose targets have another scale than what is regressed
        assert again.item() == pytest.approx(0, abs=1e-12)


def test_the_length_of_features_is_nothing_to_the_cosine() -> None:
    predicted, target = rows(4, 0), rows(4, 1)
    scaled = feature_regression(predicted * 7, target * torch.tensor([[1.0], [2.0], [1e-3], [1e3]]))
    assert scaled.item() == pytest.approx(feature_regression(predicted, target).item(), rel=1e-12)


def test_points_find_their_pixels_among_all() -> None:
    points, pixels = rows(6, 0), rows(6, 1)
    value = point_pixel_contrast(points, pixels, temperature=0.3)
    assert value.item() == pytest.approx(slow_nce(unit(points.tolist()), unit(pixels.tolist()), 0.3), rel=1e-12)
    # In closed form: what is found at once, among negatives at right angles.
    eye = torch.eye(5, dtype=torch.float64)
    expected = math.log1p(4 * math.exp(-1 / 0.07))
    assert point_pixel_contrast(2 * eye, 9 * eye).item() == pytest.approx(expected, rel=1e-9)


def test_the_direction_is_from_points_to_pixels() -> None:
    points, pixels = rows(6, 2), rows(6, 3)
    assert point_pixel_contrast(points, pixels).item() != pytest.approx(point_pixel_contrast(pixels, points).item())


def test_superpoints_are_compared_by_the_means_of_unit_vectors() -> None:
    points, pixels = rows(9, 0), rows(9, 1)
    segment = [7, 2, 7, -1, 2, 11, 7, -1, 11]
    means = []
    for side in (unit(points.tolist()), unit(pixels.tolist())):
        members = [[side[i] for i in range(9) if segment[i] == s] for s in (2, 7, 11)]
        means.append([[sum(column) / len(group) for column in zip(*group, strict=True)] for group in members])
    value = superpoint_contrast(points, pixels, torch.tensor(segment), temperature=0.2)
    assert value.item() == pytest.approx(slow_nce(means[0], means[1], 0.2), rel=1e-12)


def test_superpoints_of_one_point_are_points() -> None:
    points, pixels = rows(6, 0), rows(6, 1)
    segment = torch.tensor([5, 3, 9, 0, 70, 2])
    assert superpoint_contrast(points, pixels, segment).item() == pytest.approx(
        point_pixel_contrast(points, pixels).item(), rel=1e-12
    )


def test_gradients() -> None:
    points, pixels = rows(5, 0).requires_grad_(), rows(5, 1).requires_grad_()
    segment = torch.tensor([0, 4, 0, -1, 4])
    for kind in ("cosine", "l1", "smooth_l1"):
        assert torch.autograd.gradcheck(lambda p, k=kind: feature_regression(p, pixels, kind=k), points)
    assert torch.autograd.gradcheck(point_pixel_contrast, (points, pixels))
    assert torch.autograd.gradcheck(lambda p, q: superpoint_contrast(p, q, segment), (points, pixels))
    # Targets of regression are frozen, whatever they hang on.
    feature_regression(points, pixels).backward()
    assert pixels.grad is None


def test_half_precision_is_computed_in_float32() -> None:
    points, pixels = rows(5, 0).half(), rows(5, 1).half()
    for loss in (feature_regression, point_pixel_contrast):
        value = loss(points, pixels)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(loss(points.double(), pixels.double()).item(), rel=1e-5)


def test_nothing_to_learn_from_is_no_loss() -> None:
    points = torch.zeros(0, 4, requires_grad=True)
    none, empty = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)
    losses = (
        feature_regression(points, empty),
        point_pixel_contrast(points, empty),
        superpoint_contrast(points, empty, none),
        superpoint_contrast(points.new_ones(2, 4).requires_grad_(), torch.ones(2, 4), torch.tensor([-1, -1])),
    )
    for loss in losses:
        assert loss.item() == 0
        loss.backward()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"predicted and target must both be \(M, C\), got \(3, 5\) and \(4, 5\)"):
        feature_regression(rows(3, 0), rows(4, 0))
    with pytest.raises(ValueError, match="kind must be one of cosine, l1, smooth_l1, got 'l2'"):
        feature_regression(rows(3, 0), rows(3, 0), kind="l2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"points and pixels must both be \(M, d\), got \(3, 5\) and \(3, 4\)"):
        point_pixel_contrast(rows(3, 0), rows(3, 0, width=4))
    with pytest.raises(ValueError, match=r"segment must be \(3,\), the superpoint of each row, got \(2,\)"):
        superpoint_contrast(rows(3, 0), rows(3, 1), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"temperature must be positive, got 0\.0"):
        point_pixel_contrast(rows(3, 0), rows(3, 1), temperature=0.0)
