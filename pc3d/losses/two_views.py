"""Losses that compare two views of each cloud of a batch: NT-Xent, VICReg and Barlow Twins.

All functions take the rows of the whole global batch (:func:`pc3d.nn.gather_rows`); row i of both inputs belongs to
cloud i. They compute in float32 (float64 for float64 input), also under autocast. With several processes, each one
computes the whole loss, so the means of loss and gradient over processes are those of the global loss.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


def nt_xent(first: Tensor, second: Tensor, temperature: float = 0.1) -> Tensor:
    """Normalised temperature-scaled cross-entropy: identify the view of the same cloud among 2 B - 1 other views.

    With the rows z of both inputs, divided by their lengths, and ``s_ij = z_i . z_j / temperature``, the loss is the
    mean of ``-log(exp(s_ij) / sum_{k != i} exp(s_ik))`` over all 2 B views i, where j is the other view of the same
    cloud.

    Args:
        first: ``(B, d)``.
        second: ``(B, d)``.
        temperature: positive.

    Returns:
        Scalar.

    Raises:
        ValueError: shapes that differ, fewer than two rows, or a temperature that is not positive.

    Source:
        SimCLR (Chen et al., 2020), equation 1 and algorithm 1.
    """
    _check(first, second)
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    with torch.autocast(first.device.type, enabled=False):
        rows = F.normalize(torch.cat(_wide(first, second)), dim=1)
        logits = rows @ rows.T / temperature
        logits = logits.masked_fill(torch.eye(len(rows), dtype=torch.bool, device=rows.device), -torch.inf)
        other = torch.arange(len(rows), device=rows.device).roll(len(first))
        return F.cross_entropy(logits, other)


class VICRegTerms(NamedTuple):
    """The unweighted terms of VICReg.

    Attributes:
        invariance: mean squared difference of the two views of a cloud.
        variance: how far standard deviations of dimensions are below the target; sum over both views.
        covariance: squared covariances of different dimensions; sum over both views.
    """

    invariance: Tensor
    variance: Tensor
    covariance: Tensor


def vicreg(first: Tensor, second: Tensor, *, target_std: float = 1.0, eps: float = 1e-4) -> VICRegTerms:
    """Variance, invariance and covariance of two views.

    With the covariance matrix Cov of a view over its B rows (divided by B - 1), the variance term is the mean over
    dimensions of ``max(0, target_std - sqrt(Cov_jj + eps))``, and the covariance term is ``sum_{j != k} Cov_jk^2 / d``.
    Both are summed over the two views. The invariance term is the mean over rows and dimensions of the squared
    difference, as in the paper's algorithm 1 and its released code. (The code, unlike the paper, also halves the
    variance term.)

    Args:
        first: ``(B, d)``.
        second: ``(B, d)``.
        target_std: lower bound for the standard deviation of every dimension.
        eps: added to the variance, to keep the gradient of the square root finite.

    Returns:
        Three scalars.

    Raises:
        ValueError: shapes that differ, or fewer than two rows.

    Source:
        Bardes et al., VICReg, ICLR 2022, section 4.
    """
    _check(first, second)
    with torch.autocast(first.device.type, enabled=False):
        views = _wide(first, second)
        variance = covariance = views[0].new_zeros(())
        for rows in views:
            centred = rows - rows.mean(0)
            matrix = centred.T @ centred / (len(rows) - 1)
            variance = variance + F.relu(target_std - (matrix.diagonal() + eps).sqrt()).mean()
            covariance = covariance + _off_diagonal(matrix) / rows.shape[1]
        return VICRegTerms(F.mse_loss(*views), variance, covariance)


class BarlowTwinsTerms(NamedTuple):
    """The unweighted terms of Barlow Twins.

    Attributes:
        invariance: squared differences from 1 of the correlations of equal dimensions.
        redundancy: squared correlations of different dimensions.
    """

    invariance: Tensor
    redundancy: Tensor


def barlow_twins(first: Tensor, second: Tensor, *, eps: float = 1e-5) -> BarlowTwinsTerms:
    """Difference between the cross-correlation matrix of two views and the identity.

    Every dimension of each view is standardised to mean 0 and variance 1 over the B rows (variance divided by B, plus
    ``eps``). The cross-correlation matrix is ``C_jk = mean_i first_ij second_ik``. The invariance term is
    ``sum_j (1 - C_jj)^2``, the redundancy term is ``sum_{j != k} C_jk^2``.

    Args:
        first: ``(B, d)``.
        second: ``(B, d)``.
        eps: added to the variance.

    Returns:
        Two scalars.

    Raises:
        ValueError: shapes that differ, or fewer than two rows.

    Source:
        Zbontar et al., Barlow Twins, ICML 2021, equations 1 and 2.
    """
    _check(first, second)
    with torch.autocast(first.device.type, enabled=False):
        one, other = (F.batch_norm(rows, None, None, training=True, eps=eps) for rows in _wide(first, second))
        correlation = one.T @ other / len(one)
        return BarlowTwinsTerms((1.0 - correlation.diagonal()).square().sum(), _off_diagonal(correlation))


def _off_diagonal(matrix: Tensor) -> Tensor:
    return (matrix - torch.diag(matrix.diagonal())).square().sum()


def _wide(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(first.dtype, torch.float32)
    return first.to(dtype), second.to(dtype)


def _check(first: Tensor, second: Tensor) -> None:
    if first.ndim != 2 or first.shape != second.shape or len(first) < 2:
        raise ValueError(
            "first and second must both be (B, d) with at least two rows, "
            f"got {tuple(first.shape)} and {tuple(second.shape)}"
        )
