"""What the operators on voxels compute, in plain PyTorch; the counterpart of :mod:`pc3d.ops.reference`.

Voxels are integer triples. They are ordered by cloud, then lexicographically by (x, y, z), wherever an operator makes
them; every tie goes to the lowest row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pc3d.ops.reference import _clouds, _sum_dtype, gather

INT32 = torch.iinfo(torch.int32)


def unique_voxels(coords: Tensor, offsets: Tensor, factor: int) -> tuple[Tensor, ...]:
    """The distinct ``floor(coords / factor)`` of each cloud; see :func:`pc3d.ops.voxelize_coords`."""
    coarse = coords.div(factor, rounding_mode="floor")
    voxels, inverses, counts, cuts = [coords.new_empty((0, 3))], [offsets[:0]], [offsets[:0]], [0]
    for begin, end in _clouds(offsets):
        unique, inverse, count = coarse[begin:end].unique(dim=0, return_inverse=True, return_counts=True)
        voxels.append(unique)
        inverses.append(inverse + cuts[-1])
        counts.append(count)
        cuts.append(cuts[-1] + unique.shape[0])
    inverse = torch.cat(inverses)
    rows = torch.arange(coords.shape[0], device=coords.device)
    first = torch.full((cuts[-1],), coords.shape[0], device=coords.device).scatter_reduce(0, inverse, rows, "amin")
    return torch.cat(voxels), torch.tensor(cuts, device=offsets.device), inverse, first, torch.cat(counts)


def voxelize(xyz: Tensor, offsets: Tensor, voxel_size: float) -> tuple[Tensor, ...]:
    """The voxels that points fall into; see :func:`pc3d.ops.voxelize`."""
    # A tensor, not a number: torch divides by a number on CUDA as a multiplication by its rounded inverse.
    cell = (xyz / xyz.new_full((1,), voxel_size)).floor()
    coords = cell.double().clamp(INT32.min, INT32.max).to(torch.int32)
    return unique_voxels(coords, offsets, 1)


def kernel_map(
    coords: Tensor,
    offsets: Tensor,
    out_coords: Tensor,
    out_offsets: Tensor,
    kernel_size: int,
    stride: int,
    low: int,
) -> tuple[Tensor, Tensor]:
    """Which input row each tap of each output voxel reads, and the other way round; see :func:`pc3d.ops.kernel_map`.

    Tap (ix, iy, iz) of output voxel v is the voxel ``stride * v + low + (ix, iy, iz)``.
    """
    taps = [(x, y, z) for x in range(kernel_size) for y in range(kernel_size) for z in range(kernel_size)]
    neighbors = torch.full((out_coords.shape[0], len(taps)), -1, dtype=torch.int32)
    reverse = torch.full((coords.shape[0], len(taps)), -1, dtype=torch.int32)
    voxels, out_voxels = coords.tolist(), out_coords.tolist()
    for (begin, end), (out_begin, out_end) in zip(_clouds(offsets), _clouds(out_offsets), strict=True):
        row_of = {tuple(voxels[row]): row for row in range(end - 1, begin - 1, -1)}
        for row in range(out_begin, out_end):
            corner = [stride * c + low for c in out_voxels[row]]
            for k, tap in enumerate(taps):
                source = row_of.get(tuple(c + t for c, t in zip(corner, tap, strict=True)), -1)
                neighbors[row, k] = source
                if source >= 0:
                    reverse[source, k] = row
    return neighbors.to(coords.device), reverse.to(coords.device)


def sparse_conv(features: Tensor, weight: Tensor, neighbors: Tensor, reverse: Tensor) -> Tensor:
    """``out[m] = sum_k features[neighbors[m, k]] @ weight[k]``; half precision sums in float32."""
    dtype = _sum_dtype(features.dtype)
    out = torch.zeros((neighbors.shape[0], weight.shape[2]), dtype=dtype, device=features.device)
    for k in range(weight.shape[0]):
        out += gather(features.to(dtype), neighbors[:, k].long()) @ weight[k].to(dtype)
    return out.to(features.dtype)


def sparse_conv_weight_gradient(features: Tensor, grad: Tensor, neighbors: Tensor, reverse: Tensor) -> Tensor:
    """``out[k] = sum_m outer(features[neighbors[m, k]], grad[m])``."""
    dtype = _sum_dtype(features.dtype)
    values, push = features.to(dtype), grad.to(dtype)
    taps = [gather(values, neighbors[:, k].long()).T @ push for k in range(neighbors.shape[1])]
    return torch.stack(taps).to(features.dtype)


def gather_max(features: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """``out[m, c] = max_j features[index[m, j], c]`` and the row it comes from: the first of equals, -1 where none."""
    m, k = index.shape
    if features.shape[0] == 0 or k == 0:
        return features.new_zeros((m, features.shape[1])), index.new_full((m, features.shape[1]), -1)
    rows = features[index.clamp(min=0)].masked_fill((index < 0)[..., None], -torch.inf)
    empty = (index < 0).all(1)[:, None]
    # A slot of -1 must not tie with a feature of -inf: pass over it by looking for the first used slot that attains.
    best = rows.amax(1, keepdim=True)
    attains = ((rows == best) | (rows.isnan() & best.isnan())) & (index >= 0)[..., None]
    slot = attains.int().argmax(1)
    source = index.gather(1, slot).masked_fill(empty, -1)
    return best[:, 0].masked_fill(empty, 0), source


def segment_max(values: Tensor, index: Tensor, num_segments: int) -> tuple[Tensor, Tensor]:
    """The largest value of each segment and channel, and the first row that holds it: 0 and -1 where there is none."""
    shape = (num_segments, values.shape[1])
    columns = index[:, None].expand_as(values)
    best = torch.full(shape, -torch.inf, dtype=values.dtype, device=values.device)
    best = best.scatter_reduce(0, columns, values, "amax")
    top = best[index]
    attains = (values == top) | (values.isnan() & top.isnan())
    rows = torch.arange(values.shape[0], device=values.device)[:, None].expand_as(values)
    rows = rows.masked_fill(~attains, values.shape[0])
    source = index.new_full(shape, values.shape[0]).scatter_reduce(0, columns, rows, "amin")
    empty = source == values.shape[0]
    return best.masked_fill(empty, 0), source.masked_fill(empty, -1)


def max_gradient(grad: Tensor, source: Tensor, num_rows: int, deterministic: bool = True) -> Tensor:
    """``out[source[m, c], c] += grad[m, c]`` (``scatter_add`` heeds torch's own switch)."""
    out = torch.zeros((num_rows + 1, grad.shape[1]), dtype=_sum_dtype(grad.dtype), device=grad.device)
    rows = torch.where(source < 0, num_rows, source)
    return out.scatter_add(0, rows, grad.to(out.dtype))[:num_rows].to(grad.dtype)
