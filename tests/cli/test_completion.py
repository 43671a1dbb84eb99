"""``pc3d completion``: the scripts, asked by real shells on a terminal what follows a half-typed command."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import shtab

from pc3d.cli.completion import NESTED, script
from pc3d.cli.main import VERBS, main

SHELLS = {
    "bash": (["bash", "--norc", "-i"], 'source {script}; pc3d() {{ echo "=$*=" >> {typed}; }}'),
    "zsh": (
        ["zsh", "-f", "-i"],
        'fpath=(${{PWD}} $fpath); autoload -U compinit; compinit -D -u; pc3d() {{ echo "=$*=" >> {typed}; }}',
    ),
    "tcsh": (["tcsh", "-f", "-i"], "set edit; source {script}; alias pc3d 'echo \"=\\!*=\" >> {typed}'"),
}
"""How a shell starts without the user's files, and what makes it write down the commands that it was given."""
VERBS_AND_OPTIONS = [
    ("pro", "probe"),
    ("segment pre", "segment predict"),
    ("probe --classifier m", "probe --classifier mlp3"),
    ("pretrain --trainer.max_e", "pretrain --trainer.max_epochs"),
    ("embed --qui", "embed --quiet"),
    ("completion tc", "completion tcsh"),
    ("view fi", "view file.ply"),
    ("classify train --variant pb_t50_rs", "classify train --variant pb_t50_rs"),
    ("parts train --ro", "parts train --root"),
    ("--vers", "--version"),
]
"""What is typed before the tabulator key, and the line that becomes of it."""
OF_ONE_VERB = [
    ("pretrain --config point_cmae_h", "pretrain --config point_cmae_household"),
    ("segment train --config rooms_small_u", "segment train --config rooms_small_unet"),
    ("segment train --enc", "segment train --encoder"),
    ("classify train --enc", "classify train --encoder"),
    ("classify train --mode mlp", "classify train --mode mlp3"),
    ("classify train --variant pb_t25_", "classify train --variant pb_t25_r"),
    ("classify fewshot --sho", "classify fewshot --shot"),
    ("classify fewshot --enc", "classify fewshot --encoder"),
    ("view --mode heig", "view --mode height"),
    ("view file.ply --mode simi", "view file.ply --mode similarity"),
    ("probe --class", "probe --classifier"),
    ("probe --seed 1 --resu", "probe --seed 1 --results"),
    ("results fi", "results file.ply"),
    ("probe --k fi", "probe --k fi"),  # a number: no file
]
"""What needs to know the verb, which a script for tcsh does not."""


class Terminal:
    """A shell on a terminal of its own that knows the script, and a file called file.ply."""

    def __init__(self, shell: str, text: str, folder: Path) -> None:
        self._typed = folder / "typed"
        path = folder / "_pc3d"  # what zsh looks for
        path.write_text(text + "\n")
        (folder / "file.ply").touch()
        command, setup = SHELLS[shell]
        self._keyboard, screen = pty.openpty()
        environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "TERM": "dumb", "COLUMNS": "200"}
        self._process = subprocess.Popen(
            command, stdin=screen, stdout=screen, stderr=screen, cwd=folder, env=environment, start_new_session=True
        )
        os.close(screen)
        os.set_blocking(self._keyboard, False)
        self._type(setup.format(script=path, typed=self._typed) + "\n")
        assert self.line("ready") == "ready"

    def line(self, start: str) -> str:
        """What a command line becomes when its end is completed and the line is run."""
        before = self._lines()
        self._type(f"pc3d {start}" + ("" if start == "ready" else "\t") + "\n")
        deadline = time.monotonic() + 20
        screen = b""
        while len(self._lines()) == len(before):
            try:
                screen += os.read(self._keyboard, 65536)
            except BlockingIOError:
                time.sleep(0.01)
            assert time.monotonic() < deadline, screen.decode(errors="replace")
        return self._lines()[-1].strip("=").strip()

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._keyboard)

    def _type(self, text: str) -> None:
        os.write(self._keyboard, text.encode())

    def _lines(self) -> list[str]:
        return self._typed.read_text().splitlines() if self._typed.exists() else []


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    return {shell: script(shell, shtab) for shell in SHELLS}


@pytest.fixture(scope="module", params=SHELLS)
def terminal(
    request: pytest.FixtureRequest, scripts: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Terminal]]:
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    opened = Terminal(shell, scripts[shell], tmp_path_factory.mktemp(shell))
    yield shell, opened
    opened.close()


@pytest.mark.parametrize(("start", "expected"), VERBS_AND_OPTIONS)
def test_completes(start: str, expected: str, terminal: tuple[str, Terminal]) -> None:
    assert terminal[1].line(start) == expected


@pytest.mark.parametrize(("start", "expected"), OF_ONE_VERB)
def test_completes_what_a_verb_has(start: str, expected: str, terminal: tuple[str, Terminal]) -> None:
    if terminal[0] == "tcsh":
        pytest.skip("scripts for tcsh mix the options of all verbs")
    assert terminal[1].line(start) == expected


def test_bash_completes_every_word_of_a_list(terminal: tuple[str, Terminal]) -> None:
    if terminal[0] != "bash":
        pytest.skip("the other scripts know one word for each option")
    assert terminal[1].line("view --mode rgb heig") == "view --mode rgb height"


def test_every_verb_is_there(scripts: dict[str, str]) -> None:
    for verb in VERBS:
        assert re.search(rf"\b{verb}\b", scripts["tcsh"]), verb
        for inner in NESTED.get(verb, ("",)):
            name = f"{verb}_{inner}".rstrip("_")
            assert f"_shtab_pc3d_{name}_option_strings=" in scripts["bash"], name
            assert f"_shtab_pc3d_{name}_options=" in scripts["zsh"], name


def test_help_keeps_its_per_cent(scripts: dict[str, str]) -> None:
    assert re.search(r"--seeds\[.*95 \\% interval", scripts["zsh"])


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_of_a_verb_are_known(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    listed = re.search(r"^(?:verbs|actions):\n((?:  \S+ .*\n?)+)", capsys.readouterr().out, re.MULTILINE)
    found = () if listed is None else tuple(line.split()[0] for line in listed[1].splitlines())
    assert NESTED.get(verb, ()) == found


def test_the_verb_prints_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("pc3d.cli.completion.script", lambda shell, _: f"for {shell}")
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out == "for zsh\n"
    assert main(["completion", "fish"]) == 2
