"""Official Swin3D checkpoints: read, recognised, converted, and written back.

The files of the authors' repositories and of Pointcept hold the same tensors under the prefixes ``module.`` and
``backbone.``. They do not state the voxel size, how the first level is down-sampled, or which axis was up. Nor do they
state what the network reads, which is in Pointcept not what it is in the authors' code and here: there, positions are
from the middle of a voxel and, since version 1.6, colours from 0 to 1. What Pointcept has trained needs fine-tuning.
Files are read with ``weights_only=True``: they run no code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pc3d.models.pretrained import in_short, read_state
from pc3d.models.swin3d import Swin3D
from pc3d.nn.heads import SegmentationHead
from pc3d.nn.sparse import SIGNALS, Signals
from pc3d.nn.swin3d import BINS_PER_VOXEL, signal_rows

_PREFIXES = ("module.", "backbone.", "backbone_3d.")
_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state", "weights")  # model_state: CAGroup3D's trainer
_VARIANTS = {
    "downsample.norm.norm.": "down-samples by the maximum over the cell (knn_down=False)",
    "stem_layer.0.": "starts at the second level (stem_transformer=False)",
}
_STEM = "stem_layer.conv_layers.0.kernel"
_GROUPS = ("xyz", "rgb", "norm")


@dataclass
class SwinReport:
    """What was done with the tensors of a file.

    Attributes:
        path: the file.
        used: the file's tensors that were taken.
        adapted: those of them whose window size differs: the rows of the common range of their position tables were
            taken.
        mismatched: the file's tensors that have another shape in the network, with both shapes.
        dropped: the file's tensors that were not asked for, or that belong to another network around this one.
        fresh: tensors of the network that are not in the file.
    """

    path: Path
    used: list[str] = field(default_factory=list)
    adapted: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{self.path}: {len(self.used)} tensors used"]
        named = (
            ("of them fitted to another window size", self.adapted),
            ("of another shape", self.mismatched),
            ("dropped", self.dropped),
            ("of the network left as initialised", self.fresh),
        )
        parts += [f"{len(names)} {what} ({in_short(names)})" for what, names in named if names]
        return "; ".join(parts)


@dataclass(frozen=True)
class _Slot:
    """Where an official tensor lives in ours: the parameter, and which rows if it is one of several tables."""

    name: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None


def load_official_swin3d(
    path: str | os.PathLike[str], *, y_up: bool = False, **arguments: Any
) -> tuple[Swin3D, SegmentationHead | None, SwinReport]:
    """Load the network of an official checkpoint, in evaluation mode, on the CPU.

    Widths, depths, heads, windows, signals and decoder are inferred from the tensors. Export the network with
    ``save_encoder(model, folder)`` for ``load_encoder`` and the commands of pc3d.

    Args:
        path: the file.
        y_up: the weights were trained with y up, as the authors' weights with the signals XYZ_RGB were. They are
            converted to weights for z up. (Swapping y and z of every input is equivalent.)
        **arguments: of :class:`Swin3D`, those that a file does not determine: ``voxel_size`` (0.02 unless given) and
            ``down_strides`` (3, 2, 2, 2 unless given; S3DIS 2, 2, 2, 2), ``drop_path``, ``checkpointing``.

    Returns:
        The network, its classifier if the file has one, and what was done with the file's tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no Swin3D checkpoint, is damaged, or is of a variant that pc3d does not build.
    """
    state, outside = _read(Path(path))
    told = _architecture(state, Path(path))
    for name in arguments.keys() & told.keys():
        raise ValueError(f"{name} is read off the file ({told[name]}), leave it out; got {arguments[name]}")
    model = Swin3D(**told, **arguments)
    head = None
    if "classifier.3.weight" in state:
        head = SegmentationHead(model.feature_dim, len(state["classifier.3.weight"]))
    report = _fill(model, head, state, Path(path), y_up=y_up, wanted=lambda name: True)
    # A file need not hold a decoder, and may have been trained with other columns in the stem.
    optional = ("upsamples.", _STEM)
    problems = [text for text in report.mismatched if not text.startswith(_STEM)]
    problems += [f"missing {name}" for name in report.fresh if not name.startswith(optional)]
    if problems:
        raise ValueError(f"{path} does not fit together: {len(problems)} tensors differ: {in_short(problems)}")
    report.dropped += outside
    return model.eval(), None if head is None else head.eval(), report


def load_official_swin3d_encoder(
    model: Swin3D, path: str | os.PathLike[str], *, y_up: bool = False, load_stem: bool = True
) -> SwinReport:
    """Load an official checkpoint into the encoder of a network, as the published fine-tuning does.

    Decoder and classifier of the file are never loaded. Tensors with another shape in the network are not loaded, and
    are reported. Position tables of another window size are an exception (Swin3D's detectors have windows of 7 voxels
    on the first level): a bin is a quarter of a voxel in each, so the rows of the common range are loaded.

    Args:
        model: the network; changed in place.
        path: the file.
        y_up: as :func:`load_official_swin3d`.
        load_stem: take the first convolution too; published: not for ScanNet.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no Swin3D checkpoint, is damaged, is of a variant that pc3d does not build, or no
            attention block of it fits.
    """
    state, outside = _read(Path(path))
    skipped = ("upsamples.", "classifier.") if load_stem else ("upsamples.", "classifier.", "stem_layer.")
    report = _fill(model, None, state, Path(path), y_up=y_up, wanted=lambda name: not name.startswith(skipped))
    report.dropped += outside
    if not any(".attn.qkv." in name for name in report.used):
        raise ValueError(f"no attention block of {path} fits the network: {in_short(report.mismatched)}")
    return report


def to_official_swin3d_state(model: Swin3D, head: SegmentationHead | None = None) -> dict[str, Tensor]:
    """The state dict that the official code would have for these weights, without prefix.

    Args:
        model: any Swin3D.
        head: its classifier.
    """
    ours = _own_state(model, head)
    state = {}
    for name, slot in _slots(model, head).items():
        value = ours[slot.name]
        if name == _STEM:
            value = _flip_kernel(value)
        elif slot.rows is not None:
            value = value[slot.rows[0] : slot.rows[1]].reshape(slot.shape)
        state[name] = value.detach().clone()
    return state


def our_names(model: Swin3D, official: Iterable[str]) -> frozenset[str]:
    """Names in ``model.state_dict()`` of the tensors that hold those of some official names.

    Args:
        model: any Swin3D.
        official: as in :attr:`SwinReport.fresh`; those of a classifier have no place in the network.
    """
    slots = _slots(model, None)
    return frozenset(slots[name].name.removeprefix("model.") for name in official if name in slots)


def _read(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The network's tensors by their bare names, and the names of what lies around the network."""
    found = read_state(path, _WRAPPERS)
    prefix = ""
    while not any(name.startswith(f"{prefix}stem_layer.") for name in found):
        more = next((p for p in _PREFIXES if any(name.startswith(prefix + p) for name in found)), None)
        if more is None:
            raise ValueError(
                f"{path} is no checkpoint of Swin3D (no stem_layer); its tensors are {in_short(list(found))}"
            )
        prefix += more
    state = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
    for mark, what in _VARIANTS.items():
        if any(mark in name for name in state):
            raise ValueError(f"{path} is of a Swin3D that {what}; pc3d builds the released form alone")
    return state, [name for name in found if not name.startswith(prefix)]


def _architecture(state: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """Arguments of the network, as the shapes tell them."""
    channels: list[int] = []
    depths, heads, windows = [], [], []
    while (first := f"layers.{len(channels)}.blocks.0") and f"{first}.norm1.weight" in state:
        table = state.get(f"{first}.attn.query_xyz_table")
        if table is None or table.ndim != 4 or table.shape[1] % (2 * BINS_PER_VOXEL):
            shape = "missing" if table is None else tuple(table.shape)
            raise ValueError(f"{path} is damaged: {first}.attn.query_xyz_table is {shape}, expected (3, 8 W, H, d)")
        level = len(channels)
        channels.append(len(state[f"{first}.norm1.weight"]))
        heads.append(table.shape[2])
        windows.append(table.shape[1] // (2 * BINS_PER_VOXEL))
        depths.append(
            sum(re.fullmatch(rf"layers\.{level}\.blocks\.\d+\.norm1\.weight", name) is not None for name in state)
        )
    if not channels:
        raise ValueError(f"{path} has a stem_layer but no layers.0.blocks.0: it is no checkpoint of Swin3D")
    present = sum(f"layers.0.blocks.0.attn.query_{group}_table" in state for group in _GROUPS)
    return {
        "channels": channels,
        "depths": depths,
        "num_heads": heads,
        "window_sizes": windows,
        "signals": SIGNALS[present - 1],
        "decoder_attention": "upsamples.0.block.blocks.0.norm1.weight" in state,
    }


def _fill(
    model: Swin3D,
    head: SegmentationHead | None,
    state: dict[str, Tensor],
    path: Path,
    *,
    y_up: bool,
    wanted: Callable[[str], bool],
) -> SwinReport:
    slots, ours = _slots(model, head), _own_state(model, head)
    report, filled = SwinReport(path), set()
    unknown = [name for name in state if name not in slots and wanted(name)]
    unknown = [name for name in unknown if not re.fullmatch(r"layers\.\d+\.(blocks\.\d+|downsample)\..*", name)]
    if unknown:
        raise ValueError(f"{path} is no checkpoint of Swin3D: {len(unknown)} tensors are unknown: {in_short(unknown)}")
    with torch.no_grad():
        for name, value in state.items():
            slot = slots.get(name)
            if not wanted(name):
                report.dropped.append(name)
            elif slot is None:
                report.mismatched.append(f"{name} is {tuple(value.shape)}, the network has no such block")
            elif not _fits(name, value, slot):
                report.mismatched.append(f"{name} is {tuple(value.shape)}, expected {slot.shape}")
            else:
                target = ours[slot.name] if slot.rows is None else ours[slot.name][slot.rows[0] : slot.rows[1]]
                _copy(name, value, target.view(slot.shape), y_up)
                report.used.append(name)
                filled.add(name)
                if tuple(value.shape) != slot.shape:
                    report.adapted.append(name)
    report.fresh = [name for name in slots if name not in filled]
    return report


def _fits(name: str, value: Tensor, slot: _Slot) -> bool:
    if name.endswith("_xyz_table") and value.ndim == 4:
        return (value.shape[0], *value.shape[2:]) == (slot.shape[0], *slot.shape[2:])
    return tuple(value.shape) == slot.shape


def _copy(name: str, value: Tensor, target: Tensor, y_up: bool) -> None:
    if name == _STEM:
        kernel = _flip_kernel(value)
        target.copy_(_swap_kernel(kernel) if y_up else kernel)
        return
    if y_up and name.endswith(("_xyz_table", "_norm_table")):
        value = value[[0, 2, 1]]
    if value.shape == target.shape:
        target.copy_(value)
        return
    # Tables for other windows: zero difference is the middle row of both.
    spare = (target.shape[1] - value.shape[1]) // 2
    if spare > 0:
        target[:, spare : spare + value.shape[1]] = value
    else:
        target.copy_(value[:, -spare : value.shape[1] + spare])


def _flip_kernel(kernel: Tensor) -> Tensor:
    """From x fastest (MinkowskiEngine) to x slowest (ours), or back."""
    return kernel.reshape(3, 3, 3, *kernel.shape[1:]).permute(2, 1, 0, 3, 4).reshape(kernel.shape)


def _swap_kernel(kernel: Tensor) -> Tensor:
    """A stem kernel, x slowest, for input whose y and z are swapped: offsets, normals and place in the voxel."""
    turned = kernel.reshape(3, 3, 3, *kernel.shape[1:]).permute(0, 2, 1, 3, 4).reshape(kernel.shape)
    columns = list(range(kernel.shape[1]))
    for start in range(len(columns) - 3, 2 if len(columns) > 3 else -1, -3):  # all but the colour, which is first
        columns[start + 1], columns[start + 2] = start + 2, start + 1
    return turned[:, columns]


def _own_state(model: Swin3D, head: SegmentationHead | None) -> dict[str, Tensor]:
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    return state | ({} if head is None else {f"head.{name}": value for name, value in head.state_dict().items()})


def _slots(model: Swin3D, head: SegmentationHead | None) -> dict[str, _Slot]:
    """Official names of everything in a network, each with its place in ours."""
    ours = _own_state(model, head)
    slots = {}
    for mine, theirs in _modules(model, head):
        for name, value in ours.items():
            module, _, leaf = name.rpartition(".")
            if module == mine:
                slots[f"{theirs}.{'kernel' if value.ndim == 3 else leaf}"] = _Slot(name, tuple(value.shape))
    signals: Signals = model.signals
    for mine, theirs, window_size in _attentions(model):
        rows = signal_rows(window_size, signals)
        for table in ("query", "key", "value"):
            _, *width = ours[f"{mine}.{table}_table"].shape
            for axis in range(0, len(rows), 3):
                span = (sum(rows[:axis]), sum(rows[: axis + 3]))
                official = f"{theirs}.{table}_{_GROUPS[axis // 3]}_table"
                slots[official] = _Slot(f"{mine}.{table}_table", (3, rows[axis], *width), span)
    return slots


def _blocks(model: Swin3D) -> Iterator[tuple[str, str, int]]:
    """Our name, the official name and the window size of each block."""
    for i, level in enumerate(model.levels):
        for j in range(len(level)):  # type: ignore[arg-type]
            yield f"model.levels.{i}.{j}", f"layers.{i}.blocks.{j}", model.window_sizes[i]
    if model.decoder_attention:
        for u in range(len(model.upsamples)):
            yield f"model.upsamples.{u}.block", f"upsamples.{u}.block.blocks.0", model.window_sizes[-2 - u]


def _attentions(model: Swin3D) -> Iterator[tuple[str, str, int]]:
    for mine, theirs, window_size in _blocks(model):
        yield f"{mine}.attention", f"{theirs}.attn", window_size


def _modules(model: Swin3D, head: nn.Module | None) -> Iterator[tuple[str, str]]:
    """Our and the official names of all modules that hold tensors, but for the tables."""
    yield "model.stem.conv", "stem_layer.conv_layers.0"
    yield "model.stem.norm", "stem_layer.conv_layers.1.bn"
    layers = {"norm1": "norm1", "norm2": "norm2", "attention.qkv": "attn.qkv", "attention.projection": "attn.proj"}
    layers |= {"mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2"}
    for mine, theirs, _ in _blocks(model):
        yield from ((f"{mine}.{a}", f"{theirs}.{b}") for a, b in layers.items())
    for i in range(len(model.downsamples)):
        yield from ((f"model.downsamples.{i}.{a}", f"layers.{i}.downsample.{a}") for a in ("norm", "linear"))
    for u in range(len(model.upsamples)):
        for a, b in (("skip", "linear1"), ("coarse", "linear2")):
            yield from ((f"model.upsamples.{u}.{a}.{k}", f"upsamples.{u}.{b}.{k}") for k in (0, 1))
    if head is not None:
        yield from ((f"head.{k}", f"classifier.{k}") for k in (0, 1, 3))
