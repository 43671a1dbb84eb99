"""Dense CLIP features against the block as its library runs it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_towers import JOINT, LAYERS, PATCH, SIZE, WIDTH

from pc3d.image import open_clip_pair, transformers_pair
from pc3d.image.dense_clip import resized_positions

GRID = SIZE // PATCH


def their_dense(visual: Any, pixels: torch.Tensor, alone: bool) -> torch.Tensor:
    """The library's own last block; ``alone``: every token may attend to itself only, which is the value path."""
    tokens = visual._embeds(pixels)
    for block in visual.transformer.resblocks[:-1]:
        tokens = block(tokens)
    mask = torch.full((tokens.shape[1],) * 2, float("-inf")).fill_diagonal_(0) if alone else None
    tokens = visual.transformer.resblocks[-1](tokens, attn_mask=mask)
    features = visual.ln_post(tokens[:, 1:]) @ visual.proj
    return features.transpose(1, 2).reshape(len(pixels), -1, GRID, GRID)


@pytest.mark.parametrize(("mode", "alone"), [("value", True), ("tokens", False)])
def test_the_value_path_is_attention_to_oneself(mode: Any, alone: bool, open_clip_vit: tuple[str, str]) -> None:
    tower: Any = open_clip_pair(*open_clip_vit, dense=mode).image
    pixels = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = their_dense(tower.visual, pixels, alone)
    torch.testing.assert_close(tower.dense_features(pixels), expected, atol=1e-5, rtol=1e-5)
    assert tower.dense_text_aligned == (mode == "value")


def test_the_value_alone_leaves_out_residual_and_mlp(open_clip_vit: tuple[str, str]) -> None:
    tower: Any = open_clip_pair(*open_clip_vit, dense="value_only").image
    visual, pixels = tower.visual, torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        tokens = visual._embeds(pixels)
        for block in visual.transformer.resblocks[:-1]:
            tokens = block(tokens)
        block = visual.transformer.resblocks[-1]
        weight, bias = block.attn.in_proj_weight[2 * WIDTH :], block.attn.in_proj_bias[2 * WIDTH :]
        value = block.attn.out_proj(block.ln_1(tokens) @ weight.T + bias)
        expected = visual.ln_post(value[:, 1:]) @ visual.proj
    dense = tower.dense_features(pixels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(dense, expected, atol=1e-5, rtol=1e-5)


def test_without_attention_weights_the_value_path_is_the_whole_block(open_clip_vit: tuple[str, str]) -> None:
    towers: list[Any] = [open_clip_pair(*open_clip_vit, dense=mode).image for mode in ("value", "tokens")]  # type: ignore[arg-type]
    for tower in towers:
        attention = tower.visual.transformer.resblocks[-1].attn
        torch.nn.init.zeros_(attention.in_proj_weight)
        torch.nn.init.zeros_(attention.in_proj_bias)
    pixels = torch.randn(1, 3, SIZE, SIZE)
    torch.testing.assert_close(*(tower.dense_features(pixels) for tower in towers), atol=1e-5, rtol=1e-5)


def copy_weights(visual: Any, model: Any) -> None:
    """The image side of open_clip's CLIP into that of transformers."""
    theirs, state = visual.state_dict(), {}
    state["embeddings.class_embedding"] = theirs["class_embedding"]
    state["embeddings.position_embedding.weight"] = theirs["positional_embedding"]
    state["embeddings.patch_embedding.weight"] = theirs["conv1.weight"]
    for ours, name in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
        for kind in ("weight", "bias"):
            state[f"{name}.{kind}"] = theirs[f"{ours}.{kind}"]
    for layer in range(LAYERS):
        here, there = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            for part, name in zip(theirs[f"{here}.attn.in_proj_{kind}"].split(WIDTH), "qkv", strict=True):
                state[f"{there}.self_attn.{name}_proj.{kind}"] = part
            for ours, name in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                state[f"{there}.{name}.{kind}"] = theirs[f"{here}.{ours}.{kind}"]
    missing = model.vision_model.load_state_dict(state, strict=False)
    assert missing.unexpected_keys == []
    assert [key for key in missing.missing_keys if "position_ids" not in key] == []
    model.visual_projection.load_state_dict({"weight": theirs["proj"].T})


@pytest.mark.parametrize("mode", ["value", "value_only", "tokens"])
@pytest.mark.parametrize("size", [(SIZE, SIZE), (5 * PATCH, 3 * PATCH)])
def test_both_libraries_agree_on_the_same_weights(
    mode: Any, size: tuple[int, int], open_clip_vit: tuple[str, str], transformers_clip: str
) -> None:
    first: Any = open_clip_pair(*open_clip_vit, dense=mode).image
    second: Any = transformers_pair(transformers_clip, dense=mode).image
    copy_weights(first.visual, second.model)
    same = size == (SIZE, SIZE)
    if not same:  # the libraries resize positions by different bicubic kernels: without positions the rest must agree
        torch.nn.init.zeros_(first.visual.positional_embedding)
        torch.nn.init.zeros_(second.model.vision_model.embeddings.position_embedding.weight)
    pixels = torch.randn(2, 3, *size)
    a, b = first.dense_features(pixels), second.dense_features(pixels)
    assert a.shape == (2, JOINT, size[0] // PATCH, size[1] // PATCH)
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    if same:
        torch.testing.assert_close(first.global_features(pixels), second.global_features(pixels), atol=1e-4, rtol=1e-4)


def test_keys_are_those_that_attention_compares(open_clip_vit: tuple[str, str], transformers_clip: str) -> None:
    first: Any = open_clip_pair(*open_clip_vit).image
    second: Any = transformers_pair(transformers_clip).image
    copy_weights(first.visual, second.model)
    caught: list[torch.Tensor] = []
    layer = second.model.vision_model.encoder.layers[-1]
    handle = layer.self_attn.k_proj.register_forward_hook(lambda module, inputs, output: caught.append(output))
    pixels = torch.randn(2, 3, SIZE, SIZE)
    second.global_features(pixels)  # the library's own forward pass
    handle.remove()
    expected = caught[0][:, 1:].transpose(1, 2).reshape(2, WIDTH, GRID, GRID)
    torch.testing.assert_close(second.keys(pixels), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(first.keys(pixels), expected, atol=1e-4, rtol=1e-4)


def test_a_resnet_projects_every_cell_as_the_pooling_would(open_clip_resnet: tuple[str, str]) -> None:
    tower: Any = open_clip_pair(*open_clip_resnet).image
    kept: list[torch.Tensor] = []
    handle = tower.visual.attnpool.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    pixels = torch.randn(2, 3, 64, 64)
    tower.global_features(pixels)
    handle.remove()
    pool, maps = tower.visual.attnpool, kept[0].double()
    value = torch.einsum("bchw,dc->bdhw", maps, pool.v_proj.weight.double()) + pool.v_proj.bias.double()[:, None, None]
    expected = torch.einsum("bchw,dc->bdhw", value, pool.c_proj.weight.double())
    expected = expected + pool.c_proj.bias.double()[:, None, None]
    assert tower.stride == 32
    with pytest.raises(ValueError, match="a ModifiedResNet has no keys"):
        tower.keys(pixels)
    torch.testing.assert_close(tower.dense_features(pixels).double(), expected, atol=1e-4, rtol=1e-4)
    assert tower.dense_features(torch.randn(1, 3, 64, 96)).shape == (1, JOINT, 2, 3)


def test_positions_are_resized_smoothly() -> None:
    positions = torch.randn(1 + 16, 5)
    assert resized_positions(positions, (4, 4)) is positions
    constant = torch.cat([positions[:1], torch.ones(16, 5)])
    resized = resized_positions(constant, (7, 3))
    assert resized.shape == (1 + 21, 5)
    torch.testing.assert_close(resized[1:], torch.ones(21, 5))
    assert torch.equal(resized[0], positions[0])
    # Rows that rise keep rising, and columns that are equal stay so.
    ramp = torch.cat([positions[:1], torch.arange(4.0).repeat_interleave(4)[:, None].expand(16, 5)])
    rows = resized_positions(ramp, (8, 4))[1:].reshape(8, 4, 5)
    assert (rows.diff(dim=0) > 0).all()
    torch.testing.assert_close(rows[:, :1].expand(8, 4, 5), rows)
