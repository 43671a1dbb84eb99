"""Masked scene reconstruction: hide cubes of a scene, and predict their contents with an encoder of voxels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pc3d.data.types import PointBatch
from pc3d.methods.hidden_scene import HiddenScene, check_cell_size, encode_hidden, hide_cells
from pc3d.methods.method import Method, Optimisation
from pc3d.models.voxel_features import VoxelEncoder, as_voxel_encoder, freeze_decoder
from pc3d.nn import init_token, mean_over_processes
from pc3d.ops import segment_reduce

SCENES = Optimisation(learning_rate=2e-3, warmup_epochs=10)
_NORMAL_LENGTH = 0.1


class MaskedScene(Method):
    """Hide colour, normal and position in the voxel within random cubes of a scene, and predict them.

    The scene is cut into cubes, and most of them are hidden. Their voxels keep their positions, but the signals of
    their points are removed before the encoder prepares the scene. Neither the choice of representatives of coarser
    voxels nor differences of signals in attention tables can therefore reveal them. After the stem, a learned token
    replaces their features. The encoder runs on all voxels of the complete scene, as it will downstream (dropping the
    hidden ones would change what a sparse convolution sees). There is no decoder: features of all levels are brought up
    to the finest voxels (:func:`pc3d.models.voxel_features.upcast`, after Sonata, Wu et al., 2025), and a small network
    predicts the mean colour, mean normal and mean position of the points of each hidden voxel from them. The idea is
    that of Masked Scene Contrast (Wu et al., 2023, section 3.3), which masks cubes of 0.1 m at a ratio of 0.4.

    Loss: ``color_weight * L1(colour) + normal_weight * (1 - cos(normal)) + offset_weight * L1(position)`` over hidden
    voxels. Signals that the encoder does not read are not predicted. The data transforms vary the voxel grid: the
    rotations, scales and shifts of the configurations give each epoch another one.

    The batch norms of the exported encoder hold the statistics of masked scenes. Fine-tuning replaces them. Before you
    use frozen features, set the statistics of whole scenes with :func:`pc3d.evaluation.scene_probe.settle_on_scenes`.

    A batch's masks are a function of (seed, epoch, batch index, position in the global batch), drop path and
    representatives of voxels of (seed, epoch, batch index, process): nothing of them needs to be stored to resume.

    Args:
        encoder: :class:`pc3d.models.SparseUNet`, :class:`pc3d.models.Swin3D` or another
            :class:`pc3d.models.VoxelEncoder`; its decoder, if any, is not changed.
        cell_size: edge of the cubes in the units of the points.
        mask_ratio: share of the occupied cubes hidden in each scene.
        head_dim: width of the network that predicts.
        color_weight: of the colour's term; colours lie in [-1, 1].
        normal_weight: of the normal's term.
        offset_weight: of the position's term; positions lie in [0, 1].
        optimisation: optimiser (AdamW by default) and its schedule.
        seed: of masks and all draws within the encoder.

    Raises:
        TypeError: the encoder is not one of voxels.
        ValueError: a size or ratio out of range, or cubes smaller than voxels.
    """

    def __init__(
        self,
        encoder: nn.Module,
        cell_size: float = 0.4,
        mask_ratio: float = 0.6,
        head_dim: int = 512,
        color_weight: float = 1.0,
        normal_weight: float = 1.0,
        offset_weight: float = 1.0,
        optimisation: Optimisation = SCENES,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        voxels = as_voxel_encoder(encoder)
        if not 0.0 < mask_ratio < 1.0:
            raise ValueError(f"mask_ratio must lie strictly between 0 and 1, got {mask_ratio}")
        check_cell_size(cell_size, voxels.voxel_size)
        self.cell_size, self.mask_ratio, self.optimisation = cell_size, mask_ratio, optimisation
        weights = {"color": color_weight, "normal": normal_weight, "offset": offset_weight}
        read = {"xyz": 0, "xyz_rgb": 1, "xyz_rgb_normal": 2}[voxels.signals]
        self.weights = {name: weights[name] for name in (*("color", "normal")[:read], "offset")}
        channels = voxels.channels
        self.backbone = encoder
        freeze_decoder(encoder)
        self.mask_token = nn.Parameter(init_token(torch.empty(1, channels[0])))
        self.head = nn.Sequential(
            nn.LayerNorm(sum(channels)),
            nn.Linear(sum(channels), head_dim),
            nn.GELU(),
            nn.Linear(head_dim, 3 * len(self.weights)),
        )

    @property
    def encoder(self) -> nn.Module:
        """The backbone; its decoder, if any, was not trained."""
        return self.backbone

    def training_step(self, batch: PointBatch, batch_idx: int) -> Tensor:
        """One step on scenes of any size."""
        return self._step(batch, self.current_epoch, batch_idx, "train")

    def validation_step(self, batch: PointBatch, batch_idx: int) -> Tensor:
        """The training loss in evaluation mode, with the same masks in every epoch."""
        return self._step(batch, 0, batch_idx, "validation")

    def _step(self, batch: PointBatch, epoch: int, batch_idx: int, stage: str) -> Tensor:
        hidden = self.hide(batch, epoch, batch_idx)
        with self.default_draws(epoch, batch_idx, batch.xyz.device):
            features = self.features(hidden)
        losses = self.losses(self.head(features[hidden.mask]), self.targets(batch, hidden))
        total = torch.stack([self.weights[name] * value for name, value in losses.items()]).sum()
        self.log_step(stage, {"loss": total, **losses}, len(batch))
        return total

    def hide(self, batch: PointBatch, epoch: int, batch_idx: int) -> HiddenScene:
        """Hide cubes of a batch, with the draws of this step.

        Raises:
            ValueError: no scene of the batch has enough cubes to hide one.
        """
        draws = self.draws(batch, epoch, batch_idx)
        return hide_cells(batch, self._voxels.voxel_size, self.cell_size, self.mask_ratio, draws)

    def features(self, hidden: HiddenScene) -> Tensor:
        """Features of every finest voxel, ``(V, sum of channels)``, computed from the visible signals."""
        return encode_hidden(self._voxels, hidden, self.mask_token)

    def targets(self, batch: PointBatch, hidden: HiddenScene) -> dict[str, Tensor]:
        """Mean signals ``(M, 3)`` of the points of each hidden voxel: colour in [-1, 1], normal, position in [0, 1]."""
        rows = hidden.mask[hidden.inverse].nonzero().flatten()
        number = hidden.mask.cumsum(0) - 1
        voxel, count = number[hidden.inverse[rows]], int(number[-1]) + 1
        size = self._voxels.voxel_size
        found = {"offset": (batch.xyz[rows] - hidden.batch.xyz[rows]) / size + 0.5}
        if "color" in self.weights and batch.rgb is not None:
            found["color"] = 2.0 * batch.rgb[rows] - 1.0
        if "normal" in self.weights and batch.normal is not None:
            found["normal"] = batch.normal[rows]
        return {name: segment_reduce(value.float(), voxel, count, "mean") for name, value in found.items()}

    def losses(self, predicted: Tensor, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """The unweighted terms, averaged over the hidden voxels of the global batch.

        With several processes each value is this process's share: the mean over processes is the global loss.

        Args:
            predicted: ``(M, 3 to 9)`` from the head.
            targets: from :meth:`targets`.
        """
        rows = dict(zip(self.weights, predicted.float().split(3, dim=1), strict=True))
        terms = {name: _error(name, rows[name], targets[name]) for name in self.weights}
        count = mean_over_processes(predicted.new_tensor(float(len(predicted)), dtype=torch.float32))
        return {name: value.sum() / count for name, value in terms.items()}

    def configure_optimizers(self) -> Any:
        """The optimiser with its warm-up and cosine schedule; the mask token is not decayed."""
        return self.optimisation.build(self, [self.mask_token], self.trainer.max_epochs)

    @property
    def _voxels(self) -> VoxelEncoder:
        return as_voxel_encoder(self.backbone)


def _error(name: str, predicted: Tensor, target: Tensor) -> Tensor:
    """The error of each row: mean absolute error, or 1 - cosine for normals."""
    if name != "normal":
        return (predicted - target).abs().mean(1)
    # If the normals of a voxel cancel out, there is no direction to predict.
    length = target.norm(dim=1)
    cosine = torch.nn.functional.cosine_similarity(predicted, target, dim=1, eps=1e-6)
    return torch.where(length > _NORMAL_LENGTH, 1.0 - cosine, torch.zeros_like(cosine))
