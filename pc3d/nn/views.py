"""Augmented views of clouds, computed on the device, with random numbers that belong to the samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pc3d.nn._checks import check_dense
from pc3d.nn.crops import Completion, ball_crop, complete, half_space_crop, share_of_points
from pc3d.nn.sample_random import SampleRandom
from pc3d.ops import farthest_point_sample, gather


@dataclass(frozen=True)
class ViewAugmentation:
    """A random view of each cloud of a batch: rotated, jittered, cropped, scaled, translated, filled up and shuffled.

    The steps are applied in this order. A view is a function of the cloud and of the draws
    (:class:`pc3d.nn.SampleRandom`), that is, of seed, epoch, step and position in the global batch. A crop is not
    centred or scaled to unit size afterwards: its position in the object and its size carry information.

    The magnitudes of jitter, scale and translation are those of PointNet and the Point-MAE family. Crops of at least
    half of the points, filled up with means of neighbours, come from POS-BERT (Fu et al., 2022, released code).

    Attributes:
        crop: bounds of the share of points that a view keeps, drawn per cloud; None keeps all. Crops are then filled up
            to ``ceil(crop[1] * N)`` points, independent of the share drawn.
        crop_kind: ``"ball"`` keeps the points nearest to a random point, ``"half_space"`` those farthest in a random
            direction.
        completion: how crops are filled up, see :func:`pc3d.nn.complete`.
        rotate: axis of a random rotation by any angle; None for no rotation.
        jitter: standard deviation of Gaussian noise on every coordinate, and the bound at which it is clipped; None for
            no noise.
        scale: bounds of the scale factor; None for no scaling.
        scale_per_axis: draw a factor for each axis instead of one for all axes.
        translation: largest shift along each axis; 0 for no translation.
        num_points: reduce the view to this many points by farthest point sampling from a random point, a
            low-resolution copy; None keeps all points.

    Raises:
        ValueError: bounds that are descending or out of range, a negative magnitude, or an unknown name.
    """

    crop: tuple[float, float] | None = (0.5, 1.0)
    crop_kind: Literal["ball", "half_space"] = "ball"
    completion: Completion = "midpoints"
    rotate: Literal["x", "y", "z"] | None = None
    jitter: tuple[float, float] | None = (0.01, 0.05)
    scale: tuple[float, float] | None = (2 / 3, 3 / 2)
    scale_per_axis: bool = True
    translation: float = 0.2
    num_points: int | None = None

    def __post_init__(self) -> None:
        if self.crop is not None and not 0.0 < self.crop[0] <= self.crop[1] <= 1.0:
            raise ValueError(f"crop must be a pair 0 < low <= high <= 1, or None, got {self.crop}")
        if self.scale is not None and not 0.0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be a pair 0 < low <= high, or None, got {self.scale}")
        if self.jitter is not None and min(self.jitter) < 0.0:
            raise ValueError(f"jitter must be a standard deviation and a bound, neither negative, got {self.jitter}")
        if self.translation < 0.0:
            raise ValueError(f"translation must not be negative, got {self.translation}")
        if self.num_points is not None and self.num_points < 1:
            raise ValueError(f"num_points must be at least 1, or None, got {self.num_points}")
        names = {
            "crop_kind": ("ball", "half_space"),
            "completion": ("midpoints", "duplicates"),
            "rotate": ("x", "y", "z", None),
        }
        for name, known in names.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")

    def length(self, num_points: int) -> int:
        """Number of points of a view of a cloud of ``num_points``.

        Raises:
            ValueError: ``num_points`` of the view exceeds the number of points of the crop.
        """
        length = num_points if self.crop is None else share_of_points(self.crop[1], num_points)
        if self.num_points is None:
            return length
        if self.num_points > length:
            raise ValueError(
                f"num_points={self.num_points} exceeds the {length} points that a view of {num_points} points has: "
                "give larger clouds or a smaller num_points"
            )
        return self.num_points

    @torch.no_grad()
    def __call__(self, xyz: Tensor, draws: SampleRandom) -> Tensor:
        """Compute a view of each cloud.

        Args:
            xyz: ``(B, N, 3)`` float32 or float64.
            draws: source of random numbers; each call continues where the previous one ended.

        Returns:
            ``(B, length(N), 3)``.

        Raises:
            ValueError: ``xyz`` is not ``(B, N, 3)``, or the clouds have too few points for the view.
        """
        check_dense(xyz)
        length = self.length(xyz.shape[1])
        if self.rotate is not None:
            xyz = rotated(xyz, draws.uniform() * (2 * math.pi), self.rotate)
        if self.jitter is not None:
            std, bound = self.jitter
            xyz = xyz + (draws.normal(xyz.shape[1], 3) * std).clamp(-bound, bound).to(xyz.dtype)
        if self.crop is None:
            view = self._scaled_and_moved(xyz, draws)
        else:
            # Scaled and moved before it is filled up, so that new points are means of scaled and moved points.
            kept, count = self._cropped(xyz, self.crop, draws)
            smallest = share_of_points(self.crop[0], xyz.shape[1])
            view = complete(self._scaled_and_moved(kept, draws), count, smallest, draws, self.completion)
        view = gather(view, draws.uniform(view.shape[1]).argsort(dim=1, stable=True))
        if self.num_points is None:
            return view
        # The view is shuffled, so farthest point sampling starts at a random point.
        return gather(view, farthest_point_sample(view, length))

    def _cropped(self, xyz: Tensor, crop: tuple[float, float], draws: SampleRandom) -> tuple[Tensor, Tensor]:
        """Crops ``(B, L, 3)``, and the number ``(B,)`` of points to keep from the start of each."""
        num_points, (low, high) = xyz.shape[1], crop
        length = share_of_points(high, num_points)
        ratio = low + (high - low) * draws.uniform().double()
        count = (ratio * num_points).ceil().long().clamp(share_of_points(low, num_points), length)
        if self.crop_kind == "half_space":
            return gather(xyz, half_space_crop(xyz, draws.normal(3).to(xyz.dtype), length)), count
        seed = (draws.uniform() * num_points).long().clamp(max=num_points - 1)
        return gather(xyz, ball_crop(xyz, seed, length)), count

    def _scaled_and_moved(self, xyz: Tensor, draws: SampleRandom) -> Tensor:
        if self.scale is not None:
            low, high = self.scale
            factor = low + (high - low) * draws.uniform(1, 3 if self.scale_per_axis else 1)
            xyz = xyz * factor.to(xyz.dtype)
        if self.translation > 0.0:
            xyz = xyz + ((2 * draws.uniform(1, 3) - 1) * self.translation).to(xyz.dtype)
        return xyz


def rotated(xyz: Tensor, angle: Tensor, axis: Literal["x", "y", "z"]) -> Tensor:
    """Rotate clouds ``(B, N, 3)`` about an axis by angles ``(B,)`` in radians; about z, x rotates towards y."""
    up = "xyz".index(axis)
    first, second = (up + 1) % 3, (up + 2) % 3
    cos, sin = angle.cos().to(xyz.dtype)[:, None], angle.sin().to(xyz.dtype)[:, None]
    turned = xyz.clone()
    turned[..., first] = xyz[..., first] * cos - xyz[..., second] * sin
    turned[..., second] = xyz[..., first] * sin + xyz[..., second] * cos
    return turned
