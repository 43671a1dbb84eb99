"""Baselines for learned encoders: handcrafted descriptors with the ``encode`` interface of an encoder.

Neither learns from labels. Both see the same points as the encoder that they are compared with.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pc3d._extras import require
from pc3d.data import PointDataset
from pc3d.evaluation.features import Centering, LeaveOut, Sampling, batches, preparation

_PAIRS = 4096
_CLOUDS = 32  # at a time
_COMPONENTS = 128
Network = TypeVar("Network", bound=torch.nn.Module)


def _histogram(values: NDArray[np.float64], low: float, high: float, bins: int) -> NDArray[np.float64]:
    """Rows of ``(B, n)`` values to ``(B, bins)`` relative frequencies; values outside count in the end bins."""
    index = np.clip(((values - low) / (high - low) * bins).astype(np.int64), 0, bins - 1)
    rows = np.arange(len(values))[:, None] * bins
    counts = np.bincount((rows + index).ravel(), minlength=len(values) * bins)
    frequencies: NDArray[np.float64] = counts.reshape(len(values), bins) / values.shape[1]
    return frequencies


def _occupancy(xyz: NDArray[np.float64], resolution: int) -> NDArray[np.float64]:
    """Share of the points in each cell of a grid over the cube [-1, 1]^3: ``(B, resolution**3)``."""
    cell = np.clip(((xyz + 1) / 2 * resolution).astype(np.int64), 0, resolution - 1)
    flat = (cell[..., 0] * resolution + cell[..., 1]) * resolution + cell[..., 2]
    return _histogram(flat.astype(np.float64) + 0.5, 0, resolution**3, resolution**3)


class ShapeDescriptor:
    """Handcrafted descriptor of an upright object in the unit sphere, 302 numbers, square roots of:

    - the D2 shape distribution (Osada et al. 2002, section 3): a 32-bin histogram over [0, 2] of the distances of 4,096
      random pairs of points;
    - 16-bin histograms of height, of distance from the vertical axis and of distance from the origin;
    - the extents (the two horizontal ones sorted, so that a rotation by 90 degrees changes nothing, then the height),
      and the standard deviations along the principal axes;
    - the share of points in each cell of a 6 x 6 x 6 grid over [-1, 1]^3.

    The square root makes the linear kernel of two histograms their Bhattacharyya coefficient.

    Args:
        seed: draws the pairs of points; the same pairs for every cloud.
    """

    pooling = "none (one descriptor per cloud)"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def encode(self, xyz: Tensor, pooling: str = "none") -> Tensor:
        """``(B, N, 3)`` upright clouds in the unit sphere to ``(B, 302)``; ``pooling`` has no meaning here."""
        points = xyz.detach().cpu().double().numpy()
        num_points = points.shape[1]
        generator = np.random.default_rng(self.seed)
        first, second = generator.integers(0, num_points, (2, _PAIRS))
        axis = np.linalg.norm(points[..., :2], axis=-1)
        extent = points.max(1) - points.min(1)
        centred = points - points.mean(1, keepdims=True)
        variance = np.linalg.eigvalsh(centred.transpose(0, 2, 1) @ centred / num_points)
        parts = [
            _histogram(np.linalg.norm(points[:, first] - points[:, second], axis=-1), 0, 2, 32),
            _histogram(points[..., 2], -1, 1, 16),
            _histogram(axis, 0, 1, 16),
            _histogram(np.linalg.norm(points, axis=-1), 0, 1, 16),
            np.sort(extent[:, :2], axis=1),
            extent[:, 2:],
            np.sqrt(variance.clip(min=0)),
            _occupancy(points, 6),
        ]
        return torch.from_numpy(np.sqrt(np.concatenate(parts, axis=1))).float()


class PointPCA:
    """Principal components of the raw points, fitted on a training split without labels.

    A set of points has no order, but PCA needs one. The points are therefore counted in the cells of an 8 x 8 x 8 grid
    over [-1, 1]^3. The square roots of the shares form the vector, and PCA keeps its leading components.

    Args:
        num_components: length of the feature. None is 128, or fewer where the clouds vary in fewer directions: N clouds
            vary in at most N - 1.

    Raises:
        ValueError: ``num_components`` is below 1.
    """

    pooling = "none (principal components)"

    def __init__(self, num_components: int | None = None) -> None:
        if num_components is not None and num_components < 1:
            raise ValueError(f"num_components must be at least 1, got {num_components}")
        self.num_components = num_components
        self._mean: NDArray[np.float64] | None = None
        self._axes: NDArray[np.float64] | None = None

    def fit(
        self,
        dataset: PointDataset,
        *,
        num_points: int | None = 1024,
        sampling: Sampling = "first",
        normalize: Centering = "none",
        leave_out: LeaveOut | None = None,
    ) -> PointPCA:
        """Fit the components on the clouds of a data set, prepared as :func:`extract_features` prepares them.

        Args:
            dataset: the training split; its labels are not used.
            num_points: points per cloud; None takes every point of each.
            sampling: as for :func:`extract_features`, and to be the same there.
            normalize: likewise.
            leave_out: likewise.

        Returns:
            This object.

        Raises:
            ValueError: the clouds of the data set vary in fewer directions than there are components, or in none, or a
                cloud has fewer points than asked for.
        """
        prepared = batches(dataset, _CLOUDS, preparation(num_points, sampling, normalize), leave_out)
        vectors = np.concatenate([self._vector(torch.stack([cloud.xyz for cloud in clouds])) for clouds in prepared])
        if (vectors == vectors[0]).all():
            raise ValueError(f"PCA needs clouds that differ: all of the {len(vectors)} of the data set are alike")
        decomposition = require("sklearn.decomposition", extra="train", purpose="the PCA baseline")
        fitted = decomposition.PCA(svd_solver="full").fit(vectors)
        # Others are directions of rounding errors, which a probe that standardises its features would blow up.
        known = int((fitted.explained_variance_ratio_ > 1e-20).sum())
        wanted = min(_COMPONENTS, known) if self.num_components is None else self.num_components
        if wanted > known:
            raise ValueError(
                f"num_components must be at most {known}, the directions in which the {len(vectors)} clouds of the "
                f"data set vary, got {wanted}: ask for fewer, or fit on more clouds"
            )
        self._mean, self._axes = fitted.mean_, fitted.components_[:wanted]
        return self

    def encode(self, xyz: Tensor, pooling: str = "none") -> Tensor:
        """``(B, N, 3)`` clouds in the unit sphere to ``(B, num_components)``; ``pooling`` has no meaning here.

        Raises:
            RuntimeError: called before :meth:`fit`.
        """
        if self._mean is None or self._axes is None:
            raise RuntimeError("this PointPCA has no components yet: call fit(training_set) first")
        return torch.from_numpy((self._vector(xyz) - self._mean) @ self._axes.T).float()

    @staticmethod
    def _vector(xyz: Tensor) -> NDArray[np.float64]:
        return np.sqrt(_occupancy(xyz.detach().cpu().double().numpy(), 8))


def settle_batch_norm(
    encoder: Network,
    dataset: PointDataset,
    *,
    num_points: int | None = 1024,
    sampling: Sampling = "first",
    normalize: Centering = "none",
    batch_size: int = 32,
) -> Network:
    """Set the running statistics of an encoder's batch norm with one pass over a data set; no weight changes.

    Without it, an untrained encoder is evaluated with statistics (mean 0, variance 1) that no real patch has.

    Args:
        encoder: changed in place; its training mode is preserved.
        dataset: its labels are not used.
        num_points: points per cloud; None takes every point of each.
        sampling: as for :func:`extract_features`, and to be the same there.
        normalize: likewise.
        batch_size: clouds per forward pass.

    Returns:
        The encoder.

    Raises:
        ValueError: a cloud has fewer points than asked for.
    """
    prepared = batches(dataset, batch_size, preparation(num_points, sampling, normalize))
    # A list: bad clouds are refused before the first statistic changes.
    clouds = [torch.stack([cloud.xyz for cloud in batch]) for batch in prepared]
    torch.optim.swa_utils.update_bn(clouds, encoder)
    return encoder
