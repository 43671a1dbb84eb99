"""Checkpoints of POS-BERT: its transformer computes what ours does, and what does not fit is refused.

``tests/assets/golden_posbert.npz`` holds what the released transformer (``point_transformer.py`` at commit d922651)
computed in float64 on a CPU, in evaluation mode and without masking, from the weights and clouds of ``formula.py``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from formula import formula_clouds, formula_state
from torch import Tensor

from pc3d.cli.main import main
from pc3d.models import PointNet, ViT3D, load_encoder, load_posbert_encoder, save_encoder
from pc3d.tasks import start_from

GOLDEN = Path(__file__).parents[1] / "assets" / "golden_posbert.npz"
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def layout(width: int = 48, depth: int = 2, mlp_ratio: int = 2) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the backbone's tensors, written down from the description of the format."""
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, width, 1)}
    for prefix, first, out in (("", 3, 64), ("gather_local_0.", 128, width)):
        shapes |= {f"{prefix}conv1.weight": (out, first, 1), f"{prefix}conv2.weight": (out, out, 1)}
        for norm in ("bn1", "bn2"):
            shapes |= {f"{prefix}{norm}.{leaf}": (out,) if leaf != "num_batches_tracked" else () for leaf in NORM}
    hidden = mlp_ratio * width
    for i in range(depth):
        linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        linear |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
        for name, (out, entry) in linear.items():
            shapes |= {f"blocks.{i}.{name}.weight": (out, entry), f"blocks.{i}.{name}.bias": (out,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{name}.{leaf}": (width,) for leaf in ("weight", "bias")}
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}


def checkpoint(path: Path, state: dict[str, Tensor], **changes: Any) -> Path:
    """A file as the released training writes it: wrapped twice, heads, parsed arguments, a masking student."""
    head = {"module.head.mlp.0.weight": torch.zeros(4, 4), "module.head.last_layer.weight_g": torch.ones(4, 1)}
    teacher = {f"module.backbone.{name}": value for name, value in state.items()}
    masking = {
        "mask_token": torch.zeros(1, 48, 1),
        "pos_embedding.0.bias": torch.ones(3),
    }
    student = {name: value + 1 for name, value in teacher.items()}
    content = {
        "teacher": teacher | head,
        "student": student | head | {f"module.backbone.{name}": value for name, value in masking.items()},
        "epoch": 3,
        "args": argparse.Namespace(arch="pct_large", patch_size=32),
        "best_acc": np.float64(0.9),
        **changes,
    }
    torch.save(content, path)
    return path


@pytest.fixture
def state() -> dict[str, Tensor]:
    return formula_state(layout())


def test_the_encoder_computes_what_the_released_one_did(tmp_path: Path, state: dict[str, Tensor]) -> None:
    encoder, report = load_posbert_encoder(checkpoint(tmp_path / "x.pth", state), num_heads=4)
    assert len(report.used) == len(state) == 51
    assert report.unused == []
    with np.load(GOLDEN) as golden, torch.no_grad():
        output = encoder.double()(formula_clouds(2, 200).double())
        np.testing.assert_allclose(output.cls[:, 0], golden["cls"], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(output.tokens, golden["tokens"], rtol=1e-9, atol=1e-9)


def test_the_student_is_another_network_and_its_masking_is_left_out(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = checkpoint(tmp_path / "x.pth", state)
    encoder, report = load_posbert_encoder(path, "student", num_heads=4)
    assert torch.equal(encoder.cls_token, state["cls_token"].reshape(1, -1) + 1)
    assert sorted(report.unused) == ["mask_token", "pos_embedding.0.bias"]


@pytest.mark.parametrize(("width", "depth", "heads", "parameters"), [(192, 4, 4, 1_255_424), (512, 8, 8, 17_158_080)])
def test_released_sizes_are_recognised(tmp_path: Path, width: int, depth: int, heads: int, parameters: int) -> None:
    state = {name: torch.zeros(shape) for name, shape in layout(width, depth).items()}
    encoder, _ = load_posbert_encoder(checkpoint(tmp_path / "x.pth", state))
    assert encoder.config["num_heads"] == heads
    assert sum(parameter.numel() for parameter in encoder.parameters()) == parameters


def test_it_can_be_kept_and_read_as_any_encoder(tmp_path: Path, state: dict[str, Tensor]) -> None:
    encoder, _ = load_posbert_encoder(checkpoint(tmp_path / "x.pth", state), num_heads=4, group_size=16)
    again = load_encoder(save_encoder(encoder, tmp_path / "kept"), expect=ViT3D)
    xyz = formula_clouds(1, 64)
    assert torch.equal(encoder.encode(xyz), again.encode(xyz))


def test_training_starts_from_such_a_file(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = checkpoint(tmp_path / "x.pth", state)
    sizes = {"embed_dim": 48, "depth": 2, "num_heads": 4, "group_size": 16}
    encoder, expected = ViT3D(**sizes), load_posbert_encoder(path, num_heads=4)[0].state_dict()  # type: ignore[arg-type]
    report = start_from(encoder, path)
    assert report.fresh == ()
    assert all(torch.equal(value, expected[name]) for name, value in encoder.state_dict().items())
    with pytest.raises(ValueError, match=r"do not fit model.backbone: .*: depth=2 \(here 3\)"):
        start_from(ViT3D(**{**sizes, "depth": 3}), path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"ViT3D \(POS-BERT\), a Swin3D or a PointTransformerV3, not for a PointNet"):
        start_from(PointNet(), path)


def test_commands_that_need_features_take_such_a_file(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "x.pth", formula_state(layout(192, 4)))
    out, data, xyz = tmp_path / "out.npz", tmp_path / "data", formula_clouds(2, 200)
    data.mkdir()
    for name, cloud in zip("ab", xyz, strict=True):
        np.save(data / f"{name}.npy", cloud.numpy())
    command = ["embed", "--encoder", str(path), "--data", str(data), "--num_points", "200", "--output", str(out)]
    assert main(command) == 0
    centered = xyz - (xyz.amin(1, keepdim=True) + xyz.amax(1, keepdim=True)) / 2
    prepared = centered / centered.norm(dim=2).amax(1)[:, None, None]
    with np.load(out) as found, torch.no_grad():
        expected = load_posbert_encoder(path)[0](prepared.float()).cls[:, 0]
        np.testing.assert_allclose(found["features"], expected, atol=1e-5)


def test_what_does_not_fit_is_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    def refused(changed: dict[str, Tensor], match: str, **arguments: Any) -> None:
        with pytest.raises(ValueError, match=match):
            load_posbert_encoder(checkpoint(tmp_path / "x.pth", changed), **{"num_heads": 4, **arguments})

    refused({name: value for name, value in state.items() if name != "norm.bias"}, "missing norm.bias")
    refused(state | {"blocks.1.attn.extra": torch.ones(1)}, "unknown blocks.1.attn.extra")
    refused(state | {"bn1.weight": torch.ones(65)}, r"bn1.weight has the shape \(65,\), which does not fit \(64,\)")
    refused({"conv1.weight": state["conv1.weight"]}, "no transformer of POS-BERT under 'teacher'")
    refused(state, r"depth is read off the file \(2\)", depth=3)
    with pytest.raises(ValueError, match="48 wide, which is no released size: give num_heads"):
        load_posbert_encoder(checkpoint(tmp_path / "x.pth", state))
    with pytest.raises(ValueError, match="no state dict under any of teacher"):
        load_posbert_encoder(checkpoint(tmp_path / "x.pth", state, teacher=None), num_heads=4)
    with pytest.raises(ValueError, match='"teacher" or "student"'):
        load_posbert_encoder(tmp_path / "x.pth", "both")  # type: ignore[arg-type]


def test_reading_runs_no_code(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = checkpoint(tmp_path / "x.pth", state, args=Path("x"))
    with pytest.raises(ValueError, match="reading the rest could run code"):
        load_posbert_encoder(path, num_heads=4)
