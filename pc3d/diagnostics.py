"""What this installation has: versions, kernels, devices, extras, data sets, libraries for the viewer."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from pc3d._extras import install_command
from pc3d._version import __version__

# The optional dependencies of each extra: import name, and the names it is distributed under.
EXTRAS: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "pytorch_lightning": ("pytorch-lightning",),
        "jsonargparse": ("jsonargparse",),
        "sklearn": ("scikit-learn",),
        "tensorboard": ("tensorboard",),
        "h5py": ("h5py",),
        "webdataset": ("webdataset",),
        "rich": ("rich",),
    },
    "io": {
        "trimesh": ("trimesh",),
        "laspy": ("laspy",),
        "h5py": ("h5py",),
        "pypcd4": ("pypcd4",),
        "PIL": ("pillow",),
    },
    "viz": {
        "matplotlib": ("matplotlib",),
        "plotly": ("plotly",),
        "jinja2": ("jinja2",),
        "PIL": ("pillow",),
        "viser": ("viser",),
        "open3d": ("open3d-cpu", "open3d"),
    },
    "image": {
        "open_clip": ("open_clip_torch",),
        "timm": ("timm",),
        "transformers": ("transformers",),
        "torchvision": ("torchvision",),
        "trimesh": ("trimesh",),
        "scipy": ("scipy",),
        "PIL": ("pillow",),
        "embreex": ("embreex",),
    },
    "search": {"usearch": ("usearch",)},
}
# Shared libraries that the Open3D window needs, with the Debian package of each.
_VIEWER_LIBRARIES = {
    "GL": "libgl1",
    "EGL": "libegl1",
    "X11": "libx11-6",
    "gomp": "libgomp1",
    "usb-1.0": "libusb-1.0-0",
    # Mesa's driver draws without a GPU; a GPU's own driver does as well.
    "vulkan": "libvulkan1 mesa-vulkan-drivers",
}
# The browser that the tests of pages drive, under the names that it is installed by.
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def diagnose() -> dict[str, Any]:
    """Look at the installation; nothing is changed and nothing heavy but torch is imported.

    Returns:
        Plain data with the keys ``versions``, ``kernels``, ``devices``, ``extras``, ``weights``, ``data`` and
        ``viewer``.
    """
    import torch

    from pc3d import ops

    return {
        "versions": {
            "pc3d": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torch built for CUDA": torch.version.cuda,
            "platform": platform.platform(),
            "executable": sys.executable,
        },
        "kernels": ops.build_info(),
        "devices": _devices(),
        "extras": {extra: _extra(extra, modules) for extra, modules in EXTRAS.items()},
        "weights": _weights(),
        "data": _data(),
        "viewer": _viewer(),
    }


def _viewer() -> dict[str, str]:
    """System libraries of the window, and a browser for the tests; last, what brings all that is missing."""
    missing = {
        library: package for library, package in _VIEWER_LIBRARIES.items() if not ctypes.util.find_library(library)
    }
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    found = {
        library: f"missing: apt-get install {package}" if library in missing else "found"
        for library, package in _VIEWER_LIBRARIES.items()
    }
    found["browser (tests)"] = browser or "missing: apt-get install chromium"
    packages = [*missing.values(), *([] if browser else ["chromium"])]
    if packages:
        found["all of them"] = f"apt-get install {' '.join(packages)}"
    return found


def _devices() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"cpu threads": torch.get_num_threads()}
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return found


def _extra(extra: str, modules: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    present = {module: _version(names) for module, names in modules.items() if importlib.util.find_spec(module)}
    missing = [module for module in modules if module not in present]
    return {"present": present, "missing": missing, "command": install_command(extra) if missing else None}


def _weights() -> dict[str, str]:
    """The offline towers of the image path: there, or how to get them. Nothing is read or run."""
    from pc3d.image.offline import OFFLINE_PACKAGES
    from pc3d.image.towers import INSTALL_WEIGHTS

    return {
        f"offline:{tower}": "found" if importlib.util.find_spec(package) else f"missing: {INSTALL_WEIGHTS}"
        for tower, package in OFFLINE_PACKAGES.items()
    }


def _version(distributions: tuple[str, ...]) -> str:
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "(version unknown)"


def _data() -> dict[str, str]:
    found = {}
    for name in ("household", "rooms"):
        embedded = Path(__file__).parent / "data" / name
        splits = ", ".join(sorted(path.stem for path in embedded.glob("*.json")))
        found[f"{name} (embedded)"] = f"splits {splits}" if splits else f"missing in {embedded}: reinstall pc3d"
    root = os.environ.get("PC3D_DATA")
    if root is None:
        found["PC3D_DATA"] = "not set; set it to the folder that holds your data sets to have them listed here"
    elif not Path(root).is_dir():
        found["PC3D_DATA"] = f"{root} is not a folder"
    else:
        folders = sorted(path for path in Path(root).iterdir() if path.is_dir())
        found["PC3D_DATA"] = f"{root}, {len(folders)} folders"
        found.update({path.name: _describe(path) for path in folders})
    return found


def _describe(folder: Path) -> str:
    splits = sorted(path.stem for path in folder.glob("*.json"))
    # Shards of objects are called SPLIT-NNN, rooms SPLIT_NNN.
    for what, pattern in (("object shards", "*-[0-9]*.npz"), ("rooms", "*_[0-9]*.npz")):
        if splits and any(folder.glob(pattern)):
            return f"{what}, splits {', '.join(splits)}"
    classes = sum(1 for path in folder.iterdir() if path.is_dir())
    files = sum(1 for path in folder.iterdir() if path.is_file())
    return f"{classes} sub-folders, {files} files"


def report(findings: dict[str, Any]) -> str:
    """The findings of :func:`diagnose` as text."""
    lines = []
    for section, content in findings.items():
        lines.append(section)
        if section == "extras":
            lines += [_extra_line(extra, state) for extra, state in content.items()]
        else:
            width = max(map(len, content), default=0)
            lines += [f"  {name:<{width}}  {value}" for name, value in content.items()]
    return "\n".join(lines)


def _extra_line(extra: str, state: dict[str, Any]) -> str:
    present = ", ".join(f"{module} {version}" for module, version in state["present"].items()) or "nothing"
    line = f"  {extra:<7} {present}"
    if state["missing"]:
        line += f"\n          missing {', '.join(state['missing'])}: {state['command']}"
    return line
