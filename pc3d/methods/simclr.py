"""SimCLR: identify the view of the same cloud among all other views of the batch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pc3d.losses import nt_xent
from pc3d.methods.method import PUBLISHED, Optimisation
from pc3d.methods.two_views import VIEW, TwoViews
from pc3d.models import ObjectEncoder
from pc3d.nn import ProjectionHead, ViewAugmentation


class SimCLR(TwoViews):
    """SimCLR for clouds: a simple framework for contrastive learning (Chen et al., ICML 2020, arXiv 2002.05709).

    From the paper and its released code: the loss, its temperature 0.1, and the projector with a hidden layer of 2,048
    and an output of 128, both batch-normalised. Ours: views of clouds, and AdamW with Point-MAE's schedule instead of
    LARS (learning rate 0.3 per 256 images, weight decay 1e-6, batches of 4,096). Negatives come only from the batch, so
    its size matters.

    Args:
        encoder: any encoder of objects.
        projector: hidden and output widths of the projector.
        temperature: of the loss.
        view: how both views are made.
        optimisation: optimiser (AdamW by default) and its schedule.
        seed: of views and stochastic depth.
    """

    def __init__(
        self,
        encoder: ObjectEncoder,
        projector: Sequence[int] = (2048, 128),
        temperature: float = 0.1,
        view: ViewAugmentation = VIEW,
        optimisation: Optimisation = PUBLISHED,
        seed: int = 0,
    ) -> None:
        head = ProjectionHead((encoder.embed_dim, *projector), last_norm=True)
        super().__init__(encoder, head, view, optimisation, seed)
        self.temperature = temperature

    def losses(self, features: list[Tensor], views: list[Tensor]) -> dict[str, Tensor]:
        """NT-Xent of the projections."""
        first, second = self.projections(features)
        return {"loss": nt_xent(first, second, self.temperature)}
