"""Points of the packed clouds; tests of dense clouds have a fixture of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for packed_clouds.py


@pytest.fixture
def xyz() -> torch.Tensor:
    return torch.randn(90, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def queries() -> torch.Tensor:
    return torch.randn(30, 3, generator=torch.Generator().manual_seed(1))
