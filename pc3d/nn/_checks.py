"""Checks of the input of all networks of clouds."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TooFewPointsError(ValueError):
    """Clouds have fewer points than a network needs: a fault of their files rather than of an argument."""


def check_enough_points(xyz: Tensor, needed: int, name: str) -> None:
    """Refuse clouds ``(B, N, 3)`` of fewer points than an encoder can work with.

    Args:
        xyz: the clouds.
        needed: the fewest points.
        name: the argument that asks for them, for the message.

    Raises:
        TooFewPointsError: there are fewer.
    """
    if xyz.shape[1] < needed:
        raise TooFewPointsError(
            f"clouds have {xyz.shape[1]} points, fewer than {name}={needed}; give denser clouds or build the encoder "
            f"with a smaller {name}"
        )


def check_dense(xyz: object) -> None:
    """Check that the input is a batch of clouds of equal length.

    Args:
        xyz: what should be ``(B, N, 3)``.

    Raises:
        TypeError: it is not a tensor of floating-point numbers.
        ValueError: it has another shape.
    """
    if not isinstance(xyz, Tensor):
        raise TypeError(
            f"xyz must be a torch.Tensor (B, N, 3), got {type(xyz).__name__}: make one of an array by "
            "torch.as_tensor(xyz, dtype=torch.float32); give clouds of different length the same number of points and "
            "stack them"
        )
    if xyz.ndim != 3 or xyz.shape[-1] != 3:
        raise ValueError(f"xyz must have shape (B, N, 3), got {tuple(xyz.shape)}")
    if not xyz.is_floating_point():
        raise TypeError(f"xyz must hold floating-point coordinates, got {xyz.dtype}: pass xyz.float()")


def as_read_by(network: nn.Module, xyz: Tensor) -> Tensor:
    """Coordinates in float64 for a network in float64, and in float32 for all others, whatever their own type.

    NumPy makes float64 of most files; coordinates in half precision would blur which points are near.
    """
    weight = next(network.parameters())
    return xyz.to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
