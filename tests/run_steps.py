"""Runs steps one after another, each in a process of its own, forked from one that has done the slow imports.

``run_steps.py FOLDER < STEPS``: a JSON list of objects with ``what`` (for messages), ``paths`` (put in front of
``sys.path``), ``missing`` (packages that are to be as if they were not installed) and either ``arguments`` of the
command ``pc3d`` or ``code``. Ends with 1 at the first step that fails.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import traceback
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

SLOW = ("pc3d.cli.main", "pc3d.cli.pretrain", "pc3d.evaluation", "pc3d.methods", "pc3d.tasks", "pc3d.image", "pc3d.viz")


def hide(packages: set[str]) -> None:
    """Make packages as if they were not installed."""

    class Finder(PathFinder):
        @classmethod
        def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
            return None if fullname.partition(".")[0] in packages else super().find_spec(fullname, path, target)

    sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]


def act(step: dict[str, Any]) -> int:
    sys.path[:0] = step["paths"]
    hide(set(step["missing"]))
    if "code" in step:
        exec(compile(step["code"], step["what"], "exec"), {"__name__": "__main__"})
        return 0
    from pc3d.cli.main import main

    return main(step["arguments"])


def run(step: dict[str, Any]) -> tuple[int, str]:
    """Exit code and output of a step."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            code = 1
            try:
                code = act(step)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read().decode(errors="replace")


def main() -> int:
    os.chdir(sys.argv[1])
    for module in SLOW:
        importlib.import_module(module)
    for step in json.load(sys.stdin):
        code, text = run(step)
        if code != 0:
            print(f"{step['what']}\nexit code {code}\n{text}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
