"""The operator library ``pc3d``: schemas, loading of the compiled kernels, and the fallback to plain PyTorch.

Schemas, fake kernels and gradients are declared in Python, so that an operator exists even where nothing was compiled.
The compiled libraries only add kernels for a device. A device without one runs the definition in
:mod:`pc3d.ops.reference`, after one warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch

LIBRARY = torch.library.Library("pc3d", "DEF")

SCHEMAS: list[str] = []
"""The declarations of all operators."""

_PACKAGE = Path(__file__).parent.parent
_LIBRARIES = {"cpu": "_C.abi3.so", "cuda": "_C_cuda.abi3.so"}
_warned: set[tuple[str, str]] = set()


class FallbackWarning(UserWarning):
    """An operator ran as plain PyTorch, because no compiled kernel serves the tensor's device."""


def _load_kernels() -> dict[str, str]:
    """Loads the compiled libraries; says for each device what happened."""
    state = {}
    for device, filename in _LIBRARIES.items():
        path = _PACKAGE / filename
        if not path.exists():
            state[device] = "not compiled"
        elif device == "cuda" and torch.version.cuda is None:
            state[device] = "compiled, not loaded: this torch is a CPU build"
        else:
            try:
                torch.ops.load_library(path)
                state[device] = "loaded"
            except OSError as error:
                state[device] = f"compiled, but does not load: {error}"
                warnings.warn(
                    f"pc3d: the {device} kernels do not load into torch {torch.__version__} ({error}); "
                    "reinstall pc3d here: pip install --force-reinstall --no-deps .",
                    FallbackWarning,
                    stacklevel=2,
                )
    return state


def define(schema: str, reference: Callable[..., Any]) -> None:
    """Declares an operator and registers its plain PyTorch definition for every device without a kernel."""
    SCHEMAS.append(schema)
    name = schema.split("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))

    @wraps(reference)
    def fallback(*args: Any) -> Any:
        device = next(a.device.type for a in args if isinstance(a, torch.Tensor))
        if (name, device) not in _warned:
            _warned.add((name, device))
            warnings.warn(
                f"pc3d: no compiled kernel of {name!r} for device {device!r} ({KERNELS.get(device, 'none exists')}); "
                "running its slow plain PyTorch definition. `pc3d doctor` says what is compiled; to compile, reinstall "
                "with a C++17 compiler (and nvcc for CUDA) at hand: pip install .",
                FallbackWarning,
                stacklevel=3,
            )
        with torch.autocast(device, enabled=False):  # a kernel chooses its types itself, so does its definition
            return reference(*args)

    LIBRARY.impl(name, fallback, "CompositeExplicitAutograd")


def fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers the decorated function as the shape rule of an operator."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        torch.library.register_fake(f"pc3d::{name}", function, lib=LIBRARY)
        return function

    return register


def gradient(name: str, setup_context: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Joins an operator with its gradient."""
    torch.library.register_autograd(f"pc3d::{name}", backward, setup_context=setup_context, lib=LIBRARY)


KERNELS = _load_kernels()


def build_info() -> dict[str, str]:
    """Says which compiled kernels exist and are loaded.

    Returns:
        For ``"cpu"`` and ``"cuda"`` one of ``"loaded"``, ``"not compiled"``, or what kept the kernels from loading.
    """
    return dict(KERNELS)


def kernel_file() -> Path | None:
    """The compiled kernels of the CPU, if they are loaded."""
    return _PACKAGE / _LIBRARIES["cpu"] if KERNELS["cpu"] == "loaded" else None
