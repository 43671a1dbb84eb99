"""Run folders, the metrics file, and the verb ``pretrain``."""

from __future__ import annotations

import csv
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import QUIET, data, mae, same

from pc3d import load_encoder
from pc3d.cli.main import main
from pc3d.cli.pretrain import build_parser, shipped_configs
from pc3d.methods import CsvMetrics, Optimisation, PointCMAE, PointMAE, RunFolder, pretrain

CONFIGS = Path(__file__).parents[2] / "pc3d" / "configs" / "pretrain"
TINY = """
seed: 3
model:
  class_path: pc3d.methods.PointMAE
  init_args:
    encoder:
      class_path: pc3d.models.PointViT
      init_args: {embed_dim: 16, depth: 1, num_heads: 2, num_groups: 8, group_size: 8, tokenizer_dims: [8, 8, 8]}
    decoder_depth: 1
    decoder_num_heads: 2
data:
  train:
    class_path: pc3d.data.Household
    init_args: {num_points: 64}
  batch_size: 240
trainer: {max_epochs: 2, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def run(*arguments: str | Path) -> int:
    return main(["pretrain", *map(str, arguments)])


def test_a_run_folder_holds_what_it_should(tmp_path: Path, config: Path) -> None:
    folder = tmp_path / "run"
    assert run("--config", config, "--output", folder, "--model.mask_ratio", "0.5") == 0
    assert {"config.yaml", "last.ckpt", "metrics.csv", "tensorboard", "encoder"} <= {p.name for p in folder.iterdir()}
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert resolved["model"]["init_args"]["mask_ratio"] == 0.5
    assert resolved["model"]["init_args"]["optimisation"]["learning_rate"] == 1e-3  # defaults are spelled out
    assert resolved["seed"] == 3
    assert list((folder / "tensorboard").glob("events*"))
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len([row for row in rows if row["train/reconstruction_epoch"]]) == 2
    encoder = load_encoder(folder)
    weights = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    assert same(
        encoder.state_dict(), {k.removeprefix("model.encoder."): v for k, v in weights.items() if "encoder." in k}
    )


def test_the_resolved_configuration_repeats_the_run(tmp_path: Path, config: Path) -> None:
    assert run("--config", config, "--output", tmp_path / "a", "--model.mask_ratio", "0.5") == 0
    assert run("--config", tmp_path / "a" / "config.yaml", "--output", tmp_path / "b") == 0
    assert same(load_encoder(tmp_path / "a").state_dict(), load_encoder(tmp_path / "b").state_dict())
    assert run("--config", config, "--output", tmp_path / "c", "--seed", "4", "--model.mask_ratio", "0.5") == 0
    assert not same(load_encoder(tmp_path / "a").state_dict(), load_encoder(tmp_path / "c").state_dict())


def test_an_earlier_run_is_not_touched_without_being_told(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run("--config", config, "--output", folder) == 0
    (folder / "notes.txt").write_text("mine")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    assert run("--config", config, "--output", folder) == 1
    assert "holds a finished run" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before
    assert run("--config", config, "--output", folder, "--resume", "--overwrite") == 1
    assert "exclude each other" in capsys.readouterr().err
    assert run("--config", config, "--output", folder, "--overwrite", "--trainer.max_epochs", "1") == 0
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 2
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("broken", ["too few", "none", "unreadable"])
def test_a_run_is_not_removed_for_data_that_cannot_be_loaded(
    broken: str, tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run("--config", config, "--output", folder) == 0
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    clouds = tmp_path / "clouds"
    (clouds / "chair").mkdir(parents=True)
    (clouds / "chair" / "a.npy").write_bytes(b"no array")
    options = {
        "too few": ["--data.batch_size", "1000"],
        "none": ["--data.train", "null"],
        "unreadable": ["--data.train", "pc3d.data.FolderDataset", "--data.train.init_args.root", clouds],
    }[broken]
    one = [] if broken == "too few" else ["--data.batch_size", "1"]
    assert run("--config", config, "--output", folder, "--overwrite", *options, *one) == 1
    message = {"too few": "do not fill one batch", "none": "no train set", "unreadable": "a.npy"}[broken]
    assert message in capsys.readouterr().err
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_a_run_goes_on_by_its_own_configuration(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    # Stopped after the first of two epochs; the schedule is as long as the whole.
    short = ["--trainer.max_epochs", "1", "--model.optimisation.schedule_epochs", "2"]
    assert run("--config", config, "--output", folder, *short) == 0
    assert run("--output", folder, "--resume", "--model.mask_ratio", "0.3") == 1
    assert "cannot resume with another model" in capsys.readouterr().err
    assert run("--output", folder, "--resume", "--trainer.max_epochs", "2") == 0
    assert run("--config", config, "--output", tmp_path / "whole", "--model.optimisation.schedule_epochs", "2") == 0
    assert same(load_encoder(folder).state_dict(), load_encoder(tmp_path / "whole").state_dict())
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["max_epochs"] == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model: [1, 2\n", "is not a YAML file in UTF-8: while parsing"),
        (b"seed: 0 # gr\xf6\xdfer\n", "is not a YAML file in UTF-8: 'utf-8' codec can't decode"),
        (b"- seed\n", "is not a configuration: it has to hold options, as in 'seed: 0', and holds ['seed']"),
        (b"", "is not a configuration"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_named(
    tmp_path: Path, config: Path, content: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, folder = tmp_path / "broken.yaml", tmp_path / "run"
    broken.write_bytes(content)
    for arguments in (["pretrain", "--output", folder], ["segment", "train", "--output", folder], ["probe"]):
        assert main([*map(str, arguments), "--config", str(broken)]) == 1
        assert f"error: {broken} {message}" in capsys.readouterr().err
    assert run("--config", config, "--config", broken, "--output", folder) == 1
    assert f"error: {broken} {message}" in capsys.readouterr().err
    assert not folder.exists()
    folder.mkdir()
    shutil.copy(broken, folder / "config.yaml")
    (folder / "last.ckpt").touch()
    picture = ["--output", tmp_path / "picture.png"]
    for arguments in (["pretrain", "--output", folder, "--resume"], ["report", folder], ["view", folder, *picture]):
        assert main(list(map(str, arguments))) == 1
        assert f"error: {folder / 'config.yaml'} {message}" in capsys.readouterr().err


def test_a_checkpoint_of_another_model_is_refused_in_few_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(mae(), data(240), tmp_path, max_epochs=1, **QUIET)
    capsys.readouterr()
    with pytest.raises(ValueError, match=r"weights in .*last\.ckpt are not those of this model") as caught:
        pretrain(mae(decoder_depth=1), data(240), tmp_path, resume=True, max_epochs=2, **QUIET)
    assert "Unexpected key" in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert "can be resumed" not in capsys.readouterr().err
    assert pretrain(mae(), data(240), tmp_path, resume=True, max_epochs=2, **QUIET).current_epoch == 2


def test_a_run_does_not_go_on_with_another_optimizer(tmp_path: Path) -> None:
    one: dict[str, Any] = {"max_epochs": 1, "limit_train_batches": 1, **QUIET}
    first = mae(optimisation=Optimisation(optimizer=torch.optim.SGD))
    pretrain(first, data(240), tmp_path, **one)
    for other, name in ((None, "AdamW"), (torch.optim.RMSprop, "RMSprop")):
        method = mae(optimisation=Optimisation(optimizer=other))
        with pytest.raises(ValueError, match=f"cannot resume with the optimiser {name}: that of the run is SGD"):
            pretrain(method, data(240), tmp_path, resume=True, **{**one, "max_epochs": 2})
    again = mae(optimisation=Optimisation(optimizer=torch.optim.SGD))
    assert pretrain(again, data(240), tmp_path, resume=True, **{**one, "max_epochs": 2}).current_epoch == 2


def test_a_run_goes_on_with_another_number_of_workers(tmp_path: Path, config: Path) -> None:
    folder = tmp_path / "run"
    short = ["--trainer.max_epochs", "1", "--model.optimisation.schedule_epochs", "2"]
    assert run("--config", config, "--output", folder, *short) == 0
    changed = ["--data.num_workers", "1", "--data.pin_memory", "false", "--trainer.max_epochs", "2"]
    assert run("--output", folder, "--resume", *changed) == 0
    assert run("--config", config, "--output", tmp_path / "whole", "--model.optimisation.schedule_epochs", "2") == 0
    assert same(load_encoder(folder).state_dict(), load_encoder(tmp_path / "whole").state_dict())
    assert run("--output", folder, "--resume", "--data.batch_size", "120") == 1


def test_nothing_to_resume(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--config", config, "--output", tmp_path / "run", "--resume") == 1
    assert "holds no run" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.mask_ration", "0.3"], "did you mean 'mask_ratio'"),
        (["--tranier.max_epochs", "3"], "did you mean '--trainer.max_epochs'"),
        (["--model.mask_ratio", "often"], "mask_ratio"),
        (["--model", "pc3d.methods.PointMEA"], "PointMEA"),
    ],
)
def test_wrong_options_are_usage_errors(
    arguments: list[str], message: str, tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--config", config, "--output", tmp_path / "run", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_unknown_configuration_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--config", "point_cmea", "--output", "nowhere") == 1
    assert "did you mean 'point_cmae'" in capsys.readouterr().err


def test_a_checkpoint_that_is_not_one_is_refused(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run("--config", config, "--output", folder) == 0
    (folder / "last.ckpt").write_bytes((folder / "last.ckpt").read_bytes()[:5000])
    assert run("--output", folder, "--resume") == 1
    assert "is not a checkpoint that can be resumed" in capsys.readouterr().err


def test_a_missing_data_set_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--output", str(tmp_path / "run"), "--data.train.init_args.root", str(tmp_path / "absent")]
    assert run("--config", "point_cmae", *options) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ShapeNet55")
    assert str(tmp_path / "absent") in message
    assert "Subtypes" not in message
    assert not (tmp_path / "run").exists()


HOUSEHOLD = [f"{name}_household" for name in ("point_cmae", "pcp_mae", "simclr", "moco_v3", "vicreg", "barlow_twins")]


@pytest.mark.parametrize(
    "name", ["point_mae", "point_cmae", "point_cmae_official", "pcp_mae", "dcglr", "dcglr_household", *HOUSEHOLD]
)
def test_shipped_configurations_are_valid(name: str) -> None:
    assert name in shipped_configs()
    options = build_parser().parse_args(["--config", str(CONFIGS / f"{name}.yaml"), "--output", "nowhere"])
    assert options.trainer.max_epochs > 0


def test_small_recipes_train_the_same_encoder_on_the_same_objects() -> None:
    """So that their probes compare methods; only the class tokens are a method's own."""
    recipes = [yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in HOUSEHOLD]
    encoders = [recipe["model"]["init_args"]["encoder"]["init_args"] for recipe in recipes]
    assert [encoder.pop("num_cls_tokens", 0) for encoder in encoders] == [2, 0, 0, 0, 0, 0]
    assert all(encoder == encoders[0] for encoder in encoders)
    data = [{**recipe["data"], "batch_size": None} for recipe in recipes]
    assert all(one == data[0] for one in data)
    assert all(recipe["trainer"]["max_epochs"] == 40 for recipe in recipes)


def test_kept_epochs_are_those_of_the_published_schedules() -> None:
    """The released loop of Point-CMAE calls its first epoch 0; pc3d counts finished epochs."""
    kept = {
        name: yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["keep_epochs"]
        for name in ("point_mae", "point_cmae", "point_cmae_official", "pcp_mae")
    }
    assert kept["point_mae"] == kept["point_cmae"] == kept["pcp_mae"] == [50, 100, 200, 250, 275, 300]
    assert kept["point_cmae_official"] == [epoch + 1 for epoch in kept["point_cmae"]]


def test_recipes_take_the_objects_of_the_released_code() -> None:
    """PCP-MAE's sets ``whole = True``, which adds the test list; Point-MAE and Point-CMAE read the train list alone."""
    splits = {
        name: yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["data"]["train"]["init_args"]["split"]
        for name in ("point_mae", "point_cmae", "point_cmae_official", "pcp_mae")
    }
    assert splits == {"point_mae": "train", "point_cmae": "train", "point_cmae_official": "train", "pcp_mae": "all"}


def build(name: str) -> tuple[PointCMAE, Any]:
    parser = build_parser()
    options = parser.parse_args(["--config", str(CONFIGS / f"{name}.yaml"), "--output", "nowhere"])
    published = options.clone()
    published.data.train = None  # ShapeNet-55 is not here
    method = parser.instantiate(published).model
    assert isinstance(method, PointCMAE)
    return method, options


def test_the_official_recipe_differs_from_the_clean_one_where_it_should() -> None:
    (clean, clean_options), (official, official_options) = build("point_cmae"), build("point_cmae_official")
    assert (clean.contrast, official.contrast) == ("same_token", "all_tokens")
    assert (clean_options.trainer.max_epochs, official_options.trainer.max_epochs) == (300, 301)
    assert official.optimisation.schedule_epochs == 300
    assert (clean.optimisation.stepping, official.optimisation.stepping) == ("clean", "official")
    assert (clean.encoder.config["ignore_near_origin"], official.encoder.config["ignore_near_origin"]) == (False, True)
    different = {k for k in clean.encoder.config if clean.encoder.config[k] != official.encoder.config[k]}
    assert different == {"ignore_near_origin"}
    for options in (clean_options, official_options):
        assert options.data.batch_size == 128
        assert [t.class_path for t in options.data.train_transforms] == [
            "pc3d.data.RandomSubsample",
            "pc3d.data.Normalize",
            "pc3d.data.ScaleTranslate",
        ]


def test_validation_is_logged_and_repeats_its_masks(tmp_path: Path) -> None:
    module = data(200, validation_fraction=0.2)
    method = mae()
    trainer = pretrain(method, module, tmp_path, max_epochs=1, **QUIET)
    value = float(trainer.callback_metrics["validation/loss"])
    (again,) = trainer.validate(method, datamodule=module, verbose=False)
    assert again["validation/loss"] == pytest.approx(value, rel=1e-6)


def test_loggers_of_the_configuration_write_besides_those_of_the_run(tmp_path: Path, config: Path) -> None:
    asked = tmp_path / "logger.yaml"
    arguments = f"{{save_dir: {tmp_path / 'logs'}, version: mine, flush_logs_every_n_steps: 1}}"
    logger = f"{{class_path: pytorch_lightning.loggers.CSVLogger, init_args: {arguments}}}"
    asked.write_text(f"trainer: {{logger: [{logger}], log_every_n_steps: 1}}")
    folder = tmp_path / "run"
    assert run("--config", config, "--config", asked, "--output", folder) == 0
    with (
        open(folder / "metrics.csv") as own,
        open(tmp_path / "logs" / "lightning_logs" / "mine" / "metrics.csv") as other,
    ):
        first, second = [[row["train/loss_epoch"] for row in csv.DictReader(file)] for file in (own, other)]
    assert [value for value in first if value] == [value for value in second if value] != []
    assert list((folder / "tensorboard").iterdir()) != []

    with pytest.raises(ValueError, match=r"trainer\.logger: False is no logger; metrics\.csv .* always written"):
        pretrain(mae(), data(), tmp_path / "none", logger=False, max_epochs=1, **QUIET)


class NoValidation(PointMAE):
    """A method as a user may write it."""

    validation_step = None  # type: ignore[assignment]


def test_a_method_without_validation_is_not_told_of_validation_data_that_are_not_there(tmp_path: Path) -> None:
    small = mae()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pretrain(
            NoValidation(small.encoder, decoder_depth=2, decoder_num_heads=2), data(), tmp_path, max_epochs=1, **QUIET
        )
    assert [str(one.message) for one in told if "val_dataloader" in str(one.message)] == []


def test_run_folder_states(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.prepare()
    assert not folder.is_started()
    folder.prepare()
    folder.checkpoint.touch()
    with pytest.raises(FileExistsError, match=r"unfinished run: pass --resume"):
        folder.prepare()
    folder.prepare(resume=True)
    folder.prepare(overwrite=True)
    assert not folder.is_started()
    folder.metrics.touch()
    with pytest.raises(FileNotFoundError, match=r"wrote no checkpoint yet .* pass --overwrite"):
        folder.prepare(resume=True)
    with pytest.raises(
        FileExistsError, match="has written no checkpoint: if it is not running still, pass --overwrite"
    ) as refusal:
        folder.prepare()
    assert "--resume" not in str(refusal.value)  # it would be refused
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        RunFolder(file).prepare()


def test_metrics_go_on_where_they_were(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    first = CsvMetrics(path)
    first.log_metrics({"a": 1.5}, step=1)
    first.log_metrics({"b": 2.0}, step=1)
    first.log_metrics({"a": 3.0, "epoch": 0}, step=2)
    first.save()
    assert path.read_text() == "step,epoch,a,b\n1,,1.5,2.0\n2,0,3.0,\n"
    second = CsvMetrics(path)
    second.drop_after(1)
    second.log_metrics({"c": 4.0}, step=2)
    second.finalize("success")
    assert path.read_text() == "step,epoch,a,b,c\n1,,1.5,2.0,\n2,,,,4.0\n"
