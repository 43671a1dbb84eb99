"""A DCGLR small enough to train in a moment, on real objects."""

from __future__ import annotations

from typing import Any

import torch

from pc3d.data import Household, PointDataModule
from pc3d.methods import DCGLR, Distillation, InstanceContrast, MultiCrop, StepOptimisation
from pc3d.models import ObjectEncoder, ViT3D

SIZES: dict[str, Any] = {
    "distillation": {"num_prototypes": 10, "hidden": 16, "bottleneck": 8},
    "contrast": {"queue_length": 100, "hidden": 16, "dim": 8},
}


def dcglr(encoder: ObjectEncoder | None = None, **changes: Any) -> DCGLR:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "crops": MultiCrop(num_local=2),
        "distillation": Distillation(**SIZES["distillation"]),
        "contrast": InstanceContrast(**SIZES["contrast"]),
        "optimisation": StepOptimisation(learning_rate=1e-3, warmup_epochs=1),
        **changes,
    }
    return DCGLR(encoder or ViT3D(16, 2, 2, group_size=8, point_dim=8), **arguments)


def small_data(batch_size: int) -> PointDataModule:
    return PointDataModule(train=Household("train", num_points=64), batch_size=batch_size)
