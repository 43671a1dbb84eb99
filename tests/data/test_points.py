from __future__ import annotations

import builtins
import shutil
import sys
from pathlib import Path

import laspy
import numpy as np
import pypcd4
import pytest
import torch
import trimesh

from pc3d._extras import require
from pc3d.data import BadFileError, PointCloud, read_points


def test_sampling_is_seeded_and_weighted_by_area(assets: Path) -> None:
    path = assets / "meshes" / "crate.stl"
    first, again, other = (read_points(path, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.xyz, again.xyz)
    assert not torch.equal(first.xyz, other.xyz)
    mesh = trimesh.load(path, process=False)
    # The area-weighted mean of the face centres is where uniform samples balance.
    balance = (mesh.triangles_center * mesh.area_faces[:, None]).sum(axis=0) / mesh.area
    spread = first.xyz.std(dim=0).numpy() / 100
    assert (np.abs(first.xyz.mean(dim=0).numpy() - balance) < 4 * spread).all()


def test_glb_keeps_its_texture(assets: Path) -> None:
    cloud = read_points(assets / "meshes" / "bread.glb", num_points=3000)
    stored = read_points(assets / "meshes" / "bread_points.ply")
    assert cloud.rgb.shape == (3000, 3)
    assert cloud.normal is not None
    # The same loaf, sampled by other means: brown, and not of one colour.
    assert (cloud.rgb.mean(dim=0) - stored.rgb.mean(dim=0)).abs().max() < 0.03
    assert (cloud.rgb.std(dim=0) - stored.rgb.std(dim=0)).abs().max() < 0.03


def test_mesh_with_vertex_colours_is_interpolated(tmp_path: Path) -> None:
    mesh = trimesh.Trimesh(
        vertices=[[0, 0, 0], [1, 0, 0], [0, 1, 0]],
        faces=[[0, 1, 2]],
        vertex_colors=[[255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255]],
        process=False,
    )
    mesh.export(tmp_path / "triangle.ply")
    cloud = read_points(tmp_path / "triangle.ply", num_points=200)
    weight = torch.stack([1 - cloud.xyz[:, 0] - cloud.xyz[:, 1], cloud.xyz[:, 0], cloud.xyz[:, 1]], dim=1)
    torch.testing.assert_close(cloud.rgb, weight, atol=1e-5, rtol=0)


@pytest.mark.parametrize("colour", [(255, 255, 255), (255, 0, 0)], ids=["white", "red"])
def test_saturated_vertex_colours_stay_what_they_are(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    """Weights of a triangle's corners add up to 1 but for rounding, which must not pass for a scale of 0..255."""
    mesh = trimesh.creation.icosphere(subdivisions=2)
    mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=np.tile([*colour, 255], (len(mesh.vertices), 1)))
    mesh.export(tmp_path / "ball.ply")
    rgb = read_points(tmp_path / "ball.ply", num_points=2000).rgb
    assert rgb is not None
    assert rgb.max() <= 1
    np.testing.assert_allclose(rgb.numpy(), np.tile(np.array(colour) / 255, (2000, 1)), atol=1e-6)


def test_float_colours_a_rounding_error_above_one(tmp_path: Path) -> None:
    colours = np.full((5, 3), 1.0)
    colours[0] = np.nextafter(1.0, 2.0)
    np.savez(tmp_path / "a.npz", xyz=np.eye(5, 3), rgb=colours)
    assert read_points(tmp_path / "a.npz").rgb.tolist() == [[1.0] * 3] * 5
    np.savez(tmp_path / "b.npz", xyz=np.eye(5, 3), rgb=colours * 255)
    np.testing.assert_allclose(read_points(tmp_path / "b.npz").rgb.numpy(), 1.0)


def test_obj_with_material_colour(tmp_path: Path) -> None:
    (tmp_path / "a.mtl").write_text("newmtl red\nKd 1.0 0.0 0.0\n")
    (tmp_path / "a.obj").write_text("mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nusemtl red\nf 1 2 3\n")
    cloud = read_points(tmp_path / "a.obj", num_points=10)
    assert torch.equal(cloud.rgb, torch.tensor([1.0, 0.0, 0.0]).expand(10, 3))


@pytest.fixture
def table(chair: PointCloud) -> dict[str, np.ndarray]:
    return {name: getattr(chair, name)[:200].numpy() for name in ("xyz", "rgb", "normal")}


@pytest.mark.parametrize("suffix", [".xyz", ".txt", ".npy", ".csv.xyz"])
@pytest.mark.parametrize(
    "names", [("xyz",), ("xyz", "normal"), ("xyz", "rgb"), ("xyz", "rgb", "normal"), ("xyz", "normal", "rgb")]
)
def test_tables_tell_normals_from_colours(
    tmp_path: Path, table: dict[str, np.ndarray], names: tuple[str, ...], suffix: str
) -> None:
    columns = np.concatenate([table[name] * (255 if name == "rgb" else 1) for name in names], axis=1)
    path = tmp_path / f"cloud{suffix}"
    if suffix == ".npy":
        np.save(path, columns)
    else:
        np.savetxt(path, columns, fmt="%.7f", delimiter="," if "csv" in suffix else " ", header="x y z ...")
    cloud = read_points(path)
    for name in ("xyz", "rgb", "normal"):
        value = getattr(cloud, name)
        if name in names:
            torch.testing.assert_close(value, torch.from_numpy(table[name]), atol=1e-5, rtol=0)
        else:
            assert value is None


def test_npz_by_key(tmp_path: Path, table: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "a.npz", points=table["xyz"], colors=(table["rgb"] * 255).round().astype(np.uint8))
    cloud = read_points(tmp_path / "a.npz")
    torch.testing.assert_close(cloud.rgb, torch.from_numpy(table["rgb"]), atol=1e-6, rtol=0)
    np.savez(tmp_path / "b.npz", vertices=table["xyz"])
    with pytest.raises(BadFileError, match=r"none of the keys .* but \['vertices'\]"):
        read_points(tmp_path / "b.npz")


def test_ply_points_with_colour_and_normals(tmp_path: Path, table: dict[str, np.ndarray]) -> None:
    rows = np.concatenate([table["xyz"], table["normal"], (table["rgb"] * 255).round()], axis=1)
    names = ("x", "y", "z", "nx", "ny", "nz")
    header = ["ply", "format ascii 1.0", "element vertex 200", *(f"property float {name}" for name in names)]
    header += [*(f"property uchar {name}" for name in ("red", "green", "blue")), "end_header"]
    body = [" ".join(f"{x:.7f}" for x in row[:6]) + " " + " ".join(str(int(c)) for c in row[6:]) for row in rows]
    (tmp_path / "a.ply").write_text("\n".join([*header, *body]) + "\n")
    cloud = read_points(tmp_path / "a.ply")
    for name in table:
        torch.testing.assert_close(getattr(cloud, name), torch.from_numpy(table[name]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("encoding", ["BINARY", "BINARY_COMPRESSED"])
def test_pcd_with_colour(tmp_path: Path, table: dict[str, np.ndarray], encoding: str) -> None:
    packed = pypcd4.PointCloud.encode_rgb((table["rgb"] * 255).round().astype(np.uint8))
    cloud = pypcd4.PointCloud.from_xyzrgb_points(np.concatenate([table["xyz"], packed.reshape(-1, 1)], axis=1))
    cloud.save(tmp_path / "a.pcd", encoding=pypcd4.Encoding[encoding])
    read = read_points(tmp_path / "a.pcd")
    torch.testing.assert_close(read.xyz, torch.from_numpy(table["xyz"]), atol=1e-6, rtol=0)
    torch.testing.assert_close(read.rgb, torch.from_numpy(table["rgb"]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["F", "U"])
def test_pcd_as_text_with_colour_and_normals(tmp_path: Path, kind: str) -> None:
    word = np.uint32(255 << 16 | 128 << 8 | 1)
    colour = str(word) if kind == "U" else repr(float(word.view(np.float32)))
    names = "x y z rgb normal_x normal_y normal_z"
    header = f"VERSION .7\nFIELDS {names}\nSIZE 4 4 4 4 4 4 4\nTYPE F F F {kind} F F F\nCOUNT 1 1 1 1 1 1 1\n"
    header += "WIDTH 2\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS 2\nDATA ascii\n"
    (tmp_path / "a.pcd").write_text(header + f"1 2 3 {colour} 0 0 1\n4 5 6 {colour} 0 2 0\n")
    cloud = read_points(tmp_path / "a.pcd")
    assert cloud.xyz.tolist() == [[1, 2, 3], [4, 5, 6]]
    torch.testing.assert_close(cloud.rgb[1], torch.tensor([1, 128 / 255, 1 / 255]))
    assert cloud.normal.tolist() == [[0, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize("suffix", [".las", ".laz"])
def test_las_keeps_centimetres_of_a_georeferenced_survey(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    xyz = np.array([500_000.0, 5_400_000.0, 200.0]) + rng.random((500, 3)) * 30
    header = laspy.LasHeader(point_format=2, version="1.2")
    header.scales, header.offsets = [0.001] * 3, [500_000, 5_400_000, 0]
    survey = laspy.LasData(header)
    survey.x, survey.y, survey.z = xyz.T
    survey.red, survey.green, survey.blue = rng.integers(0, 65536, (3, 500))
    survey.write(tmp_path / f"a{suffix}")
    cloud = read_points(tmp_path / f"a{suffix}")
    restored = cloud.xyz.double().numpy() + np.array(cloud.meta["origin"])
    assert np.abs(restored - xyz).max() < 0.0011  # a millimetre of the file's own scale
    np.testing.assert_allclose(cloud.rgb[:, 0].numpy(), np.asarray(survey.red) / 65535, atol=1e-6)


def test_colours_in_8_bits_within_16_bit_fields(tmp_path: Path) -> None:
    survey = laspy.LasData(laspy.LasHeader(point_format=2, version="1.2"))
    survey.x, survey.y, survey.z = np.eye(3)
    survey.red, survey.green, survey.blue = np.array([[0, 128, 255]] * 3)
    survey.write(tmp_path / "a.las")
    assert read_points(tmp_path / "a.las").rgb[:, 0].tolist() == pytest.approx([0, 128 / 255, 1])


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("name", ["a.glb", "a.stl", "a.ply", "ascii.ply", "a.npy", "a.npz", "a.las", "a.laz", "a.pcd"])
def test_truncated_files_are_refused(tmp_path: Path, assets: Path, name: str, share: float) -> None:
    path = tmp_path / name
    write_whole_file(path, assets)
    assert len(read_points(path)) >= 100
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(BadFileError, match=name):
        read_points(path)


def write_whole_file(path: Path, assets: Path) -> None:
    mesh = trimesh.load(assets / "meshes" / "crate.stl", process=False)
    points = np.asarray(mesh.vertices, np.float32)
    if path.name == "ascii.ply":
        path.write_bytes(trimesh.exchange.ply.export_ply(mesh, encoding="ascii"))
    elif path.suffix == ".npy":
        np.save(path, points)
    elif path.suffix == ".npz":
        np.savez(path, xyz=points)
    elif path.suffix in (".las", ".laz"):
        survey = laspy.LasData(laspy.LasHeader(point_format=0, version="1.2"))
        survey.x, survey.y, survey.z = points.T
        survey.write(path)
    elif path.suffix == ".pcd":
        pypcd4.PointCloud.from_xyz_points(points).save(path)
    else:
        shutil.copy(assets / "meshes" / {".ply": "bread_points.ply"}.get(path.suffix, f"crate{path.suffix}"), path)


@pytest.mark.parametrize(
    "suffix", [".off", ".ply", ".stl", ".glb", ".obj", ".pcd", ".las", ".laz", ".npy", ".npz", ".xyz"]
)
@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02 no such thing \xff" * 20, b"<html>Not found</html>\n"])
def test_empty_and_foreign_content_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    with pytest.raises(BadFileError, match=f"file{suffix}"):
        read_points(path)


def test_points_that_are_not_finite(tmp_path: Path, table: dict[str, np.ndarray]) -> None:
    xyz = table["xyz"].copy()
    xyz[[3, 10], 1] = [np.nan, np.inf]
    np.savez(tmp_path / "a.npz", xyz=xyz, rgb=table["rgb"])
    with pytest.raises(BadFileError, match=r"2 of 200 points are not finite; drop_invalid=True"):
        read_points(tmp_path / "a.npz")
    cloud = read_points(tmp_path / "a.npz", drop_invalid=True)
    assert len(cloud) == len(cloud.rgb) == 198
    assert cloud.meta["dropped_points"] == 2
    np.save(tmp_path / "b.npy", np.full((5, 3), np.nan))
    with pytest.raises(BadFileError, match="holds no points"):
        read_points(tmp_path / "b.npy", drop_invalid=True)
    np.savez(tmp_path / "c.npz", xyz=table["xyz"], rgb=np.full((200, 3), np.nan))
    with pytest.raises(BadFileError, match="rgb has values that are not finite"):
        read_points(tmp_path / "c.npz")


def test_coordinates_beyond_float32_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "far.npy", np.array([[0.0, 1, 2], [1e300, 0, 0]]))
    with pytest.raises(BadFileError, match=r"far\.npy: has coordinates of up to 1e\+300, beyond the range of float32"):
        read_points(tmp_path / "far.npy")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((0, 3)), "holds no points"),
        (np.zeros((5, 2)), r"has shape \(5, 2\)"),
        (np.zeros(5), r"has shape \(5,\)"),
        (np.zeros((5, 5)), "has 5 columns"),
        (np.full((5, 6), -7.0), "columns 4 to 6 are neither unit normals nor colours"),
    ],
)
def test_wrong_shapes(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(BadFileError, match=message):
        read_points(tmp_path / "a.npy")


def test_fields_that_do_not_match(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", xyz=np.zeros((5, 3)), rgb=np.zeros((4, 3)))
    with pytest.raises(BadFileError, match=r"rgb has shape \(4, 3\), the coordinates have \(5, 3\)"):
        read_points(tmp_path / "a.npz")


def test_pickled_arrays_are_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BadFileError, match=r"a\.npy: holds Python objects \(a pickle\), .* np\.save, or named arrays"):
        read_points(tmp_path / "a.npy")
    np.savez(tmp_path / "a.npz", xyz=np.array([np.eye(3), np.zeros((2, 3))], dtype=object))
    with pytest.raises(BadFileError, match=r"a\.npz: holds Python objects"):
        read_points(tmp_path / "a.npz")
    np.save(tmp_path / "b.npy", {"xyz": Path(tmp_path)}, allow_pickle=True)
    with pytest.raises(BadFileError, match=r"b\.npy: is not a pickle of NumPy arrays: it asks for pathlib"):
        read_points(tmp_path / "b.npy")


def test_unknown_ending_missing_file_and_bad_count(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no reader for '.doc' files; there are readers for .*\.ply.*: convert it to"):
        read_points(tmp_path / "a.doc")
    with pytest.raises(FileNotFoundError, match=r"a\.ply does not exist"):
        read_points(tmp_path / "a.ply")
    with pytest.raises(ValueError, match="num_points must be at least 1, got 0"):
        read_points(tmp_path / "a.ply", num_points=0)


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pcd").write_text("# .PCD")
    original = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object) -> object:
        if name.partition(".")[0] == "pypcd4":
            raise ImportError(f"No module named {name!r}", name=name)
        return original(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "pypcd4")
    monkeypatch.setattr("importlib.import_module", refuse)
    with pytest.raises(ImportError, match=r'pypcd4 is needed for PCD files: pip install "pc3d\[io\]"'):
        read_points(tmp_path / "a.pcd")


def test_require_gives_the_module_or_the_command() -> None:
    assert require("trimesh", extra="io") is trimesh
    with pytest.raises(ImportError, match=r'no_such_module is needed for tea: pip install "pc3d\[viz\]"'):
        require("no_such_module", extra="viz", purpose="tea")
