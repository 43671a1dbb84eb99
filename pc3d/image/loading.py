"""Load towers by one string, ``library:model``, for configurations and the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pc3d._extras import require
from pc3d.data.aligned_files import RELEASED_TOWER
from pc3d.image import offline
from pc3d.image.bridge import conse_pair
from pc3d.image.open_clip_towers import open_clip_pair
from pc3d.image.timm_towers import timm_tower
from pc3d.image.towers import ImageTower, JointPair, TextTower
from pc3d.image.transformers_towers import sentence_tower, transformers_image_tower, transformers_pair

OPENSHAPE_PAIR = RELEASED_TOWER
"""The pair that OpenShape was trained with (Liu et al. 2023, section 3.2)."""
CONSE_PAIR = "offline:conse"
"""Name of the bridge of small weights, for :func:`load_pair`."""


def _split(name: str, libraries: dict[str, str]) -> tuple[str, str]:
    library, colon, model = name.partition(":")
    if not colon or not model or library not in libraries:
        known = ", ".join(f"{key}:{value}" for key, value in libraries.items())
        raise ValueError(f"{name!r} is not LIBRARY:MODEL; known are {known}")
    return library, model


def _open_clip(model: str, weights: str | None) -> JointPair:
    model, _, tag = model.partition("/")
    chosen = weights or tag
    if not chosen:
        raise ValueError(f"open_clip:{model} says not which weights: open_clip:{model}/TAG, or weights=FILE")
    return open_clip_pair(model, chosen)


def tower_name(name: str) -> str:
    """The name that a tower has in stored features; for a file or folder, the last part of its path.

    Args:
        name: as :func:`load_pair`, :func:`load_image_tower` and :func:`load_text_tower` take it; nothing is opened.
    """
    library, _, model = name.partition(":")
    if library == "open_clip":
        model, slash, weights = model.partition("/")
        return f"open_clip:{model}{slash}{Path(weights).name}"
    if library in ("transformers", "sentence") and Path(model).is_dir():
        return f"{library}:{Path(model).name}"
    return name


def _refuse_weights(library: str, weights: str | None) -> None:
    if weights is not None:
        raise ValueError(f"weights: {library} takes no file; give a folder or an id as the model's name")


def known_width(name: str) -> int | None:
    """Width of a tower's features if its name determines it, before any weights are loaded; else None.

    It does for the models that open_clip knows.
    """
    library, _, model = name.partition(":")
    if library != "open_clip":
        return None
    towers = require("open_clip", extra="image", purpose="towers by that library")
    config = towers.get_model_config(model.partition("/")[0])
    return None if config is None else int(config["embed_dim"])


def load_pair(name: str = OPENSHAPE_PAIR, weights: str | None = None) -> JointPair:
    """Load an image tower and a text tower that share one space.

    Args:
        name: ``open_clip:MODEL/TAG``, ``transformers:ID_OR_FOLDER`` or ``offline:conse`` (a bridge, not
            CLIP; ``offline:conse-centred`` has cosines that spread out).
        weights: a local file instead of the tag, for open_clip.

    Raises:
        ValueError: no such library, model or tag.
        MissingWeightsError: the weights are not here and cannot be fetched; the message says how to get some.
    """
    library, model = _split(name, {"open_clip": "MODEL/TAG", "transformers": "ID_OR_FOLDER", "offline": "conse"})
    if library == "open_clip":
        return _open_clip(model, weights)
    _refuse_weights(library, weights)
    if library == "transformers":
        return transformers_pair(model)
    if model not in ("conse", "conse-centred"):
        raise ValueError(f"the offline pairs are {CONSE_PAIR} and {CONSE_PAIR}-centred, got {name!r}")
    return conse_pair(centred=model == "conse-centred")


def load_image_tower(name: str, weights: str | None = None) -> ImageTower:
    """An image tower.

    Args:
        name: ``open_clip:MODEL/TAG``, ``transformers:ID_OR_FOLDER``, ``timm:MODEL.TAG``,
            ``offline:efficientnet-lite0``, ``offline:xfeat`` or ``offline:conse``.
        weights: a local file, for open_clip and timm.

    Raises:
        ValueError: no such library, model or tag.
        MissingWeightsError: the weights are not here and cannot be fetched; the message says how to get some.
    """
    library, model = _split(
        name,
        {"open_clip": "MODEL/TAG", "transformers": "ID_OR_FOLDER", "timm": "MODEL", "offline": "efficientnet-lite0"},
    )
    if library == "open_clip":
        return _open_clip(model, weights).image
    if library == "timm":
        return timm_tower(model, weights)
    _refuse_weights(library, weights)
    if library == "transformers":
        return transformers_image_tower(model)
    built: dict[str, Callable[[], ImageTower]] = {
        "efficientnet-lite0": offline.efficientnet_lite0,
        "xfeat": offline.xfeat,
        "conse": lambda: conse_pair().image,
        "conse-centred": lambda: conse_pair(centred=True).image,
    }
    if model not in built:
        raise ValueError(f"the offline image towers are {', '.join(f'offline:{key}' for key in built)}, got {name!r}")
    return built[model]()


def load_text_tower(name: str, weights: str | None = None) -> TextTower:
    """A text tower.

    Args:
        name: ``open_clip:MODEL/TAG``, ``transformers:ID_OR_FOLDER`` of a pair, ``sentence:ID_OR_FOLDER`` of a sentence
            encoder with mean pooling, ``offline:minilm``, or ``offline:minilm-centred`` (of the centred bridge).
        weights: of open_clip, a local file.

    Raises:
        ValueError: no such library, model or tag.
        MissingWeightsError: the weights are not here and cannot be fetched; the message says how to get some.
    """
    library, model = _split(
        name,
        {"open_clip": "MODEL/TAG", "transformers": "ID_OR_FOLDER", "sentence": "ID_OR_FOLDER", "offline": "minilm"},
    )
    if library == "open_clip":
        return _open_clip(model, weights).text
    _refuse_weights(library, weights)
    if library == "transformers":
        return transformers_pair(model).text
    if library == "sentence":
        return sentence_tower(model)
    if model not in ("minilm", "minilm-centred"):
        raise ValueError(f"the offline text towers are offline:minilm and offline:minilm-centred, got {name!r}")
    return offline.minilm() if model == "minilm" else conse_pair(centred=True).text
