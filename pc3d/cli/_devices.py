"""Where a verb computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def open_device(name: str) -> torch.device:
    """The device of ``--device``, cpu or cuda, if this machine has it.

    Raises:
        ValueError: it has not, or there is none of that name.
    """
    import torch

    try:
        device = torch.device(name)
        reason = "" if device.type in ("cpu", "cuda") else "pc3d has no kernels for it"
        if not reason:  # else PyTorch may answer with a list of all that it knows
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the second: a PyTorch without CUDA
        reason = str(error).splitlines()[0]
    if reason:
        raise ValueError(
            f"device: {name!r} cannot be used here ({reason}): give cpu, or cuda on a machine for which pc3d doctor "
            "lists a GPU"
        )
    return device
