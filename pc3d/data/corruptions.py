"""Corruptions of test clouds in the manner of ModelNet-C (Ren, Pan and Liu, ICML 2022, arXiv 2202.03377)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from pc3d.data.transforms import Transform
from pc3d.data.types import PointCloud

Corruption = Literal["scale", "jitter", "rotate", "drop_global", "drop_local", "add_global", "add_local", "density"]
"""Name of a corruption."""
CORRUPTIONS: tuple[str, ...] = get_args(Corruption)
"""Names of all corruptions: those of ModelNet-C, and lower density."""
MODELNET_C = CORRUPTIONS[:7]
"""The corruptions of ModelNet-C (Ren et al. 2022)."""
SEVERITIES = (1, 2, 3, 4, 5)
"""Levels of severity of a corruption."""
_POINTS = 1024  # of a cloud of ModelNet-C, whose counts are shares of it here
_SCALE = (1.6, 1.7, 1.8, 1.9, 2.0)
_DROPPED = (0.25, 0.375, 0.5, 0.625, 0.75)
_KEPT = (1 / 2, 1 / 4, 1 / 8, 1 / 12, 1 / 16)


class Corrupt(Transform):
    """One of the atomic corruptions at a severity from 1 to 5, of a cloud in the unit sphere.

    ================  =============================================================================================
    ``scale``         each axis by its own factor from U[1/s, s], s = 1.6 to 2.0, then back into the unit sphere
    ``jitter``        Gaussian noise on every coordinate, standard deviation 0.01 to 0.05, not clipped
    ``rotate``        about x, y and z by angles from U[-a, a] each, a = 6 to 30 degrees
    ``drop_global``   25, 37.5, 50, 62.5, 75 % of the points lost at random
    ``drop_local``    100 to 500 of 1,024 points lost, in 1 to 7 neighbourhoods of random points
    ``add_global``    10 to 50 points per 1,024 added, uniform in the unit ball
    ``add_local``     100 to 500 points per 1,024 added, in 1 to 7 Gaussian clusters (standard deviation from
                      U[0.075, 0.125]) around points of the cloud; those outside the unit sphere are inverted into it
    ``density``       the farthest points alone, 1/2, 1/4, 1/8, 1/12, 1/16 of them: not of ModelNet-C, but what a
                      coarser sensor sees
    ================  =============================================================================================

    Magnitudes are those of the released benchmark, whose clouds have 1,024 points; for others the counts follow in
    proportion. Scaling keeps the centre that the cloud has, the centroid or the box. Other fields of the points, such
    as colours, are dropped: nothing says what they would be.

    Args:
        kind: which.
        severity: 1 (mild) to 5.

    Raises:
        ValueError: an unknown kind or severity.
    """

    def __init__(self, kind: Corruption, severity: int) -> None:
        if kind not in CORRUPTIONS:
            raise ValueError(f"kind must be one of {', '.join(CORRUPTIONS)}, got {kind!r}")
        if severity not in SEVERITIES:
            raise ValueError(f"severity must be one of {SEVERITIES}, got {severity!r}")
        self.kind, self.severity = kind, severity

    def __call__(self, cloud: PointCloud, generator: torch.Generator) -> PointCloud:
        if len(cloud) == 0:
            raise ValueError("an empty cloud cannot be corrupted")
        xyz = _APPLY[self.kind](cloud.xyz.double(), self.severity, generator).to(cloud.xyz.dtype)
        return cloud.replace(xyz=xyz, rgb=None, normal=None, segment=None, instance=None)


def _uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _scale(xyz: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    largest = _SCALE[severity - 1]
    scaled = xyz * _uniform(1 / largest, largest, (3,), generator)
    radius = float(scaled.norm(dim=1).amax())
    return scaled / radius if radius > 0 else scaled


def _jitter(xyz: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    return xyz + 0.01 * severity * _normal(tuple(xyz.shape), generator)


def _rotate(xyz: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    bound = math.pi / 30 * severity
    turned = xyz
    # Rows times Rz Ry Rx: z first.
    angles = _uniform(-bound, bound, (3,), generator).tolist()
    for axis in (2, 1, 0):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        cosine, sine = math.cos(angles[axis]), math.sin(angles[axis])
        matrix = torch.eye(3, dtype=torch.float64)
        matrix[first, first] = matrix[second, second] = cosine
        matrix[first, second], matrix[second, first] = -sine, sine
        turned = turned @ matrix
    return turned


def _drop_global(xyz: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    kept = max(1, int(len(xyz) * (1 - _DROPPED[severity - 1])))
    return xyz[torch.randperm(len(xyz), generator=generator)[:kept]]


def _drop_local(xyz: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    for size in _cluster_sizes(min(_share(100, severity, xyz), len(xyz) - 1), generator):
        center = xyz[int(torch.randint(len(xyz), (), generator=generator))]
        nearest_first = (xyz - center).square().sum(1).argsort(stable=True)
        xyz = xyz[nearest_first[size:].sort().values]
    return xyz


def _add_global(xyz: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    count = _share(10, severity, xyz)
    direction = torch.nn.functional.normalize(_normal((count, 3), generator), dim=1)
    return torch.cat([xyz, direction * _uniform(0, 1, (count, 1), generator) ** (1 / 3)])


def _add_local(xyz: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    sizes = _cluster_sizes(_share(100, severity, xyz), generator)
    order = torch.randperm(len(xyz), generator=generator)
    centers = xyz[order[torch.arange(len(sizes)) % len(xyz)]]
    added = [xyz]
    for center, size in zip(centers, sizes, strict=True):
        width = _uniform(0.075, 0.125, (1,), generator)
        points = center + width * _normal((size, 3), generator)
        # As the released code: divided by the squared distance, so what is at r comes to 1 / r.
        added.append(points / points.square().sum(1, keepdim=True).clamp_min(1.0))
    return torch.cat(added)


def _density(xyz: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    from pc3d.ops import farthest_point_sample

    kept = max(1, int(len(xyz) * _KEPT[severity - 1]))
    return xyz[farthest_point_sample(xyz[None], kept)[0]]


def _share(per_severity: int, severity: int, xyz: Tensor) -> int:
    return round(per_severity * severity * len(xyz) / _POINTS)


def _cluster_sizes(total: int, generator: torch.Generator) -> list[int]:
    """Each of ``total`` points to one of 1 to 7 clusters at random."""
    clusters = int(torch.randint(1, 8, (), generator=generator))
    drawn = torch.randint(clusters, (total,), generator=generator)
    return torch.bincount(drawn, minlength=clusters).tolist()


_APPLY: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "scale": _scale,
    "jitter": _jitter,
    "rotate": _rotate,
    "drop_global": _drop_global,
    "drop_local": _drop_local,
    "add_global": _add_global,
    "add_local": _add_local,
    "density": _density,
}
