"""Official OpenShape checkpoints: read, recognised, converted, and written back."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pc3d.models.openshape import SIZES, OpenShapePointBERT
from pc3d.models.openshape_sparse import OpenShapeSparseConv
from pc3d.models.pretrained import in_short, read_checkpoint, state_of

OpenShapeEncoder = OpenShapePointBERT | OpenShapeSparseConv
_NOT_TOLD = ("num_groups", "radius", "group_size")
# What no tensor tells of the released sizes, by width, depth, mlp_dim and patch_dim.
_PATCHES = {
    tuple(size[name] for name in ("width", "depth", "mlp_dim", "patch_dim")): tuple(size[name] for name in _NOT_TOLD)
    for size in SIZES.values()
}
# The models for generation (ViT-L/14, ViT-B/32) have the tensors of the 26m size, but the patches of the smaller ones.
_GENERATION = (64, 0.4, 256)
_GENERATION_PREFIX = "pc_encoder."
_HEAD_WIDTH = 64


@dataclass
class OpenShapeReport:
    """What was done with the tensors of a file.

    Attributes:
        path: the file.
        used: the file's tensors that were taken.
        dropped: the file's tensors that belong to another network around the encoder.
        logit_scale: the learned scale of the logits, if the file has it.
    """

    path: Path
    used: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    logit_scale: float | None = None

    def __str__(self) -> str:
        text = f"{self.path}: {len(self.used)} tensors used"
        text += f", {len(self.dropped)} dropped ({in_short(self.dropped)})" if self.dropped else ""
        return text if self.logit_scale is None else f"{text}; logit scale {self.logit_scale:.4g}"


def load_official_openshape(path: str | os.PathLike[str], **arguments: Any) -> tuple[OpenShapeEncoder, OpenShapeReport]:
    """Load the encoder of an official checkpoint, in evaluation mode, on the CPU.

    Widths, depths and blocks are inferred from the tensors. What the tensors do not determine follows from the released
    sizes and can be overridden: patches, radius and voxel size, and the frame: ``axes="mirrored"`` for files of the
    training code (the ViT-bigG weights), ``axes="y_up"`` and the patches of the small models for files whose tensors
    start with ``pc_encoder.`` (ViT-L/14 and ViT-B/32). Either way the encoder takes right-handed clouds with z up.

    Args:
        path: the file.
        **arguments: of :class:`OpenShapePointBERT` or :class:`OpenShapeSparseConv`, those that a file does not
            determine.

    Returns:
        The encoder and what was done with the file's tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no OpenShape checkpoint, is damaged, or its tensors do not fit each other.
    """
    state, report, generation = _read(Path(path))
    if "cls_token" in state:  # the ViT-B/32 model is the bare transformer
        state = {f"ppat.{name}": value for name, value in state.items()}
    told, guessed = _architecture(state, Path(path), generation, arguments)
    for name in arguments.keys() & told.keys():
        raise ValueError(f"{name} is read off the file ({told[name]}), leave it out; got {arguments[name]}")
    kind = OpenShapePointBERT if "ppat.cls_token" in state else OpenShapeSparseConv
    encoder: OpenShapeEncoder = kind(**told, **{**guessed, **arguments})
    slots, ours = _slots(encoder), encoder.state_dict()
    expected = {name: tuple(value.shape) for name, value in _official(encoder).items()}
    problems = [f"missing {name}" for name in expected if name not in state]
    problems += [f"unknown {name}" for name in state if name not in expected]
    problems += [
        f"{name} is {tuple(state[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if problems:
        raise ValueError(f"{path} does not fit together: {len(problems)} tensors differ: {in_short(problems)}")
    with torch.no_grad():
        for name, slot in slots.items():
            ours[slot].copy_(_from_official(name, state[name]))
    return encoder.eval(), report


def to_official_openshape_state(encoder: OpenShapeEncoder) -> dict[str, Tensor]:
    """The model's state dict that the official code would have for these weights, without ``module.``.

    The official code gives its networks shapes in the frame of ``axes="mirrored"``, and its models for generation those
    of ``"y_up"``. Weights that were trained with ``"z_up"`` see mirrored shapes there.

    Raises:
        TypeError: another network.
    """
    if not isinstance(encoder, OpenShapeEncoder):
        raise TypeError(f"encoder must be an OpenShape encoder, got {type(encoder).__name__}")
    state = _official(encoder)
    bare = isinstance(encoder, OpenShapePointBERT) and not encoder.config["project"]
    return {name.removeprefix("ppat."): value for name, value in state.items()} if bare else state


def _read(path: Path) -> tuple[dict[str, Tensor], OpenShapeReport, bool]:
    """The encoder's tensors by their bare names, a report, and whether the file is of a model for generation."""
    content = read_checkpoint(path)
    found = state_of(content, ("state_dict", "model_state_dict", "model"), path)
    found = {name.removeprefix("module."): value for name, value in found.items()}
    generation = any(name.startswith(_GENERATION_PREFIX) for name in found)
    state = {
        name.removeprefix(_GENERATION_PREFIX): value
        for name, value in found.items()
        if name.startswith(_GENERATION_PREFIX) or not generation
    }
    if not {"ppat.cls_token", "cls_token", "conv0p1s1.kernel"} & state.keys():
        raise ValueError(
            f"{path} is no checkpoint of OpenShape (neither ppat.cls_token nor conv0p1s1.kernel); its tensors are "
            f"{in_short(list(found))}"
        )
    dropped = [name for name in found if generation and not name.startswith(_GENERATION_PREFIX)]
    return state, OpenShapeReport(path, list(state), dropped, _logit_scale(content)), generation


def _logit_scale(content: Any) -> float | None:
    """The scale that a training checkpoint keeps, as its logarithm, beside the model."""
    entry = content.get("logit_scale") if isinstance(content, dict) else None
    values = entry.values() if isinstance(entry, dict) else [entry]
    found = next((value for value in values if isinstance(value, Tensor) and value.numel() == 1), None)
    return None if found is None else float(found.double().exp())


def _architecture(
    state: dict[str, Tensor], path: Path, generation: bool, given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments that the shapes tell, and those that follow from the released sizes."""

    def size(name: str, axis: int = 0) -> int:
        if name not in state or state[name].ndim <= axis:
            raise ValueError(f"{path} is damaged: {name} is missing or has no axis {axis}")
        return int(state[name].shape[axis])

    def count(pattern: str) -> int:
        return sum(re.fullmatch(pattern, name) is not None for name in state)

    axes = {"axes": "y_up" if generation else "mirrored"}
    if "conv0p1s1.kernel" in state:
        told: dict[str, Any] = {
            "embed_dim": size("final.3.linear.weight"),
            "hidden_dim": size("final.2.0.linear.weight"),
            "layers": [count(rf"block{level}\.\d+\.conv1\.kernel") for level in (1, 2, 3, 4)],
        }
        return told, axes
    width = size("ppat.cls_token")
    project = "proj.weight" in state
    told = {
        "embed_dim": size("proj.weight") if project else width,
        "width": width,
        "depth": count(r"ppat\.transformer\.layers\.\d+\.0\.norm\.weight"),
        "num_heads": max(size("ppat.transformer.layers.0.0.fn.to_qkv.weight") // (3 * _HEAD_WIDTH), 1),
        "mlp_dim": size("ppat.transformer.layers.0.1.fn.net.0.weight"),
        "patch_dim": size("ppat.sa.mlp_convs.2.weight"),
        "project": project,
    }
    key = tuple(told[name] for name in ("width", "depth", "mlp_dim", "patch_dim"))
    patches = _GENERATION if generation else _PATCHES.get(key)
    unknown = [name for name in _NOT_TOLD if name not in given]
    if patches is None and unknown:
        raise ValueError(
            f"{path} has none of the released sizes, but {told}: say {', '.join(unknown)}, no tensor tells them"
        )
    return told, axes | ({} if patches is None else dict(zip(_NOT_TOLD, patches, strict=True)))


def _official(encoder: OpenShapeEncoder) -> dict[str, Tensor]:
    ours = encoder.state_dict()
    return {name: _to_official(name, ours[slot]) for name, slot in _slots(encoder).items()}


def _slots(encoder: OpenShapeEncoder) -> dict[str, str]:
    """Official names of everything in an encoder, each with ours."""
    leaves: dict[str, list[str]] = {}
    for name in encoder.state_dict():
        module, _, leaf = name.rpartition(".")
        leaves.setdefault(module, []).append(leaf)
    pairs = _point_bert(encoder) if isinstance(encoder, OpenShapePointBERT) else _sparse_conv(encoder)
    slots = {}
    for ours, theirs in pairs:
        for leaf in leaves.get(ours, []):
            is_kernel = leaf == "weight" and (ours.endswith(".shortcut.0") or ours.endswith("conv"))
            prefix = f"{theirs}." if theirs else ""
            slots[f"{prefix}{'kernel' if is_kernel else leaf}"] = f"{ours}.{leaf}".removeprefix(".")
    return slots


def _point_bert(encoder: OpenShapePointBERT) -> Iterator[tuple[str, str]]:
    yield "", "ppat"  # the class token
    for i in range(3):
        yield f"patches.{3 * i}", f"ppat.sa.mlp_convs.{i}"
        yield f"patches.{3 * i + 1}", f"ppat.sa.mlp_bns.{i}"
    yield "lift", "ppat.lift.0"
    yield "lift_norm", "ppat.lift.2"
    layers = {"norm1": "0.norm", "attention.qkv": "0.fn.to_qkv", "attention.projection": "0.fn.to_out.0"}
    layers |= {"norm2": "1.norm", "mlp.0": "1.fn.net.0", "mlp.2": "1.fn.net.3"}
    for i in range(len(encoder.blocks)):
        yield from ((f"blocks.{i}.{a}", f"ppat.transformer.layers.{i}.{b}") for a, b in layers.items())
    yield "projection", "proj"


def _sparse_conv(encoder: OpenShapeSparseConv) -> Iterator[tuple[str, str]]:
    yield "stem.conv", "conv0p1s1"
    yield "stem.norm", "bn0.bn"
    layers = {"first.conv": "conv1", "first.norm": "norm1.bn", "conv": "conv2", "norm": "norm2.bn"}
    layers |= {"shortcut.0": "downsample.0", "shortcut.1": "downsample.1.bn"}
    for i, blocks in enumerate(encoder.levels):
        yield f"downsamples.{i}.conv", f"conv{i + 1}p{2**i}s2"
        yield f"downsamples.{i}.norm", f"bn{i + 1}.bn"
        for j in range(len(blocks)):  # type: ignore[arg-type]
            yield from ((f"levels.{i}.{j}.{a}", f"block{i + 1}.{j}.{b}") for a, b in layers.items())
    for i in range(2):
        yield f"merge.{i}.conv", f"conv5.{i}.0"
        yield f"merge.{i}.norm", f"conv5.{i}.1.bn"
    head = {"0": "0.0.linear", "1": "0.1.bn", "4": "2.0.linear", "5": "2.1.bn", "7": "3.linear"}
    yield from ((f"head.{a}", f"final.{b}") for a, b in head.items())


def _to_official(name: str, value: Tensor) -> Tensor:
    """One of our tensors as the official code has it."""
    value = value.detach().clone()
    if name.endswith(".kernel"):
        return value.T.contiguous() if value.ndim == 2 else _flip_kernel(value)
    if ".sa.mlp_convs." in name and value.ndim == 2:
        return value[:, :, None, None]
    return value[:, :, None] if name == "ppat.lift.0.weight" else value


def _from_official(name: str, value: Tensor) -> Tensor:
    """The reverse of :func:`_to_official`."""
    if name.endswith(".kernel"):
        return value.T if value.ndim == 2 else _flip_kernel(value)
    return value.flatten(1) if value.ndim > 2 else value


def _flip_kernel(kernel: Tensor) -> Tensor:
    """From x fastest (MinkowskiEngine) to x slowest (ours), or back."""
    edge = round(len(kernel) ** (1 / 3))
    return kernel.reshape(edge, edge, edge, *kernel.shape[1:]).permute(2, 1, 0, 3, 4).reshape(kernel.shape)
