"""Towers of timm: supervised and self-supervised image encoders, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pc3d._extras import require
from pc3d.image.pictures import Preprocessing
from pc3d.image.towers import ImageTower, MissingWeightsError, does_not_fit


class TimmImageTower(ImageTower):
    """An image encoder of timm. Built by :func:`timm_tower`.

    Strided convolutions that pad both sides alike, as in ResNet, are centred on the first pixel of their stride, not on
    its middle: what such a network says of a place is of one up to half a cell (16 pixels) above and to the left.
    Transformers and networks of patches, such as ConvNeXt, are centred on their cells.

    Args:
        model: a model of timm with all its weights.
        name: name of the tower.
        preprocessing: of the weights.
        layer: which of its feature maps is the dense feature, counted as ``forward_intermediates`` counts them:
            blocks of a transformer, stages of a convolutional network; negative from the end.

    Raises:
        ValueError: the network has no such layer.
    """

    def __init__(self, model: nn.Module, name: str, preprocessing: Preprocessing, layer: int = -1) -> None:
        network: Any = model
        levels = list(network.feature_info)
        if not -len(levels) <= layer < len(levels):
            raise ValueError(f"layer must be in {-len(levels)}..{len(levels) - 1} for {name}, got {layer}")
        level = levels[layer]
        super().__init__(
            name,
            preprocessing,
            width=int(network.num_features if not hasattr(network, "head_hidden_size") else network.head_hidden_size),
            dense_width=int(level["num_chs"]),
            stride=int(level["reduction"]),
        )
        self.model, self.layer = model, layer % len(levels)
        self._freeze()

    def _global(self, pixels: Tensor) -> Tensor:
        network: Any = self.model
        return torch.as_tensor(network.forward_head(network.forward_features(pixels), pre_logits=True))

    def _dense(self, pixels: Tensor) -> Tensor:
        network: Any = self.model
        options = {"norm": True, "stop_early": True, "intermediates_only": True}
        try:
            maps: list[Tensor] = network.forward_intermediates(pixels, indices=[self.layer], **options)
        except AssertionError as error:  # timm's way to refuse
            raise ValueError(
                f"{self.name} has no dense features of {pixels.shape[3]} x {pixels.shape[2]} pixels ({error}): take a "
                "model for pictures of any size, such as a vit or a convolutional network"
            ) from error
        return maps[0]

    def logits(self, pixels: Tensor) -> Tensor:
        """Of the classes that the model was trained on, ``(B, num_classes)``."""
        with torch.no_grad():
            return torch.as_tensor(self.model(pixels.to(self.device, self.dtype))).float()

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "layer": self.layer}

    def versions(self) -> dict[str, str]:
        return {**super().versions(), "timm": require("timm", extra="image").__version__}


def timm_preprocessing(config: dict[str, Any]) -> Preprocessing:
    """What ``resolve_model_data_config`` of timm says, as :class:`Preprocessing`.

    Raises:
        ValueError: the model pads pictures to a square.
    """
    mode = config.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise ValueError(
            f"model: its pictures are prepared by timm's crop_mode {mode!r}, only center and squash are known here: "
            "choose another model"
        )
    return Preprocessing(
        size=int(config["input_size"][1]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        resize="squash" if mode == "squash" else "shortest",
        crop=float(config["crop_pct"]),
    )


def timm_tower(model: str, weights: str | None = None, *, layer: int = -1) -> TimmImageTower:
    """An image encoder of timm.

    Args:
        model: name with the tag of the weights, such as ``vit_small_patch14_dinov2.lvd142m`` or ``resnet50.a1_in1k``.
        weights: a local file; None fetches those of the tag from the Hub or its cache.
        layer: which feature map is the dense feature, see :class:`TimmImageTower`.

    Raises:
        ValueError: timm knows no such model, the weights need another one (QuickGELU), or the file does not fit it.
        MissingWeightsError: the weights are not here and cannot be fetched.
        ImportError: timm is not installed.
    """
    timm = require("timm", extra="image", purpose="towers by that library")
    name = f"timm:{model}" + (f"/{Path(weights).name}" if weights else "")
    if not timm.is_model(model):
        raise ValueError(f"model: timm knows no {model!r}; like it: {timm.list_models(f'*{model[:8]}*')[:10]}")
    if (weights is None or "." in model) and timm.is_model_pretrained(model):
        _check_activation(timm, model)
    if weights is not None:
        if not Path(weights).is_file():
            raise MissingWeightsError.of(name, f"{weights} is no file")
        network = _of_any_size(timm, model, pretrained=False)
        try:
            timm.models.load_checkpoint(network, weights, strict=True, weights_only=True)
        except Exception as error:  # whatever the readers of files come up with
            raise does_not_fit(weights, model, error) from error
    else:
        if not timm.is_model_pretrained(model):
            raise MissingWeightsError.of(name, "timm has no weights of that name")
        try:
            network = _of_any_size(timm, model, pretrained=True)
        except Exception as error:  # whatever the network and its libraries come up with
            raise MissingWeightsError.of(name, f"{type(error).__name__}: {error!s:.200}") from error
    return TimmImageTower(network, name, timm_preprocessing(timm.data.resolve_model_data_config(network)), layer)


def _check_activation(timm: Any, model: str) -> None:
    """Refuse weights of CLIP in a network with another activation than theirs, which timm takes without a word.

    Raises:
        ValueError: the weights need QuickGELU, and the network of that name has GELU.
    """
    notes = timm.get_pretrained_cfg(model).notes or ()
    if "quickgelu" not in model and any("natively QuickGELU" in note for note in notes):
        right = model.replace("_clip_", "_clip_quickgelu_", 1)
        raise ValueError(
            f"model: the weights of {model} were trained with QuickGELU, this network has GELU: take {right}"
        )


def _of_any_size(timm: Any, model: str, pretrained: bool) -> nn.Module:
    """The network, made for pictures of any size if it can be; convolutional ones are without being asked."""
    if "patch" in model:
        try:
            network: nn.Module = timm.create_model(model, pretrained=pretrained, dynamic_img_size=True)
            return network
        except TypeError as error:
            if "dynamic_img_size" not in str(error):
                raise
            # BEiT and some others do not know the option.
    network = timm.create_model(model, pretrained=pretrained)
    return network
