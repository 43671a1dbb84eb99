"""Corruptions of test clouds in the manner of ModelNet-C (Ren, Pan and Liu, ICML 2022, arXiv 2202.03377)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from pc3d.data.transforms import Transform
from pc3d.data.types import PointCloud

Corruption = Literal[
    "scale",
    "jitter",
    "rotate",
    "drop_global",
    "drop_local",
    "add_global",
    "add_local",
    "density",
    "drop_color",
    "occlusion",
]
"""Name of a corruption."""
CORRUPTIONS: tuple[str, ...] = get_args(Corruption)
"""Names of all corruptions: those of ModelNet-C, lower density, lost colours, and a view from one side."""
MODELNET_C = CORRUPTIONS[:7]
"""The corruptions of ModelNet-C (Ren et al. 2022)."""
SEVERITIES = (1, 2, 3, 4, 5)
"""Levels of severity of a corruption."""
_POINTS = 1024  # of a cloud of ModelNet-C, whose counts are shares of it here
_SCALE = (1.6, 1.7, 1.8, 1.9, 2.0)
_DROPPED = (0.25, 0.375, 0.5, 0.625, 0.75)
_KEPT = (1 / 2, 1 / 4, 1 / 8, 1 / 12, 1 / 16)
_GREYED = (0.2, 0.4, 0.6, 0.8, 1.0)
_HIDDEN = (0.1, 0.2, 0.3, 0.4, 0.5)
_GREY = 0.4  # what OpenShape's encoders are given where there are no colours


class Corrupt(Transform):
    """Corrupt a cloud in the unit sphere by one of the atomic corruptions at a severity from 1 to 5.

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
    ``drop_color``    20, 40, 60, 80, 100 % of the points, drawn at random, turned grey: not of ModelNet-C, whose clouds
                      have no colours; the shares are ours
    ``occlusion``     10, 20, 30, 40, 50 % of the points lost, those that lie deepest behind what a viewer in a random
                      direction sees in front of them; not of ModelNet-C (``drop_local`` is what comes closest there),
                      the shares are ours
    ================  =============================================================================================

    Magnitudes are those of the released benchmark, whose clouds have 1,024 points; for other numbers of points, counts
    are scaled in proportion. Scaling keeps the centre of the cloud, the centroid or the box.

    Only ``drop_color`` changes colours, and points keep their other fields. Normals rotate with the surface. Added
    points are grey (0.4, which OpenShape's encoders get if there are no colours) and belong to no part or instance
    (-1). Their normals and features are unknown, so clouds with added points have none.

    Args:
        kind: name of the corruption, see above.
        severity: 1 (mild) to 5.

    Raises:
        ValueError: an unknown kind or severity, an empty cloud, or ``"drop_color"`` of a cloud without colours.
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
        if self.kind == "drop_color":
            return _drop_color(cloud, self.severity, generator)
        xyz = cloud.xyz.double()
        if self.kind in _DROP:
            return cloud.select(_DROP[self.kind](xyz, self.severity, generator))
        if self.kind in _ADD:
            return _with_points(cloud, _ADD[self.kind](xyz, self.severity, generator))
        moved, normal = _MOVE[self.kind](xyz, cloud.normal, self.severity, generator)
        return cloud.replace(xyz=moved.to(cloud.xyz.dtype), normal=normal)


def _with_points(cloud: PointCloud, added: Tensor) -> PointCloud:
    """The cloud with more points behind its own."""
    none = torch.full((len(added),), -1)
    more = {
        "xyz": added,
        "rgb": torch.full_like(added, _GREY),
        "segment": none,
        "instance": none,
    }
    own = {name: value for name in more if (value := getattr(cloud, name)) is not None}
    joined = {name: torch.cat([value, more[name].to(value.dtype)]) for name, value in own.items()}
    return cloud.replace(normal=None, feature=None, **joined)


def _drop_color(cloud: PointCloud, severity: int, generator: torch.Generator) -> PointCloud:
    if cloud.rgb is None:
        raise ValueError("drop_color needs a cloud with colours: its rgb is None")
    rgb = cloud.rgb.clone()
    rgb[torch.randperm(len(rgb), generator=generator)[: round(len(rgb) * _GREYED[severity - 1])]] = _GREY
    return cloud.replace(rgb=rgb)


def _uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _scale(
    xyz: Tensor, normal: Tensor | None, severity: int, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    largest = _SCALE[severity - 1]
    factor = _uniform(1 / largest, largest, (3,), generator)
    scaled = xyz * factor
    radius = float(scaled.norm(dim=1).amax())
    if normal is not None:
        # A plane's normal transforms by the inverse transpose of the map.
        normal = torch.nn.functional.normalize(normal / factor.to(normal.dtype), dim=1)
    return scaled / radius if radius > 0 else scaled, normal


def _jitter(
    xyz: Tensor, normal: Tensor | None, severity: int, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    return xyz + 0.01 * severity * _normal(tuple(xyz.shape), generator), normal


def _rotate(
    xyz: Tensor, normal: Tensor | None, severity: int, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
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
        normal = None if normal is None else normal @ matrix.to(normal.dtype)
    return turned, normal


def _drop_global(xyz: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    kept = max(1, int(len(xyz) * (1 - _DROPPED[severity - 1])))
    return torch.randperm(len(xyz), generator=generator)[:kept]


def _drop_local(xyz: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    left = torch.arange(len(xyz))
    for size in _cluster_sizes(min(_share(100, severity, xyz), len(xyz) - 1), generator):
        center = xyz[left[int(torch.randint(len(left), (), generator=generator))]]
        nearest_first = (xyz[left] - center).square().sum(1).argsort(stable=True)
        left = left[nearest_first[size:].sort().values]
    return left


def _density(xyz: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    from pc3d.ops import farthest_point_sample

    kept = max(1, int(len(xyz) * _KEPT[severity - 1]))
    return farthest_point_sample(xyz[None], kept)[0]


def _occlusion(xyz: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    direction = torch.nn.functional.normalize(_normal((3,), generator), dim=0)
    nearness = xyz @ direction
    across = torch.linalg.cross(direction, torch.eye(3, dtype=torch.float64)[int(direction.abs().argmin())])
    plane = torch.stack([xyz @ (across / across.norm()), xyz @ torch.linalg.cross(direction, across / across.norm())])
    # What is seen is the nearest point of a cell and the eight around it: about ten points of a surface without gaps.
    cells = max(1, int(math.sqrt(len(xyz)) / 2))
    start, extent = plane.amin(1, keepdim=True), float((plane.amax(1) - plane.amin(1)).max())
    row, column = ((plane - start) / max(extent, 1e-12) * cells).long().clamp(max=cells - 1)
    front = nearness.new_full((cells * cells,), -math.inf)
    front = front.scatter_reduce(0, row * cells + column, nearness, "amax").view(1, cells, cells)
    seen = torch.nn.functional.max_pool2d(front, 3, stride=1, padding=1)[0]
    depth = seen[row, column] - nearness
    # Of equally deep ones, and so of those that are seen, the farthest go first.
    far_first = nearness.argsort(stable=True)
    deep_first = far_first[depth[far_first].argsort(descending=True, stable=True)]
    lost = min(round(len(xyz) * _HIDDEN[severity - 1]), len(xyz) - 1)
    return deep_first[lost:].sort().values


def _add_global(xyz: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    count = _share(10, severity, xyz)
    direction = torch.nn.functional.normalize(_normal((count, 3), generator), dim=1)
    return direction * _uniform(0, 1, (count, 1), generator) ** (1 / 3)


def _add_local(xyz: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    sizes = _cluster_sizes(_share(100, severity, xyz), generator)
    order = torch.randperm(len(xyz), generator=generator)
    centers = xyz[order[torch.arange(len(sizes)) % len(xyz)]]
    added = []
    for center, size in zip(centers, sizes, strict=True):
        width = _uniform(0.075, 0.125, (1,), generator)
        points = center + width * _normal((size, 3), generator)
        # As the released code: divided by the squared distance, so what is at r comes to 1 / r.
        added.append(points / points.square().sum(1, keepdim=True).clamp_min(1.0))
    return torch.cat(added)


def _share(per_severity: int, severity: int, xyz: Tensor) -> int:
    return round(per_severity * severity * len(xyz) / _POINTS)


def _cluster_sizes(total: int, generator: torch.Generator) -> list[int]:
    """Each of ``total`` points to one of 1 to 7 clusters at random."""
    clusters = int(torch.randint(1, 8, (), generator=generator))
    drawn = torch.randint(clusters, (total,), generator=generator)
    return torch.bincount(drawn, minlength=clusters).tolist()


_Points = Callable[[Tensor, int, torch.Generator], Tensor]
_MOVE: dict[str, Callable[[Tensor, Tensor | None, int, torch.Generator], tuple[Tensor, Tensor | None]]] = {
    "scale": _scale,
    "jitter": _jitter,
    "rotate": _rotate,
}
_DROP: dict[str, _Points] = {
    "drop_global": _drop_global,
    "drop_local": _drop_local,
    "density": _density,
    "occlusion": _occlusion,
}
"""To the rows that are left."""
_ADD: dict[str, _Points] = {"add_global": _add_global, "add_local": _add_local}
"""To the points that are added."""
