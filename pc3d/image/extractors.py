"""Extractors: how features of pictures and texts are computed, with an identity that stored features carry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pc3d.image.pictures import Picture
from pc3d.image.prompts import ULIP_TEMPLATES, prompt_ensemble
from pc3d.image.towers import ImageTower, TextTower

Content = Picture | str | Sequence[Picture] | Sequence[str] | Iterable[NDArray[Any]]
"""What features are computed from: a picture or a text, or several of an object, or all arrays of a scan."""


class Extractor(Protocol):
    """Base class of extractors: compute named features of content, and describe how."""

    def __call__(self, content: Any) -> dict[str, Tensor]:
        """Features by name; the first axis of each may differ from item to item, the others not."""

    def identity(self) -> dict[str, Any]:
        """Everything that decides the result, as plain data."""


class PictureFeatures:
    """Extractor of one global feature per picture: ``{"image": (V, D)}`` for an object's V pictures."""

    def __init__(self, tower: ImageTower, batch_size: int = 32) -> None:
        self.tower, self.batch_size = tower, batch_size

    def __call__(self, content: Picture | Sequence[Picture]) -> dict[str, Tensor]:
        pictures = [content] if isinstance(content, np.ndarray) else list(content)
        return {"image": self.tower.encode(pictures, self.batch_size)}

    def identity(self) -> dict[str, Any]:
        return {"kind": "pictures", **self.tower.identity()}


class TextFeatures:
    """Extractor of texts as OpenShape stores them: ``original``, the text alone, and ``prompt_avg``, over templates.

    Each is ``(T, D)`` for an object's T texts; ``prompt_avg`` has unit length (the mean of unit vectors, made unit).
    """

    def __init__(self, tower: TextTower, templates: Sequence[str] = ULIP_TEMPLATES) -> None:
        self.tower, self.templates = tower, tuple(templates)

    def __call__(self, content: str | Sequence[str]) -> dict[str, Tensor]:
        texts = [content] if isinstance(content, str) else list(content)
        return {"original": self.tower.encode(texts), "prompt_avg": prompt_ensemble(self.tower, texts, self.templates)}

    def identity(self) -> dict[str, Any]:
        return {"kind": "texts", "templates": list(self.templates), **self.tower.identity()}


class DenseFeatures:
    """Extractor of a grid of features of one picture: ``{"dense": (h, w, C)}``, rows of the grid first."""

    def __init__(self, tower: ImageTower, short_side: int | None = None) -> None:
        self.tower, self.short_side = tower, short_side

    def __call__(self, content: Picture) -> dict[str, Tensor]:
        return {"dense": self.tower.encode_dense(content, self.short_side).permute(1, 2, 0)}

    def identity(self) -> dict[str, Any]:
        return {"kind": "dense", "short_side": self.short_side, **self.tower.identity()}
