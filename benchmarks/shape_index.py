"""Memory, speed and recall of an index of shapes as it grows.

    python benchmarks/shape_index.py --output OUT [--sizes 100000 300000 1000000] [--dim 64]

Adds made-up vectors to :class:`pc3d.evaluation.ShapeIndex` until it has as many as the sizes say, and after each tells
how much memory the process has gained a vector (resident, Linux) and how much one that only opens the index gains, as
``pc3d search`` does, beside what ``bytes_for`` says; the time to add one and to find ten; and how many of the ten
nearest the graph finds, for queries like shapes and for queries of one of two spaces alone, as texts are (the other
half is 0). Vectors lie near a surface of 16 dimensions, as embeddings do. What the graph takes does not depend on the
width of the vectors, so a million narrow ones tell what a million wide ones take. Writes ``shape_index.md``; the
index itself is removed at the end.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from pc3d.evaluation import ShapeIndex

LATENT, CHUNK, QUERIES, NOISE = 16, 10_000, 50, 0.2
OPEN = """
import sys
import usearch.index
from shape_index import resident
from pc3d.evaluation import ShapeIndex
before = resident()
index = ShapeIndex(sys.argv[1])
print(resident() - before)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for shape_index.md")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=64, help="width of the vectors, even (default: 64)")
    given = parser.parse_args()
    if given.dim < 2 or given.dim % 2 or min(given.sizes) < CHUNK:
        parser.error(f"--dim must be even, --sizes at least {CHUNK}, got {given.dim} and {given.sizes}")
    torch.set_num_threads(1)
    given.output.mkdir(parents=True, exist_ok=True)
    maker = Maker(given.dim)
    lines = [
        f"usearch {version('usearch')}, float16 vectors of {given.dim} dimensions, 1 thread, {platform.machine()}; the "
        "processes also hold names (`shape 123`) and empty records; processor time",
        "",
        "| shapes | adding, each | opened | bytes_for | add one | find ten | recall@10, like shapes | one space |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    maker.draw(CHUNK)  # so that what drawing needs is there before the memory is looked at
    with tempfile.TemporaryDirectory(dir=given.output) as folder:  # an index of before would be continued
        index = ShapeIndex(folder, dim=given.dim)
        before = resident()
        for size in sorted(given.sizes):
            lines.append(grow(index, maker, size, before))
            (given.output / "shape_index.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
            print(lines[-1], flush=True)


class Maker:
    """Vectors of two spaces that say the same, each half of unit length times the root of one half."""

    def __init__(self, dim: int) -> None:
        self.generator = np.random.default_rng(0)
        self.maps = [self.generator.normal(size=(LATENT, dim // 2)).astype(np.float32) for _ in range(2)]

    def draw(self, count: int) -> NDArray[np.float32]:
        place = self.generator.normal(size=(count, LATENT)).astype(np.float32)
        halves = [place @ one for one in self.maps]
        noise = [NOISE * LATENT**0.5 * self.generator.normal(size=half.shape).astype(np.float32) for half in halves]
        halves = [half + extra for half, extra in zip(halves, noise, strict=True)]
        units = [half / np.linalg.norm(half, axis=1, keepdims=True) for half in halves]
        return np.concatenate(units, axis=1) / np.float32(2**0.5)


def grow(index: ShapeIndex, maker: Maker, size: int, before: int) -> str:
    """Add vectors up to a size, and a row of the table."""
    started, first = time.process_time(), len(index)
    drawing = 0.0
    for start in tqdm(range(first, size, CHUNK), desc=f"{size:,} shapes", disable=None):
        drawn = time.process_time()
        vectors = maker.draw(min(CHUNK, size - start))
        drawing += time.process_time() - drawn
        index.add([f"shape {start + i}" for i in range(len(vectors))], vectors)
    adding = (time.process_time() - started - drawing) / (size - first)
    gained = (resident() - before) / size
    whole = maker.draw(QUERIES)
    half = whole.copy()
    half[:, index.dim // 2 :] = 0
    recalls, seconds = zip(*(recall(index, queries) for queries in (whole, half)), strict=True)
    memory = f"{gained:.0f} B | {opened(index) / size:.0f} B | {index.bytes_for(1, index.dim)} B"
    told = f"{memory} | {1e6 * adding:.0f} µs | {1e3 * seconds[0]:.2f} ms"
    return f"| {size:,} | {told} | {100 * recalls[0]:.0f} % | {100 * recalls[1]:.0f} % |"


def recall(index: ShapeIndex, queries: NDArray[np.float32]) -> tuple[float, float]:
    """The share of the ten nearest that is found, and the seconds of the processor for a query."""
    started = time.process_time()
    found = [{hit.id for hit in index.search(query, 10)} for query in queries]
    seconds = (time.process_time() - started) / len(queries)
    exact = [{hit.id for hit in index.search(query, 10, exact=True)} for query in queries]
    return float(np.mean([len(one & other) / 10 for one, other in zip(found, exact, strict=True)])), seconds


def opened(index: ShapeIndex) -> int:
    """Bytes that a process of its own gains by opening the index."""
    index.save()
    command = [sys.executable, "-c", OPEN, str(index.folder.resolve())]
    told = subprocess.run(command, cwd=Path(__file__).parent, check=True, capture_output=True, text=True)
    return int(told.stdout)


def resident() -> int:
    """Bytes of this process in memory."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


if __name__ == "__main__":
    main()
