"""More texts for shapes: captions of their pictures, and texts of similar pictures elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pc3d.data.aligned import CAPTION, RETRIEVAL, Targets

Captioner = Callable[[NDArray[np.uint8]], str]
"""From a picture ``(H, W, 3)`` uint8 to a caption; an empty one counts as none."""
Encode = Callable[[Sequence[str]], Tensor]
"""From texts to features ``(T, D)``, such as ``tower.encode`` or an ensemble of prompts."""


class NearestTexts:
    """Texts of the pictures in a bank most similar to those of a shape (OpenShape, section 3.2, with LAION-5B).

    Args:
        features: ``(M, D)`` features of the bank's pictures, from the tower of the shapes' pictures.
        texts: the M texts.
        count: number of nearest pictures whose texts are taken, over all pictures of the shape. The paper does not
            state it.
        rows_at_a_time: rows of the bank per step; the result is exact for every value.

    Raises:
        ValueError: lengths that differ, or a number below 1.
    """

    def __init__(self, features: Tensor, texts: Sequence[str], count: int = 5, rows_at_a_time: int = 65536) -> None:
        if features.ndim != 2 or len(features) != len(texts):
            raise ValueError(f"features must be ({len(texts)}, D), a row per text, got {tuple(features.shape)}")
        if count < 1 or rows_at_a_time < 1:
            raise ValueError(f"count and rows_at_a_time must be at least 1, got {count} and {rows_at_a_time}")
        self.features, self.texts = features, list(texts)
        self.count, self.rows_at_a_time = count, rows_at_a_time

    def __call__(self, image_features: Tensor) -> list[str]:
        """Different texts of the nearest pictures, nearest first, for the pictures ``(V, D)`` of one shape."""
        query = F.normalize(image_features.float(), dim=1)
        best = torch.full((len(self.texts),), -2.0)
        for start in range(0, len(self.texts), self.rows_at_a_time):
            rows = F.normalize(self.features[start : start + self.rows_at_a_time].float(), dim=1)
            if len(query):
                best[start : start + len(rows)] = (rows @ query.T).amax(1)
        found: dict[str, None] = {}
        for row in best.argsort(descending=True, stable=True).tolist():
            if len(found) == self.count or best[row] < -1.5:
                break
            found.setdefault(self.texts[row])
        return list(found)


def enriched(
    targets: Targets,
    encode: Encode,
    *,
    picture: NDArray[np.uint8] | None = None,
    captioners: Mapping[str, Captioner] | None = None,
    retrieve: Callable[[Tensor], Sequence[str]] | None = None,
    encode_retrieved: Encode | None = None,
) -> Targets:
    """Add captions and retrieved texts, each with its feature, to targets.

    Args:
        targets: of a shape.
        encode: of captions; published: averaged over prompt templates.
        picture: what is captioned: the thumbnail, or a frontal rendering.
        captioners: by the name that the kind of a caption ends in: ``{"blip": ...}`` gives ``"caption:blip"``.
        retrieve: from the picture features ``(V, D)`` to texts, such as :class:`NearestTexts`.
        encode_retrieved: of retrieved texts; by default ``encode``. Published: of the text alone.

    Raises:
        ValueError: captioners without a picture.
    """
    if captioners and picture is None:
        raise ValueError("captioners need a picture: give picture=, the shape's thumbnail or a rendering")
    added: list[tuple[str, str, Encode]] = []
    for name, caption in (captioners or {}).items():
        assert picture is not None
        text = caption(picture).strip()
        if text:
            added.append((f"{CAPTION}:{name}", text, encode))
    if retrieve is not None and len(targets.image_features):
        added += [(RETRIEVAL, text, encode_retrieved or encode) for text in retrieve(targets.image_features)]
    if not added:
        return targets
    rows = torch.cat([encoder([text]).float() for _, text, encoder in added])
    have = targets.text_features if len(targets.texts) else rows[:0]
    return replace(
        targets,
        text_features=torch.cat([have, rows]),
        texts=(*targets.texts, *(text for _, text, _ in added)),
        text_kinds=(*targets.text_kinds, *(kind for kind, _, _ in added)),
    )
