"""Official checkpoints of Point Transformer V3, Sonata and Concerto: read, recognised, converted, and written back.

Pointcept's files hold the tensors under prefixes such as ``module.backbone.``, next to a head, and say nothing else of
the network. The releases of Sonata and Concerto are ``{"config": ..., "state_dict": ...}``. Files are read with
``weights_only=True``: they run no code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pc3d.models.point_transformer_v3 import PointTransformerV3
from pc3d.models.pretrained import in_short, read_checkpoint, state_of
from pc3d.nn.sparse import SIGNALS

_WRAPPERS = ("state_dict", "model")
_STEMS = {"conv": "ptv3", "linear": "sonata"}
_HEAD = "seg_head"
_MASK_TOKEN = "embedding.mask_token"
_STEM_NORM = "embedding.stem.norm"
# PLACE.norm.NUMBER.LEAF in the place of PLACE.LEAF.
_NORM_OF_SET = (
    r"(embedding\.stem\.norm|.+\.(?:cpe\.2|norm[12]\.0|down\.norm\.0|up\.proj(?:_skip)?\.1))\.norm\.(\d+)(\.\w+)"
)
_BUILT = {"stride": 2, "mlp_ratio": 4, "qkv_bias": True, "qk_scale": None, "pre_norm": True, "enable_rpe": False}
"""Arguments of the official class that change what a network computes, with the only values that pc3d builds."""


@dataclass
class PTv3Report:
    """What was done with the tensors of a file.

    Attributes:
        path: the file.
        variant: which network it holds, ``"ptv3"`` or ``"sonata"``.
        used: the file's tensors that were taken.
        dropped: the file's tensors that are no part of the network: its mask token, other heads, a teacher.
    """

    path: Path
    variant: str
    used: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.path}: {len(self.used)} tensors of a {self.variant} used"
        return text + (f"; {len(self.dropped)} dropped ({in_short(self.dropped)})" if self.dropped else "")


def load_official_ptv3(
    path: str | os.PathLike[str], *, condition: int | None = None, **arguments: Any
) -> tuple[PointTransformerV3, nn.Linear | None, PTv3Report]:
    """Load an official checkpoint of PTv3, Sonata or Concerto, in evaluation mode, on the CPU.

    Widths, depths, decoder and signals are read off the tensors. What a file does not say is as published: 16 channels
    a head, patches of 1,024 voxels, the four curves, voxels of 2 cm. Export the network with
    ``save_encoder(model, folder)`` for ``load_encoder`` and the commands of pc3d.

    The weights of Sonata and Concerto have the licence CC BY-NC 4.0, which excludes commercial use; of others, see
    where they are from. (Their code is Apache 2.0, that of PTv3 MIT.) No released file was at hand when this was
    written: the conversion was compared with the official classes, on weights that they initialised.

    Weights of PTv3 that were trained before 26 March 2024 are of another structure (the convolutions within the blocks
    read other features), which no tensor shows: with them, the results are wrong.

    Args:
        path: the file.
        condition: of a file whose norms are separate for several data sets (Point Prompt Training): which of them to
            take, counted in the order of ``pdnorm_conditions``.
        **arguments: of :class:`PointTransformerV3`, those that the tensors do not determine, such as ``voxel_size``,
            ``patch_size``, ``num_heads`` or ``unit_colors``.

    Returns:
        The network, the linear layer ``seg_head`` if the file has one, and what was done with the file's tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of these checkpoints, is damaged, or is of a variant that pc3d does not build.
    """
    path = Path(path)
    content = read_checkpoint(path)
    found = state_of(content, _WRAPPERS, path)
    prefix = _prefix(found, path)
    names = _names(found, prefix, condition, path)
    state = {name: found[full] for name, full in names.items()}
    told = _architecture(state, path)
    for name in arguments.keys() & told.keys():
        raise ValueError(f"{name} is read off the file ({told[name]}), leave it out; got {arguments[name]}")
    stated = _stated(content.get("config") if isinstance(content, dict) else None, path)
    model = PointTransformerV3(**{**stated, **told, **arguments})
    _fill(model, state, path)
    used = [names[name] for name in _slots(model)]
    beside = f"{prefix.removesuffix('backbone.')}{_HEAD}"
    head = None
    if f"{beside}.weight" in found:
        head = _head(found[f"{beside}.weight"], found.get(f"{beside}.bias"), model.feature_dim, path)
        used += [f"{beside}.weight", f"{beside}.bias"]
    return model.eval(), head, PTv3Report(path, model.variant, used, [name for name in found if name not in used])


def to_official_ptv3_state(model: PointTransformerV3) -> dict[str, Tensor]:
    """The state dict that the official class would have for these weights, without prefix.

    Args:
        model: any PointTransformerV3.
    """
    ours = model.state_dict()
    return {
        theirs: (_to_official_kernel(ours[mine]) if ours[mine].ndim == 3 else ours[mine]).detach().clone()
        for theirs, mine in _slots(model).items()
    }


def _prefix(found: Mapping[str, Tensor], path: Path) -> str:
    """What stands before the names of the network, of Sonata's pre-training before those of the student."""
    ends = tuple(f"embedding.stem.{kind}.weight" for kind in _STEMS)
    prefixes = [name.removesuffix(end) for name in found for end in ends if name.endswith(end)]
    if not prefixes:
        hint = ""
        if any(name.endswith(f"{_HEAD}.weight") for name in found):
            hint = " (it is a head alone: load its state dict into the head of a SceneSegmenter)"
        raise ValueError(
            f"{path} is no checkpoint of Point Transformer V3, Sonata or Concerto: it has no embedding.stem{hint}; "
            f"its tensors are {in_short(list(found))}"
        )
    return next((prefix for prefix in prefixes if "student" in prefix), prefixes[0])


def _names(found: Mapping[str, Tensor], prefix: str, condition: int | None, path: Path) -> dict[str, str]:
    """The name in the file of each tensor of the network, with the norms of one data set where there are several."""
    names = {name.removeprefix(prefix): name for name in found if name.startswith(prefix)}
    sets = [name for name in names if re.fullmatch(_NORM_OF_SET, name) and name.startswith(f"{_STEM_NORM}.")]
    count = len({name.split(".")[-2] for name in sets})
    if condition is None and not count:
        return names
    if condition is None or not 0 <= condition < count:
        what = f"{count} data sets (Point Prompt Training), 0 to {count - 1}: choose one" if count else "no data sets"
        how = ", in Python; commands take it as pc3d.save_encoder keeps it" if count else ""
        raise ValueError(f"condition: {path} has separate norms for {what}{how}; got {condition}")
    chosen = {}
    for name, full in names.items():
        match = re.fullmatch(_NORM_OF_SET, name)
        if match is None:
            chosen[name] = full
        elif int(match[2]) == condition:
            chosen[match[1] + match[3]] = full
    return chosen


def _architecture(state: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Arguments of the network, as the tensors tell them."""
    kind = next(kind for kind in _STEMS if f"embedding.stem.{kind}.weight" in state)
    read = state[f"embedding.stem.{kind}.weight"].shape[-1] + (3 if kind == "conv" else 0)
    if read not in (6, 9) and (kind, read) != ("linear", 3):
        raise ValueError(
            f"{path} reads {state[f'embedding.stem.{kind}.weight'].shape[-1]} numbers of a voxel, where colours and "
            "normals are 6, and coordinates 3 more in Sonata: models of other sensors (strength) are not built"
        )
    channels, depths = _stages(state, "enc.enc")
    decoder_channels, decoder_depths = _stages(state, "dec.dec")
    if not channels:
        raise ValueError(f"{path} has a stem but no enc.enc0.block0: it is damaged, or no Point Transformer V3")
    return {
        "channels": channels,
        "depths": depths,
        "decoder_channels": decoder_channels,
        "decoder_depths": decoder_depths,
        "signals": SIGNALS[read // 3 - 1],
        "variant": _STEMS[kind],
    }


def _stages(state: Mapping[str, Tensor], prefix: str) -> tuple[list[int], list[int]]:
    channels: list[int] = []
    depths: list[int] = []
    while (first := state.get(f"{prefix}{len(channels)}.block0.norm1.0.weight")) is not None:
        blocks = rf"{re.escape(prefix)}{len(channels)}\.block\d+\.norm1\.0\.weight"
        depths.append(sum(re.fullmatch(blocks, name) is not None for name in state))
        channels.append(len(first))
    return channels, depths


def _stated(config: Any, path: Path) -> dict[str, Any]:
    """Arguments of the network that only a configuration tells.

    Raises:
        ValueError: it asks for what pc3d does not build.
    """
    if not isinstance(config, dict):
        return {}
    for name, wanted in _BUILT.items():
        given = config.get(name, wanted)
        values = given if isinstance(given, list | tuple) else [given]
        if any(value != wanted for value in values):
            raise ValueError(f"{path} was built with {name}={given}, pc3d builds {name}={wanted} alone")
    sizes = {*config.get("enc_patch_size", ()), *(() if config.get("enc_mode") else config.get("dec_patch_size", ()))}
    if len(sizes) > 1:
        raise ValueError(f"{path} was built with patches of {sorted(sizes)} voxels, pc3d has one size for all levels")
    order = config.get("order")
    named = {
        "num_heads": config.get("enc_num_head"),
        "decoder_num_heads": None if config.get("enc_mode") else config.get("dec_num_head"),
        "patch_size": next(iter(sizes), None),
        "orders": [order] if isinstance(order, str) else order,
        "drop_path": config.get("drop_path"),
    }
    return {name: value for name, value in named.items() if value is not None}


def _fill(model: PointTransformerV3, state: Mapping[str, Tensor], path: Path) -> None:
    expected = to_official_ptv3_state(model)
    problems = [f"missing {name}" for name in expected if name not in state]
    problems += [f"unknown {name}" for name in state if name not in expected and name != _MASK_TOKEN]
    problems += [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if problems:
        raise ValueError(f"{path} does not fit together: {len(problems)} tensors differ: {in_short(problems)}")
    taken = {mine: state[theirs] for theirs, mine in _slots(model).items()}
    model.load_state_dict({name: _from_official_kernel(v) if v.ndim == 5 else v for name, v in taken.items()})


def _head(weight: Tensor, bias: Tensor | None, width: int, path: Path) -> nn.Linear:
    if bias is None or weight.ndim != 2 or weight.shape[1] != width:
        raise ValueError(
            f"{path}: {_HEAD}.weight is {tuple(weight.shape)} {'without' if bias is None else 'with'} a bias, expected "
            f"(K, {width}) with one, as the network gives {width} numbers"
        )
    head = nn.Linear(width, len(weight))
    head.load_state_dict({"weight": weight, "bias": bias})
    return head.eval()


def _from_official_kernel(kernel: Tensor) -> Tensor:
    """From spconv's ``(out, K, K, K, in)`` to ours, ``(K^3, in, out)``; x is slowest in both."""
    return kernel.permute(1, 2, 3, 4, 0).reshape(-1, kernel.shape[4], kernel.shape[0])


def _to_official_kernel(kernel: Tensor) -> Tensor:
    edge = round(kernel.shape[0] ** (1 / 3))
    return kernel.permute(2, 0, 1).reshape(kernel.shape[2], edge, edge, edge, kernel.shape[1])


def _slots(model: PointTransformerV3) -> dict[str, str]:
    """Official names of all tensors of a network, each with ours."""
    names: dict[str, list[str]] = {}
    for name in model.state_dict():
        module, _, leaf = name.rpartition(".")
        names.setdefault(module, []).append(leaf)
    return {f"{theirs}.{leaf}": f"{mine}.{leaf}" for mine, theirs in _modules(model) for leaf in names[mine]}


def _modules(model: PointTransformerV3) -> Iterator[tuple[str, str]]:
    """Our name and the official one of each module with tensors."""
    kind = next(kind for kind, variant in _STEMS.items() if variant == model.variant)
    yield "stem", f"embedding.stem.{kind}"
    yield "stem_norm", "embedding.stem.norm"
    for i in range(len(model.downsamples)):
        yield f"downsamples.{i}.linear", f"enc.enc{i + 1}.down.proj"
        yield f"downsamples.{i}.norm", f"enc.enc{i + 1}.down.norm.0"
    for i in range(len(model.upsamples)):
        for mine, theirs in (("coarse", "proj"), ("skip", "proj_skip")):
            for layer in (0, 1):
                yield f"upsamples.{i}.{mine}.{layer}", f"dec.dec{i}.up.{theirs}.{layer}"
    for part, stage in (("levels", "enc.enc"), ("decoder", "dec.dec")):
        for i, blocks in enumerate(getattr(model, part)):
            for j in range(len(blocks)):
                yield from ((f"{part}.{i}.{j}.{mine}", f"{stage}{i}.block{j}.{theirs}") for mine, theirs in _BLOCK)


_BLOCK = (
    ("position", "cpe.0"),
    ("position_linear", "cpe.1"),
    ("position_norm", "cpe.2"),
    ("norm1", "norm1.0"),
    ("attention.qkv", "attn.qkv"),
    ("attention.projection", "attn.proj"),
    ("norm2", "norm2.0"),
    ("mlp.0", "mlp.0.fc1"),
    ("mlp.2", "mlp.0.fc2"),
)
