"""VICReg: views of a cloud agree, while features keep their variance and are uncorrelated."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pc3d.losses import vicreg
from pc3d.methods.method import PUBLISHED, Optimisation
from pc3d.methods.two_views import VIEW, TwoViews
from pc3d.models import ObjectEncoder
from pc3d.nn import ProjectionHead, ViewAugmentation


class VICReg(TwoViews):
    """VICReg for clouds: Variance-Invariance-Covariance Regularization (Bardes et al., ICLR 2022, arXiv 2105.04906).

    It needs no negatives and no teacher. Loss: ``invariance_weight * s + variance_weight * v + covariance_weight * c``
    of :func:`pc3d.losses.vicreg`. From the paper: the weights 25, 25 and 1, and the projector of three layers of 8,192.
    Ours: views of clouds, and AdamW with Point-MAE's schedule instead of LARS (learning rate 0.2 per 256 images, weight
    decay 1e-6, batches of 2,048).

    Args:
        encoder: any encoder of objects.
        projector: hidden and output widths of the projector.
        invariance_weight: the paper's lambda.
        variance_weight: the paper's mu.
        covariance_weight: the paper's nu.
        view: how both views are made.
        optimisation: optimiser (AdamW by default) and its schedule.
        seed: of views and stochastic depth.
    """

    def __init__(
        self,
        encoder: ObjectEncoder,
        projector: Sequence[int] = (8192, 8192, 8192),
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        view: ViewAugmentation = VIEW,
        optimisation: Optimisation = PUBLISHED,
        seed: int = 0,
    ) -> None:
        head = ProjectionHead((encoder.embed_dim, *projector), last_bias=False)
        super().__init__(encoder, head, view, optimisation, seed)
        self.weights = (invariance_weight, variance_weight, covariance_weight)

    def losses(self, features: list[Tensor], views: list[Tensor]) -> dict[str, Tensor]:
        """The weighted sum, and its three unweighted terms."""
        terms = vicreg(*self.projections(features))
        weighted = [weight * term for weight, term in zip(self.weights, terms, strict=True)]
        return {"loss": weighted[0] + weighted[1] + weighted[2], **terms._asdict()}
