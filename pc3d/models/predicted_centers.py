"""The network of PCP-MAE: Point-MAE whose encoder predicts where the masked patches are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pc3d.models.masked_autoencoder import Branch, MaskedPointModel, take_tokens
from pc3d.models.point_vit import PointViT
from pc3d.nn import Patches, init_token, split_mask


class PredictedCenterModel(MaskedPointModel):
    """Reconstructs masked patches at predicted instead of true positions.

    The encoder's transformer runs over all patches. Visible patches attend only to visible ones, so their tokens are
    the same as in :class:`MaskedPointModel`. Masked patches attend to all, with a learned token instead of their
    position (the paper's weight-shared cross-attention). A small network predicts their position features from the
    result. The decoder sees the predicted positions, detached from its gradient, and embeds positions with the
    encoder's own network.

    Args:
        encoder: the encoder; without class token.
        decoder_depth: transformer blocks of the decoder.
        decoder_num_heads: attention heads of the decoder.
        drop_path: stochastic depth of the last block of the decoder.

    Raises:
        ValueError: an encoder with class tokens.

    Source:
        Zhang et al., PCP-MAE: Learning to Predict Centers for Point Masked Autoencoders, NeurIPS 2024.
    """

    def __init__(
        self, encoder: PointViT, decoder_depth: int = 4, decoder_num_heads: int = 6, drop_path: float = 0.1
    ) -> None:
        if encoder.config["num_cls_tokens"]:
            raise ValueError(
                "predicting centres needs an encoder with num_cls_tokens=0, "
                f"got num_cls_tokens={encoder.config['num_cls_tokens']}"
            )
        super().__init__(encoder, 1, decoder_depth, decoder_num_heads, drop_path)
        (decoder,) = self.branch_decoders()
        decoder.position = encoder.position
        width = encoder.embed_dim
        self.hidden_position = nn.Parameter(init_token(torch.empty(width)))
        self.center_head = nn.Sequential(
            nn.Linear(width, width),
            nn.LayerNorm(width),
            nn.ReLU(inplace=True),
            nn.Linear(width, encoder.position.num_features),
        )

    def reconstruct(
        self,
        patches: Patches,
        masks: Sequence[Tensor],
        num_masked: int,
        encoder_scales: Tensor | None = None,
        decoder_scales: Sequence[Tensor | None] | None = None,
    ) -> list[Branch]:
        """As :meth:`MaskedPointModel.reconstruct`, with one mask; the branch says which positions were predicted."""
        visible, masked = split_mask(masks[0], num_masked)
        order = torch.cat([visible, masked], dim=1)
        position = self.encoder.position
        seen = position(take_tokens(patches.centers, visible))

        # One pass over all patches, visible ones first; the encoder is not told where the masked ones are.
        hidden = self.hidden_position.to(seen.dtype).expand(*masked.shape, -1)
        rank = torch.arange(order.shape[1], device=order.device)
        sees = (rank[:, None] >= visible.shape[1]) | (rank < visible.shape[1])
        tokens = self.encoder.transformer(
            take_tokens(patches.tokens, order), torch.cat([seen, hidden], dim=1), encoder_scales, sees
        )
        encoded, queries = self.encoder.norm(tokens).split([visible.shape[1], num_masked], dim=1)
        predicted: Tensor = self.center_head(queries)

        # The predictions take the place of the true positions; reconstruction does not teach them (stop-gradient).
        positions = torch.cat([seen, position.embed(predicted.detach())], dim=1)
        (decoder,) = self.branch_decoders()
        points, features = decoder.decode(encoded, positions, None if decoder_scales is None else decoder_scales[0])
        return [
            Branch(
                points,
                take_tokens(patches.neighborhood, masked),
                take_tokens(features, order.argsort(dim=1)),
                predicted,
                position.features(take_tokens(patches.centers, masked)),
            )
        ]
