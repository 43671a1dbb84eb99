"""What attention in windows computes, in plain PyTorch; the counterpart of :mod:`pc3d.ops.reference`.

The definition of :func:`pc3d.ops.window_attention` and its gradient pair by pair: the vectors that a pair looks up are
gathered and summed. Windows are taken one at a time, in chunks of queries, so that no array grows with the number of
all pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pc3d.ops.reference import _clouds, _sum_dtype

_PAIR_ELEMENTS_PER_CHUNK = 1 << 22


class _Inputs(NamedTuple):
    """What both directions read, in the type that sums are held in."""

    query: Tensor
    key: Tensor
    value: Tensor
    signals: Tensor
    query_table: Tensor
    key_table: Tensor
    value_table: Tensor

    @classmethod
    def of(cls, *tensors: Tensor) -> _Inputs:
        dtype = _sum_dtype(tensors[0].dtype)
        return cls(*(t.to(dtype) for t in tensors))


def table_rows(query_signals: Tensor, key_signals: Tensor, axis_rows: Sequence[int]) -> Tensor:
    """The table rows (I, J, D) int64 that queries (I, D) and keys (J, D) look up.

    Signal ``a`` of ``L`` rows: ``clamp(floor(query - key + L / 2), 0, L - 1)``, counted from where its rows begin.
    """
    rows = query_signals.new_tensor(axis_rows)
    bins = (query_signals[:, None] - key_signals[None] + rows / 2).floor()
    bins = torch.minimum(bins.clamp(min=0), rows - 1).long()
    return bins + (rows.cumsum(0) - rows).long()


def _chunks(order: Tensor, window_offsets: Tensor, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of some queries, and of all keys of their window."""
    for begin, end in _clouds(window_offsets):
        keys = order[begin:end]
        step = max(1, _PAIR_ELEMENTS_PER_CHUNK // max(1, (end - begin) * width))
        for low in range(0, end - begin, step):
            yield keys[low : low + step], keys


def _scores(inputs: _Inputs, queries: Tensor, keys: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (I, J, H) and the summed table vectors (I, J, H, d) of query and key."""
    q, k = inputs.query[queries], inputs.key[keys]
    from_query, from_key = inputs.query_table[rows].sum(2), inputs.key_table[rows].sum(2)
    logits = torch.einsum("ihc,ijhc->ijh", q, k + from_query) + torch.einsum("jhc,ijhc->ijh", k, from_key)
    return logits, from_query, from_key


def window_attention(
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
) -> tuple[Tensor, Tensor]:
    """Values mixed within windows, and the logarithm of each soft-max's sum; see :func:`pc3d.ops.window_attention`."""
    inputs = _Inputs.of(query, key, value, signals, query_table, key_table, value_table)
    out = torch.zeros_like(inputs.query)
    log_sum = out.new_zeros(out.shape[:2])
    for queries, keys in _chunks(order, window_offsets, query.shape[1] * query.shape[2]):
        rows = table_rows(inputs.signals[queries], inputs.signals[keys], axis_rows)
        logits, _, _ = _scores(inputs, queries, keys, rows)
        log_sum[queries] = logits.logsumexp(1)
        share = (logits - log_sum[queries][:, None]).exp()
        out[queries] = torch.einsum("ijh,ijhc->ihc", share, inputs.value[keys] + inputs.value_table[rows].sum(2))
    return out.to(query.dtype), log_sum


def window_attention_backward(
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
    """Gradients for query, key, value and the three tables, from the result and its ``log_sum``."""
    inputs = _Inputs.of(query, key, value, signals, query_table, key_table, value_table)
    push = grad.to(inputs.query.dtype)
    level = (push * out.to(push.dtype)).sum(2)  # (N, H): what all logits of a query share
    results = [torch.zeros_like(t) for t in (*inputs[:3], *inputs[4:])]
    for_query, for_key, for_value, for_query_table, for_key_table, for_value_table = results
    for queries, keys in _chunks(order, window_offsets, query.shape[1] * query.shape[2]):
        rows = table_rows(inputs.signals[queries], inputs.signals[keys], axis_rows)
        q, k, g = inputs.query[queries], inputs.key[keys], push[queries]
        logits, from_query, from_key = _scores(inputs, queries, keys, rows)
        share = (logits - log_sum[queries][:, None]).exp()
        values = inputs.value[keys] + inputs.value_table[rows].sum(2)
        for_logits = share * (torch.einsum("ihc,ijhc->ijh", g, values) - level[queries][:, None])
        for_query[queries] = torch.einsum("ijh,ijhc->ihc", for_logits, k + from_query)
        for_key[keys] += torch.einsum("ijh,ijhc->jhc", for_logits, q[:, None] + from_key)
        for_values = share[..., None] * g[:, None]
        for_value[keys] += for_values.sum(0)
        for axis in rows.unbind(2):
            into = axis.flatten()
            for_query_table.index_add_(0, into, (for_logits[..., None] * q[:, None]).flatten(0, 1))
            for_key_table.index_add_(0, into, (for_logits[..., None] * k).flatten(0, 1))
            for_value_table.index_add_(0, into, for_values.flatten(0, 1))
    return tuple(r.to(query.dtype) for r in results[:3]) + tuple(results[3:])
