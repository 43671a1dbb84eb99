"""Encoders as folders: ``model.safetensors`` and ``config.json``, on disk or on the Hugging Face Hub."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
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
from pc3d.models.openshape import OpenShapePointBERT
from pc3d.models.openshape_fcnn import OpenShapeFCNN
from pc3d.models.openshape_sparse import OpenShapeSparseConv
from pc3d.models.point_net import PointNet
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
    | OpenShapePointBERT
    | OpenShapeSparseConv
    | OpenShapeFCNN
    | AlignedShapeEncoder
    | DistilledEncoder
    | UpcastFeatures
)
AnyEncoder = TypeVar("AnyEncoder", bound=nn.Module)

_AROUND = (AlignedShapeEncoder, BlockFeatures, DistilledEncoder, UpcastFeatures)
WEIGHTS, CONFIG = "model.safetensors", "config.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def _aligned(encoder: dict[str, Any], **arguments: Any) -> AlignedShapeEncoder:
    """From its configuration, which names the encoder inside."""
    return AlignedShapeEncoder(build_encoder(encoder), **arguments)


def _blocks(encoder: dict[str, Any], **arguments: Any) -> BlockFeatures:
    """From its configuration, which names the encoder inside."""
    return BlockFeatures(build_encoder(encoder), **arguments)


def _distilled(encoder: dict[str, Any], **arguments: Any) -> DistilledEncoder:
    """From its configuration, which names the encoder inside."""
    return DistilledEncoder(build_encoder(encoder), **arguments)


def _upcast(encoder: dict[str, Any]) -> UpcastFeatures:
    """From its configuration, which names the encoder inside."""
    return UpcastFeatures(build_encoder(encoder))


ENCODERS: dict[str, Callable[..., Encoder]] = {
    "PointViT": PointViT,
    "ViT3D": ViT3D,
    "PointNet": PointNet,
    "DGCNN": DGCNN,
    "BlockFeatures": _blocks,
    "Swin3D": Swin3D,
    "SparseUNet": SparseUNet,
    "OpenShapePointBERT": OpenShapePointBERT,
    "OpenShapeSparseConv": OpenShapeSparseConv,
    "OpenShapeFCNN": OpenShapeFCNN,
    "AlignedShapeEncoder": _aligned,
    "DistilledEncoder": _distilled,
    "UpcastFeatures": _upcast,
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
        return imported_class(name)
    if name not in ENCODERS:
        raise ValueError(f"the class {name!r} is none of this pc3d {__version__}, which has {', '.join(ENCODERS)}")
    return ENCODERS[name]


def check_storable(encoder: nn.Module) -> None:
    """Refuse, before it is trained, an encoder that :func:`load_encoder` could not build again.

    Raises:
        TypeError: see :func:`save_encoder`.
    """
    inner = encoder.encoder if isinstance(encoder, _AROUND) else encoder
    if isinstance(inner, Encoder) and type(inner).__name__ in ENCODERS and type(inner).__module__.startswith("pc3d."):
        return
    if not (hasattr(inner, "encode") or hasattr(inner, "point_features")):
        raise TypeError(
            f"encoder must be one of {', '.join(ENCODERS)}, or a network with encode (pc3d.models.ObjectEncoder) or "
            f"point_features of your own; got {type(inner).__name__}"
        )
    check_described(inner)


def save_encoder(encoder: nn.Module, folder: str | os.PathLike[str]) -> Path:
    """Write an encoder so that :func:`load_encoder` rebuilds it anywhere.

    Both files are replaced atomically, the weights last: a folder never holds half of one.

    Args:
        encoder: a :class:`PointViT`, :class:`ViT3D`, :class:`PointNet`, :class:`DGCNN`, :class:`Swin3D`,
            :class:`SparseUNet`, :class:`OpenShapePointBERT`, :class:`OpenShapeSparseConv` or :class:`OpenShapeFCNN`;
            one of a class of your own with ``encode`` (:class:`ObjectEncoder`) or ``point_features``, which can be
            imported and keeps the arguments of its constructor as ``config``; or one of these in an
            :class:`AlignedShapeEncoder`, a :class:`DistilledEncoder`, :class:`BlockFeatures` or
            :class:`UpcastFeatures`.
        folder: created if need be; an encoder in it is replaced.

    Returns:
        The folder.

    Raises:
        TypeError: not an encoder that can be loaded back.
        OSError: the folder cannot be written.
    """
    check_storable(encoder)
    folder = Path(folder)
    config = {**describe(encoder), "pc3d_version": __version__}
    tensors = {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
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

    Code never comes with weights: an encoder of a class outside of pc3d is built where that class can be imported.

    Args:
        path_or_hub_id: a folder with ``config.json`` and ``model.safetensors`` (or a run folder, whose ``encoder/`` is
            taken), or the id ``owner/name`` of a repository on the Hugging Face Hub. Where there is a local folder
            ``owner``, this is taken for a path unless ``revision`` is given.
        revision: branch, tag or commit on the Hub.
        expect: the class that the caller can work with; any when left out.

    Raises:
        FileNotFoundError: neither such a folder nor such a repository exists.
        ValueError: the files do not describe an encoder that can be built here, or not of the class ``expect``, or
            weights and configuration do not fit.
    """
    config_path, weights_path = _locate(path_or_hub_id, revision)
    encoder = _build(config_path)
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


def _locate(path_or_hub_id: str | os.PathLike[str], revision: str | None) -> tuple[Path, Path]:
    path = Path(path_or_hub_id)
    for folder in (path, path / "encoder"):
        if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
            if revision is not None:
                raise ValueError(f"revision={revision!r} applies to the Hub, but {folder} is a local folder")
            return folder / CONFIG, folder / WEIGHTS
    if path.is_file():
        hint = "give the folder that holds it" if path.name in (WEIGHTS, CONFIG) else _hint_for_file(path)
        raise FileNotFoundError(
            f"{path} is a file, but load_encoder takes a folder with {CONFIG} and {WEIGHTS}: {hint}"
        )
    if path.is_dir():
        found = sorted(entry.name for entry in path.iterdir())[:8]
        raise FileNotFoundError(
            f"{path} has no {CONFIG} and {WEIGHTS} (it holds: {', '.join(found) or 'nothing'}); a run writes them to "
            "its encoder/ folder when it finishes: resume it with pc3d pretrain --resume"
        )
    hub_id = os.fspath(path_or_hub_id)
    if not _HUB_ID.fullmatch(hub_id) or hub_id.startswith("."):
        raise FileNotFoundError(f"there is no folder {hub_id}; an id on the Hugging Face Hub reads owner/name")
    first = path.parts[0]
    if revision is None and Path(first).is_dir():
        raise FileNotFoundError(
            f"there is no folder {hub_id} (there is one named {first}, so the Hugging Face Hub was not asked; if this "
            'is an id there, pass revision="main")'
        )
    return _download(hub_id, revision)


def _hint_for_file(path: Path) -> str:
    if path.suffix in (".pth", ".pt"):
        return (
            "an official checkpoint of the Point-MAE family is read by pc3d.models.load_official_encoder, one of "
            "Swin3D by load_official_swin3d, one of POS-BERT by load_posbert_encoder, one of OpenShape by "
            "load_aligned_openshape, or made such a folder by data_tools/convert_openshape_checkpoint.py"
        )
    return "a .ckpt file belongs to a run: its finished encoder is in encoder/ beside it"


def _download(hub_id: str, revision: str | None) -> tuple[Path, Path]:
    try:
        return (
            Path(hf_hub_download(hub_id, CONFIG, revision=revision)),
            Path(hf_hub_download(hub_id, WEIGHTS, revision=revision)),
        )
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise FileNotFoundError(
            f"{hub_id!r} is neither a folder here nor a repository on the Hugging Face Hub (a private one needs "
            f"`hf auth login`): {error}"
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"the repository {hub_id!r} has no revision {revision!r}: {error}") from error
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{hub_id!r} is no folder here, and the Hugging Face Hub cannot be reached to look for it there: {error}"
        ) from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(
            f"the repository {hub_id!r} (revision {revision or 'main'}) does not hold {CONFIG} and {WEIGHTS}: it was "
            f"not written by pc3d ({error})"
        ) from error


def _build(config_path: Path) -> nn.Module:
    try:
        config: dict[str, Any] = json.loads(config_path.read_text())
        name, arguments = config["class"], config["arguments"]
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{config_path} is not the configuration of a pc3d encoder: {error!r}") from error
    try:
        constructor = _constructor(name)
    except ValueError as error:
        written = config.get("pc3d_version", "unknown")
        raise ValueError(
            f"{config_path}, written by pc3d {written}, names an encoder that is not here: {error}"
        ) from error
    try:
        return constructor(**arguments)
    except TypeError as error:
        raise ValueError(f"{config_path} has arguments that {name} does not take: {error}") from error


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
