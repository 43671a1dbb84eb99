"""Features of points as colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]
_FITTED = 100_000


def similarity_to(embedding: FloatArray, vector: FloatArray) -> NDArray[np.float32]:
    """Cosine of each row with a vector, in float32; 0 where either is zero.

    Args:
        embedding: ``(N, C)``.
        vector: ``(C,)``.

    Returns:
        ``(N,)`` in [-1, 1].

    Raises:
        ValueError: another number of channels.
    """
    if embedding.ndim != 2 or vector.shape != embedding.shape[1:]:
        raise ValueError(f"vector must be (C,) as embedding (N, C), got {vector.shape} and {embedding.shape}")
    rows, direction = embedding.astype(np.float32, copy=False), vector.astype(np.float32)
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(direction)
    cosine: NDArray[np.float32] = (rows @ direction) / np.maximum(lengths, np.finfo(np.float32).tiny)
    return cosine.clip(-1.0, 1.0)


def similarity(embedding: FloatArray, row: int) -> NDArray[np.float32]:
    """Cosine of every row of ``(N, C)`` with one of them, see :func:`similarity_to`."""
    return similarity_to(embedding, embedding[row])


def feature_colors(embeddings: Sequence[FloatArray], *, seed: int = 0) -> list[NDArray[np.uint8]]:
    """The first three principal components, joint over clouds, as RGB: similar colours mean similar features.

    Each component is stretched from its 1st to its 99th percentile. Its sign, which a principal component analysis
    leaves open, is the one that makes its largest loading positive.

    Args:
        embeddings: ``(N, C)`` of each cloud, of one encoder.
        seed: of the draw of at most 100,000 points that the components are found on.

    Returns:
        ``(N, 3)`` uint8 of each cloud.

    Raises:
        ValueError: no points, features that are not finite, or other channels from cloud to cloud.
    """
    channels = {embedding.shape[1] for embedding in embeddings}
    if len(channels) != 1 or not sum(map(len, embeddings)):
        raise ValueError(f"embeddings must hold points, all with the same channels; got {sorted(channels)}")
    for number, embedding in enumerate(embeddings):
        if not np.isfinite(embedding).all():
            raise ValueError(f"embeddings[{number}] has features that are not finite numbers")
    total = sum(map(len, embeddings))
    drawn = np.sort(np.random.default_rng(seed).permutation(total)[:_FITTED])
    starts = np.cumsum([0, *map(len, embeddings)])
    sample = np.concatenate(
        [e[drawn[(drawn >= a) & (drawn < a + len(e))] - a] for e, a in zip(embeddings, starts[:-1], strict=True)]
    ).astype(np.float64)
    mean, axes = _principal(sample)
    projected = (sample - mean) @ axes
    low, high = np.percentile(projected, [1, 99], axis=0)
    span = np.where(high - low > 1e-12 * max(float(np.abs(projected).max()), 1e-30), high - low, np.inf)
    colors = []
    for embedding in embeddings:
        level = ((embedding.astype(np.float32, copy=False) - mean.astype(np.float32)) @ axes.astype(np.float32)) - low
        # A component without spread says nothing: the middle of its range.
        level = np.where(np.isinf(span), 0.5, level / span)
        colors.append(np.round(255 * np.clip(level, 0, 1)).astype(np.uint8))
    return colors


def _principal(sample: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean ``(C,)`` and three principal directions ``(C, 3)``, zeros where there are fewer."""
    mean = sample.mean(0)
    centred = sample - mean
    _, vectors = np.linalg.eigh(centred.T @ centred)
    axes = np.zeros((sample.shape[1], 3))
    found = vectors[:, ::-1][:, :3]
    signs = np.sign(found[np.abs(found).argmax(0), np.arange(found.shape[1])])
    axes[:, : found.shape[1]] = found * signs
    return mean, axes
