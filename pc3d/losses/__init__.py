"""Loss functions of tensors."""

from pc3d.losses.alignment import Alignment, Dropped, negatives_to_keep, shape_contrast
from pc3d.losses.contrast import Contrast, mean_token_cosine, token_contrast
from pc3d.losses.dense_targets import Regression, feature_regression, point_pixel_contrast, superpoint_contrast
from pc3d.losses.info_nce import info_nce
from pc3d.losses.reconstruction import ChamferKind, patch_chamfer
from pc3d.losses.self_distillation import self_distillation
from pc3d.losses.two_views import BarlowTwinsTerms, VICRegTerms, barlow_twins, nt_xent, vicreg

__all__ = [
    "Alignment",
    "BarlowTwinsTerms",
    "ChamferKind",
    "Contrast",
    "Dropped",
    "Regression",
    "VICRegTerms",
    "barlow_twins",
    "feature_regression",
    "info_nce",
    "mean_token_cosine",
    "negatives_to_keep",
    "nt_xent",
    "patch_chamfer",
    "point_pixel_contrast",
    "self_distillation",
    "shape_contrast",
    "superpoint_contrast",
    "token_contrast",
    "vicreg",
]
