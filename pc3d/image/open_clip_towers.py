"""Towers of open_clip: all its contrastive models, by name and weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pc3d._extras import require
from pc3d.image.dense_clip import DenseMode, open_clip_keys, open_clip_resnet, open_clip_vit
from pc3d.image.pictures import Preprocessing
from pc3d.image.towers import ImageTower, JointPair, MissingWeightsError, TextTower, does_not_fit


def _version() -> dict[str, str]:
    return {"open_clip": require("open_clip", extra="image").__version__}


def _with_activation(weights: str, quick_gelu: bool) -> str:
    """The hash of a tower's weights, told apart from that of the same weights in a network with GELU."""
    return hashlib.sha256(f"{weights}\nQuickGELU".encode()).hexdigest() if quick_gelu else weights


class OpenClipImageTower(ImageTower):
    """The image side of an open_clip model. Built by :func:`open_clip_pair`.

    Args:
        visual: the model's ``visual``.
        name: name of the tower.
        preprocessing: of the model.
        width: of the joint space.
        dense: how dense features are computed; for ResNets always by the value path.
        quick_gelu: whether the network has QuickGELU, which its name does not say.
    """

    def __init__(
        self,
        visual: nn.Module,
        name: str,
        preprocessing: Preprocessing,
        width: int,
        dense: DenseMode,
        quick_gelu: bool = False,
    ) -> None:
        self_kind = type(visual).__name__
        stride = 32 if self_kind == "ModifiedResNet" else getattr(visual, "patch_size", (1,))[0]
        super().__init__(
            name,
            preprocessing,
            width=width,
            dense_width=width,
            stride=stride,
            text_aligned=True,
            dense_text_aligned=dense != "tokens",
        )
        self.visual, self.dense, self._kind, self._quick_gelu = visual, dense, self_kind, quick_gelu
        self._freeze()

    @property
    def dtype(self) -> torch.dtype:
        """Type of the convolutions and products; open_clip keeps other weights in float32 whatever it is."""
        return next((p.dtype for p in self.visual.parameters() if p.ndim == 4), torch.float32)

    def _global(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.visual(pixels)
        return features

    def _dense(self, pixels: Tensor) -> Tensor:
        if self._kind == "VisionTransformer":
            return open_clip_vit(self.visual, pixels, self.dense)
        if self._kind == "ModifiedResNet":
            return open_clip_resnet(self.visual, pixels)
        raise ValueError(
            f"{self.name}: dense features of a {self._kind} come from timm_tower, which has the same networks"
        )

    @torch.no_grad()
    def keys(self, pixels: Tensor) -> Tensor:
        """Keys ``(B, C, h, w)`` of a vision transformer's last attention, for :func:`pc3d.image.smooth_by_keys`."""
        if self._kind != "VisionTransformer":
            raise ValueError(f"{self.name}: a {self._kind} has no keys of patches")
        return open_clip_keys(self.visual, pixels.to(self.device, self.dtype)).float()

    def weights_hash(self) -> str:
        """SHA-256 of the weights, and of the activation where the name does not say it."""
        return _with_activation(super().weights_hash(), self._quick_gelu)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "dense": self.dense}

    def versions(self) -> dict[str, str]:
        return {**super().versions(), **_version()}


class OpenClipTextTower(TextTower):
    """The text side of an open_clip model. Built by :func:`open_clip_pair`."""

    def __init__(self, model: nn.Module, tokenizer: Any, name: str, width: int, quick_gelu: bool = False) -> None:
        super().__init__(name, width)
        self.model, self.tokenizer, self._quick_gelu = model, tokenizer, quick_gelu
        self._freeze()

    def _encode(self, texts: list[str]) -> Tensor:
        features: Tensor = self.model.encode_text(self.tokenizer(texts).to(self.device))  # type: ignore[operator]
        return features

    def weights_hash(self) -> str:
        """As of :class:`OpenClipImageTower`."""
        return _with_activation(super().weights_hash(), self._quick_gelu)

    def versions(self) -> dict[str, str]:
        return {**super().versions(), **_version()}


def open_clip_pair(
    model: str = "ViT-bigG-14",
    weights: str = "laion2b_s39b_b160k",
    *,
    dense: DenseMode = "value",
    precision: str = "fp32",
) -> JointPair:
    """A contrastive pair of open_clip; by default the one that OpenShape was trained with (Liu et al. 2023, section
    3.2).

    Some weights need a network with QuickGELU, among them OpenAI's. A tag says so, and the network has it; a local file
    does not: name the model that ends in ``-quickgelu``.

    Args:
        model: a name that open_clip knows: ``ViT-bigG-14``, ``ViT-B-32``, ``RN50``, ``ViT-B-16-SigLIP2``, ...
        weights: a tag of that model, fetched from the Hub or its cache; or a local file.
        dense: how dense features are computed, see :mod:`pc3d.image.dense_clip`.
        precision: of the weights: ``fp32``, ``fp16``, ``bf16``.

    Raises:
        ValueError: open_clip knows no such model, or no such weights of it, or the file does not fit it.
        MissingWeightsError: the weights are not here and cannot be fetched.
        ImportError: open_clip is not installed.
    """
    open_clip = require("open_clip", extra="image", purpose="contrastive pairs")
    if model not in open_clip.list_models():
        raise ValueError(f"model: open_clip knows no {model!r}; it knows {open_clip.list_models()}")
    name = f"open_clip:{model}/{Path(weights).name}"
    path = _find(open_clip, model, weights, name)
    config = open_clip.get_model_config(model)
    # Where a tag's weights need it and the model has it not, the library itself only warns.
    quick_gelu = bool(open_clip.get_pretrained_cfg(model, path).get("quick_gelu")) and not config.get("quick_gelu")
    try:
        tokenizer = open_clip.get_tokenizer(model)
    except (OSError, KeyError) as error:  # some are files of the Hub
        raise MissingWeightsError.of(name, error) from error
    network = _load(open_clip, model, path, name, precision=precision, force_quick_gelu=quick_gelu)
    settings = open_clip.get_model_preprocess_cfg(network)
    preprocessing = Preprocessing(
        size=settings["size"] if isinstance(settings["size"], int) else settings["size"][0],
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        interpolation=settings["interpolation"],
        resize=settings["resize_mode"],
    )
    visual, scale = network.visual, float(network.logit_scale.detach().exp())
    network.visual = None  # the text tower has no use for it
    return JointPair(
        OpenClipImageTower(visual, name, preprocessing, config["embed_dim"], dense, quick_gelu),
        OpenClipTextTower(network, tokenizer, name, config["embed_dim"], quick_gelu),
        scale,
        "contrastive",
    )


def _find(open_clip: Any, model: str, weights: str, name: str) -> str:
    """A local file as it is; of a tag, once its file is here, the tag itself, which also sets what goes with it."""
    if Path(weights).is_file():
        return weights
    tags = open_clip.list_pretrained_tags_by_model(model)
    if weights not in tags:
        if Path(weights).suffix or "/" in weights:
            raise MissingWeightsError.of(name, f"{weights} is no file")
        raise ValueError(f"weights: {model} has no {weights!r}; it has {tags}, or give a local file")
    try:
        open_clip.download_pretrained(open_clip.get_pretrained_cfg(model, weights))
    except Exception as error:  # whatever the network and its libraries come up with
        raise MissingWeightsError.of(name, error) from error
    return weights


def _load(open_clip: Any, model: str, weights: str, name: str, **options: Any) -> Any:
    """The network with its weights."""
    try:
        return open_clip.create_model(model, pretrained=weights, require_pretrained=True, **options)
    except OSError as error:  # also of what the Hub tells of a text network
        raise MissingWeightsError.of(name, error) from error
    except Exception as error:  # of a local file, whatever its readers come up with
        if Path(weights).is_file():
            raise does_not_fit(weights, model, error) from error
        if isinstance(error, KeyError):
            raise MissingWeightsError.of(name, error) from error
        raise
