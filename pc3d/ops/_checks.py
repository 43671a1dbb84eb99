"""Checks of what users pass to the operators, and the two layouts of points.

Shapes and types are always checked. Values (finite coordinates, ascending offsets, indices in range) are checked where
they can be read; a compiled graph cannot read them, there the kernels only guard their memory.
"""

from __future__ import annotations

import math
import operator
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Packed(NamedTuple):
    """Points of several clouds behind one another."""

    xyz: Tensor
    """(N, 3) float32 or float64."""
    offsets: Tensor
    """(B + 1,) int64: cloud b is rows offsets[b] to offsets[b + 1]."""
    dense_shape: tuple[int, int] | None
    """(B, N) where the caller passed a dense tensor."""
    sizes: tuple[int, int] | None
    """(B, N) where every cloud is known to hold N points without reading the offsets: dense points, or one cloud."""


def values_are_readable(*tensors: Tensor) -> bool:
    """Whether values may be looked at: not while a graph is traced or captured, nor where there is only a shape."""
    if torch.compiler.is_compiling():
        return False
    for tensor in tensors:
        if tensor.device.type == "meta" or isinstance(tensor, FakeTensor):
            return False
        if tensor.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return False
    return True


def check_tensor(value: object, name: str, dtypes: tuple[torch.dtype, ...] = FLOATING) -> Tensor:
    """The value, if it is a tensor of one of the types."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}; use torch.as_tensor({name})")
    if value.dtype not in dtypes:
        names = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name} must have dtype {names}, got {str(value.dtype).removeprefix('torch.')}")
    return value


def check_int(value: object, name: str, low: int, high: int | None = None) -> int:
    """The value, if it is an integer in [low, high]."""
    if isinstance(value, bool) or not (isinstance(value, (int, torch.SymInt)) or hasattr(value, "__index__")):
        raise TypeError(f"{name} must be an int, got {type(value).__name__} {value!r}")
    if not isinstance(value, (int, torch.SymInt)):
        value = operator.index(value)  # of numpy, say
    if value < low or (high is not None and value > high):
        limits = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{name} must be {limits}, got {value}")
    return value  # type: ignore[return-value]


def check_offsets(offsets: object, name: str, num_rows: int, device: torch.device) -> Tensor:
    """The offsets, if they cut ``num_rows`` rows into clouds."""
    offsets = check_tensor(offsets, name, (torch.int64,))
    if offsets.dim() != 1 or offsets.shape[0] < 1:
        raise ValueError(f"{name} must have shape (B + 1,), got {tuple(offsets.shape)}")
    if offsets.device != device:
        raise ValueError(f"{name} is on {offsets.device}, the points are on {device}; move one of them with .to()")
    if values_are_readable(offsets):
        on_host = offsets.cpu()  # at once: each look at a value on a GPU waits for all that was asked of it
        first, last = int(on_host[0]), int(on_host[-1])
        if first != 0 or last != num_rows:
            raise ValueError(f"{name} must run from 0 to the number of rows {num_rows}, got {first} to {last}")
        if bool((on_host[1:] < on_host[:-1]).any()):
            raise ValueError(f"{name} must ascend, got {offsets.tolist() if offsets.numel() <= 20 else offsets}")
    return offsets


def check_finite(value: Tensor, name: str) -> None:
    """Refuses NaN and infinite coordinates."""
    if not values_are_readable(value) or value.numel() == 0:
        return
    # One fast pass: a sum is finite only if every term is. It may overflow with finite terms, so look twice.
    if not math.isfinite(value.sum().item()) and not bool((finite := torch.isfinite(value)).all()):
        row = int((~finite).flatten(0, -2).any(-1).nonzero()[0]) if value.dim() > 1 else int((~finite).nonzero()[0])
        raise ValueError(
            f"{name} holds a NaN or infinite coordinate, first in row {row}; "
            f"drop such points first, e.g. {name}[torch.isfinite({name}).all(-1)]"
        )


def pack(
    xyz: object, offsets: object, name: str, offsets_name: str = "offsets", *, must_be_finite: bool = True
) -> Packed:
    """The packed form of dense (B, N, 3) or packed (N, 3) coordinates, in float32 or float64.

    Raises:
        TypeError: not a tensor, or not of a floating type.
        ValueError: a wrong shape, offsets that do not fit, or (unless the caller looks itself) a coordinate that is not
            finite.
    """
    xyz = check_tensor(xyz, name)
    if xyz.dim() not in (2, 3) or xyz.shape[-1] != 3:
        raise ValueError(f"{name} must have shape (B, N, 3), or (N, 3) with {offsets_name}, got {tuple(xyz.shape)}")
    dense_shape = sizes = None
    if xyz.dim() == 3:
        if offsets is not None:
            raise ValueError(f"{offsets_name} goes with packed (N, 3) points; {name} is dense, {tuple(xyz.shape)}")
        dense_shape = sizes = (xyz.shape[0], xyz.shape[1])
        packed_offsets = dense_offsets(*sizes, xyz.device)
    elif offsets is None:
        sizes = (1, xyz.shape[0])
        packed_offsets = dense_offsets(*sizes, xyz.device)
    else:
        packed_offsets = check_offsets(offsets, offsets_name, xyz.shape[0], xyz.device)
    if xyz.dtype in (torch.float16, torch.bfloat16):
        xyz = xyz.float()
    if must_be_finite:
        check_finite(xyz, name)
    return Packed(xyz if xyz.dim() == 2 else xyz.reshape(-1, 3), packed_offsets, dense_shape, sizes)


def check_coords(coords: object, offsets: object) -> tuple[Tensor, Tensor]:
    """Voxel coordinates (N, 3) int32 and their offsets, checked; without offsets they are one cloud."""
    coords = check_tensor(coords, "coords", (torch.int32,))
    if coords.dim() != 2 or coords.shape[1] != 3:
        raise ValueError(f"coords must have shape (N, 3), without a batch column, got {tuple(coords.shape)}")
    if offsets is None:
        return coords, dense_offsets(1, coords.shape[0], coords.device)
    return coords, check_offsets(offsets, "offsets", coords.shape[0], coords.device)


def dense_offsets(num_clouds: int, num_points: int, device: torch.device) -> Tensor:
    """Offsets of ``num_clouds`` clouds of ``num_points`` points each."""
    if num_points == 0:
        return torch.zeros(num_clouds + 1, dtype=torch.int64, device=device)
    return torch.arange(0, num_clouds * num_points + 1, num_points, device=device)


def check_same_clouds(a: Packed, b: Packed, a_name: str, b_name: str) -> None:
    """Refuses two sets of points that differ in layout, number of clouds, type or device."""
    if (a.dense_shape is None) != (b.dense_shape is None):
        raise ValueError(f"{a_name} and {b_name} must both be dense (B, N, 3) or both packed (N, 3)")
    if a.offsets.shape != b.offsets.shape:
        raise ValueError(
            f"{a_name} and {b_name} must hold the same number of clouds, "
            f"got {a.offsets.shape[0] - 1} and {b.offsets.shape[0] - 1}"
        )
    if a.xyz.device != b.xyz.device:
        raise ValueError(f"{a_name} is on {a.xyz.device}, {b_name} on {b.xyz.device}; move one of them with .to()")


def lengths(offsets: Tensor) -> Tensor:
    """(B,) points of each cloud."""
    return offsets[1:] - offsets[:-1]


def check_enough_points(points: Packed, queries: Packed, k: int, points_name: str) -> None:
    """Refuses a cloud with queries but fewer than ``k`` points."""
    if points.sizes is not None and queries.sizes is not None:
        if points.sizes[1] < k and queries.sizes[0] > 0 and queries.sizes[1] > 0:
            which = (
                f"cloud 0 of {points_name} has" if points.dense_shape is None else f"the clouds of {points_name} have"
            )
            raise ValueError(f"k is {k}, but {which} only {points.sizes[1]} points")
    elif values_are_readable(points.offsets, queries.offsets):
        short = (lengths(points.offsets) < k) & (lengths(queries.offsets) > 0)
        if bool(short.any()):
            cloud = int(short.nonzero()[0])
            have = int(lengths(points.offsets)[cloud])
            raise ValueError(f"k is {k}, but cloud {cloud} of {points_name} has only {have} points")
