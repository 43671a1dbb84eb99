"""Compiles csrc/ into two plain shared libraries, one for the CPU and one for CUDA.

The libraries speak torch's stable C interface and know nothing of Python, so one file of each serves every CPython and
every torch since 2.11. That is also why torch's own build helpers are not used: two compiler calls are all it takes,
and the helpers insist on CUDA libraries that the kernels do not need.

``PC3D_BUILD`` chooses: ``auto`` (default: CUDA kernels too where nvcc and a CUDA build of torch match), ``cpu``,
``cuda`` (fail without CUDA), ``none`` (no kernels: the plain PyTorch definitions run instead).
``PC3D_CUDA_ARCHITECTURES`` names the GPU generations, default ``80;90;100;120`` as far as nvcc knows them. The first is
kept as an intermediate form too, from which the driver of any later GPU makes its own code.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent.resolve()
TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # the stable interface of torch 2.11
STRICT = "-DTORCH_STABLE_ONLY"
MODES = ("auto", "cpu", "cuda", "none")


def say(message: str) -> None:
    print(f"pc3d: {message}", file=sys.stderr, flush=True)


def find_torch() -> tuple[Path, str | None]:
    """The folder of the torch package and the CUDA version it was built for, read without importing it."""
    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            "pc3d: torch is not importable while building. Install it first (pip install torch), "
            "or set PC3D_BUILD=none for a build without kernels."
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    match = re.search(r"^cuda(?::[^=]*)? = '([\d.]+)'", (folder / "version.py").read_text(), re.MULTILINE)
    return folder, match.group(1) if match else None


def nvcc_candidates(torch: Path, major: str) -> list[str]:
    """nvcc on the path, under CUDA_HOME, in the usual place, and from the wheel nvidia-cuda-nvcc beside torch."""
    homes = [os.environ.get("CUDA_HOME", "/usr/local/cuda"), str(torch.parent / "nvidia" / f"cu{major}")]
    found = [shutil.which("nvcc"), *(shutil.which("nvcc", path=f"{home}/bin") for home in homes)]
    return [nvcc for nvcc in dict.fromkeys(found) if nvcc]


def toolkit_of(nvcc: str, cuda_version: str) -> tuple[Path | None, str]:
    """The root of the toolkit that an nvcc belongs to, if it fits torch, and the reason in words."""
    # A wrapper script may stand in for nvcc: a dry run names the real root.
    listing = subprocess.run([nvcc, "--dryrun", "-x", "cu", "/dev/null"], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.*)$", listing, re.MULTILINE)
    root = Path(top.group(1).strip()).resolve() if top else Path(nvcc).resolve().parent.parent
    release = re.search(r"release (\d+)", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)
    if release is None or release.group(1) != cuda_version.split(".")[0]:
        found = release.group(1) if release else "an unknown version"
        return None, f"torch was built for CUDA {cuda_version}, {nvcc} is of CUDA {found}: they must share the major"
    if not (root / "include" / "cuda_runtime.h").exists():
        return None, f"{root} has nvcc but not include/cuda_runtime.h"
    return root, f"nvcc of {root} fits torch's CUDA {cuda_version}"


def find_toolkit() -> tuple[Path | None, str]:
    """The root of the first CUDA toolkit that fits torch (None if there is none), and the reason in words."""
    torch, cuda_version = find_torch()
    if cuda_version is None:
        return None, "this torch is a CPU build"
    candidates = [toolkit_of(nvcc, cuda_version) for nvcc in nvcc_candidates(torch, cuda_version.split(".")[0])]
    if not candidates:
        return None, f"torch is a CUDA {cuda_version} build, but no nvcc was found (pip install nvidia-cuda-nvcc)"
    return next((candidate for candidate in candidates if candidate[0]), candidates[0])


def find_cuda_runtime(root: Path) -> Path:
    """The CUDA runtime library of a toolkit (its wheel has no unversioned name for the linker)."""
    # Under targets/ a toolkit may hold what is for other machines too. Servers on ARM are sbsa, a Jetson is aarch64.
    targets = ("sbsa-linux", "aarch64-linux") if platform.machine() == "aarch64" else ("x86_64-linux",)
    for folder in ("lib64", "lib", *(f"targets/{target}/lib" for target in targets)):
        for library in [root / folder / "libcudart.so", *sorted((root / folder).glob("libcudart.so.*"))]:
            if library.exists():
                return library
    raise SystemExit(f"pc3d: no libcudart.so under {root}")


def cxx() -> list[str]:
    """The C++ compiler, with a launcher such as ccache where CXX names one."""
    return shlex.split(os.environ.get("CXX", "c++"))


class BuildKernels(build_ext):
    """Calls the compilers; one object a source file, side by side."""

    def build_extension(self, ext: Extension) -> None:
        try:
            self._build(ext)
        except SystemExit as failure:
            if not ext.name.endswith("_cuda") or os.environ.get("PC3D_BUILD", "auto") != "auto":
                raise
            say(f"the CUDA kernels did not compile, going on without them (PC3D_BUILD=cuda insists):\n{failure}")
            ext.optional = True
            raise CompileError("no CUDA kernels") from failure

    def _build(self, ext: Extension) -> None:
        torch, _ = find_torch()
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        objects_folder = Path(self.build_temp) / ext.name
        objects_folder.mkdir(parents=True, exist_ok=True)
        is_cuda = ext.name.endswith("_cuda")
        includes = [f"-I{ROOT / 'csrc'}", f"-I{torch / 'include'}"]
        jobs = []
        for source in ext.sources:
            target = objects_folder / (Path(source).name + ".o")
            command = self._cuda_command(ext, includes) if is_cuda else self._cpu_command(includes)
            jobs.append([*command, "-c", str(ROOT / source), "-o", str(target)])
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            list(pool.map(self._call, jobs))
        objects = [job[-1] for job in jobs]
        libraries = [f"-L{torch / 'lib'}", "-ltorch_cpu"]
        if is_cuda:
            # torch_cuda holds nothing this library names, so the linker would drop it without --no-as-needed.
            runtime = str(find_cuda_runtime(self._cuda_root(ext)))
            libraries = [f"-L{torch / 'lib'}", "-Wl,--no-as-needed", "-ltorch_cuda", "-ltorch_cpu", runtime]
        self._call([*cxx(), "-shared", *objects, *libraries, "-o", str(output)])

    @staticmethod
    def _cpu_command(includes: list[str]) -> list[str]:
        # No contraction into fused multiply-adds: distances must round alike on every machine, so that ties do too.
        flags = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fopenmp-simd"]
        # A loop marked simd may be vectorised, it need not be: clang warns of those that are not.
        flags += ["-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wno-pass-failed"]
        return [*cxx(), *flags, TARGET, STRICT, *includes]

    @staticmethod
    def _cuda_root(ext: Extension) -> Path:
        return Path(ext.extra_compile_args[0])

    def _cuda_command(self, ext: Extension, includes: list[str]) -> list[str]:
        root = self._cuda_root(ext)
        nvcc = str(root / "bin" / "nvcc")
        if "PC3D_CUDA_ARCHITECTURES" in os.environ:
            names = os.environ["PC3D_CUDA_ARCHITECTURES"].split(";")
        else:
            known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
            names = [name for name in ("80", "90", "100", "120") if f"compute_{name}" in known]
        targets = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in names]
        targets.append(f"-gencode=arch=compute_{names[0]},code=compute_{names[0]}")
        flags = ["-std=c++17", "-O3", "--fmad=false", "-DUSE_CUDA", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
        return [nvcc, *flags, *targets, TARGET, STRICT, *includes]

    @staticmethod
    def _call(command: list[str]) -> None:
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            raise SystemExit(
                f"pc3d: there is no compiler {command[0]!r}. Install one (Debian: apt-get install g++), name another "
                "in CXX, or build without kernels: PC3D_BUILD=none"
            ) from None
        if done.stderr.strip():
            say(done.stderr.strip())
        if done.returncode:
            raise SystemExit(f"pc3d: this command failed with exit code {done.returncode}:\n{' '.join(command)}")


def sources(folder: str, suffix: str) -> list[str]:
    found = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / folder).glob(f"*{suffix}"))
    if not found:
        raise SystemExit(f"pc3d: csrc/{folder} holds no {suffix} files: the source tree is not complete")
    return found


def extensions() -> list[Extension]:
    mode = os.environ.get("PC3D_BUILD", "auto")
    if mode not in MODES:
        raise SystemExit(f"pc3d: PC3D_BUILD={mode!r} is not one of {', '.join(MODES)}")
    if mode == "none":
        say("PC3D_BUILD=none: no kernels are compiled, the plain PyTorch definitions will run")
        return []
    headers = sources("kernels", ".h") + sources("kernels", ".cuh") + sources("cuda", ".cuh")
    headers += sources("cpu", ".h")
    cpu = Extension("pc3d._C", sources("cpu", ".cpp"), depends=headers, py_limited_api=True)
    if mode == "cpu":
        say("PC3D_BUILD=cpu: compiling the CPU kernels")
        return [cpu]
    root, reason = find_toolkit()
    if root is None:
        if mode == "cuda":
            raise SystemExit(f"pc3d: PC3D_BUILD=cuda, but {reason}")
        say(f"compiling the CPU kernels only: {reason}")
        return [cpu]
    say(f"compiling the CPU and the CUDA kernels: {reason}")
    cuda = Extension(
        "pc3d._C_cuda", sources("cuda", ".cu"), depends=headers, py_limited_api=True, extra_compile_args=[str(root)]
    )
    return [cpu, cuda]


is_query = len(sys.argv) > 1 and sys.argv[1] in ("egg_info", "dist_info", "sdist", "clean")
setup(
    version=re.search(r'__version__ = "(.+)"', (ROOT / "pc3d" / "_version.py").read_text()).group(1),
    ext_modules=[] if is_query else extensions(),
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
