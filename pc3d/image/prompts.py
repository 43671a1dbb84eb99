"""Prompts, their ensembles, and classification by the nearest class text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from pc3d.image.towers import TextTower

PHOTO = ("a photo of a {}.",)
"""One prompt template: a photo of a class."""


def _expand(pattern: str, *choices: str) -> list[str]:
    """A pattern with each of the choices in its place ``@``; of several places the last one varies fastest."""
    if not choices:
        return [pattern]
    return [text for word in choices[0].split("|") for text in _expand(pattern.replace("@", word, 1), *choices[1:])]


ULIP_TEMPLATES: tuple[str, ...] = (
    "a point cloud model of {}.",
    *_expand("There is @ {} in the scene.", "a|the"),
    *_expand("a photo of @ {} in the scene.", "a|the|one"),
    *_expand("itap of @ {}.", "a|my|the"),
    *_expand("a photo of @ {}.", "a|my|the|one"),
    "a photo of many {}.",
    *_expand("a @ photo of @ {}.", "good|bad", "a|the"),
    *_expand("a photo of @ @ {}.", "a|the", "nice|cool|weird|small|large|clean|dirty"),
    *_expand("a @ photo of @ {}.", "bright|dark", "a|the"),
    *_expand("a photo of @ hard to see {}.", "a|the"),
    *_expand("a @ photo of @ {}.", "low resolution|cropped|close-up|jpeg corrupted|blurry|pixelated", "a|the"),
    "a black and white photo of the {}.",
    "a black and white photo of a {}",
    *_expand("@ @ {}.", "a|the", "plastic|toy|plushie|cartoon"),
    *_expand("@ embroidered {}.", "an|the"),
    *_expand("a painting of @ {}.", "the|a"),
)
"""The 64 templates of ULIP (Xue et al. 2023), which OpenShape averages over.

OpenShape's one script with them has no full stops at the end; its released features do not tell which they were made
with.
"""


def fill(templates: Sequence[str], name: str) -> list[str]:
    """Insert the name into each of the templates.

    Raises:
        ValueError: there is no template, or one without the place ``{}``.
    """
    if isinstance(templates, str) or len(templates) == 0:
        raise ValueError(f"templates must be one or more strings in a list, got {templates!r}")
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong:
        raise ValueError(f"a template must have the place {{}} once, got {wrong[0]!r}")
    return [template.replace("{}", name) for template in templates]


def prompt_ensemble(tower: TextTower, names: Sequence[str], templates: Sequence[str] = PHOTO) -> Tensor:
    """Compute one unit vector per name: the mean over templates of unit vectors (CLIP, Radford et al. 2021, 3.1.4).

    Args:
        tower: the text tower.
        names: class names or captions.
        templates: each with the place ``{}``.

    Returns:
        ``(len(names), width)`` float32.
    """
    texts = [text for name in names for text in fill(templates, name)]
    vectors = normalize(tower.encode(texts), dim=1)
    return normalize(vectors.reshape(len(names), len(templates), tower.width).mean(dim=1), dim=1)


def zero_shot_logits(features: Tensor, class_vectors: Tensor, logit_scale: float = 100.0) -> Tensor:
    """Scaled cosines of features with class vectors.

    Args:
        features: ``(..., D)``, of any length.
        class_vectors: ``(C, D)``, from :func:`prompt_ensemble`.
        logit_scale: factor of the cosines; CLIP's is near 100.

    Returns:
        ``(..., C)``.

    Raises:
        ValueError: the widths differ.
    """
    if class_vectors.ndim != 2 or features.shape[-1] != class_vectors.shape[1]:
        raise ValueError(
            f"features {tuple(features.shape)} and class_vectors {tuple(class_vectors.shape)} must end alike"
        )
    return logit_scale * normalize(features, dim=-1) @ normalize(class_vectors, dim=1).T


def multi_view_logits(
    features: Tensor, class_vectors: Tensor, weights: Sequence[float] | None = None, logit_scale: float = 100.0
) -> Tensor:
    """Logits of an object from several views: the weighted sum of those of each view (PointCLIP, section 3.2).

    Args:
        features: ``(..., V, D)``.
        class_vectors: ``(C, D)``.
        weights: one per view; by default all 1.
        logit_scale: factor of the cosines.

    Returns:
        ``(..., C)``.

    Raises:
        ValueError: ``weights`` has another length than there are views.
    """
    logits = zero_shot_logits(features, class_vectors, logit_scale)
    views = torch.ones(features.shape[-2]) if weights is None else torch.tensor(list(weights), dtype=torch.float32)
    if len(views) != features.shape[-2]:
        raise ValueError(f"weights must have one number per view, got {len(views)} for {features.shape[-2]} views")
    return (logits * views.to(logits)[:, None]).sum(dim=-2)


def class_map(dense: Tensor, class_vectors: Tensor, logit_scale: float = 100.0) -> Tensor:
    """Logits of every cell of text-aligned dense features (MaskCLIP, Zhou et al. 2022, section 3.2).

    Args:
        dense: ``(B, D, h, w)``.
        class_vectors: ``(C, D)``.
        logit_scale: factor of the cosines.

    Returns:
        ``(B, C, h, w)``.
    """
    return zero_shot_logits(dense.movedim(1, -1), class_vectors, logit_scale).movedim(-1, 1)


def smooth_by_keys(logits: Tensor, keys: Tensor, threshold: float = 1.0) -> Tensor:
    """Average unsure cells of a class map over cells with similar keys (key smoothing of MaskCLIP, section 3.3).

    ``pred_i = sum_j cos(k_i, k_j) pred_j``, here divided by the sum of the absolute weights, which keeps the scale of
    the logits and the ranking of the classes.

    Args:
        logits: ``(B, C, h, w)``, from :func:`class_map`.
        keys: ``(B, K, h, w)``, from the tower's ``keys``.
        threshold: cells whose largest probability is below it are averaged; 1 averages all.

    Raises:
        ValueError: the shapes do not fit.
    """
    if keys.ndim != 4 or keys.shape[0] != logits.shape[0] or keys.shape[2:] != logits.shape[2:]:
        raise ValueError(f"keys {tuple(keys.shape)} and logits {tuple(logits.shape)} must have the same batch and grid")
    unit = normalize(keys.flatten(2), dim=1)
    weight = unit.transpose(1, 2) @ unit
    weight = weight / weight.abs().sum(dim=2, keepdim=True)
    averaged = (logits.flatten(2) @ weight.transpose(1, 2)).reshape(logits.shape)
    unsure = logits.softmax(dim=1).amax(dim=1, keepdim=True) < threshold
    return torch.where(unsure, averaged, logits)


def drop_absent_classes(logits: Tensor, threshold: float = 0.5) -> Tensor:
    """Drop classes of which no cell is sure from a class map (prompt denoising of MaskCLIP, section 3.3).

    Args:
        logits: ``(B, C, h, w)``, from :func:`class_map`.
        threshold: a class is kept if its probability reaches this in some cell of the picture; the surest class is
            always kept.

    Returns:
        The logits with -inf for the classes that were dropped.

    Raises:
        ValueError: ``threshold`` is not between 0 and 1.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be between 0 and 1, got {threshold}")
    surest = logits.softmax(dim=1).flatten(2).amax(dim=2)
    kept = (surest >= threshold) | (surest == surest.amax(dim=1, keepdim=True))
    return torch.where(kept[:, :, None, None], logits, float("-inf"))
