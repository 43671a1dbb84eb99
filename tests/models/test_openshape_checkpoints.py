"""Official OpenShape checkpoints: names and shapes written down from their description, round trips, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from formula import formula_state, formula_tensor
from openshape_plain import point_bert, sparse_conv
from torch import Tensor

from pc3d import load_encoder
from pc3d.image import OPENSHAPE_PAIR
from pc3d.methods import OpenShape
from pc3d.models import (
    AlignedShapeEncoder,
    OpenShapePointBERT,
    OpenShapeSparseConv,
    PointViT,
    load_aligned_openshape,
    load_official_openshape,
    to_official_openshape_state,
)

Layout = dict[str, tuple[int, ...]]
SMALL_PATCHES: dict[str, Any] = {"num_groups": 12, "radius": 0.4, "group_size": 10}


def _norm(prefix: str, width: int) -> Layout:
    return {f"{prefix}.weight": (width,), f"{prefix}.bias": (width,)}


def _batch_norm(prefix: str, width: int) -> Layout:
    names = ("running_mean", "running_var")
    return _norm(prefix, width) | {f"{prefix}.{n}": (width,) for n in names} | {f"{prefix}.num_batches_tracked": ()}


def transformer(D: int = 512, depth: int = 12, heads: int = 8, M: int = 1536, A: int = 256, out: int = 1280) -> Layout:
    """The tensors of an official file, from the description of its layout."""
    names: Layout = {"ppat.cls_token": (D,)}
    for i, (inputs, width) in enumerate(((9, 64), (64, 64), (64, A))):
        names |= {f"ppat.sa.mlp_convs.{i}.weight": (width, inputs, 1, 1), f"ppat.sa.mlp_convs.{i}.bias": (width,)}
        names |= _batch_norm(f"ppat.sa.mlp_bns.{i}", width)
    names |= {"ppat.lift.0.weight": (D, A + 3, 1), "ppat.lift.0.bias": (D,)} | _norm("ppat.lift.2", D)
    for layer in (f"ppat.transformer.layers.{i}" for i in range(depth)):
        names |= _norm(f"{layer}.0.norm", D) | _norm(f"{layer}.1.norm", D)
        names |= {f"{layer}.0.fn.to_qkv.weight": (3 * 64 * heads, D)}
        names |= {f"{layer}.0.fn.to_out.0.weight": (D, 64 * heads), f"{layer}.0.fn.to_out.0.bias": (D,)}
        names |= {f"{layer}.1.fn.net.0.weight": (M, D), f"{layer}.1.fn.net.0.bias": (M,)}
        names |= {f"{layer}.1.fn.net.3.weight": (D, M), f"{layer}.1.fn.net.3.bias": (D,)}
    return names | {"proj.weight": (out, D), "proj.bias": (out,)}


def convolutions(blocks: tuple[int, ...] = (3, 4, 6, 3), hidden: int = 1024, out: int = 1280) -> Layout:
    names: Layout = {"conv0p1s1.kernel": (125, 6, 32)} | _batch_norm("bn0.bn", 32)
    before = 32
    for level, (width, count) in enumerate(zip((32, 64, 128, 256), blocks, strict=True), start=1):
        names[f"conv{level}p{2 ** (level - 1)}s2.kernel"] = (8, before, before)
        names |= _batch_norm(f"bn{level}.bn", before)
        for j in range(count):
            block, inputs = f"block{level}.{j}", before if j == 0 else width
            names |= {f"{block}.conv1.kernel": (27, inputs, width), f"{block}.conv2.kernel": (27, width, width)}
            names |= _batch_norm(f"{block}.norm1.bn", width) | _batch_norm(f"{block}.norm2.bn", width)
            if inputs != width:
                names[f"{block}.downsample.0.kernel"] = (inputs, width)
                names |= _batch_norm(f"{block}.downsample.1.bn", width)
        before = width
    for i, (inputs, width) in enumerate(((480, hidden // 2), (hidden // 2, hidden))):
        names |= {f"conv5.{i}.0.kernel": (27, inputs, width)} | _batch_norm(f"conv5.{i}.1.bn", width)
    names |= {"final.0.0.linear.weight": (hidden, 2 * hidden)} | _batch_norm("final.0.1.bn", hidden)
    names |= {"final.2.0.linear.weight": (hidden, hidden)} | _batch_norm("final.2.1.bn", hidden)
    return names | {"final.3.linear.weight": (out, hidden), "final.3.linear.bias": (out,)}


SMALL = transformer(128, 2, 2, 200, 48, 24)
SPARSE = convolutions((1, 2, 1, 1), 16, 24)


def training_file(path: Path, state: dict[str, Tensor]) -> Path:
    """As the training code saves it."""
    content = {
        "state_dict": {f"module.{name}": value for name, value in state.items()},
        "logit_scale": {"module.logit_scale": torch.tensor(4.6)},
        "text_proj": None,
        "image_proj": None,
        "optimizer": {"state": {}, "param_groups": [{"lr": 5e-4}]},
        "scheduler": {"last_epoch": 3},
        "epoch": 3,
        "step": 1234,
        "best_lvis_acc": 0.4,
    }
    torch.save(content, path)
    return path


def test_names_and_shapes_are_the_official_ones() -> None:
    with torch.device("meta"):
        models = [OpenShapePointBERT(), OpenShapePointBERT.of_size("72m"), OpenShapeSparseConv()]
        states = [to_official_openshape_state(model) for model in models]  # type: ignore[arg-type]
    layouts = [transformer(), transformer(768, 12, 12, 2304), convolutions()]
    for state, layout in zip(states, layouts, strict=True):
        assert {name: tuple(value.shape) for name, value in state.items()} == layout
    # 12 blocks of 11 tensors; 16 of 12, and 3 shortcuts of 6.
    assert [len(layout) for layout in layouts] == [28 + 12 * 11, 28 + 12 * 11, 56 + 16 * 12 + 3 * 6]


@pytest.mark.parametrize("layout", [SMALL, SPARSE])
def test_a_file_survives_the_way_in_and_out(layout: Layout, tmp_path: Path) -> None:
    state = formula_state(layout)
    arguments = SMALL_PATCHES if layout is SMALL else {"voxel_size": 0.15}
    encoder, report = load_official_openshape(training_file(tmp_path / "x.pt", state), **arguments)
    assert report.used == list(layout)
    assert report.dropped == []
    assert report.logit_scale == pytest.approx(99.484, abs=1e-3)
    assert "logit scale 99.48" in str(report)
    assert encoder.config["axes"] == "mirrored"
    assert not encoder.training
    again = to_official_openshape_state(encoder)
    assert again.keys() == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("layout", [SMALL, SPARSE])
def test_a_loaded_network_computes_what_the_file_means(layout: Layout, tmp_path: Path) -> None:
    """On a y-up cloud as the official code reads it (columns exchanged), and z up and right-handed for ours."""
    state = formula_state(layout)
    y_up, rgb = torch.rand(80, 3) * 2 - 1, torch.rand(80, 3)
    z_up = torch.stack([y_up[:, 0], -y_up[:, 2], y_up[:, 1]], dim=1)
    arguments = SMALL_PATCHES if layout is SMALL else {"voxel_size": 0.3}
    encoder, _ = load_official_openshape(training_file(tmp_path / "x.pt", state), **arguments)
    found = encoder.double().encode(z_up.double()[None], rgb=rgb.double()[None])[0]
    swapped = y_up[:, [0, 2, 1]]
    if layout is SMALL:
        wanted = point_bert(state, swapped, rgb, 12, 0.4, 10, 2)
    else:
        wanted = sparse_conv(state, swapped, rgb, 0.3)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


def test_released_sizes_bring_their_patches(tmp_path: Path) -> None:
    for size in ("32m", "5m"):
        with torch.device("meta"):
            model = OpenShapePointBERT.of_size(size, axes="mirrored")
        shapes = {name: tuple(value.shape) for name, value in to_official_openshape_state(model).items()}
        state = {name: torch.zeros(shape, dtype=torch.float32) for name, shape in shapes.items()}
        state = {n: v.long() if n.endswith("num_batches_tracked") else v for n, v in state.items()}
        encoder, _ = load_official_openshape(training_file(tmp_path / "x.pt", state))
        assert encoder.config == model.config


def test_models_for_generation(tmp_path: Path) -> None:
    layout = transformer(512, 12, 8, 1024, 128, 768)
    state = {name: torch.zeros(shape) for name, shape in layout.items()}
    flat = {f"pc_encoder.{name}": value for name, value in state.items()} | {"other.weight": torch.zeros(3)}
    torch.save(flat, tmp_path / "l14.pt")
    encoder, report = load_official_openshape(tmp_path / "l14.pt")
    assert report.dropped == ["other.weight"]
    named = ("axes", "num_groups", "radius", "group_size", "embed_dim", "project")
    assert [encoder.config[name] for name in named] == ["y_up", 64, 0.4, 256, 768, True]

    bare = {f"pc_encoder.{n.removeprefix('ppat.')}": v for n, v in state.items() if not n.startswith("proj.")}
    torch.save(bare, tmp_path / "b32.pt")
    encoder, _ = load_official_openshape(tmp_path / "b32.pt")
    assert (encoder.config["project"], encoder.embed_dim) == (False, 512)
    assert to_official_openshape_state(encoder).keys() == {n.removeprefix("pc_encoder.") for n in bare}


def test_a_file_becomes_an_encoder_for_search_and_for_going_on(
    import_script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = import_script("data_tools/convert_openshape_checkpoint.py")
    path, out = training_file(tmp_path / "x.pt", formula_state(transformer(128, 2, 2, 200, 48))), tmp_path / "official"
    with pytest.raises(FileNotFoundError, match=r"OpenShape by .*data_tools/convert_openshape_checkpoint\.py"):
        load_encoder(path)
    patches = [f"--{name}={value}" for name, value in SMALL_PATCHES.items()]
    tool.main([str(path), str(out), *patches])
    assert "OpenShapePointBERT in the space of open_clip:ViT-bigG-14/laion2b_s39b_b160k" in capsys.readouterr().out
    found = load_encoder(out, expect=AlignedShapeEncoder)
    bare, _ = load_official_openshape(path, **SMALL_PATCHES)
    for name, value in bare.state_dict().items():
        assert torch.equal(found.encoder.state_dict()[name], value)
    assert found.encoder.config["axes"] == "mirrored"
    second = OpenShape(start_from=str(out)).encoder
    assert second.logit_scale.item() == pytest.approx(99.484, abs=1e-3)  # not 14.28 again
    assert second.text_space == second.image_space == "open_clip:ViT-bigG-14/laion2b_s39b_b160k"
    with pytest.raises(SystemExit, match=r"say .*group_size.*no tensor tells them"):
        tool.main([str(path), str(out)])


def test_the_towers_of_released_models_follow_from_their_width(tmp_path: Path) -> None:
    names = {768: "open_clip:ViT-L-14/openai", 512: "open_clip:ViT-B-32/openai", 1280: OPENSHAPE_PAIR}
    for width, name in names.items():
        state = formula_state(transformer(64, 1, 1, 64, 16, width))
        found, _ = load_aligned_openshape(training_file(tmp_path / "x.pt", state), **SMALL_PATCHES)
        assert (found.text_space, found.image_space) == (name, name)
    path = training_file(tmp_path / "x.pt", formula_state(SMALL))
    with pytest.raises(ValueError, match="tower must be given, no released model has embeddings of width 24"):
        load_aligned_openshape(path, **SMALL_PATCHES)
    assert load_aligned_openshape(path, tower="", **SMALL_PATCHES)[0].text_space == ""
    assert load_aligned_openshape(path, tower="a:b", **SMALL_PATCHES)[0].image_space == "a:b"


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        load_official_openshape(path)
    torch.save({"state_dict": {"conv1.weight": torch.zeros(3)}}, path)
    with pytest.raises(ValueError, match=r"no checkpoint of OpenShape .* its tensors are conv1\.weight"):
        load_official_openshape(path)
    state = formula_state(SMALL)
    with pytest.raises(ValueError, match=r"none of the released sizes, .* say radius, group_size, no tensor tells"):
        load_official_openshape(training_file(path, state), num_groups=3)
    with pytest.raises(ValueError, match=r"depth is read off the file \(2\), leave it out; got 3"):
        load_official_openshape(path, **SMALL_PATCHES, depth=3)
    extra = {**state, "ppat.more": formula_tensor("ppat.more", (3,))}
    with pytest.raises(ValueError, match=r"1 tensors differ: unknown ppat\.more"):
        load_official_openshape(training_file(path, extra), **SMALL_PATCHES)
    fewer = {name: value for name, value in state.items() if name != "ppat.lift.2.bias"}
    with pytest.raises(ValueError, match=r"missing ppat\.lift\.2\.bias"):
        load_official_openshape(training_file(path, fewer), **SMALL_PATCHES)
    wrong = {**state, "ppat.lift.0.weight": torch.zeros(128, 51)}
    with pytest.raises(ValueError, match=r"ppat\.lift\.0\.weight is \(128, 51\), expected \(128, 51, 1\)"):
        load_official_openshape(training_file(path, wrong), **SMALL_PATCHES)
    without = {name: value for name, value in state.items() if "to_qkv" not in name}
    with pytest.raises(ValueError, match=r"is damaged: .*to_qkv\.weight is missing"):
        load_official_openshape(training_file(path, without), **SMALL_PATCHES)
    with pytest.raises(TypeError, match="must be an OpenShape encoder, got PointViT"):
        to_official_openshape_state(PointViT(24, 1, 2))  # type: ignore[arg-type]
