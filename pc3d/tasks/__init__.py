"""Downstream training with labels: one file per task, each a ``LightningModule`` around any encoder of pc3d."""

from pc3d._extras import require

require("pytorch_lightning", extra="train", purpose="downstream training")

from pc3d.data.normals import estimate_normals  # noqa: E402
from pc3d.tasks.blocks import Block, scene_blocks  # noqa: E402
from pc3d.tasks.classification import Classification, load_classifier  # noqa: E402
from pc3d.tasks.fine_tuning import FineTuning  # noqa: E402
from pc3d.tasks.initial_encoder import start_from  # noqa: E402
from pc3d.tasks.initial_weights import InitialWeights, take_weights  # noqa: E402
from pc3d.tasks.language import LanguageGuidance  # noqa: E402
from pc3d.tasks.object_task import ObjectTask  # noqa: E402
from pc3d.tasks.open_vocabulary import joint_teacher, open_vocabulary_segmenter  # noqa: E402
from pc3d.tasks.optimisation import SegmentationOptimisation  # noqa: E402
from pc3d.tasks.part_inference import PartLabels, evaluate_parts, judge_parts, segment_object  # noqa: E402
from pc3d.tasks.part_segmentation import PartSegmentation, load_part_segmenter  # noqa: E402
from pc3d.tasks.scene_checks import check_bounds, is_too_large, unit_notes  # noqa: E402
from pc3d.tasks.scene_inference import SceneLabels, evaluate_scenes, segment_scene, with_fields  # noqa: E402
from pc3d.tasks.segmentation import SemanticSegmentation, segmentation_loss  # noqa: E402
from pc3d.tasks.segmenter import SceneSegmenter, load_segmenter  # noqa: E402
from pc3d.tasks.selection import EpochScore, EpochSelection  # noqa: E402

__all__ = [
    "Block",
    "Classification",
    "EpochScore",
    "EpochSelection",
    "FineTuning",
    "InitialWeights",
    "LanguageGuidance",
    "ObjectTask",
    "PartLabels",
    "PartSegmentation",
    "SceneLabels",
    "SceneSegmenter",
    "SegmentationOptimisation",
    "SemanticSegmentation",
    "check_bounds",
    "estimate_normals",
    "evaluate_parts",
    "evaluate_scenes",
    "is_too_large",
    "joint_teacher",
    "judge_parts",
    "load_classifier",
    "load_part_segmenter",
    "load_segmenter",
    "open_vocabulary_segmenter",
    "scene_blocks",
    "segment_object",
    "segment_scene",
    "segmentation_loss",
    "start_from",
    "take_weights",
    "unit_notes",
    "with_fields",
]
