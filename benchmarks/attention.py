"""Times window attention on real rooms against dense and pair-by-pair PyTorch: forward and backward, time and memory.

python benchmarks/attention.py --rooms FOLDER [--quick] [--threads 1] [--clock wall|cpu] [--device cuda]

FOLDER holds rooms in the large form (coord_mm, color, normal; ``pc3d.data.Rooms``). Rooms of 2 cm voxels are packed as
clouds of one batch until the wanted number of voxels is reached, the last cut short. Every contender runs in a process
of its own (peak memory, what malloc keeps) on equal input, its result and gradients checked against the first.
Prints a table and writes benchmarks/results/attention_DEVICE.csv and .md.

What it costs at least, for N voxels of C channels, M pairs, H heads, D signals, K table rows within a window's reach:
forward 2 M C + 2 M C + 6 N C K multiplications and additions, 2 M H D look-ups and M H D additions to histograms;
backward twice to three times that; memory 4 N C floats in and out, as many gradients, and none that grows with M.
The dense computation needs 2 D M' C gathered numbers a table, M' the pairs after padding.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pc3d.data import Rooms
from pc3d.ops import Windows, voxelize, window_attention, window_partition

VOXEL_SIZE = 0.02
CASES = {"C48 H6 d8 W5": (6, 8, 5), "C96 H6 d16 W7": (6, 16, 7)}
SIZES = (20_000, 100_000, 400_000)
CHUNK_ELEMENTS = 1 << 24  # of the dense contender's largest array
MEMORY_LIMIT_GB = 12.0
OURS, DENSE, PAIRS = "pc3d", "dense", "pairs"


def scene(folder: str, num_voxels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates, offsets and signals (position in voxels, colour, normal) of rooms packed behind one another."""
    rooms = [Rooms(split, folder) for split in ("train", "test")]
    coords, signals, offsets = [], [], [0]
    for room in (data[i] for data in rooms for i in range(len(data))):
        voxels = voxelize(room.xyz, VOXEL_SIZE)
        first = voxels.first[: num_voxels - offsets[-1]]
        coords.append(voxels.coords[: len(first)])
        color = (room.rgb[first] * 2 - 1) / 1.001
        signals.append(torch.cat([room.xyz[first] / VOXEL_SIZE * 4, color * 8, room.normal[first] / 1.001 * 8], 1))
        offsets.append(offsets[-1] + len(first))
        if offsets[-1] == num_voxels:
            return torch.cat(coords), torch.tensor(offsets), torch.cat(signals)
    raise SystemExit(f"the rooms of {folder} have only {offsets[-1]:,} voxels of {VOXEL_SIZE} m, not {num_voxels:,}")


def table_rows(difference: Tensor, axis_rows: list[int]) -> Tensor:
    rows = difference.new_tensor(axis_rows)
    bins = torch.minimum((difference + rows / 2).floor().clamp(min=0), rows - 1).long()
    return bins + (rows.cumsum(0) - rows).long()


def attend_chunk(q: Tensor, k: Tensor, v: Tensor, s: Tensor, filled: Tensor, tables: list[Tensor], rows: list[int]):
    """Windows (w, n) padded to one length: the formula with gathered vectors."""
    found = table_rows(s[:, :, None] - s[:, None], rows)
    from_query, from_key, from_value = (t[found].sum(3) for t in tables)
    logits = torch.einsum("wihc,wijhc->wijh", q, k[:, None] + from_query)
    logits = logits + torch.einsum("wjhc,wijhc->wijh", k, from_key)
    share = logits.masked_fill(~filled[:, None, :, None], -torch.inf).softmax(2)
    return torch.einsum("wijh,wijhc->wihc", share, v[:, None] + from_value)


def dense(q: Tensor, k: Tensor, v: Tensor, s: Tensor, windows: Windows, tables: list[Tensor], rows: list[int], push):
    """Windows sorted by length and padded to the longest of their chunk; gradients chunk by chunk."""
    lengths = windows.offsets.diff()
    by_length = lengths.argsort()
    out, grads = torch.empty_like(q), [torch.zeros_like(x) for x in (q, k, v, *tables)]
    at = 0
    while at < len(by_length):
        take = 1
        while at + take < len(by_length):
            longest = int(lengths[by_length[at + take]])
            if (take + 1) * longest**2 * len(rows) * q[0].numel() > CHUNK_ELEMENTS:
                break
            take += 1
        chosen = by_length[at : at + take]
        at += take
        places = torch.arange(int(lengths[chosen].max()))
        filled = places < lengths[chosen, None]
        voxels = windows.order[torch.where(filled, windows.offsets[chosen, None] + places, 0)]
        leaves = [x[voxels].requires_grad_() for x in (q, k, v)]
        own = [t.detach().requires_grad_() for t in tables]
        result = attend_chunk(*leaves, s[voxels], filled, own, rows)
        out[voxels[filled]] = result.detach()[filled]
        weight = push[voxels] * filled[..., None, None]
        for grad, new in zip(grads, torch.autograd.grad(result, [*leaves, *own], weight), strict=True):
            if new.dim() == 4:
                grad[voxels[filled]] = new[filled]
            else:
                grad += new
    return [out, *grads]


def pair_by_pair(q, k, v, s, windows: Windows, tables: list[Tensor], rows: list[int], push) -> list[Tensor]:
    """Arrays with an entry for each pair, as index_select, scatter and soft-max over segments want them."""
    lengths = windows.offsets.diff()
    each = lengths.repeat_interleave(lengths)  # of each query: its window's keys
    query = torch.repeat_interleave(each)
    rank = torch.arange(len(query)) - (each.cumsum(0) - each)[query]
    begin = windows.offsets[:-1].repeat_interleave(lengths)
    i, j = windows.order[query], windows.order[begin[query] + rank]
    leaves = [x.detach().requires_grad_() for x in (q, k, v, *tables)]
    q, k, v, *tables = leaves
    found = table_rows(s[i] - s[j], rows)
    summed = [torch.stack([t[found[:, a]] for a in range(len(rows))]).sum(0) for t in tables]
    logits = (q[i] * (k[j] + summed[0]) + k[j] * summed[1]).sum(2)
    top = torch.full_like(logits[: len(q)], -torch.inf).index_reduce(0, i, logits.detach(), "amax")
    share = (logits - top[i]).exp()
    share = share / torch.zeros_like(top).index_add(0, i, share)[i]
    out = torch.zeros_like(q).index_add(0, i, share[..., None] * (v[j] + summed[2]))
    return [out.detach(), *torch.autograd.grad(out, leaves, push)]


def ours(q, k, v, s, windows: Windows, tables: list[Tensor], rows: list[int], push) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in (q, k, v, *tables)]
    out = window_attention(*leaves[:3], s, windows, *leaves[3:], rows)
    return [out.detach(), *torch.autograd.grad(out, leaves, push)]


CONTENDERS: dict[str, Callable[..., list[Tensor]]] = {OURS: ours, DENSE: dense, PAIRS: pair_by_pair}


def problem(folder: str, case: str, num_voxels: int, device: str) -> tuple:
    heads, dim, window_size = CASES[case]
    coords, offsets, signals = scene(folder, num_voxels)
    windows = window_partition(coords, window_size, offsets=offsets)
    rows = [8 * window_size] * 3 + [32] * 6
    random = torch.Generator().manual_seed(0)
    features = [torch.randn(num_voxels, heads, dim, generator=random) for _ in range(4)]
    tables = [torch.randn(sum(rows), heads, dim, generator=random) * 0.1 for _ in range(3)]
    windows = Windows(windows.order.to(device), windows.offsets.to(device), windows.max_length)
    q, k, v, push = (f.to(device) for f in features)
    return q * dim**-0.5, k, v, signals.to(device), windows, [t.to(device) for t in tables], rows, push


def status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def child(arguments: argparse.Namespace) -> None:
    """Measures one contender; prints a line of JSON."""
    torch.set_num_threads(arguments.threads)
    inputs = problem(arguments.rooms, arguments.case, arguments.voxels, arguments.device)
    pairs = int(inputs[4].offsets.diff().square().sum())
    call = CONTENDERS[arguments.contender]
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    times, peak = [], 0.0
    for repeat in range(arguments.repeats + 1):
        if repeat == 0 and arguments.device == "cpu":
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            before = status("VmRSS")
        elif repeat == 0:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated() / 2**20
        begin = clock()
        results = call(*inputs)
        if arguments.device == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (clock() - begin))
        if repeat == 0:
            now = status("VmHWM") if arguments.device == "cpu" else torch.cuda.max_memory_allocated() / 2**20
            peak = now - before
    torch.save([r.cpu() for r in results], arguments.results)
    milliseconds = statistics.median(times[1:] or times)
    print(json.dumps({"milliseconds": milliseconds, "megabytes": peak, "pairs": pairs}))


def run(arguments: argparse.Namespace, case: str, voxels: int, contender: str, results: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", "--rooms", arguments.rooms, "--case", case]
    command += ["--voxels", str(voxels), "--contender", contender, "--results", str(results)]
    command += ["--threads", str(arguments.threads), "--clock", arguments.clock, "--device", arguments.device]
    command += ["--repeats", str(5 if contender == OURS else 0)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{contender} at {case}, {voxels:,} voxels failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def check_equal(own: Path, right: Path) -> None:
    """Every result within 2e-3 of its largest entry: table gradients are float32 sums of many terms."""
    names = ("out", "for query", "for key", "for value", "for query_table", "for key_table", "for value_table")
    both = (torch.load(path, weights_only=True) for path in (own, right))
    for name, a, b in zip(names, *both, strict=True):
        off = float((a - b).abs().max() / b.abs().max())
        assert off < 2e-3, f"{name} differs by {off:.1e}"


def slope(values: dict[int, float]) -> float:
    """Exponent of growth with voxels, fitted through the logarithms."""
    xs, ys = [math.log(n) for n in values], [math.log(max(v, 1e-9)) for v in values.values()]
    return statistics.linear_regression(xs, ys).slope if len(xs) > 1 else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", required=True)
    parser.add_argument("--quick", action="store_true", help="20,000 voxels only")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: where others use the machine")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    for name, kind in (
        ("--case", str),
        ("--voxels", int),
        ("--contender", str),
        ("--results", Path),
        ("--repeats", int),
    ):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments)
    rows = []
    arguments.output.mkdir(parents=True, exist_ok=True)
    for case, (heads, dim, _) in CASES.items():
        for voxels in SIZES[:1] if arguments.quick else arguments.sizes:
            for contender in CONTENDERS:
                path = arguments.output / f".attention-{contender}.pt"
                row = {"case": case, "voxels": voxels, "contender": contender}
                if contender == PAIRS:  # about a dozen arrays of (pairs, 9, heads, dim) are alive in its backward pass
                    needed = rows[-2]["pairs"] * heads * dim * 4 * 9 * 4 / 2**30
                    if needed > MEMORY_LIMIT_GB:
                        rows.append(row | {"note": f"left out: would take about {needed:.0f} GB"})
                        print(rows[-1], flush=True)
                        continue
                rows.append(row | run(arguments, case, voxels, contender, path))
                print(rows[-1], flush=True)
                if contender != OURS:
                    check_equal(arguments.output / f".attention-{OURS}.pt", path)
    for contender in CONTENDERS:
        (arguments.output / f".attention-{contender}.pt").unlink(missing_ok=True)
    write(arguments, rows)


def write(arguments: argparse.Namespace, rows: list[dict]) -> None:
    stem = arguments.output / f"attention_{arguments.device}"
    fields = ["case", "voxels", "contender", "pairs", "milliseconds", "megabytes", "note"]
    with stem.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)
    lines = [
        f"Window attention with signal tables, forward and backward, float32: {platform.machine()}, "
        f"{arguments.threads} threads, torch {torch.__version__}, {arguments.clock} clock; "
        f"rooms packed at {VOXEL_SIZE} m.",
        "",
        "| case | voxels | pairs | contender | ms | MB beyond its input | times ours | times our memory |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    measured = {(r["case"], r["voxels"], r["contender"]): r for r in rows}
    for (case, voxels, contender), r in measured.items():
        start = f"| {case} | {voxels:,} |"
        if "note" in r:
            lines.append(f"{start} | {contender} | {r['note']} | | | |")
            continue
        own = measured[case, voxels, OURS]
        time_ratio, memory_ratio = (r[f] / own[f] for f in ("milliseconds", "megabytes"))
        lines.append(
            f"{start} {r['pairs']:,} | {contender} | {r['milliseconds']:,.0f} | {r['megabytes']:,.0f} | "
            f"{time_ratio:.1f} | {memory_ratio:.1f} |"
        )
    lines += ["", "Growth with voxels (exponent):", ""]
    for case in CASES:
        for contender in (OURS, DENSE):
            found = {v: r for (c, v, name), r in measured.items() if (c, name) == (case, contender)}
            if len(found) > 1:
                of_time = slope({v: r["milliseconds"] for v, r in found.items()})
                of_memory = slope({v: r["megabytes"] for v, r in found.items()})
                lines.append(f"- {case}, {contender}: time {of_time:.2f}, memory {of_memory:.2f}")
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
