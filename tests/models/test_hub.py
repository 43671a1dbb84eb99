"""Encoders as folders, here and on the Hub."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from torch import nn

from pc3d.models import PointViT, hub_files, load_encoder, save_encoder


def small(**changes: Any) -> PointViT:
    torch.manual_seed(3)
    return PointViT(24, 2, 4, num_groups=16, group_size=8, tokenizer_dims=(8, 16, 16), **changes)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_encoder(small(num_cls_tokens=2, ignore_near_origin=True), tmp_path / "run" / "encoder")


@torch.no_grad()
def test_an_encoder_comes_back_as_it_was(saved: Path) -> None:
    encoder, xyz = small(num_cls_tokens=2, ignore_near_origin=True).eval(), torch.rand(2, 64, 3)
    for path in (saved, str(saved), saved.parent):  # the folder of a run leads to its encoder
        loaded = load_encoder(path)
        assert loaded.config == encoder.config
        assert not loaded.training
        assert torch.equal(loaded.encode(xyz), encoder.encode(xyz))


def test_the_configuration_states_the_contract(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    assert config["class"] == "PointViT"
    assert config["arguments"]["num_groups"] == 16
    assert config["arguments"]["group_size"] == 8
    assert config["arguments"]["num_points"] == 1024
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]


def test_saving_again_replaces_and_a_failed_save_leaves_the_old_one(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (saved / "model.safetensors").read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write \S+/config.json \(No space left on device\): .*before is intact$"):
        save_encoder(small(), saved)
    assert (saved / "model.safetensors").read_bytes() == before
    assert len(list(saved.iterdir())) == 2
    monkeypatch.undo()
    save_encoder(small(), saved)
    assert load_encoder(saved).config["num_cls_tokens"] == 0


def test_only_encoders_can_be_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"one of PointViT, .*; got Linear"):
        save_encoder(nn.Linear(2, 2), tmp_path)  # type: ignore[arg-type]


def test_wrong_paths_say_what_to_do(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*reads owner/name"):
        load_encoder(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="give the folder that holds it"):
        load_encoder(saved / "model.safetensors")
    for name, hint in (("x.pth", "load_official_encoder"), ("last.ckpt", "encoder/ beside it")):
        (tmp_path / name).touch()
        with pytest.raises(FileNotFoundError, match=hint):
            load_encoder(tmp_path / name)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "last.ckpt").touch()
    with pytest.raises(FileNotFoundError, match=r"it holds: last.ckpt.*--resume"):
        load_encoder(unfinished)
    with pytest.raises(ValueError, match="revision='v1' applies to the Hub"):
        load_encoder(saved, revision="v1")


def test_damaged_folders_are_refused(saved: Path) -> None:
    weights, config = saved / "model.safetensors", saved / "config.json"
    good = weights.read_bytes()
    weights.write_bytes(good[:1000])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        load_encoder(saved)
    save_encoder(small(), saved.parent / "other")
    weights.write_bytes((saved.parent / "other" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"does not fit its config\.json: missing cls_token; missing cls_position"):
        load_encoder(saved)
    weights.write_bytes(good)
    content = json.loads(config.read_text())
    for change, message in (
        ({"class": "PointCNN"}, "written by pc3d .*: the class 'PointCNN' is none of this pc3d .*, which has PointViT"),
        ({"class": "no_such.Net"}, "no_such.Net is none of pc3d, and no_such cannot be imported here: .* PYTHONPATH"),
        ({"class": "os.system"}, "os has no network of that name here"),
        ({"class": "torch.nn.Linear"}, "torch.nn.Linear is neither an ObjectEncoder .* nor a network with point_fea"),
        ({"class": "venv.__main__.X"}, "'venv.__main__.X' is none of pc3d, and no name of a class in a module"),
        ({"class": ".X"}, "'.X' is none of pc3d, and no name of a class in a module"),
        ({"class": 3}, "not the configuration of a pc3d encoder: .*class must be a name .* got 3"),
        ({"arguments": [3]}, r"not the configuration of a pc3d encoder: .*arguments a dictionary, .* and \[3\]"),
        ({"class": "BlockFeatures"}, "not the configuration of a pc3d encoder"),
        ({"arguments": {"width": 3}}, "arguments that PointViT does not take.*width"),
        ({"arguments": {**content["arguments"], "embed_dim": 48}}, r"cls_token is \(2, 24\), expected \(2, 48\)"),
    ):
        config.write_text(json.dumps({**content, **change}))
        with pytest.raises(ValueError, match=message):
            load_encoder(saved)
    config.write_text("{")
    with pytest.raises(ValueError, match="not the configuration of a pc3d encoder"):
        load_encoder(saved)


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A Hub that answers; the ids that it was asked for."""
    asked: list[str] = []
    monkeypatch.setattr(HfApi, "model_info", lambda self, repo_id, **options: asked.append(repo_id))
    return asked


def test_a_hub_that_cannot_be_reached_is_tried_once(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: list[str]
) -> None:
    """What was downloaded before is loaded without it; otherwise it is said at once."""
    monkeypatch.chdir(tmp_path)  # which has no folder runs

    def unreachable(self: HfApi, repo_id: str, **options: float) -> None:
        assert 0 < options["timeout"] <= 10
        hub.append(repo_id)
        raise RuntimeError("no route to host")  # each version of the library has another class for this

    def download(repo_id: str, filename: str, revision: str | None = None, local_files_only: bool = False) -> str:
        assert local_files_only
        if repo_id == "runs/fist":
            raise LocalEntryNotFoundError("not in the cache")
        return str(saved / filename)

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    monkeypatch.setattr(hub_files, "hf_hub_download", download)
    assert load_encoder("someone/encoder").config["num_groups"] == 16
    with pytest.raises(FileNotFoundError, match=r"'runs/fist' is no folder here, .* and the Hub cannot be"):
        load_encoder("runs/fist")
    assert hub == ["someone/encoder", "runs/fist"]


@pytest.mark.parametrize("error", [ValueError("Expecting value: line 1 column 1"), KeyError("id"), TypeError("None")])
def test_a_mirror_that_does_not_describe_models_is_asked_for_files(
    saved: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """As one that answers with a page (``HF_ENDPOINT``): it can be reached."""

    def unexpected(self: HfApi, repo_id: str, **options: float) -> None:
        raise error

    def download(repo_id: str, filename: str, revision: str | None = None, local_files_only: bool = False) -> str:
        assert not local_files_only
        return str(saved / filename)

    monkeypatch.setattr(HfApi, "model_info", unexpected)
    monkeypatch.setattr(hub_files, "hf_hub_download", download)
    assert load_encoder("someone/encoder").config["num_groups"] == 16


def test_an_id_is_looked_up_on_the_hub(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repo_id: str, filename: str, revision: str | None = None, local_files_only: bool = False) -> str:
        asked.append((repo_id, filename, revision))
        return str(saved / filename)

    monkeypatch.setattr(hub_files, "hf_hub_download", download)
    assert load_encoder("someone/encoder", revision="abc").config["num_groups"] == 16
    assert asked == [("someone/encoder", "config.json", "abc"), ("someone/encoder", "model.safetensors", "abc")]


def test_what_is_on_the_hub_imports_nothing(saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither does what it names inside another encoder; what was imported before may be built."""
    content = json.loads((saved / "config.json").read_text())
    (tmp_path / "unasked.py").write_text("from pc3d.models import PointViT\n\nclass Net(PointViT):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(hub_files, "hf_hub_download", lambda repo_id, filename, **options: str(saved / filename))
    own = {**content, "class": "unasked.Net"}
    for described in (own, {"class": "BlockFeatures", "arguments": {"encoder": own}}):
        (saved / "config.json").write_text(json.dumps(described))
        with pytest.raises(ValueError, match=r"from the Hub, names the class unasked\.Net, .* import it before"):
            load_encoder("someone/encoder")
    assert "unasked" not in sys.modules
    (saved / "config.json").write_text(json.dumps(own))
    try:
        assert type(load_encoder(saved)).__module__ == "unasked"  # a folder of one's own may
        assert type(load_encoder("someone/encoder")).__name__ == "Net"
    finally:
        del sys.modules["unasked"]


def test_a_mistyped_folder_is_not_looked_up_on_the_hub(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repo_id: str, filename: str, revision: str | None = None, local_files_only: bool = False) -> str:
        asked.append(repo_id)
        return str(saved / filename)

    monkeypatch.setattr(hub_files, "hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for path in ("runs/nope", Path("runs/nope")):
        with pytest.raises(FileNotFoundError, match=r"there is no folder runs/nope .* Hub was not asked"):
            load_encoder(path)
    assert asked == []
    load_encoder("runs/nope", revision="main")
    load_encoder("others/nope")
    assert asked == ["runs/nope"] * 2 + ["others/nope"] * 2


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RepositoryNotFoundError, "neither a folder here nor a repository"),
        (RevisionNotFoundError, "has no revision 'v1'"),
        (LocalEntryNotFoundError, "cannot be reached"),
        (EntryNotFoundError, "does not hold"),
    ],
)
def test_ids_that_lead_nowhere_are_explained(
    error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*args: object, **kwargs: object) -> str:
        raise error.__new__(error)  # their constructors want a response of whichever HTTP library is in use

    monkeypatch.setattr(hub_files, "hf_hub_download", download)
    with pytest.raises(FileNotFoundError, match=f"'someone/nothing'.* {message}"):
        load_encoder("someone/nothing", revision="v1")
