"""Downstream training with labels: one file per task, each a ``LightningModule`` around any encoder of pc3d."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pc3d._extras import require
from pc3d.data.normals import estimate_normals
from pc3d.tasks.blocks import Block, scene_blocks
from pc3d.tasks.fine_tuning import FineTuning
from pc3d.tasks.initial_encoder import start_from
from pc3d.tasks.initial_weights import InitialWeights, take_weights
from pc3d.tasks.language import LanguageGuidance
from pc3d.tasks.open_vocabulary import joint_teacher, open_vocabulary_segmenter
from pc3d.tasks.optimisation import SegmentationOptimisation
from pc3d.tasks.part_inference import PartLabels, evaluate_parts, judge_parts, segment_object
from pc3d.tasks.programs import Program, export_program, save_program
from pc3d.tasks.scene_checks import check_bounds, is_too_large, unit_notes
from pc3d.tasks.scene_inference import (
    SceneLabels,
    evaluate_scenes,
    segment_scene,
    with_fields,
)
from pc3d.tasks.segmenter import SceneSegmenter, load_segmenter
from pc3d.tasks.selection import EpochScore, EpochSelection
from pc3d.tasks.trained_objects import load_classifier, load_part_segmenter

if TYPE_CHECKING:
    from pc3d.tasks.classification import Classification
    from pc3d.tasks.object_task import ObjectTask
    from pc3d.tasks.part_segmentation import PartSegmentation
    from pc3d.tasks.segmentation import SemanticSegmentation, segmentation_loss

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
    "Program",
    "SceneLabels",
    "SceneSegmenter",
    "SegmentationOptimisation",
    "SemanticSegmentation",
    "check_bounds",
    "estimate_normals",
    "evaluate_parts",
    "evaluate_scenes",
    "export_program",
    "is_too_large",
    "joint_teacher",
    "judge_parts",
    "load_classifier",
    "load_part_segmenter",
    "load_segmenter",
    "open_vocabulary_segmenter",
    "save_program",
    "scene_blocks",
    "segment_object",
    "segment_scene",
    "segmentation_loss",
    "start_from",
    "take_weights",
    "unit_notes",
    "with_fields",
]

# Training needs Lightning, an extra that takes seconds to import; predicting with a trained model does not.
_TRAINING = {
    "Classification": "classification",
    "ObjectTask": "object_task",
    "PartSegmentation": "part_segmentation",
    "SemanticSegmentation": "segmentation",
    "segmentation_loss": "segmentation",
}


def __getattr__(name: str) -> Any:
    if name not in _TRAINING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require("pytorch_lightning", extra="train", purpose="downstream training")
    return getattr(import_module(f"pc3d.tasks.{_TRAINING[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
