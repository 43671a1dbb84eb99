"""Pictures for towers: read from files, resized, cropped, on a background, normalised."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pc3d._extras import require
from pc3d.data.dataset import BadFileError
from pc3d.data.pixels import eight_bits

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of pictures for a tower, with the same resizing as in the libraries (Pillow).

    Attributes:
        size: side of the square that the tower's global feature is made for, in pixels.
        mean, std: of the three colours in [0, 1].
        interpolation: of the resizing, with antialiasing.
        resize: ``"shortest"`` scales the short side to ``size / crop``, rounded down, ``"squash"`` both sides; then the
            centre is cropped.
        crop: share of the scaled sides that the crop keeps.
        background: colour in [0, 1] behind pictures with an alpha channel. The papers do not state theirs.
        crop_place: where the crop begins if the middle is half a pixel off: ``"rounded"`` to the even pixel as in
            torchvision, open_clip and timm, or ``"lower"`` as in transformers.
    """

    size: int = 224
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize: Literal["shortest", "squash"] = "shortest"
    crop: float = 1.0
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)
    crop_place: Literal["rounded", "lower"] = "rounded"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {self.size}")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop must be above 0 and at most 1, got {self.crop}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")

    def __call__(self, picture: Picture) -> Tensor:
        """The square that the global feature is computed from.

        Args:
            picture: uint8 ``(H, W, 3)``, or ``(H, W, 4)`` with alpha, or grey ``(H, W)``.

        Returns:
            ``(3, size, size)`` float32.

        Raises:
            TypeError: it is not uint8.
            ValueError: it has another shape, or no pixels.
        """
        image = self._on_background(picture)
        # Rounded down as in timm; where a library states the length instead of the share, to that length.
        length = math.floor(self.size / self.crop + 1e-6)
        # The long side is cut down to whole pixels, as torchvision's Resize does.
        short = min(image.size)
        sides = [length if self.resize == "squash" else length * side // short for side in image.size]
        image = self._resized(image, *sides)
        place = round if self.crop_place == "rounded" else math.floor
        left, top = (place((side - self.size) / 2) for side in image.size)
        return self._normalized(image.crop((left, top, left + self.size, top + self.size)))

    def whole(self, picture: Picture, stride: int, short_side: int | None = None) -> Tensor:
        """Prepare the whole picture for dense features: nothing is cropped, both sides become multiples of the stride.

        Args:
            picture: as above.
            stride: pixels per cell of the dense feature.
            short_side: length of the short side, rounded to the stride; None keeps the picture's own.

        Returns:
            ``(3, H', W')`` float32. The picture is stretched by less than half a stride, so store positions relative to
            width and height (:func:`pc3d.image.sample_map`).
        """
        image = self._on_background(picture)
        factor = 1.0 if short_side is None else short_side / min(image.size)
        sides = [max(stride, round(side * factor / stride) * stride) for side in image.size]
        return self._normalized(self._resized(image, *sides))

    def describe(self) -> dict[str, Any]:
        """The settings as plain data, for the header of stored features."""
        settings = dataclasses.asdict(self)
        # Named only where it differs, so that features that were stored before it was are found again.
        return {name: value for name, value in settings.items() if (name, value) != ("crop_place", "rounded")}

    def _on_background(self, picture: Picture) -> Any:
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8:
            kind = picture.dtype if isinstance(picture, np.ndarray) else type(picture).__name__
            raise TypeError(f"picture must be a uint8 array, got {kind}: use np.asarray(image)")
        if picture.ndim == 2:
            picture = np.repeat(picture[:, :, None], 3, axis=2)
        if picture.ndim != 3 or picture.shape[2] not in (3, 4) or 0 in picture.shape:
            raise ValueError(f"picture must have shape (H, W), (H, W, 3) or (H, W, 4), got {picture.shape}")
        picture = on_background(picture, self.background)
        return require("PIL.Image", extra="image", purpose="pictures").fromarray(np.ascontiguousarray(picture))

    def _resized(self, image: Any, width: int, height: int) -> Any:
        if image.size == (width, height):
            return image
        pillow = require("PIL.Image", extra="image", purpose="pictures")
        return image.resize((width, height), getattr(pillow.Resampling, self.interpolation.upper()))

    def _normalized(self, image: Any) -> Tensor:
        values = torch.from_numpy(np.array(image, dtype=np.float32) / np.float32(255)).permute(2, 0, 1)
        mean, std = (torch.tensor(numbers).reshape(3, 1, 1) for numbers in (self.mean, self.std))
        return ((values - mean) / std).contiguous()


def read_picture(path: Path | str) -> Picture:
    """A picture file as it is shown: upright, in 8 bits.

    Returns:
        ``(H, W, 3)``, or ``(H, W, 4)`` if parts of it are transparent.

    Raises:
        BadFileError: the file holds none, or numbers whose black and white it does not tell (TIFF of floats). TIFF of
            32-bit whole numbers does not tell either, and is read with a warning that says what was taken for white.
        ImportError: Pillow is not installed.
    """
    path = Path(path)
    try:
        image = require("PIL.Image", extra="image", purpose="pictures").open(path)
        # Cameras store portraits lying, with a note of how to turn them.
        require("PIL.ImageOps", extra="image").exif_transpose(image, in_place=True)
        return eight_bits(image, str(path))
    except OSError as error:
        raise BadFileError(path, f"cannot be read as a picture ({error})") from error
    except ValueError as error:
        raise BadFileError(path, str(error)) from error


def on_background(picture: Picture, background: Sequence[float] = (1.0, 1.0, 1.0)) -> Picture:
    """A picture ``(H, W, 3)`` or ``(H, W, 4)`` before a background with a colour in [0, 1]; ``(H, W, 3)``."""
    if picture.shape[2] == 3:
        return picture
    alpha = picture[:, :, 3:].astype(np.float64) / 255
    return np.round(picture[:, :, :3] * alpha + 255 * np.asarray(background) * (1 - alpha)).astype(np.uint8)


def stack(pictures: Sequence[Picture], preprocessing: Preprocessing) -> Tensor:
    """Pictures of any sizes as one batch ``(B, 3, size, size)``."""
    if len(pictures) == 0:
        return torch.zeros(0, 3, preprocessing.size, preprocessing.size)
    return torch.stack([preprocessing(picture) for picture in pictures])
