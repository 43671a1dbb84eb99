from __future__ import annotations

import builtins
import tracemalloc
from pathlib import Path

import laspy
import numpy as np
import pye57
import pypcd4
import pytest
import torch

from pc3d.data import BadFileError, PointCloud, Rooms, read_points, read_scene

UTM = np.array([448_262.0, 5_411_932.0, 114.0])
SCENES = Path(__file__).parents[1] / "assets" / "scenes"


@pytest.fixture(scope="module")
def room() -> PointCloud:
    """5,000 points of a room, on whole millimetres, with colours of whole steps."""
    cloud = Rooms("test")[0]
    rows = torch.randperm(len(cloud), generator=torch.Generator().manual_seed(0))[:5000]
    return cloud.select(rows)


def shifted(room: PointCloud) -> np.ndarray:
    return room.xyz.numpy().astype(np.float64) + UTM


def rgb_bytes(room: PointCloud) -> np.ndarray:
    return (room.rgb * 255).round().numpy().astype(np.uint8)


def write_ply(
    path: Path, room: PointCloud, coordinate: str = "f4", color: str | None = "u1", normal: bool = True
) -> None:
    columns = [(name, f"<{coordinate}", room.xyz.numpy()[:, i]) for i, name in enumerate("xyz")]
    if coordinate == "f8":
        columns = [(name, "<f8", shifted(room)[:, i]) for i, name in enumerate("xyz")]
    if normal:
        columns += [(name, "<f4", room.normal.numpy()[:, i]) for i, name in enumerate(("nx", "ny", "nz"))]
    if color is not None:
        factor = 257 if color == "<u2" else 1
        channels = rgb_bytes(room).astype(np.int64) * factor
        columns += [(name, color, channels[:, i]) for i, name in enumerate(("red", "green", "blue"))]
    table = np.zeros(len(room), [(name, kind) for name, kind, _ in columns])
    for name, _, values in columns:
        table[name] = values
    words = {"<f4": "float", "<f8": "double", "u1": "uchar", "<u2": "ushort"}
    lines = [f"property {words[kind]} {name}" for name, kind, _ in columns]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(room)}", *lines, "end_header\n"]
    path.write_bytes("\n".join(header).encode() + table.tobytes())


def write_las(path: Path, xyz: np.ndarray, rgb: np.ndarray | None) -> None:
    header = laspy.LasHeader(point_format=0 if rgb is None else 2, version="1.2")
    header.scales, header.offsets = [0.001] * 3, np.floor(xyz.min(axis=0))
    cloud = laspy.LasData(header)
    cloud.x, cloud.y, cloud.z = xyz.T
    if rgb is not None:
        cloud.red, cloud.green, cloud.blue = rgb.T
    cloud.write(str(path))


def write_e57(path: Path, scans: list[tuple[np.ndarray, np.ndarray | None]], **options: object) -> None:
    file = pye57.E57(str(path), "w")
    for xyz, rgb in scans:
        data = dict(zip(("cartesianX", "cartesianY", "cartesianZ"), np.ascontiguousarray(xyz.T), strict=True))
        if rgb is not None:
            data.update(zip(("colorRed", "colorGreen", "colorBlue"), np.ascontiguousarray(rgb.T), strict=True))
        file.write_scan_raw(data, **options)
    file.close()


def check(cloud: PointCloud, room: PointCloud, *, rgb: bool = True, normal: bool = False, atol: float = 1e-6) -> None:
    """The cloud is the room, point by point, wherever it was moved."""
    assert len(cloud) == len(room)
    moved = np.array(cloud.meta.get("origin", (0, 0, 0)))
    expected = room.xyz.numpy().astype(np.float64) + (UTM if moved.any() else 0)
    np.testing.assert_allclose(cloud.xyz.numpy().astype(np.float64) + moved, expected, atol=atol)
    assert (cloud.rgb is not None, cloud.normal is not None) == (rgb, normal)
    if rgb:
        torch.testing.assert_close(cloud.rgb, room.rgb)
    if normal:
        torch.testing.assert_close(cloud.normal, room.normal, atol=1e-5, rtol=0)


@pytest.mark.parametrize("color", ["u1", "<u2", None])
@pytest.mark.parametrize("normal", [True, False])
def test_ply(tmp_path: Path, room: PointCloud, color: str | None, normal: bool) -> None:
    write_ply(tmp_path / "a.ply", room, color=color, normal=normal)
    check(read_scene(tmp_path / "a.ply"), room, rgb=color is not None, normal=normal)


def test_a_ply_mesh_gives_its_vertices() -> None:
    """ScanNet's mesh: every vertex in its order, as the prepared form has them."""
    raw = SCENES / "scannet_raw" / "scans" / "scene9000_00" / "scene9000_00_vh_clean_2.ply"
    prepared = SCENES / "scannet" / "train" / "scene9000_00"
    cloud = read_scene(raw)
    np.testing.assert_array_equal(cloud.xyz.numpy(), np.load(prepared / "coord.npy"))
    np.testing.assert_array_equal((cloud.rgb * 255).round().numpy(), np.load(prepared / "color.npy"))
    same = np.abs(cloud.normal.numpy() - np.load(prepared / "normal.npy")).max(axis=1) < 1e-4
    assert same.mean() > 0.85  # the others lie where the sample was cut
    assert len(read_points(raw, num_points=100)) == 100


@pytest.mark.parametrize("suffix", ["las", "laz"])
@pytest.mark.parametrize("factor", [1, 257])
def test_las_with_8_and_16_bit_colours(tmp_path: Path, room: PointCloud, suffix: str, factor: int) -> None:
    path = tmp_path / f"a.{suffix}"
    write_las(path, shifted(room), rgb_bytes(room).astype(np.uint16) * factor)
    cloud = read_scene(path)
    check(cloud, room, atol=6e-4)  # stored to the millimetre
    assert cloud.meta["origin"] == tuple(np.floor(shifted(room).min(axis=0)))


@pytest.mark.parametrize("suffix", ["las", "laz"])
@pytest.mark.parametrize("point_format", range(11))
def test_las_of_every_point_format(tmp_path: Path, suffix: str, point_format: int) -> None:
    """With what else points have: classes, marks, and dimensions of one's own."""
    xyz = UTM + np.array([[0.123, 4.567, 8.901], [1.5, 2.25, 3.125], [7.0, 7.001, 7.002]])
    header = laspy.LasHeader(point_format=point_format, version="1.2" if point_format < 4 else "1.4")
    header.scales, header.offsets = [0.001] * 3, [400_000, 5_000_000, 0]
    header.add_extra_dim(laspy.ExtraBytesParams(name="roughness", type=np.float64))
    survey = laspy.LasData(header)
    survey.x, survey.y, survey.z = xyz.T
    survey.classification, survey.withheld, survey.roughness = [2, 7, 6], [0, 1, 0], [0.5, 0.25, 0]
    colored = "red" in survey.point_format.dimension_names
    if colored:
        survey.red, survey.green, survey.blue = np.array([[65535, 0, 257], [0, 65535, 0], [257, 0, 65535]]).T
    survey.write(tmp_path / f"a.{suffix}")
    cloud = read_scene(tmp_path / f"a.{suffix}")
    np.testing.assert_allclose(cloud.xyz.numpy() + cloud.meta["origin"], xyz, atol=5e-4 + 1e-6)
    assert (cloud.rgb is not None) == colored == (point_format in (2, 3, 5, 7, 8, 10))
    if colored:
        np.testing.assert_allclose(cloud.rgb.numpy(), [[1, 0, 1 / 255], [0, 1, 0], [1 / 255, 0, 1]], atol=1e-6)


def test_las_without_colours_or_with_black_ones(tmp_path: Path, room: PointCloud) -> None:
    write_las(tmp_path / "a.las", shifted(room), None)
    check(read_scene(tmp_path / "a.las"), room, rgb=False, atol=6e-4)
    write_las(tmp_path / "b.las", shifted(room), np.zeros((5000, 3), np.uint16))
    check(read_scene(tmp_path / "b.las"), room, rgb=False, atol=6e-4)


def test_las_by_pieces(tmp_path: Path, room: PointCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    write_las(tmp_path / "a.las", shifted(room), rgb_bytes(room).astype(np.uint16))
    monkeypatch.setattr("pc3d.data.survey_files._CHUNK", 999)
    check(read_scene(tmp_path / "a.las"), room, atol=6e-4)
    data = (tmp_path / "a.las").read_bytes()
    (tmp_path / "a.las").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadFileError, match=r"a\.las: "):
        read_scene(tmp_path / "a.las")


def test_e57_scans_are_joined_in_their_common_frame(tmp_path: Path, room: PointCloud) -> None:
    path = tmp_path / "a.e57"
    xyz, rgb = room.xyz.numpy().astype(np.float64), rgb_bytes(room)
    # Each scan is stored in its scanner's frame: turned by a quarter about z (w, x, y, z) and far away.
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    half = 0.5**0.5
    local = (xyz + UTM - (UTM + 7)) @ turn
    scans = [(local[:3000], rgb[:3000]), (local[3000:], rgb[3000:])]
    write_e57(path, scans, rotation=np.array([half, 0, 0, half]), translation=UTM + 7)
    cloud = read_scene(path)
    assert "origin" in cloud.meta
    check(cloud, room, atol=1e-5)
    write_e57(tmp_path / "b.e57", [(xyz[:3000], rgb[:3000]), (xyz[3000:], None)])
    with pytest.warns(UserWarning, match=r"b\.e57: 1 of 2 scans have no colours: read without"):
        check(read_scene(tmp_path / "b.e57"), room, rgb=False)


@pytest.mark.parametrize("suffix", ["npy", "npz", "xyz", "txt", "csv-like.xyz", "pcd"])
def test_tables_and_pcd(tmp_path: Path, room: PointCloud, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    xyz, rgb, table = room.xyz.numpy(), rgb_bytes(room), np.column_stack([room.xyz.numpy(), rgb_bytes(room)])
    if suffix == "npy":
        np.save(path, table)
    elif suffix == "npz":
        np.savez(path, coord=xyz, color=rgb, normal=room.normal.numpy())
    elif suffix == "pcd":
        packed = pypcd4.PointCloud.encode_rgb(rgb)
        pypcd4.PointCloud.from_xyzrgb_points(np.column_stack([xyz, packed])).save(path)
    elif suffix == "csv-like.xyz":
        np.savetxt(path, table, fmt="%.6f,%.6f,%.6f,%d,%d,%d", header="X Y Z R G B", comments="//")
    else:
        np.savetxt(path, table, fmt="%.6f %.6f %.6f %d %d %d")
    check(read_scene(path), room, normal=suffix == "npz", atol=2e-6)


def test_far_coordinates_keep_their_millimetres(tmp_path: Path, room: PointCloud) -> None:
    write_ply(tmp_path / "a.ply", room, coordinate="f8")
    check(read_scene(tmp_path / "a.ply"), room, normal=True, atol=1e-6)
    np.savetxt(tmp_path / "a.xyz", shifted(room), fmt="%.4f")
    cloud = read_scene(tmp_path / "a.xyz")
    check(cloud, room, rgb=False, atol=1e-4)
    assert cloud.xyz.amin() >= 0
    # A large extent moves nothing by itself; what matters is what float32 resolves.
    near = np.array([[0.0, 0, 0], [4000.0, 10, 3]])
    np.savetxt(tmp_path / "b.xyz", near)
    assert "origin" not in read_scene(tmp_path / "b.xyz").meta


def test_invalid_points_are_refused_or_dropped_with_their_rows(tmp_path: Path, room: PointCloud) -> None:
    xyz = room.xyz.numpy().copy()
    xyz[[3, 8]] = np.nan
    np.save(tmp_path / "a.npy", xyz)
    with pytest.raises(
        BadFileError, match=r"2 of 5000 points are not finite; drop_invalid=True \(--drop_invalid of a command\)"
    ):
        read_scene(tmp_path / "a.npy")
    cloud = read_scene(tmp_path / "a.npy", drop_invalid=True)
    assert (len(cloud), cloud.meta["dropped_points"]) == (4998, 2)
    assert (~cloud.meta["kept_rows"]).nonzero().flatten().tolist() == [3, 8]


@pytest.mark.parametrize("suffix", [".ply", ".pcd", ".las", ".laz", ".e57", ".npy", ".npz", ".xyz"])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>\n" * 40])
def test_files_that_are_something_else(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"scene{suffix}"
    path.write_bytes(content)
    with pytest.raises(BadFileError, match=rf"scene\{suffix}: (is empty|cannot be read as {suffix[1:].upper()}: )"):
        read_scene(path)


def test_what_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist or is not a file"):
        read_scene(tmp_path / "a.ply")
    with pytest.raises(ValueError, match=r"no reader for '\.dxf' files; there are readers for \.ply, \.pcd"):
        read_scene(tmp_path / "a.dxf")
    with pytest.raises(ValueError, match=r"a \.glb file is a mesh without points of its own; sample some with"):
        read_scene(tmp_path / "a.glb")
    (tmp_path / "a.e57").write_bytes(b"x")
    imported = builtins.__import__

    def without_pye57(name: str, *rest: object, **more: object) -> object:
        if name.startswith("pye57"):
            raise ImportError(f"No module named {name!r}", name=name)
        return imported(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_pye57)
    monkeypatch.setattr("importlib.import_module", without_pye57)
    with pytest.raises(ImportError, match=r'pye57 is needed for E57 files: pip install "pc3d\[io\]"'):
        read_scene(tmp_path / "a.e57")


def test_five_million_points_take_bounded_memory(tmp_path: Path) -> None:
    count = 5_000_000
    rng = np.random.default_rng(0)
    header = laspy.LasHeader(point_format=2, version="1.2")
    header.scales, header.offsets = [0.001] * 3, UTM
    with laspy.open(tmp_path / "a.las", "w", header=header) as writer:
        for _ in range(5):
            points = laspy.ScaleAwarePointRecord.zeros(count // 5, header=header)
            points.array["X"] = rng.integers(0, 50_000, count // 5)
            points.array["red"] = rng.integers(0, 65_536, count // 5)
            writer.write_points(points)
    tracemalloc.start()
    cloud = read_scene(tmp_path / "a.las")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(cloud) == count
    # Of the 24 bytes a point that stay, and float64 on the way; not the file, its record and copies of both.
    assert peak < 100 * count


# ---- classes of points -------------------------------------------------------------------------------------------


def write_labelled(path: Path, xyz: np.ndarray, label: np.ndarray) -> None:
    """A file of points and their classes, as a program that is not pc3d writes it."""
    rows = np.column_stack([xyz, label])
    match path.suffix:
        case ".ply":  # as CloudCompare names a scalar field
            header = ["ply", "format ascii 1.0", f"element vertex {len(xyz)}", *(f"property float {a}" for a in "xyz")]
            text = "\n".join([*header, "property float scalar_Label", "end_header", ""])
            path.write_text(text + "\n".join(" ".join(f"{v:.6f}" for v in row) for row in rows) + "\n")
        case ".pcd":
            types = (np.float32, np.float32, np.float32, np.uint32)
            columns = [rows[:, i].astype(kind) for i, kind in enumerate(types)]
            pypcd4.PointCloud.from_points(columns, ("x", "y", "z", "label"), types).save(path)
        case ".las" | ".laz":
            cloud = laspy.LasData(laspy.LasHeader(point_format=0, version="1.2"))
            cloud.header.scales = [1e-4] * 3
            cloud.x, cloud.y, cloud.z = xyz.T
            cloud.classification = label.astype(np.uint8)
            cloud.write(str(path))
        case ".csv":
            path.write_text("class,x,y,z,species\n" + "".join(f"{c:.0f},{x},{y},{z},oak\n" for x, y, z, c in rows))
        case ".xyz":
            np.savetxt(path, rows, fmt="%.6f")
        case ".pts":
            path.write_text(f"{len(xyz)}\n" + "".join(f"{x} {y} {z} -700 {c:.0f}\n" for x, y, z, c in rows))
        case ".npy":
            np.save(path, rows)
        case _:
            np.savez(path, points=xyz, segment=label[:, None].astype(np.int16))


@pytest.mark.parametrize("suffix", [".ply", ".pcd", ".las", ".laz", ".csv", ".xyz", ".pts", ".npy", ".npz"])
def test_classes_of_points_are_read_where_they_are_asked_for(tmp_path: Path, suffix: str) -> None:
    room = Rooms("test")[0].select(slice(None, None, 300))
    assert room.segment is not None
    assert len(room.segment.unique()) > 4
    path = tmp_path / f"scan{suffix}"
    write_labelled(path, room.xyz.double().numpy(), room.segment.numpy().clip(0))
    found = read_scene(path, labels=True)
    assert found.segment is not None
    assert found.segment.dtype == torch.int64
    assert found.segment.tolist() == room.segment.clamp(min=0).tolist()
    torch.testing.assert_close(found.xyz, room.xyz, atol=1e-4, rtol=0)
    assert found.rgb is None
    if suffix not in (".npy", ".xyz", ".pts"):  # whose columns have no names
        assert read_scene(path).segment is None
        with pytest.raises(BadFileError, match=r"has no classes of its points \(height\); its columns are \["):
            read_scene(path, labels="Height")


def test_which_classes_points_have(tmp_path: Path) -> None:
    xyz = np.arange(12, dtype=float).reshape(4, 3)
    names = [("x", "f8"), ("y", "f8"), ("z", "f8"), ("label", "f4"), ("Kind", "i4")]
    rows = np.zeros(4, names)
    for axis, name in enumerate("xyz"):
        rows[name] = xyz[:, axis]
    rows["label"], rows["Kind"] = [0, np.nan, 3, 2], [7, 8, -1, 300]
    np.save(tmp_path / "scan.npy", rows)
    assert read_scene(tmp_path / "scan.npy", labels=True).segment.tolist() == [0, -1, 3, 2]
    assert read_scene(tmp_path / "scan.npy", labels="kind").segment.tolist() == [7, 8, -1, 300]
    rows["x"][2] = np.nan
    np.save(tmp_path / "scan.npy", rows)
    assert read_scene(tmp_path / "scan.npy", labels="kind", drop_invalid=True).segment.tolist() == [7, 8, 300]
    for odd in (1.5, np.inf):
        rows["label"] = [0, odd, 0, 0]
        np.save(tmp_path / "scan.npy", rows)
        with pytest.raises(BadFileError, match="classes of its points are not whole numbers"):
            read_scene(tmp_path / "scan.npy", labels=True, drop_invalid=True)
    # As CloudCompare writes text with commas.
    (tmp_path / "scan.txt").write_text("//X,Y,Z,R,G,B,Original cloud index,Classification\n1,2,3,255,0,0,0,6.0\n")
    assert read_scene(tmp_path / "scan.txt", labels=True).segment.tolist() == [6]
    np.savez(tmp_path / "short.npz", xyz=xyz, label=np.zeros(3, int))
    with pytest.raises(BadFileError, match=r"the classes of its 4 points are int64 of shape \(3,\)"):
        read_scene(tmp_path / "short.npz", labels=True)
    # As pandas has them where a value was missing once.
    objects = np.array([0, 1, 2, 3], dtype=object)
    np.savez(tmp_path / "objects.npz", xyz=xyz, label=objects)
    np.save(tmp_path / "objects.npy", {"xyz": xyz, "label": objects})  # type: ignore[arg-type]
    for name in ("objects.npz", "objects.npy"):
        with pytest.raises(BadFileError, match=rf"{name}: .*object.* as label\.astype\(numpy\.int64\)"):
            read_scene(tmp_path / name, labels=True)
    np.save(tmp_path / "plain.npy", xyz)
    with pytest.raises(BadFileError, match=r"has 3 columns: 4, 7 or 10, with .* np\.savez\(path, xyz=\.\.\., label="):
        read_scene(tmp_path / "plain.npy", labels=True)
    (tmp_path / "scan.e57").write_bytes(b"ASTM-E57")
    with pytest.raises(BadFileError, match="as no E57 file has: write it as LAS or PLY"):
        read_scene(tmp_path / "scan.e57", labels=True)


def test_points_that_a_survey_cannot_hold_get_no_room(tmp_path: Path) -> None:
    write_las(tmp_path / "a.las", np.zeros((5, 3)), None)
    data = bytearray((tmp_path / "a.las").read_bytes())
    data[107:111] = (2**32 - 1).to_bytes(4, "little")
    (tmp_path / "a.las").write_bytes(data)
    with pytest.raises(BadFileError, match="holds 5 of the 4294967295 points of its header"):
        read_scene(tmp_path / "a.las")


def test_columns_of_which_no_class_is_known_can_be_named(tmp_path: Path) -> None:
    """With an intensity before them, or several columns that might be classes."""
    (tmp_path / "scan.xyz").write_text("1 2 3 40 5\n")
    with pytest.raises(BadFileError, match=r"4, 7 or 10, .* a first line may name them, such as x y z intensity label"):
        read_scene(tmp_path / "scan.xyz", labels=True)
    (tmp_path / "scan.xyz").write_text("x y z intensity label\n1 2 3 40 5\n")
    assert read_scene(tmp_path / "scan.xyz", labels=True).segment.tolist() == [5]


def test_colours_of_another_number_than_points_are_refused_before_points_are_dropped(tmp_path: Path) -> None:
    xyz = np.zeros((4, 3))
    xyz[1] = np.nan
    np.savez(tmp_path / "scan.npz", xyz=xyz, rgb=np.zeros((3, 3), np.uint8))
    with pytest.raises(BadFileError, match=r"rgb has shape \(3, 3\), the coordinates have \(4, 3\)"):
        read_scene(tmp_path / "scan.npz", drop_invalid=True)


# ---- sweeps of cars ----------------------------------------------------------------------------------------------


def sweep(count: int = 500) -> np.ndarray:
    """x y z and an intensity, as a scanner on a car sees the ground and a wall."""
    rng = np.random.default_rng(0)
    xyz = np.column_stack([rng.uniform(-60, 60, (count, 2)), rng.normal(-1.7, 0.1, count)])
    return np.column_stack([xyz, rng.uniform(0, 0.99, count).round(2)]).astype("<f4")


def test_sweeps_of_kitti_and_nuscenes(tmp_path: Path) -> None:
    rows = sweep()
    rows.tofile(tmp_path / "kitti.bin")
    assert read_scene(tmp_path / "kitti.bin").xyz.tolist() == rows[:, :3].tolist()
    rings = np.column_stack([rows[:, :3], 100 * rows[:, 3], np.arange(len(rows)) % 32]).astype("<f4")
    rings.tofile(tmp_path / "nuscenes.pcd.bin")
    for read in (read_scene, read_points):
        assert read(tmp_path / "nuscenes.pcd.bin").xyz.tolist() == rows[:, :3].tolist()
    (1e4 * rows).tofile(tmp_path / "other.bin")
    with pytest.raises(
        BadFileError, match=r"is none of x y z intensity \(KITTI\) or x y z intensity ring \(nuScenes\)"
    ):
        read_scene(tmp_path / "other.bin")
    np.zeros(20, "<f4").tofile(tmp_path / "zeros.bin")
    with pytest.raises(BadFileError, match="may be either of"):
        read_scene(tmp_path / "zeros.bin")
    (tmp_path / "kitti.bin").write_bytes(rows.tobytes()[:-5])
    with pytest.raises(BadFileError, match="is none of"):
        read_scene(tmp_path / "kitti.bin")


@pytest.mark.parametrize("place", ["velodyne/000007.label", "labels/000007.label"])
def test_classes_of_semantic_kitti(tmp_path: Path, place: str) -> None:
    rows = sweep()
    (tmp_path / "velodyne").mkdir()
    rows.tofile(tmp_path / "velodyne" / "000007.bin")
    with pytest.raises(BadFileError, match=r"has no classes of its points: looked for .*000007\.label and .*labels"):
        read_scene(tmp_path / "velodyne" / "000007.bin", labels=True)
    classes = np.arange(len(rows)) % 260
    (tmp_path / place).parent.mkdir(exist_ok=True)
    ((np.arange(len(rows)) << 16) + classes).astype("<u4").tofile(tmp_path / place)
    found = read_scene(tmp_path / "velodyne" / "000007.bin", labels=True)
    assert found.segment is not None
    assert found.segment.tolist() == classes.tolist()
    classes[:-1].astype("<u4").tofile(tmp_path / place)
    with pytest.raises(BadFileError, match=r"000007\.label: has 499 classes, 000007\.bin 500 points"):
        read_scene(tmp_path / "velodyne" / "000007.bin", labels=True)
