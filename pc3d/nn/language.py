"""Heads that classify points by texts: cosines with text features, and score maps with texts refined per scene."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pc3d.nn.heads import SegmentationHead
from pc3d.nn.sparse import scene_of_rows
from pc3d.ops import segment_reduce, voxelize


class TextHead(nn.Module):
    """Scaled cosines of projected features with the text features of classes; no part of it is trained on labels.

    Args:
        in_features: width of the features of points.
        num_classes: K.
        text_dim: width of the text features.
        logit_scale: factor of the cosines; about 100 in CLIP.
    """

    text: Tensor

    def __init__(self, in_features: int, num_classes: int, text_dim: int, logit_scale: float = 100.0) -> None:
        super().__init__()
        self.options: dict[str, Any] = {"text_dim": text_dim, "logit_scale": logit_scale}
        self.projection = nn.Sequential(nn.LayerNorm(in_features), nn.Linear(in_features, text_dim))
        self.register_buffer("text", torch.zeros(num_classes, text_dim))
        self.logit_scale = logit_scale

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(N, in_features)`` to logits ``(N, K)``."""
        points = F.normalize(self.projection(features), dim=1)
        return self.logit_scale * points @ F.normalize(self.text, dim=1).T


class LanguageHead(nn.Module):
    """Language-guided dense prediction for points, after DenseCLIP (Rao et al., CVPR 2022).

    1. A linear layer maps the features of points into the space of the texts.
    2. The frozen text features of the classes are refined for each scene (section 3.2, post-model prompting). A
       transformer decoder attends from the texts to the mean feature of the scene and to the mean features of its
       cubes. Its output, times a learned gamma with initial value 1e-4, is added to the text features.
    3. Score maps are the cosines of points and refined texts. They are concatenated with the features, and the head of
       Swin3D classifies the result.
    4. Score maps divided by a temperature are the logits of an auxiliary loss.

    DenseCLIP concatenates score maps with the coarsest features, before its decoder. Here they come after the decoder
    of the backbone, so any backbone can be used. DenseCLIP's visual features are those of CLIP and lie in the space of
    texts from the start. Its learnable words before the text tower are left out, because the texts are features here.
    Default values are those of its released configurations. Cubes, and their size, in place of the cells of an image
    grid are ours.

    Args:
        in_features: width of the features of points.
        num_classes: K.
        text_dim: width C of the text features.
        width: width of the transformer decoder.
        num_heads: attention heads of the transformer decoder.
        num_layers: layers of the transformer decoder.
        dropout: dropout rate within the transformer decoder.
        context_size: edge of the cubes in the units of the points.
        temperature: of the auxiliary logits.

    Raises:
        ValueError: a number out of range.
    """

    text: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        text_dim: int,
        width: int = 256,
        num_heads: int = 4,
        num_layers: int = 3,
        dropout: float = 0.1,
        context_size: float = 0.5,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        if num_layers < 1 or num_heads < 1 or width < 1 or width % num_heads:
            raise ValueError(
                f"num_layers must be at least 1 and width a multiple of num_heads, got {num_layers}, {width} and "
                f"{num_heads}"
            )
        for name, value in (("context_size", context_size), ("temperature", temperature)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        self.options: dict[str, Any] = {
            "text_dim": text_dim,
            "width": width,
            "num_heads": num_heads,
            "num_layers": num_layers,
            "dropout": dropout,
            "context_size": context_size,
            "temperature": temperature,
        }
        self.context_size, self.temperature = context_size, temperature
        self.register_buffer("text", torch.zeros(num_classes, text_dim))
        self.visual = nn.Linear(in_features, text_dim)
        self.read_visual = nn.Sequential(nn.LayerNorm(text_dim), nn.Linear(text_dim, width), nn.LayerNorm(width))
        self.read_text = nn.Sequential(nn.LayerNorm(text_dim), nn.Linear(text_dim, width))
        layer = nn.TransformerDecoderLayer(
            width, num_heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, num_layers)
        self.write_text = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, text_dim))
        self.gamma = nn.Parameter(torch.full((text_dim,), 1e-4))
        self.classifier = SegmentationHead(in_features + num_classes, num_classes)

    def forward(self, features: Tensor, xyz: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Classify the points of a packed batch.

        Args:
            features: ``(N, in_features)``.
            xyz: ``(N, 3)``.
            offsets: ``(B + 1,)`` int64.

        Returns:
            Logits ``(N, K)``, and logits ``(N, K)`` of the auxiliary loss: score maps divided by the temperature.
        """
        visual = self.visual(features)
        scores = self.score_maps(visual, self.refined_texts(visual, xyz, offsets), offsets)
        return self.classifier(torch.cat([features, scores.to(features.dtype)], dim=1)), scores / self.temperature

    def refined_texts(self, visual: Tensor, xyz: Tensor, offsets: Tensor) -> Tensor:
        """Text features ``(B, K, C)`` refined for each scene, from point features ``(N, C)`` in the space of texts."""
        scenes = len(offsets) - 1
        texts = self.text.to(visual.dtype).expand(scenes, -1, -1)
        if scenes == 0:  # PyTorch's attention takes no empty batch
            return texts
        tokens, empty = self.context(visual, xyz, offsets)
        change = self.decoder(self.read_text(texts), self.read_visual(tokens), memory_key_padding_mask=empty)
        return texts + self.gamma * torch.as_tensor(self.write_text(change))

    def context(self, visual: Tensor, xyz: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens that describe each scene: the mean feature of its points and of the points in each of its cubes.

        Returns:
            Tokens ``(B, 1 + L, C)``, padded to the largest number L of cubes, and a bool mask ``(B, 1 + L)`` that is
            True for padding.
        """
        scenes = len(offsets) - 1
        whole = segment_reduce(visual, scene_of_rows(offsets, len(visual)), scenes, "mean")
        cubes = voxelize(xyz, self.context_size, offsets=offsets)
        parts = segment_reduce(visual, cubes.inverse, len(cubes.coords), "mean")
        count = cubes.offsets.diff()
        scene = scene_of_rows(cubes.offsets, len(parts))
        place = torch.arange(len(parts), device=parts.device) - cubes.offsets[scene]
        longest = int(count.max()) if scenes else 0
        tokens = parts.new_zeros(scenes, longest, parts.shape[1]).index_put((scene, place), parts)
        empty = torch.arange(longest, device=parts.device) >= count[:, None]
        return torch.cat([whole[:, None], tokens], dim=1), F.pad(empty, (1, 0))

    def score_maps(self, visual: Tensor, texts: Tensor, offsets: Tensor) -> Tensor:
        """Cosines ``(N, K)`` of points with the text features ``(B, K, C)`` of their scene."""
        points, texts = F.normalize(visual.float(), dim=1), F.normalize(texts.float(), dim=2)
        lengths = offsets.diff().tolist()
        rows = [part @ text.T for part, text in zip(points.split(lengths), texts, strict=True)]
        return torch.cat(rows) if rows else points.new_zeros(0, texts.shape[1])
