"""Sparse convolution by the kernels of spconv, for those who ask for it."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from pc3d._extras import MissingExtraError
from pc3d.ops import KernelMap

_DTYPES = (torch.float32, torch.float16)


class _Pairs(NamedTuple):
    """A kernel map as spconv has it."""

    rows: Tensor
    """(2, K, M) int32: for each tap the input rows that it reads and the output rows that read them, then -1."""
    counts: Tensor
    """(K,) int32: how many there are."""


# By the map's table, for as long as it lives: all layers of a level, and all steps on one scene, share the pairs.
_pairs: Any = WeakIdKeyDictionary()


def spconv_conv3d(
    features: Tensor, weight: Tensor, kernel_map: KernelMap, bias: Tensor | None = None, *, transposed: bool = False
) -> Tensor:
    """:func:`pc3d.ops.sparse_conv3d` by spconv's native gather, matrix product and scatter.

    The voxels, what each reads, the layout of the weight and the result are those of pc3d: only the arithmetic is
    spconv's, forward and backward. It is meant for CUDA; on a CPU it is slower than pc3d's own kernels. The first call
    with a kernel map turns it into spconv's lists of pairs, later ones share these: a map is not to be changed in
    place. There is no second derivative, and ``torch.compile`` breaks the graph here. On CUDA under autocast spconv
    computes in float16, and its sums are those of its own kernels.

    Args:
        features: as :func:`pc3d.ops.sparse_conv3d`, float32 or float16.
        weight: ``(K, C_in, C_out)``, of the type of the features.
        kernel_map: from :func:`pc3d.ops.kernel_map`.
        bias: ``(C_out,)``.
        transposed: from the map's outputs back to its inputs.

    Returns:
        ``(M, C_out)``; ``transposed``: ``(N, C_out)``.

    Raises:
        MissingExtraError: spconv is not installed.
        TypeError: a wrong type of argument.
        ValueError: a type that spconv has no kernels for, or shapes or devices that do not fit.

    Source:
        github.com/traveller59/spconv, version 2.3: ``ConvAlgo.Native``.
    """
    if not isinstance(kernel_map, KernelMap):
        raise TypeError(f"kernel_map must come from kernel_map(coords, ...), got {type(kernel_map).__name__}")
    functional = import_spconv()
    rows_in, rows_out = kernel_map.reverse.shape[0], kernel_map.neighbors.shape[0]
    if transposed:
        rows_in, rows_out = rows_out, rows_in
    device = kernel_map.neighbors.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        features, weight = features.to(dtype), weight.to(dtype)
    _check(features, weight, kernel_map, rows_in)
    if rows_in == 0 or rows_out == 0:  # spconv refuses; the gradients are zeros
        out = features.new_zeros(rows_out, weight.shape[2]) + 0 * (features.sum() + weight.sum())
    else:
        pairs = _pairs_of(kernel_map)
        size = round(weight.shape[0] ** (1 / 3))
        filters = weight.permute(2, 0, 1).reshape(weight.shape[2], size, size, size, weight.shape[1])
        function = functional.SparseInverseConvFunction if transposed else functional.SparseConvFunction
        native = importlib.import_module("spconv.pytorch").ConvAlgo.Native
        out = function.apply(features.contiguous(), filters.contiguous(), *pairs, rows_out, native)
    return out if bias is None else out + bias.to(out.dtype)


def import_spconv() -> Any:
    """spconv's differentiable functions.

    Raises:
        MissingExtraError: spconv is not installed, or does not run here.
    """
    try:
        return importlib.import_module("spconv.pytorch.functional")
    except ImportError as error:
        raise MissingExtraError(
            'backend "spconv" needs spconv: pip install spconv-cu126 ninja (or another CUDA version that is not newer '
            f"than the driver's), or stay with pc3d's own kernels, which need nothing ({error})",
            name="spconv",
        ) from error


def _check(features: Tensor, weight: Tensor, kernel_map: KernelMap, rows_in: int) -> None:
    for name, tensor in (("features", features), ("weight", weight)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in _DTYPES:
            raise ValueError(
                f"{name} is {tensor.dtype}, for which spconv has no kernels: take float32 or float16 (precision "
                "16-mixed), or pc3d's own kernels"
            )
        if tensor.device != kernel_map.neighbors.device:
            raise ValueError(
                f"{name} is on {tensor.device}, kernel_map on {kernel_map.neighbors.device}; move one with .to()"
            )
    taps = kernel_map.neighbors.shape[1]
    if features.dim() != 2 or features.shape[0] != rows_in:
        raise ValueError(f"features must have shape ({rows_in}, C_in), got {tuple(features.shape)}")
    if weight.dim() != 3 or weight.shape[:2] != (taps, features.shape[1]):
        raise ValueError(f"weight must have shape ({taps}, {features.shape[1]}, C_out), got {tuple(weight.shape)}")
    if weight.dtype != features.dtype:
        raise ValueError(f"weight is {weight.dtype}, features are {features.dtype}; cast one of them with .to()")


def _pairs_of(kernel_map: KernelMap) -> _Pairs:
    found = _pairs.get(kernel_map.neighbors)
    if found is None:
        found = _pairs[kernel_map.neighbors] = _as_pairs(kernel_map.neighbors)
    return found  # type: ignore[no-any-return]


def _as_pairs(neighbors: Tensor) -> _Pairs:
    """The rows of each tap's pairs, in the order of the output voxels, moved to the front."""
    reads = neighbors.T >= 0
    tap, out_row = reads.nonzero(as_tuple=True)
    place = (reads.cumsum(1) - 1)[tap, out_row]
    rows = torch.full((2, *reads.shape), -1, dtype=torch.int32, device=neighbors.device)
    rows[0, tap, place] = neighbors[out_row, tap]
    rows[1, tap, place] = out_row.int()
    return _Pairs(rows, reads.sum(1, dtype=torch.int32))
