"""Training with another optimiser than AdamW, by the command alone: one of PyTorch's, and one of one's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import test_classify
import test_parts
import test_segment
import torch
import yaml
from test_own_classes import DATA

from pc3d.cli.main import main

# As such classes are often written: without types.
MODULE = """
import torch


class Signs(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, scale=1.0, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "scale": scale, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.sub_(p.grad.sign(), alpha=group["lr"] * group["scale"])
                    self.state[p]["steps"] = self.state[p].get("steps", 0) + 1
        return loss


class SecondOrder(torch.optim.SGD):
    def step(self, closure):
        closure()
        assert all(p.grad.requires_grad for group in self.param_groups for p in group["params"]), "they have no graph"
        return super().step()
"""
POINT_MAE = """
model:
  class_path: pc3d.methods.PointMAE
  init_args:
    encoder:
      class_path: pc3d.models.PointViT
      init_args: {embed_dim: 24, depth: 1, num_heads: 2, num_groups: 12, group_size: 16, num_points: 256,
                  tokenizer_dims: [8, 8, 16]}
    decoder_depth: 1
    decoder_num_heads: 2
"""
CONFIGS = {
    "pretrain": POINT_MAE + DATA,
    "classify": test_classify.TINY,
    "parts": test_parts.TINY,
    "segment": test_segment.TINY,
}
VERBS = {name: [name] if name == "pretrain" else [name, "train"] for name in CONFIGS}
SGD = ["--model.optimisation.optimizer", "torch.optim.SGD", "--model.optimisation.optimizer.momentum", "0.9"]
SIGNS = ["--model.optimisation.optimizer", "own_optimizer.Signs", "--model.optimisation.optimizer.scale", "0.5"]
# One step in each of two epochs, the second by the same folder.
SHORT = ["--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the configurations are, the module, and shards with parts."""
    folder = tmp_path_factory.mktemp("optimizers")
    for name, config in CONFIGS.items():
        (folder / f"{name}.yaml").write_text(config)
    (folder / "own_optimizer.py").write_text(MODULE)
    (folder / "shards").mkdir()
    test_parts.write_split(folder / "shards", "train", 365)
    test_parts.write_split(folder / "shards", "test", 60)
    sys.path.insert(0, str(folder))
    try:
        yield folder
    finally:
        sys.path.remove(str(folder))


def train(verb: str, folder: Path, output: Path, *options: str) -> int:
    arguments = ["--config", str(folder / f"{verb}.yaml"), "--output", str(output), *SHORT, *options]
    if verb == "parts":
        arguments += ["--root", str(folder / "shards")]
    return main([*VERBS[verb], *arguments, "--trainer.max_epochs", "1"])


def optimizer_state(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run / "last.ckpt", weights_only=True)
    return dict(content["optimizer_states"][0])


@pytest.mark.parametrize("verb", CONFIGS)
def test_an_optimizer_of_torch_trains_and_goes_on(
    verb: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(verb, folder, run, *SGD) == 0
    model = yaml.safe_load((run / "config.yaml").read_text())["model"]
    named = (model if "optimisation" in model else model["init_args"])["optimisation"]["optimizer"]
    assert (named["class_path"], named["init_args"]["momentum"]) == ("torch.optim.SGD", 0.9)
    assert not {"lr", "weight_decay"} & set(named["init_args"])  # these are fields of the optimisation

    assert main([*VERBS[verb], "--output", str(run), "--resume", "--trainer.max_epochs", "2"]) == 0
    state = optimizer_state(run)
    assert all("momentum_buffer" in one for one in state["state"].values())
    assert {group["weight_decay"] for group in state["param_groups"]} == ({0.05} if verb == "segment" else {0.05, 0.0})

    capsys.readouterr()
    resumed = [*VERBS[verb], "--output", str(run), "--resume", "--trainer.max_epochs", "3"]
    assert main([*resumed, "--model.optimisation.optimizer", "null"]) == 1
    assert "cannot resume with another model" in capsys.readouterr().err


@pytest.mark.parametrize("verb", CONFIGS)
def test_an_optimizer_of_ones_own_trains_and_goes_on(verb: str, folder: Path, tmp_path: Path) -> None:
    assert train(verb, folder, tmp_path / "run", *SIGNS) == 0
    assert main([*VERBS[verb], "--output", str(tmp_path / "run"), "--resume", "--trainer.max_epochs", "2"]) == 0
    state = optimizer_state(tmp_path / "run")
    assert {one["steps"] for one in state["state"].values()} == {2}
    assert {group["scale"] for group in state["param_groups"]} == {0.5}


def test_a_picture_of_a_run_needs_no_optimizer(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train("pretrain", folder, tmp_path / "run", *SIGNS) == 0
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(folder)])
    monkeypatch.delitem(sys.modules, "own_optimizer")
    assert main(["view", str(tmp_path / "run"), "--output", str(tmp_path / "x.png")]) == 0
    assert (tmp_path / "x.png").exists()


WRONG: list[tuple[list[str], int, str]] = [
    (["torch.optim.SDG"], 2, "module 'torch.optim' has no attribute 'SDG'; did you mean 'SGD'?\n"),
    (["Lamb"], 2, "no class Lamb is known here: give its whole name, MODULE.Lamb"),
    (["torch.nn.Linear"], 2, "Expected 'torch.nn.Linear' to be a subclass of <class 'Optimizer'>"),
    (["no_such_module.SGD"], 2, "No module named 'no_such_module'"),
    (["SGD", "--model.optimisation.optimizer.momentun", "1"], 2, "momentun is unknown; did you mean 'momentum'?"),
    (["SGD", "--model.optimisation.optimizer.lr", "1"], 2, "'lr' is not accepted: it is set by the optimisation"),
    (["SGD", "--model.optimisation.optimizer.weight_decay", "0"], 2, "'weight_decay' is not accepted: it is set by"),
    (["torch.optim.Muon"], 1, "optimizer: Muon cannot be used: Muon only supports 2D parameters"),
    (
        ["SparseAdam", "--model.optimisation.weight_decay", "0"],
        1,
        "optimizer: SparseAdam cannot make a step: SparseAdam",
    ),
    (["own_optimizer.SecondOrder"], 1, "optimizer: SecondOrder cannot make a step: they have no graph"),
    (["SGD", "--model.optimisation.betas", "[0.8, 0.9]"], 1, "betas=(0.8, 0.9) are those of AdamW"),
    (["SGD", "--model.optimisation.optimizer.momentum", "-1"], 1, "SGD cannot be used: Invalid momentum value: -1"),
]


@pytest.mark.parametrize(("options", "code", "message"), WRONG)
@pytest.mark.parametrize("verb", ["pretrain", "classify"])
def test_what_is_wrong_is_said_before_an_earlier_run_is_removed(
    verb: str,
    options: list[str],
    code: int,
    message: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 1\n")
    options = ["--model.optimisation.optimizer", *options, "--overwrite"]
    assert train(verb, folder, tmp_path / "run", *options) == code
    told = capsys.readouterr().err
    assert message in told
    assert "Namespace" not in told
    assert (tmp_path / "run" / "config.yaml").read_text() == "seed: 1\n"


def test_an_option_without_its_class_is_told_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model.optimisation.optimizer.eps", "1e-6"]
    assert train("pretrain", folder, tmp_path / "run", *options) == 2
    assert "needs its class before it, such as torch.optim.SGD or torch.optim.AdamW" in capsys.readouterr().err
