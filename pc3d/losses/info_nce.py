"""Instance discrimination: identify the key of the same cloud among many keys."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def info_nce(
    query: Tensor,
    keys: Tensor,
    own: Tensor,
    *,
    queue: Tensor | None = None,
    temperature: float = 0.1,
    denominator: Tensor | None = None,
) -> Tensor:
    """InfoNCE: ``-log(exp(s_i,own) / sum_j exp(s_ij))``, summed over queries and divided by their number.

    ``s_ij = query_i . key_j / temperature``, and j runs over the keys of the batch and of the queue. The positive of a
    query is its own key. Rows are not normalised; pass rows of unit length for cosines.

    Args:
        query: ``(B, d)``.
        keys: ``(K, d)``, the keys of the whole global batch (:func:`pc3d.nn.gather_rows`).
        own: ``(B,)`` int64, index of the key of each query.
        queue: ``(Q, d)`` further negatives, such as the keys of earlier batches; Q may be 0.
        temperature: positive.
        denominator: scalar that replaces B as divisor; with several processes, the mean of B over them
            (:func:`pc3d.nn.mean_over_processes`).

    Returns:
        Scalar, float32 or wider.

    Raises:
        ValueError: shapes that do not match, or a temperature that is not positive.

    Source:
        van den Oord et al., 2018, equation 4; MoCo (He et al., 2020), equation 1.
    """
    if query.ndim != 2 or keys.ndim != 2 or query.shape[1] != keys.shape[1]:
        raise ValueError(f"query and keys must be (B, d) and (K, d), got {tuple(query.shape)} and {tuple(keys.shape)}")
    if own.shape != query.shape[:1]:
        raise ValueError(f"own must be ({len(query)},), the key of each query, got {tuple(own.shape)}")
    if queue is not None and (queue.ndim != 2 or queue.shape[1] != query.shape[1]):
        raise ValueError(f"queue must be (Q, {query.shape[1]}), got {tuple(queue.shape)}")
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    with torch.autocast(query.device.type, enabled=False):
        dtype = torch.promote_types(query.dtype, torch.float32)
        candidates = keys if queue is None else torch.cat([keys.to(dtype), queue.to(dtype)])
        logits = query.to(dtype) @ candidates.to(dtype).T / temperature
        if denominator is None:
            return F.cross_entropy(logits, own)
        return F.cross_entropy(logits, own, reduction="sum") / denominator
