"""``pc3d doctor``: what is installed, compiled and found. Needs none of the extras."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from pc3d.cli._parser import OK, parser_class
from pc3d.diagnostics import diagnose, report


def main(argv: Sequence[str]) -> int:
    """Run the verb."""
    parser = parser_class(argparse.ArgumentParser)(
        prog="pc3d doctor",
        description="Show versions, compiled kernels, devices and data sets, and how to get what is missing.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    options = parser.parse_args(list(argv))
    findings = diagnose()
    print(json.dumps(findings, indent=2) if options.json else report(findings))
    return OK
