"""Scenes of which only some points are labelled."""

from __future__ import annotations

import zlib

import numpy as np
import torch

from pc3d.data.dataset import PointDataset
from pc3d.data.types import PointCloud


class LimitedLabels(PointDataset):
    """A data set whose scenes keep the labels of some of their points; all others become unlabelled.

    The seed and the scene's ``meta["id"]`` determine the points; the points of a smaller share are among those of a
    larger one. With ``labelled_points``, as published, scenes are marked (``meta["limited_annotations"]``) so that
    sampling transforms keep these few points. A share can be most of a scene, so its points are sampled like all
    others.

    Args:
        dataset: where the scenes come from; its transform still applies.
        label_fraction: share of the labelled points of each scene that keep their class, at least one.
        labelled_points: number of labelled points instead of a share; a scene with fewer keeps all.
        seed: decides which points.

    Raises:
        ValueError: not exactly one of the two is given, or it is out of range.
    """

    def __init__(
        self,
        dataset: PointDataset,
        *,
        label_fraction: float | None = None,
        labelled_points: int | None = None,
        seed: int = 0,
    ) -> None:
        if (label_fraction is None) == (labelled_points is None):
            raise ValueError(
                f"give one of label_fraction and labelled_points, got {label_fraction} and {labelled_points}"
            )
        if label_fraction is not None and not 0.0 < label_fraction <= 1.0:
            raise ValueError(f"label_fraction must be in (0, 1], got {label_fraction}")
        if labelled_points is not None and labelled_points < 1:
            raise ValueError(f"labelled_points must be at least 1, got {labelled_points}")
        self.dataset, self.seed = dataset, seed
        self.label_fraction, self.labelled_points = label_fraction, labelled_points
        self.classes, self.parts, self.skipped = dataset.classes, dataset.parts, dataset.skipped
        self.labels, self.groups, self.transform = dataset.labels, dataset.groups, dataset.transform

    def load(self, index: int) -> PointCloud:
        cloud = self.dataset.load(index)
        if cloud.segment is None:
            return cloud
        labelled = (cloud.segment >= 0).nonzero()[:, 0]
        count = len(labelled)
        if self.label_fraction is not None:
            count = min(max(round(self.label_fraction * count), 1), count)
        elif self.labelled_points is not None:
            count = min(self.labelled_points, count)
        name = str(cloud.meta.get("id", index))
        # Mixed, because PyTorch's CPU generator heeds the lower 32 bits of its seed alone.
        word = np.random.SeedSequence([self.seed, zlib.crc32(name.encode())]).generate_state(1)[0]
        generator = torch.Generator().manual_seed(int(word))
        kept = labelled[torch.randperm(len(labelled), generator=generator)[:count]]
        segment = torch.full_like(cloud.segment, -1).index_copy(0, kept, cloud.segment[kept])
        marked = {"limited_annotations": True} if self.labelled_points is not None else {}
        return cloud.replace(segment=segment, meta={**cloud.meta, **marked})
