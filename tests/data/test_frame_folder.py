from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pc3d.data import BadFileError, FrameFolder

INTRINSIC = np.array([[10, 0, 4, 0], [0, 10, 3, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three frames as the exporter writes them, every second one of a stream, the last without tracking."""
    for kind in ("color", "depth", "pose", "intrinsic"):
        (tmp_path / kind).mkdir()
    for kind in ("color", "depth"):
        np.savetxt(tmp_path / "intrinsic" / f"intrinsic_{kind}.txt", INTRINSIC, fmt="%.6f")
    for number in (2, 0, 10):
        Image.fromarray(np.full((6, 8, 3), 10 * number, np.uint8)).save(tmp_path / "color" / f"{number}.jpg")
        depth = np.zeros((6, 8), np.uint16)
        depth[3, 4] = 1000 + number
        Image.fromarray(depth).save(tmp_path / "depth" / f"{number}.png")
        pose = np.eye(4) if number < 10 else np.full((4, 4), -np.inf)
        pose[0, 3] = number
        np.savetxt(tmp_path / "pose" / f"{number}.txt", pose, fmt="%f")
    return tmp_path


def test_frames_in_the_order_of_their_numbers(folder: Path) -> None:
    frames = FrameFolder(folder)
    assert frames.numbers == [0, 2, 10]
    assert [frame.tracked for frame in frames] == [True, True, False]
    for number, frame in zip(frames.numbers, frames, strict=True):
        assert np.abs(frame.color.astype(int) - 10 * number).max() <= 2
        assert frame.depth[3, 4] == np.float32((1000 + number) / 1000)
        np.testing.assert_array_equal(frame.intrinsic, INTRINSIC[:3, :3])
    # The pixel at the principal point lies straight ahead.
    np.testing.assert_allclose(frames[1].points(), [[2, 0, 1.002]], atol=1e-6)
    assert FrameFolder(folder, depth_shift=5000)[0].depth[3, 4] == np.float32(0.2)
    with pytest.raises(IndexError):
        frames[3]


def test_numbers_with_zeros_in_front(folder: Path) -> None:
    plain = [frame.pose.tolist() for frame in FrameFolder(folder)]
    for kind, digits in (("color", 6), ("depth", 4), ("pose", 6)):
        for file in sorted((folder / kind).iterdir()):
            file.rename(file.with_stem(file.stem.zfill(digits)))
    padded = FrameFolder(folder)
    assert padded.numbers == [0, 2, 10]
    assert [frame.pose.tolist() for frame in padded] == plain
    assert padded[1].depth[3, 4] == np.float32(1.002)
    (folder / "color" / "2.jpg").write_bytes((folder / "color" / "000002.jpg").read_bytes())
    with pytest.raises(BadFileError, match=r"2\.jpg: has the number of 000002\.jpg: keep one of them"):
        FrameFolder(folder)


def test_what_is_missing_or_damaged_is_named(folder: Path) -> None:
    (folder / "depth" / "0.png").write_bytes((folder / "depth" / "0.png").read_bytes()[:40])
    with pytest.raises(BadFileError, match=r"0\.png: cannot be decoded"):
        FrameFolder(folder)[0]
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(folder / "depth" / "0.png")
    with pytest.raises(BadFileError, match=r"0\.png: has the shape \(6, 8, 3\)"):
        FrameFolder(folder)[0]
    (folder / "pose" / "0.txt").write_text("1 2 3")
    (folder / "depth" / "2.png").rename(folder / "depth" / "3.png")
    with pytest.raises(FileNotFoundError, match=r"poses without pictures: 1 missing, first depth/2\.\*"):
        FrameFolder(folder)
    (folder / "depth" / "3.png").rename(folder / "depth" / "2.png")
    Image.fromarray(np.zeros((6, 8), np.uint16)).save(folder / "depth" / "0.png")
    with pytest.raises(BadFileError, match=r"0\.txt: must hold a 4 x 4 matrix, has 3 numbers"):
        FrameFolder(folder)[0]
    (folder / "intrinsic" / "intrinsic_depth.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"intrinsic_depth\.txt does not exist"):
        FrameFolder(folder)
    with pytest.raises(FileNotFoundError, match=r"holds no files like 0\.txt"):
        FrameFolder(folder / "color")
    with pytest.raises(ValueError, match="depth_shift must be positive"):
        FrameFolder(folder, depth_shift=0)


def test_the_layout_of_the_25k_frames(folder: Path) -> None:
    """Intrinsics beside the pictures; those of the exporter, where there are both."""
    exported = [frame.intrinsic.tolist() for frame in FrameFolder(folder)]
    for kind in ("color", "depth"):
        (folder / "intrinsic" / f"intrinsic_{kind}.txt").rename(folder / f"intrinsics_{kind}.txt")
    assert [frame.intrinsic.tolist() for frame in FrameFolder(folder)] == exported
    np.savetxt(folder / "intrinsic" / "intrinsic_color.txt", 2 * INTRINSIC)
    assert FrameFolder(folder).color_intrinsic[0, 0] == 20


def test_intrinsics_of_three_rows(folder: Path) -> None:
    np.savetxt(folder / "intrinsic" / "intrinsic_color.txt", INTRINSIC[:3, :3])
    np.testing.assert_array_equal(FrameFolder(folder)[0].intrinsic, INTRINSIC[:3, :3])
    np.savetxt(folder / "pose" / "0.txt", np.eye(3))
    with pytest.raises(BadFileError, match=r"0\.txt: must hold a 4 x 4 matrix, has 9 numbers"):
        FrameFolder(folder)[0]


@pytest.mark.parametrize("factor", [1 / 2, 3 / 4, 3 / 2, 2])
@pytest.mark.parametrize("kind", ["color", "depth"])
def test_pictures_that_were_scaled_without_their_intrinsics_are_refused(folder: Path, kind: str, factor: float) -> None:
    exact = np.array([[10, 0, 3.5], [0, 10, 2.5], [0, 0, 1]])  # the middle of 8 x 6 pixels whose centres are integers
    np.savetxt(folder / "intrinsic" / f"intrinsic_{kind}.txt", exact)
    assert len([*FrameFolder(folder)]) == 3
    file = folder / "color" / "2.jpg" if kind == "color" else folder / "depth" / "2.png"
    picture = Image.open(file)
    picture.resize((round(8 * factor), round(6 * factor)), Image.Resampling.NEAREST).save(file)
    with pytest.raises(BadFileError, match=rf"intrinsic_{kind}\.txt: has the principal point \(3\.5, 2\.5\), far from"):
        FrameFolder(folder)[1]


def test_grey_pictures_become_colours_and_deeper_ones_are_refused(folder: Path) -> None:
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    (folder / "color" / "0.jpg").unlink()
    Image.fromarray(grey).save(folder / "color" / "0.png")
    np.testing.assert_array_equal(FrameFolder(folder)[0].color, np.stack([grey] * 3, axis=2))
    Image.fromarray(grey.astype(np.uint16)).save(folder / "color" / "0.png")
    with pytest.raises(BadFileError, match=r"0\.png: has 16 bits per pixel, expected colours or 8-bit grey"):
        FrameFolder(folder)[0]
