"""Tiny towers with random weights, written to files so that they are loaded as real ones are, and pictures."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pc3d.image import INSTALL_WEIGHTS

WIDTH, LAYERS, PATCH, SIZE, JOINT = 64, 2, 8, 32, 24
WORDS = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", "a", "photo", "of", "chair", "table", "lamp", "."]


def needs_weights(*packages: str) -> pytest.MarkDecorator:
    """Skips where a package with weights is not installed; continuous integration has all."""
    missing = [package for package in packages if find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=INSTALL_WEIGHTS)


def picture(height: int = 40, width: int = 56, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth colours with some noise."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[:height, :width]
    waves = [np.sin(row / 7 + c) + np.cos(column / (5 + c)) for c in range(channels)]
    return ((np.stack(waves, 2) / 4 + 0.5) * 235 + rng.integers(0, 20, (height, width, channels))).astype(np.uint8)


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Every parameter drawn anew, so that no zero or one of the initialisation hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if parameter.ndim == 1 and parameter.mean() > 0.5 else 0.15 * noise)


def write_open_clip(folder: Path, name: str, vision: dict[str, Any]) -> tuple[str, str]:
    import open_clip

    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    (folder / f"{name}.json").write_text(json.dumps({"embed_dim": JOINT, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(folder)
    model = open_clip.create_model(name)
    scale = model.logit_scale.detach().clone()
    randomize(model, seed=1)
    with torch.no_grad():
        model.logit_scale.copy_(scale)
    torch.save(model.state_dict(), folder / "weights.pt")
    return name, str(folder / "weights.pt")


def save_processor(folder: Path, size: int = SIZE) -> None:
    from transformers import CLIPImageProcessor

    CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}).save_pretrained(folder)
