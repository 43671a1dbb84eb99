"""Which kernels run: what is loaded, the fallback to plain PyTorch, other processes, direct calls."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from clouds import make, offsets_of
from torch.utils.data import DataLoader, Dataset

import pc3d
from pc3d.ops import build_info, farthest_point_sample, knn

PACKAGE = Path(pc3d.__file__).parent


def test_build_info_names_both_devices():
    info = build_info()
    assert set(info) == {"cpu", "cuda"}
    assert info["cpu"] == "loaded"
    info["cpu"] = "changed"
    assert build_info()["cpu"] == "loaded"


@pytest.mark.skipif("PC3D_EMULATED_CUDA" not in os.environ, reason="for make test-emulated")
@pytest.mark.parametrize("device", ["cpu"])
def test_cuda_kernels_run_in_place_of_those_of_the_cpu(device):
    for name in ("farthest_point_sample", "knn", "gather", "voxelize", "sparse_conv", "window_attention"):
        kernel = torch._C._dispatch_dump(f"pc3d::{name}").split("\nCPU: registered at ")[1].split(":")[0]
        assert (Path(kernel).parent.name, Path(kernel).suffix) == ("cuda", ".cu"), kernel


@pytest.fixture
def package_without_kernels(tmp_path):
    """A copy of the operators as PC3D_BUILD=none installs them."""
    shutil.copytree(PACKAGE / "ops", tmp_path / "pc3d" / "ops", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pc3d" / "__init__.py").write_text("")
    return tmp_path


def run_python(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_kernels_the_definitions_run_after_one_warning(package_without_kernels):
    output = run_python(
        """
import warnings, torch
from pc3d.ops import FallbackWarning, build_info, chamfer_distance, farthest_point_sample, gather, interpolate, knn
assert set(build_info().values()) == {"not compiled"}, build_info()
xyz = torch.rand(2, 20, 3, requires_grad=True)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        farthest_point_sample(xyz, 5)
        knn(xyz, 3)
assert [w.category for w in caught] == [FallbackWarning] * 2, [str(w.message) for w in caught]
print(caught[0].message)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", FallbackWarning)
    value = chamfer_distance(xyz, xyz + 0.1) + interpolate(xyz, xyz, xyz + 0.1).sum()
    value.backward()
    assert xyz.grad.isfinite().all()
    compiled = torch.compile(lambda x: gather(x, farthest_point_sample(x, 5)), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(xyz), gather(xyz, farthest_point_sample(xyz, 5)))
""",
        package_without_kernels,
    )
    assert "no compiled kernel of 'farthest_point_sample' for device 'cpu' (not compiled)" in output
    assert "pip install ." in output


def test_without_kernels_the_definitions_keep_their_types_under_autocast(package_without_kernels):
    run_python(
        """
import warnings, torch
warnings.simplefilter("ignore")
from pc3d.ops import window_attention, window_partition
coords = torch.cartesian_prod(*[torch.arange(3, dtype=torch.int32)] * 3)
q, k, v = (torch.randn(27, 2, 4, requires_grad=True) for _ in range(3))
tables = [torch.randn(36, 2, 4) for _ in range(3)]
windows = window_partition(coords, 3)
with torch.autocast("cpu", torch.bfloat16):
    out = window_attention(q, k, v, coords.float(), windows, *tables, [12] * 3)
out.float().sum().backward()
assert q.grad.isfinite().all() and q.grad.any()
""",
        package_without_kernels,
    )


def test_a_library_that_does_not_load_is_named(package_without_kernels):
    (package_without_kernels / "pc3d" / "_C.abi3.so").write_text("not a library")
    output = run_python(
        """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from pc3d.ops import build_info
print(build_info()["cpu"])
print([w.message for w in caught if w.category.__name__ == "FallbackWarning"])
""",
        package_without_kernels,
    )
    assert output.startswith("compiled, but does not load: ")
    assert "the cpu kernels do not load into torch" in output
    assert "pip install --force-reinstall --no-deps ." in output


class Sampled(Dataset):
    """Calls operators in the worker."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, item: int) -> torch.Tensor:
        xyz = make("normal", 3000, seed=item)
        return farthest_point_sample(xyz, 16) + knn(xyz, 2, query=xyz[:16]).index.sum(1)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_loader_workers_after_a_parallel_parent(context):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = [Sampled()[i] for i in range(8)]
        knn(make("normal", 20_000), 1, query=make("normal", 2_000, seed=1))
        loader = DataLoader(Sampled(), batch_size=None, num_workers=2, multiprocessing_context=context, timeout=120)
        for own, right in zip(loader, expected, strict=True):
            assert torch.equal(own, right)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_changes_nothing(threads):
    points, offsets = make("normal", 3000), offsets_of([1000, 0, 2000])
    rows = torch.randn(3000, 5, requires_grad=True)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            index = knn(points, 4, offsets=offsets).index
            found = farthest_point_sample(points, 40, offsets=offsets)
            (grad,) = torch.autograd.grad(pc3d.ops.gather(rows, index).sin().sum(), rows)
            results.append((index, found, grad))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


# The raw operators are no public interface, but a compiled graph calls them unchecked: they must guard their memory.
def test_raw_operators_guard_their_memory_on_the_cpu():
    ops, xyz = torch.ops.pc3d, torch.zeros(10, 3)
    good, bad = torch.tensor([0, 10]), torch.tensor([0, 11])
    for call in (
        lambda: ops.knn(xyz, bad, xyz, good, 2),
        lambda: ops.knn(xyz, good, xyz, torch.tensor([0, 12, 10]), 2),
        lambda: ops.knn(xyz, good, xyz, good, 11),
        lambda: ops.ball_query(xyz, good, xyz, bad, 1.0, 2, False),
        lambda: ops.nearest_both_ways(xyz, bad, xyz, good),
        lambda: ops.farthest_point_sample(xyz, good, torch.tensor([0, 11]), 11, torch.tensor([0]), False),
        lambda: ops.farthest_point_sample(xyz, good, torch.tensor([0, 3]), 3, torch.tensor([10]), False),
        lambda: ops.gather(xyz, torch.tensor([10])),
        lambda: ops.gather(xyz, torch.tensor([-2])),
        lambda: ops.gather_backward(xyz, torch.arange(10) + 1, 10, False),
        lambda: ops.weighted_gather(xyz, torch.tensor([[10]]), torch.ones(1, 1)),
        lambda: ops.knn(xyz.half(), good, xyz.half(), good, 2),
    ):
        with pytest.raises(RuntimeError):
            call()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_raw_operators_guard_their_memory_on_cuda():
    ops, xyz = torch.ops.pc3d, torch.rand(10, 3, device="cuda")
    bad = torch.tensor([-5, 1 << 40], device="cuda")
    good = torch.tensor([0, 10], device="cuda")
    index, _ = ops.knn(xyz, bad, xyz, good, 3)
    assert bool((index < 10).all())
    index, _ = ops.knn(xyz, good, xyz, bad, 11)
    assert bool(((index >= -1) & (index < 10)).all())
    index, _ = ops.ball_query(xyz, bad, xyz, good, 0.5, 4, True)
    assert bool((index < 10).all())
    _, rows, _, _ = ops.nearest_both_ways(xyz, bad, xyz, torch.tensor([0, 0], device="cuda"))
    assert bool((rows == -1).all())
    outside = torch.tensor([-7, 10, 1 << 40, 3], device="cuda")
    assert torch.equal(ops.gather(xyz, outside), torch.stack([*torch.zeros(3, 3, device="cuda"), xyz[3]]))
    for deterministic in (False, True):
        sums = ops.gather_backward(xyz[:4], outside, 10, deterministic)
        assert torch.equal(sums[3], xyz[3])
        assert int(sums.count_nonzero()) == 3
    start = torch.tensor([1 << 40], device="cuda")
    taken = ops.farthest_point_sample(xyz, bad, torch.tensor([0, 12], device="cuda"), 12, start, False)
    assert bool(((taken >= 0) & (taken < 10)).all())
