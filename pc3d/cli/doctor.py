"""``pc3d doctor``: what is installed, compiled and found. Needs none of the extras."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pc3d.cli import _output
from pc3d.cli._parser import OK, verb_parser
from pc3d.diagnostics import diagnose, report


def main(argv: Sequence[str]) -> int:
    """Run the verb."""
    description = "Show versions, compiled kernels, devices and data sets, and how to get what is missing."
    verb_parser("doctor", description, argparse.ArgumentParser).parse_args(list(argv))
    findings = diagnose()
    _output.result(findings, report(findings))
    return OK
