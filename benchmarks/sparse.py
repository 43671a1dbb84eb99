"""Times voxels and sparse convolution against what a user would pick instead, on scanned rooms.

python benchmarks/sparse.py [--rooms FOLDER] [--only conv] [--threads 2] [--clock cpu] [--device cuda]

Rooms stand side by side until they have enough points; the embedded set serves the smaller sizes, ``--rooms`` names a
folder with the large one. Before a row is timed, all contenders must agree: on the voxels exactly, on convolutions and
their gradients to float32's rounding. Prints a table and writes benchmarks/results/sparse_DEVICE.csv and .md.
benchmarks/README.md says how it measures; ``--clock cpu --threads 1`` counts processor time instead, which a machine
that is busy with other programs does not change much. ``--device cuda`` compares with what plain PyTorch does: unique
rows, and a gather, a matrix product and a sum by index for each tap; finding the taps is not in its time.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ops import MAX_REPEATS, MIN_REPEATS, PAUSE_SECONDS, WARM_BELOW_MS, extra_megabytes, machine
from ops import milliseconds as milliseconds_on
from rivals import Call
from torch import Tensor

from pc3d import ops
from pc3d.data import Rooms

OURS = "pc3d"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # the second: of all threads of this process
SECONDS_A_ROW = 6.0
VOXEL_SIZE = 0.05  # metres
SIZES = (20_000, 100_000, 400_000)
CHANNELS = ((9, 48), (32, 32), (64, 64), (128, 128))
TOLERANCE = 2e-4  # of float32 sums of some thousand terms, relative to the largest


@dataclass
class Row:
    """An operation at a size: a call for each contender."""

    operation: str
    size: str
    calls: dict[str, Call]
    milliseconds: dict[str, float] = field(default_factory=dict)
    megabytes: dict[str, float] = field(default_factory=dict)

    def best_rival(self) -> str | None:
        rivals = {name: ms for name, ms in self.milliseconds.items() if name != OURS}
        return min(rivals, key=rivals.__getitem__) if rivals else None


def side_by_side(rooms: list[Tensor], num_points: int) -> Tensor | None:
    """(num_points, 3): rooms in a row, half a metre apart; None where there are too few."""
    parts, edge, have = [], 0.0, 0
    for xyz in rooms:
        low, high = xyz.amin(0), xyz.amax(0)
        parts.append(xyz + torch.tensor([edge - float(low[0]), 0.0, 0.0]))
        edge += float(high[0] - low[0]) + 0.5
        have += xyz.shape[0]
        if have >= num_points:
            return torch.cat(parts)[:num_points].contiguous()
    return None


def agree(name: str, own: Tensor, other: Tensor) -> None:
    """Stops the benchmark where a contender computes something else."""
    scale = float(own.abs().max())
    error = float((own - other).abs().max()) / scale
    if not error < TOLERANCE:
        raise SystemExit(f"{name}: pc3d and its rival differ by {error:.2e} of the largest value")


# Voxels.


def _open3d_downsample(xyz: Tensor) -> Call:
    from open3d import core, t

    cloud = t.geometry.PointCloud(core.Tensor.from_numpy(xyz.numpy()))
    return lambda: cloud.voxel_down_sample(VOXEL_SIZE)


def _open3d_trace(xyz: Tensor) -> Call:
    import open3d

    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(xyz.double().numpy()))
    low, high = cloud.get_min_bound() - VOXEL_SIZE, cloud.get_max_bound() + VOXEL_SIZE
    return lambda: cloud.voxel_down_sample_and_trace(VOXEL_SIZE, low, high)


def _numpy_rows(xyz: Tensor) -> Callable[[], tuple[Any, ...]]:
    array = xyz.numpy()

    def unique() -> tuple[Any, ...]:
        cells = np.floor(array / np.float32(VOXEL_SIZE)).astype(np.int32)
        return np.unique(cells, axis=0, return_index=True, return_inverse=True, return_counts=True)

    return unique


def _numpy_keys(xyz: Tensor) -> Callable[[], tuple[Any, ...]]:
    array = xyz.numpy()

    def unique() -> tuple[Any, ...]:
        cells = np.floor(array / np.float32(VOXEL_SIZE)).astype(np.int64)
        low = cells.min(0)
        size = cells.max(0) - low + 1
        keys = ((cells[:, 0] - low[0]) * size[1] + cells[:, 1] - low[1]) * size[2] + cells[:, 2] - low[2]
        return np.unique(keys, return_index=True, return_inverse=True, return_counts=True)

    return unique


def _torch_unique(xyz: Tensor) -> Call:
    def unique() -> object:
        return (xyz / VOXEL_SIZE).floor().int().unique(dim=0, return_inverse=True, return_counts=True)

    return unique


def voxelize_row(xyz: Tensor, available: set[str]) -> Row:
    voxels = ops.voxelize(xyz, VOXEL_SIZE)
    coords, first, inverse, count = _numpy_rows(xyz.cpu())()
    pairs = ((voxels.coords, coords), (voxels.first, first), (voxels.inverse, inverse), (voxels.count, count))
    for own, other in pairs:
        if not np.array_equal(own.cpu().numpy(), other.reshape(own.shape)):
            raise SystemExit("voxelize: pc3d and numpy.unique differ")
    calls: dict[str, Call] = {OURS: lambda: ops.voxelize(xyz, VOXEL_SIZE), "torch.unique": _torch_unique(xyz)}
    if xyz.is_cpu:
        calls |= {"numpy rows": _numpy_rows(xyz), "numpy keys": _numpy_keys(xyz)}
    if xyz.is_cpu and "open3d" in available:
        calls |= {"open3d": _open3d_downsample(xyz), "open3d trace": _open3d_trace(xyz)}
    return Row("voxelize", f"{xyz.shape[0]:,} points, {voxels.coords.shape[0]:,} voxels", calls)


# Sparse convolution.


class Spconv:
    """A sub-manifold convolution of spconv, on the CPU."""

    def __init__(self, coords: Tensor, in_channels: int, out_channels: int, weight: Tensor) -> None:
        import spconv.pytorch as spconv

        self.spconv, self.size = spconv, coords.shape[0]
        shifted = coords - coords.amin(0)
        self.indices = torch.cat([torch.zeros(self.size, 1, dtype=torch.int32), shifted], 1).contiguous()
        self.shape = (shifted.amax(0) + 1).tolist()
        self.layer = spconv.SubMConv3d(
            in_channels, out_channels, 3, bias=False, indice_key="all", algo=spconv.ConvAlgo.Native
        )
        # Taps (x, y, z), C_in, C_out -> C_out, taps, C_in.
        cube = weight.detach().reshape(3, 3, 3, in_channels, out_channels)
        self.layer.weight = torch.nn.Parameter(cube.permute(4, 0, 1, 2, 3).contiguous())
        self.indice_dict: dict[str, Any] = {}

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    def __call__(self, features: Tensor, reuse_map: bool = True) -> Tensor:
        x = self.spconv.SparseConvTensor(features, self.indices, self.shape, 1)
        if reuse_map:
            x.indice_dict = self.indice_dict
        return self.layer(x).features

    def weight_gradient(self) -> Tensor:
        """(27, C_in, C_out)."""
        grad = self.layer.weight.grad
        return grad.permute(1, 2, 3, 4, 0).reshape(27, grad.shape[4], grad.shape[0])


class Gathered:
    """A sub-manifold convolution in plain PyTorch: for each tap a gather, a matrix product and a sum by index."""

    def __init__(self, neighbors: Tensor, weight: Tensor) -> None:
        self.weight = weight.detach().clone().requires_grad_()
        self.rows = [(tap >= 0).nonzero().flatten() for tap in neighbors.T]
        self.sources = [tap[rows] for tap, rows in zip(neighbors.T, self.rows, strict=True)]

    def __call__(self, features: Tensor) -> Tensor:
        out = features.new_zeros(len(features), self.weight.shape[2])
        for rows, sources, weight in zip(self.rows, self.sources, self.weight, strict=True):
            out = out.index_add(0, rows, features[sources] @ weight)
        return out

    def weight_gradient(self) -> Tensor:
        """(27, C_in, C_out)."""
        assert self.weight.grad is not None
        return self.weight.grad


def backward(features: Tensor, weight: Tensor, grad: Tensor, convolve: Callable[[Tensor], Tensor]) -> Call:
    def call() -> Tensor:
        features.grad = weight.grad = None
        convolve(features).backward(grad)
        return features.grad

    return call


def conv_rows(xyz: Tensor, available: set[str]) -> Iterator[Row]:
    coords = ops.voxelize(xyz, VOXEL_SIZE).coords
    table = ops.kernel_map(coords)
    reads = float((table.neighbors >= 0).sum(1, dtype=torch.float32).mean())
    size = f"{coords.shape[0]:,} voxels, {reads:.1f} neighbours"
    random = torch.Generator(xyz.device).manual_seed(0)
    rival_name = "spconv" if xyz.is_cpu else "torch"
    calls: dict[str, Call] = {OURS: lambda: ops.kernel_map(coords)}
    if xyz.is_cpu and "spconv" in available:
        tiny = Spconv(coords, 1, 1, torch.ones(27, 1, 1))
        ones = torch.ones(coords.shape[0], 1)
        calls["spconv"] = lambda: tiny(ones, reuse_map=False)  # with a convolution of 1 channel: it has no call without
    yield Row("kernel map", size, calls)
    for c_in, c_out in CHANNELS:
        features = torch.randn(coords.shape[0], c_in, generator=random, device=xyz.device, requires_grad=True)
        weight = torch.randn(27, c_in, c_out, generator=random, device=xyz.device) / (27 * c_in) ** 0.5
        weight.requires_grad_()
        grad = torch.randn(coords.shape[0], c_out, generator=random, device=xyz.device)

        def own(features: Tensor, weight: Tensor = weight) -> Tensor:
            return ops.sparse_conv3d(features, weight, table)

        forward_calls: dict[str, Call] = {OURS: lambda f=features, own=own: own(f.detach())}
        both_calls: dict[str, Call] = {OURS: backward(features, weight, grad, own)}
        if rival_name in available:
            rival = Spconv(coords, c_in, c_out, weight) if xyz.is_cpu else Gathered(table.neighbors, weight)
            agree("sparse conv", own(features).detach(), rival(features).detach())
            both_calls[OURS]()
            ours = features.grad.clone(), weight.grad.clone()
            both_calls[rival_name] = backward(features, rival.weight, grad, rival)
            both_calls[rival_name]()
            agree("gradient of the features", ours[0], features.grad)
            agree("gradient of the weight", ours[1], rival.weight_gradient())
            forward_calls[rival_name] = lambda f=features, rival=rival: inference(rival, f)
        forward_calls[OURS] = lambda f=features, own=own: inference(own, f)
        yield Row("conv forward", f"{size}, {c_in} -> {c_out}", forward_calls)
        yield Row("conv forward + backward", f"{size}, {c_in} -> {c_out}", both_calls)


def inference(layer: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(features)


# Measuring and writing.


def measure(row: Row, clock: Callable[[], float], device: str) -> None:
    def milliseconds(call: Call) -> float:
        if device == "cuda":
            return milliseconds_on(call, device)
        begin = clock()
        call()
        return 1e3 * (clock() - begin)

    first = {}
    for name, call in row.calls.items():
        milliseconds(call)
        row.megabytes[name] = extra_megabytes(call, device)
        first[name] = milliseconds(call)
    repeats = max(MIN_REPEATS, min(MAX_REPEATS, int(1e3 * SECONDS_A_ROW / sum(first.values()))))
    times: dict[str, list[float]] = {name: [] for name in row.calls}
    for _ in range(repeats):
        for name, call in row.calls.items():
            time.sleep(PAUSE_SECONDS)
            if first[name] < WARM_BELOW_MS:
                milliseconds(call)
            times[name].append(milliseconds(call))
    row.milliseconds = {name: statistics.median(values) for name, values in times.items()}


def markdown(done: list[Row]) -> str:
    lines = ["| operation | size | pc3d ms | rivals, ms | best rival / pc3d | pc3d MB | best rival MB |"]
    lines.append("| --- | --- | ---: | --- | ---: | ---: | ---: |")
    for row in done:
        rivals = ", ".join(f"{n} {ms:,.1f}" for n, ms in row.milliseconds.items() if n != OURS)
        best = row.best_rival()
        cells = [row.operation, row.size, f"{row.milliseconds[OURS]:,.2f}", rivals]
        cells += [f"{row.milliseconds[best] / row.milliseconds[OURS]:.1f}x ({best})" if best else ""]
        cells += [f"{row.megabytes[OURS]:.1f}", f"{row.megabytes[best]:.1f}" if best else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(done: list[Row], notes: list[str], folder: Path, device: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"sparse_{device}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["operation", "size", "implementation", "milliseconds", "extra_megabytes", "times_pc3d"])
        for row in done:
            for name, ms in row.milliseconds.items():
                ratio = ms / row.milliseconds[OURS]
                cells = [row.operation, row.size, name, f"{ms:.3f}", f"{row.megabytes[name]:.1f}", f"{ratio:.2f}"]
                writer.writerow(cells)
    text = "\n".join(["# Voxels and sparse convolution, timed", "", *notes, "", markdown(done), ""])
    (folder / f"sparse_{device}.md").write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", type=Path, help="folder with the large set of rooms (default: the embedded set)")
    parser.add_argument("--only", choices=("voxelize", "conv"), help="one kind of operation")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads (default: all cores)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="what to count: wall or processor time")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="points")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))  # before the rivals load their OpenMP
    on_cpu = args.device == "cpu"
    notes = [machine(args.device, args.threads) + (f"; {args.clock} time" if on_cpu else ""), ""]
    available = {"torch"}
    rivals = (("open3d", "pip install open3d-cpu"), ("spconv.pytorch", "pip install spconv-cu126 ninja"))
    for name, install in rivals if on_cpu else ():
        try:
            importlib.import_module(name)
            available.add(name.split(".")[0])
        except (ImportError, OSError) as error:
            notes.append(f"- {name}: not installed ({install}): {error}")
    data = Rooms("train", root=args.rooms)
    rooms = [data[i].xyz for i in range(len(data))]
    done: list[Row] = []
    for num_points in args.sizes:
        xyz = side_by_side(rooms, num_points)
        if xyz is None:
            notes.append(f"- {num_points:,} points: more than the rooms hold; --rooms names a folder with more")
            continue
        xyz = xyz.to(args.device)
        rows = [] if args.only == "conv" else [voxelize_row(xyz, available)]
        for row in [*rows, *([] if args.only == "voxelize" else conv_rows(xyz, available))]:
            print(f"{row.operation}, {row.size} ...", file=sys.stderr, flush=True)
            measure(row, CLOCKS[args.clock], args.device)
            done.append(row)
            write(done, notes, args.output, args.device)  # after every row: an interrupted run keeps what it has
    print("\n".join([*notes, "", markdown(done)]))


if __name__ == "__main__":
    main()
