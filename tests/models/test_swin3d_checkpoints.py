"""Official Swin3D checkpoints: names and shapes written down from their description, round trips, y up, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from formula import formula_state
from torch import Tensor

from pc3d.data import PointBatch, Rooms
from pc3d.models import (
    SparseUNet,
    Swin3D,
    UpcastFeatures,
    load_official_swin3d,
    load_official_swin3d_encoder,
    save_encoder,
    to_official_swin3d_state,
)
from pc3d.nn import SegmentationHead
from pc3d.tasks import SemanticSegmentation, take_weights

Layout = dict[str, tuple[int, ...]]
SMALL: dict[str, Any] = {"channels": (16, 32, 32), "depths": (1, 2, 1), "heads": (2, 2, 4)}
STEM = "stem_layer.conv_layers.0.kernel"


def _norm(prefix: str, width: int) -> Layout:
    return {f"{prefix}.weight": (width,), f"{prefix}.bias": (width,)}


def _batch_norm(prefix: str, width: int) -> Layout:
    names = ("weight", "bias", "running_mean", "running_var")
    return {f"{prefix}.{name}": (width,) for name in names} | {f"{prefix}.num_batches_tracked": ()}


def _linear(prefix: str, out: int, width: int) -> Layout:
    return {f"{prefix}.weight": (out, width), f"{prefix}.bias": (out,)}


def layout(
    channels: tuple[int, ...] = (48, 96, 192, 384, 384),
    depths: tuple[int, ...] = (2, 4, 9, 4, 4),
    heads: tuple[int, ...] = (6, 6, 12, 24, 24),
    windows: tuple[int, ...] = (5, 7, 7, 7, 7),
    *,
    normals: bool = False,
    decoder_attention: bool = False,
    num_classes: int = 25,
) -> Layout:
    """The tensors of an official file, from the description of its layout."""

    def block(prefix: str, level: int) -> Layout:
        width, count = channels[level], heads[level]
        names = _norm(f"{prefix}.norm1", width) | _norm(f"{prefix}.norm2", width)
        for table in ("query", "key", "value"):
            names[f"{prefix}.attn.{table}_xyz_table"] = (3, 8 * windows[level], count, width // count)
            for signal in ("rgb", "norm") if normals else ("rgb",):
                names[f"{prefix}.attn.{table}_{signal}_table"] = (3, 32, count, width // count)
        names |= _linear(f"{prefix}.attn.qkv", 3 * width, width) | _linear(f"{prefix}.attn.proj", width, width)
        return names | _linear(f"{prefix}.mlp.fc1", 4 * width, width) | _linear(f"{prefix}.mlp.fc2", width, 4 * width)

    names: Layout = {STEM: (27, 9 if normals else 6, channels[0])}
    names |= _batch_norm("stem_layer.conv_layers.1.bn", channels[0])
    last = len(channels) - 1
    for i, width in enumerate(channels):
        for j in range(depths[i]):
            names |= block(f"layers.{i}.blocks.{j}", i)
        if i < last:
            names |= _norm(f"layers.{i}.downsample.norm", width)
            names[f"layers.{i}.downsample.linear.weight"] = (channels[i + 1], width)
    for u in range(last):
        coarse, fine = channels[last - u], channels[last - u - 1]
        names |= _norm(f"upsamples.{u}.linear1.0", fine) | _linear(f"upsamples.{u}.linear1.1", fine, fine)
        names |= _norm(f"upsamples.{u}.linear2.0", coarse) | _linear(f"upsamples.{u}.linear2.1", fine, coarse)
        if decoder_attention:
            names |= block(f"upsamples.{u}.block.blocks.0", last - u - 1)
    names |= _linear("classifier.0", channels[0], channels[0]) | _batch_norm("classifier.1", channels[0])
    return names | _linear("classifier.3", num_classes, channels[0])


def small_layout(**changes: Any) -> Layout:
    return layout(**{"windows": (5, 7, 7), "normals": True, "decoder_attention": True, **SMALL, **changes})


def save(path: Path, state: dict[str, Tensor], prefix: str = "") -> Path:
    torch.save({"state_dict": {prefix + name: value for name, value in state.items()}, "epoch": 100}, path)
    return path


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize(
    ("normals", "decoder_attention", "count"),
    [(False, False, 473), (False, True, 545), (True, False, 542), (True, True, 626)],
)
def test_names_and_shapes_are_the_official_ones(size: str, normals: bool, decoder_attention: bool, count: int) -> None:
    with torch.device("meta"):
        model = getattr(Swin3D, size)(
            signals="xyz_rgb_normal" if normals else "xyz_rgb", decoder_attention=decoder_attention
        )
        state = to_official_swin3d_state(model, SegmentationHead(model.feature_dim, 25))
    large: dict[str, Any] = {"channels": (80, 160, 320, 640, 640), "heads": (10, 10, 20, 40, 40)}
    expected = layout(normals=normals, decoder_attention=decoder_attention, **(large if size == "large" else {}))
    assert {name: tuple(value.shape) for name, value in state.items()} == expected
    assert len(state) == count


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone.", "module.", "backbone_3d."])
def test_a_file_survives_the_way_in_and_out(tmp_path: Path, prefix: str) -> None:
    state = formula_state(small_layout())
    model, head, report = load_official_swin3d(save(tmp_path / "x.pth", state, prefix), voxel_size=0.1)
    assert report.used == list(state)
    assert report.fresh == report.dropped == report.mismatched == report.adapted == []
    assert model.config["num_heads"] == [2, 2, 4]
    assert model.config["depths"] == [1, 2, 1]
    assert (model.signals, model.voxel_size, model.down_strides) == ("xyz_rgb_normal", 0.1, [3, 2])
    assert not model.training
    again = to_official_swin3d_state(model, head)
    assert again.keys() == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=0)


def test_the_network_of_a_detector_of_another_trainer(tmp_path: Path) -> None:
    """CAGroup3D's trainer calls the state dict ``model_state`` and keeps the optimiser's beside it."""
    state = formula_state(small_layout())
    content = {"epoch": 50, "it": 7, "optimizer_state": {"state": {}}, "version": "x"}
    content["model_state"] = {f"backbone_3d.{name}": value for name, value in state.items()}
    torch.save(content, tmp_path / "x.pth")
    assert load_official_swin3d(tmp_path / "x.pth")[2].used == list(state)


def test_kernel_rows_go_to_the_voxels_that_they_were_for(tmp_path: Path) -> None:
    """Row k of the official kernel reads the voxel at (k mod 3 - 1, k div 3 mod 3 - 1, k div 9 - 1)."""
    state = formula_state(small_layout())
    model, _, _ = load_official_swin3d(save(tmp_path / "x.pth", state))
    coords = torch.cartesian_prod(*[torch.arange(3)] * 3).int()
    scene = PointBatch((coords + 0.5) * 0.02, torch.tensor([0, 27]), rgb=torch.rand(27, 3), normal=torch.rand(27, 3))
    ready = model.scene(scene)
    middle = model.stem.conv(ready.inputs, ready.stem_map)[13]
    expected = torch.zeros(16)
    for k in range(27):
        x, y, z = k % 3 - 1, k // 3 % 3 - 1, k // 9 - 1
        expected += ready.inputs[9 * (x + 1) + 3 * (y + 1) + (z + 1)] @ state[STEM][k]
    torch.testing.assert_close(middle, expected)


@torch.no_grad()
@pytest.mark.parametrize("normals", [True, False])
def test_weights_for_y_up_do_on_z_up_what_they_did_on_y_up(tmp_path: Path, normals: bool) -> None:
    path = save(tmp_path / "x.pth", formula_state(small_layout(normals=normals)))
    room = Rooms("train")[0]
    room = room.select((room.xyz < 0.8).all(1))
    xyz = room.xyz + 5e-4 * torch.rand(room.xyz.shape, generator=torch.Generator().manual_seed(0))
    offsets, swap = torch.tensor([0, len(xyz)]), [0, 2, 1]
    assert room.rgb is not None
    assert room.normal is not None
    plain, _, _ = load_official_swin3d(path, voxel_size=0.1)
    baked, _, _ = load_official_swin3d(path, voxel_size=0.1, y_up=True)
    swapped = PointBatch(xyz[:, swap], offsets, rgb=room.rgb, normal=room.normal[:, swap])
    wanted = plain.point_features(swapped)
    found = baked.point_features(PointBatch(xyz, offsets, rgb=room.rgb, normal=room.normal))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert (plain.point_features(PointBatch(xyz, offsets, rgb=room.rgb, normal=room.normal)) - wanted).abs().max() > 0.1


def own(**changes: Any) -> Swin3D:
    torch.manual_seed(0)
    sizes = {"channels": (16, 32, 32), "depths": (1, 2, 1), "num_heads": (2, 2, 4), **changes}
    return Swin3D(**sizes)


def test_fine_tuning_takes_the_encoder_alone(tmp_path: Path) -> None:
    state = formula_state(small_layout())
    model, untouched = own(), own().state_dict()
    report = load_official_swin3d_encoder(model, save(tmp_path / "x.pth", state, "module."))
    taken = to_official_swin3d_state(model)
    for name, value in state.items():
        of_encoder = name.startswith(("stem_layer.", "layers."))
        assert (name in report.used) == of_encoder
        assert (f"module.{name}" in report.dropped or name in report.dropped) != of_encoder
        if of_encoder:
            assert torch.equal(taken[name], value)
    for name, value in model.state_dict().items():
        if name.startswith("upsamples."):
            assert torch.equal(value, untouched[name])
    assert report.fresh
    assert all(name.startswith("upsamples.") for name in report.fresh)


def test_the_stem_may_stay_fresh(tmp_path: Path) -> None:
    model, untouched = own(), own().state_dict()
    path = save(tmp_path / "x.pth", formula_state(small_layout()))
    report = load_official_swin3d_encoder(model, path, load_stem=False)
    assert STEM in report.dropped
    assert STEM in report.fresh
    assert torch.equal(model.stem.conv.weight, untouched["stem.conv.weight"])


def test_other_input_columns_are_reported(tmp_path: Path) -> None:
    """A file with nine columns in the stem, signals without normals, for a network of six."""
    wide = small_layout(normals=False) | {STEM: (27, 9, 16)}
    path = save(tmp_path / "x.pth", formula_state(wide))
    model = own(signals="xyz_rgb")
    report = load_official_swin3d_encoder(model, path)
    assert report.mismatched == [f"{STEM} is (27, 9, 16), expected (27, 6, 16)"]
    assert STEM in report.fresh
    assert "1 of another shape (stem_layer" in str(report)
    _, _, whole = load_official_swin3d(path)
    assert whole.mismatched == report.mismatched


@pytest.mark.parametrize("y_up", [False, True])
def test_segmentation_starts_from_such_a_file(tmp_path: Path, y_up: bool) -> None:
    path = save(tmp_path / "x.pth", formula_state(small_layout(normals=False)), "module.")
    expected = load_official_swin3d(path, y_up=y_up)[0].state_dict()
    model = own(signals="xyz_rgb")
    options: dict[str, Any] = {"encoder": str(path), "skip": ["upsamples"], "y_up": y_up}
    report = SemanticSegmentation(UpcastFeatures(model), 3, **options).initial
    assert report is not None
    assert set(report.fresh) == set(report.skipped) == {name for name in expected if name.startswith("upsamples.")}
    assert all(torch.equal(model.state_dict()[name], expected[name]) for name in report.taken)
    assert len(report.taken) + len(report.fresh) == len(expected)
    assert len(take_weights(own(), path).in_part) == 1 + 3 * 6  # the stem, and the tables of each block


def test_what_a_file_does_not_tell_stays_as_it_is(tmp_path: Path) -> None:
    """A decoder that it lacks, and a stem of other columns."""
    state = formula_state(small_layout(normals=False) | {STEM: (27, 9, 16)})
    path = save(tmp_path / "x.pth", {name: value for name, value in state.items() if not name.startswith("upsamples.")})
    model, untouched = own(signals="xyz_rgb", decoder_attention=False), own(signals="xyz_rgb").state_dict()
    report = take_weights(model, path)
    assert "stem.conv.weight" in report.fresh
    assert all(name.startswith(("stem.conv.", "upsamples.")) for name in report.fresh)
    assert torch.equal(model.stem.conv.weight, untouched["stem.conv.weight"])


def test_there_must_be_an_official_file_of_swin3d_to_turn(tmp_path: Path) -> None:
    folder = save_encoder(own(), tmp_path / "own")
    with pytest.raises(ValueError, match="y_up: only an official file of Swin3D has an upright axis to turn, got"):
        take_weights(own(), folder, y_up=True)
    with pytest.raises(ValueError, match="y_up: there are no weights to turn"):
        SemanticSegmentation(own(), 3, y_up=True)
    with pytest.raises(ValueError, match=r"not for a SparseUNet: give a run folder"):
        take_weights(SparseUNet(), save(tmp_path / "x.pth", {}))


@pytest.mark.parametrize("window", [7, 3])
def test_tables_of_another_window_keep_zero_difference_in_the_middle(tmp_path: Path, window: int) -> None:
    state = formula_state(small_layout())
    model = own(window_sizes=(window, 7, 7))
    fresh = to_official_swin3d_state(model)
    report = load_official_swin3d_encoder(model, save(tmp_path / "x.pth", state))
    name = "layers.0.blocks.0.attn.key_xyz_table"
    assert name in report.adapted
    assert len(report.adapted) == 3
    table = to_official_swin3d_state(model)[name]
    middle, rows = 4 * window, min(20, 4 * window)
    assert torch.equal(table[:, middle - rows : middle + rows], state[name][:, 20 - rows : 20 + rows])
    if window == 7:
        assert torch.equal(table[:, :8], fresh[name][:, :8])
        assert torch.equal(table[:, -8:], fresh[name][:, -8:])


def test_tensors_around_the_network_are_dropped(tmp_path: Path) -> None:
    """A detector's file: the encoder under its prefix, then the head."""
    encoder = {n: v for n, v in formula_state(small_layout()).items() if n.startswith(("stem_layer.", "layers."))}
    around = {f"backbone.{name}": value for name, value in encoder.items()} | {"head.conv.kernel": torch.zeros(8, 4, 4)}
    path = save(tmp_path / "x.pth", around)
    model, head, report = load_official_swin3d(path)
    assert head is None
    assert report.dropped == ["head.conv.kernel"]
    assert all(name.startswith("upsamples.") for name in report.fresh)
    assert not model.decoder_attention


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers.0.blocks.0.attn.extra": torch.zeros(1)}, "does not fit together: 1 tensors differ: .*has no such"),
        ({"neck.weight": torch.zeros(1)}, "no checkpoint of Swin3D: 1 tensors are unknown: neck.weight"),
        ({"layers.0.blocks.0.mlp.fc1.bias": None}, "missing layers.0.blocks.0.mlp.fc1.bias"),
        ({"layers.0.blocks.0.norm2.bias": torch.zeros(3)}, r"norm2.bias is \(3,\), expected \(16,\)"),
        ({"layers.0.blocks.0.attn.query_xyz_table": torch.zeros(3, 41, 2, 8)}, "is damaged: .*expected"),
        ({"layers.0.downsample.norm.norm.weight": torch.zeros(16)}, "knn_down=False"),
        ({"stem_layer.0.conv_layers.0.kernel": torch.zeros(27, 9, 16)}, "stem_transformer=False"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: dict[str, Tensor | None], message: str) -> None:
    state: dict[str, Any] = {**formula_state(small_layout()), **change}
    path = save(tmp_path / "x.pth", {name: value for name, value in state.items() if value is not None})
    with pytest.raises(ValueError, match=message):
        load_official_swin3d(path)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        load_official_swin3d(tmp_path / "absent.pth")
    with pytest.raises(ValueError, match=r"no checkpoint of Swin3D \(no stem_layer\); its tensors are cls_token"):
        load_official_swin3d(save(tmp_path / "mae.pth", {"cls_token": torch.zeros(3)}))
    with pytest.raises(ValueError, match=r"no layers\.0\.blocks\.0"):
        load_official_swin3d(save(tmp_path / "stem.pth", {STEM: torch.zeros(27, 6, 16)}))
    path = save(tmp_path / "x.pth", formula_state(small_layout()))
    with pytest.raises(ValueError, match="depths is read off the file"):
        load_official_swin3d(path, depths=(1, 1, 1))
    with pytest.raises(ValueError, match=r"no attention block of .* fits the network: stem"):
        load_official_swin3d_encoder(Swin3D(channels=(24, 48), depths=(1, 1)), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a readable PyTorch checkpoint"):
        load_official_swin3d(path)
