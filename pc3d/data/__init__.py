"""Samples, batches, readers, transforms and data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pc3d.data.dataset import (
    BadFileError,
    MissingDataError,
    PointDataset,
    Selection,
    SkippedFile,
    split_train_validation,
)
from pc3d.data.loader import EpochSampler, PointLoader, sample_generator
from pc3d.data.objects import Household, ObjectSet
from pc3d.data.transforms import (
    Compose,
    FarthestPointSample,
    FirstPoints,
    IsotropicScaleShift,
    Jitter,
    KeepFields,
    Normalize,
    RandomPointDropout,
    RandomSubsample,
    RotateVertical,
    ScaleTranslate,
    Transform,
    TurnUp,
)
from pc3d.data.types import PointBatch, PointCloud, collate

if TYPE_CHECKING:
    from pc3d.data.module import PointDataModule

__all__ = [
    "BadFileError",
    "Compose",
    "EpochSampler",
    "FarthestPointSample",
    "FirstPoints",
    "Household",
    "IsotropicScaleShift",
    "Jitter",
    "KeepFields",
    "MissingDataError",
    "Normalize",
    "ObjectSet",
    "PointBatch",
    "PointCloud",
    "PointDataModule",
    "PointDataset",
    "PointLoader",
    "RandomPointDropout",
    "RandomSubsample",
    "RotateVertical",
    "ScaleTranslate",
    "Selection",
    "SkippedFile",
    "Transform",
    "TurnUp",
    "collate",
    "sample_generator",
    "split_train_validation",
]


def __getattr__(name: str) -> Any:
    # The data module needs Lightning, which is an extra: imported only when asked for.
    if name == "PointDataModule":
        from pc3d.data.module import PointDataModule

        return PointDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
