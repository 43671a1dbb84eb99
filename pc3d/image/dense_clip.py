"""Dense CLIP features in the space of texts (MaskCLIP, Zhou et al. 2022, section 3.2)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, linear

DenseMode = Literal["value", "value_only", "tokens"]
"""How the last block treats patch tokens. ``value``: attention is replaced by its value path, residual and MLP stay;
``value_only``: the value path alone; ``tokens``: the block as it was trained."""


def resized_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position embeddings ``(1 + n * n, C)`` for another grid; bicubic, the class token's stays."""
    side = round((len(positions) - 1) ** 0.5)
    if grid == (side, side):
        return positions
    square = positions[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    resized = interpolate(square, size=grid, mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([positions[:1], resized[0].flatten(1).T.to(positions.dtype)])


def last_block(tokens: Tensor, parts: dict[str, Any], mode: DenseMode) -> Tensor:
    """The last block of a pre-norm transformer without its attention.

    Args:
        tokens: ``(B, L, C)``.
        parts: ``norm1``, ``value`` (the value path with the output projection), ``scale1``, ``norm2``, ``mlp``,
            ``scale2``.
        mode: ``"value"`` or ``"value_only"``.
    """
    value = parts["scale1"](parts["value"](parts["norm1"](tokens)))
    if mode == "value_only":
        return torch.as_tensor(value)
    tokens = tokens + value
    return torch.as_tensor(tokens + parts["scale2"](parts["mlp"](parts["norm2"](tokens))))


def to_grid(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """``(B, h * w, C)`` as ``(B, C, h, w)``."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *grid)


def open_clip_vit(visual: Any, pixels: Tensor, mode: DenseMode) -> Tensor:
    """Dense features of a vision transformer of open_clip, ``(B, joint width, h, w)``.

    Raises:
        ValueError: a variant whose last block is not a plain one.
    """
    block = visual.transformer.resblocks[-1]
    plain = isinstance(block.attn, nn.MultiheadAttention) and block.attn.in_proj_weight is not None
    if not plain or visual.attn_pool is not None or visual.proj is None:
        raise ValueError(
            "dense features of this open_clip variant are not known: load the tower with timm or transformers"
        )
    tokens, grid = _open_clip_tokens(visual, pixels)
    if mode == "tokens":
        tokens = block(tokens)
    else:
        width = tokens.shape[-1]
        weight, bias = block.attn.in_proj_weight[2 * width :], block.attn.in_proj_bias[2 * width :]
        parts = {
            "norm1": block.ln_1,
            "value": lambda x: block.attn.out_proj(linear(x, weight, bias)),
            "scale1": block.ls_1,
            "norm2": block.ln_2,
            "mlp": block.mlp,
            "scale2": block.ls_2,
        }
        tokens = last_block(tokens, parts, mode)
    return to_grid(visual.ln_post(tokens[:, 1:]) @ visual.proj, grid)


def open_clip_keys(visual: Any, pixels: Tensor) -> Tensor:
    """Keys of the last block's attention at every patch, ``(B, width, h, w)``, all heads side by side."""
    block = visual.transformer.resblocks[-1]
    tokens, grid = _open_clip_tokens(visual, pixels)
    width = tokens.shape[-1]
    rows = slice(width, 2 * width)
    keys = linear(block.ln_1(tokens[:, 1:]), block.attn.in_proj_weight[rows], block.attn.in_proj_bias[rows])
    return to_grid(keys, grid)


def _open_clip_tokens(visual: Any, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Class and patch tokens ``(B, 1 + h * w, C)`` after all blocks but the last."""
    patches = visual.conv1(pixels)
    grid = (patches.shape[2], patches.shape[3])
    tokens = torch.cat(
        [visual.class_embedding.to(patches.dtype).expand(len(pixels), 1, -1), patches.flatten(2).transpose(1, 2)], dim=1
    ) + resized_positions(visual.positional_embedding.to(patches.dtype), grid)
    tokens = visual.ln_pre(tokens)
    # Blocks take (L, B, C) in older versions.
    batch_first = bool(getattr(visual.transformer, "batch_first", False))
    if not batch_first:
        raise ValueError("this version of open_clip runs its blocks with the batch second: upgrade to open_clip 3.0")
    for block in visual.transformer.resblocks[:-1]:
        tokens = block(tokens)
    return tokens, grid


def open_clip_resnet(visual: Any, pixels: Tensor) -> Tensor:
    """Dense features of CLIP's ResNets: the attention pooling as 1 x 1 convolutions, value and output projection."""
    maps = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(pixels)))))
    pool = visual.attnpool
    return torch.as_tensor(pool.c_proj(pool.v_proj(maps.movedim(1, -1))).movedim(-1, 1))


def transformers_clip(model: Any, pixels: Tensor, mode: DenseMode) -> Tensor:
    """Dense features of a ``CLIPModel`` of transformers, ``(B, joint width, h, w)``."""
    tokens, grid = _transformers_tokens(model.vision_model, pixels)
    layer = model.vision_model.encoder.layers[-1]
    if mode == "tokens":
        tokens = _first(layer(tokens, attention_mask=None))
    else:
        parts = {
            "norm1": layer.layer_norm1,
            "value": lambda x: layer.self_attn.out_proj(layer.self_attn.v_proj(x)),
            "scale1": nn.Identity(),
            "norm2": layer.layer_norm2,
            "mlp": layer.mlp,
            "scale2": nn.Identity(),
        }
        tokens = last_block(tokens, parts, mode)
    return to_grid(model.visual_projection(model.vision_model.post_layernorm(tokens[:, 1:])), grid)


def transformers_keys(model: Any, pixels: Tensor) -> Tensor:
    """As :func:`open_clip_keys`, of a ``CLIPModel``."""
    layer = model.vision_model.encoder.layers[-1]
    tokens, grid = _transformers_tokens(model.vision_model, pixels)
    return to_grid(layer.self_attn.k_proj(layer.layer_norm1(tokens[:, 1:])), grid)


def _transformers_tokens(vision: Any, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Class and patch tokens ``(B, 1 + h * w, C)`` after all layers but the last."""
    grid = (pixels.shape[2] // vision.config.patch_size, pixels.shape[3] // vision.config.patch_size)
    tokens = vision.pre_layrnorm(vision.embeddings(pixels, interpolate_pos_encoding=True))
    for layer in vision.encoder.layers[:-1]:
        tokens = _first(layer(tokens, attention_mask=None))
    return tokens, grid


def _first(output: Any) -> Tensor:
    """Layers give a tensor, or in older versions a tuple that begins with it."""
    return output if isinstance(output, Tensor) else torch.as_tensor(output[0])
