"""What is shipped and how it is built: symbols, lazy imports, build modes."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

import pc3d
from pc3d._extras import require

ROOT = Path(__file__).parent.parent
LIBRARIES = sorted(Path(pc3d.__file__).parent.glob("_C*.so"))


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_cpu_kernels_are_compiled_and_loaded() -> None:
    assert pc3d.ops.build_info()["cpu"] == "loaded"


def test_the_cuda_kernels_are_compiled_where_a_compiler_fits_torch() -> None:
    if torch.version.cuda is None:
        assert pc3d.ops.build_info()["cuda"] != "loaded"
    elif shutil.which("nvcc") or find_spec("nvidia.cu13.bin"):
        assert pc3d.ops.build_info()["cuda"] == "loaded"


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_a_library_needs_only_the_stable_interface_of_torch(library: Path) -> None:
    """One mangled torch symbol or one of CPython would tie the file to one torch or one Python."""
    lines = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True).stdout
    symbols = [line.split()[-1].split("@")[0] for line in lines.splitlines()]
    assert any(symbol.startswith(("aoti_torch_", "torch_")) for symbol in symbols)
    tied = [s for s in symbols if s.startswith("Py") or (s.startswith("_Z") and ("c10" in s or "at" in s[:8]))]
    tied += [s for s in symbols if s.startswith("_Z") and "torch" in s]
    assert tied == []


def test_importing_pc3d_brings_in_nothing_optional() -> None:
    assert run_python(
        "import sys, pc3d; print('torch' in sys.modules, pc3d.ops.__name__, pc3d.load_encoder.__name__)"
    ) == ("False pc3d.ops load_encoder\n")
    heavy = ["pytorch_lightning", "sklearn", "jsonargparse", "matplotlib", "trimesh", "h5py", "open3d", "torchvision"]
    loaded = run_python(
        f"import sys, pc3d; pc3d.load_encoder; print([name for name in {heavy} if name in sys.modules])"
    )
    assert loaded.strip() == "[]"


def test_tasks_are_listed_before_what_they_need_is_imported() -> None:
    """By ``dir``, which completion in an interpreter asks."""
    code = "import sys, pc3d.tasks as t; print({*t.__all__} - {*dir(t)}, 'pytorch_lightning' in sys.modules)"
    assert run_python(code) == "set() False\n"


def test_a_missing_extra_names_its_install_command() -> None:
    with pytest.raises(ImportError, match=r'pip install "pc3d\[viz\]"'):
        require("a_module_that_does_not_exist", extra="viz")


def test_where_pc3d_is_not_installed_its_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.distribution", nothing)
    with pytest.raises(ImportError, match=re.escape(f'pip install "{Path(pc3d.__file__).parent.parent}[viz]"')):
        require("a_module_that_does_not_exist", extra="viz")


def build_wheel(mode: str, folder: Path) -> subprocess.CompletedProcess[str]:
    source = folder / "source"
    shutil.copytree(
        ROOT,
        source,
        ignore=shutil.ignore_patterns(".git", ".venv*", "build", "runs", "tests", "*.so", "*.npz", ".*_cache"),
    )
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps", "-w", folder, source]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PC3D_BUILD": mode})


def test_the_source_distribution_has_what_the_readme_links_to_and_the_makefile_needs(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    held = set((tmp_path / "pc3d.egg-info" / "SOURCES.txt").read_text(encoding="utf-8").splitlines())
    folders = {str(folder) for name in held for folder in Path(name).parents}
    links = re.findall(r"\]\(([^)#]+)[)#]", (ROOT / "README.md").read_text(encoding="utf-8"))
    needed = {link for link in links if "://" not in link} | {"docs/conf.py", "Makefile", ".clang-format"}
    assert needed - held - folders == set()


@pytest.mark.slow
def test_a_build_without_kernels_gives_a_pure_wheel(tmp_path: Path) -> None:
    done = build_wheel("none", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PC3D_BUILD=none: no kernels are compiled" in done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.endswith(".so")]
    assert {"pc3d/py.typed", "pc3d/configs/pretrain/point_cmae.yaml"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "csrc/", "benchmarks/"))]


@pytest.mark.slow
def test_an_unknown_build_mode_is_refused(tmp_path: Path) -> None:
    done = build_wheel("gpu", tmp_path)
    assert done.returncode != 0
    assert "PC3D_BUILD='gpu' is not one of auto, cpu, cuda, none" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("system", "machine", "build"),
    [("linux", "x86_64", "open3d-cpu"), ("linux", "aarch64", "open3d"), ("darwin", "arm64", "open3d")],
)
def test_every_platform_gets_the_one_build_of_open3d_that_it_has(system: str, machine: str, build: str) -> None:
    """open3d-cpu has wheels for Linux on x86-64 alone: elsewhere pip would refuse all of pc3d[all]."""
    for name in ("pyproject.toml", "requirements/dev.lock"):
        lines = re.findall(r'^ *"?(open3d[^"\n]*)', (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
        needed = [Requirement(line) for line in lines if not line.startswith("open3d.")]
        here = {"sys_platform": system, "platform_machine": machine}
        assert [n.name for n in needed if n.marker is None or n.marker.evaluate(here)] == [build]


def build_script(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of setup.py, which builds nothing meanwhile."""
    monkeypatch.setenv("PC3D_BUILD", "none")
    monkeypatch.setattr(sys, "argv", ["setup.py", "--version"])
    return runpy.run_path(str(ROOT / "setup.py"))


@pytest.mark.parametrize(
    ("machine", "folder"),
    [
        ("x86_64", "lib64"),
        ("x86_64", "targets/x86_64-linux/lib"),
        ("aarch64", "targets/sbsa-linux/lib"),
        ("aarch64", "targets/aarch64-linux/lib"),
    ],
)
def test_the_cuda_runtime_of_this_machine_is_found(
    machine: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (folder, "targets/other-linux/lib"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "libcudart.so.13").touch()
    find = build_script(monkeypatch)["find_cuda_runtime"]
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert find(tmp_path) == tmp_path / folder / "libcudart.so.13"


@pytest.mark.parametrize("source", ["neighbors", "window_attention"])
def test_clang_compiles_kernels_of_every_level(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clang refuses to return vectors that are wider than the target's, which GCC inlines away."""
    clang = shutil.which("clang++")
    if clang is None:
        pytest.skip("needs clang++ (Debian: apt-get install clang)")
    monkeypatch.setenv("CXX", clang)
    includes = [f"-I{ROOT / 'csrc'}", f"-I{Path(torch.__file__).parent / 'include'}"]
    command = build_script(monkeypatch)["BuildKernels"]._cpu_command(includes)
    command += ["-O0", "-Werror", "-c", str(ROOT / "csrc" / "cpu" / f"{source}.cpp"), "-o", str(tmp_path / "object.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
