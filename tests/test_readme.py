"""Every command and every piece of Python in README.md runs, in the order of the page."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from pc3d.data import Rooms

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [line.partition("#")[0].strip() for line in lines if line.strip()]


@pytest.mark.slow
def test_every_command_and_every_python_block_runs(tmp_path: Path) -> None:
    scans = tmp_path / "my_scans"
    scans.mkdir()
    for number in range(32):
        cloud = np.random.default_rng(number).normal(size=(1200, 3)).astype(np.float32)
        np.save(scans / f"scan_{number}.npy", cloud)
    room = Rooms("test")[0].select(slice(None, None, 20))
    assert room.rgb is not None
    colors = (255 * room.rgb).to(torch.uint8).numpy()
    trimesh.PointCloud(room.xyz.numpy(), colors=colors).export(tmp_path / "my_scene.ply")
    assert len(commands()) > 5
    for command in commands():
        program, *arguments = shlex.split(command)
        assert program == "pc3d", f"{command!r} is run by no test: mark its block as text, or add it here"
        done = subprocess.run(
            [sys.executable, "-m", "pc3d.cli.main", *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    for block in blocks("python"):
        done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stderr}"


def test_the_commands_at_the_top_are_targets_of_make() -> None:
    (first, *_) = blocks("text")
    targets = [line.split()[1] for line in first.splitlines()]
    assert targets == ["demo", "test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_files_that_the_page_links_to_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
