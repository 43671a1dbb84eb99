"""Rows from the judging verbs, and ``pc3d results`` that gathers them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pc3d.cli._training import shipped_configs
from pc3d.cli.main import main
from pc3d.data import MODELNET_C, SEVERITIES
from pc3d.evaluation import read_rows
from pc3d.models import PointViT, save_encoder

CONFIGS = Path(__file__).parents[2] / "pc3d" / "configs"
POINTS = ["--num_points", "64"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    tiny = PointViT(embed_dim=16, depth=1, num_heads=2, num_groups=8, group_size=16, num_points=64)
    return str(save_encoder(tiny, tmp_path_factory.mktemp("encoder")))


@pytest.fixture(scope="module")
def rows(encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of two verbs: the untrained encoder with three seeds, the descriptor with one, and one legacy result."""
    folder = tmp_path_factory.mktemp("rows")
    ours = ["--encoder", encoder, "--untrained", "--method", "ours", "--results", str(folder), *POINTS]
    theirs = ["--encoder", "descriptor", "--results", str(folder), *POINTS]
    assert main(["probe", *ours, "--C", "1", "--seeds", "0", "1", "2"]) == 0
    assert main(["probe", *theirs, "--C", "1"]) == 0
    assert main(["probe", *theirs, "--classifier", "knn", "--protocol", "legacy"]) == 0
    assert main(["fewshot", *theirs, "--way", "3", "--shot", "2", "--num_queries", "3", "--seeds", "4", "5"]) == 0
    return folder


def test_several_seeds_print_their_spread_and_write_a_row_each(
    encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["probe", "--encoder", encoder, "--untrained", "--C", "1", *POINTS]
    singles = []
    for seed in (3, 4):
        assert main([*arguments, "--seed", str(seed), "--json"]) == 0
        singles.append(json.loads(capsys.readouterr().out))
    assert main([*arguments, "--seeds", "3", "4", "--json", "--results", str(tmp_path)]) == 0
    both = json.loads(capsys.readouterr().out)
    assert both["results"] == singles
    accuracy = [result["scores"]["overall_accuracy"] for result in singles]
    assert accuracy[0] != accuracy[1]
    summary = both["summary"]["overall_accuracy"]
    assert (summary["mean"], summary["n"]) == (pytest.approx(sum(accuracy) / 2), 2)
    assert summary["standard_deviation"] == pytest.approx(abs(accuracy[0] - accuracy[1]) / 2**0.5)
    written = read_rows([tmp_path])
    assert sorted((row.seed, row.metrics["overall_accuracy"]) for row in written) == list(
        zip((3, 4), accuracy, strict=True)
    )
    assert all(row.cost["parameters"] > 1000 and row.cost["cpu_seconds"] > 0 for row in written)
    assert main([*arguments, "--seeds", "3", "4"]) == 0
    assert "over 2 seed(s) 3, 4" in capsys.readouterr().out


def test_the_honest_results_beside_legacy_ones_are_averaged_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    knn = ["probe", "--encoder", "pca", "--classifier", "knn", "--protocol", "legacy", *POINTS]
    assert main([*knn, "--seeds", "3", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [summary["selection"] for summary in found["summaries"]] == ["legacy", "validation"]
    for summary, results in zip(
        found["summaries"], (found["results"], [result["honest"] for result in found["results"]]), strict=True
    ):
        mean = sum(result["scores"]["overall_accuracy"] for result in results) / 2
        assert summary["overall_accuracy"]["mean"] == pytest.approx(mean)


def test_the_table_has_everything_and_tells_what_is_missing(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results", str(rows), "--order", "ours"]) == 0
    text = capsys.readouterr().out
    head, _, ours, theirs = [line for line in text.splitlines() if line.startswith("| ")]
    assert "kNN (**LEGACY" in head
    assert ours.startswith("| ours |")
    assert "n=3 of 5" in ours
    assert "n=1 of 5" in theirs
    assert main(["results", "--folders", str(rows), "--format", "rows"]) == 0
    # The legacy result has the honest one beside it.
    assert len(list(csv.DictReader(io.StringIO(capsys.readouterr().out)))) == 8


def test_files_are_written_and_never_lost(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, figure = tmp_path / "new" / "table.csv", tmp_path / "new" / "figure.png"
    arguments = ["results", str(rows), "--format", "csv", "--output", str(table), "--figure", str(figure)]
    assert main(arguments) == 0
    assert len(table.read_text().splitlines()) == 6
    assert figure.read_bytes().startswith(b"\x89PNG")
    table.write_text("mine")
    assert main(arguments) == 1
    assert "would be lost" in capsys.readouterr().err
    assert table.read_text() == "mine"
    assert main([*arguments, "--overwrite"]) == 0
    assert table.read_text() != "mine"


def test_a_figure_of_another_kind_is_refused_before_any_work(
    rows: Path, encoder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = ["robustness", "--encoder", encoder, *POINTS]
    for command in (["results", str(rows)], judge):
        assert main([*command, "--figure", "curves.foo"]) == 1
        assert "figure: must end in one of .png, .jpg, .jpeg, .pdf, .svg, got 'curves.foo'" in capsys.readouterr().err


def test_what_has_no_weights_cannot_be_untrained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--encoder", "descriptor", "--untrained", *POINTS]) == 1
    assert "untrained: descriptor has no weights" in capsys.readouterr().err


def test_what_cannot_be_gathered_is_refused(
    rows: Path, encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["results", str(tmp_path)]) == 1
    assert "holds no row of results" in capsys.readouterr().err
    assert main(["results", str(rows), "--metric", "map"]) == 1
    assert "has no 'map'" in capsys.readouterr().err
    assert main(["probe", "--encoder", encoder, "--seeds", "1", "1", *POINTS]) == 1
    assert "seeds: must be different numbers" in capsys.readouterr().err


def test_another_result_under_one_name_is_refused(rows: Path, encoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The encoder's own weights under the name that the untrained ones have: the row is not replaced."""
    before = {path.name: path.read_bytes() for path in rows.iterdir()}
    taken = ["probe", "--encoder", encoder, "--C", "1", "--method", "ours", "--seed", "1", *POINTS]
    assert main([*taken, "--results", str(rows)]) == 1
    captured = capsys.readouterr()
    assert "another result of the same experiment" in captured.err
    assert "overall accuracy" in captured.out
    assert {path.name: path.read_bytes() for path in rows.iterdir()} == before


NOWHERE = ["--encoder", "nowhere"]
WITH_RESULTS = {
    "probe": ["probe", *NOWHERE],
    "fewshot": ["fewshot", *NOWHERE],
    "retrieve": ["retrieve", *NOWHERE],
    "robustness": ["robustness", *NOWHERE],
    "zeroshot": ["zeroshot", *NOWHERE],
    "classify eval": ["classify", "eval", "nowhere"],
    "parts eval": ["parts", "eval", "nowhere"],
    "segment eval": ["segment", "eval", "nowhere"],
    "classify train": ["classify", "train", "--config", "household_small", "--output", "run"],
    "several seeds": ["classify", "train", "--config", "household_small", "--output", "run", "--seeds", "1", "2"],
    "classify fewshot": ["classify", "fewshot", "--config", "household_fewshot", "--output", "run"],
}


@pytest.mark.parametrize("verb", WITH_RESULTS.values(), ids=WITH_RESULTS)
def test_rows_that_cannot_be_written_are_told_before_any_work(
    verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before even the encoder, which is not there, is opened."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    for folder in ("file", "file/rows"):
        assert main([*verb, "--results", folder]) == 1
        error = capsys.readouterr().err
        assert f"results: {folder} cannot be made, {tmp_path / 'file'} is not a folder: name another" in error
    locked = tmp_path / "locked"
    locked.mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != locked)  # root may write anywhere
    assert main([*verb, "--results", "locked/rows"]) == 1
    assert f"results: locked/rows cannot be written, {locked} may not be" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "locked"]
    assert Path("file").read_text() == "mine"


def test_scene_encoders_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pc3d.models import SparseUNet

    folder = str(save_encoder(SparseUNet((8, 16), (1, 1)), tmp_path / "scenes"))
    for arguments in (["probe"], ["fewshot"], ["embed", "--output", str(tmp_path / "a.npz")]):
        assert main([*arguments, "--encoder", folder, *POINTS]) == 1
        told = capsys.readouterr().err
        assert "holds a SparseUNet, an encoder of scenes" in told
        assert "pc3d.models.scene_features(pc3d.load_encoder(ENCODER), pc3d.data.read_scene(FILE))" in told


def test_retrieve_writes_the_library_result(encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pc3d.data import Household
    from pc3d.evaluation import extract_features, retrieval
    from pc3d.models import load_encoder

    arguments = ["retrieve", "--encoder", encoder, "--gallery", "train", "--center", "--json", *POINTS]
    assert main([*arguments, "--results", str(tmp_path), "--method", "mine"]) == 0
    printed = json.loads(capsys.readouterr().out)
    model: Any = load_encoder(encoder)
    train, test = (extract_features(model, Household(split), num_points=64) for split in ("train", "test"))
    expected = retrieval(train, test, gallery="train", center=True)
    assert printed["mean_average_precision"] == expected.mean_average_precision
    (row,) = read_rows([tmp_path])
    assert row.metrics == expected.to_row().metrics
    assert (row.method, row.protocol) == ("mine", "retrieval (training gallery)")


def test_robustness_is_told_relative_to_a_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--corruptions", "jitter", "drop_local", "--severities", "2", "--C", "1", *POINTS]
    ours, theirs, figure = tmp_path / "ours", tmp_path / "theirs", tmp_path / "figure.png"
    assert main(["robustness", "--encoder", "descriptor", *few, "--results", str(theirs), "--method", "base"]) == 0
    (row,) = theirs.iterdir()
    capsys.readouterr()
    arguments = ["robustness", "--encoder", "pca", *few, "--results", str(ours), "--figure", str(figure)]
    assert main([*arguments, "--baseline", str(row), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["baseline"], list(printed["accuracies"])) == ("base", ["jitter", "drop_local"])
    (written,) = read_rows([ours])
    assert written.metrics["mce"] == printed["relative"]["mce"]
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert main(arguments) == 1
    assert "would be lost" in capsys.readouterr().err
    assert main(["robustness", "--encoder", "pca", "--corruptions", "fog", *POINTS]) == 1
    assert "corruptions must be among scale, jitter" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "quicker"),
    [
        ("probe", ["--protocol", "fixed"]),
        ("fewshot", []),
        ("retrieve", []),
        ("robustness", ["--C", "1", "--severities", "3", "--corruptions", "jitter"]),
    ],
)
def test_shipped_protocols(verb: str, quicker: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    names = shipped_configs(verb)
    assert "household_small" in names
    assert any("modelnet" in name for name in names)
    # Every option of every one is known; where the published data is not here, the error says so.
    for name in names:
        arguments = [verb, "--config", name, "--encoder", "pca", "--num_points", "32", "--json", *quicker]
        assert main(arguments) == (0 if name == "household_small" else 1)
        said = capsys.readouterr()
        if name == "household_small":
            result = json.loads(said.out)
            assert (result["data"], result["num_points"]) == ("household", 32)
        else:
            assert "data: 'data/modelnet40_ply_hdf5_2048' is neither" in said.err
    assert main([verb, "--config", "household_smal", "--encoder", "pca"]) == 1
    assert "did you mean 'household_small'?" in capsys.readouterr().err


def test_published_protocols() -> None:
    """Point-M2AE's C for Point-MAE; the form and C of POS-BERT; CrossPoint's draws and classifier."""
    options = {
        name: yaml.safe_load((CONFIGS / "probe" / f"{name}.yaml").read_text())
        for name in ("modelnet40_svm", "modelnet40_svm_unit")
    }
    published = {"data": "data/modelnet40_ply_hdf5_2048", "classifier": "svm", "protocol": "fixed"}
    assert options["modelnet40_svm"] == {**published, "svm": "svc_linear", "C": 0.012, "num_points": 1024}
    assert options["modelnet40_svm_unit"] == {**published, "svm": "linearsvc_l2", "C": 1.0, "num_points": 2048}
    draws = yaml.safe_load((CONFIGS / "fewshot" / "modelnet40.yaml").read_text())
    assert (draws["way"], draws["shot"], draws["num_queries"], draws["num_episodes"]) == (5, 10, 20, 10)
    assert (draws["C"], draws["standardize"]) == (1.0, True)
    corruptions = yaml.safe_load((CONFIGS / "robustness" / "modelnet_c.yaml").read_text())
    assert tuple(corruptions["corruptions"]) == MODELNET_C
    assert tuple(corruptions["severities"]) == SEVERITIES
