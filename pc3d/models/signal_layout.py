"""Where the signals that a voxel encoder reads lie in its tensors, to transfer weights between choices of signals."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pc3d.models.point_transformer_v3 import PointTransformerV3
from pc3d.models.sparse_unet import SparseUNet
from pc3d.models.swin3d import Swin3D
from pc3d.nn.swin3d import SignalAttention

_STEM = "stem.conv.weight"
_TABLES = ("query_table", "key_table", "value_table")


class CommonPart(NamedTuple):
    """What two tensors of one name have in common.

    Attributes:
        dim: along which the signals lie.
        there: their indices in the tensor that is given.
        here: the same signals' in the one that takes.
        numbers: how many numbers these are.
    """

    dim: int
    there: Tensor
    here: Tensor
    numbers: int

    def copy(self, given: Tensor, own: Tensor) -> None:
        """Copy the common part of ``given`` into ``own``, in place."""
        there, here = self.there.to(given.device), self.here.to(own.device)
        own.index_copy_(self.dim, here, given.index_select(self.dim, there).to(own))


def common_signals(given: nn.Module, own: nn.Module) -> dict[str, CommonPart]:
    """The tensors that hold a part for each signal, with what two encoders of other signals have in common.

    These are the stem (columns: coordinates, colour, normal, place in the voxel) and the tables of Swin3D's attention
    (rows: position, colour, normal). Of other widths or windows, nothing is in common.

    Args:
        given: a :class:`SparseUNet`, :class:`Swin3D` or :class:`PointTransformerV3`.
        own: another one of the same class.

    Returns:
        Name of the tensor to its part; empty for other encoders, and for two of the same signals.
    """
    known = SparseUNet | Swin3D | PointTransformerV3
    if type(given) is not type(own) or not isinstance(given, known) or not isinstance(own, known):
        return {}
    if given.signals == own.signals:
        return {}
    theirs, ours = given.state_dict(), own.state_dict()
    layouts, targets = _layouts(given), _layouts(own)
    found = {}
    for name, (dim, parts) in layouts.items():
        if name not in targets:
            continue
        shapes = [[size for axis, size in enumerate(state[name].shape) if axis != dim] for state in (theirs, ours)]
        both = [signal for signal in parts if signal in targets[name][1]]
        if shapes[0] != shapes[1] or any(len(parts[key]) != len(targets[name][1][key]) for key in both):
            continue
        there, here = (torch.cat([side[signal] for signal in both]) for side in (parts, targets[name][1]))
        found[name] = CommonPart(dim, there, here, theirs[name].numel() // theirs[name].shape[dim] * len(there))
    return found


def _layouts(encoder: SparseUNet | Swin3D | PointTransformerV3) -> dict[str, tuple[int, dict[str, Tensor]]]:
    """Name of the tensor to the axis along which signals lie and the indices of each."""
    signals = encoder.signals.split("_")
    if isinstance(encoder, PointTransformerV3):
        read = signals if encoder.variant == "sonata" else signals[1:] or ["xyz"]
        return {"stem.weight": (1, _spans(read, [3] * len(read)))}
    layouts = {_STEM: (1, _spans([*signals[1:], "xyz"], [3] * len(signals)))}
    for prefix, module in encoder.named_modules():
        if isinstance(module, SignalAttention):
            rows = [sum(module.axis_rows[start : start + 3]) for start in range(0, len(module.axis_rows), 3)]
            layouts |= {f"{prefix}.{table}": (0, _spans(signals, rows)) for table in _TABLES}
    return layouts


def _spans(names: list[str], sizes: list[int]) -> dict[str, Tensor]:
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return {name: torch.arange(end - size, end) for name, size, end in zip(names, sizes, ends, strict=True)}
