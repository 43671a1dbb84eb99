"""Encoders as folders: ``model.safetensors`` and ``config.json``, on disk or on the Hugging Face Hub."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from pc3d._files import replace_atomically
from pc3d._version import __version__
from pc3d.models.aligned import AlignedShapeEncoder
from pc3d.models.block_features import BlockFeatures
from pc3d.models.described import check_described, describe, imported_class
from pc3d.models.dgcnn import DGCNN
from pc3d.models.distilled import DistilledEncoder
from pc3d.models.hub_files import CONFIG, WEIGHTS, locate
from pc3d.models.object_encoder import ObjectEncoder
from pc3d.models.openshape import OpenShapePointBERT
from pc3d.models.openshape_fcnn import OpenShapeFCNN
from pc3d.models.openshape_sparse import OpenShapeSparseConv
from pc3d.models.point_net import PointNet
from pc3d.models.point_transformer_v3 import PointTransformerV3
from pc3d.models.point_vit import PointViT
from pc3d.models.sparse_unet import SparseUNet
from pc3d.models.swin3d import Swin3D
from pc3d.models.vit3d import ViT3D
from pc3d.models.voxel_features import UpcastFeatures

Encoder = (
    PointViT
    | ViT3D
    | PointNet
    | DGCNN
    | BlockFeatures
    | Swin3D
    | SparseUNet
    | PointTransformerV3
    | OpenShapePointBERT
    | OpenShapeSparseConv
    | OpenShapeFCNN
    | AlignedShapeEncoder
    | DistilledEncoder
    | UpcastFeatures
)
AnyEncoder = TypeVar("AnyEncoder", bound=nn.Module)

_AROUND = (AlignedShapeEncoder, BlockFeatures, DistilledEncoder, UpcastFeatures)


def _around(kind: Callable[..., Encoder]) -> Callable[..., Encoder]:
    """A class around an encoder, built from its configuration, which names the one inside."""

    def build(**arguments: Any) -> Encoder:
        if "encoder" in arguments:  # a class of one's own may make it itself
            arguments["encoder"] = build_encoder(arguments["encoder"])
        return kind(**arguments)

    return build


ENCODERS: dict[str, Callable[..., Encoder]] = {
    "PointViT": PointViT,
    "ViT3D": ViT3D,
    "PointNet": PointNet,
    "DGCNN": DGCNN,
    "BlockFeatures": _around(BlockFeatures),
    "Swin3D": Swin3D,
    "SparseUNet": SparseUNet,
    "PointTransformerV3": PointTransformerV3,
    "OpenShapePointBERT": OpenShapePointBERT,
    "OpenShapeSparseConv": OpenShapeSparseConv,
    "OpenShapeFCNN": OpenShapeFCNN,
    "AlignedShapeEncoder": _around(AlignedShapeEncoder),
    "DistilledEncoder": _around(DistilledEncoder),
    "UpcastFeatures": _around(UpcastFeatures),
}


def build_encoder(description: Mapping[str, Any]) -> nn.Module:
    """The encoder of :func:`pc3d.models.described.describe`, with fresh weights.

    Raises:
        ValueError: pc3d has no such class, or it cannot be imported.
        TypeError: the class does not take the arguments.
    """
    return _constructor(description["class"])(**description["arguments"])


def _constructor(name: str) -> Callable[..., nn.Module]:
    if "." in name:
        kind = imported_class(name)
        if not _is_encoder(kind):
            raise ValueError(f"{name} is neither an ObjectEncoder (pc3d.models) nor a network with point_features")
        return _around(kind) if issubclass(kind, _AROUND) else kind
    if name not in ENCODERS:
        raise ValueError(f"the class {name!r} is none of this pc3d {__version__}, which has {', '.join(ENCODERS)}")
    return ENCODERS[name]


def _is_encoder(kind: type) -> bool:
    # No other network is built from a file: many load code or weights when they are, from wherever it says.
    return issubclass(kind, ObjectEncoder | Encoder) or hasattr(kind, "point_features")


def check_storable(encoder: nn.Module) -> None:
    """Refuse, before it is trained, an encoder that :func:`load_encoder` could not build again.

    Raises:
        TypeError: see :func:`save_encoder`.
    """
    layers = [encoder]
    while isinstance(layers[-1], _AROUND):
        layers.append(layers[-1].encoder)
    for layer in layers:
        kind = type(layer)
        if kind.__name__ in ENCODERS and kind.__module__.startswith("pc3d."):
            continue
        if not _is_encoder(kind):
            raise TypeError(
                f"encoder must be one of {', '.join(ENCODERS)}, or of your own an ObjectEncoder (pc3d.models) or a "
                f"network with point_features; got {kind.__name__}"
            )
        check_described(layer)


def save_encoder(encoder: nn.Module, folder: str | os.PathLike[str]) -> Path:
    """Save an encoder so that :func:`load_encoder` can rebuild it anywhere.

    Both files are replaced atomically, the weights last: a folder never holds an incomplete file.

    Args:
        encoder: a :class:`PointViT`, :class:`ViT3D`, :class:`PointNet`, :class:`DGCNN`, :class:`Swin3D`,
            :class:`SparseUNet`, :class:`OpenShapePointBERT`, :class:`OpenShapeSparseConv` or :class:`OpenShapeFCNN`; an
            :class:`ObjectEncoder` of your own, or a network with ``point_features``, which can be imported and stores
            the arguments of its constructor as ``config``; or one of these in an :class:`AlignedShapeEncoder`, a
            :class:`DistilledEncoder`, :class:`BlockFeatures` or :class:`UpcastFeatures`.
        folder: created if needed; an encoder in it is replaced.

    Returns:
        The folder.

    Raises:
        TypeError: not an encoder that can be loaded back.
        OSError: the folder cannot be written.
    """
    check_storable(encoder)
    folder = Path(folder)
    config = {**describe(encoder), "pc3d_version": __version__}
    # Copies: safetensors refuses weights that share memory, as tied ones do.
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in encoder.state_dict().items()
    }
    # The last one named is the first to come into place, once both are written.
    with replace_atomically(folder / WEIGHTS) as weights, replace_atomically(folder / CONFIG) as settings:
        weights.write(save(tensors, metadata={"format": "pt"}))
        settings.write((json.dumps(config, indent=2) + "\n").encode())
    return folder


@overload
def load_encoder(path_or_hub_id: str | os.PathLike[str], *, revision: str | None = None) -> Encoder: ...


@overload
def load_encoder(
    path_or_hub_id: str | os.PathLike[str], *, revision: str | None = None, expect: type[AnyEncoder]
) -> AnyEncoder: ...


def load_encoder(
    path_or_hub_id: str | os.PathLike[str], *, revision: str | None = None, expect: type[nn.Module] | None = None
) -> Any:
    """Load an encoder that :func:`save_encoder` or ``pc3d pretrain`` wrote, in evaluation mode, on the CPU.

    Weights contain no code: an encoder of a class outside of pc3d can be loaded only where that class can be imported.
    For an encoder from the Hub, the class must have been imported already, so that files published by others cannot
    decide which code runs.

    Args:
        path_or_hub_id: a folder with ``config.json`` and ``model.safetensors`` (or a run folder, whose ``encoder/`` is
            used), or the id ``owner/name`` of a repository on the Hugging Face Hub. If a local folder ``owner`` exists,
            the argument is a path unless ``revision`` is given.
        revision: branch, tag or commit on the Hub.
        expect: the class that the caller needs; by default any.

    Raises:
        FileNotFoundError: neither such a folder nor such a repository exists.
        ValueError: the files do not describe an encoder that can be built here, or not of the class ``expect``, or
            weights and configuration do not fit.
    """
    config_path, weights_path, published = locate(path_or_hub_id, revision)
    encoder = _build(config_path, published)
    if expect is not None and not isinstance(encoder, expect):
        raise ValueError(
            f"{config_path.parent} holds a {type(encoder).__name__}, but a {expect.__name__} is needed here"
        )
    try:
        tensors = load_file(weights_path)
    except SafetensorError as error:
        raise ValueError(f"{weights_path} is not a complete safetensors file: {error}") from error
    _check_fit(encoder, tensors, weights_path)
    encoder.load_state_dict(tensors)
    return encoder.eval()


def _build(config_path: Path, published: bool) -> nn.Module:
    try:
        config: dict[str, Any] = json.loads(config_path.read_text())
        names, arguments = _names(config), config["arguments"]
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{config_path} is not the configuration of a pc3d encoder: {error!r}") from error
    foreign = [name for name in names if "." in name and name.rpartition(".")[0] not in sys.modules]
    if published and foreign:
        raise ValueError(
            f"{config_path}, from the Hub, names the class {foreign[0]}, which is none of pc3d: where you trust it, "
            "import it before, or load the folder of a local copy"
        )
    try:
        constructors = [_constructor(name) for name in names]
    except ValueError as error:
        written = config.get("pc3d_version", "unknown")
        raise ValueError(
            f"{config_path}, written by pc3d {written}, names an encoder that is not here: {error}"
        ) from error
    try:
        return constructors[0](**arguments)
    except TypeError as error:
        raise ValueError(f"{config_path} has arguments that {names[0]} does not take: {error}") from error


def _names(description: Any) -> list[str]:
    """The class that a configuration names, and those of the encoders inside it.

    Raises:
        KeyError, TypeError: it is none of an encoder.
    """
    names: list[str] = []
    around = {kind.__name__ for kind in _AROUND}
    while True:
        name, arguments = description["class"], description["arguments"]
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise TypeError(f"class must be a name and arguments a dictionary, got {name!r} and {arguments!r}")
        names.append(name)
        description = arguments.get("encoder")
        like_one = isinstance(description, dict) and {"class", "arguments"} <= set(description)
        if name not in around and not like_one:
            return names


def _check_fit(encoder: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    expected = encoder.state_dict()
    problems = [f"missing {name}" for name in expected if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in expected]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{path} does not fit its {CONFIG}: {'; '.join(problems[:5])}{more}")
