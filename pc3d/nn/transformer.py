"""Pre-norm transformer blocks, with the position embedding added before every block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

AddPosition = Literal["every_block", "once"]


def drop_path_scales(noise: Tensor, rates: Sequence[float]) -> Tensor:
    """Factors by which stochastic depth multiplies residual branches: 0, or ``1 / (1 - rate)``.

    Args:
        noise: ``(B, depth, 2)`` uniform numbers in [0, 1), for the attention and the MLP branch of each block.
        rates: probability of dropping, one per block, each in [0, 1).

    Returns:
        ``(depth, 2, B)``, the ``path_scales`` of :class:`Transformer`.
    """
    keep = 1.0 - torch.tensor(rates, dtype=noise.dtype, device=noise.device)[:, None, None]
    return (noise.permute(1, 2, 0) < keep) / keep


class Attention(nn.Module):
    """Multi-head self-attention. The output projection has a bias; queries, keys and values have none by default.

    Args:
        embed_dim: token width C.
        num_heads: number of heads, of width C / num_heads; scores are divided by the square root of this width.
        qkv_bias: a bias on queries, keys and values.

    Raises:
        ValueError: ``num_heads`` does not divide ``embed_dim``.
    """

    def __init__(self, embed_dim: int, num_heads: int, qkv_bias: bool = False) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(
                f"embed_dim must be a multiple of num_heads, got embed_dim={embed_dim}, num_heads={num_heads}"
            )
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.projection = nn.Linear(embed_dim, embed_dim)

    def forward(self, tokens: Tensor, sees: Tensor | None = None) -> Tensor:
        """Map ``(B, T, C)`` to ``(B, T, C)``; ``sees`` ``(T, T)`` bool is True where token i may attend to token j."""
        query, key, value = self._heads(tokens)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=sees)
        result: Tensor = self.projection(mixed.transpose(1, 2).reshape(tokens.shape))
        return result

    def weights(self, tokens: Tensor) -> Tensor:
        """Attention weights ``(B, heads, T, T)`` of tokens ``(B, T, C)``; rows sum to 1."""
        query, key, _ = self._heads(tokens)
        weights: Tensor = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
        return weights

    def _heads(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each ``(B, heads, T, C / heads)``."""
        batch, length, width = tokens.shape
        qkv = self.qkv(tokens).view(batch, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value


class TransformerBlock(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``; the MLP is linear, exact GELU, linear.

    Args:
        embed_dim: token width C.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP, divided by C.
        qkv_bias: a bias on queries, keys and values.
        norm_eps: epsilon of the layer norms.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, mlp_ratio: float = 4.0, qkv_bias: bool = False, norm_eps: float = 1e-5
    ) -> None:
        super().__init__()
        hidden = int(embed_dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.attention = Attention(embed_dim, num_heads, qkv_bias)
        self.norm2 = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.mlp = nn.Sequential(nn.Linear(embed_dim, hidden), nn.GELU(), nn.Linear(hidden, embed_dim))

    def forward(self, tokens: Tensor, path_scales: Tensor | None = None, sees: Tensor | None = None) -> Tensor:
        """Map ``(B, T, C)`` to ``(B, T, C)``; ``path_scales`` ``(2, B)`` multiplies the two residual branches."""
        attended = self.attention(self.norm1(tokens), sees)
        if path_scales is not None:
            attended = attended * path_scales[0, :, None, None].to(attended.dtype)
        tokens = tokens + attended
        expanded: Tensor = self.mlp(self.norm2(tokens))
        if path_scales is not None:
            expanded = expanded * path_scales[1, :, None, None].to(expanded.dtype)
        return tokens + expanded


class Transformer(nn.Module):
    """A stack of :class:`TransformerBlock`, without a final norm.

    The position embedding is added to the input of **every** block, so it accumulates in the residual stream
    (Point-BERT, Point-MAE); ``add_position="once"`` adds it to the input of the first block only.

    Args:
        embed_dim: token width C.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLPs, divided by C.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first block.
        add_position: see above.
        qkv_bias: a bias on queries, keys and values.
        norm_eps: epsilon of the layer norms.

    Raises:
        ValueError: a depth below 1 or a drop path rate outside of [0, 1).
    """

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.1,
        add_position: AddPosition = "every_block",
        qkv_bias: bool = False,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        if not 0.0 <= drop_path < 1.0:
            raise ValueError(f"drop_path must lie in [0, 1), got {drop_path}")
        if add_position not in ("every_block", "once"):
            raise ValueError(f'add_position must be "every_block" or "once", got {add_position!r}')
        self.add_position = add_position
        self.drop_path_rates = torch.linspace(0.0, drop_path, depth).tolist()
        self.blocks = nn.ModuleList(
            [TransformerBlock(embed_dim, num_heads, mlp_ratio, qkv_bias, norm_eps) for _ in range(depth)]
        )

    def forward(
        self, tokens: Tensor, position: Tensor | None, path_scales: Tensor | None = None, sees: Tensor | None = None
    ) -> Tensor:
        """Run all blocks.

        Args:
            tokens: ``(B, T, C)``.
            position: ``(B, T, C)`` position embedding, or None.
            path_scales: ``(depth, 2, B)`` from :func:`drop_path_scales`. None draws them from PyTorch's default
                generator. In evaluation mode they are ignored, and no branch is dropped.
            sees: ``(T, T)`` bool, True where token i attends to token j; None lets all tokens attend to all.

        Returns:
            ``(B, T, C)``, before any final norm.
        """
        return self.layers(tokens, position, path_scales, sees, keep=())[0]

    def layers(
        self,
        tokens: Tensor,
        position: Tensor | None,
        path_scales: Tensor | None = None,
        sees: Tensor | None = None,
        *,
        keep: Sequence[int],
    ) -> tuple[Tensor, list[Tensor]]:
        """As :meth:`forward`, with the outputs of the blocks ``keep`` (counted from 0), in ascending order."""
        if not self.training or self.drop_path_rates[-1] == 0.0:
            path_scales = None
        elif path_scales is None:
            noise = torch.rand(tokens.shape[0], len(self.blocks), 2, device=tokens.device)
            path_scales = drop_path_scales(noise, self.drop_path_rates)
        kept = []
        for index, block in enumerate(self.blocks):
            if position is not None and (index == 0 or self.add_position == "every_block"):
                tokens = tokens + position
            tokens = block(tokens, None if path_scales is None else path_scales[index], sees)
            if index in keep:
                kept.append(tokens)
        return tokens, kept

    def last_attention(self, tokens: Tensor, position: Tensor | None) -> Tensor:
        """Attention weights ``(B, heads, T, T)`` of the last block, without stochastic depth."""
        *first, last = [block for block in self.blocks if isinstance(block, TransformerBlock)]
        for index, block in enumerate((*first, last)):
            if position is not None and (index == 0 or self.add_position == "every_block"):
                tokens = tokens + position
            if block is not last:
                tokens = block(tokens)
        return last.attention.weights(last.norm1(tokens))
