"""The stand-ins against plain statements of what the old extensions computed."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pc3d.compat import chamfer_dist, knn_cuda, pointnet2_ops


@pytest.fixture
def xyz() -> torch.Tensor:
    return torch.randn(2, 60, 3, generator=torch.Generator().manual_seed(0))


def test_furthest_point_sample_starts_at_zero_and_avoids_the_origin(xyz: torch.Tensor) -> None:
    xyz[:, 7] = 0.001
    index = pointnet2_ops.furthest_point_sample(xyz, 60)
    assert index.dtype == torch.int32
    assert index[:, 0].tolist() == [0, 0]
    assert 7 not in index[0].tolist()
    assert len(set(index[0].tolist())) == 59


def test_channels_first_reading(xyz: torch.Tensor) -> None:
    features = torch.randn(2, 5, 60)
    idx = torch.randint(0, 60, (2, 4, 3), dtype=torch.int32)
    grouped = pointnet2_ops.grouping_operation(features, idx)
    assert grouped[1, 2, 3, 0] == features[1, 2, idx[1, 3, 0]]
    gathered = pointnet2_ops.gather_operation(features, idx[:, :, 0])
    assert torch.equal(gathered, grouped[..., 0])


def test_three_nearest_and_interpolation_against_cdist(xyz: torch.Tensor) -> None:
    known = xyz[:, :20].contiguous()
    distance, idx = pointnet2_ops.three_nn(xyz, known)
    expected, order = torch.cdist(xyz.double(), known.double()).topk(3, largest=False)
    torch.testing.assert_close(distance.double(), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(idx.long(), order)
    weight = torch.rand(2, 60, 3)
    features = torch.randn(2, 4, 20)
    out = pointnet2_ops.three_interpolate(features, idx, weight)
    one = sum(weight[1, 30, j] * features[1, :, idx[1, 30, j]] for j in range(3))
    torch.testing.assert_close(out[1, :, 30], one)


def test_an_empty_ball_reads_index_zero(xyz: torch.Tensor) -> None:
    idx = pointnet2_ops.ball_query(0.5, 4, xyz, torch.full((2, 1, 3), 100.0))
    assert idx.dtype == torch.int32
    assert not idx.any()


def test_query_and_group_puts_relative_coordinates_first(xyz: torch.Tensor) -> None:
    centers = xyz[:, :3].contiguous()
    features = torch.randn(2, 5, 60)
    out = pointnet2_ops.QueryAndGroup(0.8, 6)(xyz, centers, features)
    idx = pointnet2_ops.ball_query(0.8, 6, xyz, centers).long()
    assert out.shape == (2, 8, 3, 6)
    torch.testing.assert_close(out[1, :3, 2, 4], xyz[1, idx[1, 2, 4]] - centers[1, 2])
    torch.testing.assert_close(out[1, 3:, 2, 4], features[1, :, idx[1, 2, 4]])
    everything = pointnet2_ops.GroupAll()(xyz, None, features)
    assert everything.shape == (2, 8, 1, 60)


@pytest.mark.parametrize("transpose_mode", [True, False])
def test_knn_gives_distances_and_indices_in_both_layouts(xyz: torch.Tensor, transpose_mode: bool) -> None:
    query = xyz[:, :9] + 0.01
    layout = (lambda t: t) if transpose_mode else (lambda t: t.transpose(1, 2).contiguous())
    distance, index = knn_cuda.KNN(k=4, transpose_mode=transpose_mode)(layout(xyz), layout(query))
    expected, order = torch.cdist(query.double(), xyz.double()).topk(4, largest=False)
    torch.testing.assert_close(layout(distance).double(), expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(layout(index), order)
    index.view(-1)  # as Point-BERT's dVAE does, which asks for contiguous memory
    distance.view(-1)


def test_chamfer_of_one_point_each() -> None:
    p, q = torch.zeros(1, 1, 3), torch.tensor([[[1.0, 0.0, 0.0]]])
    assert chamfer_dist.ChamferDistanceL2()(p, q) == 2
    assert chamfer_dist.ChamferDistanceL1()(p, q) == 1


def test_install_leads_the_old_names_here() -> None:
    code = (
        "import pc3d.compat; names = pc3d.compat.install(); again = pc3d.compat.install()\n"
        "from pointnet2_ops import pointnet2_utils; from pointnet2_ops.pointnet2_utils import furthest_point_sample\n"
        "from pointnet2_ops.pointnet2_modules import PointnetSAModule; from pointnet2_ops import pointnet2_modules\n"
        "from torch_cluster import knn_graph; from torch_scatter import scatter\n"
        "import pointnet2._ext as one, pointnet2_ops._ext as other; from pointnet2_ops import _ext\n"
        "import pointnet2_cuda, pointops_cuda, dgl.geometry; dgl.geometry.farthest_point_sampler\n"
        "assert one is other is _ext; pointnet2_cuda.three_nn_wrapper, pointops_cuda.knnquery_cuda\n"
        "from knn_cuda import KNN; from extensions.chamfer_dist import ChamferDistanceL2\n"
        "assert names == again, (names, again)\n"
        "print(pointnet2_utils.furthest_point_sample is furthest_point_sample, KNN.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "pc3d.compat.knn_cuda"], done.stderr


def test_three_nearest_have_no_gradient(xyz: torch.Tensor) -> None:
    """Where a point meets itself the square root has an infinite slope; the original has no gradient at all."""
    unknown = xyz.clone().requires_grad_()
    distance, _ = pointnet2_ops.three_nn(unknown, unknown[:, :20])
    assert not distance.requires_grad


def test_split_chamfer_and_padding() -> None:
    x = torch.randn(1, 30, 3)
    y = torch.cat([torch.randn(1, 20, 3), torch.zeros(1, 9, 3)], dim=1)
    there, back = chamfer_dist.ChamferDistanceL2_split(ignore_zeros=True)(x, y)
    torch.testing.assert_close(there + back, chamfer_dist.ChamferDistanceL2()(x, y[:, :20]))
    torch.testing.assert_close(chamfer_dist.ChamferDistanceL2(ignore_zeros=True)(x, y), there + back)


@pytest.mark.parametrize("line", ["import a_compiled_module_that_is_not_there", "assert False, 'needs a GPU'"])
def test_install_stands_in_for_what_was_never_compiled(tmp_path: Path, line: str) -> None:
    """Repositories of the family carry extensions/chamfer_dist, which imports a compiled module; some packages compile
    while they are imported, and fail in their own ways."""
    package = tmp_path / "extensions" / "chamfer_dist"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(line + "\n")
    code = (
        "import pc3d.compat; pc3d.compat.install()\n"
        "from extensions.chamfer_dist import ChamferDistanceL2; print(ChamferDistanceL2.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "pc3d.compat.chamfer_dist", done.stderr


def test_a_chamfer_folder_loads_once_its_compiled_module_is_there(tmp_path: Path) -> None:
    """A repository's own classes stay its own; PoinTr's folder has one more than the usual ones."""
    package = tmp_path / "extensions" / "chamfer_dist"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import chamfer\nclass ChamferDistanceL1_PM: pass\n")
    code = (
        "import pc3d.compat; assert 'extensions.chamfer_dist' not in pc3d.compat.install()\n"
        "import extensions.chamfer_dist as own; print(own.__file__, own.chamfer.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == [str(package / "__init__.py"), "pc3d.compat.chamfer"], done.stderr


def test_a_pointnet2_folder_loads_once_its_compiled_module_is_there(tmp_path: Path) -> None:
    """VoteNet's folder is a package by its place alone; 3DETR's and MaskPoint's are on the path themselves."""
    (tmp_path / "pointnet2").mkdir()
    (tmp_path / "pointnet2" / "pointnet2_utils.py").write_text("import pointnet2._ext as _ext\n")
    for code in [
        "from pointnet2 import pointnet2_utils, _ext",
        "import sys; sys.path.insert(0, 'pointnet2'); import pointnet2_utils; from pointnet2 import _ext",
    ]:
        code = f"import pc3d.compat; pc3d.compat.install(); {code}; print(pointnet2_utils._ext.__name__, _ext.__name__)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
        assert done.stdout.split() == ["pc3d.compat.pointnet2_ext"] * 2, done.stderr


def test_a_folder_that_is_on_the_path_later_is_found(tmp_path: Path) -> None:
    """Where ``pointnet2`` is in a folder that the script adds to the path, with or without ``__init__.py``."""
    package = tmp_path / "lib" / "pointnet2"
    package.mkdir(parents=True)
    (package / "pointnet2_utils.py").write_text("import pointnet2._ext as _ext\n")
    code = (
        "import pc3d.compat, sys; pc3d.compat.install(); sys.path.append('lib')\n"
        "from pointnet2 import pointnet2_utils; print(pointnet2_utils._ext.__name__)"
    )
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
        assert done.stdout.split() == ["pc3d.compat.pointnet2_ext"], done.stderr
        (package / "__init__.py").touch()


def test_a_package_that_fails_to_load_says_why(tmp_path: Path) -> None:
    """The package pointnet2 of another repository is not hidden by an empty one."""
    (tmp_path / "pointnet2").mkdir()
    (tmp_path / "pointnet2" / "__init__.py").write_text("import a_package_that_is_not_there\n")
    code = "import pc3d.compat; pc3d.compat.install(); import pointnet2.models"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "No module named 'a_package_that_is_not_there'" in done.stderr


def test_what_lies_beside_a_replaced_folder_is_found(tmp_path: Path) -> None:
    for name in ("chamfer_dist", "emd"):
        (tmp_path / "extensions" / name).mkdir(parents=True)
        (tmp_path / "extensions" / name / "__init__.py").touch()
    code = (
        "import pc3d.compat; assert 'extensions.chamfer_dist' in pc3d.compat.install(replace=True)\n"
        "from extensions import emd, chamfer_dist; print(emd.__file__, chamfer_dist.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    beside = str(tmp_path / "extensions" / "emd" / "__init__.py")
    assert done.stdout.split() == [beside, "pc3d.compat.chamfer_dist"], done.stderr


def test_install_leaves_an_installed_extension_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = type(sys)("knn_cuda")
    real.__file__ = "knn_cuda.so"
    monkeypatch.setitem(sys.modules, "knn_cuda", real)
    compat = importlib.import_module("pc3d.compat")
    installed = compat.install()
    for name in [*installed, "extensions"]:
        sys.modules.pop(name, None)
    assert "knn_cuda" not in installed
    assert sys.modules["knn_cuda"] is real
