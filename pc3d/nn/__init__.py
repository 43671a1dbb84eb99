"""Layers: patches and transformer blocks, voxels and their convolutions, masking, training alike on many processes."""

from pc3d.nn.batch_norm import GlobalBatchNorm
from pc3d.nn.distributed import all_reduce_sum, mean_over_processes, rank, share_of_batch, world_size
from pc3d.nn.heads import SegmentationHead
from pc3d.nn.init import init_decoder_weights, init_encoder_weights, init_token
from pc3d.nn.masking import MaskType, block_mask, check_mask, num_masked, random_mask, split_mask
from pc3d.nn.optim import epoch_learning_rate, warmup_cosine, weight_decay_groups
from pc3d.nn.sample_random import SampleRandom
from pc3d.nn.sparse import ConvNormReLU, ResidualBlock, Signals, SparseConv3d, VoxelGrid, voxel_grid
from pc3d.nn.tokenizer import MiniPointNet, Patches, PatchTokenizer, PositionEmbedding
from pc3d.nn.transformer import Attention, Transformer, TransformerBlock, drop_path_scales

__all__ = [
    "Attention",
    "ConvNormReLU",
    "GlobalBatchNorm",
    "MaskType",
    "MiniPointNet",
    "PatchTokenizer",
    "Patches",
    "PositionEmbedding",
    "ResidualBlock",
    "SampleRandom",
    "SegmentationHead",
    "Signals",
    "SparseConv3d",
    "Transformer",
    "TransformerBlock",
    "VoxelGrid",
    "all_reduce_sum",
    "block_mask",
    "check_mask",
    "drop_path_scales",
    "epoch_learning_rate",
    "init_decoder_weights",
    "init_encoder_weights",
    "init_token",
    "mean_over_processes",
    "num_masked",
    "random_mask",
    "rank",
    "share_of_batch",
    "split_mask",
    "voxel_grid",
    "warmup_cosine",
    "weight_decay_groups",
    "world_size",
]
