"""OpenShape: contrast of shapes with frozen features of their texts and pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pc3d.data.aligned import Targets, targets_of
from pc3d.data.loader import PointLoader
from pc3d.data.types import PointBatch
from pc3d.image.loading import tower_name
from pc3d.losses import Alignment, negatives_to_keep, shape_contrast
from pc3d.methods.method import Method
from pc3d.methods.mining import Mining, embed_all, group_numbers, nearest
from pc3d.models import AlignedShapeEncoder, OpenShapePointBERT, load_encoder
from pc3d.nn import gather_rows, share_of_batch, weight_decay_groups
from pc3d.nn.optim import ADAMW_BETAS, OptimizerFactory, build_optimizer, check_optimizer

LossFactor = Literal["code", "paper"]


@dataclass(frozen=True)
class StepDecay:
    """Optimiser (AdamW by default) with a rate that decays in steps, without warm-up (OpenShape's released settings).

    Attributes:
        learning_rate: the first one; published: 5e-4 for the 32 M transformer, 4e-4 for the 72 M one, 1e-3 for others.
        decay: factor of each step; published: 0.967 for transformers, 0.95 for sparse convolutions.
        decay_steps: iterations between steps.
        weight_decay: of the optimiser.
        decay_everything: also decay biases, norms, the class token and the logit scale, as the released code does.
        betas: of AdamW.
        optimizer: another optimiser than AdamW, by its class, with the same groups and schedule.

    Raises:
        ValueError: ``decay_steps`` below 1.
    """

    learning_rate: float = 5e-4
    decay: float = 0.967
    decay_steps: int = 10_000
    weight_decay: float = 0.01
    decay_everything: bool = True
    betas: tuple[float, float] = ADAMW_BETAS
    optimizer: OptimizerFactory | None = None

    def __post_init__(self) -> None:
        if self.decay_steps < 1:
            raise ValueError(f"decay_steps must be at least 1, got {self.decay_steps}")
        check_optimizer(self.optimizer, self.betas, self.weight_decay)

    def build(self, module: nn.Module) -> dict[str, Any]:
        """Optimiser and scheduler in the form that Lightning expects from ``configure_optimizers``."""
        groups = (
            [{"params": [p for p in module.parameters() if p.requires_grad], "weight_decay": self.weight_decay}]
            if self.decay_everything
            else weight_decay_groups(module, self.weight_decay, ())
        )
        optimizer = build_optimizer(groups, self.learning_rate, self.optimizer, self.betas)

        def factor(step: int) -> float:
            return float(self.decay ** (step // self.decay_steps))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


PUBLISHED = StepDecay()


class Side(NamedTuple):
    """Targets of one kind in the global batch: features ``(M, D)``, and index ``(M,)`` of the shape of each."""

    features: Tensor
    owner: Tensor


class OpenShape(Method):
    """OpenShape (Liu et al., NeurIPS 2023, arXiv 2305.10764): a 3D encoder in the space of a frozen 2D model.

    Shapes are contrasted with features of their texts and with features of their pictures, both computed beforehand
    (:func:`pc3d.losses.shape_contrast`). A shape without text, or without picture, is used only in the other pairing.

    The ``multi_positive`` loss, with several texts and pictures as positives of a shape, is the same loss on more
    targets: :class:`pc3d.data.ChooseTargets` with ``num_texts`` or ``num_images`` above 1 (ours; the paper has one of
    each). The targets of a shape share its weight, and each of them has to find the shape.

    With mining, batches are made of similar shapes, which the encoder itself finds in an extra pass over the training
    set (with the ``eval_transforms`` of the data module). Pairs that are probably of one kind are not used as
    negatives. The similarity of a picture to the text of another shape is defined only in a shared space; with two
    spaces, texts are compared with texts (ours).

    There is an option wherever the released code and the paper differ, or do what one may not want. The defaults follow
    the code, with which the released weights were trained, except for masked pairs, which are removed as in the paper.

    Args:
        encoder: any with ``encode(xyz)`` and ``embed_dim``. By default the published transformer in the mirrored frame
            of the released code. A given encoder has the frame of its own ``axes``, by default ``"z_up"``.
        text_dim: width of the text features; by default the encoder's ``embed_dim``, as published.
        image_dim: width of the picture features, likewise. See :class:`pc3d.models.AlignedShapeEncoder` for other
            widths.
        project_targets: learn linear maps g_T and g_I of the frozen features, which the paper describes and the
            released configuration does not use.
        text_weight: of the pairing with texts; 0 leaves it out.
        image_weight: of the pairing with pictures; 0 leaves it out.
        loss_factor: ``"code"`` averages the two directions of a pairing, ``"paper"`` halves that once more.
        initial_logit_scale: of the cosines, learned.
        mining: batches of similar shapes; None for random batches.
        start_from: folder of a run or an encoder to start from, such as that of the first stage before mining. From an
            aligned encoder, heads and logit scale are loaded, too; any other is used as the encoder.
        text_space: name of the text tower (``open_clip:ViT-bigG-14/laion2b_s39b_b160k``), stored with the encoder so
            that ``pc3d zeroshot`` and ``pc3d search`` can open it. Features of another tower are refused. With two
            spaces, name both or none: the one without a name counts as not trained.
        image_space: name of the image tower, likewise.
        optimisation: optimiser (AdamW by default) and its steps.
        seed: of all draws within the encoder (dropout, first centres).

    Raises:
        ValueError: weights that are negative or both 0, or widths or towers that are not those of ``start_from``.
    """

    def __init__(
        self,
        encoder: nn.Module | None = None,
        text_dim: int | None = None,
        image_dim: int | None = None,
        project_targets: bool = False,
        text_weight: float = 1.0,
        image_weight: float = 1.0,
        loss_factor: LossFactor = "code",
        initial_logit_scale: float = 14.28,
        mining: Mining | None = None,
        start_from: str | None = None,
        text_space: str = "",
        image_space: str = "",
        optimisation: StepDecay = PUBLISHED,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if min(text_weight, image_weight) < 0 or text_weight == image_weight == 0:
            raise ValueError(
                f"text_weight and image_weight must not be negative nor both 0, got {text_weight} and {image_weight}"
            )
        if loss_factor not in ("code", "paper"):
            raise ValueError(f"loss_factor must be 'code' or 'paper', got {loss_factor!r}")
        if encoder is not None and start_from is not None:
            raise ValueError("give encoder or start_from, not both: start_from brings an encoder of its own")
        self.weights = {"text": text_weight, "image": image_weight}
        self.loss_factor, self.mining, self.optimisation = loss_factor, mining, optimisation
        start = None if start_from is None else load_encoder(start_from)
        if isinstance(start, AlignedShapeEncoder):
            _check_same(start, text_dim, image_dim, project_targets, text_space, image_space)
            start.name_spaces(text_space, image_space)
            self.model = start.train()
        else:
            inner = start or encoder or OpenShapePointBERT(axes="mirrored")
            self.model = AlignedShapeEncoder(
                inner, text_dim, image_dim, project_targets, logit_scale=initial_logit_scale
            ).train()
            # The output of a separate head that is not trained is not in the space of a tower.
            trained = {kind: weight > 0 or self.model.shared for kind, weight in self.weights.items()}
            self.model.name_spaces(text_space if trained["text"] else "", image_space if trained["image"] else "")
        # With several processes, parameters without gradients would block the training: freeze unused modules.
        for kind, modules in self._sides().items():
            if self.weights[kind] == 0:
                for module in modules:
                    module.requires_grad_(False)
        self._neighbors: Tensor | None = None

    def _sides(self) -> dict[str, tuple[nn.Module, nn.Module]]:
        model = self.model
        return {
            "text": (model.text_head, model.text_projection),
            "image": (model.image_head, model.image_projection),
        }

    @property
    def encoder(self) -> AlignedShapeEncoder:
        """The encoder of shapes with its heads and its logit scale."""
        return self.model

    def training_step(self, batch: PointBatch, batch_idx: int) -> Tensor:
        """One step on clouds of equal length with targets."""
        return self._step(batch, self.current_epoch, batch_idx, "train")

    def validation_step(self, batch: PointBatch, batch_idx: int) -> Tensor:
        """The training loss in evaluation mode, with the targets of the batch."""
        return self._step(batch, 0, batch_idx, "validation")

    def _step(self, batch: PointBatch, epoch: int, batch_idx: int, stage: str) -> Tensor:
        with self.default_draws(epoch, batch_idx, batch.xyz.device):
            embedding = self.embed(batch)
        sides = self.sides(batch)
        mined = stage == "train" and self.mining is not None and self.mining.is_on(epoch)
        keep = self.fair_negatives(sides, len(batch)) if mined else None
        found = self.losses(gather_rows(embedding), sides, keep)
        factor = 0.5 if self.loss_factor == "paper" else 1.0
        loss = factor * torch.stack([self.weights[kind] * one.loss for kind, one in found.items()]).sum()
        self._log(stage, loss, found, len(batch))
        return loss

    def embed(self, batch: PointBatch) -> Tensor:
        """The encoder's embeddings ``(B, embed_dim)`` of the clouds of a batch."""
        embedding: Tensor = self.model(batch.dense(), None if batch.rgb is None else batch.dense("rgb"))
        return embedding

    def sides(self, batch: PointBatch) -> dict[str, Side]:
        """The frozen targets of the global batch, of each kind whose weight is not 0.

        Raises:
            ValueError: features of another width, or of another tower than the encoder is aligned with.
        """
        targets, device = targets_of(batch), batch.xyz.device
        start, _ = share_of_batch(len(batch), device)
        read: dict[str, tuple[Callable[[Targets], tuple[Tensor, str]], int, str]] = {
            "text": (lambda one: (one.text_features, one.text_tower), self.model.text_dim, self.model.text_space),
            "image": (lambda one: (one.image_features, one.image_tower), self.model.image_dim, self.model.image_space),
        }
        result = {}
        for kind in [kind for kind, weight in self.weights.items() if weight > 0]:
            pick, width, space = read[kind]
            found = [pick(one) for one in targets]
            rows = [features for features, _ in found]
            _check_towers({tower for features, tower in found if len(features)}, kind, space)
            counts = torch.tensor([len(one) for one in rows])
            own = torch.cat([_checked(one, kind, width) for one in rows]).to(device)
            owner = torch.repeat_interleave(torch.arange(len(rows)), counts).to(device) + start
            result[kind] = Side(gather_rows(own), gather_rows(owner[:, None])[:, 0])
        return result

    def losses(self, embedding: Tensor, sides: dict[str, Side], keep: Tensor | None) -> dict[str, Alignment]:
        """The pairings of the global batch; every process computes all of them.

        The mean of the gradients over processes is then the gradient of the global batch, because the backward pass of
        gathering sums the gradients with respect to the rows of a process over all processes.

        Args:
            embedding: ``(global B, embed_dim)``.
            sides: from :meth:`sides`.
            keep: ``(global B, global B)`` bool or None (:func:`pc3d.losses.shape_contrast`).
        """
        model = self.model
        carried = {
            "text": (model.in_text_space, model.text_targets),
            "image": (model.in_image_space, model.image_targets),
        }
        dropped = "remove" if self.mining is None else self.mining.dropped
        result = {}
        for kind, side in sides.items():
            of_shapes, of_targets = carried[kind]
            result[kind] = shape_contrast(
                of_shapes(embedding),
                of_targets(side.features),
                side.owner,
                model.logit_scale,
                keep=keep,
                dropped=dropped,
            )
        return result

    @torch.no_grad()
    def fair_negatives(self, sides: dict[str, Side], batch_size: int) -> Tensor:
        """Which shapes of a mined global batch are negatives of each other, computed from the frozen features."""
        assert self.mining is not None
        device = next(iter(sides.values())).features.device
        group = group_numbers(batch_size, self.mining.group_size, device)
        means = {kind: _mean_target(side, len(group)) for kind, side in sides.items()}
        text = means.get("text", next(iter(means.values())))
        image = means.get("image", text) if self.model.shared else text
        return negatives_to_keep(image @ text.T, group, self.mining.threshold)

    def _log(self, stage: str, loss: Tensor, found: dict[str, Alignment], batch_size: int) -> None:
        values: dict[str, Tensor] = {"loss": loss, "logit_scale": self.model.logit_scale}
        for kind, one in found.items():
            values[f"{kind}_loss"] = one.loss
            if one.num_shapes:
                values[f"{kind}_accuracy"] = one.accuracy
        for name, value in values.items():
            self.log(
                f"{stage}/{name}",
                value.detach(),
                on_step=stage == "train",
                on_epoch=True,
                prog_bar=name != "logit_scale",
                sync_dist=True,
                batch_size=batch_size,
            )

    # ---- mining ------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Check that the data can be mined; after a resume within an epoch, continue with its neighbours."""
        if self.mining is None:
            return
        loader = self._loader()
        self.mining.check(loader.sampler.num_samples, loader.batch_size)
        if self._neighbors is not None and self.mining.is_on(self.current_epoch):
            loader.sampler.group_neighbors(self._neighbors, self.mining.group_size)

    def on_train_epoch_start(self) -> None:
        """Log the learning rate; compute neighbours if they are due, and build batches from them."""
        super().on_train_epoch_start()
        if self.mining is None or not self.mining.is_on(self.current_epoch):
            return
        if self._neighbors is None or self.mining.is_due(self.current_epoch):
            self._neighbors = self.find_neighbors()
        self._loader().sampler.group_neighbors(self._neighbors, self.mining.group_size)

    def find_neighbors(self) -> Tensor:
        """The nearest training shapes of each training shape, by the current encoder; ``(N, k)`` int32."""
        assert self.mining is not None
        data = cast(Any, self.trainer).datamodule
        with torch.autocast(self.device.type, enabled=False):
            vectors = embed_all(
                self.model,
                self.embed,
                data.train,
                data.eval_transform,
                batch_size=self.mining.batch_size,
                num_workers=data.num_workers,
                seed=self.seed,
                device=self.device,
            )
        return nearest(vectors, self.mining.num_neighbors)

    def _loader(self) -> PointLoader:
        loader = self.trainer.train_dataloader
        if not isinstance(loader, PointLoader):
            raise TypeError(
                f"mining draws batches from the whole set, as PointDataModule makes them, got a {type(loader).__name__}"
                ": read shards on a disk with AlignedShards, or leave mining out"
            )
        return loader

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the neighbours: those of the start of an epoch cannot be computed again within it."""
        if self._neighbors is not None:
            checkpoint["neighbors"] = self._neighbors

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the neighbours."""
        self._neighbors = checkpoint.get("neighbors")

    def configure_optimizers(self) -> Any:
        """The optimiser with a learning rate that falls in steps."""
        return self.optimisation.build(self)


def _check_same(
    start: AlignedShapeEncoder, text_dim: int | None, image_dim: int | None, project: bool, text: str, image: str
) -> None:
    wanted: dict[str, Any] = {"text_dim": text_dim, "image_dim": image_dim, "project_targets": project or None}
    # Towers of equal width may have different spaces. An encoder without the name of its space gets the given name.
    for name, space in (("text_space", text), ("image_space", image)):
        wanted[name] = space if space and start.config[name] else None
    for name, value in wanted.items():
        if value is not None and start.config[name] != value:
            raise ValueError(f"start_from holds an encoder with {name}={start.config[name]}, got {name}={value}")


def _checked(rows: Tensor, kind: str, width: int) -> Tensor:
    if len(rows) == 0:
        return torch.zeros(0, width)
    if rows.shape[1] != width:
        raise ValueError(
            f"{kind} features of the data have {rows.shape[1]} dimensions, the method was built with {kind}_dim={width}"
        )
    return rows.float()


def _check_towers(found: set[str], kind: str, space: str) -> None:
    """Check that features come from the right tower: another tower of the same width has another space."""
    named = sorted(found - {""})
    if space and named and named not in ([space], [tower_name(space)]):
        raise ValueError(
            f"{kind} features of the data are of {', '.join(named)}, the method aligns with {kind}_space={space}: "
            f"compute them with {space}, or name the tower that made them, --model.{kind}_space {named[0]}"
        )
    if len(named) > 1:
        raise ValueError(
            f"{kind} features of one batch are of several towers, which share no space: {', '.join(named)}"
        )


def _mean_target(side: Side, num_shapes: int) -> Tensor:
    """The normalised mean ``(num_shapes, D)`` of the unit targets of each shape; NaN for shapes without targets."""
    unit = F.normalize(side.features.float(), dim=1)
    total = unit.new_zeros(num_shapes, unit.shape[1]).index_add(0, side.owner, unit)
    count = torch.bincount(side.owner, minlength=num_shapes)
    return F.normalize(total, dim=1).masked_fill((count == 0)[:, None], float("nan"))
