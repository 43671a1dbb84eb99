"""What every verb says and where: --json, --quiet, NO_COLOR, progress, and Ctrl-C with a real process."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pc3d import _progress
from pc3d.cli.main import VERBS, main
from pc3d.methods.interruption import Interruption, interruptible
from pc3d.models import PointViT, save_encoder

PC3D = [sys.executable, "-m", "pc3d.cli.main"]
POINTS = ["--num_points", "128"]
RECIPE: dict[str, Any] = {
    "model": {
        "class_path": "pc3d.methods.PointMAE",
        "init_args": {
            "encoder": {
                "class_path": "pc3d.models.PointViT",
                "init_args": {
                    **{"embed_dim": 16, "depth": 1, "num_heads": 2, "num_groups": 8, "group_size": 8},
                    "tokenizer_dims": [8, 8, 8],
                },
            },
            "decoder_depth": 1,
            "decoder_num_heads": 2,
        },
    },
    "data": {
        "train": {"class_path": "pc3d.data.Household", "init_args": {"num_points": 64}},
        "batch_size": 20,
        "num_workers": 1,
    },
    "trainer": {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1},
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    tiny = PointViT(embed_dim=16, depth=1, num_heads=2, num_groups=8, group_size=16, num_points=128)
    return str(save_encoder(tiny, tmp_path_factory.mktemp("encoder")))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return str(path)


def leaves(verb: str, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The verb, or the verbs that it has of its own."""
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    listed = re.search(r"^(?:verbs|actions):\n((?:  \S+ .*\n?)+)", text, re.MULTILINE)
    return [[verb]] if listed is None else [[verb, line.split()[0]] for line in listed[1].splitlines()]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_json_and_quiet(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in leaves(verb, capsys):
        assert main([*words, "--help"]) == 0
        text = capsys.readouterr().out
        assert "--json " in text, words
        assert "--quiet " in text, words


@pytest.mark.slow
def test_json_has_standard_output_for_itself(recipe: str, tmp_path: Path) -> None:
    """Whatever else a verb that trains has to say goes to standard error."""
    run = tmp_path / "run"
    training = ["pretrain", "--config", recipe, "--output", str(run), "--trainer.limit_train_batches", "2", "--json"]
    done = subprocess.run([*PC3D, *training], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["run"], result["encoder"]) == (str(run), str(run / "encoder"))
    with open(run / "metrics.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert result["metrics"]["train/reconstruction_epoch"] == pytest.approx(float(last["train/reconstruction_epoch"]))
    assert "Trainer" in done.stderr or "|" in done.stderr  # Lightning's notes and the table of the model
    for text in (done.stdout, done.stderr):
        assert "\x1b" not in text  # no terminal, no escape codes


@pytest.mark.slow
def test_quiet_leaves_the_result_alone(recipe: str, tmp_path: Path) -> None:
    training = ["pretrain", "--config", recipe, "--output", str(tmp_path / "run"), "--trainer.limit_train_batches", "2"]
    done = subprocess.run([*PC3D, *training, "--quiet"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"encoder written to {tmp_path}/run/encoder\n"
    assert "deprecated" not in done.stderr
    notes = [line for line in done.stderr.splitlines() if line.strip() and "warn" not in line.lower()]
    assert notes == [] or all(line.startswith(("  ", "/")) for line in notes), done.stderr  # bodies of warnings


@pytest.mark.parametrize("num_workers", [0, 1])
def test_training_refuses_or_lists_files_that_cannot_be_used(
    num_workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    for number in range(4):
        np.savetxt(scans / f"{number}.xyz", np.random.default_rng(number).normal(size=(64, 3)))
    (scans / "empty.xyz").write_text("")
    (scans / "ragged.xyz").write_text("1 2 3\n4 5\n")
    data = {"train": {"class_path": "pc3d.data.FolderDataset", "init_args": {"root": str(scans)}}}
    options = {"batch_size": 2, "num_workers": num_workers, "drop_last": False}
    path = tmp_path / "scans.yaml"
    trainer = {**RECIPE["trainer"], "max_epochs": 1}
    path.write_text(yaml.safe_dump({**RECIPE, "data": {**data, **options}, "trainer": trainer}))
    training = ["pretrain", "--config", str(path), "--quiet", "--output"]

    assert main([*training, str(tmp_path / "refused")]) == 1
    remedy = "; --data.train.on_error report leaves such files out and lists them\n"
    assert capsys.readouterr().err.endswith((f"empty.xyz: is empty{remedy}", f"at row 2{remedy}"))
    assert main([*training, str(tmp_path / "run"), "--data.train.on_error", "report"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train: left out: ")]
    assert len(told) == 2
    assert told[0] == f"train: left out: {scans}/empty.xyz: is empty"
    assert "ragged.xyz: cannot be read as XYZ" in told[1]


def test_what_lightning_calls_of_an_older_torch_is_not_the_users_business(monkeypatch: pytest.MonkeyPatch) -> None:
    def call(argv: Any) -> None:
        from torch.utils._pytree import LeafSpec

        LeafSpec()
        warnings.warn("a warning of ours", FutureWarning, stacklevel=1)

    monkeypatch.setattr("pc3d.cli.doctor.main", call)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert main(["doctor", "--quiet"]) == 0
    assert [str(warning.message) for warning in seen] == ["a warning of ours"]


def test_lightning_advertises_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pytorch_lightning import Trainer

    told: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: told.append(record.getMessage()))
    tip = "Tip: For seamless cloud logging and experiment tracking, try installing this or that"

    def call(argv: Any) -> None:
        Trainer(accelerator="cpu", default_root_dir=tmp_path, logger=False)
        for text in (tip, "a note on the work"):  # whether or not the library's version at hand has a tip
            logging.getLogger("pytorch_lightning.utilities.rank_zero").info(text)

    logger = logging.getLogger("pytorch_lightning")
    logger.addHandler(handler)
    try:
        monkeypatch.setattr("pc3d.cli.doctor.main", call)
        assert main(["doctor"]) == 0
        assert "a note on the work" in told
        assert not any("Tip" in text for text in told)
        logging.getLogger("pytorch_lightning.utilities.rank_zero").info(tip)
        assert told[-1] == tip  # after the command the library says what it likes
    finally:
        logger.removeHandler(handler)


def test_quiet_and_json_end_with_the_command(encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, other = str(tmp_path / "a.npz"), str(tmp_path / "b.npz")
    before = sys.stdout
    assert main(["embed", "--encoder", encoder, "--output", file, "--json", "--quiet", *POINTS]) == 0
    assert sys.stdout is before
    assert not _progress.is_hidden()
    assert json.loads(capsys.readouterr().out) == {"file": file, "clouds": 124, "dimensions": 16}
    assert main(["embed", "--encoder", encoder, "--output", other, *POINTS]) == 0
    assert capsys.readouterr().out == f"{other}: 124 clouds, 16 dimensions\n"


def in_terminal(arguments: list[str], **environment: str) -> str:
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    variables = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    variables |= {"TERM": "xterm-256color", "COLUMNS": "200", **environment}
    process = subprocess.Popen([*PC3D, *arguments], stdout=theirs, stderr=theirs, stdin=theirs, env=variables)
    os.close(theirs)
    blocks = []
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:  # how Linux says that the other side was closed
            break
        if not block:
            break
        blocks.append(block)
    os.close(ours)
    text = b"".join(blocks).decode()
    assert process.wait() == 0, text
    return text


@pytest.mark.slow
def test_a_terminal_gets_a_bar_and_no_colour_leaves_colours_out(recipe: str, tmp_path: Path) -> None:
    """Colour is 30-37, 38, 40-47, 48, 90-97 and 100-107 of the escape codes that end in m (ECMA-48, 8.3.117)."""
    color = re.compile(r"\x1b\[(?:[\d;]*;)?(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[\d;]*m")
    steps = ["--trainer.limit_train_batches", "3", "--trainer.max_epochs", "1"]
    training = ["pretrain", "--config", recipe, "--output", str(tmp_path / "run"), *steps]
    plain = in_terminal(training, NO_COLOR="1")
    assert color.search(plain) is None
    for part in ("3/3", "it/s", "run_left: 0:00:0", "memory: "):
        assert part in plain, part
    probe = ["embed", "--encoder", str(tmp_path / "run"), "--num_points", "64"]
    plain = in_terminal([*probe, "--output", str(tmp_path / "a.npz")], NO_COLOR="1")
    assert color.search(plain) is None
    for part in ("encode", "/124", "clouds/s"):
        assert part in plain, part
    assert re.search(r"\d [MG]B", plain), plain
    colored = in_terminal([*probe, "--output", str(tmp_path / "b.npz")])
    assert color.search(colored) is not None


def test_a_log_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 110.0, 131.0, 140.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    assert list(_progress.track(range(3), "judge", "objects")) == [0, 1, 2]
    text = capsys.readouterr().err
    assert re.fullmatch(r"judge: 2/3 objects \(66 %\), 0\.0645 objects/s, 0:00:16 left, peak memory \S+ [MG]B\n", text)
    with _progress.hidden():
        assert list(_progress.track(range(3), "judge", "objects")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def final(folder: Path) -> tuple[Any, Any]:
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [(row["step"], row["train/reconstruction_step"]) for row in rows if row["train/reconstruction_step"]]
    return checkpoint["state_dict"], steps


@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_goes_on_to_the_same_end(recipe: str, tmp_path: Path) -> None:
    """SIGINT reaches all processes of the terminal, those that prepare batches, too; 24 steps an epoch."""
    left_alone, stopped = str(tmp_path / "a"), str(tmp_path / "b")
    assert main(["pretrain", "--config", recipe, "--output", left_alone, "--quiet"]) == 0
    arguments = [*PC3D, "pretrain", "--config", recipe, "--output", stopped]
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    metrics, deadline = Path(stopped, "metrics.csv"), time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > 4) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "stopping after this step" in error
    assert error.rstrip().endswith(f"interrupted; go on with: pc3d pretrain --output {stopped} --resume")
    assert "Traceback" not in error
    reached = torch.load(Path(stopped, "last.ckpt"), weights_only=True)["global_step"]
    assert 3 <= reached < 24  # within the first epoch: without the request nothing would have been kept
    assert not Path(stopped, "encoder").exists()
    assert main(["pretrain", "--output", stopped, "--resume", "--quiet"]) == 0
    (weights, steps), (expected, expected_steps) = final(Path(stopped)), final(Path(left_alone))
    assert steps == expected_steps
    assert all(torch.equal(weights[name], values) for name, values in expected.items())


def test_ctrl_c_amidst_a_line_of_progress_is_a_request_like_any_other(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Buffered streams refuse to be written to while they write."""

    class Terminal(io.RawIOBase):
        written = b""

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            if not self.written:
                self.written = bytes(data)
                signal.raise_signal(signal.SIGINT)
            return len(data)

    terminal, interruption = Terminal(), Interruption()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BufferedWriter(terminal)))
    with interruptible():
        interruption.listen()
        print("epoch 1 of 2", file=sys.stderr, flush=True)
    assert terminal.written == b"epoch 1 of 2\n"
    assert interruption.requested
    assert capfd.readouterr().err == "\nstopping after this step; Ctrl-C again stops at once\n"


def test_interrupted_before_the_first_step(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pc3d.methods.PointMAE.training_step", interrupt)
    before = signal.getsignal(signal.SIGINT)
    assert main(["pretrain", "--config", recipe, "--output", str(tmp_path / "run"), "--quiet"]) == 130
    assert "nothing was finished yet, start again with --overwrite" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before  # Lightning leaves it ignored
