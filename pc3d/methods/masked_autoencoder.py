"""Point-MAE and Point-CMAE: reconstruction of masked patches in one or two branches."""

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
    """One masked view of some clouds and its reconstruction; coordinates are those of the clouds.

    Attributes:
        centers: ``(B, G, 3)`` centres of the patches.
        mask: ``(B, G)`` bool, True = hidden.
        patches: ``(B, G, S, 3)`` the true points of all patches.
        predicted: ``(B, M, S, 3)`` the predicted points of the hidden patches, in ascending order.
    """

    centers: Tensor
    mask: Tensor
    patches: Tensor
    predicted: Tensor


class MaskedAutoencoder(Method):
    """Base class of masked autoencoders: reconstruct the masked patches of one or several masked views.

    To change one thing in a subclass, override :meth:`draw_mask`, :meth:`losses` or :meth:`configure_optimizers`.

    The loss is ``reconstruction_weight * sum_k CD_k``. :class:`PointMAE`, :class:`PointCMAE` and :class:`PCPMAE` are
    this class with a model and further terms of the loss.

    A batch's masks and drop path are a function of (seed, epoch, batch index, position in the global batch): nothing of
    them needs to be stored to resume, and N processes draw what one process would (:class:`pc3d.nn.SampleRandom`).

    Args:
        model: encoder and decoders.
        mask_ratio: share of patches hidden in each view.
        mask_type: ``"random"`` patches, or a ``"block"`` around a random patch.
        chamfer: reconstruction distance, ``"l2"`` (squared) or ``"l1"``.
        reconstruction_weight: factor of the sum of the branches' chamfer distances.
        optimisation: optimiser (AdamW by default) and its schedule.
        seed: of masks and drop path.

    Raises:
        ValueError: a mask ratio that leaves nothing masked or visible.
    """

    def __init__(
        self,
        model: MaskedPointModel,
        mask_ratio: float = 0.6,
        mask_type: MaskType = "random",
        chamfer: ChamferKind = "l2",
        reconstruction_weight: float = 1000.0,
        optimisation: Optimisation = PUBLISHED,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if mask_type not in ("random", "block"):
            raise ValueError(f'mask_type must be "random" or "block", got {mask_type!r}')
        self.num_masked = num_masked(model.encoder.config["num_groups"], mask_ratio)
        self.mask_ratio, self.mask_type = mask_ratio, mask_type
        self.chamfer, self.reconstruction_weight = chamfer, reconstruction_weight
        self.weights = {"reconstruction": 1.0}  # weights of the terms of the loss
        self.optimisation = optimisation
        self.model = model

    @property
    def encoder(self) -> PointViT:
        """The tokenizer and transformer, without the decoders."""
        return self.model.encoder

    def training_step(self, batch: PointBatch, batch_idx: int) -> Tensor:
        """One step on clouds of equal length."""
        return self._step(batch, self.draws(batch, self.current_epoch, batch_idx), "train")

    def validation_step(self, batch: PointBatch, batch_idx: int) -> Tensor:
        """The training loss in evaluation mode, with the same masks in every epoch."""
        return self._step(batch, self.draws(batch, 0, batch_idx), "validation")

    def _step(self, batch: PointBatch, draws: SampleRandom, stage: str) -> Tensor:
        # Divide each cloud into patches and embed them once; mask a share of them in each view.
        patches = self.model.encoder.tokenizer(batch.dense())
        masks = [self.draw_mask(patches.centers, draws) for _ in self.model.decoders]

        # Shared encoder on the visible patches; one decoder per view for the hidden ones.
        branches = self.model.reconstruct(patches, masks, self.num_masked, *self._draw_drop_path(draws))

        # Chamfer distance on the hidden patches, and further terms of the method.
        losses = self.losses(branches, masks)
        loss = torch.stack([self.weights[name] * value for name, value in losses.items()]).sum()

        # Only a monitor: a direction common to all decoder tokens brings it close to 1 even without a contrastive term.
        cosine = mean_token_cosine(branches[0].features)
        self.log_step(stage, {"loss": loss, **losses, "token_cosine": cosine}, len(batch), prog_bar=losses)
        return loss

    def losses(self, branches: list[Branch], masks: list[Tensor]) -> dict[str, Tensor]:
        """The unweighted terms of the loss, averaged over the global batch; override it to minimise other terms.

        With several processes each value is this process's share: the mean over processes is the global loss.
        """
        count = self.patch_count(branches)
        chamfers = [
            patch_chamfer(branch.predicted, branch.target, kind=self.chamfer, denominator=count) for branch in branches
        ]
        return {"reconstruction": self.reconstruction_weight * torch.stack(chamfers).sum()}

    def patch_count(self, branches: list[Branch]) -> Tensor:
        """The number of masked patches per branch, averaged over processes."""
        clouds, patches = branches[0].target.shape[:2]
        return mean_over_processes(torch.tensor(float(clouds * patches), device=branches[0].target.device))

    @torch.no_grad()
    def reconstruct(self, xyz: Tensor, *, generator: torch.Generator | None = None, branch: int = 0) -> Reconstruction:
        """Hide patches of clouds ``(B, N, 3)`` and predict them, as in training but in evaluation mode.

        Args:
            xyz: the clouds.
            generator: source of the masks; by default seeded by PyTorch's default generator.
            branch: index of the decoder that predicts; each has its own mask.
        """
        was_training = self.training
        self.eval()
        try:
            if generator is None:
                generator = torch.Generator(xyz.device).manual_seed(int(torch.randint(2**62, ())))
            draws = SampleRandom.of(generator, len(xyz))
            patches = self.model.encoder.tokenizer(xyz)
            masks = [self.draw_mask(patches.centers, draws) for _ in self.model.decoders]
            result = self.model.reconstruct(patches, masks, self.num_masked)[branch]
        finally:
            self.train(was_training)
        mask = masks[branch]
        hidden_centers = patches.centers[mask].view(len(xyz), self.num_masked, 1, 3)
        absolute = patches.neighborhood + patches.centers[:, :, None]
        return Reconstruction(patches.centers, mask, absolute, result.predicted + hidden_centers)

    def draw_mask(self, centers: Tensor, draws: SampleRandom) -> Tensor:
        """One mask ``(B, G)``, True = hidden, for patches with centres ``(B, G, 3)``.

        Override it to hide other patches. Every row must hide ``self.num_masked`` patches, and all randomness must come
        from ``draws``.
        """
        if self.mask_type == "random":
            return random_mask(draws.uniform(centers.shape[1]), self.mask_ratio)
        return block_mask(centers, draws.uniform(), self.mask_ratio)

    def _draw_drop_path(self, draws: SampleRandom) -> tuple[Tensor, list[Tensor]]:
        def scales(stack: Transformer) -> Tensor:
            return drop_path_scales(draws.uniform(len(stack.blocks), 2), stack.drop_path_rates)

        encoder = torch.cat([scales(self.model.encoder.transformer) for _ in self.model.decoders], dim=2)
        return encoder, [scales(decoder.transformer) for decoder in self.model.branch_decoders()]

    def configure_optimizers(self) -> Any:
        """The optimiser with its warm-up and cosine schedule; class and mask tokens are not decayed."""
        return self.optimisation.build(self, self.model.undecayed(), self.trainer.max_epochs)


class PointMAE(MaskedAutoencoder):
    """Point-MAE: masked autoencoders for point cloud self-supervised learning (Pang et al., ECCV 2022).

    Args:
        encoder: by default the published :class:`pc3d.models.PointViT` (22 M parameters, no class token).
        mask_ratio: share of patches hidden.
        mask_type: ``"random"`` or ``"block"``.
        decoder_depth: transformer blocks of the decoder.
        decoder_num_heads: attention heads of the decoder.
        decoder_drop_path: stochastic depth of the decoder's last block.
        chamfer: ``"l2"`` (squared distances) or ``"l1"``.
        reconstruction_weight: factor of the loss. Cosmetic under AdamW, but it makes logs comparable with the published
            ones.
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
        optimisation: Optimisation = PUBLISHED,
        seed: int = 0,
    ) -> None:
        model = MaskedPointModel(encoder or PointViT(), 1, decoder_depth, decoder_num_heads, decoder_drop_path)
        super().__init__(model, mask_ratio, mask_type, chamfer, reconstruction_weight, optimisation, seed)


class PointCMAE(MaskedAutoencoder):
    """Point-CMAE: masked autoencoders with contrastive properties (Ren et al., ACCV 2024, arXiv 2407.05862).

    It uses two masked views of the same patches, two decoders, and a cosine loss between their features of the tokens
    that are masked in both views.

    Args:
        encoder: by default the published :class:`pc3d.models.PointViT` with two class tokens.
        mask_ratio: share of patches hidden in each view.
        mask_type: ``"random"`` or ``"block"``.
        contrast: ``"same_token"`` compares a token with itself, as in the paper; ``"all_tokens"`` with every token of
            the other view, as in the released code.
        contrast_weight: factor of the contrastive term.
        reconstruction_weight: factor of the sum of both chamfer distances.
        decoder_depth: transformer blocks of each decoder.
        decoder_num_heads: attention heads of each decoder.
        decoder_drop_path: stochastic depth of each decoder's last block.
        chamfer: ``"l2"`` (squared distances) or ``"l1"``.
        optimisation: optimiser (AdamW by default) and its schedule.
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
        encoder = encoder or PointViT(num_cls_tokens=2)
        model = MaskedPointModel(encoder, 2, decoder_depth, decoder_num_heads, decoder_drop_path)
        super().__init__(model, mask_ratio, mask_type, chamfer, reconstruction_weight, optimisation, seed)
        self.contrast, self.contrast_weight = contrast, contrast_weight
        self.weights["contrast"] = contrast_weight

    def losses(self, branches: list[Branch], masks: list[Tensor]) -> dict[str, Tensor]:
        """Add ``contrast``: the distance between decoder features of tokens that both views mask."""
        first, second = branches
        both_masked = masks[0] & masks[1]
        count = mean_over_processes(both_masked.sum().to(torch.float32))
        contrast = token_contrast(
            first.features, second.features, both_masked, contrast=self.contrast, denominator=count
        )
        return {**super().losses(branches, masks), "contrast": contrast}
