"""Farthest point sampling."""

from __future__ import annotations

import torch
from torch import Tensor

from pc3d.ops import reference
from pc3d.ops._checks import Packed, check_int, check_tensor, dense_offsets, lengths, pack, values_are_readable
from pc3d.ops._library import define, fake

define(
    "farthest_point_sample(Tensor xyz, Tensor offsets, Tensor sample_offsets, SymInt num_total, Tensor start, "
    "bool ignore_near_origin, SymInt largest=-1) -> Tensor",  # points that no cloud exceeds, -1: not known
    reference.farthest_point_sample,
)


@fake("farthest_point_sample")
def _(
    xyz: Tensor,
    offsets: Tensor,
    sample_offsets: Tensor,
    num_total: int,
    start: Tensor,
    ignore_near_origin: bool,
    largest: int = -1,
) -> Tensor:
    return xyz.new_empty((num_total,), dtype=torch.int64)


def farthest_point_sample(
    xyz: Tensor,
    num_samples: int | Tensor,
    *,
    offsets: Tensor | None = None,
    start: str | int | Tensor = "first",
    generator: torch.Generator | None = None,
    ignore_near_origin: bool = False,
) -> Tensor:
    """Takes points one by one, each the farthest from all taken before it.

    The result is exactly that of the plain algorithm, whatever pruning a kernel uses. The lowest index wins a tie, and
    a point is taken at most once, so duplicates of a taken point come last, lowest index first.

    Args:
        xyz: dense (B, N, 3) or packed (N, 3) coordinates, any floating type (computed in float32, or float64).
        num_samples: points to take from each cloud, at most the number it has. With ``offsets`` also an int64 (B,)
            tensor of one number for each cloud. An int takes nothing from an empty packed cloud (a compiled graph
            cannot see which clouds are empty, and refuses them: pass the tensor there).
        offsets: (B + 1,) int64, for packed coordinates; by default, (N, 3) is one cloud.
        start: the first point: ``"first"`` (index 0), ``"random"``, an index, or an int64 (B,) tensor of indices,
            counted within each cloud.
        generator: the source of randomness of ``start="random"``; torch's global one by default.
        ignore_near_origin: the rule of the CUDA kernel that the MAE family trained with: points whose squared norm is
            at most 1e-3 are never candidates (the first point excepted), and once all candidates are taken, candidates
            repeat, lowest index first. For parity with published weights only.

    Returns:
        int64 indices: (B, num_samples) within each cloud for dense input; for packed input (total,) rows of ``xyz``,
        cloud after cloud, cut by :func:`sample_offsets`.

    Raises:
        TypeError: a wrong type of argument.
        ValueError: a wrong shape or value, more samples than a cloud has points, or NaN coordinates.

    Source:
        Eldar et al., The Farthest Point Strategy for Progressive Image Sampling, 1997; PointNet++ (Qi et al., 2017),
        section 3.2.
    """
    if not isinstance(ignore_near_origin, bool):
        raise TypeError(f"ignore_near_origin must be a bool, got {ignore_near_origin!r}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator must be a torch.Generator, got {generator!r}; use torch.Generator().manual_seed(...)"
        )
    points = pack(xyz, offsets, "xyz")
    num_clouds = points.offsets.shape[0] - 1
    cuts, total = _sample_cuts(points, num_samples, "xyz")
    starts = _starts(points, start, generator, num_clouds)
    largest = -1 if points.sizes is None else points.sizes[1]
    index = torch.ops.pc3d.farthest_point_sample(
        points.xyz, points.offsets, cuts, total, starts, ignore_near_origin, largest
    )
    if points.dense_shape is None:
        return index  # type: ignore[no-any-return]
    if num_clouds == 1:
        return index[None]  # type: ignore[no-any-return]
    local = index.reshape(num_clouds, -1) if num_clouds else index.reshape(0, int(num_samples))
    return local - points.offsets[:-1, None]  # type: ignore[no-any-return]


def sample_offsets(offsets: Tensor, num_samples: int | Tensor) -> Tensor:
    """(B + 1,) int64 offsets of what :func:`farthest_point_sample` takes from packed clouds.

    Args:
        offsets: (B + 1,) int64 offsets of the clouds sampled from.
        num_samples: as passed to :func:`farthest_point_sample`.
    """
    have = lengths(offsets)
    wanted = num_samples if isinstance(num_samples, Tensor) else torch.where(have > 0, num_samples, 0)
    return torch.cat([offsets.new_zeros(1), wanted.cumsum(0)])


def _sample_cuts(points: Packed, num_samples: int | Tensor, name: str) -> tuple[Tensor, int]:
    num_clouds = points.offsets.shape[0] - 1
    if isinstance(num_samples, Tensor):
        check_tensor(num_samples, "num_samples", (torch.int64,))
        if points.dense_shape is not None:
            raise ValueError("num_samples must be an int for dense points; a tensor goes with offsets")
        if num_samples.shape != (num_clouds,):
            raise ValueError(f"num_samples must have shape ({num_clouds},), got {tuple(num_samples.shape)}")
    else:
        num_samples = check_int(num_samples, "num_samples", 1)
    if points.dense_shape is not None or not (values_are_readable(points.xyz) or isinstance(num_samples, Tensor)):
        # Every cloud gives the same number; nothing has to be read.
        assert not isinstance(num_samples, Tensor)  # refused above
        if points.dense_shape is not None and num_clouds and points.dense_shape[1] < num_samples:
            raise ValueError(
                f"num_samples is {num_samples}, but the clouds of {name} have {points.dense_shape[1]} points"
            )
        return dense_offsets(num_clouds, num_samples, points.xyz.device), num_clouds * num_samples
    wanted = lengths(sample_offsets(points.offsets, num_samples))
    wrong = (wanted > lengths(points.offsets)) | (wanted < 0)
    if values_are_readable(points.xyz) and bool(wrong.any()):
        cloud = int(wrong.nonzero()[0])
        have = int(lengths(points.offsets)[cloud])
        raise ValueError(f"num_samples is {int(wanted[cloud])} for cloud {cloud} of {name}, which has {have} points")
    cuts = sample_offsets(points.offsets, num_samples)
    return cuts, int(cuts[-1])


def _starts(points: Packed, start: str | int | Tensor, generator: torch.Generator | None, num_clouds: int) -> Tensor:
    device = points.xyz.device
    if isinstance(start, str):
        if start == "first":
            return torch.zeros(num_clouds, dtype=torch.int64, device=device)
        if start == "random":
            have = lengths(points.offsets)
            source = generator.device if generator is not None else device
            draw = torch.rand(num_clouds, generator=generator, dtype=torch.float64, device=source).to(device)
            return torch.minimum((draw * have).long(), (have - 1).clamp(min=0))
        raise ValueError(f"start must be 'first', 'random', an index or an int64 tensor, got {start!r}")
    if isinstance(start, Tensor):
        starts = check_tensor(start, "start", (torch.int64,))
        if starts.shape != (num_clouds,):
            raise ValueError(f"start must have shape ({num_clouds},), got {tuple(starts.shape)}")
        starts = starts.to(device)
    else:
        starts = torch.full((num_clouds,), check_int(start, "start", 0), dtype=torch.int64, device=device)
    if values_are_readable(starts):
        have = lengths(points.offsets)
        outside = (starts < 0) | ((starts >= have) & (have > 0))
        if bool(outside.any()):
            cloud = int(outside.nonzero()[0])
            raise ValueError(f"start is {int(starts[cloud])} for cloud {cloud}, which has {int(have[cloud])} points")
    return starts
