"""Official checkpoints of the Point-MAE family: read, recognised, converted, and written back.

Four kinds of file exist, each with a fixed list of tensors (names and shapes): the pre-training models of Point-MAE
(209 tensors) and Point-CMAE (275), the classifier (174, or 160 with a linear head) and the part segmenter (192). A file
is taken only if every tensor of it is known and none is missing. Files are read with ``weights_only=True``: they run no
code.
"""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from pc3d.models.classifier import PointClassifier
from pc3d.models.masked_autoencoder import MaskedPointModel
from pc3d.models.official_names import Slot, encoder_slots, official_slots, projector_shapes
from pc3d.models.part_segmentation import PointPartSegmenter
from pc3d.models.point_vit import PointViT

Kind = Literal["point_mae", "point_cmae", "classification", "part_segmentation"]
OfficialModel = MaskedPointModel | PointClassifier | PointPartSegmenter

_PART_LAYERS = (3, 7, 11)
_WRAPPERS = ("base_model", "model", "model_state_dict")
_TOKEN_SUFFIXES: dict[Kind, list[str]] = {
    "point_mae": [],
    "point_cmae": ["1", "2"],
    "classification": [""],
    "part_segmentation": [],
}


@dataclass
class LoadReport:
    """What was done with the tensors of a file.

    Attributes:
        path: the file.
        kind: what it holds.
        used: the file's tensors that were taken.
        unused: the file's tensors that the loaded network has no place for.
        fresh: tensors of the loaded network that are not in the file, or rows of them, such as ``cls_token[1]``.
    """

    path: Path
    kind: Kind | Literal["posbert"]
    used: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.path}: {self.kind}, {len(self.used)} tensors used, {len(self.unused)} not used"
        text += f" ({in_short(self.unused)})" if self.unused else ""
        return text + (f"; left as initialised: {in_short(self.fresh)}" if self.fresh else "")


def load_official_model(path: str | os.PathLike[str], **arguments: Any) -> tuple[OfficialModel, LoadReport]:
    """Load an official checkpoint into the network it belongs to, in evaluation mode, on the CPU.

    Args:
        path: the ``.pth`` file.
        **arguments: of :class:`PointViT`, where they differ from the official ones (:func:`load_official_encoder`): a
            file does not state how many patches its network expects.

    Returns:
        The network and what was done with the file's tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a file of this family, is damaged, or its tensors have other shapes.
    """
    state, kind = _read(Path(path))
    model = _build(kind, state, arguments)
    slots = official_slots(model)
    _check_layout(slots, state, kind, Path(path))
    return model.eval(), _fill(model, slots, state, kind, Path(path))


def load_official_encoder(
    path: str | os.PathLike[str],
    *,
    keep_cls_tokens: bool = False,
    cls_from: Literal["fresh", "branch1"] = "fresh",
    **arguments: Any,
) -> tuple[PointViT, LoadReport]:
    """Load the encoder of any official checkpoint, in evaluation mode, on the CPU.

    The encoder follows the official farthest point sampling (``ignore_near_origin=True``) and has 64 patches (128 for
    part segmentation) unless told otherwise.

    Args:
        path: the ``.pth`` file.
        keep_cls_tokens: also take the class tokens that the file has (one of a classifier, two of Point-CMAE). The
            official fine-tuning throws those of Point-CMAE away, so by default the encoder has none. With
            ``num_cls_tokens``, the first so many; what the file has no token for is fresh.
        cls_from: ``"branch1"`` gives the encoder one class token, as a classifier needs it, and takes it from the
            first branch of a Point-CMAE file; with ``"fresh"`` it is what ``num_cls_tokens=1`` initialises it to, as
            in the official fine-tuning.
        **arguments: of :class:`PointViT`, where they differ from the official ones, such as ``num_groups=128``.

    Returns:
        The encoder and what was done with the file's tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as :func:`load_official_model`; ``cls_from="branch1"`` of a file without branches, with
            ``keep_cls_tokens``, or for an encoder with another number of class tokens.
    """
    state, kind = _read(Path(path))
    if cls_from not in ("fresh", "branch1"):
        raise ValueError(f'cls_from must be "fresh" or "branch1", got {cls_from!r}')
    if cls_from == "branch1":
        _check_branch_token(kind, keep_cls_tokens, arguments.get("num_cls_tokens", 1), Path(path))
    # The whole file must fit its kind before a part of it is taken.
    _check_layout(official_slots(_build(kind, state, {})), state, kind, Path(path))
    suffixes = ["1"] if cls_from == "branch1" else _TOKEN_SUFFIXES[kind] if keep_cls_tokens else []
    encoder = PointViT(**{**_encoder_arguments(kind), "num_cls_tokens": len(suffixes), **arguments})
    prefix = "MAE_encoder." if kind in ("point_mae", "point_cmae") else ""
    slots = encoder_slots(encoder, prefix, suffixes)
    _check_shapes(slots, state, Path(path))
    return encoder.eval(), _fill(encoder, slots, state, kind, Path(path))


def _check_branch_token(kind: Kind, keep_cls_tokens: bool, num_cls_tokens: int, path: Path) -> None:
    if kind != "point_cmae":
        raise ValueError(f'{path} is a {kind} checkpoint; cls_from="branch1" needs one of Point-CMAE pre-training')
    if keep_cls_tokens or num_cls_tokens != 1:
        raise ValueError(
            f'cls_from="branch1" is for one class token, got keep_cls_tokens={keep_cls_tokens} and '
            f"num_cls_tokens={num_cls_tokens}: leave them out"
        )


def warm_start(model: MaskedPointModel, path: str | os.PathLike[str]) -> LoadReport:
    """Start a masked autoencoder from an official Point-MAE checkpoint; its one decoder goes into every branch.

    Args:
        model: a network of the published size; its class tokens, if any, stay as they are.
        path: an official Point-MAE pre-training checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another kind of file, or shapes that do not fit.
    """
    source, report = load_official_model(path)
    if report.kind != "point_mae":
        raise ValueError(f"{path} is a {report.kind} checkpoint; warm_start takes Point-MAE pre-training checkpoints")
    merged = dict(model.state_dict())
    report.fresh = [name for name in merged if name in ("encoder.cls_token", "encoder.cls_position")]
    for name in set(merged) - set(report.fresh):
        parts = name.split(".")
        origin = ".".join(["decoders", "0", *parts[2:]]) if parts[0] == "decoders" else name
        value = source.state_dict().get(origin)
        if value is None or value.shape != merged[name].shape:
            found = "nothing" if value is None else str(tuple(value.shape))
            raise ValueError(f"{name} of the model is {tuple(merged[name].shape)}, but {path} has {found} for it")
        merged[name] = value
    model.load_state_dict(merged)
    return report


def to_official_state(model: OfficialModel, *, module_prefix: bool = False) -> dict[str, Tensor]:
    """The state dict that the official code would have for these weights.

    For two branches it includes the projector of the released code, whose output that code discards: zeros, with an
    identity batch norm, so that a strict load succeeds there.

    Args:
        model: any of the networks that have an official counterpart.
        module_prefix: put ``module.`` in front of every name, as single-GPU runs of the official code do.

    Raises:
        TypeError: a network without one, such as that of PCP-MAE, or that computes something else with the same
            weights.
    """
    ours, slots = model.state_dict(), official_slots(model)
    _check_counterpart(model, slots)
    state = {}
    for name, slot in slots.items():
        value = ours[slot.name] if slot.row is None else ours[slot.name][slot.row]
        state[name] = value.detach().clone().reshape(slot.shape)
    if isinstance(model, MaskedPointModel) and len(model.decoders) == 2:
        for name, shape in projector_shapes(model.encoder.embed_dim).items():
            is_one = name.endswith(("1.weight", "running_var"))
            dtype = torch.int64 if name.endswith("num_batches_tracked") else torch.float32
            state[name] = torch.full(shape, float(is_one)).to(dtype)
    return {("module." if module_prefix else "") + name: value for name, value in state.items()}


def _check_counterpart(model: OfficialModel, slots: dict[str, Slot]) -> None:
    """Refuse a network of which a part would be lost, or that the official code would run differently."""
    official = {slot.name for slot in slots.values()}
    lost = [name for name in model.state_dict() if name not in official]
    if lost:
        raise TypeError(f"the official code has no place for {in_short(lost)} of this {type(model).__name__}")
    config = model.encoder.config
    for name, value in {"add_position": "every_block", "position_features": "coordinates"}.items():
        if config[name] != value:
            raise TypeError(f"the official code has {name}={value!r} alone, this encoder {config[name]!r}")
    if isinstance(model, PointPartSegmenter) and model.layers != _PART_LAYERS:
        raise TypeError(f"the official part segmenter reads blocks {_PART_LAYERS}, this one {model.layers}")
    if isinstance(model, MaskedPointModel) and len(model.decoders) == 2 and not config["num_cls_tokens"]:
        raise TypeError("the official code has a class token for each of two branches, this encoder has none")


def _read(path: Path) -> tuple[dict[str, Tensor], Kind]:
    state = {name.removeprefix("module."): value for name, value in read_state(path, _WRAPPERS).items()}
    return state, _recognise(state, path)


def read_state(path: Path, wrappers: Sequence[str]) -> dict[str, Tensor]:
    """The state dict of a checkpoint, under one of the names ``wrappers`` or bare; nothing of the file is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds something else.
    """
    return state_of(read_checkpoint(path), wrappers, path)


def read_checkpoint(path: Path) -> Any:
    """All that a checkpoint holds; nothing of the file is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        with torch.serialization.safe_globals(_plain_values()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, plain values, NumPy numbers and parsed arguments, or is no checkpoint; "
            f"it is refused because reading the rest could run code from it: {error}"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} is not a readable PyTorch checkpoint (truncated or still being copied?): {error}"
        ) from error


def state_of(content: Any, wrappers: Sequence[str], path: Path) -> dict[str, Tensor]:
    """The state dict in what :func:`read_checkpoint` read, under one of the names ``wrappers`` or bare.

    Raises:
        ValueError: there is none.
    """
    state = content
    for wrapper in wrappers:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            state = content[wrapper]
            break
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        keys = in_short([str(key) for key in content]) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} has no state dict under any of {', '.join(wrappers)}; it holds {keys}")
    return {str(name): value for name, value in state.items()}


def _plain_values() -> list[Any]:
    # Several trainers keep their parsed arguments; a namespace is a bag of attributes, of which reading runs nothing.
    # Official files keep metrics as NumPy numbers. A number is pickled as scalar(dtype, bytes), under NumPy 1's or
    # NumPy 2's module name.
    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("_core", "core")]
    return [*names, np.dtype, *kinds, argparse.Namespace]


def _recognise(state: dict[str, Tensor], path: Path) -> Kind:
    foreign = {
        "transformer_q.": "Point-BERT or MaskPoint pre-training",
        "reduce_dim.": "Point-BERT or MaskPoint (their tokenizer is 256 wide and followed by reduce_dim)",
        "codebook": "a discrete VAE (the tokenizer of Point-BERT)",
        "dgcnn_1.": "a discrete VAE (the tokenizer of Point-BERT)",
        "MAE_encoder.mask_pos_token": "PCP-MAE pre-training (it predicts positions and embeds sinusoids of them)",
    }
    for prefix, what in foreign.items():
        if any(name.startswith(prefix) for name in state):
            raise ValueError(f"{path} is a checkpoint of {what}: another architecture, which pc3d does not load")
    marks: list[tuple[str, Kind]] = [
        ("MAE_decoder_.", "point_cmae"),
        ("MAE_decoder.", "point_mae"),
        ("label_conv.", "part_segmentation"),
        ("cls_head_finetune.", "classification"),
    ]
    for prefix, kind in marks:
        if any(name.startswith(prefix) for name in state):
            return kind
    raise ValueError(
        f"{path} is none of the known checkpoints (Point-MAE or Point-CMAE pre-training, classification, part "
        f"segmentation); its tensors are {in_short(list(state))}"
    )


def _encoder_arguments(kind: Kind) -> dict[str, Any]:
    parts = kind == "part_segmentation"
    return {
        "num_groups": 128 if parts else 64,
        "num_points": 2048 if parts else 1024,
        "num_cls_tokens": len(_TOKEN_SUFFIXES[kind]),
        "ignore_near_origin": True,
    }


def _build(kind: Kind, state: dict[str, Tensor], arguments: dict[str, Any]) -> OfficialModel:
    encoder = PointViT(**{**_encoder_arguments(kind), **arguments})
    if kind == "point_mae":
        return MaskedPointModel(encoder, 1)
    if kind == "point_cmae":
        return MaskedPointModel(encoder, 2)
    if kind == "part_segmentation":
        return PointPartSegmenter(encoder)
    last = "cls_head_finetune.8.bias" if "cls_head_finetune.8.bias" in state else "cls_head_finetune.0.bias"
    num_classes = state[last].numel() if last in state else 1
    return PointClassifier(encoder, num_classes, "full" if last.endswith("8.bias") else "linear")


def _check_layout(slots: dict[str, Slot], state: dict[str, Tensor], kind: Kind, path: Path) -> None:
    projector = projector_shapes(384) if kind == "point_cmae" else {}
    missing = [name for name in slots if name not in state]
    unknown = [name for name in state if name not in slots and name not in projector]
    if missing or unknown:
        _refuse(path, kind, [f"missing {name}" for name in missing] + [f"unknown {name}" for name in unknown])
    _check_shapes(slots, state, path)


def _check_shapes(slots: dict[str, Slot], state: dict[str, Tensor], path: Path) -> None:
    wrong = [
        f"{name} is {tuple(state[name].shape)}, expected {slot.shape}"
        for name, slot in slots.items()
        if name not in state or tuple(state[name].shape) != slot.shape
    ]
    if wrong:
        _refuse(path, None, wrong)


def _refuse(path: Path, kind: Kind | None, problems: list[str]) -> NoReturn:
    what = f"looks like {kind}, but" if kind else "does not fit:"
    raise ValueError(f"{path} {what} {len(problems)} tensors differ from it: {in_short(problems)}")


def _fill(model: nn.Module, slots: dict[str, Slot], state: dict[str, Tensor], kind: Kind, path: Path) -> LoadReport:
    ours = model.state_dict()
    with torch.no_grad():
        for name, slot in slots.items():
            target = ours[slot.name] if slot.row is None else ours[slot.name][slot.row]
            target.copy_(state[name].reshape(target.shape))
    return LoadReport(
        path,
        kind,
        used=[name for name in state if name in slots],
        unused=[name for name in state if name not in slots],
        fresh=_fresh(ours, slots),
    )


def _fresh(ours: dict[str, Tensor], slots: dict[str, Slot]) -> list[str]:
    """Tensors that no slot fills, and the rows left over of those filled row by row."""
    filled: dict[str, set[int | None]] = {}
    for slot in slots.values():
        filled.setdefault(slot.name, set()).add(slot.row)
    fresh = []
    for name, value in ours.items():
        rows = filled.get(name)
        if rows is None:
            fresh.append(name)
        elif None not in rows:
            fresh += [f"{name}[{row}]" for row in range(len(value)) if row not in rows]
    return fresh


def in_short(names: list[str]) -> str:
    """The first four names, and how many more there are."""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
