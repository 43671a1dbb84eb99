"""Checks of a scene, and of the bounds of blocks, before a network sees it."""

from __future__ import annotations

from pc3d.data.types import PointCloud
from pc3d.ops import voxelize

_MOST_VOXELS = 2**30  # along an axis; their coordinates are int32, and views may scale a scene up
_LARGEST = 500.0  # metres; surveys of streets are larger, and say so in vain
_FEW = 0.01  # share of points that may be stray
_NEIGHBOURHOOD = 4  # voxels along an edge
_LONELY = 1.5  # points in such a cube; a surface sampled once a voxel has some 16


def check_bounds(max_points: int, context: float) -> None:
    """Refuse bounds of blocks that are none.

    Raises:
        ValueError: ``max_points`` below 2, or a negative ``context``.
    """
    if max_points < 2:
        raise ValueError(f"max_points must be at least 2, got {max_points}")
    if context < 0:
        raise ValueError(f"context must not be negative, got {context}")


def unit_notes(cloud: PointCloud, voxel_size: float | None) -> list[str]:
    """Notes on a scene that is probably not in metres (millimetres, for example), which would be labelled all the same.

    Args:
        cloud: the scene.
        voxel_size: edge of the network's finest voxels in metres; None where it has none.

    Returns:
        A note if the box is longer than 500 m, which may be due to a few stray points; else one if cubes of four voxels
        hold no two points on average, so that the network sees each point by itself.
    """
    if len(cloud) == 0:
        return []
    longest = _longest_side(cloud)
    remedy = "coordinates must be metres (--scale 0.001 for a file in millimetres)"
    if longest > _LARGEST:
        middle = cloud.xyz.median(0).values
        stray = ((cloud.xyz - middle).abs().amax(1) > _LARGEST).nonzero()[:, 0]
        if 0 < len(stray) <= _FEW * len(cloud):
            return [
                f"{len(stray):,} of {len(cloud):,} points lie more than {_LARGEST:g} m from the others, first row "
                f"{int(stray[0])}: remove them, they blur the places of all others (some scanners write such points "
                "where they measured nothing)"
            ]
        return [f"the scene is {longest:,.0f} m long: {remedy}"]
    if voxel_size is None:
        return []
    edge = _NEIGHBOURHOOD * voxel_size
    cubes = len(voxelize(cloud.xyz, edge).coords)
    if len(cloud) < _LONELY * cubes:
        return [
            f"{len(cloud):,} points lie in {cubes:,} cubes of {edge:g} m, each nearly by itself, where the network "
            f"looks for surfaces on voxels of {voxel_size:g} m: {remedy}, and a scan so sparse gets no useful labels"
        ]
    return []


def is_too_large(cloud: PointCloud, voxel_size: float | None) -> bool:
    """Whether a scene is longer than a network's voxels can count; :func:`unit_notes` says why that may be."""
    return len(cloud) > 0 and voxel_size is not None and _longest_side(cloud) >= _MOST_VOXELS * voxel_size


def _longest_side(cloud: PointCloud) -> float:
    return float((cloud.xyz.amax(0) - cloud.xyz.amin(0)).max())
