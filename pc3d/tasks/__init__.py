"""Downstream training: a file per task, each a ``LightningModule`` around any encoder of the package."""

from pc3d._extras import require

require("pytorch_lightning", extra="train", purpose="downstream training")

from pc3d.tasks.optimisation import SegmentationOptimisation  # noqa: E402
from pc3d.tasks.segmentation import SemanticSegmentation, segmentation_loss  # noqa: E402
from pc3d.tasks.segmenter import InitialWeights, SceneSegmenter, load_segmenter, take_weights  # noqa: E402

__all__ = [
    "InitialWeights",
    "SceneSegmenter",
    "SegmentationOptimisation",
    "SemanticSegmentation",
    "load_segmenter",
    "segmentation_loss",
    "take_weights",
]
