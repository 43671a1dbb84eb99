"""Times voxels and sparse convolution against what a user would pick instead, on scanned rooms.

python benchmarks/sparse.py [--rooms FOLDER] [--only conv] [--threads 2] [--clock cpu] [--device cuda]

Rooms stand side by side until they have enough points; the embedded set serves the smaller sizes, ``--rooms`` names a
folder with the large one. Before a row is timed, all contenders must agree: on the voxels exactly, on convolutions and
their gradients to float32's rounding. Prints a table and writes benchmarks/results/sparse_DEVICE.csv and .md.
benchmarks/README.md says how it measures; ``--clock cpu --threads 1`` counts processor time instead, which a machine
that is busy with other programs does not change much. ``--device cuda`` adds half precision, and compares with spconv's
fastest algorithm, with pc3d's layers on spconv's kernels ("backend") and with plain PyTorch: unique rows, and
a gather, a matrix product and a sum by index for each tap; finding the taps is not in its time. A rival that fails or
computes something else there is left out of the row, and a note says why.
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
from pc3d.nn import spconv_conv3d

OURS = "pc3d"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # the second: of all threads of this process
SECONDS_A_ROW = 6.0
VOXEL_SIZE = 0.05  # metres
SIZES = (20_000, 100_000, 400_000)
CHANNELS = ((9, 48), (32, 32), (64, 64), (128, 128))
# Of sums of some thousand terms, relative to the largest; in half precision plain PyTorch rounds after every tap.
TOLERANCE = {torch.float32: 2e-4, torch.float16: 2e-2}


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


class Disagreement(RuntimeError):
    """A contender computes something else."""


def agree(name: str, own: Tensor, other: Tensor) -> None:
    scale = float(own.abs().max())
    error = float((own.float() - other.float()).abs().max()) / scale
    if not error < TOLERANCE[own.dtype]:
        raise Disagreement(f"{name}: pc3d and its rival differ by {error:.2e} of the largest value")


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


class Convolution:
    """A sub-manifold convolution with a weight of its own, ``(27, C_in, C_out)``."""

    def __init__(self, weight: Tensor, convolve: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.weight = weight.detach().clone().requires_grad_()
        self.convolve = convolve

    def __call__(self, features: Tensor) -> Tensor:
        return self.convolve(features, self.weight)

    def weight_gradient(self) -> Tensor:
        assert self.weight.grad is not None
        return self.weight.grad


class Spconv:
    """A sub-manifold convolution of spconv: its one algorithm on a CPU, its fastest on a GPU."""

    def __init__(self, coords: Tensor, weight: Tensor) -> None:
        import spconv.pytorch as spconv

        self.spconv, self.size = spconv, coords.shape[0]
        shifted = coords - coords.amin(0)
        self.indices = torch.cat([shifted.new_zeros(self.size, 1), shifted], 1).int().contiguous()
        self.shape = (shifted.amax(0) + 1).tolist()
        algorithm = spconv.ConvAlgo.Native if coords.is_cpu else spconv.ConvAlgo.MaskImplicitGemm
        _, c_in, c_out = weight.shape
        self.layer = spconv.SubMConv3d(c_in, c_out, 3, bias=False, indice_key="all", algo=algorithm)
        # Taps (x, y, z), C_in, C_out -> C_out, taps, C_in.
        cube = weight.detach().reshape(3, 3, 3, c_in, c_out)
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


def gathered(neighbors: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """In plain PyTorch: for each tap a gather, a matrix product and a sum by index."""
    rows = [(tap >= 0).nonzero().flatten() for tap in neighbors.T]
    sources = [tap[some] for tap, some in zip(neighbors.T, rows, strict=True)]

    def convolve(features: Tensor, weight: Tensor) -> Tensor:
        out = features.new_zeros(len(features), weight.shape[2])
        for some, source, of_tap in zip(rows, sources, weight, strict=True):
            out = out.index_add(0, some, features[source] @ of_tap)
        return out

    return convolve


Contender = Convolution | Spconv


def rivals(
    coords: Tensor, table: ops.KernelMap, weight: Tensor, available: set[str]
) -> dict[str, Callable[[], Contender]]:
    """What makes each rival."""
    makers: dict[str, Callable[[], Contender]] = {}
    if "spconv" in available:
        makers["spconv"] = lambda: Spconv(coords, weight)
    if not coords.is_cpu:
        makers["torch"] = lambda: Convolution(weight, gathered(table.neighbors))
        if "spconv" in available:
            makers["backend"] = lambda: Convolution(weight, lambda f, w: spconv_conv3d(f, w, table))
    return makers


def backward(contender: Contender, features: Tensor, grad: Tensor) -> Call:
    def call() -> Tensor:
        features.grad = contender.weight.grad = None
        contender(features).backward(grad)
        return features.grad

    return call


def inference(contender: Contender, features: Tensor) -> Call:
    def call() -> Tensor:
        with torch.no_grad():
            return contender(features)

    return call


def results(contender: Contender, features: Tensor, grad: Tensor) -> dict[str, Tensor]:
    out = inference(contender, features)()
    for_features = backward(contender, features, grad)().clone()
    weight_gradient = contender.weight_gradient()
    return {"out": out, "gradient of the features": for_features, "gradient of the weight": weight_gradient}


def conv_rows(xyz: Tensor, available: set[str], notes: list[str]) -> Iterator[Row]:
    coords = ops.voxelize(xyz, VOXEL_SIZE).coords
    table = ops.kernel_map(coords)
    reads = float((table.neighbors >= 0).sum(1, dtype=torch.float32).mean())
    size = f"{coords.shape[0]:,} voxels, {reads:.1f} neighbours"
    calls: dict[str, Call] = {OURS: lambda: ops.kernel_map(coords)}
    if "spconv" in available:  # with a convolution of 1 channel (8 on a GPU): it has no call without
        channels = 1 if xyz.is_cpu else 8
        ones = torch.ones(coords.shape[0], channels, device=xyz.device)
        tiny = Spconv(coords, torch.ones(27, channels, channels, device=xyz.device))
        calls["spconv"] = lambda: tiny(ones, reuse_map=False)
    yield Row("kernel map", size, calls)
    random = torch.Generator(xyz.device).manual_seed(0)
    for dtype in (torch.float32,) if xyz.is_cpu else (torch.float32, torch.float16):
        for c_in, c_out in CHANNELS:
            features = torch.randn(coords.shape[0], c_in, generator=random, device=xyz.device).to(dtype)
            features.requires_grad_()
            weight = torch.randn(27, c_in, c_out, generator=random, device=xyz.device) / (27 * c_in) ** 0.5
            grad = torch.randn(coords.shape[0], c_out, generator=random, device=xyz.device).to(dtype)
            field = contenders(coords, table, weight.to(dtype), features, grad, available, notes)
            what = f"{size}, {c_in} -> {c_out}" + ("" if dtype == torch.float32 else ", half")
            yield Row("conv forward", what, {name: inference(c, features) for name, c in field.items()})
            yield Row("conv forward + backward", what, {n: backward(c, features, grad) for n, c in field.items()})


def contenders(
    coords: Tensor,
    table: ops.KernelMap,
    weight: Tensor,
    features: Tensor,
    grad: Tensor,
    available: set[str],
    notes: list[str],
) -> dict[str, Contender]:
    """pc3d and those who compute the same."""
    field: dict[str, Contender] = {OURS: Convolution(weight, lambda f, w: ops.sparse_conv3d(f, w, table))}
    right = results(field[OURS], features, grad)
    for name, make in rivals(coords, table, weight, available).items():
        try:
            rival = make()
            for what, found in results(rival, features, grad).items():
                agree(what, right[what], found)
        except (RuntimeError, AssertionError) as error:
            if coords.is_cpu:
                raise
            shape = " -> ".join(map(str, weight.shape[1:]))
            notes.append(f"- {name}, {len(coords):,} voxels, {shape}, {weight.dtype}: {str(error).splitlines()[0]}")
        else:
            field[name] = rival
    return field


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
            if device == "cpu":
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
    available: set[str] = set()
    wanted = (("open3d", "pip install open3d-cpu"), ("spconv.pytorch", "pip install spconv-cu126 ninja"))
    for name, install in wanted if on_cpu else wanted[1:]:
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
        for row in [*rows, *([] if args.only == "voxelize" else conv_rows(xyz, available, notes))]:
            print(f"{row.operation}, {row.size} ...", file=sys.stderr, flush=True)
            measure(row, CLOCKS[args.clock], args.device)
            done.append(row)
            write(done, notes, args.output, args.device)  # after every row: an interrupted run keeps what it has
    print("\n".join([*notes, "", markdown(done)]))


if __name__ == "__main__":
    main()
