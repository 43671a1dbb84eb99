"""Methods and encoders of classes that pc3d does not have, from one verb to the next."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pc3d.cli import _segment_eval, _segment_row, _view_runs
from pc3d.cli._view_inputs import items_of, open_dataset
from pc3d.cli._view_layers import Request, build
from pc3d.cli.main import main
from pc3d.models import load_encoder
from pc3d.tasks.trained_objects import stored_preparation

MODULE = '''
"""An encoder, a masking strategy, and a method that shares nothing with those of pc3d."""
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import nn

from pathlib import Path

from pc3d.data import FolderDataset, MissingDataError, Selection, Transform
from pc3d.methods import Method, Optimisation, PointMAE, Reconstruction
from pc3d.models import ObjectEncoder


class Shared(ObjectEncoder):
    def __init__(self, embed_dim: int = 8, num_points: int = 256) -> None:
        super().__init__()
        self.config = {"embed_dim": embed_dim, "num_points": num_points}
        self.embed_dim = self.local_dim = embed_dim
        self.layer = nn.Linear(3, embed_dim)

    def reset_parameters(self):
        self.layer.reset_parameters()

    def local_features(self, xyz):
        return self.layer(xyz)

    def encode(self, xyz, pooling: str = "max"):
        return self.layer(xyz).amax(1)


class Even(Selection):
    """Every other file of a folder, which has none of pc3d's layouts for the whole."""

    def __init__(self, root: str, split: str = "train") -> None:
        if not (Path(root) / split).is_dir():
            raise MissingDataError.of("Even", [split], Path(root), "the shelf", "ours")
        files = FolderDataset(root, split)
        super().__init__(files, range(0, len(files), 2))


class Lumber(CSVLogger):
    def __init__(self, save_dir: str):
        raise ModuleNotFoundError("lumber is not installed")


class Odd(Transform):
    def __init__(self, number: int = 3):
        raise ValueError("number must be even")

    def __call__(self, cloud, generator):
        return cloud


class Refuse(Transform):
    def __call__(self, cloud, generator):
        raise ValueError("not this cloud")


class Other(Optimisation):
    """With fields of its own."""


class LowerHidden(PointMAE):
    def draw_mask(self, centers, draws):
        lowest = centers[..., 2].topk(self.num_masked, dim=1, largest=False).indices
        return torch.zeros(centers.shape[:2], dtype=torch.bool).scatter(1, lowest, True)


class Copy(Method):
    """Says of the second half of the points, each a patch, that it is where the first one is."""

    def __init__(self, encoder: ObjectEncoder) -> None:
        super().__init__()
        self.network = encoder

    @property
    def encoder(self):
        return self.network

    def training_step(self, batch, batch_idx):
        return self.network.encode(batch.dense()).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def reconstruct(self, xyz, *, generator=None):
        half = xyz.shape[1] // 2
        mask = (torch.arange(xyz.shape[1]) >= half).expand(len(xyz), -1)
        predicted = xyz[:, :half, None] + 0 * self.network.layer.weight.sum()
        return Reconstruction(xyz, mask, xyz[:, :, None], predicted)
'''
DATA = """
data:
  train: {class_path: pc3d.data.Household, init_args: {num_points: 256}}
  batch_size: 64
trainer: {max_epochs: 1, limit_train_batches: 1, accelerator: cpu, enable_progress_bar: false}
"""
METHODS = {
    "copy": "model: {class_path: own_lab.Copy, init_args: {encoder: {class_path: own_lab.Shared}}}",
    "lower": """
model:
  class_path: own_lab.LowerHidden
  init_args:
    encoder:
      class_path: pc3d.models.PointViT
      init_args: {embed_dim: 24, depth: 1, num_heads: 2, num_groups: 12, group_size: 16, num_points: 256,
                  tokenizer_dims: [8, 8, 16]}
    decoder_depth: 1
    decoder_num_heads: 2
""",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run of each method."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_lab.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    try:
        for name, model in METHODS.items():
            (folder / f"{name}.yaml").write_text(model + DATA)
            assert main(["pretrain", "--config", str(folder / f"{name}.yaml"), "--output", str(folder / name)]) == 0
        yield folder
    finally:
        sys.path.remove(str(folder))


def test_the_encoder_is_judged_and_drawn(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert type(load_encoder(runs / "copy")).__name__ == "Shared"
    judged = ["probe", "--encoder", str(runs / "copy"), "--num_points", "256", "--untrained", "--classifier", "knn"]
    assert main(judged) == 0
    assert "8 dimensions" in capsys.readouterr().out

    shown = items_of(open_dataset("household", "test", None), "household", [0], "test")
    view = build(shown, None, Request(encoder=str(runs / "copy")), -55.0)
    assert view.clouds[0].embedding is not None
    assert view.clouds[0].embedding.shape == (len(shown[0].cloud), 8)


def test_what_own_methods_reconstruct_is_drawn(runs: Path) -> None:
    shown = items_of(open_dataset("household", "test", None), "household", [0], "test")
    given, seen, rebuilt = build(shown, runs / "copy", Request(), -55.0).clouds
    kinds = [cloud.layers["mask"].values for cloud in (given, seen, rebuilt)]
    assert [(kind == _view_runs.HIDDEN).sum() for kind in kinds] == [128, 0, 0]
    np.testing.assert_array_equal(rebuilt.xyz[kinds[2] == _view_runs.PREDICTED], given.xyz[:128])

    # A mask of one's own is that of the picture: all hidden points are lower than what is seen.
    given, seen, _ = build(shown, runs / "lower", Request(), -55.0).clouds
    method = _view_runs.masked_method(runs / "lower")
    made = method.reconstruct(torch.from_numpy(given.xyz)[None], generator=torch.Generator())
    height = made.centers[0, :, 2]
    assert made.mask.sum() == method.num_masked
    assert height[made.mask[0]].max() <= height[~made.mask[0]].min()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_code_of_ones_own_says_where(
    workers: int, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = MODULE.splitlines().index('        raise ValueError("not this cloud")') + 1
    arguments = ["--config", str(runs / "copy.yaml"), "--output", str(tmp_path / "run")]
    arguments += ["--data.train_transforms+=own_lab.Refuse", "--data.num_workers", str(workers)]
    assert main(["pretrain", *arguments]) == 1
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "error: not this cloud",
        f"(by way of {runs / 'own_lab.py'}, line {line}; PC3D_TRACEBACK=1 shows the whole way)",
    ]
    # What has not been through such code names no place.
    assert main(["pretrain", "--config", "none", "--output", str(tmp_path / "run")]) == 1
    assert "by way of" not in capsys.readouterr().err


def test_a_report_does_not_take_the_folder_of_an_own_data_set_for_one_of_its_own(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It could be read as files in class sub-folders, but that is not what the run was trained on."""
    generator, shelf = np.random.default_rng(0), tmp_path / "shelf"
    for split in ("train", "test"):
        for name in ("bowl", "cup"):
            (shelf / split / name).mkdir(parents=True)
            for number in range(4):
                np.save(shelf / split / name / f"{number}.npy", generator.random((256, 3), np.float32))
    arguments = ["--config", str(runs / "copy.yaml"), "--output", str(tmp_path / "run"), "--data.batch_size", "2"]
    assert main(["pretrain", *arguments, "--data.train", "own_lab.Even", "--data.train.root", str(shelf)]) == 0
    capsys.readouterr()
    assert main(["report", str(tmp_path / "run"), "--map", "pca", "--pictures", "0"]) == 0
    told = "Map of the embeddings: own_lab.Even, the data set of the run, is none of pc3d's: name other objects with"
    assert told in capsys.readouterr().out

    # When the files are elsewhere, the data set says so itself, and the parser adds nothing.
    shelf.rename(tmp_path / "elsewhere")
    assert main(["view", str(tmp_path / "run"), "--output", str(tmp_path / "seen.png")]) == 1
    assert capsys.readouterr().err.startswith("error: Even: 1 file(s) or folder(s) missing:\n")


def test_why_a_logger_in_a_list_cannot_be_made_is_told(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "logged.yaml"
    recipe.write_text("trainer: {logger: [{class_path: own_lab.Lumber, init_args: {save_dir: logs}}]}")
    arguments = ["--config", str(runs / "copy.yaml"), "--config", str(recipe), "--output", str(tmp_path / "run")]
    assert main(["pretrain", *arguments]) == 1
    lines = [line.strip() for line in capsys.readouterr().err.splitlines()]
    assert lines[-2:] == ["error: Problem with given class_path 'own_lab.Lumber':", "lumber is not installed"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("own_lab.Odd", "^number must be even$"),
        ("own_lab.Od", "config.yaml: (.|\n)*module 'own_lab' has no attribute 'Od'"),
        ("other_lab.Odd", "config.yaml: (.|\n)*No module named 'other_lab'"),
    ],
)
def test_what_is_wrong_with_a_class_of_a_stored_configuration_is_told(
    name: str, told: str, runs: Path, tmp_path: Path
) -> None:
    one = f"{{class_path: {name}}}"
    (tmp_path / "config.yaml").write_text(f"data: {{train: {one}, test: {one}, eval_transforms: [{one}]}}")
    with pytest.raises(ValueError, match=told):
        stored_preparation(tmp_path)
    if name != "own_lab.Odd":  # which is no data set
        for read in (_segment_eval.dataset_of_run, _segment_row.trained_on):
            with pytest.raises(ValueError, match=told):
                read(tmp_path)


def test_wrong_names_of_own_classes_are_refused_with_the_remedy(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["pretrain", "--config", str(runs / "lower.yaml"), "--output", str(tmp_path / "run")]
    assert main([*arguments, "--model", "own_lab.LowerHiden"]) == 2
    assert "has no attribute 'LowerHiden'; did you mean 'LowerHidden'?" in capsys.readouterr().err
    assert main([*arguments, "--model.optimisation", "own_lab.Other"]) == 2
    told = capsys.readouterr().err
    assert "set_parsing_settings" not in told
    assert "no other class (own_lab.Other) can take its place: its field optimizer takes the class of another" in told


def test_and_reported(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(runs / "lower"), "--pictures", "1"]) == 0
    assert "left out: Reconstructions" not in capsys.readouterr().out


def test_without_its_module_an_encoder_is_refused_with_the_remedy(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(runs)])
    monkeypatch.delitem(sys.modules, "own_lab")
    assert main(["probe", "--encoder", str(runs / "copy")]) == 1
    assert "own_lab.Shared is none of pc3d, and own_lab cannot be imported here" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [["pretrain"], ["segment", "train"], ["classify", "train"]])
def test_resuming_what_was_never_begun_is_told_so(
    verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*verb, "--output", str(tmp_path / "none"), "--resume"]) == 1
    assert "none holds no run (there is no last.ckpt): leave out --resume to start one" in capsys.readouterr().err
    assert main([*verb, "--output", str(tmp_path / "none"), "--resume", "--help"]) == 0


def test_a_run_that_failed_in_its_first_step_is_told_from_a_folder_of_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(METHODS["copy"] + DATA)
    (tmp_path / "tensorboard").mkdir()
    assert main(["view", str(tmp_path), "--output", str(tmp_path / "x.png")]) == 1
    assert "has neither an encoder nor a checkpoint" in capsys.readouterr().err
