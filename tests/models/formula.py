"""Deterministic numbers from a name and a shape, so that golden arrays need no stored weights."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor


def formula(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [-1, 1) that depend on the name and the position alone (the finaliser of SplitMix64)."""
    with np.errstate(over="ignore"):
        x = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()) << 20)
        x *= np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return ((x >> np.uint64(11)).astype(np.float64) / 2**52 - 1.0).reshape(shape)


def formula_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """A weight of sensible size for its role: unit gain for matrices, near 1 for norms, positive for variances."""
    values = formula(name, shape)
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    if len(shape) > 1 and "token" not in name and "cls_pos" not in name:
        values *= np.sqrt(3.0 / np.prod(shape[1:]))
    elif name.endswith("running_var"):
        values = 0.05 + np.abs(values)
    elif name.endswith("weight"):
        values = 1.0 + 0.2 * values
    else:
        values *= 0.1
    return torch.from_numpy(values.astype(np.float32))


def formula_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A state dict with :func:`formula_tensor` everywhere."""
    return {name: formula_tensor(name, shape) for name, shape in shapes.items()}


def formula_clouds(batch_size: int, num_points: int) -> Tensor:
    """Clouds of points in the cube [-1, 1]^3; the first twenty of each lie within 0.02 of the origin."""
    xyz = formula(f"clouds of {num_points}", (batch_size, num_points, 3))
    xyz[:, 1:20] *= 0.01
    return torch.from_numpy(xyz.astype(np.float32))


def formula_masks(batch_size: int, num_tokens: int, num_masked: int, name: str) -> Tensor:
    """Masks ``(B, G)`` bool with the same number of True in each row."""
    order = formula(name, (batch_size, num_tokens)).argsort(axis=1)
    mask = np.zeros((batch_size, num_tokens), dtype=bool)
    np.put_along_axis(mask, order[:, :num_masked], True, axis=1)
    return torch.from_numpy(mask)
