"""The emulation of CUDA (csrc/emulation): it computes what a GPU does, and sees what goes wrong on one."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
KERNELS = ("turn_round", "exchange_in_warps", "waits_in_a_branch", "reads_a_lane_that_ended", "ends_early")
KERNELS += ("leaves_shared_memory_behind", "meets")
THREADS, BLOCKS = 128, 3


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """The kernels of tests/assets/emulated_kernels.cu; each returns what went wrong, or nothing."""
    if not (ROOT / "csrc").is_dir():
        pytest.skip("csrc is not part of an installed package")
    library = tmp_path_factory.mktemp("emulation") / "kernels.so"
    # Checked as compilers of some distributions do unasked.
    flags = ["-std=c++17", "-O1", "-D_FORTIFY_SOURCE=2", "-fPIC", "-shared", "-fno-extern-tls-init", "-pthread"]
    flags += ["-x", "c++"]
    includes = ["-include", "csrc/emulation/cuda_runtime.h", "-Icsrc/emulation", "-Icsrc"]
    sources = ["tests/assets/emulated_kernels.cu", "csrc/emulation/block.cpp"]
    subprocess.run(["c++", *flags, *includes, *sources, "-o", str(library)], cwd=ROOT, check=True)
    loaded = ctypes.CDLL(str(library))
    for name in KERNELS:
        getattr(loaded, f"run_{name}").restype = ctypes.c_char_p
    return loaded


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def ints(*shape: int) -> np.ndarray:
    return np.full(shape, -1, np.int32)


def turned_round(kernels: ctypes.CDLL, waits: bool) -> np.ndarray:
    values = np.arange(BLOCKS * THREADS, dtype=np.int32)
    out = ints(BLOCKS, THREADS)
    assert kernels.run_turn_round(pointer(values), pointer(out), BLOCKS, THREADS, 4 * THREADS, waits) == b""
    return out


def test_blocks_share_memory_behind_a_barrier(kernels):
    expected = np.arange(BLOCKS * THREADS).reshape(BLOCKS, THREADS)[:, ::-1]
    for _ in range(20):
        np.testing.assert_array_equal(turned_round(kernels, waits=True), expected)


def test_a_missing_barrier_shows(kernels):
    """Threads run in another order every time, and what they left unwritten is no number that makes sense."""
    results = {turned_round(kernels, waits=False).tobytes() for _ in range(20)}
    assert len(results) > 10
    assert all(b"\xff\xff\xff\xff" in result for result in results)


def test_lanes_exchange_numbers(kernels):
    out = ints(64, 8)
    assert kernels.run_exchange_in_warps(pointer(out)) == b""
    for thread in range(64):
        warp, lane = thread // 32 * 32, thread % 32
        value = [3 * (warp + other) + 1 for other in range(32)]
        every_third = sum(1 << other for other in range(0, 32, 3))
        assert out[thread].view(np.uint32).tolist() == [
            value[3],  # lane 35 is lane 3
            value[lane ^ 5],
            value[max(lane - 1, 0)],
            every_third,
            max(value),
            min(value),
            1,  # one thread of the block said so
            sum(3 * other + 1 for other in range(64)),
        ]


def test_a_barrier_that_not_all_reach_is_an_error(kernels):
    assert kernels.run_waits_in_a_branch() == (
        b"emulated CUDA: threads of a block wait for each other at different places"
    )
    assert turned_round(kernels, waits=True)[0, 0] == THREADS - 1  # what comes after is sound


def test_a_lane_that_has_ended_cannot_be_read(kernels):
    assert kernels.run_reads_a_lane_that_ended(pointer(ints(32))) == (
        b"emulated CUDA: a lane of a warp reads from one that has ended"
    )


@pytest.mark.parametrize("threads", [32, 96, 1024])
def test_threads_that_have_ended_are_not_waited_for(kernels, threads):
    out = ints(threads)
    assert kernels.run_ends_early(pointer(out), threads) == b""
    assert out.tolist() == [1, -1] * (threads // 2)


def test_shared_memory_is_not_handed_on(kernels):
    out = ints(4)
    assert kernels.run_leaves_shared_memory_behind(pointer(out), 4) == b""
    assert out.tolist() == [-1] * 4


def test_blocks_that_meet_run_together(kernels):
    arrived, out = np.zeros(1, np.int32), ints(5, 64)
    assert kernels.run_meets(pointer(arrived), pointer(out), 5) == b""
    assert (out == 5).all()


@pytest.mark.parametrize(("threads", "shared"), [(1025, 0), (0, 0), (32, 1 << 20)])
def test_a_launch_that_no_gpu_has(kernels, threads, shared):
    values = ints(1)
    message = kernels.run_turn_round(pointer(values), pointer(values), 1, threads, shared, True).decode()
    assert message == (
        f"emulated CUDA: no GPU has a launch of 1 blocks of {threads} threads with {shared} bytes of shared memory"
    )
