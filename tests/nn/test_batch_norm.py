"""Batch normalisation and sums over processes: two gloo processes against one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from two_processes import data, fresh, run, worker

from pc3d.nn import GlobalBatchNorm, all_reduce_sum, gather_rows, mean_over_processes


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(worker, args=(str(folder),), nprocs=2)  # type: ignore[no-untyped-call,attr-defined]
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def one() -> dict[str, Tensor]:
    return run(fresh(nn.BatchNorm1d), *data())


def test_outputs_and_gradients_of_rows_are_those_of_one_process(
    one: dict[str, Tensor], two: list[dict[str, Tensor]]
) -> None:
    for name in ("output", "rows"):
        torch.testing.assert_close(torch.cat([part[name] for part in two]), one[name], rtol=1e-9, atol=1e-9)


def test_without_scale_and_shift(two: list[dict[str, Tensor]]) -> None:
    expected = nn.BatchNorm1d(4, affine=False).double()(data()[0])
    torch.testing.assert_close(torch.cat([part["plain"] for part in two]), expected, rtol=1e-9, atol=1e-9)


def test_gradients_of_parameters_add_up_to_those_of_one_process(
    one: dict[str, Tensor], two: list[dict[str, Tensor]]
) -> None:
    for name in ("of_weight", "of_bias"):
        torch.testing.assert_close(two[0][name] + two[1][name], one[name], rtol=1e-9, atol=1e-9)


def test_running_statistics_are_those_of_one_process(one: dict[str, Tensor], two: list[dict[str, Tensor]]) -> None:
    for part in two:
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(part[name], one[name], rtol=1e-12, atol=1e-12)


def test_sums_and_means_over_processes(two: list[dict[str, Tensor]]) -> None:
    # y = x_0 + x_1 = 3; each process minimises y^2, so d/dx_r of the sum of both is 2 * 2 y = 12.
    assert [part["reduced"].item() for part in two] == [12.0, 12.0]
    assert [part["mean"].item() for part in two] == [3.5, 3.5]
    assert [part["taken"].tolist() for part in two] == [[1.0, 5.0], [1.0, 5.0]]


def test_rows_of_all_processes(two: list[dict[str, Tensor]]) -> None:
    rows, weight = data()
    for part in two:
        assert torch.equal(part["gathered"], rows)
    # The two processes' losses weigh every row by 1 and by 2.
    found = torch.cat([part["of_shared"] for part in two])
    torch.testing.assert_close(found, 3 * rows.cos() * weight, rtol=1e-12, atol=1e-12)
    assert gather_rows(rows) is rows


@pytest.mark.parametrize("training", [True, False])
def test_one_process_is_plain_batch_norm(training: bool) -> None:
    ours, theirs = (
        run(fresh(GlobalBatchNorm).train(training), *data()),
        run(fresh(nn.BatchNorm1d).train(training), *data()),
    )
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def test_sums_of_one_process_are_the_value_itself() -> None:
    value = torch.ones(3)
    assert all_reduce_sum(value) is value
    assert mean_over_processes(value) is value


def test_one_row_in_training_is_refused_with_a_remedy() -> None:
    norm = GlobalBatchNorm(3)
    with pytest.raises(ValueError, match=r"at least 2 rows, got 1: take larger batches .* a smaller voxel_size"):
        norm(torch.ones(1, 3))
    assert norm.eval()(torch.ones(1, 3)).shape == (1, 3)
