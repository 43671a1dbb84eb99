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


@pytest.fixture(scope="session")
def masked_scenes() -> str:
    """A configuration of masked scene reconstruction that trains in a moment."""
    return """
seed: 0
model:
  class_path: pc3d.methods.MaskedScene
  init_args:
    encoder:
      class_path: pc3d.models.SparseUNet
      init_args: {channels: [8, 12], blocks: [1, 1], voxel_size: 0.1, signals: xyz_rgb_normal}
    cell_size: 0.9
    mask_ratio: 0.5
data:
  train: {class_path: pc3d.data.Rooms}
  train_transforms:
    - {class_path: pc3d.data.CenterShift}
    - {class_path: pc3d.data.GridSample, init_args: {voxel_size: 0.1}}
  batch_size: 4
trainer: {max_epochs: 1, limit_train_batches: 1, accelerator: cpu, enable_progress_bar: false}
"""
