"""VICReg for the points of scenes: the same place has the same feature in two views."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pc3d.data.types import PointBatch
from pc3d.losses import vicreg
from pc3d.methods.collapse import CollapseWatch
from pc3d.methods.hidden_scene import check_cell_size, encode_hidden, hide_cells
from pc3d.methods.masked_scene import SCENES
from pc3d.methods.method import Method, Optimisation
from pc3d.models.voxel_features import UpcastFeatures, as_voxel_encoder, freeze_decoder
from pc3d.nn import ProjectionHead, SampleRandom, gather_rows, init_token
from pc3d.nn.sparse import scene_of_rows
from pc3d.ops import gather, knn


class SceneVICReg(Method):
    """VICReg for scenes: the points of two views agree, while features keep their variance and are uncorrelated.

    The data are :class:`pc3d.data.ViewPairs`. Every point of the first view is matched with the point of the second
    that was nearest to it before each view was rotated, scaled and coloured. Some matches are drawn from each scene,
    and :func:`pc3d.losses.vicreg` compares the outputs of a projector for both points. There is no decoder: features of
    all levels are brought up to the finest voxels (:class:`pc3d.models.UpcastFeatures`, after Sonata, Wu et al., 2025),
    so all that was learnt is in the encoder. The views also differ in their voxel grids.

    Matching by place comes from PointContrast (Xie et al., 2020) and, for pictures, from the local term of VICRegL
    (Bardes et al., 2022); here it is the only term. VICReg is used instead of a contrast with negatives, because most
    other points of a room are of the same walls and floors. None of this is published in this form for scenes, so what
    is not from VICReg (the weights 25, 25 and 1) is our default.

    With a ``mask_ratio``, cubes of both views are hidden, with separate draws for each view. The matches do not change:
    the feature of a place that one view does not see is compared with that of the other view, which mostly does see it,
    so it must be inferred from the surroundings. Hidden voxels keep their position and lose their signals before the
    encoder prepares the scene; a learned token replaces their features (as in :class:`MaskedScene`). Masks across two
    views come from Masked Scene Contrast (Wu et al., 2023, section 3.3), which has a contrast with negatives, masks
    that do not overlap, and reconstruction as well; and from masked self-distillation (Sonata), which has a teacher.
    There are no negatives, no teacher and no reconstruction here. 0.4 is the ratio of Masked Scene Contrast; the
    default is 0, without masks.

    The batch norms of the exported encoder hold the statistics of views, which are rotated, thinned and coloured.
    Fine-tuning replaces them. Before you use frozen features, set the statistics of whole scenes with
    :func:`pc3d.evaluation.scene_probe.settle_on_scenes`.

    A batch's matches and masks are a function of (seed, epoch, batch index, position in the global batch), the draws
    within the encoder of (seed, epoch, batch index, process): nothing of them needs to be stored to resume. Rows are
    compared over the global batch.

    Args:
        encoder: :class:`pc3d.models.SparseUNet`, :class:`pc3d.models.Swin3D` or another
            :class:`pc3d.models.VoxelEncoder`; its decoder, if any, is not changed.
        projector: hidden and output widths of the projector, which is not exported.
        pairs_per_scene: matches drawn from each scene; all if there are fewer.
        match_distance: largest distance of two matched points before the transforms, in the units of the points; None
            for one and a half of the encoder's voxels.
        mask_ratio: share of the occupied cubes hidden in each view; 0 hides nothing.
        cell_size: edge of the cubes in the units of the points.
        invariance_weight: how much views must agree.
        variance_weight: how much features must differ from place to place.
        covariance_weight: how strongly dimensions that repeat each other are penalised.
        optimisation: optimiser (AdamW by default) and its schedule.
        seed: of all draws.

    Raises:
        TypeError: the encoder is not one of voxels.
        ValueError: a number out of range, or cubes smaller than voxels.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: Sequence[int] = (256, 256),
        pairs_per_scene: int = 1024,
        match_distance: float | None = None,
        mask_ratio: float = 0.0,
        cell_size: float = 0.4,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        optimisation: Optimisation = SCENES,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if pairs_per_scene < 2:
            raise ValueError(f"pairs_per_scene must be at least 2, got {pairs_per_scene}")
        if not 0.0 <= mask_ratio < 1.0:
            raise ValueError(f"mask_ratio must be at least 0 and less than 1, got {mask_ratio}")
        weights = (invariance_weight, variance_weight, covariance_weight)
        if not all(0.0 <= weight < math.inf for weight in weights) or not any(weights):
            raise ValueError(
                "invariance_weight, variance_weight and covariance_weight must be numbers of at least 0, one of them "
                f"above 0, got {weights}: VICReg's are 25, 25 and 1"
            )
        self.model = UpcastFeatures(encoder)
        freeze_decoder(encoder)
        self.match_distance = 1.5 * self.model.voxel_size if match_distance is None else float(match_distance)
        if not self.match_distance > 0.0:
            raise ValueError(f"match_distance must be positive, got {match_distance}")
        self.projector = ProjectionHead((self.model.feature_dim, *projector), last_bias=False)
        self.pairs_per_scene, self.optimisation = pairs_per_scene, optimisation
        self.weights = weights
        self.mask_ratio, self.cell_size = mask_ratio, cell_size
        self.mask_token: nn.Parameter | None = None
        if mask_ratio > 0.0:
            check_cell_size(cell_size, self.model.voxel_size)
            width = as_voxel_encoder(encoder).channels[0]
            self.mask_token = nn.Parameter(init_token(torch.empty(1, width)))
        self.watch = CollapseWatch()

    @property
    def encoder(self) -> nn.Module:
        """The encoder; its decoder, if any, was not trained."""
        return self.model.encoder

    def training_step(self, batch: PointBatch, batch_idx: int) -> Tensor:
        """One step on pairs of views."""
        return self._step(batch, self.current_epoch, batch_idx, "train")

    def validation_step(self, batch: PointBatch, batch_idx: int) -> Tensor:
        """The training loss in evaluation mode, on the same views and matches in every epoch."""
        return self._step(batch, 0, batch_idx, "validation")

    def _step(self, batch: PointBatch, epoch: int, batch_idx: int, stage: str) -> Tensor:
        draws = self.draws(batch, epoch, batch_idx)
        first, second = self.pairs(batch, draws)
        with self.default_draws(epoch, batch_idx, batch.xyz.device):
            features = self.point_features(batch, draws)
            values = self.losses(features[first], features[second])
        self.log_step(stage, {**values, **self.watch(features[first])}, len(batch))
        return values["loss"]

    def pairs(self, batch: PointBatch, draws: SampleRandom) -> tuple[Tensor, Tensor]:
        """Rows ``(P,)`` of first views, and the matching rows ``(P,)`` of second views.

        Raises:
            ValueError: the batch does not consist of pairs, or fewer than two points match.
        """
        width = 0 if batch.feature is None else batch.feature.shape[1]
        if batch.feature is None or width != 3 or len(batch) % 2:
            raise ValueError(
                f"the batch must be of pairs of views with a feature (N, 3) that says where points were, got "
                f"{len(batch)} clouds and a feature of width {width}: give the data module train_collate="
                "ViewPairs(...), with transforms that keep the feature"
            )
        second = scene_of_rows(batch.offsets, len(batch.xyz)) % 2 == 1
        rows = (~second).nonzero().flatten(), second.nonzero().flatten()
        offsets = [F.pad(batch.lengths[view::2].cumsum(0), (1, 0)) for view in range(2)]
        place = [batch.feature[of_view] for of_view in rows]
        nearest = knn(place[1], 1, query=place[0], offsets=offsets[1], query_offsets=offsets[0])
        partner = torch.full_like(second, -1, dtype=torch.int64)
        close = nearest.squared_distance[:, 0] <= self.match_distance**2
        partner[rows[0][close]] = rows[1][nearest.index[close, 0]]
        drawn = draws.some_rows(partner >= 0, batch.offsets, self.pairs_per_scene)
        if len(drawn) < 2:
            raise ValueError(
                f"{len(drawn)} points of the views lie within match_distance={self.match_distance:g} of each other: "
                "use a larger radius or a smaller distance in ViewPairs (are coordinates in metres?)"
            )
        return drawn, partner[drawn]

    def point_features(self, batch: PointBatch, draws: SampleRandom) -> Tensor:
        """Features of every point, ``(N, sum of channels)``, computed from the visible signals.

        Raises:
            ValueError: no view of the batch has enough cubes to hide one.
        """
        if self.mask_token is None:
            return self.model.point_features(batch)
        hidden = hide_cells(batch, self.model.voxel_size, self.cell_size, self.mask_ratio, draws)
        return gather(encode_hidden(as_voxel_encoder(self.encoder), hidden, self.mask_token), hidden.inverse)

    def losses(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        """The weighted sum, and its three unweighted terms.

        Args:
            first: ``(P, C)`` features of points.
            second: ``(P, C)`` features of the matching points of the other view.
        """
        projected = self.projector(torch.cat([first, second])).chunk(2)
        terms = vicreg(*(gather_rows(rows.float()) for rows in projected))
        weighted = [weight * term for weight, term in zip(self.weights, terms, strict=True)]
        return {"loss": weighted[0] + weighted[1] + weighted[2], **terms._asdict()}

    def configure_optimizers(self) -> Any:
        """The optimiser with its warm-up and cosine schedule; the mask token is not decayed."""
        tokens = () if self.mask_token is None else (self.mask_token,)
        return self.optimisation.build(self, tokens, self.trainer.max_epochs)
