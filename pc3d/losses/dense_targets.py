"""Losses between points and features of pictures that show them: regression, contrast of points or superpoints."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from pc3d.losses.info_nce import info_nce

Regression = Literal["cosine", "l1", "smooth_l1"]
"""Distance between a feature and its target."""


def feature_regression(
    predicted: Tensor, target: Tensor, *, kind: Regression = "cosine", denominator: Tensor | None = None
) -> Tensor:
    """Mean distance between predicted features p and frozen features f.

    * ``"cosine"``: ``1 - cos(p, f)``, for features that are compared by direction, such as those of CLIP;
    * ``"l1"``: mean over channels of ``|p - f|``;
    * ``"smooth_l1"``: mean over channels of ``huber(p - n(f))``, where n normalises each target to mean 0 and variance
      1 over its channels, and huber(d) is ``d^2 / 2`` for ``|d| < 1`` and ``|d| - 1/2`` otherwise; for towers whose
      features differ much in length (ours).

    Args:
        predicted: ``(M, C)``.
        target: ``(M, C)``, without gradient.
        kind: the distance.
        denominator: scalar that replaces M as divisor of the sum over rows; with several processes, the mean of M over
            them (:func:`pc3d.nn.mean_over_processes`). Values below 1 are raised to 1, so the loss without rows is 0,
            not NaN.

    Returns:
        Scalar, float32 or wider.

    Raises:
        ValueError: shapes that do not match, or an unknown ``kind``.

    Source:
        OpenScene (Peng et al., CVPR 2023), section 3.2, equation 2; its code has the cosine and the L1 form.
    """
    if predicted.ndim != 2 or predicted.shape != target.shape:
        raise ValueError(
            f"predicted and target must both be (M, C), got {tuple(predicted.shape)} and {tuple(target.shape)}"
        )
    if kind not in get_args(Regression):
        raise ValueError(f"kind must be one of {', '.join(get_args(Regression))}, got {kind!r}")
    with torch.autocast(predicted.device.type, enabled=False):
        dtype = torch.promote_types(predicted.dtype, torch.float32)
        predicted, target = predicted.to(dtype), target.detach().to(dtype)
        if kind == "cosine":
            distance = 1.0 - (_unit(predicted) * _unit(target)).sum(1)
        elif kind == "l1":
            distance = (predicted - target).abs().mean(1)
        else:
            target = F.layer_norm(target, target.shape[1:])
            distance = F.smooth_l1_loss(predicted, target, reduction="none").mean(1)
        count = distance.new_tensor(float(len(distance))) if denominator is None else denominator
        return distance.sum() / count.clamp(min=1)


def point_pixel_contrast(points: Tensor, pixels: Tensor, *, temperature: float = 0.07) -> Tensor:
    """InfoNCE between points p and the pixels f that show them: identify the pixel of each point among all pixels.

    ``mean_i -log(exp(cos(p_i, f_i) / t) / sum_j exp(cos(p_i, f_j) / t))``, from points to pixels only, not in reverse.
    Pixels of the same surface are negatives, too.

    Args:
        points: ``(M, d)``.
        pixels: ``(M, d)``; row i belongs to point i.
        temperature: t.

    Returns:
        Scalar, float32 or wider; 0 without rows.

    Raises:
        ValueError: shapes that do not match, or a temperature that is not positive.

    Source:
        PPKT (Liu et al., Learning from 2D: Contrastive Pixel-to-Point Knowledge Transfer, 2021), equation 1; the
        settings are those of SLidR's code, which contains both losses.
    """
    _check_pairs(points, pixels, temperature)
    if len(points) == 0:
        return _nothing(points, pixels)
    own = torch.arange(len(points), device=points.device)
    return info_nce(_unit(points), _unit(pixels), own, temperature=temperature)


def superpoint_contrast(points: Tensor, pixels: Tensor, segment: Tensor, *, temperature: float = 0.07) -> Tensor:
    """InfoNCE between the mean features of superpoints and those of the pixels that show them.

    With unit vectors u of points and v of pixels, and the set S of superpoints, ``k_s = mean_{i in s} u_i`` and ``q_s =
    mean_{i in s} v_i``, it is ``mean_{s in S} -log(exp(k_s . q_s / t) / sum_{r in S} exp(k_s . q_r / t))``. As in the
    released code, means are not normalised again, so superpoints with dissimilar points have less influence.

    Args:
        points: ``(M, d)``.
        pixels: ``(M, d)``; row i belongs to point i.
        segment: ``(M,)`` int64, the superpoint of each row; numbers need not be consecutive. Rows with a negative
            number belong to no superpoint and are left out.
        temperature: t.

    Returns:
        Scalar, float32 or wider; 0 without superpoints.

    Raises:
        ValueError: shapes that do not match, or a temperature that is not positive.

    Source:
        SLidR (Sautier et al., CVPR 2022), section 3.3. There, segments are superpixels of a picture.
    """
    _check_pairs(points, pixels, temperature)
    if segment.shape != points.shape[:1]:
        raise ValueError(f"segment must be ({len(points)},), the superpoint of each row, got {tuple(segment.shape)}")
    rows = (segment >= 0).nonzero().flatten()
    if len(rows) == 0:
        return _nothing(points, pixels)
    present, number = segment[rows].unique(return_inverse=True)
    own = torch.arange(len(present), device=points.device)
    means = [_mean(_unit(side[rows]), number, len(present)) for side in (points, pixels)]
    return info_nce(means[0], means[1], own, temperature=temperature)


def _mean(rows: Tensor, number: Tensor, count: int) -> Tensor:
    total = rows.new_zeros(count, rows.shape[1]).index_add(0, number, rows)
    return total / number.bincount(minlength=count)[:, None]


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1, eps=1e-12)


def _nothing(points: Tensor, pixels: Tensor) -> Tensor:
    """0, with both inputs in the graph, for distributed training."""
    return 0.0 * (_unit(points).sum() + _unit(pixels).sum())


def _check_pairs(points: Tensor, pixels: Tensor, temperature: float) -> None:
    if points.ndim != 2 or points.shape != pixels.shape:
        raise ValueError(f"points and pixels must both be (M, d), got {tuple(points.shape)} and {tuple(pixels.shape)}")
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature}")
