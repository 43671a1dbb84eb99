"""The classification model of the Point-MAE family."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from pc3d.models.point_vit import PointViT
from pc3d.nn import GlobalBatchNorm

HeadType = Literal["full", "mlp3", "linear"]
HEADS: tuple[str, ...] = ("full", "mlp3", "linear")


class PointClassifier(nn.Module):
    """A classifier of the concatenated class token and maximum over the patch tokens (Point-MAE, fine-tuning).

    Args:
        encoder: an encoder with one class token.
        num_classes: K.
        head: ``"full"`` and ``"mlp3"`` are the same three layers (2C→256→256→K with batch norm, ReLU and dropout 0.5);
            the names state whether the encoder is usually trained with it or not. ``"linear"`` is one layer.

    Raises:
        ValueError: an encoder without exactly one class token, or an unknown head.
    """

    def __init__(self, encoder: PointViT, num_classes: int, head: HeadType = "full") -> None:
        super().__init__()
        if encoder.config["num_cls_tokens"] != 1:
            raise ValueError(
                f"PointClassifier needs an encoder with num_cls_tokens=1, got {encoder.config['num_cls_tokens']}"
            )
        self.encoder = encoder
        self.head = _head(2 * encoder.embed_dim, num_classes, head)

    def forward(self, xyz: Tensor) -> Tensor:
        """Logits ``(B, K)`` of clouds ``(B, N, 3)``."""
        tokens, _, cls = self.encoder(xyz)
        logits: Tensor = self.head(torch.cat([cls[:, 0], tokens.amax(1)], dim=1))
        return logits

    def freeze_encoder(self) -> None:
        """Leave only the head, the class token and its position trainable, as the frozen modes of Point-CMAE do.

        Batch norm statistics and drop path still follow ``train()`` and ``eval()``.
        """
        self.encoder.requires_grad_(False)
        for token in (self.encoder.cls_token, self.encoder.cls_position):
            if token is not None:
                token.requires_grad_(True)


class VectorClassifier(nn.Module):
    """A classifier of the vector that an encoder computes for a cloud, with the heads of :class:`PointClassifier`.

    Args:
        encoder: has ``encode(xyz)``, which maps ``(B, N, 3)`` to ``(B, embed_dim)``, and ``embed_dim``.
        num_classes: K.
        head: see :class:`PointClassifier`; the first layer takes ``embed_dim`` features.

    Raises:
        TypeError: an encoder without ``encode`` or ``embed_dim``.
        ValueError: an unknown head.
    """

    def __init__(self, encoder: nn.Module, num_classes: int, head: HeadType = "full") -> None:
        super().__init__()
        if not hasattr(encoder, "encode") or not hasattr(encoder, "embed_dim"):
            raise TypeError(
                "encoder must have encode(xyz) and embed_dim, as the encoders of objects have; "
                f"{type(encoder).__name__} has not"
            )
        self.encoder = encoder
        self.head = _head(int(encoder.embed_dim), num_classes, head)  # type: ignore[arg-type]  # nn.Module's are untyped

    def forward(self, xyz: Tensor) -> Tensor:
        """Logits ``(B, K)`` of clouds ``(B, N, 3)``."""
        logits: Tensor = self.head(self.encoder.encode(xyz))  # type: ignore[operator]  # checked at construction
        return logits

    def freeze_encoder(self) -> None:
        """Leave only the head trainable; see :meth:`PointClassifier.freeze_encoder`."""
        self.encoder.requires_grad_(False)


def classifier_of(encoder: nn.Module, num_classes: int, head: HeadType = "full") -> PointClassifier | VectorClassifier:
    """A :class:`PointClassifier` for a transformer with one class token, else a :class:`VectorClassifier`."""
    if isinstance(encoder, PointViT) and encoder.config["num_cls_tokens"] == 1:
        return PointClassifier(encoder, num_classes, head)
    return VectorClassifier(encoder, num_classes, head)


def _head(width: int, num_classes: int, head: HeadType) -> nn.Sequential:
    if head not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}, got {head!r}")
    if head == "linear":
        return nn.Sequential(nn.Linear(width, num_classes))
    return nn.Sequential(
        nn.Linear(width, 256),
        GlobalBatchNorm(256),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(256, 256),
        GlobalBatchNorm(256),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(256, num_classes),
    )
