"""What every installation holds, whether from this tree or from a wheel: kernels, embedded data, recipes."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files

import torch

import pc3d
from pc3d.data import Household


def test_the_kernels_are_loaded() -> None:
    assert pc3d.ops.build_info()["cpu"] == "loaded"


def test_every_part_is_there_once_the_package_is_imported() -> None:
    """In an interpreter of its own: here, other tests have imported them."""
    program = """
import sys, pc3d
assert {"models", "data", "ops"} <= set(dir(pc3d))
assert "torch" not in sys.modules
pc3d.models.Swin3D, pc3d.data.SCANNET20, pc3d.compat.install, pc3d.nn.use_spconv, pc3d.ops.knn
try:
    pc3d.no_such_part
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "module 'pc3d' has no attribute 'no_such_part'\n"


def test_the_embedded_objects_are_there_whole() -> None:
    train, test = Household("train"), Household("test", pictures=True)
    assert (len(train), len(test)) == (487, 124)
    item = test[0]
    assert item.xyz.shape == (2048, 3)
    assert item.rgb is not None
    assert item.normal is not None
    assert item.image is not None
    assert item.text
    assert item.meta["id"]


def test_the_recipes_are_there() -> None:
    names = {entry.name for entry in (files("pc3d") / "configs" / "pretrain").iterdir()}
    assert {"point_cmae.yaml", "point_mae.yaml", "point_cmae_household.yaml"} <= names


def test_an_encoder_makes_features() -> None:
    from pc3d.models import PointViT

    encoder = PointViT(embed_dim=48, depth=1, num_heads=3, num_groups=8, group_size=8).eval()
    xyz = torch.stack([Household("test")[index].xyz for index in range(2)])
    assert encoder.encode(xyz).shape == (2, 48)
