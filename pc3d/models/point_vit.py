"""PointViT: the plain vision transformer for point clouds of Point-BERT, Point-MAE and Point-CMAE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from pc3d.models.object_encoder import ObjectEncoder
from pc3d.nn import (
    Patches,
    PatchTokenizer,
    PositionEmbedding,
    PositionFeatures,
    Transformer,
    init_encoder_weights,
    init_token,
)
from pc3d.nn.transformer import AddPosition

Pooling = Literal["max", "mean", "max+mean", "concat(max,mean)", "concat(cls,max,mean)", "cls"]
"""How an encoder makes one vector of its tokens."""
POOLINGS: tuple[str, ...] = ("max", "mean", "max+mean", "concat(max,mean)", "concat(cls,max,mean)", "cls")


class EncoderOutput(NamedTuple):
    """Output of an encoder for a batch of clouds.

    Attributes:
        tokens: ``(B, G, C)`` patch tokens after the final norm.
        centers: ``(B, G, 3)`` centres of the patches.
        cls: ``(B, 1, C)`` class token after the final norm, or None for an encoder without one.
    """

    tokens: Tensor
    centers: Tensor
    cls: Tensor | None


class PointViT(ObjectEncoder):
    """Patches of points as tokens, a position embedding, and a pre-norm transformer.

    The defaults are the published ones (Point-MAE, section 4.1; Point-CMAE): 22 million parameters.

    Args:
        embed_dim: token width C.
        depth: transformer blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLPs over C.
        num_groups: G, patches per cloud.
        group_size: S, points per patch.
        num_points: points per cloud that the encoder is meant for. It changes no computation; it is stored with the
            weights because accuracy falls steeply at another density.
        num_cls_tokens: learned class tokens, with a learned position each. One of them joins the sequence: Point-MAE
            has none in pre-training, Point-CMAE one per branch, the classifier one.
        drop_path: stochastic depth of the last block, rising linearly from 0 in the first.
        add_position: add the position embedding before ``"every_block"`` (published) or ``"once"``.
        ignore_near_origin: farthest point sampling as in the official CUDA extension (:class:`pc3d.nn.PatchTokenizer`).
        tokenizer_dims: hidden widths of the tokenizer; the published ones cost more than a small transformer.
        position_features: what the position embedding reads, :class:`pc3d.nn.PositionEmbedding`; PCP-MAE reads
            ``"sinusoids"``, the others ``"coordinates"``.

    Attributes:
        tokenizer: :class:`pc3d.nn.PatchTokenizer`, from clouds to patches.
        position: :class:`pc3d.nn.PositionEmbedding` of their centres.
        transformer: :class:`pc3d.nn.Transformer`.
        norm: the final layer norm; :meth:`encode_tokens` applies position, transformer and norm.

    Raises:
        ValueError: a size below 1, or a width that the heads do not divide.
    """

    def __init__(
        self,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        num_groups: int = 64,
        group_size: int = 32,
        num_points: int = 1024,
        num_cls_tokens: int = 0,
        drop_path: float = 0.1,
        add_position: AddPosition = "every_block",
        ignore_near_origin: bool = False,
        tokenizer_dims: Sequence[int] = (128, 256, 512),
        position_features: PositionFeatures = "coordinates",
    ) -> None:
        super().__init__()
        sizes = {"embed_dim": embed_dim, "num_heads": num_heads, "num_groups": num_groups, "group_size": group_size}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if num_cls_tokens < 0:
            raise ValueError(f"num_cls_tokens must be at least 0, got {num_cls_tokens}")
        self.config = {
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
            "num_groups": num_groups,
            "group_size": group_size,
            "num_points": num_points,
            "num_cls_tokens": num_cls_tokens,
            "drop_path": drop_path,
            "add_position": add_position,
            "ignore_near_origin": ignore_near_origin,
            "tokenizer_dims": list(tokenizer_dims),
            "position_features": position_features,
        }
        self.embed_dim = embed_dim
        self.tokenizer = PatchTokenizer(
            embed_dim, num_groups, group_size, dims=tokenizer_dims, ignore_near_origin=ignore_near_origin
        )
        self.position = PositionEmbedding(embed_dim, position_features)
        self.transformer = Transformer(
            embed_dim, depth, num_heads, mlp_ratio=mlp_ratio, drop_path=drop_path, add_position=add_position
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.cls_token = nn.Parameter(torch.empty(num_cls_tokens, embed_dim)) if num_cls_tokens else None
        self.cls_position = nn.Parameter(torch.empty(num_cls_tokens, embed_dim)) if num_cls_tokens else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh weights, as Point-MAE initialises an encoder for pre-training."""
        self.apply(init_encoder_weights)
        for token in (self.cls_token, self.cls_position):
            if token is not None:
                init_token(token)

    def forward(self, xyz: Tensor) -> EncoderOutput:
        """Encode whole clouds; nothing is masked.

        Args:
            xyz: ``(B, N, 3)``, N at least ``num_groups`` and ``group_size``.

        Returns:
            Tokens ``(B, G, C)``, centres ``(B, G, 3)``, class token ``(B, 1, C)`` or None. An encoder with several
            class tokens uses the first, as a branch does in pre-training.
        """
        patches: Patches = self.tokenizer(xyz)
        tokens, cls = self.encode_tokens(patches.tokens, patches.centers)
        return EncoderOutput(tokens, patches.centers, cls)

    def encode_tokens(
        self, tokens: Tensor, centers: Tensor, *, cls_index: Tensor | None = None, path_scales: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Run the transformer over embedded patches, all of them or a visible subset.

        Args:
            tokens: ``(B, T, C)`` embedded patches.
            centers: ``(B, T, 3)`` their centres.
            cls_index: ``(B,)`` int64, which class token each row gets; the first when left out.
            path_scales: ``(depth, 2, B)`` of :func:`pc3d.nn.drop_path_scales`; drawn when left out.

        Returns:
            Tokens ``(B, T, C)`` and class token ``(B, 1, C)`` or None, after the final norm.
        """
        encoded = self.norm(self.transformer(*self._sequence(tokens, centers, cls_index), path_scales))
        return (encoded, None) if self.cls_token is None else (encoded[:, 1:], encoded[:, :1])

    def _sequence(self, tokens: Tensor, centers: Tensor, cls_index: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens and their positions, with a class token in front where there is one."""
        position = self.position(centers)
        if self.cls_token is None or self.cls_position is None:
            return tokens, position
        if cls_index is None:
            cls_index = torch.zeros(tokens.shape[0], dtype=torch.int64, device=tokens.device)
        sequence = torch.cat([self.cls_token[cls_index, None].to(tokens.dtype), tokens], dim=1)
        return sequence, torch.cat([self.cls_position[cls_index, None].to(position.dtype), position], dim=1)

    def cls_attention(self, xyz: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of the class token in the last block.

        Args:
            xyz: ``(B, N, 3)``.

        Returns:
            Attention to the patches, ``(B, heads, G)``, without the class token's own, and their centres ``(B, G, 3)``.

        Raises:
            ValueError: an encoder without class token.
        """
        if self.cls_token is None:
            raise ValueError("attention of the class token needs an encoder with one; this has num_cls_tokens=0")
        patches: Patches = self.tokenizer(xyz)
        attention = self.transformer.last_attention(*self._sequence(patches.tokens, patches.centers, None))
        return attention[:, :, 0, 1:], patches.centers

    def encode(self, xyz: Tensor, pooling: Pooling = "max+mean") -> Tensor:
        """One feature vector per cloud, of all patches after the final norm; never masked.

        Call ``eval()`` first: batch statistics and drop path of training mode make features depend on the batch.

        Args:
            xyz: ``(B, N, 3)``.
            pooling: over the G patch tokens: ``"max"``, ``"mean"``, ``"max+mean"`` (their sum),
                ``"concat(max,mean)"`` or ``"concat(cls,max,mean)"``; or ``"cls"``, the class token alone.

        Returns:
            ``(B, C)``, ``(B, 2C)`` or ``(B, 3C)``.

        Raises:
            ValueError: an unknown pooling, or one with the class token of an encoder that has none.
        """
        return pool(self.forward(xyz), pooling)

    def undecayed(self) -> list[nn.Parameter]:
        """Matrices that weight decay leaves alone: the class tokens, but not their positions."""
        return [] if self.cls_token is None else [self.cls_token]


def pool(output: EncoderOutput, pooling: str) -> Tensor:
    """One vector per cloud from its tokens, see :meth:`PointViT.encode`.

    Raises:
        ValueError: an unknown pooling, or one with the class token of an encoder that has none.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
    if "cls" in pooling and output.cls is None:
        raise ValueError(f'pooling "{pooling}" needs a class token; this encoder was built with num_cls_tokens=0')
    largest, mean = output.tokens.amax(1), output.tokens.mean(1)
    cls = [] if output.cls is None else [output.cls[:, 0]]
    if pooling == "max":
        return largest
    if pooling == "mean":
        return mean
    if pooling == "max+mean":
        return largest + mean
    if pooling == "concat(max,mean)":
        return torch.cat([largest, mean], dim=1)
    return cls[0] if pooling == "cls" else torch.cat([*cls, largest, mean], dim=1)
