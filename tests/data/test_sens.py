from __future__ import annotations

import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pc3d.data import BadFileError, SensFile

COLOR = np.array([[577.6, 0, 4.0, 0], [0, 578.7, 3.0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], np.float32)
DEPTH = np.array([[10, 0, 2.0, 0], [0, 10, 1.0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], np.float32)
LOST = np.full((4, 4), -np.inf, np.float32)


def pose(x: float) -> np.ndarray:
    """A quarter turn about z and a shift."""
    return np.array([[0, -1, 0, x], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]], np.float32)


def depth(number: int) -> np.ndarray:
    values = np.zeros((3, 5), np.uint16)
    values[1, 2 + number % 2] = 1000 + 500 * number
    return values


def write(
    path: Path,
    poses: list[np.ndarray],
    *,
    version: int = 4,
    color_format: int = 2,
    depth_format: int = 1,
    sizes: tuple[int, int, int, int] = (8, 6, 5, 3),
    shift: float = 1000.0,
    picture: bytes | None = None,
    depth_extrinsic: np.ndarray | None = None,
) -> None:
    """The file as ScanNet's own description has it, field by field."""
    name = b"StructureSensor"
    out = io.BytesIO()
    out.write(struct.pack("<IQ", version, len(name)) + name)
    for matrix in (COLOR, np.eye(4), DEPTH, np.eye(4) if depth_extrinsic is None else depth_extrinsic):
        out.write(np.asarray(matrix, "<f4").tobytes())
    out.write(struct.pack("<ii4IfQ", color_format, depth_format, *sizes, shift, len(poses)))
    for number, matrix in enumerate(poses):
        pixels = np.full((6, 8, 3), 60 + 20 * number, np.uint8)
        file = io.BytesIO()
        if color_format:
            Image.fromarray(pixels).save(file, {1: "PNG", 2: "JPEG"}.get(color_format, "PNG"))
        color_data = picture or (file.getvalue() if color_format else pixels.tobytes())
        depth_data = depth(number).tobytes()
        depth_data = zlib.compress(depth_data) if depth_format else depth_data
        out.write(np.asarray(matrix, "<f4").tobytes())
        out.write(struct.pack("<4Q", 100 + number, 200 + number, len(color_data), len(depth_data)))
        out.write(color_data + depth_data)
    out.write(struct.pack("<Q", 1) + struct.pack("<15dQ", *range(15), 7))  # one inertial reading
    path.write_bytes(out.getvalue())


@pytest.mark.parametrize(("color_format", "depth_format"), [(2, 1), (1, 0), (0, 1)])
def test_frames_come_back_as_written(tmp_path: Path, color_format: int, depth_format: int) -> None:
    path = tmp_path / "scene0000_00.sens"
    write(path, [pose(0), pose(5), LOST], color_format=color_format, depth_format=depth_format)
    sens = SensFile(path)
    assert (len(sens), sens.sensor, sens.color_size, sens.depth_size) == (3, "StructureSensor", (8, 6), (5, 3))
    assert sens.tracked.tolist() == [True, True, False]
    assert sens.times.tolist() == [[100, 200], [101, 201], [102, 202]]
    for number, frame in enumerate(sens):
        assert np.abs(frame.color.astype(int) - (60 + 20 * number)).max() <= (2 if color_format == 2 else 0)
        assert frame.depth.dtype == np.float32
        np.testing.assert_array_equal(frame.depth, (depth(number) / 1000).astype(np.float32))
        np.testing.assert_array_equal(frame.intrinsic, COLOR[:3, :3].astype(np.float64))
        np.testing.assert_array_equal(frame.intrinsic_depth, DEPTH[:3, :3])
    np.testing.assert_array_equal(sens[1].pose, pose(5))
    # Pixel (3, 1), a metre and a half away: 0.15 m right of the axis, which the camera's turn makes forward (+y).
    np.testing.assert_allclose(sens[1].points(), [[5, 2.15, 4.5]], atol=1e-6)
    assert not sens[2].tracked
    with pytest.raises(ValueError, match="tracking was lost"):
        sens[2].points()


def test_single_frames_and_other_processes(tmp_path: Path) -> None:
    path = tmp_path / "a.sens"
    write(path, [pose(0), pose(1)])
    sens = pickle.loads(pickle.dumps(SensFile(path)))
    np.testing.assert_array_equal(sens[-1].pose, pose(1))
    assert "2 frames, 2 tracked" in repr(sens)
    with pytest.raises(IndexError, match="index 2 is out of range for 2 frames"):
        sens[2]


def test_lost_frames_of_two_cameras_are_told_without_noise(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "a.sens"
    beside = np.eye(4, dtype=np.float32)
    beside[0, 3] = 0.1
    write(path, [pose(0), LOST], depth_extrinsic=beside)
    found, lost = SensFile(path)
    assert found.pose_color is not None
    # What is before the depth camera is 10 cm to the right of the axis of the colour camera.
    np.testing.assert_allclose(found.pose_color @ beside @ [0, 0, 1, 1], pose(0) @ [0, 0, 1, 1], atol=1e-6)
    assert not lost.tracked
    assert lost.pose_color is None
    assert not recwarn.list


def test_grey_colour_pictures(tmp_path: Path) -> None:
    """As cameras of infrared write them; 16 bits are refused."""
    path = tmp_path / "a.sens"
    for kind, bad in ((np.uint8, False), (np.uint16, True)):
        grey = (np.arange(48).reshape(6, 8) * 5).astype(kind)
        file = io.BytesIO()
        Image.fromarray(grey).save(file, "PNG")
        write(path, [pose(0)], color_format=1, picture=file.getvalue())
        if bad:
            with pytest.raises(BadFileError, match=r"frame 0 cannot be decoded \(has 16 bits per pixel"):
                SensFile(path)[0]
        else:
            np.testing.assert_array_equal(SensFile(path)[0].color, np.stack([grey] * 3, axis=2))


def test_no_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.sens"
    write(path, [])
    assert len(SensFile(path)) == 0
    assert SensFile(path).times.shape == (0, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": 3}, "is not a .sens file of version 4: it begins with 3"),
        ({"depth_format": 2}, "is packed as colour 2 and depth 2"),
        ({"color_format": -1}, "is packed as colour -1 and depth 1"),
        ({"shift": 0.0}, r"has the depth shift 0\.0"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    path = tmp_path / "a.sens"
    write(path, [pose(0)], **options)
    with pytest.raises(BadFileError, match=rf"a\.sens: {message}"):
        SensFile(path)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.sens"
    write(path, [pose(0), pose(1)])
    data = path.read_bytes()
    frames_end = len(data) - 8 - 128  # the inertial reading is not read
    for length in range(0, frames_end, 13):
        path.write_bytes(data[:length])
        with pytest.raises(BadFileError, match="is truncated"):
            SensFile(path)
    path.write_bytes(data[:frames_end])
    assert len(SensFile(path)) == 2


def test_damaged_pictures_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.sens"
    write(path, [pose(0), pose(1)], sizes=(9, 6, 5, 3))
    with pytest.raises(BadFileError, match=r"frame 1 cannot be decoded \(the picture has the shape"):
        SensFile(path)[1]
    write(path, [pose(0)], sizes=(8, 6, 5, 4))
    with pytest.raises(BadFileError, match="frame 0 cannot be decoded"):
        SensFile(path)[0]
    write(path, [pose(0)])
    data = bytearray(path.read_bytes())
    data[-150:-140] = bytes(10)  # within the compressed depth
    path.write_bytes(data)
    with pytest.raises(BadFileError, match="frame 0 cannot be decoded"):
        SensFile(path)[0]
    with pytest.raises(FileNotFoundError, match="does not exist"):
        SensFile(tmp_path / "b.sens")
