"""PCP-MAE: a masked autoencoder that predicts where the masked patches are."""

from __future__ import annotations

from torch import Tensor

from pc3d.losses import ChamferKind
from pc3d.methods.masked_autoencoder import MaskedAutoencoder
from pc3d.methods.method import Optimisation
from pc3d.models import Branch, PointViT, PredictedCenterModel
from pc3d.nn import MaskType

PUBLISHED = Optimisation(learning_rate=5e-4)


class PCPMAE(MaskedAutoencoder):
    """PCP-MAE: predict centers for point masked autoencoders (Zhang et al., NeurIPS 2024, arXiv 2408.08753).

    The decoder of Point-MAE gets the true positions of the masked patches. That alone lets it reconstruct well: the
    encoder need not understand the shape. Here, the encoder predicts the positions, and the decoder gets the
    prediction. Loss: ``reconstruction_weight * CD + center_weight * MSE(position features)``.

    From the paper and its released settings: the masked patches as queries of the encoder's own blocks, the network
    that reads positions from them, sinusoidal position features in an encoder at paper size, the stop-gradient before
    the decoder, embedding of positions shared by encoder and decoder, the ratio 0.1 of the two terms, learning rate
    5e-4, and scale, shift and rotation as augmentation (the recipe ``pcp_mae``). Ours: stochastic depth drops visible
    and masked patches of a cloud together; and the encoder may have a position embedding that reads coordinates, which
    are then what is predicted.

    Args:
        encoder: without class token; by default the published :class:`pc3d.models.PointViT` (with sinusoids).
        mask_ratio: share of patches hidden.
        mask_type: ``"random"`` or ``"block"``.
        decoder_depth: transformer blocks of the decoder.
        decoder_num_heads: attention heads of the decoder.
        decoder_drop_path: stochastic depth of the decoder's last block.
        chamfer: ``"l2"`` (squared distances) or ``"l1"``.
        reconstruction_weight: factor of the chamfer distance, as in :class:`PointMAE`.
        center_weight: factor of the positions' term; with the factor 1000 above, 100 is the published ratio.
        optimisation: optimiser (AdamW by default) and its schedule.
        seed: of masks and drop path.
    """

    def __init__(
        self,
        encoder: PointViT | None = None,
        mask_ratio: float = 0.6,
        mask_type: MaskType = "random",
        decoder_depth: int = 4,
        decoder_num_heads: int = 6,
        decoder_drop_path: float = 0.1,
        chamfer: ChamferKind = "l2",
        reconstruction_weight: float = 1000.0,
        center_weight: float = 100.0,
        optimisation: Optimisation = PUBLISHED,
        seed: int = 0,
    ) -> None:
        encoder = encoder or PointViT(position_features="sinusoids")
        model = PredictedCenterModel(encoder, decoder_depth, decoder_num_heads, decoder_drop_path)
        super().__init__(model, mask_ratio, mask_type, chamfer, reconstruction_weight, optimisation, seed)
        self.weights["center"] = center_weight

    def losses(self, branches: list[Branch], masks: list[Tensor]) -> dict[str, Tensor]:
        """Add ``center``: the mean squared error of the predicted position features."""
        (branch,) = branches
        assert branch.position is not None
        assert branch.true_position is not None
        error = (branch.position.to(branch.true_position.dtype) - branch.true_position).square().mean(-1).sum()
        return {**super().losses(branches, masks), "center": error / self.patch_count(branches)}
