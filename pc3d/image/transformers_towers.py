"""Towers of transformers: contrastive pairs, self-supervised image encoders, sentence encoders."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pc3d._extras import require
from pc3d._progress import is_hidden
from pc3d.image.dense_clip import DenseMode, to_grid, transformers_clip, transformers_keys
from pc3d.image.pictures import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from pc3d.image.towers import ImageTower, JointPair, MissingWeightsError, TextTower


def load_whole(name: str) -> Any:
    """Load a pretrained model of transformers; refused if any of its weights would be random.

    Args:
        name: an id on the Hugging Face Hub, or a folder with ``config.json`` and ``model.safetensors``.

    Raises:
        MissingWeightsError: it is neither here nor within reach.
        ValueError: the file lacks some of the weights, or has them in other shapes.
    """
    transformers = require("transformers", extra="image", purpose="towers by that library")
    try:
        with _without_loading_bar():
            model, report = transformers.AutoModel.from_pretrained(name, output_loading_info=True)
    except Exception as error:  # whatever the network and its libraries come up with
        raise MissingWeightsError.of(f"transformers:{name}", _short(error)) from error
    fresh = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if fresh:
        raise ValueError(f"transformers:{name} has no weights for {len(fresh)} tensors of its model, first {fresh[0]}")
    return model.float()


@contextmanager
def _without_loading_bar() -> Iterator[None]:
    """Without the bar of reading weights that are here; that of a download stays, unless progress is hidden."""
    bars = require("transformers.utils.logging", extra="image")
    hub = require("huggingface_hub.utils", extra="image")
    reading, downloads = bars.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()

    def show(reading: bool, downloads: bool) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # where the environment has decided on the hub's bars
            (bars.enable_progress_bar if reading else bars.disable_progress_bar)()
            # Last: the library switches the hub's bars along with its own.
            (hub.enable_progress_bars if downloads else hub.disable_progress_bars)()

    show(False, downloads and not is_hidden())
    try:
        yield
    finally:
        show(reading, downloads)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.200}"


def _part(name: str, automatic: str) -> Any:
    transformers = require("transformers", extra="image")
    try:
        return getattr(transformers, automatic).from_pretrained(name)
    except Exception as error:
        raise MissingWeightsError.of(f"transformers:{name} ({automatic})", _short(error)) from error


def _preprocessing(name: str, config: Any) -> Preprocessing:
    """What the model's own image processor does, as :class:`Preprocessing`."""
    settings = _part(name, "AutoImageProcessor").to_dict()
    size = settings.get("size") or {}
    crop = settings.get("crop_size") if settings.get("do_center_crop") else None
    side = (crop or {}).get("height") or size.get("height") or size.get("shortest_edge") or config.image_size
    shortest = size.get("shortest_edge")
    normalize = settings.get("do_normalize", True)
    return Preprocessing(
        size=int(side),
        mean=tuple(settings.get("image_mean") or IMAGENET_MEAN) if normalize else (0.0, 0.0, 0.0),
        std=tuple(settings.get("image_std") or IMAGENET_STD) if normalize else (1.0, 1.0, 1.0),
        interpolation="bilinear" if settings.get("resample") == 2 else "bicubic",
        resize="shortest" if shortest else "squash",
        crop=float(side / shortest) if shortest and shortest >= side else 1.0,
        crop_place="lower" if crop else "rounded",
    )


def _version() -> dict[str, str]:
    return {"transformers": require("transformers", extra="image").__version__}


def _projected(output: Any) -> Tensor:
    """Version 5 puts the projected feature into ``pooler_output`` of an object, earlier ones give the tensor."""
    return output if isinstance(output, Tensor) else torch.as_tensor(output.pooler_output)


class TransformersClipImageTower(ImageTower):
    """The image side of a CLIP or SigLIP model. Built by :func:`transformers_pair`."""

    def __init__(self, model: Any, name: str, preprocessing: Preprocessing, width: int, dense: DenseMode) -> None:
        self.is_clip = hasattr(model, "visual_projection")
        super().__init__(
            name,
            preprocessing,
            width=width,
            # SigLIP has no projection: its tokens have the encoder's width and are not in the space of texts.
            dense_width=width if self.is_clip else int(model.config.vision_config.hidden_size),
            stride=int(model.config.vision_config.patch_size),
            text_aligned=True,
            dense_text_aligned=self.is_clip and dense != "tokens",
        )
        self.model, self.dense = model, dense
        self._freeze()

    def _global(self, pixels: Tensor) -> Tensor:
        return _projected(self.model.get_image_features(pixel_values=pixels))

    def _dense(self, pixels: Tensor) -> Tensor:
        if self.is_clip:
            return transformers_clip(self.model, pixels, self.dense)
        tokens = self.model.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
        return to_grid(tokens, (pixels.shape[2] // self.stride, pixels.shape[3] // self.stride))

    @torch.no_grad()
    def keys(self, pixels: Tensor) -> Tensor:
        """Keys ``(B, C, h, w)`` of a CLIP model's last attention, for :func:`pc3d.image.smooth_by_keys`."""
        if not self.is_clip:
            raise ValueError(f"{self.name} is no CLIP: its patches have no text-aligned features to smooth")
        return transformers_keys(self.model, pixels.to(self.device, self.dtype)).float()

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "dense": self.dense}

    def versions(self) -> dict[str, str]:
        return {**super().versions(), **_version()}


class TransformersClipTextTower(TextTower):
    """The text side of a CLIP or SigLIP model. Built by :func:`transformers_pair`."""

    def __init__(self, model: Any, tokenizer: Any, name: str, width: int) -> None:
        super().__init__(name, width)
        self.model, self.tokenizer = model, tokenizer
        self.length = int(model.config.text_config.max_position_embeddings)
        self._freeze()

    def _encode(self, texts: list[str]) -> Tensor:
        # Padded to the whole length: SigLIP was trained so, without a mask; to CLIP, with one, it makes no difference.
        tokens = self.tokenizer(
            texts, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        ).to(self.device)
        masked = hasattr(self.model, "visual_projection")
        kept = {key: tokens[key] for key in (["input_ids", "attention_mask"] if masked else ["input_ids"])}
        return _projected(self.model.get_text_features(**kept))

    def versions(self) -> dict[str, str]:
        return {**super().versions(), **_version()}


def transformers_pair(name: str, *, dense: DenseMode = "value") -> JointPair:
    """A contrastive pair of transformers: CLIP, SigLIP or SigLIP 2.

    Args:
        name: an id on the Hub such as ``laion/CLIP-ViT-bigG-14-laion2B-39B-b160k``, or a folder.
        dense: how CLIP's dense features are computed, see :mod:`pc3d.image.dense_clip`.

    Raises:
        MissingWeightsError: it is neither here nor within reach.
        ValueError: the model has no text side, or its file lacks weights.
    """
    model = load_whole(name)
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise ValueError(f"{name} is a {type(model).__name__}, not a pair of towers: use transformers_image_tower")
    image = _pair_image(model, name, dense)
    text = TransformersClipTextTower(model, _part(name, "AutoTokenizer"), image.name, _joint_width(model))
    return JointPair(image, text, float(model.logit_scale.detach().exp()), "contrastive")


def _joint_width(model: Any) -> int:
    if hasattr(model, "visual_projection"):
        return int(model.config.projection_dim)
    text = model.config.text_config
    return int(getattr(text, "projection_size", None) or text.hidden_size)


def _pair_image(model: Any, name: str, dense: DenseMode) -> TransformersClipImageTower:
    preprocessing = _preprocessing(name, model.config.vision_config)
    label = f"transformers:{_label(name)}"
    return TransformersClipImageTower(model, label, preprocessing, _joint_width(model), dense)


def _label(name: str) -> str:
    """A Hub id as it is; of a folder its last part, so that features do not depend on where it lies."""
    return Path(name).name if Path(name).is_dir() else name


class TransformersImageTower(ImageTower):
    """A vision transformer without a text side: DINOv2, DINOv3, ViT, MAE. Built by :func:`transformers_image_tower`."""

    def __init__(self, model: Any, name: str, preprocessing: Preprocessing) -> None:
        width, self.prefix = int(model.config.hidden_size), 1 + int(getattr(model.config, "num_register_tokens", 0))
        super().__init__(name, preprocessing, width=width, dense_width=width, stride=int(model.config.patch_size))
        self.model = model
        self._freeze()

    def _tokens(self, pixels: Tensor) -> Tensor:
        # Rotary positions fit any size; learned ones are resized where the model is asked to.
        learned = "interpolate_pos_encoding" in inspect.signature(type(self.model).forward).parameters
        options = {"interpolate_pos_encoding": True} if learned else {}
        return torch.as_tensor(self.model(pixel_values=pixels, **options).last_hidden_state)

    def _global(self, pixels: Tensor) -> Tensor:
        return self._tokens(pixels)[:, 0]

    def _dense(self, pixels: Tensor) -> Tensor:
        grid = (pixels.shape[2] // self.stride, pixels.shape[3] // self.stride)
        return to_grid(self._tokens(pixels)[:, self.prefix :], grid)

    def versions(self) -> dict[str, str]:
        return {**super().versions(), **_version()}


def transformers_image_tower(name: str, *, dense: DenseMode = "value") -> ImageTower:
    """An image encoder of transformers; the class token is the global feature, patch tokens are the dense one.

    For a pair, this is its image side.

    Args:
        name: an id on the Hub such as ``facebook/dinov2-with-registers-base``, or a folder.
        dense: how the dense features of a CLIP model are computed, see :mod:`pc3d.image.dense_clip`.

    Raises:
        MissingWeightsError: it is neither here nor within reach.
        ValueError: it is no vision transformer, or its file lacks weights.
    """
    model = load_whole(name)
    if hasattr(model, "get_image_features"):
        return _pair_image(model, name, dense)
    if not (hasattr(model.config, "patch_size") and hasattr(model.config, "hidden_size")):
        raise ValueError(f"{name} is a {type(model).__name__}, not a vision transformer: timm has many other networks")
    return TransformersImageTower(model, f"transformers:{_label(name)}", _preprocessing(name, model.config))


class SentenceTower(TextTower):
    """A sentence encoder: the mean of the token features, or the first one. Built by :func:`sentence_tower`."""

    def __init__(self, model: nn.Module, tokenizer: Any, name: str, pooling: Literal["mean", "first"] = "mean") -> None:
        super().__init__(name, int(model.config.hidden_size))  # type: ignore[union-attr, arg-type]
        self.model, self.tokenizer, self.pooling = model, tokenizer, pooling
        self._freeze()

    def _encode(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(self.device)
        features: Tensor = self.model(**tokens).last_hidden_state
        if self.pooling == "first":
            return features[:, 0]
        mask = tokens["attention_mask"][:, :, None].to(features.dtype)
        mean: Tensor = (features * mask).sum(dim=1) / mask.sum(dim=1)
        return mean

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "pooling": self.pooling}

    def versions(self) -> dict[str, str]:
        return {**super().versions(), **_version()}


def sentence_tower(name: str, *, pooling: Literal["mean", "first"] = "mean") -> SentenceTower:
    """A sentence encoder of transformers, such as ``sentence-transformers/all-MiniLM-L6-v2``.

    Args:
        name: an id on the Hub, or a folder with the model and its tokenizer.
        pooling: ``"mean"`` over the tokens, or ``"first"``; see the model card.

    Raises:
        MissingWeightsError: it is neither here nor within reach.
        ValueError: its file lacks weights.
    """
    model = load_whole(name)
    return SentenceTower(model, _part(name, "AutoTokenizer"), f"sentence:{_label(name)}", pooling)
