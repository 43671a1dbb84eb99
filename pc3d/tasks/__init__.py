"""Downstream training: a file per task, each a ``LightningModule`` around any encoder of the package."""

from pc3d._extras import require

require("pytorch_lightning", extra="train", purpose="downstream training")

from pc3d.tasks.optimisation import SegmentationOptimisation  # noqa: E402
from pc3d.tasks.scene_inference import (  # noqa: E402
    Block,
    SceneLabels,
    estimate_normals,
    evaluate_scenes,
    scene_blocks,
    segment_scene,
    with_fields,
)
from pc3d.tasks.segmentation import SemanticSegmentation, segmentation_loss  # noqa: E402
from pc3d.tasks.segmenter import InitialWeights, SceneSegmenter, load_segmenter, take_weights  # noqa: E402

__all__ = [
    "Block",
    "InitialWeights",
    "SceneLabels",
    "SceneSegmenter",
    "SegmentationOptimisation",
    "SemanticSegmentation",
    "estimate_normals",
    "evaluate_scenes",
    "load_segmenter",
    "scene_blocks",
    "segment_scene",
    "segmentation_loss",
    "take_weights",
    "with_fields",
]
