"""Times window attention on real rooms against dense and pair-by-pair PyTorch: forward and backward, time and memory.

python benchmarks/attention.py --rooms FOLDER [--quick] [--threads 1] [--clock wall|cpu] [--device cuda]

FOLDER holds rooms in the large form (coord_mm, color, normal; ``pc3d.data.Rooms``). Rooms of 4 cm voxels, just above
the 3.5 cm that lie between their points, are packed as clouds of one batch until the wanted number of voxels is
reached, the last cut short: some 25 keys a query in windows of 5, 50 in windows of 7. Every contender runs in a process
of its own (peak memory, what malloc keeps) on equal input, its result and gradients checked against the first.

All are warmed up twice on a tenth of the voxels, which also predicts what the whole takes. Those predicted below
SLOW_SECONDS are warmed up on the whole too and then timed REPEATS times, taking turns; the row is the median. Slower
ones are timed once. What is predicted above --most_seconds or MEMORY_LIMIT_GB is left out, with a note that says so.
Prints a table and writes benchmarks/results/attention_DEVICE.csv and .md after every round.

What it costs at least, for N voxels of C channels, M pairs, H heads, D signals, K table rows within a window's reach:
forward 2 M C + 2 M C + 6 N C K multiplications and additions, 2 M H D look-ups and M H D additions to histograms;
backward twice to three times that; memory 4 N C floats in and out, as many gradients, and none that grows with M.
The dense computation needs 2 D M' C gathered numbers a table, M' the pairs after padding: "dense" makes them in chunks
of windows of like length, as its user would when memory runs out; "dense at once" pads all windows to the longest.

``--device cuda`` adds FlexAttention without any table: less than the others do, and what plain attention in windows
costs there. It has nothing to add to a value pair by pair, and with look-ups of all signals its kernel compiles for
minutes. A contender that fails there has the reason in its row.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes
import json
import math
import platform
import resource
import select
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

from pc3d.data import Rooms
from pc3d.ops import Windows, voxelize, window_attention, window_partition

VOXEL_SIZE = 0.04
CASES = {"C48 H6 d8 W5": (6, 8, 5), "C96 H6 d16 W7": (6, 16, 7)}
SIZES = (20_000, 100_000, 400_000)
CHUNK_ELEMENTS = 1 << 24  # of the largest array of the dense contender that works in chunks
MEMORY_LIMIT_GB = {"cpu": 12.0, "cuda": 64.0}
SLOW_SECONDS = 20.0
REPEATS = 3
OURS, DENSE, WHOLE, PAIRS, FLEX = "pc3d", "dense", "dense at once", "pairs", "flex, no tables"


Scene = tuple[Tensor, Tensor, Tensor]


def scene(folder: str, num_voxels: int) -> Scene:
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


def cut(whole: Scene, num_voxels: int) -> Scene:
    """The first voxels of a scene, as :func:`scene` packs fewer of them."""
    coords, offsets, signals = whole
    kept = offsets[offsets < num_voxels]
    return coords[:num_voxels], torch.cat([kept, offsets.new_tensor([num_voxels])]), signals[:num_voxels]


def table_rows(difference: Tensor, axis_rows: list[int]) -> Tensor:
    rows = difference.new_tensor(axis_rows)
    bins = torch.minimum((difference + rows / 2).floor().clamp(min=0), rows - 1).long()
    return bins + (rows.cumsum(0) - rows).long()


def summed_rows(table: Tensor, found: Tensor) -> Tensor:
    """(..., H, d): the sum of a table's rows over the last dimension, much faster than by indexing."""
    summed = embedding_bag(found.flatten(0, -2), table.flatten(1), mode="sum")
    return summed.view(*found.shape[:-1], *table.shape[1:])


def attend_chunk(q: Tensor, k: Tensor, v: Tensor, s: Tensor, filled: Tensor, tables: list[Tensor], rows: list[int]):
    """Windows (w, n) padded to one length: the formula with gathered vectors."""
    found = table_rows(s[:, :, None] - s[:, None], rows)
    from_query, from_key, from_value = (summed_rows(t, found) for t in tables)
    logits = torch.einsum("wihc,wijhc->wijh", q, k[:, None] + from_query)
    logits = logits + torch.einsum("wjhc,wijhc->wijh", k, from_key)
    share = logits.masked_fill(~filled[:, None, :, None], -torch.inf).softmax(2)
    return torch.einsum("wijh,wijhc->wihc", share, v[:, None] + from_value)


def dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    s: Tensor,
    windows: Windows,
    tables: list[Tensor],
    rows: list[int],
    push: Tensor,
    most_elements: float = CHUNK_ELEMENTS,
) -> list[Tensor]:
    """Windows sorted by length and padded to the longest of their chunk; gradients chunk by chunk."""
    lengths = windows.offsets.diff()
    by_length = lengths.argsort()
    ascending = lengths[by_length].tolist()
    out, grads = torch.empty_like(q), [torch.zeros_like(x) for x in (q, k, v, *tables)]
    at = 0
    while at < len(by_length):
        take = 1
        while at + take < len(by_length):
            if (take + 1) * ascending[at + take] ** 2 * len(rows) * q[0].numel() > most_elements:
                break
            take += 1
        chosen = by_length[at : at + take]
        at += take
        places = torch.arange(ascending[at - 1], device=lengths.device)
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
    rank = torch.arange(len(query), device=query.device) - (each.cumsum(0) - each)[query]
    begin = windows.offsets[:-1].repeat_interleave(lengths)
    i, j = windows.order[query], windows.order[begin[query] + rank]
    leaves = [x.detach().requires_grad_() for x in (q, k, v, *tables)]
    q, k, v, *tables = leaves
    found = table_rows(s[i] - s[j], rows)
    summed = [summed_rows(t, found) for t in tables]
    logits = (q[i] * (k[j] + summed[0]) + k[j] * summed[1]).sum(2)
    top = torch.full_like(logits[: len(q)], -torch.inf).scatter_reduce(
        0, i[:, None].expand_as(logits), logits.detach(), "amax"
    )
    share = (logits - top[i]).exp()
    share = share / torch.zeros_like(top).index_add(0, i, share)[i]
    out = torch.zeros_like(q).index_add(0, i, share[..., None] * (v[j] + summed[2]))
    return [out.detach(), *torch.autograd.grad(out, leaves, push)]


def ours(q, k, v, s, windows: Windows, tables: list[Tensor], rows: list[int], push) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in (q, k, v, *tables)]
    out = window_attention(*leaves[:3], s, windows, *leaves[3:], rows)
    return [out.detach(), *torch.autograd.grad(out, leaves, push)]


def window_blocks(windows: Windows, together: Callable[..., Tensor]) -> Any:
    """The blocks of keys that a block of queries attends to: those of its windows, which lie behind one another.

    ``create_block_mask`` finds the same blocks from all pairs of voxels, and its kernel did not compile within minutes
    for 10,000 of them.
    """
    from torch.nn.attention.flex_attention import BlockMask

    size = 128
    lengths = windows.offsets.diff()
    first, last = (x.repeat_interleave(lengths) for x in (windows.offsets[:-1], windows.offsets[1:] - 1))
    begins = torch.arange(0, len(first), size, device=first.device)
    low, high = first[begins] // size, last[(begins + size - 1).clamp(max=len(first) - 1)] // size
    blocks = torch.arange(len(begins), device=first.device)
    found = (low[:, None] + blocks).clamp(max=len(begins) - 1)
    numbers = (high - low + 1)[None, None].int(), found[None, None].int()
    return BlockMask.from_kv_blocks(*numbers, BLOCK_SIZE=size, mask_mod=together, seq_lengths=(len(first), len(first)))


def flex(q, k, v, s, windows: Windows, tables: list[Tensor], rows: list[int], push) -> list[Tensor]:
    """FlexAttention over the voxels in the order of their windows, without any table."""
    from torch.nn.attention.flex_attention import flex_attention

    order = windows.order
    window = torch.repeat_interleave(windows.offsets.diff())
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]

    def together(_b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return window[i] == window[j]

    width = max(16, q.shape[-1])  # kernels exist from 16 channels on
    wide = [pad(x[order].transpose(0, 1), (0, width - x.shape[-1]))[None] for x in leaves]
    mask = window_blocks(windows, together)
    result = torch.compile(flex_attention)(*wide, block_mask=mask, scale=1.0)
    result = result[0, ..., : q.shape[-1]].transpose(0, 1)
    out = torch.empty_like(result).index_copy(0, order, result)
    return [out.detach(), *torch.autograd.grad(out, leaves, push)]


CONTENDERS: dict[str, Callable[..., list[Tensor]]] = {
    OURS: ours,
    DENSE: dense,
    WHOLE: partial(dense, most_elements=math.inf),
    PAIRS: pair_by_pair,
    FLEX: flex,
}


def problem(whole: Scene, case: str, num_voxels: int, device: str) -> tuple:
    """A contender's arguments."""
    heads, dim, window_size = CASES[case]
    coords, offsets, signals = cut(whole, num_voxels)
    windows = window_partition(coords, window_size, offsets=offsets)
    rows = [8 * window_size] * 3 + [32] * 6
    random = torch.Generator().manual_seed(0)
    features = [torch.randn(num_voxels, heads, dim, generator=random) for _ in range(4)]
    tables = [torch.randn(sum(rows), heads, dim, generator=random) * 0.1 for _ in range(3)]
    windows = Windows(windows.order.to(device), windows.offsets.to(device))
    q, k, v, push = (f.to(device) for f in features)
    return q * dim**-0.5, k, v, signals.to(device), windows, [t.to(device) for t in tables], rows, push


def status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def measure(arguments: argparse.Namespace, inputs: tuple) -> tuple[dict[str, float], list[Tensor]]:
    """A call's time, peak memory beyond its input, and results."""
    on_cpu = arguments.device == "cpu"
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    if on_cpu:
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
    else:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
        torch.cuda.synchronize()  # what was asked for before is not in the time
    begin = clock()
    results = CONTENDERS[arguments.contender](*inputs)
    if not on_cpu:
        torch.cuda.synchronize()
    milliseconds = 1e3 * (clock() - begin)
    peak = status("VmHWM") if on_cpu else torch.cuda.max_memory_allocated() / 2**20
    pairs = int(inputs[4].offsets.diff().square().sum())
    return {"milliseconds": milliseconds, "megabytes": peak - before, "pairs": pairs}, results


def child(arguments: argparse.Namespace) -> None:
    """Measures one contender: a line of JSON for the warm-up on few voxels, then one for each line that it is sent."""
    torch.set_num_threads(arguments.threads)
    if arguments.device == "cpu":  # what was predicted to fit and does not fails, and the system goes on
        most = int((MEMORY_LIMIT_GB["cpu"] + 2) * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    whole = torch.load(packed(arguments), weights_only=True)
    sizes = max(arguments.voxels // 10, 1000), arguments.voxels
    few, inputs = (problem(whole, arguments.case, voxels, arguments.device) for voxels in sizes)
    sys.stdin.readline()  # the others have come as far, and are waiting
    cold, results = measure(arguments, few)
    if arguments.contender == FLEX:
        check_without_tables(few, results)
    warm, results = measure(arguments, few)
    few = results = None
    pairs = int(inputs[4].offsets.diff().square().sum())
    growth = pairs / warm["pairs"]
    megabytes = max(cold["megabytes"], warm["megabytes"]) * growth
    print(json.dumps({"milliseconds": warm["milliseconds"] * growth, "megabytes": megabytes}), flush=True)
    if arguments.device == "cpu":
        ctypes.CDLL(None).malloc_trim(0)
    for _ in sys.stdin:
        if arguments.device == "cuda":  # takes from the driver what the call before gave back
            CONTENDERS[arguments.contender](*inputs)
        found, results = measure(arguments, inputs)
        if not arguments.results.exists():
            torch.save([r.cpu() for r in results], arguments.results)
        del results
        if arguments.device == "cuda":  # the others need the card
            torch.cuda.empty_cache()
        print(json.dumps(found), flush=True)


class Contender:
    """A contender at a size, in a process of its own; :meth:`warm_up` comes before the calls."""

    def __init__(self, arguments: argparse.Namespace, case: str, voxels: int, name: str) -> None:
        self.row: dict = {"case": case, "voxels": voxels, "contender": name}
        self.calls: list[dict[str, float]] = []
        self.results = arguments.output / f".attention-{arguments.device}-{name}.pt"
        self.results.unlink(missing_ok=True)
        command = [sys.executable, __file__, "--child", "--rooms", arguments.rooms, "--case", case]
        command += ["--voxels", str(voxels), "--contender", name, "--results", str(self.results)]
        command += ["--output", str(arguments.output)]
        command += ["--threads", str(arguments.threads), "--clock", arguments.clock, "--device", arguments.device]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (as long as the process)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        self.most_wait = arguments.most_wait
        self.most_seconds, self.most_gigabytes = arguments.most_seconds, MEMORY_LIMIT_GB[arguments.device]

    def warm_up(self) -> None:
        """Few voxels, from which it is predicted what all of them take."""
        predicted = self.ask()
        if predicted is None:
            return
        seconds, gigabytes = predicted["milliseconds"] / 1e3, predicted["megabytes"] / 1024
        self.slow = seconds > SLOW_SECONDS
        if seconds > self.most_seconds:
            self.row["note"] = f"left out: would take about {seconds:,.0f} s"
        elif gigabytes > self.most_gigabytes:
            self.row["note"] = f"left out: would take about {gigabytes:,.0f} GB"
        if "note" in self.row:
            self.close()

    def ask(self) -> dict[str, float] | None:
        """Lets it go on, and reads what it found; None, and a note in the row, for a rival that fails."""
        with contextlib.suppress(BrokenPipeError):  # it is gone already
            self.process.stdin.write("go on\n")
            self.process.stdin.flush()
        if select.select([self.process.stdout], [], [], self.most_wait)[0]:
            if line := self.process.stdout.readline():
                return json.loads(line)
            status = self.process.wait()
            self.errors.seek(0)
            told = [line.strip() for line in self.errors if "Error" in line]
            reason = textwrap.shorten(told[-1], 200, placeholder=" ...") if told else f"exit status {status}"
        else:
            self.process.kill()
            reason = f"no answer for {self.most_wait:.0f} s"
        if self.row["contender"] == OURS:
            raise SystemExit(f"{self.row} failed: {reason}")
        self.row = {key: self.row[key] for key in ("case", "voxels", "contender")} | {"note": f"failed: {reason}"}
        return None

    def call(self) -> None:
        """One more time; the first of a contender that is not slow warms it up."""
        found = self.ask()
        if found is None:
            return
        self.calls.append(found)
        timed = self.calls if self.slow else self.calls[1:] or self.calls
        self.row |= {"pairs": self.calls[0]["pairs"], "megabytes": self.calls[0]["megabytes"], "repeats": len(timed)}
        self.row["milliseconds"] = statistics.median(c["milliseconds"] for c in timed)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.stdin.close()
            self.process.wait()
        self.results.unlink(missing_ok=True)


def measure_row(arguments: argparse.Namespace, case: str, voxels: int, rows: list[dict]) -> None:
    """All contenders at a size, taking turns; ``rows`` gets theirs and is written after every round."""
    names = [name for name in CONTENDERS if name != FLEX or arguments.device == "cuda"]
    field = [Contender(arguments, case, voxels, name) for name in names]
    for contender in field:
        contender.warm_up()
    for turn in range(REPEATS + 1):
        alive = [c for c in field if "note" not in c.row]
        for contender in alive:
            if turn == 0 or not contender.slow:
                contender.call()
            if turn == 0 and "note" not in contender.row and contender.row["contender"] not in (OURS, FLEX):
                check_equal(field[0].results, contender.results)
        write(arguments, [*rows, *(contender.row for contender in field)])
    rows += [contender.row for contender in field]
    for contender in field:
        contender.close()
        print(contender.row, flush=True)


def check_equal(own: Path, right: Path) -> None:
    check_close(*(torch.load(path, weights_only=True) for path in (own, right)))


def check_close(own: list[Tensor], right: list[Tensor]) -> None:
    """Every result within 2e-3 of its largest entry: table gradients are float32 sums of many terms."""
    names = ("out", "for query", "for key", "for value", "for query_table", "for key_table", "for value_table")
    for name, a, b in zip(names[: len(right)], own, right, strict=True):
        off = float((a - b).abs().max() / b.abs().max())
        assert off < 2e-3, f"{name} differs by {off:.1e}"


def check_without_tables(inputs: tuple, results: list[Tensor]) -> None:
    """Without tables there are four results: those of tables full of zeros."""
    *others, tables, rows, push = inputs
    check_close(ours(*others, [torch.zeros_like(t) for t in tables], rows, push)[:4], results)


def slope(values: dict[int, float]) -> float:
    """Exponent of growth with voxels, fitted through the logarithms."""
    xs, ys = [math.log(n) for n in values], [math.log(max(v, 1e-9)) for v in values.values()]
    return statistics.linear_regression(xs, ys).slope if len(xs) > 1 else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", required=True)
    parser.add_argument("--quick", action="store_true", help="20,000 voxels only")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--cases", choices=CASES, nargs="+", default=list(CASES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: where others use the machine")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--most_seconds", type=float, default=120.0, help="calls predicted to take longer are left out")
    parser.add_argument("--most_wait", type=float, default=1800.0, help="seconds to wait for a contender's answer")
    for name, kind in (("--case", str), ("--voxels", int), ("--contender", str), ("--results", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments)
    rows: list[dict] = []
    arguments.output.mkdir(parents=True, exist_ok=True)
    sizes = SIZES[:1] if arguments.quick else arguments.sizes
    torch.save(scene(arguments.rooms, max(sizes)), packed(arguments))
    try:
        for voxels in sizes:
            for case in arguments.cases:
                measure_row(arguments, case, voxels, rows)
    finally:
        packed(arguments).unlink()
    print(stem(arguments).with_suffix(".md").read_text())


def packed(arguments: argparse.Namespace) -> Path:
    """The scene that all contenders read."""
    return arguments.output / f".attention-{arguments.device}-scene.pt"


def stem(arguments: argparse.Namespace) -> Path:
    return arguments.output / f"attention_{arguments.device}"


def write(arguments: argparse.Namespace, rows: list[dict]) -> None:
    fields = ["case", "voxels", "contender", "pairs", "milliseconds", "repeats", "megabytes", "note"]
    with stem(arguments).with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)
    gpu = "" if arguments.device == "cpu" else f"{torch.cuda.get_device_name()}, "
    lines = [
        f"Window attention with signal tables, forward and backward, float32: {platform.machine()}, "
        f"{arguments.threads} threads, {gpu}torch {torch.__version__}, {arguments.clock} clock; "
        f"real rooms of {100 * VOXEL_SIZE:.0f} cm voxels packed as clouds of one batch, none twice. "
        "Median of warm calls, the contenders taking turns.",
        "",
        "| case | voxels | keys a query | contender | ms | calls | MB beyond input | times ours | times our memory |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    measured = {(r["case"], r["voxels"], r["contender"]): r for r in rows}
    for (case, voxels, contender), r in measured.items():
        start = f"| {case} | {voxels:,} |"
        if "note" in r:
            lines.append(f"{start} | {contender} | {r['note']} | | | | |")
        if "milliseconds" not in r:
            continue
        own = measured[case, voxels, OURS]
        time_ratio, memory_ratio = (r[f] / own[f] for f in ("milliseconds", "megabytes"))
        lines.append(
            f"{start} {r['pairs'] / voxels:.1f} | {contender} | {r['milliseconds']:,.0f} | {r['repeats']} | "
            f"{r['megabytes']:,.0f} | "
            f"{time_ratio:.1f} | {memory_ratio:.1f} |"
        )
    growth: list[str] = []
    for case in CASES:
        for contender in CONTENDERS:
            found = {
                v: r for (c, v, name), r in measured.items() if (c, name) == (case, contender) and "milliseconds" in r
            }
            if len(found) > 1:
                of_time = slope({v: r["milliseconds"] for v, r in found.items()})
                of_memory = slope({v: r["megabytes"] for v, r in found.items()})
                growth.append(f"- {case}, {contender}: time {of_time:.2f}, memory {of_memory:.2f}")
    if growth:
        lines += ["", "Growth with voxels (exponent):", "", *growth]
    stem(arguments).with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
