"""Barlow Twins: features agree between views, and different features are uncorrelated."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pc3d.losses import barlow_twins
from pc3d.methods.method import PUBLISHED, Optimisation
from pc3d.methods.two_views import VIEW, TwoViews
from pc3d.models import ObjectEncoder
from pc3d.nn import ProjectionHead, ViewAugmentation


class BarlowTwins(TwoViews):
    """Barlow Twins for clouds: redundancy reduction (Zbontar et al., ICML 2021, arXiv 2103.03230).

    It needs no negatives and no teacher. Loss: ``invariance + redundancy_weight * redundancy`` of
    :func:`pc3d.losses.barlow_twins`. From the paper: the weight 0.005, and the projector of three layers of 8,192.
    Ours: views of clouds, and AdamW with Point-MAE's schedule instead of LARS (learning rate 0.2 per 256 images, weight
    decay 1.5e-6, batches of 2,048).

    Args:
        encoder: any encoder of objects.
        projector: hidden and output widths of the projector.
        redundancy_weight: the paper's lambda.
        view: how both views are made.
        optimisation: optimiser (AdamW by default) and its schedule.
        seed: of views and stochastic depth.
    """

    def __init__(
        self,
        encoder: ObjectEncoder,
        projector: Sequence[int] = (8192, 8192, 8192),
        redundancy_weight: float = 0.005,
        view: ViewAugmentation = VIEW,
        optimisation: Optimisation = PUBLISHED,
        seed: int = 0,
    ) -> None:
        head = ProjectionHead((encoder.embed_dim, *projector), last_bias=False)
        super().__init__(encoder, head, view, optimisation, seed)
        self.redundancy_weight = redundancy_weight

    def losses(self, features: list[Tensor], views: list[Tensor]) -> dict[str, Tensor]:
        """The weighted sum, and its two unweighted terms."""
        terms = barlow_twins(*self.projections(features))
        return {"loss": terms.invariance + self.redundancy_weight * terms.redundancy, **terms._asdict()}
