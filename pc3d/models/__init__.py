"""Whole encoders and the networks around them."""

from pc3d.models.hub import load_encoder, save_encoder
from pc3d.models.masked_autoencoder import Branch, Decoder, MaskedPointModel
from pc3d.models.point_vit import EncoderOutput, PointViT

__all__ = ["Branch", "Decoder", "EncoderOutput", "MaskedPointModel", "PointViT", "load_encoder", "save_encoder"]
