"""Two views of each scene in one batch, with the original positions of their points."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from pc3d.data.transforms import Compose, Transform
from pc3d.data.types import PointBatch, PointCloud, collate


class ViewPairs:
    """Pack two overlapping views of each scene next to each other: clouds 2 b and 2 b + 1 are of scene b.

    The first view is the surroundings of a random point, the second view those of another point near it. Each then goes
    through the transforms with separate draws. ``feature`` holds the position of each point before the transforms, so
    that the points of both views can be matched. Pass it as ``train_collate``. Transforms before it are common to both
    views, and later steps must keep ``feature``. It draws per batch: as with :class:`SceneCollate`, several processes,
    each with a part of the batch, make other views than one process would.

    Args:
        transforms: applied in turn to each view, with the same meaning as ``train_transforms``.
        radius: of the surroundings, in the units of the points (metres for scenes).
        distance: largest distance between the centres of the two views; less than twice the radius, so that views
            overlap.

    Raises:
        ValueError: a length that is not positive and finite, or views that need not overlap; (when called) scenes
            without points or with a ``feature`` already, or views of which the transforms left nothing.
    """

    def __init__(self, transforms: list[Transform], radius: float = 2.0, distance: float = 1.0) -> None:
        for name, value in (("radius", radius), ("distance", distance)):
            if not 0.0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if not distance < 2.0 * radius:
            raise ValueError(
                f"distance must be less than twice the radius, or views have nothing in common, got "
                f"distance={distance} and radius={radius}"
            )
        self.transforms, self.radius, self.distance = Compose(transforms), float(radius), float(distance)

    def __repr__(self) -> str:
        return f"ViewPairs({self.transforms}, radius={self.radius}, distance={self.distance})"

    def __call__(self, clouds: Sequence[PointCloud], generator: torch.Generator) -> PointBatch:
        """The batch of twice as many clouds.

        Args:
            clouds: the scenes.
            generator: of the batch, the only source of randomness.
        """
        views = []
        for cloud in clouds:
            if len(cloud) == 0:
                raise ValueError(f"the scene {cloud.meta.get('id', '?')} has no point: leave it out of the data set")
            first = _one_of(torch.arange(len(cloud)), generator)
            near = _within(cloud, first, self.distance)
            for center in (first, _one_of(near, generator)):
                views.append(self._view(cloud, center, generator))
        return collate(views)

    def _view(self, cloud: PointCloud, center: int, generator: torch.Generator) -> PointCloud:
        if cloud.feature is not None:
            raise ValueError("scenes must not have a feature, which is to hold where points were: drop it (KeepFields)")
        around = cloud.select(_within(cloud, center, self.radius))
        view = self.transforms(around.replace(feature=around.xyz.clone()), generator)
        if len(view) == 0:
            name = cloud.meta.get("id", "a scene")
            raise ValueError(f"transforms left no point of a view of {name}: use milder ones or a larger radius")
        return view


def _one_of(rows: torch.Tensor, generator: torch.Generator) -> int:
    return int(rows[torch.randint(len(rows), (), generator=generator)])


def _within(cloud: PointCloud, center: int, radius: float) -> torch.Tensor:
    return ((cloud.xyz - cloud.xyz[center]).square().sum(1) <= radius**2).nonzero().flatten()
