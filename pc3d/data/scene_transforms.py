"""Transforms of scenes: geometry and sampling, with the magnitudes that Pointcept publishes for Swin3D and others.

Their order in recipes is :class:`CenterShift`, geometry, colour (:mod:`pc3d.data.color_transforms`),
:class:`GridSample`, :class:`SphereCrop`. Nothing after :class:`GridSample` may move points. The published recipes
centre once more at the end, because their networks use the cells of the sampling as voxels. Networks of pc3d voxelise
their input, and on a shifted grid several points would fall into one voxel. Two of the recipes' steps are transforms
that objects know as well: one random scale for all axes is ``IsotropicScaleShift((0.8, 1.2), shift=0)`` (Structured3D:
0.9 to 1.1), jitter is ``Jitter(std=0.005, clip=0.02)``.

In scenes with a few annotated points only (``meta["limited_annotations"]``, set by the data set), the transforms that
drop points keep those with ``segment >= 0``; only :class:`SphereCrop` may drop them, as published. An empty cloud is
returned unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from pc3d.data.transforms import Axis, Transform, _axis_number
from pc3d.data.types import PointCloud

# A noise grid of more nodes than this (2 GB) means coordinates that are not metres, or a granularity far too fine.
_MAX_NOISE_NODES = 2**26


def check_probability(probability: float, name: str = "probability") -> float:
    """Raises ValueError for anything outside of [0, 1]."""
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"{name} must be between 0 and 1, got {probability}")
    return float(probability)


def happens(probability: float, generator: torch.Generator) -> bool:
    """True with that probability; always one draw."""
    return float(torch.rand((), generator=generator, dtype=torch.float64)) < probability


def _box(cloud: PointCloud) -> tuple[Tensor, Tensor]:
    return cloud.xyz.amin(dim=0), cloud.xyz.amax(dim=0)


class CenterShift(Transform):
    """Centre the bounding box at x = y = 0, and move its lower side to z = 0.

    Args:
        vertical: also shift z; False keeps heights unchanged. Not after :class:`GridSample`: it shifts the grid.
    """

    def __init__(self, vertical: bool = True) -> None:
        self.vertical = vertical

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        if len(cloud) == 0:
            return cloud
        low, high = _box(cloud)
        shift = (low + high) / 2
        shift[2] = low[2] if self.vertical else 0
        return cloud.replace(xyz=cloud.xyz - shift)


class Rotate(Transform):
    """A fixed rotation by the right-hand rule, normals included.

    Args:
        degrees: the angle.
        axis: about which to turn.
        center: ``"origin"``, or ``"box"`` for the middle of the bounding box.

    Raises:
        ValueError: an unknown ``axis`` or ``center``.
    """

    def __init__(self, degrees: float, axis: Axis = "z", center: Literal["origin", "box"] = "origin") -> None:
        _axis_number(axis)
        if center not in ("origin", "box"):
            raise ValueError(f"center must be 'origin' or 'box', got {center!r}")
        self.degrees, self.axis, self.center = float(degrees), axis, center

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        if len(cloud) == 0:
            return cloud
        matrix = rotation_matrix(math.radians(self.degrees), self.axis).T
        middle = torch.zeros(3, dtype=cloud.xyz.dtype)
        if self.center == "box":
            low, high = _box(cloud)
            middle = (low + high) / 2
        normal = cloud.normal
        return cloud.replace(
            xyz=(cloud.xyz - middle) @ matrix.to(cloud.xyz.dtype) + middle,
            normal=None if normal is None else normal @ matrix.to(normal.dtype),
        )


def rotation_matrix(angle: float, axis: Axis) -> Tensor:
    """``(3, 3)`` float64 matrix that turns column vectors by ``angle`` radians, by the right-hand rule."""
    number = _axis_number(axis)
    first, second = (number + 1) % 3, (number + 2) % 3
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[first, first] = matrix[second, second] = math.cos(angle)
    matrix[first, second], matrix[second, first] = -math.sin(angle), math.sin(angle)
    return matrix


class RandomRotate(Transform):
    """A rotation by an angle from U[-max_degrees, max_degrees], with a given probability, normals included.

    The published three are a full turn about z through the origin, and tilts of at most 180/64 = 2.8125 degrees about
    x and y through the middle of the bounding box: :meth:`published`.

    Args:
        axis: about which to turn.
        max_degrees: the largest angle.
        center: ``"origin"``, or ``"box"`` for the middle of the bounding box.
        probability: of turning at all.

    Raises:
        ValueError: an unknown ``axis`` or ``center``, ``max_degrees`` is negative, or ``probability`` is outside of [0,
            1].
    """

    def __init__(
        self,
        axis: Axis = "z",
        max_degrees: float = 180.0,
        center: Literal["origin", "box"] = "origin",
        probability: float = 0.5,
    ) -> None:
        Rotate(0.0, axis, center)  # refuses what it refuses
        if max_degrees < 0:
            raise ValueError(f"max_degrees must not be negative, got {max_degrees}")
        self.axis, self.max_degrees, self.center = axis, float(max_degrees), center
        self.probability = check_probability(probability)

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        if not happens(self.probability, generator):
            return cloud
        degrees = (2 * float(torch.rand((), generator=generator, dtype=torch.float64)) - 1) * self.max_degrees
        return Rotate(degrees, self.axis, self.center)(cloud, generator)

    @classmethod
    def published(cls) -> list[RandomRotate]:
        """The rotations of the published recipes, in their order: z, then x, then y."""
        tilt = 180 / 64
        return [cls("z"), cls("x", tilt, "box"), cls("y", tilt, "box")]


class RandomFlip(Transform):
    """Mirror x with a probability, then y with the same, normals included.

    Args:
        probability: of each; 1 flips both for certain.

    Raises:
        ValueError: ``probability`` is outside of [0, 1].
    """

    def __init__(self, probability: float = 0.5) -> None:
        self.probability = check_probability(probability)

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        sign = torch.ones(3, dtype=cloud.xyz.dtype)
        for axis in (0, 1):
            if happens(self.probability, generator):
                sign[axis] = -1
        normal = cloud.normal
        return cloud.replace(xyz=cloud.xyz * sign, normal=None if normal is None else normal * sign.to(normal.dtype))


class ElasticDistortion(Transform):
    """Bend a scene with smooth noise (3D U-Net and sparse convolution recipes; ScanNet and Structured3D only).

    For each granularity g and magnitude m in turn: Gaussian noise on a grid of spacing g around the scene, blurred
    twice by a mean of three along each axis, interpolated trilinearly at the points and added m-fold. Normals stay.

    Args:
        scales: pairs (granularity, magnitude) in metres.
        probability: of bending at all.

    Raises:
        ValueError: a granularity that is not positive, a magnitude that is negative, or ``probability`` outside of [0,
            1]; or a scene that is too large for a granularity.
    """

    def __init__(
        self,
        scales: Sequence[tuple[float, float]] = ((0.2, 0.4), (0.8, 1.6)),
        probability: float = 0.95,
    ) -> None:
        self.scales = tuple((float(granularity), float(magnitude)) for granularity, magnitude in scales)
        if any(granularity <= 0 or magnitude < 0 for granularity, magnitude in self.scales):
            raise ValueError(f"scales must be pairs (granularity > 0, magnitude >= 0), got {scales}")
        self.probability = check_probability(probability)

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        if not happens(self.probability, generator) or len(cloud) == 0:
            return cloud
        for granularity, magnitude in self.scales:
            cloud = cloud.replace(xyz=self._bent(cloud, granularity, magnitude, generator))
        return cloud

    @staticmethod
    def _bent(cloud: PointCloud, granularity: float, magnitude: float, generator: torch.Generator) -> Tensor:
        low, high = _box(cloud)
        nodes = [int(extent // granularity) + 3 for extent in (high - low).tolist()]
        if math.prod(nodes) > _MAX_NOISE_NODES:
            raise ValueError(
                f"a noise grid of {' x '.join(map(str, nodes))} nodes is too large: granularity {granularity} does not "
                f"go with a scene of {[round(e, 1) for e in (high - low).tolist()]} metres; use a coarser one"
            )
        noise = torch.randn((3, *nodes), generator=generator, dtype=torch.float64).to(torch.float32)
        for _ in range(2):
            for axis in (1, 2, 3):
                noise = _box_blur(noise, axis)
        # The first node lies one step below the scene. Grid sampling wants the order z, y, x and the range [-1, 1].
        step = (cloud.xyz - low).to(torch.float32) / granularity + 1
        place = step / (torch.tensor(nodes) - 1) * 2 - 1
        values = torch.nn.functional.grid_sample(
            noise[None], place.flip(1)[None, None, None], mode="bilinear", align_corners=True
        )
        return cloud.xyz + magnitude * values.reshape(3, -1).T.to(cloud.xyz.dtype)


def _box_blur(noise: Tensor, axis: int) -> Tensor:
    """Mean of every node and its two neighbours along an axis, zeros beyond the ends."""
    total = noise.clone()
    size = noise.shape[axis]
    total.narrow(axis, 1, size - 1).add_(noise.narrow(axis, 0, size - 1))
    total.narrow(axis, 0, size - 1).add_(noise.narrow(axis, 1, size - 1))
    return total / 3


def with_annotated(index: Tensor, cloud: PointCloud) -> Tensor:
    """``index`` and, in a scene with limited annotations, the rows of its annotated points, ascending."""
    if not cloud.meta.get("limited_annotations") or cloud.segment is None:
        return index
    kept = cloud.segment >= 0
    kept[index] = True
    return kept.nonzero().flatten()


class RandomDropout(Transform):
    """With a given probability, drop a random share of the points.

    Args:
        ratio: the share to lose.
        probability: of losing any.

    Raises:
        ValueError: ``ratio`` is outside of [0, 1), or ``probability`` of [0, 1].
    """

    def __init__(self, ratio: float = 0.2, probability: float = 0.2) -> None:
        if not 0.0 <= ratio < 1.0:
            raise ValueError(f"ratio must be in [0, 1), got {ratio}")
        self.ratio, self.probability = float(ratio), check_probability(probability)

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        if not happens(self.probability, generator):
            return cloud
        kept = max(int(len(cloud) * (1 - self.ratio)), min(len(cloud), 1))
        index = torch.randperm(len(cloud), generator=generator)[:kept].sort().values
        return cloud.select(with_annotated(index, cloud))


class GridSample(Transform):
    """Keep one random point of every cell of a grid, in lexicographic order of the cells.

    Args:
        voxel_size: edge of a cell in metres: 0.02 for ScanNet and Structured3D, 0.04 for S3DIS.

    Raises:
        ValueError: ``voxel_size`` is not positive and finite.
    """

    def __init__(self, voxel_size: float = 0.02) -> None:
        if not 0 < voxel_size < math.inf:
            raise ValueError(f"voxel_size must be positive and finite, got {voxel_size}")
        self.voxel_size = float(voxel_size)

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        from pc3d.ops import voxelize

        if len(cloud) == 0:
            return cloud
        # The first point of a cell in a random order is a uniformly random one of it.
        order = torch.randperm(len(cloud), generator=generator)
        index = order[voxelize(cloud.xyz[order], self.voxel_size).first]
        return cloud.select(with_annotated(index, cloud))


class SphereCrop(Transform):
    """Keep the points nearest to a random point if a scene has too many; their order is preserved.

    Args:
        max_points: how many at most: 120,000 for ScanNet and Structured3D, 80,000 for S3DIS; None for no limit.
        max_share: at most this share of the points; Structured3D first crops to 0.8.

    Raises:
        ValueError: ``max_points`` is below 1, or ``max_share`` is outside of (0, 1].
    """

    def __init__(self, max_points: int | None = 120_000, max_share: float = 1.0) -> None:
        if max_points is not None and max_points < 1:
            raise ValueError(f"max_points must be at least 1 or None, got {max_points}")
        if not 0.0 < max_share <= 1.0:
            raise ValueError(f"max_share must be in (0, 1], got {max_share}")
        self.max_points, self.max_share = max_points, float(max_share)

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        limit = int(len(cloud) * self.max_share)
        if self.max_points is not None:
            limit = min(limit, self.max_points)
        if len(cloud) <= max(limit, 1):
            return cloud
        center = cloud.xyz[int(torch.randint(len(cloud), (), generator=generator))]
        distance = (cloud.xyz - center).square().sum(dim=1)
        return cloud.select(distance.argsort(stable=True)[: max(limit, 1)].sort().values)
