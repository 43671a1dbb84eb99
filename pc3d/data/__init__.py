"""Samples, batches, readers, transforms and data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pc3d.data.aligned import AlignedSet, ChooseTargets, Ensemble, Targets, TurnSlightly, targets_of
from pc3d.data.aligned_files import AlignedShards, OpenShapeFiles, write_index, write_shard
from pc3d.data.arrays import ArrayDataset
from pc3d.data.chat import ChatEndpoint, EndpointCaptioner
from pc3d.data.color_transforms import (
    ChromaticAutoContrast,
    ChromaticJitter,
    ChromaticTranslation,
    RandomColorDrop,
)
from pc3d.data.corruptions import CORRUPTIONS, MODELNET_C, SEVERITIES, Corrupt, Corruption
from pc3d.data.dataset import (
    BadFileError,
    MissingDataError,
    PointDataset,
    Selection,
    SkippedFile,
    parts_of_categories,
    split_train_validation,
    validation_mask,
)
from pc3d.data.enrichment import NearestTexts, enriched
from pc3d.data.fewshot import (
    FewShotEpisode,
    FewShotFile,
    FewShotFiles,
    FewShotSplit,
    few_shot_episodes,
    load_few_shot_pickle,
)
from pc3d.data.files import FileDataset, FolderDataset
from pc3d.data.frames import Frame, FrameFolder
from pc3d.data.lifted import LiftedSet
from pc3d.data.limited_labels import LimitedLabels
from pc3d.data.loader import EpochSampler, PointLoader, sample_generator
from pc3d.data.mixing import SceneCollate, mix3d
from pc3d.data.modelnet import ModelNetC, ModelNetCache, ModelNetHDF5, ModelNetMeshes, ModelNetResampled
from pc3d.data.objects import Household, ObjectSet
from pc3d.data.openshape_tests import OpenShapeTests
from pc3d.data.pickles import load_array_pickle
from pc3d.data.points import read_points, read_scene
from pc3d.data.scanned_rooms import Rooms
from pc3d.data.scanobjectnn import SCANOBJECTNN_CLASSES, ScanObjectNN
from pc3d.data.scene_benchmarks import S3DIS, ScanNet, Structured3D
from pc3d.data.scene_labels import S3DIS_CLASSES, SCANNET20, SCANNET200, SCANNET200_GROUPS, STRUCTURED3D_CLASSES
from pc3d.data.scene_transforms import (
    CenterShift,
    ElasticDistortion,
    GridSample,
    RandomDropout,
    RandomFlip,
    RandomRotate,
    Rotate,
    SphereCrop,
)
from pc3d.data.scenes import SceneFolder
from pc3d.data.sens import SensFile, open_frames
from pc3d.data.shapenet import SHAPENET55, SHAPENET_PARTS, ShapeNet55, ShapeNetPart, ShapeNetSTRL
from pc3d.data.text_quality import LanguageModelJudge, by_rules, filter_texts, text_picture_cosines
from pc3d.data.transforms import (
    Compose,
    FarthestPointSample,
    FirstPoints,
    IsotropicScaleShift,
    Jitter,
    KeepFields,
    Normalize,
    RandomPointDropout,
    RandomSubsample,
    RotateVertical,
    ScaleTranslate,
    Transform,
    TurnUp,
)
from pc3d.data.types import PointBatch, PointCloud, collate
from pc3d.data.view_pairs import ViewPairs
from pc3d.data.voting import fragments, voting_views

if TYPE_CHECKING:
    from pc3d.data.aligned_stream import AlignedStream
    from pc3d.data.module import PointDataModule
    from pc3d.data.object_module import ObjectDataModule
    from pc3d.data.scene_module import SceneDataModule

__all__ = [
    "CORRUPTIONS",
    "MODELNET_C",
    "S3DIS",
    "S3DIS_CLASSES",
    "SCANNET20",
    "SCANNET200",
    "SCANNET200_GROUPS",
    "SCANOBJECTNN_CLASSES",
    "SEVERITIES",
    "SHAPENET55",
    "SHAPENET_PARTS",
    "STRUCTURED3D_CLASSES",
    "AlignedSet",
    "AlignedShards",
    "AlignedStream",
    "ArrayDataset",
    "BadFileError",
    "CenterShift",
    "ChatEndpoint",
    "ChooseTargets",
    "ChromaticAutoContrast",
    "ChromaticJitter",
    "ChromaticTranslation",
    "Compose",
    "Corrupt",
    "Corruption",
    "ElasticDistortion",
    "EndpointCaptioner",
    "Ensemble",
    "EpochSampler",
    "FarthestPointSample",
    "FewShotEpisode",
    "FewShotFile",
    "FewShotFiles",
    "FewShotSplit",
    "FileDataset",
    "FirstPoints",
    "FolderDataset",
    "Frame",
    "FrameFolder",
    "GridSample",
    "Household",
    "IsotropicScaleShift",
    "Jitter",
    "KeepFields",
    "LanguageModelJudge",
    "LiftedSet",
    "LimitedLabels",
    "MissingDataError",
    "ModelNetC",
    "ModelNetCache",
    "ModelNetHDF5",
    "ModelNetMeshes",
    "ModelNetResampled",
    "NearestTexts",
    "Normalize",
    "ObjectDataModule",
    "ObjectSet",
    "OpenShapeFiles",
    "OpenShapeTests",
    "PointBatch",
    "PointCloud",
    "PointDataModule",
    "PointDataset",
    "PointLoader",
    "RandomColorDrop",
    "RandomDropout",
    "RandomFlip",
    "RandomPointDropout",
    "RandomRotate",
    "RandomSubsample",
    "Rooms",
    "Rotate",
    "RotateVertical",
    "ScaleTranslate",
    "ScanNet",
    "ScanObjectNN",
    "SceneCollate",
    "SceneDataModule",
    "SceneFolder",
    "Selection",
    "SensFile",
    "ShapeNet55",
    "ShapeNetPart",
    "ShapeNetSTRL",
    "SkippedFile",
    "SphereCrop",
    "Structured3D",
    "Targets",
    "Transform",
    "TurnSlightly",
    "TurnUp",
    "ViewPairs",
    "by_rules",
    "collate",
    "enriched",
    "few_shot_episodes",
    "filter_texts",
    "fragments",
    "load_array_pickle",
    "load_few_shot_pickle",
    "mix3d",
    "open_frames",
    "parts_of_categories",
    "read_points",
    "read_scene",
    "sample_generator",
    "split_train_validation",
    "targets_of",
    "text_picture_cosines",
    "validation_mask",
    "voting_views",
    "write_index",
    "write_shard",
]


def __getattr__(name: str) -> Any:
    # The data modules need Lightning, which is an extra: imported only when asked for.
    if name == "AlignedStream":
        from pc3d.data.aligned_stream import AlignedStream

        return AlignedStream
    if name == "PointDataModule":
        from pc3d.data.module import PointDataModule

        return PointDataModule
    if name == "ObjectDataModule":
        from pc3d.data.object_module import ObjectDataModule

        return ObjectDataModule
    if name == "SceneDataModule":
        from pc3d.data.scene_module import SceneDataModule

        return SceneDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
