"""Whole encoders, the networks around them, and how they are stored."""

from pc3d.models.aligned import AlignedShapeEncoder, as_aligned, is_aligned, points_meant_for
from pc3d.models.attention_map import AttentionMap, attention_map, save_attention_map
from pc3d.models.block_features import BlockFeatures, scene_backbone
from pc3d.models.classifier import PointClassifier, VectorClassifier, classifier_of
from pc3d.models.dgcnn import DGCNN
from pc3d.models.distilled import DistilledEncoder
from pc3d.models.hub import load_encoder, save_encoder
from pc3d.models.masked_autoencoder import Branch, Decoder, MaskedPointModel
from pc3d.models.object_encoder import ObjectEncoder
from pc3d.models.openshape import OpenShapePointBERT
from pc3d.models.openshape_checkpoints import (
    OpenShapeReport,
    load_official_openshape,
    to_official_openshape_state,
)
from pc3d.models.openshape_fcnn import OpenShapeFCNN
from pc3d.models.openshape_official import load_aligned_openshape
from pc3d.models.openshape_sparse import OpenShapeSparseConv
from pc3d.models.part_segmentation import PointPartSegmenter
from pc3d.models.point_features import object_features, point_attention, reads_scenes, scene_features, text_relevance
from pc3d.models.point_net import PointNet
from pc3d.models.point_transformer_v3 import PointTransformerV3, PTv3Level, PTv3Scene
from pc3d.models.point_transformer_v3_checkpoints import PTv3Report, load_official_ptv3, to_official_ptv3_state
from pc3d.models.point_vit import EncoderOutput, PointViT, Pooling
from pc3d.models.posbert import load_posbert_encoder
from pc3d.models.predicted_centers import PredictedCenterModel
from pc3d.models.pretrained import (
    LoadReport,
    load_official_encoder,
    load_official_model,
    to_official_state,
    warm_start,
)
from pc3d.models.sparse_unet import SparseUNet
from pc3d.models.swin3d import Swin3D, SwinLevel, SwinScene
from pc3d.models.swin3d_checkpoints import (
    SwinReport,
    load_official_swin3d,
    load_official_swin3d_encoder,
    to_official_swin3d_state,
)
from pc3d.models.vit3d import ViT3D
from pc3d.models.voxel_backbone import VoxelLevel
from pc3d.models.voxel_features import UpcastFeatures, VoxelEncoder, VoxelScene

__all__ = [
    "DGCNN",
    "AlignedShapeEncoder",
    "AttentionMap",
    "BlockFeatures",
    "Branch",
    "Decoder",
    "DistilledEncoder",
    "EncoderOutput",
    "LoadReport",
    "MaskedPointModel",
    "ObjectEncoder",
    "OpenShapeFCNN",
    "OpenShapePointBERT",
    "OpenShapeReport",
    "OpenShapeSparseConv",
    "PTv3Level",
    "PTv3Report",
    "PTv3Scene",
    "PointClassifier",
    "PointNet",
    "PointPartSegmenter",
    "PointTransformerV3",
    "PointViT",
    "Pooling",
    "PredictedCenterModel",
    "SparseUNet",
    "Swin3D",
    "SwinLevel",
    "SwinReport",
    "SwinScene",
    "UpcastFeatures",
    "VectorClassifier",
    "ViT3D",
    "VoxelEncoder",
    "VoxelLevel",
    "VoxelScene",
    "as_aligned",
    "attention_map",
    "classifier_of",
    "is_aligned",
    "load_aligned_openshape",
    "load_encoder",
    "load_official_encoder",
    "load_official_model",
    "load_official_openshape",
    "load_official_ptv3",
    "load_official_swin3d",
    "load_official_swin3d_encoder",
    "load_posbert_encoder",
    "object_features",
    "point_attention",
    "points_meant_for",
    "reads_scenes",
    "save_attention_map",
    "save_encoder",
    "scene_backbone",
    "scene_features",
    "text_relevance",
    "to_official_openshape_state",
    "to_official_ptv3_state",
    "to_official_state",
    "to_official_swin3d_state",
    "warm_start",
]
