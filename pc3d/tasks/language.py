"""Options of language-guided segmentation: the texts of the classes, and the head that reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from pc3d.image import PHOTO, load_text_tower, prompt_ensemble
from pc3d.nn import LanguageHead


@dataclass(frozen=True)
class LanguageGuidance:
    """Options from which :class:`SemanticSegmentation` builds a :class:`pc3d.nn.LanguageHead`.

    The text tower is needed only at the start: the vectors of the classes are stored with the head.

    Attributes:
        text_tower: ``LIBRARY:MODEL`` (:func:`pc3d.image.load_text_tower`).
        templates: prompt templates for class names; their unit vectors are averaged.
        auxiliary_weight: of the loss of the score maps (0.4 in DenseCLIP's released configuration).
        width, num_heads, num_layers, dropout, context_size, temperature: see :class:`pc3d.nn.LanguageHead`.
    """

    text_tower: str = "offline:minilm"
    templates: Sequence[str] = PHOTO
    auxiliary_weight: float = 0.4
    width: int = 256
    num_heads: int = 4
    num_layers: int = 3
    dropout: float = 0.1
    context_size: float = 0.5
    temperature: float = 0.07

    def __post_init__(self) -> None:
        if not self.auxiliary_weight >= 0:
            raise ValueError(f"auxiliary_weight must not be negative, got {self.auxiliary_weight}")

    def head(self, backbone: nn.Module, classes: Sequence[str]) -> LanguageHead:
        """A head for a backbone, with the vectors of the classes in it.

        Raises:
            MissingWeightsError: the text tower's weights are not here.
        """
        text = prompt_ensemble(load_text_tower(self.text_tower), list(classes), self.templates)
        head = LanguageHead(
            int(getattr(backbone, "feature_dim", 1)),  # a backbone without is refused by the segmenter, which says why
            len(classes),
            text.shape[1],
            width=self.width,
            num_heads=self.num_heads,
            num_layers=self.num_layers,
            dropout=self.dropout,
            context_size=self.context_size,
            temperature=self.temperature,
        )
        head.text.copy_(text)
        return head
