"""Copies of LAS, LAZ and PLY files with other classes: nothing else in them changes."""

from __future__ import annotations

import io
from pathlib import Path

import laspy
import lazrs
import numpy as np
import pytest

from pc3d.data import BadFileError, labelled_copies
from pc3d.data.labelled_copies import check_copies, check_copyable, copy_las, copy_ply

COUNT = 2_500


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled_copies, "_CHUNK", 1_000)


def write_survey(path: Path, kind: int) -> np.ndarray:
    """A survey with random numbers in all dimensions, one of its own, a coordinate system and, in LAS 1.4, more after
    the points; gives the classes that it has."""
    header = laspy.LasHeader(point_format=kind, version="1.4" if kind >= 6 else "1.2")
    header.scales, header.offsets = np.array([0.001, 0.002, 0.01]), np.array([500_000.0, 5_400_000.0, 100.0])
    header.system_identifier, header.generating_software = "a scanner", "a program of theirs"
    header.add_extra_dim(laspy.ExtraBytesParams("reflectance", "f4"))
    header.vlrs.append(laspy.VLR("LASF_Projection", 2112, "of theirs", b'PROJCS["ETRS89 / UTM zone 32N"]\0'))
    survey, rng = laspy.LasData(header), np.random.default_rng(kind)
    survey.X, survey.Y, survey.Z = rng.integers(0, 100_000, (3, COUNT))
    for dimension in survey.point_format.dimensions:
        if dimension.name not in ("X", "Y", "Z"):
            top = 2 ** min(dimension.num_bits, 31) if dimension.kind.name != "FloatingPoint" else 100
            low = top // 2 if dimension.kind.name == "SignedInteger" else 0
            survey[dimension.name] = rng.integers(0, top, COUNT) - low
    if kind >= 6:
        survey.evlrs = laspy.vlrs.vlrlist.VLRList([laspy.VLR("theirs", 7, "", b"notes" * 50)])
    survey.write(str(path))
    return np.array(survey.classification)


def copied(source: Path, target: Path, classes: np.ndarray) -> Path:
    with target.open("wb") as file:
        copy_las(source, file, classes)
    return target


@pytest.mark.parametrize("kind", [0, 3, 6, 7])
@pytest.mark.parametrize("ending", ["las", "laz"])
def test_a_survey_keeps_all_but_its_classes(tmp_path: Path, kind: int, ending: str) -> None:
    source = tmp_path / f"survey.{ending}"
    before = write_survey(source, kind)
    classes = np.random.default_rng(1).integers(-1, 32 if kind < 6 else 256, COUNT)
    target = copied(source, tmp_path / f"copy.{ending}", classes)
    ours, theirs = laspy.read(target), laspy.read(source)
    np.testing.assert_array_equal(ours.classification, np.where(classes < 0, before, classes))
    for name in theirs.point_format.dimension_names:
        if name != "classification":
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    start = theirs.header.offset_to_point_data
    head = [bytearray(path.read_bytes()[:start]) for path in (source, target)]
    if ending == "laz" and kind >= 6:
        assert ours.header.start_of_first_evlr + 60 + 250 == target.stat().st_size
        for data in head:
            data[235:243] = bytes(8)  # where that is
    assert head[0] == head[1]
    if kind >= 6:
        assert ours.evlrs[0].record_data == theirs.evlrs[0].record_data == b"notes" * 50


@pytest.mark.parametrize(("kind", "place"), [(3, 15), (6, 16)])
def test_a_survey_that_is_not_compressed_differs_in_one_byte_of_each_point(
    tmp_path: Path, kind: int, place: int
) -> None:
    source = tmp_path / "survey.las"
    before = write_survey(source, kind)
    target = copied(source, tmp_path / "copy.las", (before + 1) % 32)
    data, copy = (np.frombuffer(path.read_bytes(), np.uint8) for path in (source, target))
    header = laspy.read(source).header
    changed = np.flatnonzero(data != copy) - header.offset_to_point_data
    np.testing.assert_array_equal(changed, place + header.point_format.size * np.arange(COUNT))


def test_chunks_of_other_sizes_stay_so(tmp_path: Path) -> None:
    """Some programs end a chunk where a tile ends."""
    plain, source = tmp_path / "plain.las", tmp_path / "chunks.laz"
    write_survey(plain, 6)
    header = laspy.read(plain).header
    settings = lazrs.LazVlr.new_for_compression(6, header.point_format.num_extra_bytes, True)
    points = np.frombuffer(plain.read_bytes(), np.uint8)[header.offset_to_point_data :]
    points = points[: COUNT * header.point_format.size]
    header.vlrs.append(laspy.vlrs.known.LasZipVlr(settings.record_data()))
    header.are_points_compressed, header.number_of_evlrs, header.start_of_first_evlr = True, 0, 0
    with source.open("wb") as file:
        header.write_to(file)
        writer = lazrs.LasZipCompressor(file, settings)
        for piece in np.split(points.reshape(COUNT, -1), [700, 1_900]):
            writer.compress_many(np.ascontiguousarray(piece).reshape(-1))
            writer.finish_current_chunk()
        writer.done()
    classes = np.arange(COUNT) % 200
    found = laspy.read(copied(source, tmp_path / "copy.laz", classes))
    np.testing.assert_array_equal(found.classification, classes)
    np.testing.assert_array_equal(found.X, laspy.read(plain).X)


def test_what_no_copy_can_hold_is_refused(tmp_path: Path) -> None:
    for kind in (3, 6):
        write_survey(tmp_path / f"{kind}.las", kind)
    check_copies([tmp_path / "3.las", tmp_path / "6.las"], {"ground": 2, "building": 31})
    numbers = {"ground": 2, "mast": 64}
    check_copies([tmp_path / "6.las"], numbers)
    with pytest.raises(ValueError, match=r"64 of 'mast' does not fit in the 5 bits .* format 3 .* or convert the file"):
        check_copies([tmp_path / "3.las"], numbers)
    with pytest.raises(ValueError, match=r"256 of 'mast' does not fit in the 8 bits .* give numbers from 0 to 255"):
        check_copies([tmp_path / "6.las"], {"mast": 256})
    with pytest.raises(ValueError, match=r"\.las, \.laz, \.ply files alone, got .*scan\.xyz: leave the option out"):
        check_copies([tmp_path / "scan.xyz"], {})
    (tmp_path / "bad.las").write_text("LASF")
    check_copies([tmp_path / "bad.las"], numbers)  # what is wrong with it is told when it is read
    with pytest.raises(BadFileError, match=r"has 2500 points, and classes are given for 3"):
        copy_las(tmp_path / "3.las", io.BytesIO(), np.zeros(3, np.int64))


def test_a_copy_that_would_break_what_lies_behind_the_points_is_refused(tmp_path: Path) -> None:
    header = laspy.LasHeader(point_format=6, version="1.4")
    header.vlrs.append(laspy.VLR("copc", 1, "", bytes(160)))
    cloud = laspy.LasData(header)
    cloud.X = cloud.Y = cloud.Z = np.arange(5)
    cloud.write(str(tmp_path / "cloud.laz"))
    with pytest.raises(BadFileError, match=r"is a COPC file, .* convert it to plain LAS or LAZ"):
        check_copyable(tmp_path / "cloud.laz")
    write_survey(tmp_path / "waves.laz", 6)
    data = bytearray((tmp_path / "waves.laz").read_bytes())
    data[227:235] = (9_999).to_bytes(8, "little")
    (tmp_path / "waves.laz").write_bytes(data)
    with pytest.raises(BadFileError, match="holds waveforms behind its points: convert it to LAS"):
        check_copyable(tmp_path / "waves.laz")


HEADER = """ply
format {kind} 1.0
comment by a scanner
comment class 3 of an earlier prediction
element vertex 3
property double x
property double y
property double z
property uchar red
property ushort intensity
property uchar Label
element face 1
property list uchar int vertex_indices
end_header
"""
COPY_OF_HEADER = """ply
format {kind} 1.0
comment by a scanner
comment class 2 ground
comment class 6 building
element vertex 3
property double x
property double y
property double z
property uchar red
property ushort intensity
property int label
property float confidence
element face 1
property list uchar int vertex_indices
end_header
"""
ROWS = [(500_000.25, 1.0, 2.0, 7, 999, 3), (500_001.5, 3.0, 4.0, 8, 998, 3), (500_002.0, 5.0, 6.0, 9, 997, 3)]


@pytest.mark.parametrize("kind", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_ply_file_keeps_all_but_its_labels(tmp_path: Path, kind: str, line_end: str) -> None:
    order = ">" if kind == "binary_big_endian" else "<"
    columns = [*((axis, order + "f8") for axis in "xyz"), ("red", "u1"), ("intensity", order + "u2")]
    new = (np.array([6, -1, 2]), np.array([0.5, 0, 0.25], np.float32))
    if kind == "ascii":
        body = line_end.join([*(" ".join(map(str, row)) for row in ROWS), "3 0 1 2", ""]).encode()
        words = [" ".join(map(str, row[:5])) for row in ROWS]
        added = [f"{words[0]} 6 0.5", f"{words[1]} -1 0", f"{words[2]} 2 0.25"]
        expected = line_end.join([*added, "3 0 1 2", ""]).encode()
    else:
        faces = b"\x03" + np.array([0, 1, 2], order + "i4").tobytes()
        body = np.array(ROWS, [*columns, ("label", "u1")]).tobytes() + faces
        rows = [(*row[:5], *added) for row, added in zip(ROWS, zip(*new, strict=True), strict=True)]
        types = [*columns, ("label", order + "i4"), ("confidence", order + "f4")]
        expected = np.array(rows, types).tobytes() + faces
    head, copy_of_head = (text.format(kind=kind).replace("\n", line_end) for text in (HEADER, COPY_OF_HEADER))
    (tmp_path / "mesh.ply").write_bytes(head.encode() + body)
    check_copyable(tmp_path / "mesh.ply")
    target = io.BytesIO()
    copy_ply(tmp_path / "mesh.ply", target, *new, {"ground": 2, "building": 6})
    assert target.getvalue() == copy_of_head.encode() + expected


def test_ply_files_that_are_not_copied(tmp_path: Path) -> None:
    camera = "element camera 1\nproperty float view\nelement vertex 1\nproperty float x\n"
    lists = "element vertex 1\nproperty float x\nproperty list uchar int seen\n"
    for text in (camera, lists):
        (tmp_path / "odd.ply").write_text(f"ply\nformat ascii 1.0\n{text}end_header\n")
        with pytest.raises(BadFileError, match="of which no copy is made: leave out --like_input"):
            check_copyable(tmp_path / "odd.ply")
