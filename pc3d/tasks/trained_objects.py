"""Trained models of objects, loaded without what trained them: predicting does not import Lightning."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from pc3d._configured import stored_objects
from pc3d._extras import require
from pc3d._files import read_config
from pc3d.data import Compose, Transform
from pc3d.models import (
    ObjectEncoder,
    PointClassifier,
    PointPartSegmenter,
    VectorClassifier,
    classifier_of,
    load_encoder,
)
from pc3d.tasks.model_folder import does_not_fit, head_config, head_weights


def load_classifier(folder: str | os.PathLike[str]) -> tuple[PointClassifier | VectorClassifier, dict[str, Any]]:
    """Load what ``pc3d classify train`` wrote, in evaluation mode, on the CPU.

    Args:
        folder: the run folder.

    Returns:
        The model, and a description of it: ``classes``, ``mode``, and ``training``, how it was trained.

    Raises:
        FileNotFoundError: the folder holds no classifier, or the run in it has not finished.
        ValueError: the files do not fit one another.
    """
    config = head_config(folder, "classify", "classifier")
    if config.get("task") != "classification":
        raise FileNotFoundError(f"{folder} holds no classifier but the model of another task")
    model = classifier_of(load_encoder(Path(folder) / "encoder"), len(config["classes"]), config["mode"])
    _load_head(model, folder)
    return model.eval(), config


def load_part_segmenter(folder: str | os.PathLike[str]) -> tuple[PointPartSegmenter, dict[str, Any]]:
    """Load what ``pc3d parts train`` wrote, in evaluation mode, on the CPU.

    Args:
        folder: the run folder.

    Returns:
        The model, and a description of it: ``categories``, ``parts``, ``category_parts``, and ``training``, how it was
        trained.

    Raises:
        FileNotFoundError: the folder holds no part segmenter, or the run in it has not finished.
        ValueError: the files do not fit one another.
    """
    config = head_config(folder, "parts", "part segmenter")
    if config.get("task") != "part segmentation":
        raise FileNotFoundError(f"{folder} holds no part segmenter but the model of another task")
    encoder = load_encoder(Path(folder) / "encoder")
    if not isinstance(encoder, ObjectEncoder):
        raise ValueError(f"{folder} holds a {type(encoder).__name__}, which no part segmenter is built on")
    layers = None if config["layers"] is None else tuple(config["layers"])
    sizes = len(config["parts"]), len(config["categories"])
    model = PointPartSegmenter(encoder, *sizes, layers, tuple(config["head_dims"]))
    _load_head(model, folder)
    return model.eval(), config


def stored_preparation(folder: str | os.PathLike[str]) -> Compose:
    """How a run prepared the objects that it was judged on; its data need not be there.

    Args:
        folder: the run folder.

    Raises:
        FileNotFoundError: the run has no configuration.
    """
    jsonargparse = require("jsonargparse", extra="train", purpose="configurations")
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give the run folder of a training that has finished")
    chosen = read_config(path).get("data", {}).get("eval_transforms") or []
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--eval_transforms", type=list[Transform])
    return Compose(stored_objects(parser, {"eval_transforms": chosen}, path).eval_transforms)


def _load_head(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    try:
        missing, unknown = model.load_state_dict(head_weights(folder), strict=False)
        lost = [name for name in missing if not name.startswith("encoder.")]
        if lost or unknown:
            raise RuntimeError(f"missing {lost}, unknown {unknown}")
    except RuntimeError as error:
        raise does_not_fit(folder, error) from error
