"""The pictures of the documentation are made anew by a script."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "screenshots.py"


def test_the_script_says_what_it_needs() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=True)
    assert "--segmenter" in done.stdout
    assert "pc3d demo --output runs/demo" in done.stdout
    missing = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert missing.returncode == 2
    assert "--segmenter, --demo" in missing.stderr
