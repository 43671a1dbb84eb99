"""Sphinx: the pages are Markdown, the reference is written from the package itself."""

from __future__ import annotations

import ast
import importlib
import inspect
import typing
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import pc3d
from pc3d.cli._parser import held_parser
from pc3d.cli.completion import NESTED
from pc3d.cli.main import VERBS

project = "pc3d"
author = "The pc3d authors"
copyright = "The pc3d authors, Apache-2.0"
version = release = pc3d.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme = "pydata_sphinx_theme"
html_title = "pc3d"
html_theme_options = {"navigation_with_keys": False, "secondary_sidebar_items": ["page-toc"]}
html_context = {"default_mode": "auto"}  # the theme warns in the browser of one that is not said
html_copy_source = False
html_show_sourcelink = False
exclude_patterns = []
myst_heading_anchors = 3
# Tables that a command writes begin with whatever heading suits their file.
suppress_warnings = ["myst.header"]
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autosummary_generate = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False

PACKAGES = ("ops", "data", "nn", "losses", "image", "viz", "compat", "models", "evaluation", "methods", "tasks")


def constant_text(module: str, name: str, found: Any) -> str:
    """What stands below the assignment of a constant, wherever in the package that is.

    Raises:
        LookupError: nothing does.
    """
    folder = Path(importlib.import_module(module).__file__ or "").parent
    for file in sorted(folder.glob("*.py")):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        for statement, below in pairwise(body):
            targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                    text = str(below.value.value)
                    words = typing.get_args(found)
                    return f"{text} One of {', '.join(f'``{word!r}``' for word in words)}." if words else text
                raise LookupError(f"{module}.{name}: say what it is, in a string below its assignment in {file}")
    raise LookupError(f"{module}.{name}: no assignment in {folder}")


def _entry(module: str, name: str, found: Any) -> str:
    if inspect.ismodule(found):
        return f"See :mod:`{found.__name__}`.\n"
    if inspect.isclass(found):
        return f".. autoclass:: {module}.{name}\n   :members:\n"
    if inspect.isroutine(found):
        return f".. autofunction:: {module}.{name}\n"
    if name == "__version__":
        return f".. py:data:: {name}\n\n   The version of pc3d.\n"
    return f".. py:data:: {name}\n\n   {constant_text(module, name, found)}\n"


def _is_alias(module: Any, name: str) -> bool:
    return typing.get_origin(getattr(module, name)) is not None


def package_page(module: str) -> str:
    """A page with every public name of a package, in reStructuredText."""
    found = importlib.import_module(module)
    names = list(found.__all__)
    title = f"``{module}``"
    # Constants have no docstring that a summary could take a line of.
    summary = "\n".join(f"   {name}" for name in names if callable(getattr(found, name)) and not _is_alias(found, name))
    entries = "\n".join(_entry(module, name, getattr(found, name)) for name in names)
    return (
        f"{title}\n{'=' * len(title)}\n\n.. automodule:: {module}\n   :no-members:\n\n"
        f".. autosummary::\n\n{summary}\n\n{entries}"
    )


def commands_page() -> str:
    """A page with the help of every verb."""
    parts = [
        "# Commands",
        "The output of `pc3d VERB --help` for every command. [](../commands.md) describes the common options.",
    ]
    for verb in VERBS:
        for inner in NESTED.get(verb, ("",)):
            name = f"{verb} {inner}".strip()
            main = importlib.import_module(f"pc3d.cli.{verb}").main
            parser = held_parser(partial(main, [inner] if inner else []))
            text = parser.format_help().rstrip()
            parts.append(f"## pc3d {name}\n\n```text\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def write_reference(app: Sphinx) -> None:
    """Write ``reference/``, and leave files alone whose content is the same."""
    folder = Path(app.srcdir) / "reference"
    folder.mkdir(exist_ok=True)
    pages = {f"{name}.rst": package_page(f"pc3d.{name}") for name in PACKAGES}
    pages["pc3d.rst"] = package_page("pc3d")
    pages["commands.md"] = commands_page()
    listed = "\n".join(f"   {name}" for name in ("commands", "pc3d", *PACKAGES))
    pages["index.rst"] = f"Reference\n=========\n\n.. toctree::\n\n{listed}\n"
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def skip_field_of_tuple(_: Sphinx, kind: str, name: str, found: Any, skip: bool, __: Any) -> bool | None:
    """Fields of a named tuple stand under "Attributes:"; what Python says of them is "Alias for field number 0"."""
    return True if str(inspect.getdoc(found)).startswith("Alias for field number") else None


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-skip-member", skip_field_of_tuple)
    app.connect("builder-inited", write_reference)
