"""Transforms of a :class:`PointCloud`; all randomness comes from the ``torch.Generator`` passed to them.

A transform is called as ``transform(cloud, generator)`` and returns a new cloud; its input is not changed. Every random
draw comes from ``generator``, so the same seed gives the same cloud on any machine, in any worker. Default magnitudes
are the published ones; section numbers refer to the papers named.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pc3d.data.types import PointCloud

Axis = Literal["x", "y", "z"]
_AXES = ("x", "y", "z")


def _axis_number(axis: str, argument: str = "axis") -> int:
    if axis not in _AXES:
        raise ValueError(f"{argument} must be 'x', 'y' or 'z', got {axis!r}")
    return _AXES.index(axis)


def _check_scale(scale: tuple[float, float]) -> tuple[float, float]:
    low, high = scale
    if not 0.0 < low <= high:
        raise ValueError(f"scale must be a pair 0 < low <= high, got {scale}")
    return float(low), float(high)


def _check_count(num_points: int) -> int:
    if num_points < 1:
        raise ValueError(f"num_points must be at least 1, got {num_points}")
    return num_points


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator, like: Tensor) -> Tensor:
    # Drawn in float64 whatever the cloud's dtype, so that half and single precision see the same numbers.
    return (torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low).to(like.dtype)


def _name(cloud: PointCloud) -> str:
    name, path = cloud.meta.get("id"), cloud.meta.get("path")
    # A file of one cloud tells more than its name; the id, where a file holds many.
    told = path if path is not None and Path(path).stem == name else name
    return "" if told is None else f" ({told})"


class Transform(ABC):
    """A callable from a cloud and a generator to a cloud."""

    @abstractmethod
    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        """The transformed cloud. ``generator`` is a CPU generator, the only source of randomness."""

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({arguments})"


class Compose(Transform):
    """Several transforms, one after the other, drawing from the same generator in turn.

    Args:
        transforms: applied first to last.
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = list(transforms)

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        for transform in self.transforms:
            cloud = transform(cloud, generator)
        return cloud


class KeepFields(Transform):
    """Keep only the fields that a method reads, so that batches carry no others.

    Args:
        fields: what to keep besides ``xyz`` and ``meta``: any of rgb, normal, label, segment, instance, text,
            image, feature.

    Raises:
        ValueError: ``fields`` names something that no cloud has as a field.
    """

    _FIELDS = ("rgb", "normal", "label", "segment", "instance", "text", "image", "feature")

    def __init__(self, fields: Sequence[str] = ("label",)) -> None:
        unknown = sorted(set(fields) - set(self._FIELDS) - {"xyz", "meta"})
        if unknown:
            raise ValueError(f"fields must be among {self._FIELDS}, got {unknown}")
        self.fields = tuple(fields)

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        return cloud.replace(**{name: None for name in self._FIELDS if name not in self.fields})


class FirstPoints(Transform):
    """Keep the first points, as stored: the convention of modelnet40_ply_hdf5_2048, whose points are FPS-ordered.

    Args:
        num_points: how many; a cloud with fewer is refused.

    Raises:
        ValueError: ``num_points`` is below 1, or a cloud has fewer points.
    """

    def __init__(self, num_points: int) -> None:
        self.num_points = _check_count(num_points)

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        if len(cloud) < self.num_points:
            raise ValueError(
                f"num_points={self.num_points} exceeds the {len(cloud)} points of the cloud{_name(cloud)}: "
                "ask for fewer"
            )
        return cloud.select(slice(self.num_points))


class RandomSubsample(Transform):
    """A uniformly random subset in random order (a permutation, then its first ``num_points``).

    Pre-training in the Point-MAE family takes 1,024 of 8,192 this way, before it normalises. ShapeNetPart draws 2,048
    with replacement.

    Args:
        num_points: how many points to keep.
        replacement: draw with replacement; then a cloud may have fewer points than ``num_points``.

    Raises:
        ValueError: ``num_points`` is below 1, or a cloud has too few points.
    """

    def __init__(self, num_points: int, replacement: bool = False) -> None:
        self.num_points = _check_count(num_points)
        self.replacement = replacement

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        if self.replacement and len(cloud) > 0:
            return cloud.select(torch.randint(len(cloud), (self.num_points,), generator=generator))
        if len(cloud) < self.num_points:
            raise ValueError(
                f"num_points={self.num_points} exceeds the {len(cloud)} points of the cloud{_name(cloud)}: "
                "ask for fewer; as a transform of a configuration, RandomSubsample repeats points, if there are any, "
                "with replacement: true"
            )
        return cloud.select(torch.randperm(len(cloud), generator=generator)[: self.num_points])


class FarthestPointSample(Transform):
    """An evenly spread subset by farthest point sampling (PointNet++, Qi et al. 2017, section 3.2).

    Args:
        num_points: how many points to keep. A cloud with exactly this number is returned unchanged.
        start: ``"first"`` begins at the first point, ``"random"`` at one drawn from the generator.
        capped: return a cloud with fewer points whole, instead of refusing it. Fine-tuning in the Point-MAE family is
            ``FarthestPointSample(1200, start="random", capped=True)`` then ``RandomSubsample(1024)``.

    Raises:
        ValueError: an unknown ``start``, ``num_points`` is below 1, or a cloud has fewer points and is not ``capped``.
    """

    def __init__(self, num_points: int, start: Literal["first", "random"] = "first", capped: bool = False) -> None:
        if start not in ("first", "random"):
            raise ValueError(f"start must be 'first' or 'random', got {start!r}")
        self.num_points = _check_count(num_points)
        self.start = start
        self.capped = capped

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        if len(cloud) < self.num_points and not self.capped:
            raise ValueError(
                f"num_points={self.num_points} exceeds the {len(cloud)} points of the cloud{_name(cloud)}: "
                "ask for fewer; as a transform of a configuration, FarthestPointSample keeps smaller clouds whole with "
                "capped: true"
            )
        if len(cloud) <= self.num_points:
            return cloud
        from pc3d.ops import farthest_point_sample

        first = int(torch.randint(len(cloud), (), generator=generator)) if self.start == "random" else 0
        index = farthest_point_sample(cloud.xyz.unsqueeze(0), self.num_points, start=first)
        return cloud.select(index[0])


class Normalize(Transform):
    """Centre the cloud and scale it so that its farthest point is at distance 1.

    ``meta["radius_m"]`` (metres of one unit), if present, is scaled accordingly. A cloud whose points all coincide is
    only centred.

    Args:
        center: ``"centroid"`` (mean of the points, as in the Point-MAE family), ``"box"`` (middle of the bounding
            box) or ``"none"``.
        scale: divide by the largest distance from the origin.

    Raises:
        ValueError: an unknown ``center``, or a cloud without points.
    """

    def __init__(self, center: Literal["centroid", "box", "none"] = "centroid", scale: bool = True) -> None:
        if center not in ("centroid", "box", "none"):
            raise ValueError(f"center must be 'centroid', 'box' or 'none', got {center!r}")
        self.center = center
        self.scale = scale

    def centered(self, xyz: Tensor) -> Tensor:
        """Coordinates ``(..., N, 3)`` of one cloud or of several, relative to the centre of each."""
        if self.center == "centroid":
            # The mean of many equal points is theirs but for rounding, which scaling would make the size of the cloud.
            one_place = (xyz == xyz[..., :1, :]).all(dim=-1).all(dim=-1)[..., None, None]
            return torch.where(one_place, 0.0, xyz - xyz.mean(dim=-2, keepdim=True))
        if self.center == "box":
            return xyz - (xyz.amin(dim=-2, keepdim=True) + xyz.amax(dim=-2, keepdim=True)) / 2
        return xyz

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        if len(cloud) == 0:
            raise ValueError(f"an empty cloud{_name(cloud)} has no centre")
        xyz = self.centered(cloud.xyz)
        if not self.scale:
            return cloud.replace(xyz=xyz)
        radius = xyz.norm(dim=1).amax()
        if radius == 0:
            return cloud.replace(xyz=xyz)
        meta = cloud.meta
        if "radius_m" in meta:
            meta = {**meta, "radius_m": meta["radius_m"] * float(radius)}
        return cloud.replace(xyz=xyz / radius, meta=meta)


class ScaleTranslate(Transform):
    """A random scale and shift of each axis: the augmentation of the Point-MAE family, in pre-training and fine-tuning.

    x' = x * s + t with s ~ U[2/3, 3/2] and t ~ U[-0.2, 0.2], independently per axis, one draw per cloud. Normals are
    transformed by the inverse scale.

    Args:
        scale: bounds of s.
        shift: largest absolute t.

    Raises:
        ValueError: ``scale`` is not a pair 0 < low <= high, or ``shift`` is negative.
    """

    def __init__(self, scale: tuple[float, float] = (2 / 3, 3 / 2), shift: float = 0.2) -> None:
        self.scale = _check_scale(scale)
        if shift < 0:
            raise ValueError(f"shift must not be negative, got {shift}")
        self.shift = float(shift)

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        scale = _uniform((3,), *self.scale, generator, cloud.xyz)
        shift = _uniform((3,), -self.shift, self.shift, generator, cloud.xyz)
        normal = cloud.normal
        if normal is not None:
            # A plane's normal transforms by the inverse transpose of the map.
            normal = torch.nn.functional.normalize(normal / scale.to(normal.dtype), dim=1)
        return cloud.replace(xyz=cloud.xyz * scale + shift, normal=normal)


class IsotropicScaleShift(Transform):
    """One random scale for all axes and a shift per axis: the augmentation of part segmentation.

    s ~ U[0.8, 1.25], t ~ U[-0.1, 0.1] per axis. Normals do not change.

    Args:
        scale: bounds of s.
        shift: largest absolute t.

    Raises:
        ValueError: ``scale`` is not a pair 0 < low <= high, or ``shift`` is negative.
    """

    def __init__(self, scale: tuple[float, float] = (0.8, 1.25), shift: float = 0.1) -> None:
        self.scale = _check_scale(scale)
        if shift < 0:
            raise ValueError(f"shift must not be negative, got {shift}")
        self.shift = float(shift)

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        scale = _uniform((1,), *self.scale, generator, cloud.xyz)
        shift = _uniform((3,), -self.shift, self.shift, generator, cloud.xyz)
        return cloud.replace(xyz=cloud.xyz * scale + shift)


class RotateVertical(Transform):
    """A random rotation about the up axis, U[0, max_degrees): the "DA" rows of the ScanObjectNN tables.

    Points are row vectors multiplied by the rotation matrix of the angle; for y that is
    ``[[c, 0, s], [0, 1, 0], [-s, 0, c]]``.

    Args:
        axis: the up axis: ``"z"`` for pc3d's own sets, ``"y"`` for ShapeNet55, ModelNet40 and ScanObjectNN as stored.
        max_degrees: the largest angle; a full turn by default.

    Raises:
        ValueError: an unknown ``axis``, or ``max_degrees`` is negative.
    """

    def __init__(self, axis: Axis = "z", max_degrees: float = 360.0) -> None:
        _axis_number(axis)
        if max_degrees < 0:
            raise ValueError(f"max_degrees must not be negative, got {max_degrees}")
        self.axis = axis
        self.max_degrees = float(max_degrees)

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        angle = float(torch.rand((), generator=generator, dtype=torch.float64)) * math.radians(self.max_degrees)
        up = _axis_number(self.axis)
        first, second = (up + 1) % 3, (up + 2) % 3
        matrix = torch.eye(3, dtype=cloud.xyz.dtype)
        matrix[first, first] = matrix[second, second] = math.cos(angle)
        matrix[first, second], matrix[second, first] = -math.sin(angle), math.sin(angle)
        normal = None if cloud.normal is None else cloud.normal @ matrix.to(cloud.normal.dtype)
        return cloud.replace(xyz=cloud.xyz @ matrix, normal=normal)


class Jitter(Transform):
    """Gaussian noise on every coordinate, clipped (PointNet, Qi et al. 2017, section 5.1: 0.01 clipped at 0.05).

    Args:
        std: standard deviation, in units of the cloud.
        clip: largest absolute noise.

    Raises:
        ValueError: ``std`` or ``clip`` is negative.
    """

    def __init__(self, std: float = 0.01, clip: float = 0.05) -> None:
        if std < 0 or clip < 0:
            raise ValueError(f"std and clip must not be negative, got {std} and {clip}")
        self.std, self.clip = float(std), float(clip)

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        noise = torch.randn(cloud.xyz.shape, generator=generator, dtype=torch.float64) * self.std
        return cloud.replace(xyz=cloud.xyz + noise.clamp(-self.clip, self.clip).to(cloud.xyz.dtype))


class RandomPointDropout(Transform):
    """Drop a random share of the points, U[0, max_ratio] (PointNet++, Qi et al. 2017, section 3.3: 0.875).

    Args:
        max_ratio: largest probability of a point to be dropped, below 1.
        keep_length: overwrite dropped points with the first one, as published, so that clouds keep their length;
            otherwise remove them. The first point is never dropped.
        coordinates_only: overwrite only the coordinates of dropped points and keep their colours and normals, as in the
            released code of OpenShape.

    Raises:
        ValueError: a ratio out of range, or ``coordinates_only`` where points are removed.
    """

    def __init__(self, max_ratio: float = 0.875, keep_length: bool = True, coordinates_only: bool = False) -> None:
        if not 0.0 <= max_ratio < 1.0:
            raise ValueError(f"max_ratio must be in [0, 1), got {max_ratio}")
        if coordinates_only and not keep_length:
            raise ValueError("coordinates_only overwrites points, keep_length=False removes them: choose one")
        self.max_ratio = float(max_ratio)
        self.keep_length, self.coordinates_only = keep_length, coordinates_only

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        ratio = float(torch.rand((), generator=generator, dtype=torch.float64)) * self.max_ratio
        lost = torch.rand(len(cloud), generator=generator, dtype=torch.float64) < ratio
        lost[:1] = False
        if self.keep_length:
            source = torch.arange(len(cloud)).masked_fill(lost, 0)
            return cloud.replace(xyz=cloud.xyz[source]) if self.coordinates_only else cloud.select(source)
        return cloud.select(~lost)


class TurnUp(Transform):
    """Rotate a cloud so that another axis points up; it stays right-handed.

    From y to z: (x, y, z) becomes (x, -z, y). No random draw.

    Args:
        source: the axis that is up in the cloud.
        target: the axis that is up afterwards.

    Raises:
        ValueError: an unknown axis.
    """

    def __init__(self, source: Axis = "y", target: Axis = "z") -> None:
        _axis_number(source, "source")
        _axis_number(target, "target")
        self.source, self.target = source, target

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        source, target = _axis_number(self.source), _axis_number(self.target)
        if source == target:
            return cloud

        def turn(vectors: Tensor) -> Tensor:
            turned = vectors.clone()
            turned[:, target] = vectors[:, source]
            # A quarter turn about the third axis; the minus sign keeps the frame right-handed.
            turned[:, source] = -vectors[:, target]
            return turned

        return cloud.replace(xyz=turn(cloud.xyz), normal=None if cloud.normal is None else turn(cloud.normal))
