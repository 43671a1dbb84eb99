"""What is said of the methods in the table of results, from scores made by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

import pytest

from pc3d import demo
from pc3d.evaluation import Row
from pc3d.evaluation.table import tabulate

SCORES: dict[str, dict[str, Sequence[float]]] = {
    demo.UNTRAINED: {"kNN": (0.30, 0.32), "MLP-3": (0.40, 0.40)},
    demo.SETTLED: {"kNN": (0.45, 0.45), "MLP-3": (0.40, 0.40)},
    "Point-MAE": {"kNN": (0.40, 0.44), "MLP-3": (0.40, 0.40)},
    "PCP-MAE": {"kNN": (0.50, 0.54), "MLP-3": (0.42, 0.36)},
}


def rows_of(scores: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Row]:
    return [
        Row(
            method=method,
            protocol=protocol,
            selection="fixed",
            data="household",
            data_hash="0" * 16,
            seed=seed,
            metrics={"accuracy": value},
            num_train=10,
            num_test=10,
            config={},
            details={},
            versions={},
            cost={"pretraining_cpu_seconds": 60.0, "cpu_seconds": 30.0},
        )
        for method, columns in scores.items()
        for protocol, values in columns.items()
        for seed, value in enumerate(values)
    ]


@pytest.fixture(scope="module")
def text(import_script: Callable[[str], ModuleType]) -> str:
    rows = rows_of(SCORES)
    told: str = import_script("benchmarks/comparisons.py").to_markdown(tabulate(rows), rows)
    return told


def test_what_is_not_above_the_untrained_encoder_is_named(text: str) -> None:
    assert "| Point-MAE | MLP-3 | MLP-3, kNN |" in text  # an equal mean is not above
    assert "| PCP-MAE | MLP-3 | MLP-3 |" in text
    assert f"| {demo.UNTRAINED}" not in text


def test_ideas_are_compared_seed_by_seed(text: str) -> None:
    assert "| idea | with | without | MLP-3 | kNN |" in text
    # +10 with both seeds: no spread, so the interval is the point itself; +2 and -4: it holds 0
    assert "| centres predicted as well | PCP-MAE | Point-MAE | -1.0 ± 4.2 | **+10.0 ± 0.0** |" in text
    assert "SimCLR" not in text  # nor any other that has no scores


def test_the_cost_counts_pre_training_once(text: str) -> None:
    # 4 methods of 2 seeds at a minute, 2 protocols of half a minute each
    assert text.endswith("In all 8 CPU minutes of pre-training and 8 of judging.\n")


def test_seeds_that_one_side_lacks_do_not_count(import_script: Callable[[str], ModuleType]) -> None:
    rows = rows_of({"PCP-MAE": {"kNN": (0.5, 0.9)}, "Point-MAE": {"kNN": (0.4,)}})
    told = import_script("benchmarks/comparisons.py").to_markdown(tabulate(rows), rows)
    assert "| centres predicted as well | PCP-MAE | Point-MAE | +10.0 |" in told
    assert "| PCP-MAE | - | - |" in told  # nothing untrained to compare with
