"""Checks of the input of all networks of clouds."""

from __future__ import annotations

from torch import Tensor


def check_dense(xyz: object) -> None:
    """Check that the input is a batch of clouds of equal length.

    Args:
        xyz: what should be ``(B, N, 3)``.

    Raises:
        TypeError: it is not a tensor.
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
