"""Functions of ``torch_scatter`` that repositories for point clouds use, implemented with PyTorch.

For all reductions, an output without any input is 0. Of equal largest or smallest values, the one with the lowest index
is taken and gets the gradient. If a value is NaN, the result is NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SUMS = ("sum", "add", "mean")
_ENDS = {"max": "amax", "min": "amin"}


def _expanded(index: Tensor, src: Tensor, dim: int) -> Tensor:
    """Expand the index to the shape of ``src``: an index of one axis lies along ``dim``; trailing axes are repeated."""
    if index.dim() == 1:
        index = index.reshape([-1 if axis == dim % src.dim() else 1 for axis in range(src.dim())])
    return index.reshape(*index.shape, *[1] * (src.dim() - index.dim())).expand_as(src)


def _sizes(src: Tensor, index: Tensor, dim: int, dim_size: int | None) -> list[int]:
    sizes = list(src.shape)
    sizes[dim] = dim_size if dim_size is not None else int(index.max()) + 1 if index.numel() else 0
    return sizes


def scatter_sum(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    """Sums of the values with the same index along ``dim``; added to ``out`` in place if given."""
    index = _expanded(index, src, dim)
    if out is None:
        return src.new_zeros(_sizes(src, index, dim, dim_size)).scatter_add(dim, index, src)
    return out.scatter_add_(dim, index, src)


scatter_add = scatter_sum


def scatter_mean(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    """Means of the values with the same index along ``dim``; rounded down for integers."""
    if out is not None:
        raise ValueError("out is not served by scatter_mean: leave it out, and add the result to it")
    index = _expanded(index, src, dim)
    total = scatter_sum(src, index, dim, dim_size=dim_size)
    count = scatter_sum(torch.ones_like(src), index, dim, dim_size=total.shape[dim]).clamp(min=1)
    return total / count if src.is_floating_point() else total.div(count, rounding_mode="floor")


def _scatter_end(
    kind: str, src: Tensor, index: Tensor, dim: int, out: Tensor | None, dim_size: int | None
) -> tuple[Tensor, Tensor]:
    index = _expanded(index, src, dim)
    if out is not None:
        # The values of out take part, as if they were appended to src, each with its own position as index.
        places = torch.arange(out.shape[dim], device=src.device)
        value, arg = _scatter_end(
            kind, torch.cat([src, out], dim), torch.cat([index, _expanded(places, out, dim)], dim), dim, None, None
        )
        return out.copy_(value), arg.clamp(max=src.shape[dim])
    shape = _sizes(src, index, dim, dim_size)
    with torch.no_grad():
        best = src.new_zeros(shape).scatter_reduce(dim, index, src, _ENDS[kind], include_self=False)
        places = _expanded(torch.arange(src.shape[dim], device=src.device), src, dim)
        other = (src != best.gather(dim, index)) & ~src.isnan()  # a NaN is the largest and the smallest
        places = places.masked_fill(other, src.shape[dim])
        arg = places.new_full(shape, src.shape[dim]).scatter_reduce(dim, index, places, "amin")
    nothing = arg == src.shape[dim]
    if src.shape[dim] == 0:
        return best, arg
    return src.gather(dim, arg.masked_fill(nothing, 0)).masked_fill(nothing, 0), arg


def scatter_max(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Maxima of the values with the same index along ``dim``, and their positions (the size of the axis if none)."""
    return _scatter_end("max", src, index, dim, out, dim_size)


def scatter_min(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Minima, as :func:`scatter_max`."""
    return _scatter_end("min", src, index, dim, out, dim_size)


def scatter(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
    reduce: str = "sum",
) -> Tensor:
    """Reduce the values with the same index along ``dim`` by ``reduce``: sum, add, mean, max or min."""
    if reduce in _ENDS:
        return _scatter_end(reduce, src, index, dim, out, dim_size)[0]
    if reduce not in _SUMS:
        raise ValueError(f"reduce must be one of {', '.join([*_SUMS, *_ENDS])}, got {reduce!r}")
    return (scatter_mean if reduce == "mean" else scatter_sum)(src, index, dim, out, dim_size)


def scatter_softmax(src: Tensor, index: Tensor, dim: int = -1, dim_size: int | None = None) -> Tensor:
    """Softmax over the values with the same index along ``dim``, with the shape of ``src``."""
    index = _expanded(index, src, dim)
    largest = scatter_max(src.detach(), index, dim, dim_size=dim_size)[0]
    weight = (src - largest.gather(dim, index)).exp()
    return weight / scatter_sum(weight, index, dim, dim_size=largest.shape[dim]).gather(dim, index)


def segment_coo(
    src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None, reduce: str = "sum"
) -> Tensor:
    """:func:`scatter` along the first axis, for an ascending index (N,)."""
    if index.dim() != 1:
        raise ValueError(f"index must have shape (N,), got {tuple(index.shape)}; scatter takes others")
    return scatter(src, index, 0, out, dim_size, reduce)


def segment_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None, reduce: str = "sum") -> Tensor:
    """Reduce rows ``indptr[s]`` to ``indptr[s + 1]`` of ``src`` (N, ...), for each of the S segments of (S + 1,)."""
    if indptr.dim() != 1 or indptr.shape[0] == 0 or (int(indptr[0]), int(indptr[-1])) != (0, src.shape[0]):
        raise ValueError(f"indptr must have shape (S + 1,) and run from 0 to {src.shape[0]}, the rows of src")
    segments = torch.arange(indptr.shape[0] - 1, device=src.device).repeat_interleave(indptr.diff())
    return scatter(src, segments, 0, out, indptr.shape[0] - 1, reduce)
