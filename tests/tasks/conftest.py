"""Lets the tests of this folder, and the processes they start, import the helpers beside them and those of methods."""

import sys
from pathlib import Path

FOLDER = Path(__file__).parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent / "methods")]
