"""Preparation of pictures."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_towers import picture

from pc3d.data import BadFileError
from pc3d.image import Preprocessing, on_background, read_picture
from pc3d.image.timm_towers import timm_preprocessing


@pytest.mark.parametrize("shape", [(40, 56), (57, 33), (32, 32), (20, 90)])
def test_a_picture_is_prepared_as_open_clip_prepares_it(shape: tuple[int, int]) -> None:
    from open_clip.transform import image_transform

    image = picture(*shape)
    theirs = image_transform(32, is_train=False)(Image.fromarray(image))
    torch.testing.assert_close(Preprocessing(size=32)(image), theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(40, 56), (57, 33)])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("crop", [0.875, 0.9, 0.95, 1.0])
def test_a_picture_is_prepared_as_timm_prepares_it(shape: tuple[int, int], crop_mode: str, crop: float) -> None:
    from timm.data import create_transform

    config = {"interpolation": "bilinear", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    config |= {"input_size": (3, 224, 224), "crop_pct": crop, "crop_mode": crop_mode}
    image = picture(*shape)
    theirs = create_transform(**config)(Image.fromarray(image))
    torch.testing.assert_close(timm_preprocessing(config)(image), theirs, atol=1e-6, rtol=0)


def test_a_model_whose_pictures_timm_pads_is_refused() -> None:
    config = {"input_size": (3, 32, 32), "interpolation": "bicubic", "mean": (0, 0, 0), "std": (1, 1, 1)}
    with pytest.raises(ValueError, match="crop_mode 'border'"):
        timm_preprocessing({**config, "crop_pct": 1.0, "crop_mode": "border"})


@pytest.mark.parametrize(("height", "width"), [(55, 110), (110, 55), (97, 291)])
def test_pictures_of_whole_proportions_lose_no_pixel(height: int, width: int) -> None:
    """224 / 55 * 110 is 447.99... in floating point."""
    from torchvision.transforms import v2

    image, plain = picture(height, width), Preprocessing(size=224, mean=(0, 0, 0), std=(1, 1, 1))
    steps = [v2.Resize(224, v2.InterpolationMode.BICUBIC), v2.CenterCrop(224), v2.ToImage()]
    theirs = v2.Compose(steps)(Image.fromarray(image)).float() / 255
    torch.testing.assert_close(plain(image), theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("place", "left"), [("rounded", 38), ("lower", 37)])
def test_where_the_crop_begins_in_a_picture_of_scannet(place: Literal["rounded", "lower"], left: int) -> None:
    """1296 x 968 pixels become 299 x 224, of which 75 columns are cut off: half of them is no whole number."""

    image = picture(968, 1296)
    plain = Preprocessing(size=224, mean=(0, 0, 0), std=(1, 1, 1), crop_place=place)
    small = np.asarray(Image.fromarray(image).resize((299, 224), Image.Resampling.BICUBIC), np.float32) / 255
    torch.testing.assert_close(plain(image), torch.from_numpy(small[:, left : left + 224]).permute(2, 0, 1))
    assert ("crop_place" in plain.describe()) == (place == "lower")


def test_transparent_pixels_show_the_background() -> None:
    image = np.zeros((8, 8, 4), np.uint8)
    image[:, :4] = (255, 0, 0, 255)
    image[0, 4] = (100, 100, 100, 51)  # a fifth of it
    plain = Preprocessing(size=8, mean=(0, 0, 0), std=(1, 1, 1), background=(0.0, 0.5, 1.0))
    colors = plain(image)
    assert colors[:, 3, 0].tolist() == [1, 0, 0]
    torch.testing.assert_close(colors[:, 3, 7], torch.tensor([0, 128 / 255, 1]), atol=1e-6, rtol=0)
    expected = torch.tensor([0.2 * 100, 0.2 * 100 + 0.8 * 127.5, 0.2 * 100 + 0.8 * 255]).round() / 255
    torch.testing.assert_close(colors[:, 0, 4], expected, atol=1e-6, rtol=0)


def test_grey_pictures_have_three_equal_colours() -> None:
    colors = Preprocessing(size=16, mean=(0, 0, 0), std=(1, 1, 1))(picture()[:, :, 0])
    assert torch.equal(colors[0], colors[1])
    assert torch.equal(colors[0], colors[2])


def test_the_whole_picture_is_kept_for_dense_features() -> None:
    plain = Preprocessing(size=8, mean=(0, 0, 0), std=(1, 1, 1))
    assert plain.whole(picture(40, 56), 16).shape == (3, 32, 64)  # 40 / 16 = 2.5 rounds to even, 56 / 16 = 3.5 too
    assert plain.whole(picture(41, 56), 16).shape == (3, 48, 64)
    assert plain.whole(picture(40, 80), 8, short_side=80).shape == (3, 80, 160)
    assert plain.whole(picture(3, 40), 8).shape == (3, 8, 40)
    exact = plain.whole(picture(40, 56), 8)
    np.testing.assert_allclose(exact.permute(1, 2, 0) * 255, picture(40, 56), atol=1e-4)


def test_squashed_pictures_are_not_cut() -> None:
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, :15] = 255
    colors = Preprocessing(size=10, mean=(0, 0, 0), std=(1, 1, 1), resize="squash")(image)
    assert (colors[:, :, :3] == 1).all()
    assert (colors[:, :, 7:] == 0).all()


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), TypeError, "must be a uint8 array, got float32"),
        ([[1]], TypeError, "got list"),
        (np.zeros((4, 4, 2), np.uint8), ValueError, r"got \(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"got \(0, 4, 3\)"),
    ],
)
def test_what_is_no_picture_is_refused(image: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Preprocessing(size=4)(image)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"size": 0}, "size"), ({"crop": 1.5}, "crop"), ({"std": (1.0, 0.0, 1.0)}, "std must be positive")],
)
def test_bad_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing(**options)  # type: ignore[arg-type]


# ---- files -------------------------------------------------------------------------------------------------------


def test_a_photograph_is_read_upright(tmp_path: Path) -> None:
    """A camera held on its side stores the picture lying, and how it is to be turned (EXIF)."""
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:, 12:] = 255
    turn = Image.Exif()
    turn[0x0112] = 6  # turn by a quarter, clockwise
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=turn, quality=100, subsampling=0)
    shown = read_picture(tmp_path / "photo.jpg")
    assert shown.shape == (24, 16, 3)
    assert shown[:11].max() < 20  # what was left is above
    assert shown[13:].min() > 235


@pytest.mark.parametrize("mode", ["P", "RGB"])
def test_a_transparent_colour_is_transparent(mode: str, tmp_path: Path) -> None:
    image = Image.new(mode, (4, 4), 1 if mode == "P" else (10, 20, 30))
    if mode == "P":
        image.putpalette([0, 0, 0, 10, 20, 30, 200, 100, 50])
    image.putpixel((0, 0), 2 if mode == "P" else (200, 100, 50))
    image.save(tmp_path / "icon.png", transparency=1 if mode == "P" else (10, 20, 30))
    shown = read_picture(tmp_path / "icon.png")
    assert shown[0, 0].tolist() == [200, 100, 50, 255]
    assert (shown[1:, :, 3] == 0).all()


@pytest.mark.parametrize("name", ["scan.png", "scan.tif"])
def test_grey_in_16_bits_keeps_its_shades(name: str, tmp_path: Path) -> None:
    shades = np.array([[0, 300, 32768, 65535]], np.uint16)
    Image.fromarray(shades).save(tmp_path / name)
    assert read_picture(tmp_path / name).tolist() == [[[0] * 3, [1] * 3, [128] * 3, [255] * 3]]


@pytest.mark.parametrize(
    ("shades", "white", "expected"), [([0, 64, 255], 255, [0, 64, 255]), ([0, 300, 65535], 65535, [0, 1, 255])]
)
def test_what_is_taken_for_white_in_32_bits_is_told(
    shades: list[int], white: int, expected: list[int], tmp_path: Path
) -> None:
    """Programs store arrays of 8 or 16 bits as 32-bit whole numbers, whose white would be 4,294,967,295."""
    Image.fromarray(np.array([shades], np.int32)).save(tmp_path / "scan.tif")
    with pytest.warns(UserWarning, match=rf"scan\.tif: holds grey of 0 to .* in 32-bit .*, white being {white}"):
        shown = read_picture(tmp_path / "scan.tif")
    assert shown.tolist() == [[[shade] * 3 for shade in expected]]


def tiff(bits: int, white_is_zero: bool, data: bytes, size: tuple[int, int]) -> bytes:
    """A grey TIFF file by hand, in one strip."""
    width, height = size
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: 0 if white_is_zero else 1, 273: 8, 277: 1, 278: height}
    entries[279] = len(data)
    data += b"\0" * (len(data) % 2)
    rows = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in sorted(entries.items()))
    return struct.pack("<4sI", b"II*\0", 8 + len(data)) + data + struct.pack("<H", len(entries)) + rows + bytes(4)


def test_tiff_says_how_many_bits_and_which_end_is_white(tmp_path: Path) -> None:
    (tmp_path / "microscope.tif").write_bytes(tiff(12, False, bytes.fromhex("000800fff3e8"), (4, 1)))
    assert read_picture(tmp_path / "microscope.tif")[0, :, 0].tolist() == [0, 128, 255, 62]  # 0, 2048, 4095, 1000
    shades = np.array([0, 300, 65535], "<u2").tobytes()
    (tmp_path / "negative.tif").write_bytes(tiff(16, True, shades, (3, 1)))
    assert read_picture(tmp_path / "negative.tif")[0, :, 0].tolist() == [255, 254, 0]


def test_a_transparent_grey_in_16_bits(tmp_path: Path) -> None:
    """By hand: Pillow 10 writes none."""
    chunks = {b"IHDR": struct.pack(">IIBBBBB", 3, 1, 16, 0, 0, 0, 0), b"tRNS": struct.pack(">H", 300)}
    chunks |= {b"IDAT": zlib.compress(struct.pack(">BHHH", 0, 0, 300, 65535)), b"IEND": b""}
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    ]
    (tmp_path / "icon.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert read_picture(tmp_path / "icon.png").tolist() == [[[0, 0, 0, 255], [1, 1, 1, 0], [255, 255, 255, 255]]]


@pytest.mark.parametrize("values", [np.array([[0.0, 0.5]], np.float32), np.array([[-1, 70000]], np.int32)])
def test_numbers_without_black_and_white_are_no_picture(values: np.ndarray[Any, Any], tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "depth.tif")
    with pytest.raises(BadFileError, match=r"depth\.tif: holds .*: store 8 bits"):
        read_picture(tmp_path / "depth.tif")


def test_what_is_transparent_shows_the_background() -> None:
    picture = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
    assert on_background(picture).tolist() == [[[200, 100, 0], [255, 255, 255], [244, 224, 204]]]
    assert on_background(picture, (0.0, 0.0, 0.0))[0, 1:].tolist() == [[0, 0, 0], [40, 20, 0]]
