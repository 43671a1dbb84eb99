"""Checkpoints of POS-BERT's pre-training, the sibling of DCGLR with released code: read and converted to ViT3D."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pc3d.models.pretrained import LoadReport, in_short, read_checkpoint, state_of
from pc3d.models.vit3d import ViT3D

# No tensor tells the number of heads: the released sizes, by width.
_HEADS = {192: 4, 512: 8}
_LAYERS = {"conv1": "points.layers.0", "bn1": "points.layers.1", "conv2": "points.layers.3", "bn2": "points.layers.4"}
_LAYERS |= {f"gather_local_0.{name}": f"groups.{layer.removeprefix('points.')}" for name, layer in _LAYERS.items()}
_IN_BLOCK = {"norm1": "norm1", "norm2": "norm2", "attn.qkv": "attention.qkv", "attn.proj": "attention.projection"}
_IN_BLOCK |= {"mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2"}
# Of the student alone, which sees masked tokens.
_OF_MASKING = ("mask_token", "pos_embedding.")


def load_posbert_encoder(
    path: str | os.PathLike[str], network: Literal["teacher", "student"] = "teacher", **arguments: Any
) -> tuple[ViT3D, LoadReport]:
    """Load the transformer of a checkpoint that POS-BERT's ``pretrain.py`` wrote, in evaluation mode, on the CPU.

    Widths and depth are inferred from the tensors. The number of heads is that of the released size with this width (4
    for 192, 8 for 512); for other widths it must be given. A ``group_size`` (the option ``--patch_size`` there) other
    than 32 must also be given. The heads on the encoder, and what masks the student's tokens, are left out.

    Args:
        path: the file.
        network: whose weights; those of the teacher are what the released code evaluates.
        **arguments: of :class:`ViT3D`, those that a file does not determine: ``num_heads``, ``group_size``,
            ``num_points``, ``drop_path``.

    Returns:
        The encoder and what was done with the file's tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such checkpoint, is damaged, holds another backbone, or its tensors do not fit each other.
    """
    if network not in ("teacher", "student"):
        raise ValueError(f'network must be "teacher" or "student", got {network!r}')
    state = _read(Path(path), network)
    encoder = ViT3D(**{**_architecture(state, Path(path), arguments), **arguments})
    names, ours = _names(encoder), encoder.state_dict()
    problems = [f"missing {name}" for name in names if name not in state]
    problems += [f"unknown {name}" for name in state if name not in names and not name.startswith(_OF_MASKING)]
    problems += [
        f"{name} has the shape {tuple(state[name].shape)}, which does not fit {tuple(ours[slot].shape)}"
        for name, slot in names.items()
        if name in state and _as_ours(state[name], ours[slot]) is None
    ]
    if problems:
        raise ValueError(f"{path} does not fit ViT3D: {len(problems)} tensors differ: {in_short(problems)}")
    with torch.no_grad():
        for name, slot in names.items():
            ours[slot].copy_(_as_ours(state[name], ours[slot]))
    unused = [name for name in state if name not in names]
    return encoder.eval(), LoadReport(Path(path), "posbert", used=list(names), unused=unused)


def _read(path: Path, network: str) -> dict[str, Tensor]:
    """The backbone's tensors by their bare names."""
    found = state_of(read_checkpoint(path), (network,), path)
    found = {name.removeprefix("module."): value for name, value in found.items()}
    state = {name.removeprefix("backbone."): value for name, value in found.items() if name.startswith("backbone.")}
    if "gather_local_0.conv1.weight" not in state:
        raise ValueError(
            f"{path} holds no transformer of POS-BERT under {network!r}; its tensors are {in_short(list(found))}"
        )
    return state


def _architecture(state: dict[str, Tensor], path: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    width, point_dim = len(state["gather_local_0.conv1.weight"]), state["gather_local_0.conv1.weight"].shape[1] // 2
    if width not in _HEADS and "num_heads" not in arguments:
        raise ValueError(f"{path} is {width} wide, which is no released size: give num_heads, which no tensor tells")
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    hidden = state["blocks.0.mlp.fc1.bias"].numel() if "blocks.0.mlp.fc1.bias" in state else 2 * width
    told = {"embed_dim": width, "depth": len(blocks), "mlp_ratio": hidden / width, "point_dim": point_dim}
    for name in arguments.keys() & told.keys():
        raise ValueError(f"{name} is read off the file ({told[name]}), leave it out; got {arguments[name]}")
    return told | {"num_heads": _HEADS.get(width)}


def _names(encoder: ViT3D) -> dict[str, str]:
    """Released names of all tensors of ours."""
    modules = dict(_LAYERS)
    for i in range(len(encoder.transformer.blocks)):
        modules |= {f"blocks.{i}.{theirs}": f"transformer.blocks.{i}.{ours}" for theirs, ours in _IN_BLOCK.items()}
    modules["norm"] = "norm"
    released = {ours: theirs for theirs, ours in modules.items()}
    names = {"cls_token": "cls_token"}
    for name in encoder.state_dict():
        module, _, leaf = name.rpartition(".")
        if module in released:
            names[f"{released[module]}.{leaf}"] = name
    return names


def _as_ours(value: Tensor, like: Tensor) -> Tensor | None:
    """A convolution of width 1 as a linear layer, the class token as a row; None where the shape is another."""
    shape = (*like.shape, 1) if like.ndim == 2 else like.shape
    if tuple(value.shape) in {tuple(shape), tuple(like.shape)}:
        return value.reshape(like.shape)
    return None
