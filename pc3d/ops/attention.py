"""Attention within windows of voxels, with learned vectors for the differences of their signals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pc3d.ops import reference_attention
from pc3d.ops._checks import check_coords, check_finite, check_int, check_tensor, values_are_readable
from pc3d.ops._library import define, fake, gradient

# What the CUDA kernels have room for; the same everywhere, so that what runs on one device runs on all.
MAX_HEAD_DIM = 64
MAX_SIGNALS = 32
MAX_TABLE_ROWS = {torch.float32: 1400, torch.float64: 700}  # by the type of the sums

_INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor signals, Tensor order, Tensor window_offsets, "
    "Tensor query_table, Tensor key_table, Tensor value_table, int[] axis_rows"
)
define(f"window_attention({_INPUTS}) -> (Tensor, Tensor)", reference_attention.window_attention)
define(
    f"window_attention_backward(Tensor grad, Tensor out, Tensor log_sum, {_INPUTS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference_attention.window_attention_backward,
)


@fake("window_attention")
def _(query: Tensor, key: Tensor, value: Tensor, signals: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), signals.new_empty(query.shape[:2])


@fake("window_attention_backward")
def _(
    grad: Tensor,
    out: Tensor,
    log_sum: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    signals: Tensor,
    order: Tensor,
    window_offsets: Tensor,
    query_table: Tensor,
    key_table: Tensor,
    value_table: Tensor,
    axis_rows: Sequence[int],
) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in (query, key, value, query_table, key_table, value_table))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output, *inputs[:-1])
    ctx.axis_rows = list(inputs[-1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _log_sum: Tensor) -> tuple[Tensor | None, ...]:
    out = torch.ops.pc3d.window_attention_backward(grad, *ctx.saved_tensors, ctx.axis_rows)
    for_query, for_key, for_value, for_query_table, for_key_table, for_value_table = out
    return for_query, for_key, for_value, None, None, None, for_query_table, for_key_table, for_value_table, None


def _no_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    pass


def _no_second_gradient(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    raise NotImplementedError("window_attention has no second derivative; call backward without create_graph=True")


gradient("window_attention", _setup, _backward)
gradient("window_attention_backward", _no_setup, _no_second_gradient)


class Windows(NamedTuple):
    """Voxels grouped into the cubes of a grid."""

    order: Tensor
    """(N,) int64: the voxel rows, window after window, ascending within each."""
    offsets: Tensor
    """(Nw + 1,) int64: window w is order[offsets[w]] to order[offsets[w + 1] - 1]."""


def window_partition(coords: Tensor, window_size: int, *, offsets: Tensor | None = None, shift: int = 0) -> Windows:
    """Groups voxels by the cube of ``window_size`` voxels they lie in: ``floor((coords + shift) / window_size)``.

    Windows are anchored at the origin of the coordinates, never wrap and are never padded: a window holds the occupied
    voxels of one cloud in one cube, however few. They are ordered by cloud, then lexicographically. Time and memory
    grow with N; empty cubes cost nothing.

    Args:
        coords: (N, 3) int32 voxel coordinates, in any order.
        window_size: edge of a window in voxels.
        offsets: (B + 1,) int64 offsets of the clouds; by default, one cloud.
        shift: voxels to move all coordinates by beforehand; Swin alternates between 0 and ``window_size // 2``.

    Returns:
        The windows, for :func:`window_attention`; build them once for all layers of a level.

    Raises:
        TypeError: a wrong type of argument.
        ValueError: a wrong shape or value.

    Source:
        Yang et al., Swin3D: A Pretrained Transformer Backbone for 3D Indoor Scene Understanding, 2023, section 3.2.
    """
    check_int(window_size, "window_size", 1, 1 << 20)
    check_int(shift, "shift", -(1 << 31), 1 << 31)
    coords, cuts = check_coords(coords, offsets)
    # Whole windows change neither groups nor order, the rest may push a voxel into the next window: nothing overflows.
    cell = coords.div(window_size, rounding_mode="floor")
    cell += coords.remainder(window_size) + shift % window_size >= window_size
    _, _, window, _, count = torch.ops.pc3d.unique_voxels(cell, cuts, 1)
    return Windows(window.argsort(stable=True), torch.cat([count.new_zeros(1), count.cumsum(0)]))


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    signals: Tensor,
    windows: Windows,
    query_table: Tensor,
    key_table: Tensor,
    value_table: Tensor,
    axis_rows: Sequence[int],
    *,
    check_values: bool = True,
) -> Tensor:
    """Attention among the voxels of each window, with contextual relative signal encoding.

    For query i and key j of one window, head by head, and the D scalar signals of a voxel (position, colour, normal)::

        t_a   = clamp(floor(signals[i, a] - signals[j, a] + L_a / 2), 0, L_a - 1)
        Tq_ij = sum_a query_table[first_a + t_a]          and so Tk_ij and Tv_ij; L_a = axis_rows[a]
        e_ij  = q_i . k_j + q_i . Tq_ij + k_j . Tk_ij
        out_i = sum_j softmax_j(e_ij) (v_j + Tv_ij)

    No array grows with the number of pairs: per window and head the products of all queries with the table rows that
    the window can reach are formed once, pairs look scalars up in them, and the gradient computes the pairs again. Sums
    run in float32 (float64 for float64), whatever the type of the features. The result and all gradients are the same
    from run to run, whatever the number of threads. A NaN or an infinite logit gives NaN only in the windows and heads
    where it occurs.

    Without signals (``axis_rows=()``, signals of 0 columns, tables of 0 rows) it is plain attention in windows.

    Args:
        query: (N, H, d), already scaled (by ``d ** -0.5``, usually); d at most 64.
        key: (N, H, d).
        value: (N, H, d).
        signals: (N, D) in bins of the tables, of any floating type; differences are taken in float32 (float64 where
            the query is float64). They get no gradient: bins are constant almost everywhere.
        windows: from :func:`window_partition`.
        query_table: (sum(axis_rows), H, d), the rows of the first signal first; may be of higher precision than the
            features, and its gradient is then of that precision.
        key_table: (sum(axis_rows), H, d).
        value_table: (sum(axis_rows), H, d).
        axis_rows: rows of each signal's part of a table; at most 32 signals and 1,400 rows in all (700 for float64).
            The limits are those of CUDA and hold on every device.
        check_values: refuse signals that are not finite and windows of other voxels. On a GPU this waits for all that
            was launched before, so a network whose layers share them looks at them in the first layer only.

    Returns:
        (N, H, d), in the order of ``query``.

    Raises:
        TypeError: a wrong type of argument.
        ValueError: shapes, types or devices that do not fit, or a signal that is not finite.

    Source:
        Yang et al., Swin3D: A Pretrained Transformer Backbone for 3D Indoor Scene Understanding, 2023, section 3.3,
        scaled as in the released code; differences past the end of a table take its last row (there, the next table's
        first).
    """
    if not isinstance(windows, Windows):
        raise TypeError(f"windows must come from window_partition(coords, ...), got {type(windows).__name__}")
    query, key, value = _features(query, key, value)
    rows = [check_int(r, "axis_rows", 1) for r in axis_rows]
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    if len(rows) > MAX_SIGNALS:
        raise ValueError(f"axis_rows must name at most {MAX_SIGNALS} signals, got {len(rows)}; leave signals out")
    if sum(rows) > MAX_TABLE_ROWS[dtype]:
        raise ValueError(
            f"axis_rows must sum to at most {MAX_TABLE_ROWS[dtype]:,} for {dtype}, got {sum(rows):,}; scale signals "
            f"to fewer bins, or take smaller windows{', or float32' if dtype == torch.float64 else ''}"
        )
    signals = check_tensor(signals, "signals")
    if signals.shape != (query.shape[0], len(rows)):
        raise ValueError(
            f"signals must have shape ({query.shape[0]}, {len(rows)}), a column for each of axis_rows, "
            f"got {tuple(signals.shape)}"
        )
    if check_values:
        check_finite(signals, "signals")
    tables = {"query_table": query_table, "key_table": key_table, "value_table": value_table}
    for name, table in tables.items():
        check_tensor(table, name)
        if table.shape != (sum(rows), *query.shape[1:]):
            raise ValueError(
                f"{name} must have shape {(sum(rows), *query.shape[1:])}: sum(axis_rows), then as query; "
                f"got {tuple(table.shape)}"
            )
    _check_windows(windows, query.shape[0], check_values)
    for name, tensor in {"signals": signals, "windows": windows.order, **tables}.items():
        if tensor.device != query.device:
            raise ValueError(f"{name} is on {tensor.device}, query on {query.device}; move one of them with .to()")
    out, _ = torch.ops.pc3d.window_attention(
        query,
        key,
        value,
        signals.detach().to(dtype),
        windows.order,
        windows.offsets,
        *(table.to(dtype) for table in tables.values()),
        rows,
    )
    return out  # type: ignore[no-any-return]


def _features(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three, checked, and under autocast in its type."""
    check_tensor(query, "query")
    if query.dim() != 3 or not 1 <= query.shape[2] <= MAX_HEAD_DIM:
        raise ValueError(f"query must have shape (N, H, d), d between 1 and {MAX_HEAD_DIM}, got {tuple(query.shape)}")
    kind = query.device.type
    both = (query, key, value)
    for name, tensor in (("key", key), ("value", value)):
        check_tensor(tensor, name)
        if tensor.shape != query.shape:
            raise ValueError(f"{name} must have the shape of query {tuple(query.shape)}, got {tuple(tensor.shape)}")
        if tensor.device != query.device:
            raise ValueError(f"{name} is on {tensor.device}, query on {query.device}; move one of them with .to()")
    if torch.is_autocast_enabled(kind) and all(t.dtype != torch.float64 for t in both):
        dtype = torch.get_autocast_dtype(kind)
        return query.to(dtype), key.to(dtype), value.to(dtype)
    for name, tensor in (("key", key), ("value", value)):
        if tensor.dtype != query.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, query is {query.dtype}; cast one of them with .to()")
    return both


def _check_windows(windows: Windows, num_voxels: int, check_values: bool) -> None:
    check_tensor(windows.order, "windows.order", (torch.int64,))
    check_tensor(windows.offsets, "windows.offsets", (torch.int64,))
    if windows.order.shape != (num_voxels,):
        raise ValueError(
            f"windows must be of the {num_voxels} voxels of query, but they order {tuple(windows.order.shape)} rows"
        )
    if windows.offsets.dim() != 1 or windows.offsets.shape[0] < 1:
        raise ValueError(f"windows.offsets must have shape (Nw + 1,), got {tuple(windows.offsets.shape)}")
    if check_values and values_are_readable(windows.offsets) and int(windows.offsets[-1]) != num_voxels:
        raise ValueError(f"windows.offsets must end at the {num_voxels} voxels, got {int(windows.offsets[-1])}")
