"""Cameras of a view: a camera that orbits a point, z up, and paths of such cameras."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pc3d.viz.view import View

FloatArray = NDArray[np.floating]
AZIMUTH, ELEVATION, FIELD_OF_VIEW = -55.0, 22.0, 35.0
_FITTED = 200_000
_NEAR = 1e-3


@dataclass(frozen=True)
class Viewpoint:
    """A pinhole camera that looks at a target.

    Attributes:
        target: the point in the middle of the picture.
        distance: from the target, in the units of the points.
        azimuth: degrees, direction of the camera around the z axis, counted from the x axis.
        elevation: degrees above the horizon, -90 to 90.
        field_of_view: degrees over the shorter side of the picture.

    Raises:
        ValueError: a value out of range.
    """

    target: tuple[float, float, float]
    distance: float
    azimuth: float = AZIMUTH
    elevation: float = ELEVATION
    field_of_view: float = FIELD_OF_VIEW

    def __post_init__(self) -> None:
        values = (*self.target, self.distance, self.azimuth, self.elevation, self.field_of_view)
        if len(self.target) != 3 or not np.isfinite(values).all():
            raise ValueError(f"a viewpoint is made of finite numbers, with three for the target; got {self}")
        if not self.distance > 0 or not 0 < self.field_of_view < 180 or not -90 <= self.elevation <= 90:
            raise ValueError(
                "distance must be positive, field_of_view in (0, 180) and elevation in [-90, 90] degrees; got "
                f"{self.distance}, {self.field_of_view} and {self.elevation}"
            )

    @property
    def axes(self) -> NDArray[np.float64]:
        """``(3, 3)`` unit rows: right, up, and from the target towards the camera."""
        a, e = np.deg2rad(self.azimuth), np.deg2rad(self.elevation)
        right = np.array([-np.sin(a), np.cos(a), 0.0])
        towards = np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
        return np.stack([right, np.cross(towards, right), towards])

    @property
    def eye(self) -> NDArray[np.float64]:
        """``(3,)`` where the camera is."""
        place: NDArray[np.float64] = np.array(self.target) + self.distance * self.axes[2]
        return place

    def project(self, xyz: FloatArray, width: int, height: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Points to pixels.

        Args:
            xyz: ``(N, 3)``.
            width: of the picture in pixels.
            height: likewise.

        Returns:
            ``(N, 2)`` column and row, whose first pixel is [0, 1) by [0, 1), and ``(N,)`` depth along the axis of the
            camera, not positive behind it.
        """
        local = (xyz - np.array(self.target, np.float32)).astype(np.float32, copy=False) @ self.axes.T.astype(
            np.float32
        )
        depth = np.float32(self.distance) - local[:, 2]
        focal = np.float32(min(width, height) / 2 / np.tan(np.deg2rad(self.field_of_view / 2)))
        scale = focal / np.maximum(depth, np.float32(_NEAR * self.distance))
        pixel = np.stack([width / 2 + scale * local[:, 0], height / 2 - scale * local[:, 1]], axis=1)
        return pixel.astype(np.float32, copy=False), depth

    def turned(self, azimuth: float = 0.0, elevation: float = 0.0) -> Viewpoint:
        """The camera moved around its target by the given degrees; it stops at the zenith and at the nadir."""
        raised = min(max(self.elevation + elevation, -90.0), 90.0)
        return dataclasses.replace(self, azimuth=self.azimuth + azimuth, elevation=raised)


def fit(
    view: View,
    *,
    azimuth: float = AZIMUTH,
    elevation: float = ELEVATION,
    aspect: float = 4 / 3,
    field_of_view: float = FIELD_OF_VIEW,
    margin: float = 0.04,
) -> Viewpoint:
    """The viewpoint from which all of a view fills the picture.

    Strays far away, up to a five-hundredth of the points, may lie outside, as in scans through windows: they do not
    make the rest small. Clouds count alike, however many points they have: a sparse one is no stray of a dense one.

    Args:
        view: what to show.
        azimuth: see :class:`Viewpoint`.
        elevation: likewise.
        aspect: width of the picture over its height.
        field_of_view: see :class:`Viewpoint`.
        margin: room around, as a share of the picture.
    """
    xyz = _some_points(view)
    if not len(xyz):
        return Viewpoint((0.0, 0.0, 0.0), 1.0, azimuth, elevation, field_of_view)
    low, high = np.percentile(xyz, [0.1, 99.9], axis=0)
    extent = max(float((high - low).max()), 1e-6)
    slopes = _slopes(aspect, field_of_view, margin)
    axes = Viewpoint((0.0, 0.0, 0.0), 1.0, azimuth, elevation, field_of_view).axes
    target, distance = (low + high) / 2, 1.0
    for _ in range(3):
        local = (xyz - target) @ axes.T
        distance = max(_distance(local, slopes), 0.1 * extent)
        # What is near looks large: the middle of the points is not the middle of the picture.
        flat = local[:, :2] / np.maximum(distance - local[:, 2:], 0.01 * distance)
        target = target + distance * (np.percentile(flat, [0.1, 99.9], axis=0).mean(0) @ axes[:2])
    x, y, z = target.tolist()
    return Viewpoint((x, y, z), distance, azimuth, elevation, field_of_view)


def fit_around(
    view: View,
    *,
    azimuth: float = AZIMUTH,
    elevation: float = ELEVATION,
    aspect: float = 4 / 3,
    field_of_view: float = FIELD_OF_VIEW,
    margin: float = 0.04,
) -> Viewpoint:
    """As :func:`fit`, and all of the view stays in the picture while the camera goes around (:func:`turntable`)."""
    options = {"elevation": elevation, "aspect": aspect, "field_of_view": field_of_view, "margin": margin}
    sides = [fit(view, azimuth=azimuth + turn, **options) for turn in range(0, 360, 30)]
    target = np.mean([side.target for side in sides], axis=0)
    from_target, slopes = _some_points(view) - target, _slopes(aspect, field_of_view, margin)
    needed = [_distance(from_target @ side.axes.T, slopes) for side in sides if len(from_target)]
    x, y, z = target.tolist()
    return Viewpoint((x, y, z), max([sides[0].distance, *needed]), azimuth, elevation, field_of_view)


def _some_points(view: View) -> NDArray[np.float64]:
    """As many points of each cloud, evenly spaced in its order, those of sparse clouds several times."""
    clouds = [cloud for cloud in view.clouds if len(cloud)]
    number = min(max(map(len, clouds), default=0), max(1, _FITTED // len(view.clouds)))
    none = np.zeros((0, 3), np.float32)
    chosen = [cloud.placed[np.arange(number) * len(cloud) // number] for cloud in clouds]
    return np.concatenate([none, *chosen]).astype(np.float64)


def _slopes(aspect: float, field_of_view: float, margin: float) -> NDArray[np.float64]:
    """How far to the side and up the picture reaches, for each unit of depth."""
    slope = np.tan(np.deg2rad(field_of_view / 2)) / (1 + margin)
    reach: NDArray[np.float64] = slope * np.array([max(aspect, 1.0), max(1 / aspect, 1.0)])
    return reach


def _distance(local: NDArray[np.float64], slopes: NDArray[np.float64]) -> float:
    """From where all points but strays are in the picture, given along the axes of the camera from its target."""
    needed = (np.abs(local[:, :2]) / slopes).max(1) + local[:, 2]
    return min(float(needed.max()), 1.1 * float(np.percentile(needed, 99.8)))


def of_view_matrix(matrix: FloatArray, target: FloatArray) -> Viewpoint:
    """The viewpoint of a camera that is given as a matrix; a roll about its axis is left out.

    Args:
        matrix: ``(4, 4)`` world to camera, which looks along its negative z axis, y up, as OpenGL has it.
        target: ``(3,)`` a point about as far away as what is looked at: it says how far along the axis the target is.
    """
    rotation, shift = matrix[:3, :3], matrix[:3, 3]
    eye, towards = -rotation.T @ shift, rotation[2]
    distance = float(max((eye - target) @ towards, 1e-6))
    x, y, z = (eye - distance * towards).tolist()
    elevation = float(np.rad2deg(np.arcsin(np.clip(towards[2], -1, 1))))
    # Straight from above the direction is told by what is up in the picture.
    flat = towards if abs(towards[2]) < 0.9999 else -np.sign(towards[2]) * rotation[1]
    return Viewpoint((x, y, z), distance, float(np.rad2deg(np.arctan2(flat[1], flat[0]))), elevation)


def turntable(start: Viewpoint, frames: int) -> list[Viewpoint]:
    """Viewpoints once around the target, starting at ``start``.

    Raises:
        ValueError: less than one frame.
    """
    if frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames}")
    return [start.turned(360.0 * number / frames) for number in range(frames)]


def along(path: Sequence[Viewpoint], frames: int) -> list[Viewpoint]:
    """Cameras evenly spaced in time along a path, straight from one of its viewpoints to the next.

    Args:
        path: at least one; between two, the azimuth takes the shorter way round.
        frames: how many cameras, the first and the last being those of the path.

    Raises:
        ValueError: an empty path, or less than one frame.
    """
    if not path or frames < 1:
        raise ValueError(f"a path must have at least one viewpoint and one frame, got {len(path)} and {frames}")
    found = []
    for time in np.linspace(0, len(path) - 1, frames).tolist():
        first = min(int(time), max(len(path) - 2, 0))
        found.append(_between(path[first], path[min(first + 1, len(path) - 1)], time - first))
    return found


def _between(first: Viewpoint, second: Viewpoint, share: float) -> Viewpoint:
    turn = (second.azimuth - first.azimuth + 180.0) % 360.0 - 180.0

    def mix(a: float, b: float) -> float:
        return a + share * (b - a)

    x, y, z = (mix(a, b) for a, b in zip(first.target, second.target, strict=True))
    return Viewpoint(
        (x, y, z),
        mix(first.distance, second.distance),
        first.azimuth + share * turn,
        mix(first.elevation, second.elevation),
        mix(first.field_of_view, second.field_of_view),
    )


def save_path(path: Sequence[Viewpoint], file: str | os.PathLike[str]) -> None:
    """Write a camera path as JSON: a list of viewpoints."""
    text = json.dumps([dataclasses.asdict(viewpoint) for viewpoint in path], indent=2)
    Path(file).write_text(text + "\n", encoding="utf-8")


def load_path(file: str | os.PathLike[str]) -> list[Viewpoint]:
    """Read what :func:`save_path` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no camera path.
    """
    try:
        stored = json.loads(Path(file).read_text(encoding="utf-8"))
        path = [Viewpoint(**{**entry, "target": tuple(entry["target"])}) for entry in stored]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{file} holds no camera path, as the window of pc3d view records them: {error}") from error
    if not path:
        raise ValueError(f"{file} holds an empty camera path")
    return path
