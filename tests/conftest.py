"""What all tests share."""

from __future__ import annotations

import pytest
import torch

from pc3d.ops import build_info

DEVICES = ["cpu"]
if torch.cuda.is_available() and build_info()["cuda"] == "loaded":
    DEVICES.append("cuda")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device that has compiled kernels here."""
    return torch.device(request.param)
