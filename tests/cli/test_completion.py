"""``pc3d completion``: the script, asked by a real bash what follows a half-typed command."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import shtab

from pc3d.cli.completion import NESTED, script
from pc3d.cli.main import VERBS, main


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "pc3d.bash"
    path.write_text(script("bash", shtab) + "\n")
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pro"], ["probe"]),
        (["segment", "pre"], ["predict"]),
        (["probe", "--class"], ["--classifier"]),
        (["probe", "--classifier", "m"], ["mlp3"]),
        (["pretrain", "--config", "point_cmae_h"], ["point_cmae_household"]),
        (["pretrain", "--trainer.max_e"], ["--trainer.max_epochs"]),
        (["segment", "train", "--config", "rooms_small_u"], ["rooms_small_unet"]),
        (["embed", "--qu"], ["--quiet"]),
    ],
)
def test_bash_completes(words: list[str], expected: list[str], bash: Path) -> None:
    call = f"""
        source {bash}
        function=$(complete -p pc3d | sed -E 's/.*-F ([^ ]+) .*/\\1/')
        COMP_WORDS=(pc3d {" ".join(words)}); COMP_CWORD={len(words)}; COMPREPLY=()
        $function pc3d {words[-1]} {words[-2] if len(words) > 1 else "pc3d"}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "--norc", "-c", call], capture_output=True, text=True)
    assert done.stdout.split() == expected, done.stderr


def test_every_verb_is_there(bash: Path) -> None:
    text = bash.read_text()
    for verb in VERBS:
        names = [f"{verb}_{inner}" for inner in NESTED[verb]] if verb in NESTED else [verb]
        for name in names:
            assert f"_shtab_pc3d_{name}_option_strings=" in text, name


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
