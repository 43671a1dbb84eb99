"""A bridge from pictures to texts without joint training: ConSE (Norouzi et al., ICLR 2014). It is not CLIP."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from pc3d._extras import require
from pc3d.image.offline import efficientnet_lite0, minilm
from pc3d.image.prompts import PHOTO, prompt_ensemble
from pc3d.image.timm_towers import TimmImageTower
from pc3d.image.towers import ImageTower, JointPair, TextTower


class ConseImageTower(ImageTower):
    """Image tower of ConSE: the mixture of the class texts that a classifier predicts (section 3.2, equation 1).

    The feature is ``sum over classes of p(class | picture) * text feature of its name``. A picture can be described
    only by class names, so the space is no richer than they are. It compares pictures with texts, but was not trained
    on pairs of them. For dense features, the classifier is applied at every cell.

    Args:
        classifier: a tower with logits.
        names: ``(classes, width)`` text features of the class names, in the order of the logits.
        name: name of the tower.
        top: how many of the likeliest classes are mixed, their probabilities scaled to sum 1; None takes all. The paper
            uses 10.
        temperature: of the softmax.
        names_from: what the features of the names are computed from, if this happens when the tower is loaded:
            :meth:`weights_hash` uses it instead of the features, which may differ in the last bits between machines.
            Empty: the features themselves are hashed.

    Raises:
        ValueError: ``names`` has another number of rows than there are logits, ``top`` is none of them, or
            ``temperature`` is not positive.
    """

    def __init__(
        self,
        classifier: TimmImageTower,
        names: Tensor,
        name: str,
        *,
        top: int | None = None,
        temperature: float = 1.0,
        names_from: str = "",
    ) -> None:
        network: Any = classifier.model
        if network.num_classes != len(names):
            raise ValueError(f"names has {len(names)} rows for {network.num_classes} logits of {classifier.name}")
        if top is not None and not 1 <= top <= len(names):
            raise ValueError(f"top must be in 1..{len(names)} or None, got {top}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        super().__init__(
            name,
            classifier.preprocessing,
            width=names.shape[1],
            dense_width=names.shape[1],
            stride=int(network.feature_info[-1]["reduction"]),
            text_aligned=True,
            dense_text_aligned=True,
        )
        self.classifier, self.top, self.temperature = classifier, top, temperature
        self.names_from = names_from
        self.register_buffer("names", names.to(classifier.device))
        self._freeze()

    def mix(self, logits: Tensor) -> Tensor:
        """Logits ``(..., classes)`` to mixtures of name features ``(..., width)``."""
        probability = (logits.float() / self.temperature).softmax(dim=-1)
        if self.top is not None:
            kept = probability.topk(self.top, dim=-1)
            probability = torch.zeros_like(probability).scatter(-1, kept.indices, kept.values)
            probability = probability / probability.sum(dim=-1, keepdim=True)
        return probability @ torch.as_tensor(self.names)

    def _global(self, pixels: Tensor) -> Tensor:
        return self.mix(self.classifier.logits(pixels))

    def _dense(self, pixels: Tensor) -> Tensor:
        network: Any = self.classifier.model
        maps = network.forward_features(pixels)
        return self.mix(network.get_classifier()(maps.movedim(1, -1))).movedim(-1, 1)

    def weights_hash(self) -> str:
        """SHA-256 of the classifier's weights and of what the names' features follow from."""
        if not self.names_from:
            return super().weights_hash()
        return hashlib.sha256(f"{self.classifier.weights_hash()}\n{self.names_from}".encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        # The names, or what they follow from, are in the hash of the weights.
        return {**super().identity(), "top": self.top, "temperature": self.temperature}

    def versions(self) -> dict[str, str]:
        return self.classifier.versions()


def _imagenet_classes() -> list[str]:
    models = require("torchvision.models", extra="image", purpose="the class names of ImageNet")
    names: list[str] = models.MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
    return names


@cache
def _imagenet_names(templates: tuple[str, ...]) -> Tensor:
    """MiniLM's features of the class names of ImageNet, ``(1000, 384)``; seconds to compute, so once."""
    return prompt_ensemble(minilm(), _imagenet_classes(), templates)


class CentredTextTower(TextTower):
    """A text tower whose unit features are shifted by the mean over some names, so that cosines spread out.

    Args:
        text: the tower.
        mean: ``(width,)``.
    """

    def __init__(self, text: TextTower, mean: Tensor) -> None:
        super().__init__(f"{text.name}-centred", text.width)
        self.text = text
        self.register_buffer("mean", mean)
        self._freeze()

    def _encode(self, texts: list[str]) -> Tensor:
        return normalize(self.text.encode(texts), dim=1) - torch.as_tensor(self.mean).cpu()

    def versions(self) -> dict[str, str]:
        return self.text.versions()


def conse_pair(
    *,
    templates: Sequence[str] = PHOTO,
    top: int | None = None,
    temperature: float = 1.0,
    centred: bool = False,
    layer: int = 3,
) -> JointPair:
    """Load EfficientNet-Lite0 and MiniLM, both offline, bridged by the 1000 class names of ImageNet.

    This pair of small weights serves for development and tests: a 3D encoder can be trained with it as with CLIP, but
    its scores say nothing about CLIP's.

    Args:
        templates: prompt templates for class names.
        top: likeliest classes that are mixed; None for all.
        temperature: of the softmax over classes.
        centred: subtract the mean of the name features on both sides; needed for a threshold on cosines.
        layer: of the classifier's own dense feature; the bridge's comes from its last layer.

    Raises:
        MissingWeightsError: a package with weights is not installed.
    """
    text: TextTower = minilm()
    names, name = _imagenet_names(tuple(templates)), "offline:conse"
    origin = json.dumps([text.weights_hash(), list(templates), _imagenet_classes(), centred])
    if centred:
        # Probabilities sum to 1, so moving the names moves every mixture by as much.
        text, names = CentredTextTower(text, names.mean(dim=0)), names - names.mean(dim=0)
        name += "-centred"
    classifier = efficientnet_lite0(layer)
    image = ConseImageTower(classifier, names, name, top=top, temperature=temperature, names_from=origin)
    return JointPair(image, text, 100.0, "bridge")
