"""Exported programs compute what the models compute, on clouds of other sizes than those they were traced with."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pc3d import ops
from pc3d.data import CenterShift, Household, Normalize, PointCloud, Rooms, collate
from pc3d.models import (
    DGCNN,
    AlignedShapeEncoder,
    BlockFeatures,
    OpenShapeFCNN,
    OpenShapePointBERT,
    OpenShapeSparseConv,
    PointClassifier,
    PointNet,
    PointPartSegmenter,
    PointTransformerV3,
    PointViT,
    SparseUNet,
    Swin3D,
    VectorClassifier,
    ViT3D,
    save_encoder,
    scene_features,
)
from pc3d.tasks import SceneSegmenter, export_program, load_segmenter, save_program
from pc3d.tasks.model_folder import save_model

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 3, "num_heads": 4, "num_groups": 16, "group_size": 8}
OPENSHAPE: dict[str, Any] = {"embed_dim": 32}


def vit(**options: Any) -> PointViT:
    return PointViT(**{**SMALL, "num_points": 128, "tokenizer_dims": [8, 16, 32], **options})


def unet() -> SparseUNet:
    return SparseUNet(channels=[8, 16], blocks=[1, 1], voxel_size=0.1, signals="xyz_rgb_normal")


def swin() -> Swin3D:
    return Swin3D(
        channels=[8, 16], depths=[2, 2], num_heads=[1, 2], window_sizes=[5, 7], down_strides=[2], voxel_size=0.1,
        signals="xyz_rgb",
    )  # fmt: skip


def settled(model: nn.Module) -> nn.Module:
    """In evaluation mode, with statistics of batch norm that are not those of an untrained network."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.1, 0.1)
    return model.eval()


def clouds(count: int, num_points: int) -> Tensor:
    """Real shapes, away from the origin and as large as furniture."""
    shapes = Household("test")
    return torch.stack([3.0 * shapes[i].xyz[:num_points] + 5.0 for i in range(count)])


def prepared(xyz: Tensor, center: Literal["box", "centroid"] = "box") -> Tensor:
    step = Normalize(center)
    return torch.stack([step(PointCloud(cloud), torch.Generator()).xyz for cloud in xyz])


@pytest.mark.parametrize(
    "build",
    [vit, PointNet, lambda: DGCNN(k=5), lambda: ViT3D(**{k: v for k, v in SMALL.items() if k != "num_groups"})],
    ids=["PointViT", "PointNet", "DGCNN", "ViT3D"],
)
def test_an_encoder_of_objects(build: Callable[[], Any], tmp_path: Path) -> None:
    encoder = settled(build())
    save_encoder(encoder, tmp_path)
    program = export_program(tmp_path).exported.module()
    for count, num_points in ((1, 300), (3, 128)):
        xyz = clouds(count, num_points)
        with torch.no_grad():
            torch.testing.assert_close(program(xyz), encoder.encode(prepared(xyz)), rtol=1e-5, atol=1e-5)  # type: ignore[operator]


@pytest.mark.parametrize("build", [OpenShapePointBERT, OpenShapeSparseConv, OpenShapeFCNN])
def test_an_encoder_that_reads_colors(build: type[Any], tmp_path: Path) -> None:
    encoder = settled(build(num_points=700))
    save_encoder(encoder, tmp_path)
    program = export_program(tmp_path)
    assert list(program.inputs) == ["xyz", "rgb"]
    assert program.num_points == 700
    xyz = clouds(2, 600)
    rgb = torch.rand(xyz.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        right = encoder.encode(prepared(xyz, "centroid"), rgb=rgb)  # type: ignore[operator]
        torch.testing.assert_close(program.exported.module()(xyz, rgb), right, rtol=1e-5, atol=1e-5)


def test_an_aligned_encoder_says_how_many_points_the_one_inside_is_meant_for(tmp_path: Path) -> None:
    inner = OpenShapePointBERT(16, 16, 1, 2, 16, 16, 8, 0.5, 8, num_points=90)
    save_encoder(AlignedShapeEncoder(inner, 6, 10).eval(), tmp_path / "encoder")
    save_program(export_program(tmp_path / "encoder"), tmp_path / "program")
    assert json.loads((tmp_path / "program" / "model.json").read_text())["num_points"] == 90


def test_a_classifier_of_an_encoder_that_reads_colors_reads_none(tmp_path: Path) -> None:
    inner = OpenShapePointBERT(16, 16, 1, 2, 16, 16, 8, 0.5, 8)
    model = settled(VectorClassifier(inner, 2))
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("encoder.")}
    save_model(tmp_path, inner, state, {"task": "classification", "classes": ["bed", "sofa"], "mode": "full"})
    program = export_program(tmp_path)
    assert list(program.inputs) == ["xyz"]
    xyz = clouds(2, 100)
    with torch.no_grad():
        torch.testing.assert_close(program.exported.module()(xyz), model(prepared(xyz)), rtol=1e-5, atol=1e-5)


def test_a_classifier(tmp_path: Path) -> None:
    model = settled(PointClassifier(vit(num_cls_tokens=1), 3))
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("encoder.")}
    config = {"task": "classification", "classes": ["bed", "lamp", "sofa"], "mode": "full"}
    save_model(tmp_path, model.encoder, state, config)  # type: ignore[arg-type]
    program = export_program(tmp_path)
    assert program.classes == ("bed", "lamp", "sofa")
    assert program.num_points == 128
    xyz = clouds(3, 200)
    with torch.no_grad():
        torch.testing.assert_close(program.exported.module()(xyz), model(prepared(xyz)), rtol=1e-5, atol=1e-5)


def test_a_classifier_of_a_run_does_the_normalization_of_its_test_objects(tmp_path: Path) -> None:
    model = settled(PointClassifier(vit(num_cls_tokens=1), 2))
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("encoder.")}
    config = {"task": "classification", "classes": ["bed", "lamp"], "mode": "full"}
    save_model(tmp_path, model.encoder, state, config)  # type: ignore[arg-type]
    steps = "[{class_path: pc3d.data.FirstPoints, init_args: {num_points: 128}}, {class_path: pc3d.data.Normalize}]"
    (tmp_path / "config.yaml").write_text(f"data: {{eval_transforms: {steps}}}\n")
    xyz = clouds(2, 200)
    as_commands = prepared(prepared(xyz), "centroid")
    assert (as_commands - prepared(xyz)).abs().max() > 0.01
    with torch.no_grad():
        for options, seen in (({}, as_commands), ({"normalize": [Normalize("box")]}, prepared(xyz))):
            program = export_program(tmp_path, **options).exported.module()  # type: ignore[arg-type]
            torch.testing.assert_close(program(xyz), model(seen), rtol=1e-5, atol=1e-5)


def test_a_part_segmenter(tmp_path: Path) -> None:
    model = settled(PointPartSegmenter(vit(num_cls_tokens=0), 5, 2, head_dims=(16, 16, 16, 16)))
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("encoder.")}
    config = {
        "task": "part segmentation", "categories": ["mug", "lamp"], "parts": ["a", "b", "c", "d", "e"],
        "layers": list(model.layers), "head_dims": [16, 16, 16, 16],  # type: ignore[arg-type, call-overload]
    }  # fmt: skip
    save_model(tmp_path, model.encoder, state, config)  # type: ignore[arg-type]
    program = export_program(tmp_path)
    assert program.inputs["category"] == "(1,) int64: 0 mug, 1 lamp"
    for num_points, category in ((128, 0), (500, 1)):
        xyz = clouds(1, num_points)[0]
        query, which = prepared(xyz[None])[0], torch.tensor([category])
        seen = query[ops.farthest_point_sample(query, 128)]
        with torch.no_grad():
            right = model.segment(seen[None], which, query, torch.tensor([0, num_points]))  # type: ignore[operator]
            torch.testing.assert_close(program.exported.module()(xyz, which), right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("build", [unet, swin])
def test_an_encoder_and_a_segmenter_of_scenes(build: Callable[[], Any], tmp_path: Path) -> None:
    room = Rooms("test")[0]
    scenes = [room.select(slice(0, 20000, 4)), room.select(slice(0, 300, 1))]
    model = settled(SceneSegmenter(build(), ["wall", "floor", "chair"]))
    model.save(tmp_path)  # type: ignore[operator]
    save_encoder(model.backbone, tmp_path / "alone")  # type: ignore[arg-type]
    segments, describes = export_program(tmp_path), export_program(tmp_path / "alone")
    assert segments.classes == ("wall", "floor", "chair")
    for scene in scenes:
        # Away from the origin: the program moves the scene as segment_scene does.
        given = [getattr(scene, name) for name in segments.inputs]
        given[0] = given[0] + torch.tensor([40.0, -30.0, 2.0])
        moved = CenterShift()(scene.replace(xyz=given[0]), torch.Generator())
        with torch.no_grad():
            right = load_segmenter(tmp_path)(collate([moved]))
            torch.testing.assert_close(segments.exported.module()(*given), right, rtol=1e-5, atol=1e-5)
            features = scene_features(model.backbone, moved)  # type: ignore[arg-type]
            torch.testing.assert_close(describes.exported.module()(*given), features, rtol=1e-5, atol=1e-5)


def test_a_program_needs_no_model_of_pc3d(tmp_path: Path) -> None:
    encoder = settled(vit())
    save_encoder(encoder, tmp_path / "encoder")
    save_program(export_program(tmp_path / "encoder"), tmp_path / "program")
    told = json.loads((tmp_path / "program" / "model.json").read_text())
    assert told["format"] == "torch.export"
    assert told["num_points"] == 128
    xyz = clouds(2, 200)
    np.save(tmp_path / "xyz.npy", xyz.numpy())
    code = (
        "import sys, numpy as np, torch, pc3d.ops\n"
        "folder = sys.argv[1]\n"
        "program = torch.export.load(folder + '/program/model.pt2').module()\n"
        "assert 'pc3d.models' not in sys.modules\n"
        "found = program(torch.from_numpy(np.load(folder + '/xyz.npy')))\n"
        "np.save(folder + '/found.npy', found.detach().numpy())\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT)
    with torch.no_grad():
        right = encoder.encode(prepared(xyz))  # type: ignore[operator]
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "found.npy")), right, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(ops.build_info()["cpu"] != "loaded", reason="a compiled program needs compiled kernels")
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_a_compiled_program_runs_in_cpp_without_python(tmp_path: Path) -> None:
    encoder = settled(vit())
    save_encoder(encoder, tmp_path / "encoder")
    folder = tmp_path / "program"
    save_program(export_program(tmp_path / "encoder"), folder, compiled=True)
    assert json.loads((folder / "model.json").read_text())["format"] == "AOTInductor"
    torch_folder = Path(torch.__file__).parent
    paths = [f"-I{torch_folder}/include{more}" for more in ("", "/torch/csrc/api/include")] + [f"-I{folder}"]
    libraries = [f"-L{torch_folder}/lib", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
    command = ["g++", "-std=c++20", str(ROOT / "examples" / "cpp" / "main.cpp"), *paths, *libraries]
    subprocess.run([*command, f"-Wl,-rpath,{torch_folder}/lib", "-o", str(tmp_path / "run")], check=True)
    for num_points in (128, 700):
        xyz = clouds(1, num_points)
        xyz.numpy().tofile(tmp_path / "in.bin")
        subprocess.run([tmp_path / "run", folder, tmp_path / "in.bin", tmp_path / "out.bin"], check=True)
        found = torch.from_numpy(np.fromfile(tmp_path / "out.bin", np.float32))[None]
        with torch.no_grad():
            right = encoder.encode(prepared(xyz))  # type: ignore[operator]
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("build", [lambda: BlockFeatures(vit()), lambda: PointTransformerV3.tiny()])
def test_steps_that_depend_on_the_points_are_refused(build: Callable[[], Any], tmp_path: Path) -> None:
    save_encoder(build(), tmp_path)
    with pytest.raises(ValueError, match="cannot be traced: its steps depend on the points"):
        export_program(tmp_path)


def test_there_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        export_program(tmp_path / "nothing")
