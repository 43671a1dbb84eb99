"""Scenes with image features on their points, for distillation of a frozen 2D model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from pc3d.data.dataset import PointDataset
from pc3d.data.transforms import Transform
from pc3d.data.types import PointCloud


class StoredLifts(Protocol):
    """Lifted features by the id of a scene, as :class:`pc3d.image.FeatureStore` keeps them."""

    def __contains__(self, item: object) -> bool:
        """Whether there are features of a scene."""

    def __getitem__(self, item: str) -> dict[str, Tensor]:
        """``num_views`` ``(N,)`` and, for the M points that a picture shows, ``feature`` ``(M, C)``."""

    def identity(self) -> dict[str, Any]:
        """What the features were made with; ``name`` is the tower's, ``weights`` the SHA-256 of its weights."""


class LiftedSet(PointDataset):
    """Any set of scenes, joined by id with image features that were lifted onto their points.

    Items have ``feature``, with rows of zeros for points that no picture shows, and ``meta["teacher"]`` and
    ``meta["teacher_weights"]``, name and SHA-256 of the weights of the tower that computed the features. Features are
    looked up after the transform, for the remaining points. Features are wide, so put sampling into ``transform`` here
    instead of the data module.

    Args:
        dataset: scenes with ``meta["id"]``, as their features were lifted onto; its own transform is not used.
        features: what ``data_tools/lift_features.py`` wrote.
        transform: applied to every item. It may drop, repeat and move points.

    Raises:
        ValueError: (when a scene is read) the scene has no features, or those of another number of points.
    """

    def __init__(self, dataset: PointDataset, features: StoredLifts, *, transform: Transform | None = None) -> None:
        self.dataset, self.features, self.transform = dataset, features, transform
        self.classes, self.parts, self.skipped = dataset.classes, dataset.parts, dataset.skipped
        self.labels, self.groups = dataset.labels, dataset.groups
        identity = features.identity()
        self._teacher = {"teacher": str(identity.get("name", "")), "teacher_weights": str(identity.get("weights", ""))}

    def load(self, index: int) -> PointCloud:
        return self._joined(index, lambda cloud: cloud)

    def sample(self, index: int, generator: torch.Generator) -> PointCloud:
        transform = self.transform
        return self._joined(self._checked(index), lambda cloud: transform(cloud, generator) if transform else cloud)

    def __getitem__(self, index: int) -> PointCloud:
        """Item ``index``; a random transform draws its seed from torch's global generator."""
        seed = 0 if self.transform is None else int(torch.randint(2**31, ()))
        return self.sample(index, torch.Generator().manual_seed(seed))

    def _joined(self, index: int, transform: Callable[[PointCloud], PointCloud]) -> PointCloud:
        cloud = self.dataset.load(index)
        item = str(cloud.meta["id"])
        if item not in self.features:
            raise ValueError(f"features: none of the scene {item!r}: lift them with data_tools/lift_features.py")
        stored = self.features[item]
        rows, num_views = stored["feature"], stored["num_views"]
        if len(num_views) != len(cloud):
            raise ValueError(
                f"features: those of the scene {item!r} are of {len(num_views)} points, it has {len(cloud)}: lift them "
                "onto the points as they are read here"
            )
        # Through the transform go row numbers in place of features; the last row is that of what no picture shows.
        shown = num_views > 0
        place = torch.where(shown, shown.cumsum(0) - 1, len(rows)).double()
        left = transform(cloud.replace(feature=place[:, None]))
        assert left.feature is not None
        number = left.feature[:, 0].long()
        feature = rows.new_zeros(len(left), rows.shape[1])
        seen = number < len(rows)
        feature[seen] = rows[number[seen]]
        return left.replace(feature=feature, meta={**left.meta, **self._teacher})
