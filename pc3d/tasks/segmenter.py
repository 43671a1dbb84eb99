"""A backbone and a head that name the class of every point, as one network and as one folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from pc3d.data.types import PointBatch
from pc3d.models import DistilledEncoder, UpcastFeatures, load_encoder
from pc3d.nn import LanguageHead, TextHead
from pc3d.nn.heads import SegmentationHead
from pc3d.tasks.model_folder import does_not_fit, head_config, head_weights, save_model

HeadKind = Literal["mlp", "linear", "language"]
_TEXT_HEADS: dict[str, type[LanguageHead] | type[TextHead]] = {"language": LanguageHead, "text": TextHead}


class SceneSegmenter(nn.Module):
    """Class scores for every point of a batch.

    Args:
        backbone: has ``point_features(batch) -> (sum N, feature_dim)`` and ``feature_dim``.
        classes: names of the K classes.
        head: ``"mlp"``: linear, batch norm, ReLU, linear, as Swin3D; ``"linear"``: one linear layer; or one that knows
            the texts of the classes, :class:`pc3d.nn.LanguageHead` or :class:`pc3d.nn.TextHead`.

    Raises:
        TypeError: the backbone gives no features of points.
        ValueError: no classes, or an unknown head.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classes: Sequence[str],
        head: Literal["mlp", "linear"] | LanguageHead | TextHead = "mlp",
    ) -> None:
        super().__init__()
        if not hasattr(backbone, "point_features") or not hasattr(backbone, "feature_dim"):
            raise TypeError(
                f"backbone must have point_features(batch) and feature_dim, as Swin3D and SparseUNet have; "
                f"{type(backbone).__name__} has not"
            )
        if len(classes) < 1:
            raise ValueError("classes is empty: name at least one class")
        if isinstance(head, str) and head not in ("mlp", "linear"):
            raise ValueError(f"head must be 'mlp', 'linear', or a LanguageHead or TextHead, got {head!r}")
        self.classes = tuple(classes)
        width = int(backbone.feature_dim)  # type: ignore[arg-type]  # nn.Module's attributes have no types
        self.backbone = backbone
        self.head: nn.Module = (
            (SegmentationHead(width, len(classes)) if head == "mlp" else nn.Linear(width, len(classes)))
            if isinstance(head, str)
            else head
        )

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of a cloud besides ``xyz`` that the backbone reads: ``"rgb"``, ``"normal"``."""
        signals = str(getattr(self.backbone, "signals", "xyz"))
        return tuple(name for name in ("rgb", "normal") if name in signals.split("_"))

    @property
    def voxel_size(self) -> float | None:
        """Edge of the backbone's finest voxels in metres; None where it has none."""
        size = getattr(self.backbone, "voxel_size", None)
        return None if size is None else float(size)

    def forward(self, batch: PointBatch) -> Tensor:
        """Logits ``(sum N, K)``."""
        return self.with_scores(batch)[0]

    def with_scores(self, batch: PointBatch) -> tuple[Tensor, Tensor | None]:
        """Logits ``(sum N, K)``, and those of the auxiliary loss of a :class:`pc3d.nn.LanguageHead`, else None."""
        features = self.backbone.point_features(batch)  # type: ignore[operator]  # checked at construction
        if isinstance(self.head, LanguageHead):
            logits, scores = self.head(features, batch.xyz, batch.offsets)
            return logits, scores
        return self.head(features), None

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``head/`` and ``encoder/`` into a folder; :func:`load_segmenter` reads both, ``load_encoder`` the last.

        Raises:
            TypeError: the backbone is none that ``load_encoder`` could build again.
        """
        config: dict[str, Any] = {"classes": self.classes, "head": "mlp"}
        if isinstance(self.head, LanguageHead | TextHead):
            kind = next(name for name, known in _TEXT_HEADS.items() if isinstance(self.head, known))
            config = {**config, "head": kind, "options": self.head.options}
        elif isinstance(self.head, nn.Linear):
            config["head"] = "linear"
        return save_model(folder, self.backbone, self.head.state_dict(), config)


def load_segmenter(folder: str | os.PathLike[str]) -> SceneSegmenter:
    """Load what :meth:`SceneSegmenter.save` or ``pc3d segment train`` wrote, in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: the folder holds no segmenter, or the run in it has not finished.
        ValueError: the files do not fit one another.
    """
    config = head_config(folder, "segment", "segmentation model")
    backbone, head = load_encoder(Path(folder) / "encoder"), config["head"]
    if head in _TEXT_HEADS:
        width = int(cast(Any, backbone).feature_dim)
        head = _TEXT_HEADS[head](width, len(config["classes"]), **config["options"])
    segmenter = SceneSegmenter(backbone, config["classes"], head)
    try:
        segmenter.head.load_state_dict(head_weights(folder))
    except RuntimeError as error:
        raise does_not_fit(folder, error) from error
    return segmenter.eval()


@dataclass(frozen=True)
class InitialWeights:
    """What :func:`take_weights` did; all are names of tensors.

    Attributes:
        source: where the weights are from.
        taken: copied into the backbone.
        skipped: left out because ``skip`` names them.
        other_shape: left out because the backbone's has another shape.
        unknown: the backbone has no tensor of that name.
        fresh: of the backbone, left at their initial values.
    """

    source: str
    taken: tuple[str, ...]
    skipped: tuple[str, ...]
    other_shape: tuple[str, ...]
    unknown: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        def some(names: tuple[str, ...]) -> str:
            more = ", ..." if len(names) > 4 else ""
            return f" ({', '.join(names[:4])}{more})" if names else ""

        return (
            f"weights of {self.source}: {len(self.taken)} tensors taken, {len(self.skipped)} skipped as asked, "
            f"{len(self.other_shape)} of another shape{some(self.other_shape)}, {len(self.unknown)} that this backbone "
            f"does not have{some(self.unknown)}; {len(self.fresh)} of the backbone left at their initial values"
            f"{some(self.fresh)}"
        )


@torch.no_grad()
def take_weights(backbone: nn.Module, encoder: str | os.PathLike[str], skip: Sequence[str] = ()) -> InitialWeights:
    """Start a backbone from an exported encoder, tensor by tensor where name and shape agree.

    The encoder may have been built with other arguments or lack a decoder; of a distilled one the projection into the
    teacher's space is left out. A backbone of :class:`UpcastFeatures` is the encoder inside. Swin3D is fine-tuned with
    ``skip=("upsamples",)`` and, on ScanNet, also without its stem (released code): see the report for what that leaves.

    Args:
        backbone: changed in place.
        encoder: folder or Hub id, as for :func:`pc3d.load_encoder`.
        skip: leave out tensors whose name contains one of these.

    Raises:
        ValueError: not a single tensor fits, or an entry of ``skip`` names nothing.
    """
    loaded = load_encoder(encoder)
    given = (loaded.encoder if isinstance(loaded, DistilledEncoder | UpcastFeatures) else loaded).state_dict()
    own = (backbone.encoder if isinstance(backbone, UpcastFeatures) else backbone).state_dict()
    idle = [part for part in skip if not any(part in name for name in given)]
    if idle:
        raise ValueError(
            f"skip: no tensor of {encoder} has {idle[0]!r} in its name; there are {', '.join(given)[:400]}"
        )
    skipped = tuple(name for name in given if any(part in name for part in skip))
    rest = [name for name in given if name not in skipped]
    unknown = tuple(name for name in rest if name not in own)
    other_shape = tuple(name for name in rest if name in own and own[name].shape != given[name].shape)
    taken = tuple(name for name in rest if name in own and own[name].shape == given[name].shape)
    if not taken:
        raise ValueError(
            f"encoder: no tensor of {encoder} fits the backbone {type(backbone).__name__} in name and shape: "
            "give an encoder of the same class"
        )
    for name in taken:
        own[name].copy_(given[name])
    fresh = tuple(name for name in own if name not in taken)
    return InitialWeights(str(encoder), taken, skipped, other_shape, unknown, fresh)
