"""GLB and GLTF files: the place and the colour of every sample are compared with what the file says of them."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from unit_square import CORNERS, check_gradient, check_texture, texture_at

from pc3d.data import BadFileError, read_points
from pc3d.image import read_mesh


def glb(
    attributes: dict[str, np.ndarray], material: dict[str, Any] | None, picture: Path | None = None, **more: Any
) -> bytes:
    """A square by hand: data of its vertices beside their places, and the material."""
    arrays = {"POSITION": np.array(CORNERS, "<f4"), **attributes}
    pieces = [array.tobytes() for array in arrays.values()] + [np.array([0, 1, 2, 0, 2, 3], "<u4").tobytes()]
    codes = {"f": 5126, "B": 5121, "H": 5123}
    accessors = [
        {
            "componentType": codes[a.dtype.char],
            "count": 4,
            "type": f"VEC{a.shape[1]}",
            "normalized": a.dtype.char != "f",
        }
        for a in arrays.values()
    ]
    accessors.append({"componentType": 5125, "count": 6, "type": "SCALAR"})
    accessors = [{"bufferView": view, **accessor} for view, accessor in enumerate(accessors)]
    primitive: dict[str, Any] = {"attributes": {name: i for i, name in enumerate(arrays)}, "indices": len(arrays)}
    described: dict[str, Any] = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
    }
    if material is not None:
        primitive["material"] = 0
        described["materials"] = [{"pbrMetallicRoughness": material}]
    if picture is not None:
        pieces.append(picture.read_bytes())
        described["images"] = [{"bufferView": len(pieces) - 1, "mimeType": "image/png"}]
        described["textures"] = [{"source": 0}]
    views, blob = [], b""
    for piece in pieces:
        views.append({"buffer": 0, "byteOffset": len(blob), "byteLength": len(piece)})
        blob += piece + b"\0" * (-len(piece) % 4)
    described |= {"meshes": [{"primitives": [primitive]}], "accessors": accessors, "bufferViews": views}
    described |= {"buffers": [{"byteLength": len(blob)}], **more}
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(blob), b"BIN\0") + blob
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


GRADIENT = np.array(CORNERS, np.float32)


@pytest.mark.parametrize(
    "colour",
    [
        np.array([(x, y, 0) for x, y, _ in CORNERS], "<f4"),
        np.array([(x * 255, y * 255, 0, 255) for x, y, _ in CORNERS], "B"),
        np.array([(x * 65535, y * 65535, 0, 65535) for x, y, _ in CORNERS], "<u2"),
    ],
)
@pytest.mark.parametrize("material", [None, {}, {"baseColorFactor": [0.2, 0.6, 1, 1]}])
def test_glb_multiplies_vertices_and_material(
    tmp_path: Path, colour: np.ndarray, material: dict[str, Any] | None
) -> None:
    (tmp_path / "a.glb").write_bytes(glb({"COLOR_0": colour}, material))
    factor = (material or {}).get("baseColorFactor", [1, 1, 1])[:3]
    check_gradient(read_points(tmp_path / "a.glb", num_points=300), factor)


@pytest.mark.parametrize("material", [None, {}])
def test_glb_keeps_shades_in_16_bits(tmp_path: Path, material: dict[str, Any] | None) -> None:
    shade = np.tile(np.array([[13107, 32768, 52428, 65535]], "<u2"), (4, 1))  # whose lower 8 bits say something else
    (tmp_path / "a.glb").write_bytes(glb({"COLOR_0": shade}, material))
    rgb = read_points(tmp_path / "a.glb", num_points=50).rgb
    torch.testing.assert_close(rgb, torch.tensor([0.2, 0.5, 0.8]).expand(50, 3), atol=1 / 255, rtol=0)


def test_glb_multiplies_texture_and_material(tmp_path: Path, picture: Path) -> None:
    places = np.array([(x, 1 - y) for x, y, _ in CORNERS], "<f4")
    material = {"baseColorTexture": {"index": 0}, "baseColorFactor": [1, 0.4, 1, 1]}
    (tmp_path / "a.glb").write_bytes(glb({"TEXCOORD_0": places}, material, picture))
    check_texture(read_points(tmp_path / "a.glb", num_points=300), (1, 0.4, 1))


def test_glb_parts_with_and_without_a_material(tmp_path: Path) -> None:
    scene = trimesh.Scene()
    red = trimesh.visual.material.PBRMaterial(baseColorFactor=[255, 0, 0, 255])
    for place, visual in ((0, trimesh.visual.TextureVisuals(material=red)), (2, None)):
        square = trimesh.Trimesh(CORNERS, [[0, 1, 2], [0, 2, 3]], visual=visual, process=False)
        scene.add_geometry(square, transform=trimesh.transformations.translation_matrix([place, 0, 0]))
    scene.export(tmp_path / "a.glb")
    cloud = read_points(tmp_path / "a.glb", num_points=200)
    right = cloud.xyz[:, 0] > 1.5
    assert 0 < right.sum() < 200
    assert torch.equal(cloud.rgb, torch.tensor([[1.0, 0, 0], [1, 1, 1]])[right.long()])


def test_glb_of_points_and_compressed(tmp_path: Path) -> None:
    colours = np.array([(x * 255, y * 255, 0, 255) for x, y, _ in CORNERS], np.uint8)
    trimesh.Scene(trimesh.PointCloud(GRADIENT, colors=colours)).export(tmp_path / "a.glb")
    cloud = read_points(tmp_path / "a.glb")
    assert cloud.xyz.tolist() == GRADIENT.tolist()
    check_gradient(cloud)
    (tmp_path / "a.glb").write_bytes(glb({}, None, extensionsRequired=["KHR_draco_mesh_compression"]))
    with pytest.raises(BadFileError, match=r"is compressed by KHR_draco_mesh_compression, which is not read: export"):
        read_points(tmp_path / "a.glb")


def test_glb_with_lines_beside_the_mesh(tmp_path: Path) -> None:
    parts = [{"attributes": {"POSITION": 0}, "indices": 1}, {"attributes": {"POSITION": 0}, "mode": 1}]
    (tmp_path / "a.glb").write_bytes(glb({}, None, meshes=[{"primitives": parts}]))
    assert len(read_points(tmp_path / "a.glb", num_points=50)) == 50


@pytest.mark.parametrize("ending", [".gltf", ".glb"])
@pytest.mark.parametrize("where", ["beside", "inside"])
def test_data_in_other_files(tmp_path: Path, picture: Path, ending: str, where: str) -> None:
    """Numbers and picture in files with blanks in their names, or in the text."""
    places = np.array([(x, 1 - y) for x, y, _ in CORNERS], "<f4")
    whole = glb({"TEXCOORD_0": places}, {"baseColorTexture": {"index": 0}}, picture)
    tree, data = taken_apart(whole)
    if where == "beside":
        (tmp_path / "a 1.bin").write_bytes(data)
        tree["buffers"][0]["uri"], tree["images"] = "a%201.bin", [{"uri": "images/a%20b.png"}]
    else:
        tree["buffers"][0]["uri"] = "data:application/octet-stream;base64," + base64.b64encode(data).decode()
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sIII4s", b"glTF", 2, 20 + len(text), len(text), b"JSON")
    (tmp_path / f"a{ending}").write_bytes(text if ending == ".gltf" else head + text)
    check_texture(read_points(tmp_path / f"a{ending}", num_points=200))
    assert read_mesh(tmp_path / f"a{ending}").textures[0].shape == (52, 52, 3)
    if where == "beside":
        (tmp_path / "a 1.bin").unlink()
        with pytest.raises(BadFileError, match=r"its data are in 'a 1\.bin', which is not beside it: copy that too"):
            read_points(tmp_path / f"a{ending}")


@pytest.mark.parametrize("where", ["../secret.bin", "/{}/secret.bin", "..\\secret.bin", "a/../../secret.bin"])
def test_data_elsewhere_are_not_read(tmp_path: Path, where: str) -> None:
    tree, data = taken_apart(glb({}, None))
    (tmp_path / "secret.bin").write_bytes(data)
    folder = tmp_path / "given"
    folder.mkdir()
    tree["buffers"][0]["uri"] = where.format(str(tmp_path).strip("/"))
    (folder / "a.gltf").write_text(json.dumps(tree))
    with pytest.raises(BadFileError, match=r"its data are in '.*secret\.bin', which is not below its folder"):
        read_points(folder / "a.gltf")


def taken_apart(whole: bytes) -> tuple[dict[str, Any], bytes]:
    size = struct.unpack_from("<I", whole, 12)[0]
    return json.loads(whole[20 : 20 + size]), whole[28 + size :]


def test_colours_without_data_are_black(tmp_path: Path) -> None:
    tree, data = taken_apart(glb({"COLOR_0": np.full((4, 4), 200, "B")}, None))
    del tree["accessors"][1]["bufferView"]  # which then stands for zeros
    tree["buffers"][0]["uri"] = "data:application/octet-stream;base64," + base64.b64encode(data).decode()
    (tmp_path / "a.gltf").write_text(json.dumps(tree))
    assert read_points(tmp_path / "a.gltf", num_points=50).rgb.tolist() == [[0, 0, 0]] * 50


def test_integers_that_stand_for_fractions(tmp_path: Path, picture: Path) -> None:
    """As gltfpack and gltf-transform write places in space and on the picture."""
    short, byte = np.array(CORNERS) * 32767, np.array([(x, 1 - y) for x, y, _ in CORNERS]) * 255
    written = glb({"TEXCOORD_0": byte.astype("B")}, {"baseColorTexture": {"index": 0}}, picture)
    tree, data = taken_apart(written)
    rows = np.zeros((4, 4), "<i2")  # each begins at a multiple of four bytes
    rows[:, :3] = short - [0, 0, 32767]
    tree["bufferViews"].append({"buffer": 0, "byteOffset": len(data), "byteLength": 32, "byteStride": 8})
    view = len(tree["bufferViews"]) - 1
    tree["accessors"][0] = {"bufferView": view, "componentType": 5122, "count": 4, "type": "VEC3", "normalized": True}
    tree["nodes"] = [{"mesh": 0, "translation": [0, 0, 3], "scale": [1, 1, 2]}]
    tree["buffers"][0] = {"byteLength": len(data) + 32, "uri": "a.bin"}
    (tmp_path / "a.bin").write_bytes(data + rows.tobytes())
    (tmp_path / "a.gltf").write_text(json.dumps(tree))
    cloud = read_points(tmp_path / "a.gltf", num_points=200)
    torch.testing.assert_close(cloud.xyz[:, 2], torch.ones(200))  # 3 - 1 * 2
    assert 0.95 < cloud.xyz[:, :2].max() <= 1
    check_texture(cloud)


@pytest.mark.parametrize(
    ("transform", "moved"),
    [
        ({"scale": [0.5, 0.25], "offset": [0.5, 0.25]}, lambda u, v: (u / 2 + 0.5, v / 4 + 0.25)),
        # The example of the extension: the lower left quarter of the picture, turned clockwise.
        ({"scale": [0.5, 0.5], "rotation": np.pi / 2, "offset": [0, 1]}, lambda u, v: (v / 2, 1 - u / 2)),
        ({}, lambda u, v: (u, v)),
    ],
)
def test_the_place_on_the_picture_that_the_material_names(
    tmp_path: Path, picture: Path, transform: dict[str, Any], moved: Callable[..., tuple[float, float]]
) -> None:
    places = {"TEXCOORD_0": np.zeros((4, 2), "<f4"), "TEXCOORD_1": np.array([(x, 1 - y) for x, y, _ in CORNERS], "<f4")}
    texture = {"index": 0, "texCoord": 1, "extensions": {"KHR_texture_transform": transform}}
    (tmp_path / "a.glb").write_bytes(glb(places, {"baseColorTexture": texture}, picture))
    cloud = read_points(tmp_path / "a.glb", num_points=200)
    u, v = moved(cloud.xyz[:, 0], 1 - cloud.xyz[:, 1])
    expected = torch.stack([texture_at(u), texture_at(1 - v)], dim=1)
    torch.testing.assert_close(cloud.rgb[:, :2], expected, atol=1e-5, rtol=0)


def test_colours_of_a_material_of_specular_colours(tmp_path: Path) -> None:
    """Older models of Sketchfab."""
    written = glb({}, {"baseColorFactor": [0, 0, 1, 1]})
    tree, data = taken_apart(written)
    glossy = {"diffuseFactor": [1, 0.2, 0, 1], "specularFactor": [0, 1, 0], "glossinessFactor": 0.5}
    tree["materials"] = [{"extensions": {"KHR_materials_pbrSpecularGlossiness": glossy}}]
    tree["buffers"][0]["uri"] = "a.bin"
    (tmp_path / "a.bin").write_bytes(data)
    (tmp_path / "a.gltf").write_text(json.dumps(tree))
    rgb = read_points(tmp_path / "a.gltf", num_points=10).rgb
    torch.testing.assert_close(rgb, torch.tensor([[1.0, 0.2, 0.0]]).expand(10, 3))


@pytest.mark.parametrize(
    ("base", "light", "seen"),
    [
        ({"baseColorFactor": [0, 0, 0, 1]}, [1, 0.4, 1], True),
        ({"baseColorFactor": [0, 0, 0, 1], "baseColorTexture": {"index": 0}}, [1, 0.4, 1], True),
        ({"baseColorFactor": [0, 0, 0, 1]}, None, False),  # by the format, such a light is out
        ({"baseColorTexture": {"index": 0}}, [0, 0, 1], True),
    ],
)
def test_the_light_of_something_black(
    tmp_path: Path, picture: Path, base: dict[str, Any], light: list[float] | None, seen: bool
) -> None:
    places = np.array([(x, 1 - y) for x, y, _ in CORNERS], "<f4")
    lamp = {"emissiveTexture": {"index": 0}, **({} if light is None else {"emissiveFactor": light})}
    materials = [{"pbrMetallicRoughness": base, **lamp}]
    (tmp_path / "a.glb").write_bytes(glb({"TEXCOORD_0": places}, base, picture, materials=materials))
    cloud = read_points(tmp_path / "a.glb", num_points=200)
    factor = (1, 0.4, 1) if "baseColorFactor" in base else (1, 1, 1)
    check_texture(cloud, factor if seen else (0, 0, 0))


def test_scenes_nodes_and_cameras(tmp_path: Path) -> None:
    """The second of two scenes; its mesh hangs on a camera, which hangs on a node that turns and stretches."""
    turn = {"rotation": [0, 0, 0.5**0.5, 0.5**0.5], "scale": [2, 1, 1], "children": [2]}
    camera = {"camera": 0, "translation": [10, 0, 5], "children": [0]}
    (tmp_path / "a.glb").write_bytes(
        glb({}, None, scene=1, scenes=[{"nodes": [0]}, {"nodes": [1]}], nodes=[{"mesh": 0}, turn, camera])
    )
    xyz = read_points(tmp_path / "a.glb", num_points=400).xyz
    # x and y of the square, 0 to 1, go to (-y, 2 * (x + 10)).
    low, high = xyz.amin(dim=0), xyz.amax(dim=0)
    torch.testing.assert_close(low, torch.tensor([-1.0, 20, 5]), atol=0.05, rtol=0)
    torch.testing.assert_close(high, torch.tensor([0.0, 22, 5]), atol=0.05, rtol=0)


@pytest.mark.parametrize("base", [True, False])
def test_sparse_accessors(tmp_path: Path, base: bool) -> None:
    """The corner (1, 1, 0) as a change of a corner elsewhere, or all corners but one as changes of zeros."""
    tree, data = taken_apart(glb({}, None))
    rows = [2] if base else [1, 2, 3]
    changed = np.array(rows, "<u2").tobytes().ljust(8, b"\0") + np.array(CORNERS, "<f4")[rows].tobytes()
    data = np.float32(7).tobytes().join([data[:24], data[28:]]) if base else data
    views = tree["bufferViews"]
    views += [{"buffer": 0, "byteOffset": len(data), "byteLength": 2 * len(rows)}]
    views += [{"buffer": 0, "byteOffset": len(data) + 8, "byteLength": 12 * len(rows)}]
    sparse = {
        "indices": {"bufferView": len(views) - 2, "componentType": 5123},
        "values": {"bufferView": len(views) - 1},
    }
    tree["accessors"][0]["sparse"] = {"count": len(rows), **sparse}
    if not base:
        del tree["accessors"][0]["bufferView"]
    tree["buffers"] = [{"byteLength": len(data) + len(changed), "uri": "a.bin"}]
    (tmp_path / "a.bin").write_bytes(data + changed)
    (tmp_path / "a.gltf").write_text(json.dumps(tree))
    xyz = read_points(tmp_path / "a.gltf", num_points=400).xyz
    torch.testing.assert_close(xyz.mean(dim=0), torch.tensor([0.5, 0.5, 0.0]), atol=0.08, rtol=0)
    assert 0 <= xyz.min() <= xyz.max() <= 1


def test_a_file_without_scenes_shows_all_nodes(tmp_path: Path) -> None:
    nodes = [{"mesh": 0}, {"children": [0], "translation": [0, 0, 4]}, {"mesh": 0, "translation": [3, 0, 4]}]
    tree, data = taken_apart(glb({}, None, nodes=nodes))
    del tree["scenes"], tree["scene"]
    tree["buffers"][0]["uri"] = "a.bin"
    (tmp_path / "a.bin").write_bytes(data)
    (tmp_path / "a.gltf").write_text(json.dumps(tree))
    xyz = read_points(tmp_path / "a.gltf", num_points=400).xyz
    torch.testing.assert_close(xyz.mean(dim=0), torch.tensor([2.0, 0.5, 4.0]), atol=0.3, rtol=0)
    assert (xyz[:, 2] == 4).all()


def test_fans_of_triangles(tmp_path: Path) -> None:
    for more in ({}, {"indices": 1}):
        parts = [{"attributes": {"POSITION": 0}, "mode": 6, **more}]
        (tmp_path / "a.glb").write_bytes(glb({}, None, meshes=[{"primitives": parts}]))
        cloud = read_points(tmp_path / "a.glb", num_points=400)
        torch.testing.assert_close(cloud.xyz.mean(dim=0), torch.tensor([0.5, 0.5, 0.0]), atol=0.08, rtol=0)


def test_what_is_passed_over_is_told(tmp_path: Path, picture: Path) -> None:
    parts = [{"attributes": {"POSITION": 0}, "indices": 1}, {"attributes": {"POSITION": 0}, "mode": 0}]
    (tmp_path / "a.glb").write_bytes(glb({}, None, meshes=[{"primitives": parts}]))
    with pytest.warns(UserWarning, match=r"a\.glb: 4 points beside its meshes are passed over"):
        assert len(read_points(tmp_path / "a.glb", num_points=50)) == 50
    places = {"TEXCOORD_0": np.zeros((4, 2), "<f4")}
    texture = {"textures": [{"extensions": {"KHR_texture_basisu": {"source": 0}}}]}
    (tmp_path / "a.glb").write_bytes(glb(places, {"baseColorTexture": {"index": 0}}, picture, **texture))
    with pytest.warns(UserWarning, match=r"a\.glb: its pictures are KTX2, which are not read"):
        read_points(tmp_path / "a.glb", num_points=50)


PACKED = "EXT_meshopt_compression"
UNPACKED = {"byteLength": 9999, "extensions": {PACKED: {"fallback": True}}}
PLACES = {"componentType": 5126, "count": 10**12, "type": "VEC3"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (glb({}, None, extensionsRequired=["EXT_mesh_gpu_instancing"]), "places its meshes by EXT_mesh_gpu_instancing"),
        (
            glb({}, None, extensionsRequired=[PACKED], buffers=[{"byteLength": 72}, UNPACKED]),
            f"is compressed by {PACKED}",
        ),
        (glb({}, None, asset={"version": "1.0"}), "is not glTF 2, the only version that is read"),
        (struct.pack("<4sIIII", b"glTF", 1, 20, 0, 0), "is not glTF 2"),
        (glb({}, None)[:-1], r"is truncated: it promises \d+ bytes, \d+ are there"),
        (glb({}, None, buffers=[{"byteLength": 999}]), "is truncated: 72 of 999 bytes of a buffer are there"),
        *(
            (glb({}, None, accessors=accessors), "is truncated: accessor 0 has 1000000000000 items " + message)
            for accessors, message in (
                ([{**PLACES, "bufferView": 0}], "of 12 bytes every 12 bytes, and 72 bytes are there"),
                ([PLACES, {**PLACES, "bufferView": 0, "count": 4}], "and no data, others have at most 4"),
                ([PLACES], "and no data, others have at most 0"),
            )
        ),
    ],
)
def test_what_is_not_read_is_said(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.glb").write_bytes(data)
    with pytest.raises(BadFileError, match=r"a\.glb: " + message):
        read_points(tmp_path / "a.glb")


def test_a_step_of_nothing_does_not_make_many_of_one(tmp_path: Path) -> None:
    views = [{"buffer": 0, "byteLength": 72, "byteStride": 0}]
    accessors = [{**PLACES, "bufferView": 0, "componentType": 5123, "normalized": True}]
    (tmp_path / "a.glb").write_bytes(glb({}, None, accessors=accessors, bufferViews=views))
    with pytest.raises(BadFileError, match="items of 6 bytes every 0 bytes, and 72 bytes are there"):
        read_points(tmp_path / "a.glb")


def test_moves_of_vertices_may_have_no_data(tmp_path: Path) -> None:
    """A shape that a face may take, in which nothing moves: as many zeros as vertices."""
    data = glb({}, None)
    tree = json.loads(data[20 : 20 + struct.unpack_from("<I", data, 12)[0]])
    moves = [*tree["accessors"], {**PLACES, "count": 4}]
    (tmp_path / "a.glb").write_bytes(glb({}, None, accessors=moves))
    assert len(read_points(tmp_path / "a.glb", num_points=10)) == 10
