"""The interfaces of old CUDA extensions, implemented with :mod:`pc3d.ops`.

Many repositories import ``pointnet2_ops``, ``knn_cuda``, ``extensions.chamfer_dist`` and others, CUDA extensions that
build only with one old version of PyTorch. After ::

    import pc3d.compat
    pc3d.compat.install()

these imports find the modules of this package, which run on CPU and CUDA.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

__all__ = ["install"]

# ``chamfer`` comes before ``extensions.chamfer_dist``, because a repository's own folder of it imports ``chamfer``.
_STANDS_FOR = {
    "chamfer": "pc3d.compat.chamfer",
    "pointnet2_ops": "pc3d.compat.pointnet2_ops",
    "pointnet2_ops.pointnet2_utils": "pc3d.compat.pointnet2_ops",
    "pointnet2_ops.pointnet2_modules": "pc3d.compat.pointnet2_modules",
    "pointnet2_ops._ext": "pc3d.compat.pointnet2_ext",
    "pointnet2._ext": "pc3d.compat.pointnet2_ext",
    "knn_cuda": "pc3d.compat.knn_cuda",
    "extensions.chamfer_dist": "pc3d.compat.chamfer_dist",
    "pointnet2_batch_cuda": "pc3d.compat.pointnet2_batch_cuda",
    "pointnet2_cuda": "pc3d.compat.pointnet2_batch_cuda",
    "pointops": "pc3d.compat.pointops",
    "pointops_cuda": "pc3d.compat.pointops_cuda",
    "torch_cluster": "pc3d.compat.torch_cluster",
    "torch_scatter": "pc3d.compat.torch_scatter",
    "dgl.geometry": "pc3d.compat.dgl_geometry",
}


def install(*, replace: bool = False) -> list[str]:
    """Make ``import pointnet2_ops``, ``pointnet2._ext``, ``pointnet2_cuda``, ``pointnet2_batch_cuda``, ``knn_cuda``,
    ``chamfer``, ``extensions.chamfer_dist``, ``pointops``, ``pointops_cuda``, ``torch_cluster``, ``torch_scatter`` and
    ``dgl.geometry`` find the modules of this package.

    Args:
        replace: also replace extensions that are installed.

    Returns:
        Names of the modules that are now those of this package. An extension that is installed and can be imported is
        not replaced unless ``replace`` is True.
    """
    installed = []
    for name, target in _STANDS_FOR.items():
        if not replace and _is_importable(name):
            continue
        module = importlib.import_module(target)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            _join(parent, child, module)
        installed.append(name)
    if _EmptyPackages not in sys.meta_path:
        sys.meta_path.append(_EmptyPackages)
    return installed


def _join(parent: str, child: str, module: ModuleType) -> None:
    """Make ``child`` an attribute of its package, if a repository has such a package, with other modules in it.

    Where there is none, :class:`_EmptyPackages` makes one when it is imported: the path may contain it by then.
    """
    if parent not in sys.modules and PathFinder.find_spec(parent) is not None:
        _is_importable(parent)
    if parent in sys.modules:
        setattr(sys.modules[parent], child, module)


class _EmptyPackages:
    """Finds packages of which there are only stand-ins for modules in them; asked after all other finders."""

    def __init__(self, children: dict[str, ModuleType]) -> None:
        self.children = children

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The empty package ``name``, if a stand-in is in it."""
        inside = [whole for whole in _STANDS_FOR if whole.rpartition(".")[0] == name and whole in sys.modules]
        children = {whole.rpartition(".")[2]: sys.modules[whole] for whole in inside}
        return ModuleSpec(name, cls(children), is_package=True) if children else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Its modules are its attributes."""
        module = ModuleType(spec.name)
        module.__dict__.update(self.children)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """There is no code."""


def _is_importable(name: str) -> bool:
    """Whether the original extension exists *and* can be imported.

    Repositories contain folders of extensions that were never compiled. Some compile during import, which raises errors
    of various types without a compiler or GPU.
    """
    if name in sys.modules:
        return not sys.modules[name].__name__.startswith("pc3d.compat") and hasattr(sys.modules[name], "__file__")
    try:
        importlib.import_module(name)
    except Exception:
        return False
    return True
