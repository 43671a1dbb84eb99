"""A training on a CPU keeps the memory that it frees."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

# The page faults of filling 64 MiB once more, which are 16,384 where the system has taken the memory back. Not always
# none: what else was allocated meanwhile may lie where the memory was, and the heap grows.
_FAULTS = """
import resource, statistics, torch
{first}
found = []
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(2**24).add_(1.0)
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(statistics.median_high(found[1:]))
"""
_TRAIN = """
import sys
sys.path.insert(0, {tests!r})
from tiny import QUIET, data, mae
from pc3d.methods import pretrain
pretrain(mae(), data(), {output!r}, max_epochs=1, limit_train_batches=1, **QUIET)
"""


def faults(first: str) -> int:
    code = _FAULTS.format(first=first)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_memory_that_a_training_frees_is_used_again(tmp_path: Path) -> None:
    assert faults(_TRAIN.format(tests=str(Path(__file__).parent), output=str(tmp_path / "run"))) < 1000
