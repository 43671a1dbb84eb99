"""An encoder and labelled objects small enough to train in a moment, of the set that ships with the package."""

from __future__ import annotations

from typing import Any

import torch

from pc3d.data import FirstPoints, Household, ObjectDataModule, PointDataset, RandomSubsample, ScaleTranslate, Selection
from pc3d.models import PointViT

CLASSES = Household("test", num_points=16).classes


def encoder(num_cls_tokens: int = 1, **changes: Any) -> PointViT:
    torch.manual_seed(1)
    arguments = {"num_groups": 12, "group_size": 8, "num_points": 96, "drop_path": 0.2, **changes}
    return PointViT(16, 2, 2, num_cls_tokens=num_cls_tokens, tokenizer_dims=(8, 12, 16), **arguments)


def objects(split: str = "train", num_items: int | None = None) -> PointDataset:
    """192 points of each labelled object."""
    whole = Household(split, num_points=192, labelled_only=True)
    return whole if num_items is None else Selection(whole, range(num_items))


def data(**changes: Any) -> ObjectDataModule:
    arguments: dict[str, Any] = {
        "train": objects(num_items=120),
        "test": objects("test", 60),
        "train_transforms": [RandomSubsample(96), ScaleTranslate()],
        "eval_transforms": [FirstPoints(96)],
        "validation_fraction": 0.3,
        "batch_size": 24,
        **changes,
    }
    return ObjectDataModule(**arguments)
