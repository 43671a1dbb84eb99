"""Batches of scenes, and the fusion of two scenes into one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pc3d.data.scene_transforms import check_probability, happens
from pc3d.data.types import PointBatch, PointCloud, collate


class SceneCollate:
    """Pack scenes into a batch and, with some probability, fuse pairs of them: Mix3D (Nekrasov et al. 2021).

    Mixed batches have half as many clouds: the first and the second scene become one, then the third and the fourth,
    and so on; an odd last one is not mixed. Scenes are overlaid without moving them, so centre them before
    (:class:`CenterShift`).

    Args:
        mix_probability: that a batch is mixed; published: 0.8 for ScanNet, S3DIS and Structured3D.
    """

    def __init__(self, mix_probability: float = 0.0) -> None:
        self.mix_probability = check_probability(mix_probability, "mix_probability")

    def __repr__(self) -> str:
        return f"SceneCollate(mix_probability={self.mix_probability})"

    def __call__(self, clouds: Sequence[PointCloud], generator: torch.Generator) -> PointBatch:
        """The batch.

        Args:
            clouds: the scenes.
            generator: of the batch, the only source of randomness.
        """
        if self.mix_probability > 0 and happens(self.mix_probability, generator):
            clouds = [
                mix3d(clouds[i], clouds[i + 1]) if i + 1 < len(clouds) else clouds[i] for i in range(0, len(clouds), 2)
            ]
        return collate(clouds)


def mix3d(first: PointCloud, second: PointCloud) -> PointCloud:
    """Two scenes as one cloud, the points of the first before those of the second.

    Instances of the second are numbered on from those of the first; -1 stays. ``meta`` has both under ``"mixed"``.

    Raises:
        ValueError: only one of the two has some per-point field, or a scene has a label, a text or a picture.
    """
    whole = [name for name in ("label", "text", "image") if any(getattr(c, name) is not None for c in (first, second))]
    if whole:
        raise ValueError(f"a mixture of two clouds has no single {' or '.join(whole)}: drop it with KeepFields")
    batch = collate([first, second])
    instance = batch.instance
    if instance is not None and len(first) > 0:
        shift = int(instance[: len(first)].max()) + 1
        later = torch.arange(len(instance)) >= len(first)
        instance = torch.where(later & (instance >= 0), instance + shift, instance)
    meta: dict[str, Any] = {
        "id": "+".join(str(cloud.meta.get("id", "?")) for cloud in (first, second)),
        "mixed": batch.meta,
    }
    if any(cloud.meta.get("limited_annotations") for cloud in (first, second)):
        meta["limited_annotations"] = True
    return PointCloud(
        xyz=batch.xyz,
        rgb=batch.rgb,
        normal=batch.normal,
        segment=batch.segment,
        instance=instance,
        feature=batch.feature,
        meta=meta,
    )
