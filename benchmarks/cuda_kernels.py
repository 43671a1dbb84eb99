"""Times the CUDA kernels that training spends most of its time in, to compare one version of pc3d with another.

python benchmarks/cuda_kernels.py --rooms FOLDER [--only attention] [--device cuda]
PYTHONPATH=OTHER_TREE python benchmarks/cuda_kernels.py --rooms FOLDER

FOLDER holds rooms in the large form, OTHER_TREE another version with its compiled kernels. Prints for each case the
median and the least time of a call, by events of the GPU, in milliseconds, and the peak memory beyond the inputs. A
call includes what Python does, so small ones show the time until a kernel starts. ``--device cpu`` shows only that the
script runs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import attention
import sparse
import torch
from torch import Tensor

import pc3d
from pc3d import ops
from pc3d.data import Rooms

SECONDS, LEAST_CALLS, MOST_CALLS = 0.4, 5, 200
CHANNELS = ((9, 48), (32, 32), (64, 64), (128, 128))
CLOUDS = ((128, 1024, 64), (1, 10_000, 1024), (1, 30_000, 1024), (1, 100_000, 1024))
POINTS, VOXELS = 100_000, (20_000, 100_000)

Case = tuple[str, Callable[[], object]]


def forward_and_both(name: str, run: Callable[[], Tensor], leaves: list[Tensor], push: Tensor) -> Iterator[Case]:
    def forward() -> object:
        with torch.no_grad():
            return run()

    yield f"{name} forward", forward
    yield f"{name} forward + backward", lambda: torch.autograd.grad(run(), leaves, push)


def attention_cases(arguments: argparse.Namespace) -> Iterator[Case]:
    whole = attention.scene(arguments.rooms, max(arguments.voxels))
    for name in attention.CASES:
        for num_voxels in arguments.voxels:
            inputs = attention.problem(whole, name, num_voxels, arguments.device)
            query, key, value, signals, windows, tables, rows, push = inputs
            leaves = [x.detach().requires_grad_() for x in (query, key, value, *tables)]
            run = partial(ops.window_attention, *leaves[:3], signals, windows, *leaves[3:], rows)
            yield from forward_and_both(f"attention {name}, {num_voxels:,} voxels", run, leaves, push)


def sparse_cases(arguments: argparse.Namespace) -> Iterator[Case]:
    data = Rooms("train", arguments.rooms)
    xyz = sparse.side_by_side([data[index].xyz for index in range(len(data))], arguments.points)
    if xyz is None:
        raise SystemExit(f"{arguments.rooms} has fewer than {arguments.points:,} points")
    xyz = xyz.to(arguments.device)
    yield f"voxelize {len(xyz):,} points", lambda: ops.voxelize(xyz, sparse.VOXEL_SIZE)
    table = ops.kernel_map(ops.voxelize(xyz, sparse.VOXEL_SIZE).coords)
    count = len(table.neighbors)
    for c_in, c_out in CHANNELS:
        for dtype in (torch.float32, torch.float16):
            features, push = (torch.randn(count, c, device=arguments.device, dtype=dtype) for c in (c_in, c_out))
            weight = torch.randn(27, c_in, c_out, device=arguments.device, dtype=dtype) / (27 * c_in) ** 0.5
            leaves = [features.requires_grad_(), weight.requires_grad_()]
            name = f"convolution {c_in} -> {c_out} {str(dtype)[6:]}, {count:,} voxels"
            yield from forward_and_both(name, partial(ops.sparse_conv3d, *leaves, table), leaves, push)


def sampling_cases(arguments: argparse.Namespace) -> Iterator[Case]:
    for clouds, points, samples in CLOUDS:
        xyz = torch.randn(clouds, points, 3, device=arguments.device)
        name = f"farthest point sampling {clouds} x {points:,} -> {samples:,}"
        yield name, partial(ops.farthest_point_sample, xyz, samples)


def measure(call: Callable[[], object]) -> tuple[list[float], float]:
    """Milliseconds of each call, and megabytes."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    times: list[float] = []
    stop = time.perf_counter() + SECONDS
    while len(times) < LEAST_CALLS or (time.perf_counter() < stop and len(times) < MOST_CALLS):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        call()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last))
    return times, (torch.cuda.max_memory_allocated() - before) / 2**20


GROUPS = {"attention": attention_cases, "sparse": sparse_cases, "sampling": sampling_cases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", required=True)
    parser.add_argument("--only", choices=GROUPS, nargs="+", default=list(GROUPS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--points", type=int, default=POINTS, help="that are cut into voxels")
    parser.add_argument("--voxels", type=int, nargs="+", default=VOXELS, help="that attend")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    on_gpu = arguments.device == "cuda"
    print(f"# {pc3d.__file__}, torch {torch.__version__}{', ' + torch.cuda.get_device_name() if on_gpu else ''}")
    print("| case | median, ms | least, ms | MB |\n| --- | ---: | ---: | ---: |")
    for group in arguments.only:
        for name, call in GROUPS[group](arguments):
            if not on_gpu:
                call()
                print(f"| {name} | | | |", flush=True)
                continue
            times, megabytes = measure(call)
            print(f"| {name} | {statistics.median(times):.2f} | {min(times):.2f} | {megabytes:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
