"""The 2D path: image and text towers, stored features, rendering, lifting of pixels onto points."""

from __future__ import annotations

from pc3d.image.bridge import CentredTextTower, ConseImageTower, conse_pair
from pc3d.image.cameras import Camera, focal_length
from pc3d.image.depth_maps import CLIP2POINT_PROMPT, POINTCLIP_PROMPT, clip2point_maps, pointclip_maps
from pc3d.image.extractors import DenseFeatures, Extractor, PictureFeatures, TextFeatures
from pc3d.image.features import FeatureMismatchError, FeatureStore, precompute
from pc3d.image.lifting import (
    LiftedFeatures,
    PixelPoints,
    View,
    fill_unseen,
    lift,
    pixels_to_points,
    sample_map,
)
from pc3d.image.live import LiveFeatures, LivePictures, LiveScans, LiveTexts
from pc3d.image.loading import CONSE_PAIR, OPENSHAPE_PAIR, load_image_tower, load_pair, load_text_tower, tower_name
from pc3d.image.meshes import Mesh, read_mesh
from pc3d.image.offline import OFFLINE_TOWERS, efficientnet_lite0, minilm, offline_file, xfeat
from pc3d.image.open_clip_towers import open_clip_pair
from pc3d.image.pictures import Preprocessing, on_background, read_picture
from pc3d.image.prompts import (
    PHOTO,
    ULIP_TEMPLATES,
    class_map,
    drop_absent_classes,
    fill,
    multi_view_logits,
    prompt_ensemble,
    smooth_by_keys,
    zero_shot_logits,
)
from pc3d.image.render_mesh import MeshRenderer, render_mesh
from pc3d.image.render_points import render_points
from pc3d.image.rendering import Rendering
from pc3d.image.scans import Frames, Scan, ScanFeatures
from pc3d.image.targets import lift_frames, lift_renderings
from pc3d.image.timm_towers import TimmImageTower, timm_tower
from pc3d.image.towers import INSTALL_WEIGHTS, ImageTower, JointPair, MissingWeightsError, TextTower
from pc3d.image.transformers_towers import sentence_tower, transformers_image_tower, transformers_pair
from pc3d.image.views import VIEW_SETS, extent, fit, view_set
from pc3d.image.visibility import (
    cosine_to_camera,
    depth_edges,
    disc_depth,
    facing,
    hidden_point_removal,
    point_spacing,
    visible_by_depth,
    visible_by_discs,
)

__all__ = [
    "CLIP2POINT_PROMPT",
    "CONSE_PAIR",
    "INSTALL_WEIGHTS",
    "OFFLINE_TOWERS",
    "OPENSHAPE_PAIR",
    "PHOTO",
    "POINTCLIP_PROMPT",
    "ULIP_TEMPLATES",
    "VIEW_SETS",
    "Camera",
    "CentredTextTower",
    "ConseImageTower",
    "DenseFeatures",
    "Extractor",
    "FeatureMismatchError",
    "FeatureStore",
    "Frames",
    "ImageTower",
    "JointPair",
    "LiftedFeatures",
    "LiveFeatures",
    "LivePictures",
    "LiveScans",
    "LiveTexts",
    "Mesh",
    "MeshRenderer",
    "MissingWeightsError",
    "PictureFeatures",
    "PixelPoints",
    "Preprocessing",
    "Rendering",
    "Scan",
    "ScanFeatures",
    "TextFeatures",
    "TextTower",
    "TimmImageTower",
    "View",
    "class_map",
    "clip2point_maps",
    "conse_pair",
    "cosine_to_camera",
    "depth_edges",
    "disc_depth",
    "drop_absent_classes",
    "efficientnet_lite0",
    "extent",
    "facing",
    "fill",
    "fill_unseen",
    "fit",
    "focal_length",
    "hidden_point_removal",
    "lift",
    "lift_frames",
    "lift_renderings",
    "load_image_tower",
    "load_pair",
    "load_text_tower",
    "minilm",
    "multi_view_logits",
    "offline_file",
    "on_background",
    "open_clip_pair",
    "pixels_to_points",
    "point_spacing",
    "pointclip_maps",
    "precompute",
    "prompt_ensemble",
    "read_mesh",
    "read_picture",
    "render_mesh",
    "render_points",
    "sample_map",
    "sentence_tower",
    "smooth_by_keys",
    "timm_tower",
    "tower_name",
    "transformers_image_tower",
    "transformers_pair",
    "view_set",
    "visible_by_depth",
    "visible_by_discs",
    "xfeat",
    "zero_shot_logits",
]
