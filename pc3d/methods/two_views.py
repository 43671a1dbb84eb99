"""Base class of methods that compare two views: make them, encode them, compare their projections."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from pc3d.data.types import PointBatch
from pc3d.methods.collapse import CollapseWatch
from pc3d.methods.method import PUBLISHED, Method, Optimisation
from pc3d.models import ObjectEncoder
from pc3d.nn import ViewAugmentation, gather_rows

VIEW = ViewAugmentation()


class TwoViews(Method):
    """Base class of methods that make the features of two random views of a cloud agree.

    The methods are :class:`SimCLR`, :class:`MoCoV3`, :class:`VICReg` and :class:`BarlowTwins`, which define how two
    views are compared. They were published for images, whose views are crops with changed colours; the views of clouds
    are ours (:class:`pc3d.nn.ViewAugmentation`). Each view is encoded separately and has its own batch statistics. Rows
    are compared over the global batch: N processes compute what one process would.

    A batch's views are a function of (seed, epoch, batch index, position in the global batch), stochastic depth within
    the encoder of (seed, epoch, batch index, process): nothing of them needs to be stored to resume.

    Args:
        encoder: any encoder of objects.
        projector: maps the encoder's features to what is compared; it is not exported.
        view: how both views are made.
        optimisation: optimiser (AdamW by default) and its schedule.
        seed: of views and stochastic depth.
    """

    def __init__(
        self,
        encoder: ObjectEncoder,
        projector: nn.Module,
        view: ViewAugmentation = VIEW,
        optimisation: Optimisation = PUBLISHED,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        self.backbone, self.projector = encoder, projector
        self.view, self.optimisation = view, optimisation
        self.watch = CollapseWatch()

    @property
    def encoder(self) -> ObjectEncoder:
        """The encoder of both views."""
        return self.backbone

    def training_step(self, batch: PointBatch, batch_idx: int) -> Tensor:
        """One step on clouds of equal length."""
        return self._step(batch, self.current_epoch, batch_idx, "train")

    def validation_step(self, batch: PointBatch, batch_idx: int) -> Tensor:
        """The training loss in evaluation mode, on the same views in every epoch."""
        return self._step(batch, 0, batch_idx, "validation")

    def _step(self, batch: PointBatch, epoch: int, batch_idx: int, stage: str) -> Tensor:
        xyz, draws = batch.dense(), self.draws(batch, epoch, batch_idx)
        views = [self.view(xyz, draws) for _ in range(2)]
        with self.default_draws(epoch, batch_idx, xyz.device):
            features = [self.backbone.encode(view) for view in views]
            losses = self.losses(features, views)
        self.log_step(stage, {**losses, **self.watch(features[0])}, len(batch))
        return losses["loss"]

    @abstractmethod
    def losses(self, features: list[Tensor], views: list[Tensor]) -> dict[str, Tensor]:
        """The scalar ``loss`` to minimise, and further values to log.

        With several processes each value is this process's share: the mean over processes is the global one.

        Args:
            features: ``(B, C)`` of each view.
            views: ``(B, N, 3)``.
        """

    def projections(self, features: list[Tensor]) -> list[Tensor]:
        """The projections of each view, ``(global B, d)``."""
        return [gather_rows(self.projector(rows)) for rows in features]

    def configure_optimizers(self) -> Any:
        """The optimiser with its warm-up and cosine schedule; class tokens are not decayed."""
        return self.optimisation.build(self, self.backbone.undecayed(), self.trainer.max_epochs)
