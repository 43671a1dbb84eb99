"""The documentation builds without a warning, and its reference has every public name."""

from __future__ import annotations

import html
import importlib
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

pytest.importorskip("sphinx")

ROOT = Path(__file__).parent.parent
PACKAGES = [
    f"pc3d.{path.parent.name}" for path in sorted(ROOT.glob("pc3d/*/__init__.py")) if "__all__" in path.read_text()
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages."""
    out = tmp_path_factory.mktemp("docs")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    arguments = ["--fail-on-warning", "--keep-going", "-q", "-b", "html", str(ROOT / "docs"), str(out)]
    done = subprocess.run([sys.executable, "-m", "sphinx", *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(built: Path) -> None:
    # Four lines of text, then a compressed line for each name, with its kind; Sphinx's own reader differs by version.
    packed = (built / "objects.inv").read_bytes().split(b"\n", 4)[4]
    lines = [line.split()[:2] for line in zlib.decompress(packed).decode().splitlines()]
    documented = {name for name, kind in lines if kind.startswith("py:")}
    assert len(PACKAGES) == 11
    for package in ["pc3d", *PACKAGES]:
        names = importlib.import_module(package).__all__
        assert [name for name in names if f"{package}.{name}" not in documented] == [], package


@pytest.mark.slow
def test_every_page_is_there_under_its_own_title(built: Path) -> None:
    # Sphinx writes pages of its own, such as search.html, over those of the same name.
    for source in sorted((ROOT / "docs").glob("*.md")):
        title = source.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        page = (built / f"{source.stem}.html").read_text(encoding="utf-8")
        shown = re.search(r"<h1>(.*?)<a", page, re.DOTALL)
        assert shown is not None, source.name
        assert html.unescape(re.sub("<[^>]*>", "", shown[1])) == title.replace("`", ""), source.name


@pytest.mark.slow
def test_pages_follow_the_browser_from_light_to_dark(built: Path) -> None:
    """A page that does not say so makes the theme warn on the console."""
    for page in built.glob("*.html"):
        assert 'data-default-mode="auto"' in page.read_text(encoding="utf-8"), page.name


def test_every_recipe_of_pretraining_is_listed() -> None:
    listed = (ROOT / "docs" / "pretrain.md").read_text(encoding="utf-8")
    shipped = sorted(path.stem for path in (ROOT / "pc3d" / "configs" / "pretrain").glob("*.yaml"))
    assert [name for name in shipped if f"`{name}`" not in listed] == []


@pytest.mark.slow
def test_every_verb_has_its_help_in_the_reference(built: Path) -> None:
    from pc3d.cli.main import VERBS

    text = (built / "reference" / "commands.html").read_text(encoding="utf-8")
    assert all(f"usage: pc3d {verb}" in text for verb in VERBS)
