"""Scans whose image features are lifted onto their points once and stored in shards."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pc3d.data.frames import Frame
from pc3d.data.types import PointCloud
from pc3d.image.targets import lift_frames
from pc3d.image.towers import ImageTower

# Whole numbers up to here are exact in half precision.
MOST_VIEWS = 2048
# Frames of a scan show most of it; of one whose frames do not fit it, a few points agree by chance.
_FEW = 0.1


class Frames(Protocol):
    """Frames by number: a list, a :class:`pc3d.data.FrameFolder` or a :class:`pc3d.data.SensFile`."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int, /) -> Frame:
        """One of them, decoded."""


@dataclass(frozen=True)
class Scan:
    """The points of a scan and its posed pictures.

    Iterating returns the arrays that lifted features depend on, one frame after the other;
    :func:`pc3d.image.precompute` hashes them.

    Attributes:
        cloud: the points, in metres.
        frames: the pictures, decoded on demand.
        step: only every ``step``-th frame is used.

    Raises:
        ValueError: ``step`` is below 1.
    """

    cloud: PointCloud
    frames: Frames
    step: int = 1

    def __post_init__(self) -> None:
        if self.step < 1:
            raise ValueError(f"step must be at least 1, got {self.step}")

    def chosen(self) -> Iterator[Frame]:
        """The frames that are used."""
        for index in range(0, len(self.frames), self.step):
            yield self.frames[index]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for field in (self.cloud.xyz, self.cloud.normal):
            yield np.zeros(0, np.float32) if field is None else field.numpy()
        for frame in self.chosen():
            yield from (frame.color, frame.depth, frame.pose, frame.intrinsic, frame.intrinsic_depth)
            if frame.pose_color is not None:
                yield frame.pose_color


class ScanFeatures:
    """Extractor of the image features of a scan at its points.

    It returns ``num_views`` ``(N,)``, the number of frames that see each point (at most 2048 are counted), and
    ``feature`` ``(M, C)`` of the M points seen by at least one, in their order. :class:`pc3d.data.LiftedSet` joins them
    with the scans. It warns of a scan of whose points the frames see less than a tenth: then poses, units or intrinsics
    are often not what they are taken for.

    Args:
        tower: whose dense features are lifted.
        tolerance, edge, max_degrees, two_sided, short_side, unit: see :func:`lift_frames`.
    """

    def __init__(
        self,
        tower: ImageTower,
        *,
        tolerance: float = 0.05,
        edge: float | None = 0.1,
        max_degrees: float = 80.0,
        two_sided: bool = False,
        short_side: int | None = None,
        unit: bool = False,
    ) -> None:
        self.tower = tower
        self.options: dict[str, Any] = {
            "tolerance": tolerance,
            "edge": edge,
            "max_degrees": max_degrees,
            "short_side": short_side,
            "unit": unit,
        }
        if two_sided:  # not named otherwise, so that features that were stored without it are found again
            self.options["two_sided"] = True

    def __call__(self, content: Scan) -> dict[str, Tensor]:
        lifted = lift_frames(content.cloud, content.chosen(), self.tower, **self.options)
        if len(lifted.mask) and float(lifted.mask.float().mean()) < _FEW:
            warnings.warn(
                f"{content.cloud.meta.get('id', 'scan')}: the frames see {int(lifted.mask.sum())} of its "
                f"{len(lifted.mask)} points. Are the poses camera to scene (x right, y down, z forward), the depths "
                "metres (depth_shift), the intrinsics those of pictures of this size, the points in the same place?",
                stacklevel=2,
            )
        return {"feature": lifted.features[lifted.mask], "num_views": lifted.num_views.clamp(max=MOST_VIEWS)}

    def identity(self) -> dict[str, Any]:
        return {"kind": "scans", **self.options, **self.tower.identity()}
