"""Times the operators against what a user would pick instead, in one process, repeats interleaved.

python benchmarks/ops.py [--quick] [--only fps] [--threads 2] [--device cuda]

Prints a table and writes benchmarks/results/ops_DEVICE.csv and .md. benchmarks/README.md says how it measures.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from clouds import large, objects
from rivals import RIVALS, Call
from torch import Tensor

from pc3d import ops

SECONDS_A_ROW = {"cpu": 12.0, "cuda": 2.0}
PAUSE_SECONDS = 0.03
WARM_BELOW_MS = 100.0
MIN_REPEATS, MAX_REPEATS = 3, 25
OURS = "pc3d"


@dataclass
class Row:
    """An operator at a size: the arguments of the rivals' factories, and ours."""

    operator: str
    size: str
    make_inputs: Callable[[str], tuple]
    quick: bool = True
    milliseconds: dict[str, float] = field(default_factory=dict)
    megabytes: dict[str, float] = field(default_factory=dict)

    def best_rival(self) -> str | None:
        rivals = {name: ms for name, ms in self.milliseconds.items() if name != OURS}
        return min(rivals, key=rivals.__getitem__) if rivals else None


def typical_radius(points: Tensor, k: int) -> float:
    """A radius within which a point typically has ``k`` neighbours."""
    some = points[:, :: max(1, points.shape[1] // 1000)].contiguous()
    return float(ops.knn(points, k, query=some).squared_distance[..., -1].sqrt().median())


def ours(operator: str, *inputs: object) -> Call:
    if operator == "fps":
        points, num_samples = inputs
        return lambda: ops.farthest_point_sample(points, num_samples)
    if operator == "knn":
        points, queries, k = inputs
        query = None if queries is points else queries
        return lambda: ops.knn(points, k, query=query)
    if operator == "radius":
        points, queries, radius, max_neighbors = inputs
        query = None if queries is points else queries
        return lambda: ops.ball_query(points, radius, max_neighbors, query=query)
    x, y, backward = inputs

    def chamfer() -> Tensor:
        loss = ops.chamfer_distance(x.detach().requires_grad_(backward), y)
        if backward:
            loss.backward()
        return loss

    return chamfer


def rows() -> Iterator[Row]:
    def fps(make: Callable[[], Tensor], num_samples: int) -> Callable[[str], tuple]:
        return lambda device: (make().to(device), num_samples)

    def neighbors(make: Callable[[], Tensor], k: int, num_queries: int | None = None) -> Callable[[str], tuple]:
        def inputs(device: str) -> tuple:
            points = make().to(device)
            return points, points if num_queries is None else points[:, :num_queries].contiguous(), k

        return inputs

    def radius(make: Callable[[], Tensor], num_queries: int | None = None) -> Callable[[str], tuple]:
        def inputs(device: str) -> tuple:
            points, queries, _ = neighbors(make, 16, num_queries)(device)
            return points, queries, typical_radius(points, 16), 32

        return inputs

    def chamfer(num_clouds: int, num_points: int, backward: bool) -> Callable[[str], tuple]:
        def inputs(device: str) -> tuple:
            if num_points <= 32:  # the patches of a masked autoencoder
                patches = objects(num_clouds // 32, 1024).reshape(num_clouds, num_points, 3)
            else:
                patches = large("scene", num_clouds * num_points).reshape(num_clouds, num_points, 3)
            noise = torch.randn(patches.shape, generator=torch.Generator().manual_seed(0))
            return (patches + 0.02 * noise).to(device), patches.to(device), backward

        return inputs

    def batch() -> Tensor:
        return objects(128, 1024)

    yield Row("fps", "128 x 1,024 -> 64, objects", fps(batch, 64))
    for n, m in ((8192, 512), (10_000, 1024), (100_000, 1024), (100_000, 10_000), (1_000_000, 10_000)):
        for kind in ("scene", "noise"):
            yield Row(
                "fps", f"{n:,} -> {m:,}, {kind}", fps(lambda n=n, kind=kind: large(kind, n)[None], m), n <= 10_000
            )
    yield Row("knn", "128 x 64 in 1,024, k 32, objects", neighbors(batch, 32, 64))
    yield Row("radius", "128 x 64 in 1,024, objects", radius(batch, 64))
    for operator, k in (("knn", ", k 16"), ("radius", "")):
        for n in (10_000, 100_000, 1_000_000):
            for kind in ("scene", "noise"):

                def make(n: int = n, kind: str = kind) -> Tensor:
                    return large(kind, n)[None]

                inputs = neighbors(make, 16) if operator == "knn" else radius(make)
                yield Row(operator, f"{n:,} self{k}, {kind}", inputs, n <= 10_000)
    for backward in (False, True):
        suffix = ", forward + backward" if backward else ", forward"
        yield Row("chamfer", "4,864 x 32 to 32, objects" + suffix, chamfer(4864, 32, backward))
        yield Row("chamfer", "1 x 10,000 to 10,000, scene" + suffix, chamfer(1, 10_000, backward))


def milliseconds(call: Call, device: str) -> float:
    if device == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)
    begin_s = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - begin_s)


def _status(field_name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field_name)).split()[1]) / 1024


def extra_megabytes(call: Call, device: str) -> float:
    """Peak memory of a call beyond what was in use before it, its result included."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    # Give back what malloc keeps, or the call would reuse it unseen; then let the kernel forget the old peak.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    return max(0.0, _status("VmHWM") - before)


def measure(row: Row, device: str, available: dict[str, str | None]) -> None:
    inputs = row.make_inputs(device)
    calls = {OURS: ours(row.operator, *inputs)}
    for rival in RIVALS[row.operator]:
        if device in rival.devices and available[rival.name] is None:
            call = rival.make(*inputs)
            if call is not None:
                calls[rival.name] = call
    first = {}
    for name, call in calls.items():
        milliseconds(call, device)  # loads and compiles
        row.megabytes[name] = extra_megabytes(call, device)
        first[name] = milliseconds(call, device)
    repeats = int(1e3 * SECONDS_A_ROW[device] / sum(first.values()))
    repeats = max(MIN_REPEATS, min(MAX_REPEATS, repeats))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            # The idle threads of the last contender's OpenMP spin for a while, on the cores that the next one needs.
            if device == "cpu":
                time.sleep(PAUSE_SECONDS)
            if first[name] < WARM_BELOW_MS:
                milliseconds(call, device)  # wakes cores and threads: they slept too, and training would not let them
            times[name].append(milliseconds(call, device))
    row.milliseconds = {name: statistics.median(values) for name, values in times.items()}


def machine(device: str, threads: int) -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":")[1].strip() if names else model
    software = f"torch {torch.__version__}, Python {platform.python_version()}"
    vectors = torch.backends.cpu.get_cpu_capability()
    text = f"{model}, {vectors}, {os.cpu_count()} cores, {threads} threads, {software}"
    return f"{torch.cuda.get_device_name()}, {text}" if device == "cuda" else text


def markdown(done: list[Row], device: str) -> str:
    names = [OURS, *dict.fromkeys(r.name for rivals in RIVALS.values() for r in rivals)]
    names = [n for n in names if any(n in row.milliseconds for row in done)]
    head = ["operator", "size", *(f"{n} ms" for n in names), "best rival / pc3d", "pc3d MB", "best rival MB"]
    lines = ["| " + " | ".join(head) + " |", "| --- | --- |" + " ---: |" * (len(head) - 2)]
    for row in done:
        best = row.best_rival()
        cells = [row.operator, row.size]
        cells += [f"{row.milliseconds[n]:,.2f}" if n in row.milliseconds else "" for n in names]
        cells += [f"{row.milliseconds[best] / row.milliseconds[OURS]:.1f}x ({best})" if best else ""]
        cells += [f"{row.megabytes[OURS]:.1f}", f"{row.megabytes[best]:.1f}" if best else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(done: list[Row], notes: list[str], device: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"ops_{device}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["operator", "size", "implementation", "milliseconds", "extra_megabytes", "times_pc3d"])
        for row in done:
            for name, ms in row.milliseconds.items():
                ratio = ms / row.milliseconds[OURS]
                writer.writerow(
                    [row.operator, row.size, name, f"{ms:.3f}", f"{row.megabytes[name]:.1f}", f"{ratio:.2f}"]
                )
    text = "\n".join(["# Operators, timed", "", *notes, "", markdown(done, device), ""])
    (folder / f"ops_{device}.md").write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    parser.add_argument("--only", choices=sorted(RIVALS), nargs="+", default=list(RIVALS), help="operators")
    parser.add_argument("--match", default="", help="only rows whose size holds this text")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads (default: all cores)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device here")
    if ops.build_info()[args.device] != "loaded":
        parser.error(f"the {args.device} kernels are {ops.build_info()[args.device]}: pip install .")
    torch.set_num_threads(args.threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))  # before the rivals load their OpenMP
    available = {r.name: r.missing() for rivals in RIVALS.values() for r in rivals if args.device in r.devices}
    notes = [machine(args.device, args.threads), ""]
    notes += [f"- {name}: {reason}" for name, reason in available.items() if reason]
    print("\n".join(notes), flush=True)
    done: list[Row] = []
    for row in rows():
        if row.operator in args.only and (row.quick or not args.quick) and args.match in row.size:
            print(f"{row.operator} {row.size} ...", file=sys.stderr, flush=True)
            measure(row, args.device, available)
            done.append(row)
            write(done, notes, args.device, args.output)  # after every row: an interrupted run keeps what it has
    print(markdown(done, args.device))


if __name__ == "__main__":
    main()
