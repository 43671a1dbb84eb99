"""``python -m pc3d``: the command line, where the interpreter is named rather than the command."""

import sys

from pc3d.cli.main import command

sys.exit(command())
