"""Official checkpoints of PTv3, Sonata and Concerto: what the official classes computed, round trips, refusals.

``tests/assets/golden_ptv3.npz`` holds what the classes ``PointTransformerV3`` of PointTransformerV3 (3229e9b, "ptv3"),
of sonata (18c09ff, "sonata") and of Pointcept (d74c646, ``point_transformer_v3m2_sonata.py``, "sonata_decoder")
computed in float32 in evaluation mode on the CPU: without flash attention, without shuffled orders (also of the
poolings, which the classes always shuffle), with spconv 2.3.8 (``ConvAlgo.Native``, its bias added outside), from the
weights of :mod:`formula` and the cloud below, on voxels of 0.25, each of which its first point represents. Of Sonata's
encoder, the features of all levels are joined as in its demo of linear probing. Kept are those of each eighth point,
and some codes of sonata's ``serialization.encode``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from formula import formula, formula_state
from torch import Tensor

from pc3d.data import PointBatch
from pc3d.models import (
    PointTransformerV3,
    Swin3D,
    UpcastFeatures,
    load_encoder,
    load_official_ptv3,
    save_encoder,
    to_official_ptv3_state,
)
from pc3d.nn.serialization import SERIAL_ORDERS, hilbert_code, z_order_code
from pc3d.tasks import SceneSegmenter, SemanticSegmentation

GOLDEN = Path(__file__).parents[1] / "assets" / "golden_ptv3.npz"
Layout = dict[str, tuple[int, ...]]
ORDERS = ("hilbert", "z-trans", "z", "hilbert-trans")  # the first is that of every level, the second of two
SIZES: dict[str, Any] = {"voxel_size": 0.25, "patch_size": 48, "orders": ORDERS}
CONFIG: dict[str, Any] = {
    "in_channels": 9,
    "order": ORDERS,
    "stride": (2, 2),
    "enc_depths": (1, 2, 1),
    "enc_channels": (16, 32, 32),
    "enc_num_head": (1, 2, 2),
    "enc_patch_size": (48, 48, 48),
    "mlp_ratio": 4,
    "qkv_bias": True,
    "qk_scale": None,
    "pre_norm": True,
    "enable_rpe": False,
    "enable_flash": True,
    "mask_token": True,
    "enc_mode": True,
    "drop_path": 0.3,
}


def _linear(name: str, out: int, width: int) -> Layout:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def _norm(name: str, width: int, batch: bool = False, sets: int = 0) -> Layout:
    if sets:
        return {k: v for i in range(sets) for k, v in _norm(f"{name}.norm.{i}", width, batch).items()}
    names: Layout = {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    if batch:
        names |= {f"{name}.running_mean": (width,), f"{name}.running_var": (width,), f"{name}.num_batches_tracked": ()}
    return names


def layout(*, sonata: bool, decoder: bool, sets: int = 0, columns: int | None = None) -> Layout:
    """The tensors of an official file of three levels, from the description of its layout."""
    columns = columns or (9 if sonata else 6)

    def block(name: str, width: int) -> Layout:
        names: Layout = {f"{name}.cpe.0.weight": (width, 3, 3, 3, width), f"{name}.cpe.0.bias": (width,)}
        names |= _linear(f"{name}.cpe.1", width, width) | _norm(f"{name}.cpe.2", width, sets=sets)
        names |= _norm(f"{name}.norm1.0", width, sets=sets) | _norm(f"{name}.norm2.0", width, sets=sets)
        names |= _linear(f"{name}.attn.qkv", 3 * width, width) | _linear(f"{name}.attn.proj", width, width)
        names |= _linear(f"{name}.mlp.0.fc1", 4 * width, width) | _linear(f"{name}.mlp.0.fc2", width, 4 * width)
        return names

    names: Layout = {"embedding.stem.conv.weight": (16, 5, 5, 5, columns)}
    if sonata:
        names = _linear("embedding.stem.linear", 16, columns)
    names |= _norm("embedding.stem.norm", 16, not sonata, sets)
    if sonata and not decoder:
        names["embedding.mask_token"] = (1, 16)
    for level, (width, depth) in enumerate(((16, 1), (32, 2), (32, 1))):
        if level:
            down = f"enc.enc{level}.down"
            names |= _linear(f"{down}.proj", width, (16, 32)[level - 1])
            names |= _norm(f"{down}.norm.0", width, not sonata, sets)
        for i in range(depth):
            names |= block(f"enc.enc{level}.block{i}", width)
    for level, (width, coarse, skip, depth) in enumerate(((16, 32, 16, 1), (32, 32, 32, 2)) if decoder else ()):
        for part, read in (("proj", coarse), ("proj_skip", skip)):
            up = f"dec.dec{level}.up.{part}"
            names |= _linear(f"{up}.0", width, read) | _norm(f"{up}.1", width, not sonata, sets)
        for i in range(depth):
            names |= block(f"dec.dec{level}.block{i}", width)
    return names


FILES: dict[str, Layout] = {
    "ptv3": layout(sonata=False, decoder=True),
    "sonata": layout(sonata=True, decoder=False),
    "sonata_decoder": layout(sonata=True, decoder=True),
}


def checkpoint(path: Path, state: dict[str, Tensor], prefix: str = "", **content: Any) -> Path:
    torch.save({"state_dict": {prefix + name: value for name, value in state.items()}, **content}, path)
    return path


def pointcept(path: Path, state: dict[str, Tensor], width: int = 16) -> Path:
    """As Pointcept's trainer writes it, with a head of seven classes."""
    head = formula_state({"seg_head.weight": (7, width), "seg_head.bias": (7,)})
    held = {f"module.backbone.{name}": value for name, value in state.items()}
    held |= {f"module.{name}": value for name, value in head.items()}
    torch.save({"epoch": 3, "state_dict": held, "optimizer": {}, "best_metric_value": np.float64(0.5)}, path)
    return path


def cloud() -> PointBatch:
    """31 voxels long: then PTv3 and Sonata have cubes of different sizes around coarse levels."""
    normal = formula("ptv3 normal", (600, 3))
    arrays = (
        formula("ptv3 xyz", (600, 3)) * np.array([3.8, 2.0, 1.0]) + np.array([0.1, 0.0, 0.0]),
        (formula("ptv3 rgb", (600, 3)) + 1) / 2,
        normal / np.linalg.norm(normal, axis=1, keepdims=True),
    )
    xyz, rgb, normals = (torch.from_numpy(array.astype(np.float32)) for array in arrays)
    return PointBatch(xyz, torch.tensor([0, 600]), rgb=rgb, normal=normals)


# ---- results -----------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kind", FILES)
def test_it_computes_what_the_official_class_does(kind: str, tmp_path: Path) -> None:
    state = formula_state(FILES[kind])
    assert len(state) == {"ptv3": 174, "sonata": 85, "sonata_decoder": 154}[kind]
    if kind == "sonata":
        model, head, report = load_official_ptv3(checkpoint(tmp_path / "x.pth", state, config=CONFIG), voxel_size=0.25)
        assert (head, report.dropped) == (None, ["embedding.mask_token"])
    else:
        model, head, report = load_official_ptv3(pointcept(tmp_path / "x.pth", state), **SIZES)
        assert head is not None
        assert report.dropped == []
        assert len(report.used) == len(state) + 2
    expected = torch.from_numpy(np.load(GOLDEN)[kind])
    found = model.point_features(cloud())[::8]
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    # Any other curves, patches or colours give others: the comparison sees them.
    for changes in ({"patch_size": 40}, {"orders": SERIAL_ORDERS}, {"unit_colors": not model.unit_colors}):
        other = PointTransformerV3(**{**model.config, **changes}).eval()
        other.load_state_dict(model.state_dict())
        assert (other.point_features(cloud())[::8] - expected).abs().max() > 1e-3 * expected.abs().max()


def test_the_codes_are_the_official_ones() -> None:
    with np.load(GOLDEN) as golden:
        for depth, name in ((16, "ptv3 codes"), (5, "ptv3 small codes")):
            coords = torch.from_numpy(((formula(name, (64, 3)) + 1) * 2 ** (depth - 1)).astype(np.int64))
            for order in SERIAL_ORDERS if depth == 16 else SERIAL_ORDERS[2:]:
                turned = coords[:, [1, 0, 2]] if order.endswith("-trans") else coords
                of_hilbert = hilbert_code(turned, torch.full((64,), depth))
                found = of_hilbert if order.startswith("hilbert") else z_order_code(turned)
                expected = golden[f"code_{order}" if depth == 16 else f"code_5_{order}"]
                np.testing.assert_array_equal(found.numpy(), expected)


# ---- what is read off a file -------------------------------------------------------------------------------------


def test_files_of_pointcept_tell_widths_and_depths_and_the_rest_is_as_published(tmp_path: Path) -> None:
    state = formula_state(FILES["ptv3"])
    model, head, _ = load_official_ptv3(pointcept(tmp_path / "x.pth", state))
    assert model.config == {
        "channels": [16, 32, 32],
        "depths": [1, 2, 1],
        "num_heads": [1, 2, 2],
        "decoder_channels": [16, 32],
        "decoder_depths": [1, 2],
        "decoder_num_heads": [1, 2],
        "patch_size": 1024,
        "orders": list(SERIAL_ORDERS),
        "voxel_size": 0.02,
        "signals": "xyz_rgb_normal",
        "variant": "ptv3",
        "unit_colors": False,
        "drop_path": 0.3,
    }
    assert not model.training
    assert head is not None
    assert torch.equal(head.weight, formula_state({"seg_head.weight": (7, 16)})["seg_head.weight"])
    without_normals = formula_state(layout(sonata=False, decoder=True, columns=3))
    assert load_official_ptv3(pointcept(tmp_path / "x.pth", without_normals))[0].signals == "xyz_rgb"


def test_a_release_tells_the_rest_itself(tmp_path: Path) -> None:
    state = formula_state(FILES["sonata"])
    config = {**CONFIG, "order": ["hilbert", "z"], "enc_num_head": [2, 4, 1], "drop_path": 0.1}
    path = checkpoint(tmp_path / "x.pth", state, config=config)
    model, _, report = load_official_ptv3(path)
    expected = {"orders": ["hilbert", "z"], "num_heads": [2, 4, 1], "patch_size": 48, "drop_path": 0.1}
    assert {name: model.config[name] for name in expected} == expected
    assert (model.variant, model.unit_colors, model.feature_dim) == ("sonata", True, 80)
    assert str(report) == f"{path}: 84 tensors of a sonata used; 1 dropped (embedding.mask_token)"
    assert load_official_ptv3(path, patch_size=64)[0].patch_size == 64


def test_of_sonatas_pre_training_the_student_is_taken(tmp_path: Path) -> None:
    state = formula_state(FILES["sonata"])
    held = {f"module.teacher.backbone.{name}": value + 1 for name, value in state.items()}
    held |= {f"module.student.backbone.{name}": value for name, value in state.items()}
    held["module.student.mask_head.weight"] = torch.zeros(3)
    model, _, report = load_official_ptv3(checkpoint(tmp_path / "x.pth", held))
    assert torch.equal(model.state_dict()["stem.weight"], state["embedding.stem.linear.weight"])
    assert len(report.dropped) == 85 + 2


@torch.no_grad()
def test_the_norms_of_one_data_set_of_several(tmp_path: Path) -> None:
    state = formula_state(layout(sonata=False, decoder=True, sets=3))
    path = pointcept(tmp_path / "x.pth", state)
    for condition in range(3):
        model, _, report = load_official_ptv3(path, condition=condition, **SIZES)
        plain = {name: state.get(name) for name in FILES["ptv3"]}
        for name in plain:
            if plain[name] is None:
                place, _, leaf = name.rpartition(".")
                plain[name] = state[f"{place}.norm.{condition}.{leaf}"]
        expected, *_ = load_official_ptv3(pointcept(tmp_path / "plain.pth", plain), **SIZES)  # type: ignore[arg-type]
        assert torch.equal(model.point_features(cloud()), expected.point_features(cloud()))
        assert len(report.used) == 174 + 2
        assert len(report.dropped) == len(state) - 174
    with pytest.raises(
        ValueError, match=r"separate norms for 3 data sets .*, 0 to 2: choose one, .*save_encoder.*; got None"
    ):
        load_official_ptv3(path)
    with pytest.raises(ValueError, match="got 3"):
        load_official_ptv3(path, condition=3)
    with pytest.raises(ValueError, match="has separate norms for no data sets; got 0"):
        load_official_ptv3(tmp_path / "plain.pth", condition=0)


# ---- and back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FILES)
def test_weights_go_back_as_they_came(kind: str, tmp_path: Path) -> None:
    state = formula_state(FILES[kind])
    model, *_ = load_official_ptv3(checkpoint(tmp_path / "x.pth", state))
    back = to_official_ptv3_state(model)
    assert set(state) - set(back) == ({"embedding.mask_token"} if kind == "sonata" else set())
    assert all(torch.equal(value, state[name]) for name, value in back.items())


@torch.no_grad()
def test_it_can_be_kept_and_labels_scenes_with_the_head_of_the_file(tmp_path: Path) -> None:
    model, head, _ = load_official_ptv3(pointcept(tmp_path / "x.pth", formula_state(FILES["ptv3"])), **SIZES)
    again = load_encoder(save_encoder(model, tmp_path / "kept"), expect=PointTransformerV3)
    assert torch.equal(again.point_features(cloud()), model.point_features(cloud()))
    assert head is not None
    segmenter = SceneSegmenter(model, [f"class {i}" for i in range(7)], "linear")
    segmenter.head.load_state_dict(head.state_dict())
    assert torch.equal(segmenter.eval()(cloud()), head(model.point_features(cloud())))


def test_training_starts_from_such_a_file(tmp_path: Path) -> None:
    path = pointcept(tmp_path / "x.pth", formula_state(FILES["ptv3"]))
    expected = load_official_ptv3(path)[0].state_dict()
    arguments: dict[str, Any] = {"channels": (16, 32, 32), "depths": (1, 2, 1), "decoder_channels": (16, 32)}
    backbone = PointTransformerV3(**arguments, decoder_depths=(1, 2), voxel_size=0.1)
    task = SemanticSegmentation(backbone, 3, encoder=str(path))
    assert task.initial is not None
    assert task.initial.fresh == ()
    assert all(torch.equal(value, expected[name]) for name, value in backbone.state_dict().items())
    assert backbone.voxel_size == 0.1

    path = checkpoint(tmp_path / "y.pth", formula_state(FILES["sonata"]), config=CONFIG)
    colored = PointTransformerV3(**{**arguments, "decoder_channels": (), "variant": "sonata", "signals": "xyz_rgb"})
    task = SemanticSegmentation(UpcastFeatures(colored), 3, encoder=str(path))
    assert task.initial is not None
    assert task.initial.in_part == ("stem.weight",)
    name = "embedding.stem.linear.weight"
    assert torch.equal(colored.state_dict()["stem.weight"], formula_state(FILES["sonata"])[name][:, :6])
    with pytest.raises(ValueError, match="is no checkpoint of Swin3D"):
        SemanticSegmentation(Swin3D.tiny(), 3, encoder=str(path))


# ---- refusals ----------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    state = formula_state(FILES["sonata"])

    def refused(changed: dict[str, Tensor], match: str, config: dict[str, Any] | None = None, **arguments: Any) -> None:
        content: dict[str, Any] = {} if config is None else {"config": {**CONFIG, **config}}
        with pytest.raises(ValueError, match=match):
            load_official_ptv3(checkpoint(tmp_path / "x.pth", changed, **content), **arguments)

    refused({k: v for k, v in state.items() if k != "enc.enc2.down.proj.bias"}, "missing enc.enc2.down.proj.bias")
    refused(state | {"enc.enc0.block0.ls1.0.gamma": torch.ones(16)}, "unknown enc.enc0.block0.ls1.0.gamma")
    narrow = state["enc.enc1.block0.mlp.0.fc1.weight"][:32]
    refused(state | {"enc.enc1.block0.mlp.0.fc1.weight": narrow}, r"fc1.weight is \(32, 32\), expected \(128, 32\)")
    refused({"a.b": torch.ones(1)}, "no checkpoint of Point Transformer V3, Sonata or Concerto: .* tensors are a.b")
    refused({"seg_head.weight": torch.ones(2, 3)}, "it is a head alone")
    refused({k: v for k, v in state.items() if k.startswith("embedding")}, "has a stem but no enc.enc0.block0")
    wide = {"embedding.stem.linear.weight": torch.ones(16, 4)}
    refused(state | wide, "reads 4 numbers of a voxel, where colours and normals are 6")
    refused(state, r"depths is read off the file \(\[1, 2, 1\]\), leave it out; got \(1, 1, 1\)", depths=(1, 1, 1))
    for name, value in (("stride", (2, 4)), ("pre_norm", False), ("enable_rpe", True), ("qk_scale", 0.5)):
        refused(state, f"was built with {name}=.*, pc3d builds {name}=.* alone", {name: value})
    refused(state, r"patches of \[48, 64\] voxels, pc3d has one size", {"enc_patch_size": (48, 64, 64)})
    with pytest.raises(ValueError, match=r"seg_head.weight is \(7, 5\) with a bias, expected \(K, 80\)"):
        load_official_ptv3(pointcept(tmp_path / "x.pth", state, width=5))
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        load_official_ptv3(tmp_path / "none.pth")


def test_reading_runs_no_code(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "x.pth", formula_state(FILES["sonata"]), config=Path("x"))
    with pytest.raises(ValueError, match="reading the rest could run code"):
        load_official_ptv3(path)
