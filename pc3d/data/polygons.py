"""Polygons of meshes, cut into triangles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pc3d.data.file_fields import Array

Numbers = NDArray[np.int64]
# What counts as going round the other way: triangles with more than this share of the area of their polygon.
_NONE = 1e-9


def cut(lengths: Numbers, corners: Numbers, xyz: Array) -> tuple[Numbers, Numbers]:
    """Polygons cut into triangles: fans around their first corners, and other ones where a fan would leave the polygon.

    Args:
        lengths: ``(P,)`` how many corners each polygon has.
        corners: ``(C,)`` which vertex each one is, one polygon after the other.
        xyz: ``(V, 3)`` vertices, which are not looked at where there are triangles only.

    Returns:
        ``(F,)`` which polygon each triangle is of, and ``(F, 3)`` which of its corners it has.
    """
    count = np.maximum(lengths - 2, 0)
    polygon = np.repeat(np.arange(len(count)), count)
    first, begins = np.cumsum(count) - count, np.cumsum(lengths) - lengths
    # How many triangles of its polygon come before a triangle.
    step = np.arange(len(polygon)) - first[polygon]
    corner = np.stack([np.zeros_like(step), step + 1, step + 2], axis=1)
    for one in left_by_fans(lengths, corners, xyz):
        own = xyz[corners[begins[one] : begins[one] + lengths[one]]]
        corner[first[one] : first[one] + count[one]] = ears(own)
    return polygon, corner


def left_by_fans(lengths: Numbers, corners: Numbers, xyz: Array) -> Numbers:
    """The numbers of the polygons that the fans around their first corners do not stay within."""
    large = lengths > 3
    if not large.any():
        return np.empty(0, np.int64)
    place, lengths = xyz[corners[np.repeat(large, lengths)]].astype(np.float64), lengths[large]
    polygon = np.repeat(np.arange(len(lengths)), lengths)
    around = place - place[(np.cumsum(lengths) - lengths)[polygon]]
    inside = polygon[:-1] == polygon[1:]
    # Normals as long as twice the areas of the triangles of the fans; those at the first and last corners are zeros.
    twice, of = np.cross(around[:-1], around[1:])[inside], polygon[:-1][inside]
    total = np.stack([np.bincount(of, twice[:, axis], minlength=len(lengths)) for axis in range(3)], axis=1)
    back = (twice * total[of]).sum(1) < -_NONE * (total**2).sum(1)[of]
    return np.asarray(np.flatnonzero(large)[np.unique(of[back])])


def ears(place: Array) -> Numbers:
    """The triangles ``(n - 2, 3)`` of one polygon ``(n, 3)``: ears that no other corner lies in, one by one."""
    flat = _flat(place.astype(np.float64))
    left, found = list(range(len(flat))), []
    while len(left) > 3:
        ring = flat[left]
        ear = next((k for k in range(len(left)) if _is_ear(ring, k)), 1)  # of one that crosses itself, any
        found.append((left[ear - 1], left[ear], left[(ear + 1) % len(left)]))
        del left[ear]
    return np.array([*found, left], np.int64)


def _flat(place: Array) -> NDArray[np.float64]:
    """A polygon in the plane in which it looks largest, ``(n, 2)``, going round to the left."""
    around = place - place[0]
    normal = np.cross(around, np.roll(around, -1, axis=0)).sum(0)
    axis = int(np.abs(normal).argmax())
    kept = [(axis + 1) % 3, (axis + 2) % 3]
    return np.asarray(around[:, kept if normal[axis] > 0 else kept[::-1]])


def _is_ear(ring: NDArray[np.float64], number: int) -> bool:
    """Whether a corner turns to the left and the triangle with those beside it holds no other one."""
    ear = ring[[number - 1, number, (number + 1) % len(ring)]]
    a, b, c = ear

    def to_the_left(start: Array, end: Array, point: Array) -> Array:
        to, there = end - start, point - start
        return np.asarray(to[0] * there[..., 1] - to[1] * there[..., 0])

    if to_the_left(a, b, c) <= 0:
        return False
    held = (to_the_left(a, b, ring) >= 0) & (to_the_left(b, c, ring) >= 0) & (to_the_left(c, a, ring) >= 0)
    # Corners of a bridge to a hole lie in one place, and are in the way of neither.
    return bool((ring[held][:, None] == ear).all(2).any(1).all())
