"""A trained model as a folder: ``encoder/``, which ``load_encoder`` reads, and ``head/``, which is everything else."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor, nn

from pc3d._files import replace_atomically
from pc3d._version import __version__
from pc3d.models import save_encoder

CONFIG, WEIGHTS = "config.json", "head.safetensors"


def save_model(
    folder: str | os.PathLike[str], encoder: nn.Module, head: Mapping[str, Tensor], config: Mapping[str, Any]
) -> Path:
    """Write ``head/`` and, last, ``encoder/``: its presence says that the folder is complete.

    Args:
        folder: created if need be.
        encoder: one that ``load_encoder`` can build again.
        head: the other tensors.
        config: what is needed to build the rest, kept as JSON.

    Raises:
        TypeError: the encoder is none that ``load_encoder`` could build again.
    """
    folder = Path(folder)
    place = folder / "head"
    tensors = {name: value.detach().cpu().contiguous() for name, value in head.items()}
    text = json.dumps({**config, "pc3d_version": __version__}, indent=2) + "\n"
    # The last one named is the first to come into place, once both are written.
    with replace_atomically(place / CONFIG) as settings, replace_atomically(place / WEIGHTS) as weights:
        weights.write(save(tensors, metadata={"format": "pt"}))
        settings.write(text.encode())
    save_encoder(encoder, folder / "encoder")
    return folder


def head_config(folder: str | os.PathLike[str], verb: str, what: str) -> dict[str, Any]:
    """The configuration of the head in a run folder.

    Args:
        folder: the run folder.
        verb: that writes such a folder, as in ``"segment"``.
        what: is looked for, in words.

    Raises:
        FileNotFoundError: the folder holds none, or the run in it has not finished.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: give the run folder of pc3d {verb} train")
    path = folder / "head" / CONFIG
    if not path.is_file():
        unfinished = (folder / "last.ckpt").is_file() and not (folder / "encoder").is_dir()
        remedy = (
            f"the run in it has not finished: pc3d {verb} train --output {folder} --resume"
            if unfinished
            else f"give the run folder of pc3d {verb} train"
        )
        raise FileNotFoundError(f"{folder} has no head/{CONFIG}, so it holds no {what}: {remedy}")
    config: dict[str, Any] = json.loads(path.read_text())
    return config


def head_weights(folder: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of the head."""
    return load_file(Path(folder) / "head" / WEIGHTS)


def does_not_fit(folder: str | os.PathLike[str], error: Exception) -> ValueError:
    """The error of a head whose tensors do not fit the encoder beside it."""
    return ValueError(f"{Path(folder) / 'head' / WEIGHTS} does not fit the encoder beside it: {error}")
