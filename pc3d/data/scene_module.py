"""The data module for training on scenes, optionally with limited labels."""

from __future__ import annotations

from typing import Any

import torch

from pc3d._extras import require
from pc3d.data.dataset import PointDataset, Selection, check_same_classes
from pc3d.data.limited_labels import LimitedLabels
from pc3d.data.mixing import SceneCollate
from pc3d.data.transforms import Transform
from pc3d.data.view_pairs import ViewPairs

require("pytorch_lightning", extra="train", purpose="SceneDataModule")

from pc3d.data.module import PointDataModule  # noqa: E402  # after the check, whose message says how to install it


class SceneDataModule(PointDataModule):
    """Data module of scenes: :class:`PointDataModule`, optionally with few labels.

    Validation rooms are split from the training rooms by the seed before labels are removed, and keep all of their
    labels. They monitor the training and choose nothing. Only evaluation uses the test set.

    Args:
        train: the training scenes.
        validation: validation scenes; None for none, or for some split from ``train``.
        test: the test scenes.
        scene_fraction: share of the training scenes (after the validation split) to train on, at least one; those of a
            smaller share are among those of a larger one.
        label_fraction: share of the labelled points of each training scene to keep, see :class:`LimitedLabels`.
        labelled_points: number of labelled points of each scene instead of a share.
        train_transforms: applied in turn to training scenes.
        eval_transforms: applied in turn to validation scenes.
        train_collate: how scenes become a batch, such as ``SceneCollate(mix_probability=0.8)`` or :class:`ViewPairs`.
        validation_fraction: share of ``train`` to set aside for validation; 0 for none.
        batch_size: scenes per training batch and process.
        eval_batch_size: scenes per validation batch.
        num_workers: processes that prepare batches, per loader.
        seed: of the order, the transforms, the validation cut, and which scenes and points are labelled.
        drop_last: leave out the last incomplete training batch.
        pin_memory: hand out batches in page-locked memory; worth it with a GPU.

    Raises:
        ValueError: an argument is out of range, or two exclude each other.
    """

    def __init__(
        self,
        train: PointDataset | None = None,
        validation: PointDataset | None = None,
        test: PointDataset | None = None,
        *,
        scene_fraction: float = 1.0,
        label_fraction: float | None = None,
        labelled_points: int | None = None,
        train_transforms: list[Transform] | None = None,
        eval_transforms: list[Transform] | None = None,
        train_collate: SceneCollate | ViewPairs | None = None,
        validation_fraction: float = 0.0,
        batch_size: int = 2,
        eval_batch_size: int = 1,
        num_workers: int = 0,
        seed: int = 0,
        drop_last: bool = True,
        pin_memory: bool = False,
    ) -> None:
        if not 0.0 < scene_fraction <= 1.0:
            raise ValueError(f"scene_fraction must be in (0, 1], got {scene_fraction}")
        super().__init__(
            train,
            validation,
            test,
            train_transforms=train_transforms,
            eval_transforms=eval_transforms,
            train_collate=train_collate,
            validation_fraction=validation_fraction,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            drop_last=drop_last,
            pin_memory=pin_memory,
        )
        if self.train is not None and scene_fraction < 1.0:
            self.train = _some_scenes(self.train, scene_fraction, seed)
        if self.train is not None and (label_fraction is not None or labelled_points is not None):
            self.train = LimitedLabels(
                self.train, label_fraction=label_fraction, labelled_points=labelled_points, seed=seed
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the points.

        Raises:
            ValueError: there is no data set, or they name different classes.
        """
        named: dict[str, Any] = {
            name: dataset.classes
            for name in ("train", "validation", "test")
            if (dataset := getattr(self, name)) is not None
        }
        if not named:
            raise ValueError("this data module has no data set: pass train=")
        check_same_classes(named)
        return tuple(next(iter(named.values())))


def _some_scenes(dataset: PointDataset, fraction: float, seed: int) -> Selection:
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    return Selection(dataset, order[: max(1, round(fraction * len(dataset)))].sort().values)
