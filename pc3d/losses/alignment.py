"""The loss of OpenShape: contrast of shapes with their texts and pictures, and the mask of its negatives."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Dropped = Literal["remove", "zero"]
"""What happens to pairs that are not used as negatives."""


class Alignment(NamedTuple):
    """The loss of one pairing, and the accuracy of the best match.

    Attributes:
        loss: scalar, float32 or wider; 0 if no shape has a target.
        accuracy: among the shapes with a target, the share whose most similar target is one of their own; NaN if no
            shape has a target.
        num_shapes: number of shapes with a target.
    """

    loss: Tensor
    accuracy: Tensor
    num_shapes: int


def shape_contrast(
    shapes: Tensor,
    targets: Tensor,
    owner: Tensor,
    logit_scale: Tensor | float,
    *,
    keep: Tensor | None = None,
    dropped: Dropped = "remove",
) -> Alignment:
    """Contrastive loss between shapes and frozen targets, in both directions, with any number of positives per shape.

    With cosines ``c_ij`` of shape i and target j, the shape ``o_j`` that target j belongs to, the scale s, the number n
    of shapes with a target, and the set ``P_i`` of targets of shape i::

        rows    = 1/n sum_i 1/|P_i| sum_{j in P_i} -log(exp(s c_ij) / sum_k exp(s c_ik))
        columns = 1/n sum_i 1/|P_i| sum_{j in P_i} -log(exp(s c_ij) / sum_h exp(s c_hj))
        loss    = (rows + columns) / 2

    k runs over all targets and h over the shapes with a target; shapes without a target are left out. With one target
    per shape, this is the loss of the released code, twice that of the paper's equation 2 with its factor 1/4. With
    several targets, the rows are the outer supervised contrastive loss (Khosla et al., 2020, equation 2), and each
    shape still has the same weight.

    Args:
        shapes: ``(B, D)`` embeddings, of any length; they are normalised here.
        targets: ``(M, D)``, likewise; M may be 0.
        owner: ``(M,)`` int64, index of the shape that each target belongs to.
        logit_scale: s, positive.
        keep: ``(B, B)`` bool; where ``keep[i, h]`` is False, the targets of shape h are not negatives of shape i, in
            either direction (:func:`negatives_to_keep`). A shape's own targets are always kept.
        dropped: what happens to them: ``"remove"`` leaves them out of the sums, as in the paper; ``"zero"`` sets their
            logits to 0, as in the released code.

    Raises:
        ValueError: tensors of shapes that do not match, an owner that is not an index of a shape, or an unknown
            ``dropped``.

    Source:
        Liu et al., OpenShape, NeurIPS 2023, equation 2 and section 3.4.
    """
    _check(shapes, targets, owner, keep, dropped)
    dtype = torch.promote_types(shapes.dtype, torch.float32)
    with torch.autocast(shapes.device.type, enabled=False):
        own, rank = torch.unique(owner, return_inverse=True)  # shapes with a target, and each owner among them
        points = F.normalize(shapes.to(dtype)[own], dim=1, eps=1e-12)
        wanted = F.normalize(targets.to(dtype), dim=1, eps=1e-12)
        scale = logit_scale.to(dtype) if isinstance(logit_scale, Tensor) else logit_scale
        logits = scale * points @ wanted.T
        if len(own) == 0:
            nothing = logits.sum() + 0.0 * shapes.sum() + 0.0 * scale  # complete graph for distributed training
            return Alignment(nothing, logits.new_tensor(float("nan")), 0)
        is_own = rank[None] == torch.arange(len(own), device=rank.device)[:, None]
        correct = is_own.gather(1, logits.detach().argmax(1, keepdim=True)).to(dtype).mean()
        if keep is not None:
            lost = ~(keep[own][:, own][:, rank] | is_own)
            logits = logits.masked_fill(lost, float("-inf") if dropped == "remove" else 0.0)
        weight = 1.0 / (torch.bincount(rank).to(dtype)[rank] * len(own))
        target = torch.arange(len(rank), device=rank.device)
        rows, columns = (F.log_softmax(logits, dim)[rank, target] for dim in (1, 0))
        return Alignment(-0.5 * ((rows + columns) * weight).sum(), correct, len(own))


def negatives_to_keep(similarity: Tensor, group: Tensor, threshold: float = 0.1) -> Tensor:
    """Which shapes of a mined batch are valid negatives of each other (OpenShape, section 3.4).

    Shapes of different seeds always are. Shapes of one seed were selected because they are similar. Among them, shape j
    is a negative of shape i only if ``similarity[i, i] - similarity[i, j]`` exceeds the threshold, that is, if the
    picture of i matches the text of i clearly better than the text of j.

    Args:
        similarity: ``(B, B)`` cosines of picture i and text j, NaN where one of them is missing; such pairs are kept.
        group: ``(B,)`` int64, the seed of each shape.
        threshold: δ.

    Returns:
        ``(B, B)`` bool with True on the diagonal, the ``keep`` of :func:`shape_contrast`.

    Raises:
        ValueError: tensors of shapes that do not match.
    """
    if similarity.ndim != 2 or similarity.shape != (len(group), len(group)) or group.ndim != 1:
        raise ValueError(
            f"similarity must be (B, B) and group (B,), got {tuple(similarity.shape)} and {tuple(group.shape)}"
        )
    alike = similarity.diagonal()[:, None] - similarity <= threshold  # False where either is NaN
    same_seed = group[:, None] == group[None]
    return ~(alike & same_seed) | torch.eye(len(group), dtype=torch.bool, device=group.device)


def _check(shapes: Tensor, targets: Tensor, owner: Tensor, keep: Tensor | None, dropped: str) -> None:
    if shapes.ndim != 2 or targets.ndim != 2 or shapes.shape[1] != targets.shape[1]:
        raise ValueError(
            f"shapes and targets must be (B, D) and (M, D), got {tuple(shapes.shape)} and {tuple(targets.shape)}"
        )
    if owner.shape != targets.shape[:1]:
        raise ValueError(f"owner must be ({len(targets)},), the shape of each target, got {tuple(owner.shape)}")
    if len(owner) and not 0 <= int(owner.min()) <= int(owner.max()) < len(shapes):
        raise ValueError(f"owner must name shapes 0 to {len(shapes) - 1}, got {int(owner.min())} to {int(owner.max())}")
    if keep is not None and keep.shape != (len(shapes), len(shapes)):
        raise ValueError(f"keep must be ({len(shapes)}, {len(shapes)}), got {tuple(keep.shape)}")
    if dropped not in get_args(Dropped):
        raise ValueError(f"dropped must be one of {', '.join(map(repr, get_args(Dropped)))}, got {dropped!r}")
