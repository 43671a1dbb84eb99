"""A backbone and a head for semantic segmentation, as one network and as one folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor, nn

from pc3d.data.types import PointBatch
from pc3d.models import load_encoder, scene_backbone
from pc3d.nn import LanguageHead, TextHead
from pc3d.nn.heads import SegmentationHead
from pc3d.tasks.model_folder import does_not_fit, head_config, head_weights, save_model

HeadKind = Literal["mlp", "linear", "language"]
_TEXT_HEADS: dict[str, type[LanguageHead] | type[TextHead]] = {"language": LanguageHead, "text": TextHead}


class SceneSegmenter(nn.Module):
    """A segmentation network: class scores for every point of a batch.

    Args:
        backbone: has ``point_features(batch) -> (sum N, feature_dim)`` and ``feature_dim``; an encoder of objects is
            put into :class:`pc3d.models.BlockFeatures`.
        classes: names of the K classes.
        head: ``"mlp"``: linear, batch norm, ReLU, linear, as in Swin3D; ``"linear"``: one linear layer; or a trained
            :class:`pc3d.nn.SegmentationHead`, such as that of an official checkpoint
            (:func:`pc3d.models.load_official_swin3d`); or a head with the texts of the classes,
            :class:`pc3d.nn.LanguageHead` or :class:`pc3d.nn.TextHead`.

    Raises:
        TypeError: the backbone computes no features of points.
        ValueError: no classes, an unknown head, or a trained one of another number of classes.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classes: Sequence[str],
        head: Literal["mlp", "linear"] | SegmentationHead | LanguageHead | TextHead = "mlp",
    ) -> None:
        super().__init__()
        backbone = scene_backbone(backbone)
        if len(classes) < 1:
            raise ValueError("classes is empty: name at least one class")
        if isinstance(head, str) and head not in ("mlp", "linear"):
            raise ValueError(f"head must be 'mlp', 'linear', or a LanguageHead or TextHead, got {head!r}")
        if isinstance(head, SegmentationHead) and head[-1].out_features != len(classes):
            raise ValueError(f"head is for {head[-1].out_features} classes, got the names of {len(classes)}")
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
        return fields_read(self.backbone)

    @property
    def voxel_size(self) -> float | None:
        """Edge of the backbone's finest voxels in metres; None if it has no voxels."""
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


def fields_read(backbone: nn.Module) -> tuple[str, ...]:
    """The fields of a cloud besides ``xyz`` that a backbone reads: ``"rgb"``, ``"normal"``."""
    signals = str(getattr(backbone, "signals", "xyz"))
    return tuple(name for name in ("rgb", "normal") if name in signals.split("_"))


def load_segmenter(folder: str | os.PathLike[str]) -> SceneSegmenter:
    """Load what :meth:`SceneSegmenter.save` or ``pc3d segment train`` wrote, in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: the folder holds no segmenter, or the run in it has not finished.
        ValueError: the files do not fit one another.
    """
    config = head_config(folder, "segment", "segmentation model")
    if "head" not in config:
        raise FileNotFoundError(
            f"{folder} holds no segmentation model but the model of another task: give the run folder of pc3d segment "
            "train"
        )
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
