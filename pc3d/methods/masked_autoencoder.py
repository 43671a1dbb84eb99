"""Point-MAE and Point-CMAE: one class with one or two branches."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pc3d.data.types import PointBatch
from pc3d.losses import ChamferKind, Contrast, mean_token_cosine, patch_chamfer, token_contrast
from pc3d.methods.method import PUBLISHED, Method, Optimisation
from pc3d.models import Branch, MaskedPointModel, PointViT
from pc3d.nn import (
    MaskType,
    SampleRandom,
    Transformer,
    block_mask,
    drop_path_scales,
    mean_over_processes,
    num_masked,
    random_mask,
)


class Reconstruction(NamedTuple):
    """One masked view of some clouds and what became of it; coordinates are those of the clouds.

    Attributes:
        centers: ``(B, G, 3)`` centres of the patches.
        mask: ``(B, G)`` bool, True = hidden.
        patches: ``(B, G, S, 3)`` the true points of all patches.
        predicted: ``(B, M, S, 3)`` the predicted points of the hidden ones, in ascending order.
    """

    centers: Tensor
    mask: Tensor
    patches: Tensor
    predicted: Tensor


class MaskedAutoencoder(Method):
    """Reconstruct the masked patches of one or two masked views; let the views agree on what both had masked.

    :class:`PointMAE` and :class:`PointCMAE` are this class with the published values. Loss:
    ``reconstruction_weight * sum_k CD_k + contrast_weight * L_con``.

    A batch's masks and drop path are a function of (seed, epoch, batch index, position in the global batch): nothing of
    them needs to be stored to resume, and N processes draw what one process would (:class:`pc3d.nn.SampleRandom`).

    Args:
        encoder: the encoder to train.
        num_branches: masked views per cloud, each with its own decoder.
        mask_ratio: share of patches hidden in each view.
        mask_type: ``"random"`` patches, or a ``"block"`` around a random patch.
        decoder_depth: transformer blocks of each decoder.
        decoder_num_heads: attention heads of each decoder.
        decoder_drop_path: stochastic depth of each decoder's last block.
        chamfer: reconstruction distance, ``"l2"`` (squared) or ``"l1"``.
        reconstruction_weight: factor of the sum of the branches' chamfer distances.
        contrast: which token pairs are compared (:func:`pc3d.losses.token_contrast`); unused with one branch.
        contrast_weight: factor of the contrastive term; unused with one branch.
        optimisation: AdamW and its schedule.
        seed: of masks and drop path.

    Raises:
        ValueError: a mask ratio that leaves nothing masked or visible, or class tokens that do not fit the branches.
    """

    def __init__(
        self,
        encoder: PointViT,
        num_branches: int,
        mask_ratio: float = 0.6,
        mask_type: MaskType = "random",
        decoder_depth: int = 4,
        decoder_num_heads: int = 6,
        decoder_drop_path: float = 0.1,
        chamfer: ChamferKind = "l2",
        reconstruction_weight: float = 1000.0,
        contrast: Contrast = "same_token",
        contrast_weight: float = 1.0,
        optimisation: Optimisation = PUBLISHED,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if mask_type not in ("random", "block"):
            raise ValueError(f'mask_type must be "random" or "block", got {mask_type!r}')
        self.num_masked = num_masked(encoder.config["num_groups"], mask_ratio)
        self.mask_ratio, self.mask_type = mask_ratio, mask_type
        self.chamfer, self.reconstruction_weight = chamfer, reconstruction_weight
        self.contrast, self.contrast_weight = contrast, contrast_weight
        self.optimisation = optimisation
        self.model = MaskedPointModel(encoder, num_branches, decoder_depth, decoder_num_heads, decoder_drop_path)

    @property
    def encoder(self) -> PointViT:
        """The tokenizer and transformer, without the decoders."""
        return self.model.encoder

    def training_step(self, batch: PointBatch, batch_idx: int) -> Tensor:
        """One step on clouds of equal length."""
        return self._step(batch, self.draws(batch, self.current_epoch, batch_idx), "train")

    def validation_step(self, batch: PointBatch, batch_idx: int) -> Tensor:
        """The training loss in evaluation mode, under the same masks in every epoch."""
        return self._step(batch, self.draws(batch, 0, batch_idx), "validation")

    def _step(self, batch: PointBatch, draws: SampleRandom, stage: str) -> Tensor:
        # Cut each cloud into patches and embed them once; hide a share of them in each view.
        patches = self.model.encoder.tokenizer(batch.dense())
        masks = [self.draw_mask(patches.centers, draws) for _ in self.model.decoders]

        # Shared encoder on the visible patches, a decoder per view for the hidden ones.
        branches = self.model.reconstruct(patches, masks, self.num_masked, *self._draw_drop_path(draws))

        # Chamfer distance on the hidden patches; similar features for those hidden in both views.
        reconstruction, contrast = self.losses(branches, masks)
        loss = reconstruction if contrast is None else reconstruction + self.contrast_weight * contrast

        self._log(stage, branches, loss, reconstruction, contrast)
        return loss

    def losses(self, branches: list[Branch], masks: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Weighted reconstruction and unweighted contrast (None with one branch), averaged over the global batch.

        With several processes each value is this process's share: the mean over processes is the global loss.
        """
        target = branches[0].target
        counts = [torch.tensor(float(target.shape[0] * target.shape[1]), device=target.device)]
        both_masked = masks[0] & masks[-1]
        counts.append(both_masked.sum().to(counts[0].dtype))
        patch_count, pair_count = mean_over_processes(torch.stack(counts)).unbind()

        chamfers = [
            patch_chamfer(branch.predicted, branch.target, kind=self.chamfer, denominator=patch_count)
            for branch in branches
        ]
        reconstruction = self.reconstruction_weight * torch.stack(chamfers).sum()
        if len(branches) == 1:
            return reconstruction, None
        first, second = branches
        contrast = token_contrast(
            first.features, second.features, both_masked, contrast=self.contrast, denominator=pair_count
        )
        return reconstruction, contrast

    @torch.no_grad()
    def reconstruct(self, xyz: Tensor, *, generator: torch.Generator | None = None, branch: int = 0) -> Reconstruction:
        """Hide patches of clouds ``(B, N, 3)`` and predict them, as in training but in evaluation mode.

        Args:
            xyz: the clouds.
            generator: of the masks; PyTorch's default one when left out.
            branch: which decoder predicts; each has its own mask.
        """
        was_training = self.training
        self.eval()
        try:
            shape = (len(self.model.decoders), len(xyz), self.model.encoder.config["num_groups"])
            noise = torch.rand(shape, generator=generator, device=xyz.device)
            patches = self.model.encoder.tokenizer(xyz)
            if self.mask_type == "block":
                masks = [block_mask(patches.centers, of_branch[:, 0], self.mask_ratio) for of_branch in noise]
            else:
                masks = [random_mask(of_branch, self.mask_ratio) for of_branch in noise]
            result = self.model.reconstruct(patches, masks, self.num_masked)[branch]
        finally:
            self.train(was_training)
        mask = masks[branch]
        hidden_centers = patches.centers[mask].view(len(xyz), self.num_masked, 1, 3)
        absolute = patches.neighborhood + patches.centers[:, :, None]
        return Reconstruction(patches.centers, mask, absolute, result.predicted + hidden_centers)

    def draw_mask(self, centers: Tensor, draws: SampleRandom) -> Tensor:
        """One mask ``(B, G)`` for patches with these centres ``(B, G, 3)``."""
        if self.mask_type == "random":
            return random_mask(draws.uniform(centers.shape[1]), self.mask_ratio)
        return block_mask(centers, draws.uniform(), self.mask_ratio)

    def _draw_drop_path(self, draws: SampleRandom) -> tuple[Tensor, list[Tensor]]:
        def scales(stack: Transformer) -> Tensor:
            return drop_path_scales(draws.uniform(len(stack.blocks), 2), stack.drop_path_rates)

        encoder = torch.cat([scales(self.model.encoder.transformer) for _ in self.model.decoders], dim=2)
        return encoder, [scales(decoder.transformer) for decoder in self.model.branch_decoders()]

    def _log(
        self, stage: str, branches: list[Branch], loss: Tensor, reconstruction: Tensor, contrast: Tensor | None
    ) -> None:
        values: dict[str, Any] = {"loss": loss, "reconstruction": reconstruction}
        if contrast is not None:
            values["contrast"] = contrast
        # A shared direction of all decoder tokens raises this close to 1 without any contrastive term: a monitor only.
        values["token_cosine"] = mean_token_cosine(branches[0].features)
        for name, value in values.items():
            self.log(
                f"{stage}/{name}",
                value.detach(),
                on_step=stage == "train",
                on_epoch=True,
                prog_bar=name in ("reconstruction", "contrast"),
                sync_dist=True,
                batch_size=len(branches[0].features),
            )

    def configure_optimizers(self) -> Any:
        """AdamW with the warm-up and cosine schedule; class and mask tokens are not decayed."""
        return self.optimisation.build(self, self.model.undecayed(), self.trainer.max_epochs)


class PointMAE(MaskedAutoencoder):
    """Masked autoencoders for point cloud self-supervised learning (Pang et al., ECCV 2022).

    Args:
        encoder: the published :class:`pc3d.models.PointViT` (22 M parameters, no class token) when left out.
        mask_ratio: share of patches hidden.
        mask_type: ``"random"`` or ``"block"``.
        decoder_depth: transformer blocks of the decoder.
        decoder_num_heads: attention heads of the decoder.
        decoder_drop_path: stochastic depth of the decoder's last block.
        chamfer: ``"l2"`` (squared distances) or ``"l1"``.
        reconstruction_weight: factor of the loss; cosmetic under AdamW, but logs compare with the published ones.
        optimisation: AdamW and its schedule.
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
        optimisation: Optimisation = PUBLISHED,
        seed: int = 0,
    ) -> None:
        super().__init__(
            encoder or PointViT(),
            num_branches=1,
            mask_ratio=mask_ratio,
            mask_type=mask_type,
            decoder_depth=decoder_depth,
            decoder_num_heads=decoder_num_heads,
            decoder_drop_path=decoder_drop_path,
            chamfer=chamfer,
            reconstruction_weight=reconstruction_weight,
            optimisation=optimisation,
            seed=seed,
        )


class PointCMAE(MaskedAutoencoder):
    """Masked autoencoders with explicit contrastive properties (Ren et al., ACCV 2024, arXiv 2407.05862).

    Two masked views of the same patches, two decoders, and a cosine loss between their features of the tokens that both
    views had masked.

    Args:
        encoder: the published :class:`pc3d.models.PointViT` with two class tokens when left out.
        mask_ratio: share of patches hidden in each view.
        mask_type: ``"random"`` or ``"block"``.
        contrast: ``"same_token"`` compares a token with itself, as the paper says; ``"all_tokens"`` with every token of
            the other view, as the released code does.
        contrast_weight: factor of the contrastive term.
        reconstruction_weight: factor of the sum of both chamfer distances.
        decoder_depth: transformer blocks of each decoder.
        decoder_num_heads: attention heads of each decoder.
        decoder_drop_path: stochastic depth of each decoder's last block.
        chamfer: ``"l2"`` (squared distances) or ``"l1"``.
        optimisation: AdamW and its schedule.
        seed: of masks and drop path.
    """

    def __init__(
        self,
        encoder: PointViT | None = None,
        mask_ratio: float = 0.6,
        mask_type: MaskType = "random",
        contrast: Contrast = "same_token",
        contrast_weight: float = 1.0,
        reconstruction_weight: float = 1000.0,
        decoder_depth: int = 4,
        decoder_num_heads: int = 6,
        decoder_drop_path: float = 0.1,
        chamfer: ChamferKind = "l2",
        optimisation: Optimisation = PUBLISHED,
        seed: int = 0,
    ) -> None:
        super().__init__(
            encoder or PointViT(num_cls_tokens=2),
            num_branches=2,
            mask_ratio=mask_ratio,
            mask_type=mask_type,
            decoder_depth=decoder_depth,
            decoder_num_heads=decoder_num_heads,
            decoder_drop_path=decoder_drop_path,
            chamfer=chamfer,
            reconstruction_weight=reconstruction_weight,
            contrast=contrast,
            contrast_weight=contrast_weight,
            optimisation=optimisation,
            seed=seed,
        )
