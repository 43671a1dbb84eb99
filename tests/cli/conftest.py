"""Lets the tests of this folder import what lies beside them; what they share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def imported_by() -> Callable[..., set[str]]:
    """Run the command in a process of its own, and return the packages that it has imported."""

    def run(*arguments: str | Path) -> set[str]:
        code = f"import sys; from pc3d.cli.main import main; code = main({[str(word) for word in arguments]!r}); "
        code += "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr); sys.exit(code)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return set(done.stderr.splitlines()[-1].split())

    return run
