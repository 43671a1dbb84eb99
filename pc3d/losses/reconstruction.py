"""Reconstruction of masked patches."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pc3d.ops import chamfer_distance

ChamferKind = Literal["l2", "l1"]
"""Squared distances (``"l2"``) or distances (``"l1"``)."""


def patch_chamfer(
    predicted: Tensor, target: Tensor, *, kind: ChamferKind = "l2", denominator: Tensor | None = None
) -> Tensor:
    """Chamfer distance between predicted and true patches, mean over all patches of the batch.

    It is computed in float32 (float64 for float64 input), also under autocast, because squared distances of centred
    patches are about 1e-3, too small for half precision. :func:`pc3d.ops.chamfer_distance` defines the kinds.

    Args:
        predicted: ``(B, M, S, 3)`` predicted points of M patches per cloud.
        target: ``(B, M, S, 3)`` true points.
        kind: ``"l2"`` (squared distances, sum of both directions) or ``"l1"``.
        denominator: scalar that replaces the number of patches as divisor of the sum; with several processes, the mean
            of this number over them (:func:`pc3d.nn.mean_over_processes`).

    Returns:
        Scalar.

    Raises:
        ValueError: shapes that differ or are not ``(B, M, S, 3)``, or points that are not finite numbers.
    """
    if predicted.shape != target.shape or predicted.ndim != 4:
        raise ValueError(
            f"predicted and target must both be (B, M, S, 3), got {tuple(predicted.shape)} and {tuple(target.shape)}"
        )
    with torch.autocast(predicted.device.type, enabled=False):
        dtype = torch.promote_types(predicted.dtype, torch.float32)
        try:
            distance = chamfer_distance(
                predicted.to(dtype).flatten(0, 1), target.to(dtype).flatten(0, 1), kind=kind, reduction="none"
            )
        except ValueError as error:  # it speaks of points of the data, that one could drop
            if bool(predicted.isfinite().all()):
                raise
            raise ValueError(
                "predicted holds points that are NaN or infinite: training has diverged: try a lower learning rate or "
                "gradient clipping (--trainer.gradient_clip_val)"
            ) from error
        return distance.mean() if denominator is None else distance.sum() / denominator
