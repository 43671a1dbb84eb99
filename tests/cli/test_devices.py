"""``--device``: where the verbs compute, and devices that are not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pc3d.cli.main import main
from pc3d.models import PointViT, save_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run") / "encoder"
    save_encoder(PointViT(16, 2, 2, num_groups=12, group_size=8, tokenizer_dims=(8, 12, 16)), folder)
    return str(folder)


def test_features_are_computed_where_it_is_said(
    encoder: str, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Convolutions of a GPU round their factors to 10 bits by default.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    moved: list[object] = []
    to = PointViT.to
    monkeypatch.setattr(PointViT, "to", lambda self, *where: (moved.extend(where), to(self, *where))[1])
    seen, encode = set(), PointViT.encode

    def spied(self: PointViT, xyz: torch.Tensor, pooling: str = "max+mean") -> torch.Tensor:
        seen.add((xyz.device.type, next(self.parameters()).device.type))
        return encode(self, xyz, pooling)

    monkeypatch.setattr(PointViT, "encode", spied)
    common = ["embed", "--encoder", encoder, "--num_points", "64", "--output"]
    assert main([*common, str(tmp_path / "here.npz"), "--device", str(device)]) == 0
    assert seen == {(device.type, device.type)}
    assert moved == [device]
    assert main([*common, str(tmp_path / "cpu.npz")]) == 0
    here, cpu = (np.load(tmp_path / f"{name}.npz")["features"] for name in ("here", "cpu"))
    np.testing.assert_allclose(here, cpu, atol=1e-4)


@pytest.mark.parametrize(
    "command",
    [
        "embed --encoder {encoder} --output {out}/x.npz",
        "probe --encoder {encoder}",
        "fewshot --encoder {encoder}",
        "retrieve --encoder {encoder}",
        "robustness --encoder {encoder}",
        "zeroshot --encoder {encoder}",
        "index build --encoder {encoder} --output {out}/index",
        "search lamp --index {out}/index",
        "report {out}/run",
        "view household:test:0 --output {out}/x.png",
        "classify eval {out}/run",
        "parts eval {out}/run",
        "segment eval {out}/run",
        "segment predict {out}/run {scene} --output {out}/labels",
    ],
)
@pytest.mark.parametrize("name", ["gpu", "cuda:77", "meta"])
def test_a_device_that_is_not_there_is_refused_before_any_work(
    command: str, name: str, encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = Path(__file__).parents[1] / "assets" / "meshes" / "bread.glb"
    arguments = command.format(encoder=encoder, out=tmp_path, scene=scene).split()
    assert main([*arguments, "--device", name]) == 1
    said = capsys.readouterr().err
    assert f"device: '{name}' cannot be used here" in said
    assert "give cpu, or cuda on a machine for which pc3d doctor lists a GPU" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_handcrafted_descriptors_know_the_cpu_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--encoder", "descriptor", "--device", "cuda"]) == 1
    assert "descriptor computes on the CPU, got 'cuda': leave --device out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mps", "meta"])
def test_a_device_without_kernels_is_told_in_a_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Not with the list of backends that PyTorch answers for some."""
    assert main(["embed", "--encoder", "descriptor", "--output", "x.npz", "--device", name]) == 1
    assert f"device: {name!r} cannot be used here (pc3d has no kernels for it): give cpu" in capsys.readouterr().err
