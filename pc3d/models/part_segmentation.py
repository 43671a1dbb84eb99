"""The part segmentation model of the Point-MAE family."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pc3d.models.point_vit import PointViT
from pc3d.ops import interpolate

_PROPAGATED, _CATEGORY = 1024, 64


class PointPartSegmenter(nn.Module):
    """Per-point part log-probabilities from three depths of the encoder (Point-MAE, part segmentation).

    The outputs of three blocks, each through the encoder's final norm, give features at the patch centres. A point gets
    them by inverse squared distance from its three nearest centres, together with their maximum and mean over the cloud
    and an embedding of the cloud's category.

    Args:
        encoder: an encoder without class token; published with 128 groups on 2048 points.
        num_parts: parts over all categories.
        num_categories: object categories.
        layers: which three blocks, counted from 0; a third, two thirds and all of the depth when left out
            (3, 7, 11 of 12).

    Raises:
        ValueError: an encoder with class tokens, or layers that it does not have.
    """

    def __init__(
        self,
        encoder: PointViT,
        num_parts: int = 50,
        num_categories: int = 16,
        layers: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        if encoder.config["num_cls_tokens"]:
            raise ValueError(
                f"PointPartSegmenter needs an encoder with num_cls_tokens=0, got {encoder.config['num_cls_tokens']}"
            )
        self.layers = three_layers(encoder, layers)
        self.num_categories = num_categories
        self.encoder = encoder
        width = 3 * encoder.embed_dim
        self.category = nn.Sequential(
            nn.Linear(num_categories, _CATEGORY, bias=False), nn.BatchNorm1d(_CATEGORY), nn.LeakyReLU(0.2)
        )
        hidden = 4 * encoder.embed_dim
        self.propagation = nn.Sequential(
            nn.Linear(3 + width, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, _PROPAGATED),
            nn.BatchNorm1d(_PROPAGATED),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Sequential(
            nn.Linear(_PROPAGATED + 2 * width + _CATEGORY, 512),
            nn.BatchNorm1d(512),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(512, 256),
            nn.BatchNorm1d(256),
            nn.ReLU(inplace=True),
            nn.Linear(256, num_parts),
        )

    def forward(self, xyz: Tensor, category: Tensor) -> Tensor:
        """Segment clouds whose category is known.

        Args:
            xyz: ``(B, N, 3)``.
            category: ``(B,)`` int64, 0 to ``num_categories - 1``.

        Returns:
            ``(B, N, num_parts)`` log-probabilities over all parts of all categories.

        Raises:
            ValueError: ``category`` has another shape.
        """
        if category.shape != xyz.shape[:1]:
            raise ValueError(f"category must have shape ({len(xyz)},), got {tuple(category.shape)}")
        at_centers, centers = center_features(self.encoder, xyz, self.layers)
        per_point = interpolate(at_centers, centers, xyz, k=3, eps=1e-8)
        batch, num_points, _ = xyz.shape
        propagated = self.propagation(torch.cat([xyz.to(per_point.dtype), per_point], dim=-1).flatten(0, 1))
        one_hot = F.one_hot(category, self.num_categories).to(at_centers.dtype)
        whole = torch.cat([at_centers.amax(1), at_centers.mean(1), self.category(one_hot)], dim=1)
        joined = torch.cat([propagated.view(batch, num_points, -1), whole[:, None].expand(-1, num_points, -1)], dim=-1)
        logits = self.head(joined.flatten(0, 1)).view(batch, num_points, -1)
        return F.log_softmax(logits, dim=-1)


def three_layers(encoder: PointViT, layers: Sequence[int] | None) -> tuple[int, int, int]:
    """The blocks asked for, or those after a third, two thirds and all of the depth.

    Raises:
        ValueError: not three ascending blocks that the encoder has.
    """
    depth = encoder.config["depth"]
    chosen = tuple(layers or (depth // 3 - 1, 2 * depth // 3 - 1, depth - 1))
    if len(chosen) != 3 or not 0 <= chosen[0] < chosen[1] < chosen[2] < depth:
        raise ValueError(f"layers must be three ascending blocks of 0..{depth - 1}, got {chosen}")
    return chosen


def center_features(encoder: PointViT, xyz: Tensor, layers: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """The outputs ``(B, G, 3 C)`` of three blocks, each through the final norm, and where they are, ``(B, G, 3)``."""
    centers, _, tokens = encoder.tokenizer(xyz)
    _, kept = encoder.transformer.layers(tokens, encoder.position(centers), keep=layers)
    return torch.cat([encoder.norm(layer) for layer in kept], dim=-1), centers
