"""The network of Point-MAE (one branch) and Point-CMAE (two): a shared encoder and a decoder per branch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pc3d.models.point_vit import PointViT
from pc3d.nn import (
    Patches,
    PositionEmbedding,
    Transformer,
    check_mask,
    init_decoder_weights,
    init_token,
    split_mask,
)


class Branch(NamedTuple):
    """The output of one branch for its masked view.

    Attributes:
        predicted: ``(B, M, S, 3)`` points of the masked patches, relative to their centres; masked ascending.
        target: ``(B, M, S, 3)`` the true points.
        features: ``(B, G, C)`` decoder output before its final norm, in the order of the tokens.
        position: ``(B, M, F)`` predicted position features of the masked patches, where the model predicts them.
        true_position: ``(B, M, F)`` the true ones.
    """

    predicted: Tensor
    target: Tensor
    features: Tensor
    position: Tensor | None = None
    true_position: Tensor | None = None


class Decoder(nn.Module):
    """Reconstructs the masked patches of one branch: mask token, position embedding, blocks, norm, point head.

    Args:
        embed_dim: token width C.
        depth: transformer blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLPs over C.
        group_size: points per patch to predict.
        drop_path: stochastic depth of the last block.
    """

    def __init__(
        self, embed_dim: int, depth: int, num_heads: int, mlp_ratio: float, group_size: int, drop_path: float
    ) -> None:
        super().__init__()
        self.group_size = group_size
        self.mask_token = nn.Parameter(torch.empty(embed_dim))
        self.position = PositionEmbedding(embed_dim)
        self.transformer = Transformer(embed_dim, depth, num_heads, mlp_ratio=mlp_ratio, drop_path=drop_path)
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, 3 * group_size)
        init_token(self.mask_token)
        self.transformer.apply(init_decoder_weights)

    def forward(
        self, visible: Tensor, visible_centers: Tensor, masked_centers: Tensor, path_scales: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Decode one branch.

        Args:
            visible: ``(B, V, C)`` encoded visible tokens.
            visible_centers: ``(B, V, 3)``.
            masked_centers: ``(B, M, 3)``.
            path_scales: ``(depth, 2, B)``, see :func:`pc3d.nn.drop_path_scales`.

        Returns:
            Predicted points ``(B, M, S, 3)`` and features ``(B, V + M, C)`` before the final norm, visible first.
        """
        position = self.position(torch.cat([visible_centers, masked_centers], dim=1))
        return self.decode(visible, position, path_scales)

    def decode(self, visible: Tensor, position: Tensor, path_scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As :meth:`forward` with embedded positions ``(B, V + M, C)``, visible first."""
        batch, num_masked = len(visible), position.shape[1] - visible.shape[1]
        queries = self.mask_token.to(visible.dtype).expand(batch, num_masked, -1)
        features = self.transformer(torch.cat([visible, queries], dim=1), position, path_scales)
        points: Tensor = self.head(self.norm(features[:, -num_masked:]))
        return points.view(batch, num_masked, self.group_size, 3), features


class MaskedPointModel(nn.Module):
    """Encoder and decoders that reconstruct masked patches, in one or several differently masked branches.

    All branches share the patches, their embedding and the encoder. Each has its own decoder and, if the encoder has
    class tokens, its own class token. The encoder runs once over all branches; rows do not interact in it.

    Args:
        encoder: the encoder; ``num_cls_tokens`` must be 0 or the number of branches.
        num_branches: 1 for Point-MAE, 2 for Point-CMAE.
        decoder_depth: transformer blocks of each decoder.
        decoder_num_heads: attention heads of each decoder.
        drop_path: stochastic depth of the last block of each decoder.

    Raises:
        ValueError: the number of class tokens does not fit the branches.

    Source:
        Pang et al., Masked Autoencoders for Point Cloud Self-supervised Learning, ECCV 2022, section 3; Ren et al.,
        ACCV 2024.
    """

    def __init__(
        self,
        encoder: PointViT,
        num_branches: int = 1,
        decoder_depth: int = 4,
        decoder_num_heads: int = 6,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        if num_branches < 1:
            raise ValueError(f"num_branches must be at least 1, got {num_branches}")
        if encoder.config["num_cls_tokens"] not in (0, num_branches):
            raise ValueError(
                f"the encoder has num_cls_tokens={encoder.config['num_cls_tokens']}; with {num_branches} branches "
                f"it must be 0 or {num_branches}"
            )
        self.encoder = encoder
        self.decoders = nn.ModuleList(
            Decoder(
                encoder.embed_dim,
                decoder_depth,
                decoder_num_heads,
                encoder.config["mlp_ratio"],
                encoder.config["group_size"],
                drop_path,
            )
            for _ in range(num_branches)
        )

    def forward(self, xyz: Tensor, masks: Sequence[Tensor]) -> list[Branch]:
        """Reconstruct clouds under given masks.

        Args:
            xyz: ``(B, N, 3)``.
            masks: per branch ``(B, G)`` bool, True = masked; the same number masked in every row and branch.

        Returns:
            One :class:`Branch` per mask.

        Raises:
            TypeError: a mask that is not bool.
            ValueError: the wrong number of masks, a wrong shape, or rows with different numbers of masked tokens.
        """
        if len(masks) != len(self.decoders):
            raise ValueError(f"this model has {len(self.decoders)} branches, got {len(masks)} masks")
        patches = self.encoder.tokenizer(xyz)
        counts = {check_mask(mask, *patches.tokens.shape[:2]) for mask in masks}
        if len(counts) != 1:
            raise ValueError(f"all branches must mask the same number of tokens, got {sorted(counts)}")
        return self.reconstruct(patches, masks, counts.pop())

    def reconstruct(
        self,
        patches: Patches,
        masks: Sequence[Tensor],
        num_masked: int,
        encoder_scales: Tensor | None = None,
        decoder_scales: Sequence[Tensor | None] | None = None,
    ) -> list[Branch]:
        """As :meth:`forward` for embedded patches and masks known to have ``num_masked`` True in every row.

        Args:
            patches: of the tokenizer, from B clouds.
            masks: per branch ``(B, G)`` bool.
            num_masked: M.
            encoder_scales: ``(depth, 2, branches * B)`` drop path of the encoder, branch by branch.
            decoder_scales: per branch ``(decoder depth, 2, B)``.
        """
        splits = [split_mask(mask, num_masked) for mask in masks]
        encoded = self._encode(patches, [visible for visible, _ in splits], encoder_scales)
        return [
            self._decode(
                index, patches, tokens, *splits[index], None if decoder_scales is None else decoder_scales[index]
            )
            for index, tokens in enumerate(encoded)
        ]

    def _encode(self, patches: Patches, visible: list[Tensor], path_scales: Tensor | None) -> list[Tensor]:
        tokens = torch.cat([take_tokens(patches.tokens, index) for index in visible])
        centers = torch.cat([take_tokens(patches.centers, index) for index in visible])
        branch = torch.arange(len(visible), device=tokens.device).repeat_interleave(len(patches.tokens))
        encoded, _ = self.encoder.encode_tokens(tokens, centers, cls_index=branch, path_scales=path_scales)
        return list(encoded.chunk(len(visible)))

    def _decode(
        self,
        branch: int,
        patches: Patches,
        encoded: Tensor,
        visible: Tensor,
        masked: Tensor,
        path_scales: Tensor | None,
    ) -> Branch:
        predicted, features = self.decoders[branch](
            encoded, take_tokens(patches.centers, visible), take_tokens(patches.centers, masked), path_scales
        )
        # The decoder saw visible tokens first; inverting that permutation puts every token back in its place.
        restore = torch.cat([visible, masked], dim=1).argsort(dim=1)
        return Branch(predicted, take_tokens(patches.neighborhood, masked), take_tokens(features, restore))

    def branch_decoders(self) -> list[Decoder]:
        """The decoders, one per branch."""
        return [decoder for decoder in self.decoders if isinstance(decoder, Decoder)]

    def undecayed(self) -> list[nn.Parameter]:
        """Parameters of more than one dimension that weight decay leaves alone: class tokens (mask tokens are 1-D)."""
        return self.encoder.undecayed()


def take_tokens(values: Tensor, index: Tensor) -> Tensor:
    """``values[b, index[b, i]]`` for ``(B, G, ...)`` values and ``(B, K)`` indices: ``(B, K, ...)``."""
    shape = (*index.shape, *values.shape[2:])
    return values.gather(1, index.reshape(*index.shape, *[1] * (values.ndim - 2)).expand(shape))
