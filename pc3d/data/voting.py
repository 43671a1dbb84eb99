"""Test-time views of a scene: fragments that together hold every point, and the published augmentation sets."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from pc3d.data.scene_transforms import RandomFlip, Rotate
from pc3d.data.transforms import Compose, IsotropicScaleShift, Transform
from pc3d.data.types import PointCloud

AugmentationSet = Literal["none", "scannet", "s3dis", "structured3d", "swin3d"]
# Benchmark scans have some ten points in their fullest voxel, dense laser scans some dozens.
_MANY_FRAGMENTS = 100
_SWIN3D_TURNS = 12


def fragments(cloud: PointCloud, voxel_size: float) -> Iterator[Tensor]:
    """Split a scene into fragments of one point per grid cell, so that every point is in at least one of them.

    There are as many fragments as the fullest cell has points. Fragment i takes, in a cell of c points, the (i mod
    c)-th in their order: points of sparse cells are in several fragments, and are voted on several times. They are made
    one at a time, so memory does not grow with their number; more than 100 give a warning.

    Args:
        cloud: the scene, transformed as it goes to the network.
        voxel_size: edge of a cell in metres.

    Returns:
        Row indices of each fragment, int64, in lexicographic order of the cells: ``cloud.select(index)`` is the
        fragment. None for an empty scene.

    Raises:
        ValueError: the size is not positive, or a coordinate is not a number.
    """
    from pc3d.ops import voxelize

    voxels = voxelize(cloud.xyz, voxel_size)
    if len(cloud) == 0:
        return iter(())
    number = int(voxels.count.max())
    if number > _MANY_FRAGMENTS:
        fullest = cloud.xyz[voxels.first[voxels.count.argmax()]]
        warnings.warn(
            f"{number:,} fragments, each a pass through the network: so many points lie in one voxel of {voxel_size:g} "
            f"around {[round(value, 2) for value in fullest.tolist()]}. Are there points in one place, or coordinates "
            "that are not metres? Sample the scene (GridSample with a finer voxel_size), or go without fragments: "
            "use_fragments=False (pc3d segment eval --use_fragments false)",
            stacklevel=2,
        )
    order = voxels.inverse.argsort(stable=True)
    start, count = voxels.count.cumsum(0) - voxels.count, voxels.count
    return (order[start + i % count] for i in range(number))


def voting_views(kind: AugmentationSet) -> list[Transform]:
    """The views over which predictions are summed, one transform each; the same in every call.

    Args:
        kind: ``"none"`` (1: unchanged), ``"scannet"`` (4: quarter turns), ``"s3dis"`` (10: five scales, each also
            flipped in x and y), ``"structured3d"`` (13: quarter turns at three scales, and one flip) or ``"swin3d"``
            (12 random rotations about z, as in the voting of Swin3D's released code; here they are drawn with a fixed
            seed, so that results are reproducible).

    Raises:
        ValueError: there is no such set.
    """
    turns = [Rotate(degrees) for degrees in (0.0, 90.0, 180.0, 270.0)]
    flip = RandomFlip(1.0)
    if kind == "none":
        return [Compose([])]
    if kind == "scannet":
        return list(turns)
    if kind == "s3dis":
        scales = [_scale(factor) for factor in (0.9, 0.95, 1.0, 1.05, 1.1)]
        return [*scales, *(Compose([scale, flip]) for scale in scales)]
    if kind == "structured3d":
        return [*(Compose([turn, _scale(factor)]) for factor in (1.0, 0.95, 1.05) for turn in turns), flip]
    if kind == "swin3d":
        drawn = torch.rand(_SWIN3D_TURNS, generator=torch.Generator().manual_seed(0))
        return [Rotate(degrees) for degrees in (360 * drawn).tolist()]
    raise ValueError(f"kind must be 'none', 'scannet', 's3dis', 'structured3d' or 'swin3d', got {kind!r}")


def _scale(factor: float) -> Transform:
    return IsotropicScaleShift((factor, factor), shift=0.0)
