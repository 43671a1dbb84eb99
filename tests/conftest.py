"""What all tests share."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from pc3d.ops import build_info

DEVICES = ["cpu"]
if torch.cuda.is_available() and build_info()["cuda"] == "loaded":
    DEVICES.append("cuda")

# CUDA kernels compiled for a CPU (make test-emulated), or sanitized ones (make test-sanitized), replace the CPU's own.
for name in ("PC3D_EMULATED_CUDA", "PC3D_SANITIZED_CPU"):
    if os.environ.get(name):
        torch.ops.load_library(os.environ[name])

LONGEST = ("test_pages.py", "test_notebooks.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: at the end they would run on one core while the others wait."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device that has compiled kernels here."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def import_script() -> Callable[[str], ModuleType]:
    """Import a script by its path in the repository; what lies beside it can be imported as when it is run."""

    def load(path: str) -> ModuleType:
        file = Path(__file__).parents[1] / path
        if not file.is_file():
            pytest.skip(f"{path} is not part of an installed package")
        if str(file.parent) not in sys.path:
            sys.path.append(str(file.parent))
        return importlib.import_module(file.stem)

    return load
