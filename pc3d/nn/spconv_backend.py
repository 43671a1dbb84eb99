"""Sparse convolution by the kernels of spconv, an optional backend."""

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
    """A kernel map in the form of spconv."""

    rows: Tensor
    """(2, K, M) int32: input rows and output rows of the pairs of each tap, padded with -1."""
    counts: Tensor
    """(K,) int32: number of pairs of each tap."""


# Keyed by the table of the map, and kept as long as it: all layers of a level, and all steps on a scene, share pairs.
_pairs: Any = WeakIdKeyDictionary()


def spconv_conv3d(
    features: Tensor, weight: Tensor, kernel_map: KernelMap, bias: Tensor | None = None, *, transposed: bool = False
) -> Tensor:
    """:func:`pc3d.ops.sparse_conv3d` by spconv's native gather, matrix product and scatter.

    Voxels, kernel maps, the layout of weights and the result are those of pc3d. Only the arithmetic, forward and
    backward, is done by spconv. This backend is meant for CUDA; on a CPU it is slower than pc3d's own kernels. The
    first call with a kernel map converts it to spconv's lists of pairs, and later calls reuse them, so do not change a
    map in place. There is no second derivative, and ``torch.compile`` breaks the graph here. Under autocast, inputs are
    cast to the autocast type (float16 on CUDA by default). Sums are rounded as by spconv's kernels.

    Args:
        features: as in :func:`pc3d.ops.sparse_conv3d`, float32 or float16.
        weight: ``(K, C_in, C_out)``, with the dtype of the features.
        kernel_map: from :func:`pc3d.ops.kernel_map`.
        bias: ``(C_out,)``.
        transposed: from the outputs of the map to its inputs.

    Returns:
        ``(M, C_out)``, or ``(N, C_out)`` if transposed.

    Raises:
        MissingExtraError: spconv is not installed.
        TypeError: an argument of a wrong type.
        ValueError: a dtype for which spconv has no kernels, or shapes, dtypes or devices that do not match.

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
    if rows_in == 0 or rows_out == 0:  # spconv raises an error; the gradients are zeros
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
    """Import the module with spconv's differentiable functions.

    Raises:
        MissingExtraError: spconv is not installed or cannot be imported.
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
    """Pairs of each tap, in the order of the output voxels, without gaps."""
    reads = neighbors.T >= 0
    tap, out_row = reads.nonzero(as_tuple=True)
    place = (reads.cumsum(1) - 1)[tap, out_row]
    rows = torch.full((2, *reads.shape), -1, dtype=torch.int32, device=neighbors.device)
    rows[0, tap, place] = neighbors[out_row, tap]
    rows[1, tap, place] = out_row.int()
    return _Pairs(rows, reads.sum(1, dtype=torch.int32))
