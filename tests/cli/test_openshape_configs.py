"""The shipped configurations of OpenShape: they are valid, and their data come through on small shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pc3d import load_encoder
from pc3d.cli.main import main
from pc3d.cli.pretrain import build_parser, resolve
from pc3d.data import Household, PointCloud, targets_of
from pc3d.data.aligned import Targets
from pc3d.data.aligned_files import write_index, write_shard
from pc3d.models import OpenShapePointBERT

NAMES = ["openshape", "openshape_household"]
SIZES = {"embed_dim": 8, "width": 64, "depth": 1, "num_heads": 1, "mlp_dim": 64, "patch_dim": 16, "num_groups": 8}
CONFIGS = Path(__file__).parents[2] / "pc3d" / "configs" / "pretrain"
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}


@pytest.mark.parametrize("name", NAMES)
def test_they_are_valid_and_can_be_overridden(name: str) -> None:
    options = ["--config", name, "--output", "unused", "--model.mining.group_size", "5", "--data.batch_size", "40"]
    found = yaml.safe_load(resolve([*options, "--model.encoder", "null", "--model.start_from", "runs/first"]))
    arguments = found["model"]["init_args"]
    assert (arguments.get("encoder"), arguments["start_from"]) == (None, "runs/first")
    assert arguments["mining"]["group_size"] == 5
    assert arguments["mining"]["num_neighbors"] == 32


def test_options_override_a_configuration_that_follows_them() -> None:
    options = ["--data.batch_size", "7", "--model.init_args.image_weight=0.25", "--output", "unused"]
    config = ["--config", "openshape_household"]
    before = resolve([*options, *config])
    assert before == resolve([*config, *options]) == resolve([*options, "--config=openshape_household"])
    found = yaml.safe_load(before)
    assert (found["data"]["batch_size"], found["model"]["init_args"]["image_weight"]) == (7, 0.25)


def test_a_second_configuration_overrides_the_first(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: {init_args: {image_weight: 0}}\ndata: {batch_size: 7}")
    shipped, mine = ["--config", "openshape_household"], ["--config", str(tmp_path / "mine.yaml")]
    once = yaml.safe_load(resolve([*shipped, "--output", "unused"]))
    both = yaml.safe_load(resolve([*shipped, *mine, "--output", "unused"]))
    assert (both["model"]["init_args"]["image_weight"], both["data"]["batch_size"]) == (0, 7)
    both["model"]["init_args"]["image_weight"] = once["model"]["init_args"]["image_weight"]
    both["data"]["batch_size"] = once["data"]["batch_size"]
    assert both == once
    # The class of the data is looked for in all of them, before the parser is made.
    (tmp_path / "batch.yaml").write_text("data: {init_args: {batch_size: 7}}")
    streamed = ["--config", "openshape_stream", "--config", str(tmp_path / "batch.yaml"), "--output", "unused"]
    assert yaml.safe_load(resolve(streamed))["data"]["init_args"]["batch_size"] == 7


def test_the_published_one_is_the_published_size() -> None:
    found = yaml.safe_load(resolve(["--config", "openshape", "--output", "unused"]))
    with torch.device("meta"):
        encoder = OpenShapePointBERT(**found["model"]["init_args"]["encoder"]["init_args"])
    assert sum(p.numel() for p in encoder.parameters()) == 32_326_080
    optimisation = found["model"]["init_args"]["optimisation"]
    assert [optimisation[key] for key in ("learning_rate", "decay", "decay_steps", "weight_decay")] == [
        5e-4,
        0.967,
        10_000,
        0.01,
    ]
    assert optimisation["decay_everything"] is True
    assert found["data"]["batch_size"] == 200


@pytest.mark.parametrize("name", ["openshape", "openshape_stream"])
def test_the_published_ones_read_shapes_and_names_as_the_released_code(name: str) -> None:
    found = yaml.safe_load(resolve(["--config", name, "--output", "unused"]))
    assert found["model"]["init_args"]["encoder"]["init_args"]["axes"] == "mirrored"
    data = found["data"]["init_args"] if name == "openshape_stream" else found["data"]["train"]["init_args"]
    assert data["text_filter"] == "data/openshape/gpt4_filtering.json"


@pytest.mark.parametrize("name", ["openshape", "openshape_stream"])
def test_multi_positive_is_one_line_of_a_published_one(name: str, tmp_path: Path) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text()
    (tmp_path / "several.yaml").write_text(text.replace("# init_args: {num_texts", "init_args: {num_texts"))
    found = yaml.safe_load(resolve(["--config", str(tmp_path / "several.yaml"), "--output", "unused"]))["data"]
    first, *_ = found.get("init_args", found)["train_transforms"]
    assert first["class_path"] == "pc3d.data.ChooseTargets"
    assert (first["init_args"]["num_texts"], first["init_args"]["num_images"]) == (3, 4)


def test_null_reaches_a_class_within_a_class(tmp_path: Path) -> None:
    parser: Any = build_parser()
    start = ["--config", str(CONFIGS / "openshape_household.yaml"), "--output", str(tmp_path)]
    shapes = "--data.train.init_args.dataset"
    own = [f"{shapes}=pc3d.data.FolderDataset", f"{shapes}.root=files", f"{shapes}.split=null"]
    dataset = parser.parse_args([*start, *own]).data.train.init_args.dataset
    assert (dataset.class_path, str(dataset.init_args.root)) == ("pc3d.data.FolderDataset", "files")
    assert dataset.init_args.split is None


def test_missing_features_name_the_command_that_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", "--config", "openshape_household", "--output", "run"]) == 1
    said = capsys.readouterr().err
    assert "data/household_features/texts has no features-*.safetensors" in said
    assert "python data_tools/target_features.py data/household_features (texts/ and images/ in it)" in said
    assert "Union" not in said
    assert "Namespace" not in said


def big(index: int) -> PointCloud:
    """An object with 10,000 points, a text, a thumbnail and two renderings."""
    cloud = Household("test", num_points=2048)[index]
    cloud = cloud.select(torch.arange(10_000) % 2048)
    features = Targets(torch.ones(1, 8), torch.ones(3, 8), ("x",), ("raw",), ("thumbnail", "rendering", "rendering"))
    return PointCloud(cloud.xyz, cloud.rgb, meta={"id": f"{index}", "dataset": "Objaverse", "targets": features})


def test_the_published_augmentation_on_shards(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-000000.tar", [big(index) for index in range(3)])
    write_index(tmp_path / "train-index.npz", [tmp_path / "train-000000.tar"])
    (tmp_path / "filter.json").write_text('{"1": {"flag": "N", "name": "x"}}')
    parser: Any = build_parser()
    config = CONFIGS / "openshape.yaml"
    train = {"data.train.init_args.root": tmp_path, "data.train.init_args.text_filter": tmp_path / "filter.json"}
    options = [f"--{name}={value}" for name, value in train.items()]
    options += ["--data.batch_size=3", "--data.num_workers=0", "--model.encoder.init_args.depth=1"]
    parsed = parser.parse_args(["--config", str(config), "--output", "unused", *options])
    data = parser.instantiate(parsed).data
    batch = next(iter(data.train_dataloader()))
    assert batch.dense().shape == (3, 10_000, 3)
    for cloud, targets in zip(batch.unbind(), targets_of(batch), strict=True):
        assert len(targets.texts) == (0 if cloud.meta["id"] == "1" else 1)
        assert len(targets.image_kinds) == 1
        assert cloud.rgb is not None
        assert cloud.xyz.norm(dim=1).max() < 1.25 + 0.1 * 3**0.5 + 1e-4


# ---- a stream of shards ------------------------------------------------------------------------------------------


def test_the_published_one_streams_shards_from_anywhere() -> None:
    urls = "pipe:curl -s https://example.com/train-{000000..000015}.tar"
    options = ["--config", "openshape_stream", "--output", "unused", "--seed", "3", "--data.urls", urls]
    found, plain = (yaml.safe_load(resolve([*given])) for given in (options, [*options[2:4], "--config", "openshape"]))
    assert found["data"]["class_path"] == "pc3d.data.AlignedStream"
    assert found["data"]["init_args"]["urls"] == urls
    assert found["model"]["init_args"]["encoder"] == plain["model"]["init_args"]["encoder"]
    assert found["data"]["init_args"]["train_transforms"] == plain["data"]["train_transforms"]
    assert found["data"]["init_args"]["batch_size"] == 200


@pytest.fixture
def streamed(tmp_path: Path) -> list[str]:
    """Arguments of a small run on two shards of ten shapes."""
    clouds = []
    for index in range(20):
        cloud = Household("test", num_points=96)[index]
        rows = torch.randn(2, 6, generator=torch.Generator().manual_seed(index))
        targets = Targets(rows[:1], rows[1:], (cloud.text or "",), ("raw",), ("rendering",))
        clouds.append(PointCloud(cloud.xyz, cloud.rgb, meta={"id": f"{index}", "dataset": "a", "targets": targets}))
    for number in range(2):
        write_shard(tmp_path / f"train-{number:06}.tar", clouds[10 * number : 10 * number + 10])
    config = {
        "model": {
            "class_path": "pc3d.methods.OpenShape",
            "init_args": {
                "encoder": {"class_path": "pc3d.models.OpenShapePointBERT", "init_args": {**SIZES, "group_size": 8}}
            },
        },
        "data": {
            "class_path": "pc3d.data.AlignedStream",
            "init_args": {
                "urls": str(tmp_path / "train-{000000..000001}.tar"),
                "num_batches": 3,
                "batch_size": 5,
                "buffer_size": 8,
                "train_transforms": [{"class_path": "pc3d.data.RandomSubsample", "init_args": {"num_points": 64}}],
            },
        },
        "trainer": QUIET,
    }
    config["model"]["init_args"] |= {"text_dim": 6, "image_dim": 6}  # type: ignore[index]
    (tmp_path / "stream.yaml").write_text(yaml.safe_dump(config))
    return ["pretrain", "--config", str(tmp_path / "stream.yaml"), "--output", str(tmp_path / "run")]


def test_a_stream_trains_and_goes_on(streamed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(streamed[-1])
    assert main([*streamed, "--trainer.max_epochs", "2"]) == 0
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 6
    assert main(["pretrain", "--output", str(run), "--resume", "--trainer.max_epochs", "3"]) == 0
    whole = str(run.with_name("whole"))
    assert main([*streamed[:-1], whole, "--trainer.max_epochs", "3"]) == 0
    first, second = (load_encoder(folder).state_dict() for folder in (run, whole))
    assert all(torch.equal(first[name], second[name]) for name in first)
    capsys.readouterr()
    other = [*streamed, "--overwrite", "--data.init_args.urls", str(run / "none.tar")]
    assert main(other) == 1
    assert "AlignedStream: 1 file(s) or folder(s) missing" in capsys.readouterr().err
    assert (run / "encoder" / "config.json").exists()  # the earlier run is as it was
    mined = [*streamed[:-1], str(run.with_name("mined")), "--trainer.max_epochs", "1", "--model.mining.group_size", "5"]
    assert main(mined) == 1
    assert "read shards on a disk with AlignedShards, or leave mining out" in capsys.readouterr().err


def test_a_stream_goes_on_with_other_readers_but_the_same_batches(
    streamed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(streamed[-1])
    shared = [*streamed, "--data.num_workers", "3"]
    assert main([*shared, "--trainer.max_epochs", "1"]) == 1
    assert "2 shard(s) cannot be shared by 3 readers" in capsys.readouterr().err
    assert not run.exists()
    assert main([*streamed, "--trainer.max_epochs", "1"]) == 0
    resume = ["pretrain", "--output", str(run), "--resume", "--trainer.max_epochs", "2"]
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp_spawn"]
    for options, message in (
        (["--data.init_args.batch_size", "6"], "batches of 6 on each of 1 processes: those of the run are of 5"),
        (two, "batches of 5 on each of 2 processes: those of the run are of 5 together: take a number of processes"),
        (["--data.init_args.num_batches", "2"], "cannot resume with another data"),
    ):
        assert main([*resume, *options]) == 1
        assert message in capsys.readouterr().err
    assert main([*resume, "--data.init_args.num_workers", "1"]) == 0
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 6


def test_a_shard_that_was_cut_ends_a_run_that_can_go_on(
    streamed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "train-000001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2 + 1000])
    options = ["--trainer.max_epochs", "2", "--every_n_steps", "1", "--data.init_args.buffer_size", "1"]
    assert main([*streamed, *options, "--data.init_args.num_workers", "2"]) == 1
    said = capsys.readouterr().err
    assert f"error: {path}: is no tar file, was cut short or is damaged (unexpected end of data): copy or" in said
    assert "Traceback" not in said
    path.write_bytes(whole)
    resume = "--resume" if (tmp_path / "run" / "last.ckpt").exists() else "--overwrite"
    assert main([*streamed, resume, *options]) == 0
