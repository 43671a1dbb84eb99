"""The call signatures of extensions that no longer build, over :mod:`pc3d.ops`.

Old repositories import ``pointnet2_ops``, ``knn_cuda``, ``extensions.chamfer_dist`` and others, CUDA extensions tied to
one old PyTorch. After ::

    import pc3d.compat
    pc3d.compat.install()

those imports find the modules of this package, which run on the CPU and on CUDA.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

__all__ = ["install"]

# The module ``chamfer`` comes before ``extensions.chamfer_dist``, whose own folder loads once it is there.
_STANDS_FOR = {
    "chamfer": "pc3d.compat.chamfer",
    "pointnet2_ops": "pc3d.compat.pointnet2_ops",
    "pointnet2_ops.pointnet2_utils": "pc3d.compat.pointnet2_ops",
    "pointnet2_ops.pointnet2_modules": "pc3d.compat.pointnet2_modules",
    "knn_cuda": "pc3d.compat.knn_cuda",
    "extensions.chamfer_dist": "pc3d.compat.chamfer_dist",
    "pointnet2_batch_cuda": "pc3d.compat.pointnet2_batch_cuda",
    "pointops": "pc3d.compat.pointops",
    "torch_cluster": "pc3d.compat.torch_cluster",
    "torch_scatter": "pc3d.compat.torch_scatter",
}


def install(*, replace: bool = False) -> list[str]:
    """Lets ``import pointnet2_ops``, ``knn_cuda``, ``chamfer``, ``extensions.chamfer_dist``, ``pointnet2_batch_cuda``,
    ``pointops``, ``torch_cluster`` and ``torch_scatter`` find the modules of this package.

    Args:
        replace: stand in also for an extension that is installed.

    Returns:
        The names that now lead here; one that is installed and loads is left alone unless ``replace``.
    """
    installed = []
    for name, target in _STANDS_FOR.items():
        if not replace and _is_importable(name):
            continue
        module = importlib.import_module(target)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            _is_importable(parent)  # a folder may hold other extensions, too
            setattr(sys.modules.setdefault(parent, ModuleType(parent)), child, module)
        installed.append(name)
    return installed


def _is_importable(name: str) -> bool:
    """Whether the real extension is there *and* loads.

    Repositories carry folders of it that were never compiled, and some compile while they are imported, which ends in
    an error of any kind without a compiler or a GPU.
    """
    if name in sys.modules:
        return not sys.modules[name].__name__.startswith("pc3d.compat") and hasattr(sys.modules[name], "__file__")
    try:
        importlib.import_module(name)
    except Exception:
        return False
    return True
