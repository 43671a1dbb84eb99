"""Losses: functions of tensors."""

from pc3d.losses.contrast import Contrast, mean_token_cosine, token_contrast
from pc3d.losses.reconstruction import ChamferKind, patch_chamfer

__all__ = ["ChamferKind", "Contrast", "mean_token_cosine", "patch_chamfer", "token_contrast"]
