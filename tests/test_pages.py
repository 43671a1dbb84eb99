"""Every command and every piece of Python in README.md and the documentation runs, in the order of the page.

Blocks marked ``text`` are not run: they need data that is not here, or hours.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from pc3d.data import Rooms
from pc3d.diagnostics import EXTRAS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
# Pages that are run one after another in one folder, so that a run which several show is made once.
COURSES = {
    "objects": (
        "README.md",
        "docs/pretrain.md",
        "docs/own-data.md",
        "docs/judge.md",
        "docs/finetune.md",
        "docs/view.md",
        "docs/export.md",
    ),
    "scenes": ("docs/scenes.md", "docs/search-shapes.md", "docs/texts.md"),
    "code": (
        *("docs/concepts.md", "docs/images.md", "docs/operators.md", "docs/commands.md", "docs/coming-from.md"),
        *(
            "docs/add-operator.md",
            "docs/add-encoder.md",
            "docs/add-method.md",
            "docs/add-dataset.md",
            "docs/index.md",
            "docs/guide.md",
            "docs/extend.md",
        ),
    ),
}
LANGUAGES = ("bash", "python", "yaml", "text")


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and content of each block of code; directives such as ``{include}`` are none."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```([^\n]*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(language, block) for language, block in found if not language.startswith("{")]


def commands(block: str) -> list[str]:
    lines = block.replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.strip()]


def words(command: str) -> tuple[list[str], list[str]]:
    """Folders that a command puts on the path, and the arguments of ``pc3d``; refuses what no test could run."""
    found = shlex.split(command)
    paths = [found.pop(0).partition("=")[2]] if found[0].startswith("PYTHONPATH=") else []
    assert found[0] == "pc3d", f"{command!r} is run by no test: mark its block as text"
    return paths, found[1:]


def locked(file: str) -> dict[str, set[str]]:
    """The versions that a file in requirements/ allows of each distribution."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / "requirements" / file).read_text(encoding="utf-8").splitlines():
        name, _, version = line.partition(" ;")[0].strip().partition("==")
        found.setdefault(name, set()).add(version)
    return found


def not_in_demo() -> list[str]:
    """Packages that are installed here and not by ``make demo``."""
    there = {"pc3d", "pip", *locked("train.lock")}
    found = packages_distributions().items()
    return [name for name, owners in found if not there & {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners}]


def prepare(folder: Path) -> None:
    """The files that pages take for granted: a folder of scans and a scene."""
    scans = folder / "my_scans"
    scans.mkdir()
    for number in range(32):
        cloud = np.random.default_rng(number).normal(size=(1200, 3)).astype(np.float32)
        np.save(scans / f"scan_{number}.npy", cloud)
    room = Rooms("test")[0].select(slice(None, None, 20))
    assert room.rgb is not None
    colors = (255 * room.rgb).to(torch.uint8).numpy()
    trimesh.PointCloud(room.xyz.numpy(), colors=colors).export(folder / "my_scene.ply")


def steps(page: str, folder: Path) -> list[dict[str, Any]]:
    """What a page does, in its order; blocks that name their file are also written to it."""
    found: list[dict[str, Any]] = []
    for language, block in blocks(page):
        first, _, rest = block.partition("\n")
        if language in ("python", "yaml") and re.fullmatch(r"# \w+\.(py|yaml)", first):
            (folder / first.removeprefix("# ")).write_text(rest)
        # What the README shows needs no more than make demo installs.
        missing = not_in_demo() if page == "README.md" else []
        if language == "python":
            found.append({"what": f"{page}:\n{block}", "paths": ["."], "missing": missing, "code": block})
        for command in commands(block) if language == "bash" else []:
            paths, arguments = words(command)
            what = f"{page}: {command}"
            found.append({"what": what, "paths": paths, "missing": missing, "arguments": arguments})
    return found


@pytest.mark.slow
@pytest.mark.parametrize("course", COURSES)
def test_every_command_and_every_python_block_runs(course: str, tmp_path: Path) -> None:
    prepare(tmp_path)
    todo: list[dict[str, Any]] = []
    for page in COURSES[course]:
        # What an earlier page has run already is there.
        known = [step.get("arguments") for step in todo]
        todo += [step for step in steps(page, tmp_path) if "code" in step or step["arguments"] not in known]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "run_steps.py"), str(tmp_path)],
        input=json.dumps(todo),
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr


def test_what_make_demo_installs_is_a_part_of_all_without_what_is_large() -> None:
    demo, all_of_it = locked("train.lock"), locked("dev.lock")
    assert {name: versions - all_of_it[name] for name, versions in demo.items()} == {name: set() for name in demo}
    needed = [names for extra in ("train", "io", "viz", "search") for names in EXTRAS[extra].values()]
    assert {names[0] for names in needed} - set(demo) == {"open3d-cpu"}


def test_every_page_is_run() -> None:
    # Tables of results are written by a command, and have no code.
    written = [path for path in DOCS.glob("*.md") if not path.name.startswith("results")]
    pages = [str(path.relative_to(ROOT)) for path in (README, *written)]
    assert sorted(page for course in COURSES.values() for page in course) == sorted(pages)


@pytest.mark.parametrize("page", [page for course in COURSES.values() for page in course])
def test_blocks_say_what_they_are(page: str) -> None:
    for language, block in blocks(page):
        assert language in LANGUAGES, f"a block of {page} is marked {language!r}:\n{block}"
        if language == "bash":
            assert [words(command) for command in commands(block)]
        if language == "yaml":
            assert re.match(r"# \w+\.yaml\n", block), f"a configuration of {page} does not name its file:\n{block}"


def test_the_commands_at_the_top_are_targets_of_make() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in ("README.md", "docs/index.md"):
        first = next(block for language, block in blocks(page) if language == "text")
        targets = [line.split()[1] for line in first.splitlines()]
        assert targets == ["demo", "test"]
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_files_that_the_readme_links_to_exist() -> None:
    text = README.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
