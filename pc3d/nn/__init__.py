"""Parts of networks and training: patches, transformers, sparse convolutions, masks, views, heads, collectives."""

from pc3d.nn.batch_norm import GlobalBatchNorm
from pc3d.nn.crops import Completion, ball_crop, complete, half_space_crop
from pc3d.nn.distributed import (
    all_reduce_sum,
    gather_rows,
    mean_over_processes,
    rank,
    share_of_batch,
    take_from_first,
    world_size,
)
from pc3d.nn.ema import cosine_between, make_teacher, update_teacher
from pc3d.nn.heads import DistillationHead, ProjectionHead, SegmentationHead
from pc3d.nn.init import init_decoder_weights, init_encoder_weights, init_token
from pc3d.nn.key_queue import KeyQueue
from pc3d.nn.language import LanguageHead, TextHead
from pc3d.nn.masking import MaskType, block_mask, check_mask, num_masked, random_mask, split_mask
from pc3d.nn.optim import epoch_learning_rate, warmup_cosine, weight_decay_groups
from pc3d.nn.sample_random import SampleRandom
from pc3d.nn.sparse import ConvNormReLU, ResidualBlock, Signals, SparseConv3d, VoxelGrid, use_spconv, voxel_grid
from pc3d.nn.spconv_backend import spconv_conv3d
from pc3d.nn.superpoints import superpoints
from pc3d.nn.tokenizer import MiniPointNet, Patches, PatchTokenizer, PositionEmbedding, PositionFeatures
from pc3d.nn.transformer import Attention, Transformer, TransformerBlock, drop_path_scales
from pc3d.nn.views import ViewAugmentation

__all__ = [
    "Attention",
    "Completion",
    "ConvNormReLU",
    "DistillationHead",
    "GlobalBatchNorm",
    "KeyQueue",
    "LanguageHead",
    "MaskType",
    "MiniPointNet",
    "PatchTokenizer",
    "Patches",
    "PositionEmbedding",
    "PositionFeatures",
    "ProjectionHead",
    "ResidualBlock",
    "SampleRandom",
    "SegmentationHead",
    "Signals",
    "SparseConv3d",
    "TextHead",
    "Transformer",
    "TransformerBlock",
    "ViewAugmentation",
    "VoxelGrid",
    "all_reduce_sum",
    "ball_crop",
    "block_mask",
    "check_mask",
    "complete",
    "cosine_between",
    "drop_path_scales",
    "epoch_learning_rate",
    "gather_rows",
    "half_space_crop",
    "init_decoder_weights",
    "init_encoder_weights",
    "init_token",
    "make_teacher",
    "mean_over_processes",
    "num_masked",
    "random_mask",
    "rank",
    "share_of_batch",
    "spconv_conv3d",
    "split_mask",
    "superpoints",
    "take_from_first",
    "update_teacher",
    "use_spconv",
    "voxel_grid",
    "warmup_cosine",
    "weight_decay_groups",
    "world_size",
]
