from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from pc3d.data import (
    BadFileError,
    FewShotFile,
    FewShotFiles,
    FewShotSplit,
    Household,
    MissingDataError,
    few_shot_episodes,
    load_array_pickle,
    load_few_shot_pickle,
)


def test_episodes_hold_what_the_protocol_says(household: Household, household_test: Household) -> None:
    episodes = list(
        few_shot_episodes(household, household_test, way=5, shot=10, num_queries=5, num_episodes=10, seed=0)
    )
    assert [episode.fold for episode in episodes] == list(range(10))
    for episode in episodes:
        assert episode.train.labels.tolist() == [label for label in range(5) for _ in range(10)]
        assert episode.test.labels.tolist() == [label for label in range(5) for _ in range(5)]
        for part in (episode.train, episode.test):
            assert len({part[i].meta["id"] for i in range(len(part))}) == len(part)
            for i in range(len(part)):
                original = part.dataset.labels[part.indices[i]]
                assert episode.class_indices[part[i].label] == original
        assert episode.train.classes == tuple(household.classes[i] for i in episode.class_indices)
    assert len({episode.class_indices for episode in episodes}) > 5


def test_a_fold_depends_on_its_key_alone(household: Household, household_test: Household) -> None:
    def draw(**numbers: int) -> list[list[int]]:
        arguments = {"way": 5, "shot": 5, "num_queries": 4, "num_episodes": 3, "seed": 0, **numbers}
        return [e.train.indices.tolist() for e in few_shot_episodes(household, household_test, **arguments)]

    assert draw() == draw(num_episodes=5)[:3]
    assert draw() == draw()
    assert draw() != draw(seed=1)


def test_impossible_episodes_are_refused(household: Household, household_test: Household) -> None:
    with pytest.raises(ValueError, match=r"\d+ of 21 classes have 10 training and 20 test items, way=5 asks for more"):
        few_shot_episodes(household, household_test, way=5, shot=10)
    for name in ("way", "shot", "num_queries", "num_episodes"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            few_shot_episodes(household, household_test, **{"way": 2, "shot": 2, "num_queries": 2, name: 0})


def test_a_split_is_one_side_of_an_episode(household: Household, household_test: Household) -> None:
    numbers = {"way": 5, "shot": 5, "num_queries": 4}
    episode = list(few_shot_episodes(household, household_test, **numbers, num_episodes=3, seed=7))[2]
    for side in ("train", "test"):
        own = FewShotSplit(household, household_test, side, **numbers, fold=2, seed=7)  # type: ignore[arg-type]
        wanted = getattr(episode, side)
        assert torch.equal(own.indices, wanted.indices)
        assert own.classes == wanted.classes
        assert [own[i].label for i in range(len(own))] == [wanted[i].label for i in range(len(wanted))]


def test_impossible_splits_are_refused(household: Household, household_test: Household) -> None:
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'validation'"):
        FewShotSplit(household, household_test, "validation", num_queries=4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fold must be at least 0, got -1"):
        FewShotSplit(household, household_test, num_queries=4, fold=-1)
    with pytest.raises(ValueError, match="way=5 asks for more"):
        FewShotSplit(household, household_test)


def test_a_published_file_as_a_data_set(tmp_path: Path, household: Household) -> None:
    (tmp_path / "5way_2shot").mkdir()
    (tmp_path / "5way_2shot" / "3.pkl").write_bytes(pickle.dumps(episode_file(household)))
    train, test = (FewShotFile(tmp_path, side, shot=2, fold=3) for side in ("train", "test"))  # type: ignore[arg-type]
    assert (len(train), len(test)) == (10, 20)
    assert test.classes == ("7", "8", "9", "10", "11")
    assert torch.equal(test[4].xyz, household[14].xyz)
    with pytest.raises(MissingDataError, match=r"0\.pkl"):
        FewShotFile(tmp_path)


def test_published_files_as_one_data_set(tmp_path: Path, household: Household) -> None:
    folder = tmp_path / "5way2shot"
    folder.mkdir()
    for fold in (10, 0):  # in the order of numbers, not of names
        (folder / f"{fold}.pkl").write_bytes(pickle.dumps(episode_file(household, 7 + fold)))
    train, test = FewShotFiles(folder), FewShotFiles(folder, "test")
    assert (train.way, train.shot) == (5, 2)
    assert train.classes == test.classes == tuple(str(k) for start in (7, 17) for k in range(start, start + 5))
    assert train.folds.tolist() == 10 * [0] + 10 * [10]
    assert test.labels.tolist() == [start + i % 5 for start in (0, 5) for i in range(10, 30)]
    for index in (24, 4):  # either fold, and back
        cloud = test[index]
        assert torch.equal(cloud.xyz, household[14].xyz)
        assert cloud.label == int(test.labels[index])
    assert test[24].meta["id"] == "10/test/4"
    for missing in (tmp_path, tmp_path / "10way_2shot"):
        with pytest.raises(MissingDataError, match="Point-BERT"):
            FewShotFiles(missing)
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'all'"):
        FewShotFiles(folder, "all")  # type: ignore[arg-type]


def episode_file(household: Household, first: int = 7) -> dict[str, list[tuple[np.ndarray, int, int]]]:
    def items(rows: range) -> list[tuple[np.ndarray, int, int]]:
        clouds = (torch.cat([household[i].xyz, household[i].normal], dim=1).numpy() for i in rows)
        return [(cloud, i % 5, first + i % 5) for i, cloud in zip(rows, clouds, strict=True)]

    return {"train": items(range(10)), "test": items(range(10, 30))}


@pytest.mark.parametrize("name", ["5way_2shot", "5way2shot"])
@pytest.mark.parametrize("protocol", [2, 5])
def test_published_pickles(tmp_path: Path, household: Household, name: str, protocol: int) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "3.pkl").write_bytes(pickle.dumps(episode_file(household), protocol))
    episode = load_few_shot_pickle(tmp_path, 5, 2, 3)
    assert len(episode.train) == 10
    assert len(episode.test) == 20
    assert episode.class_indices == (7, 8, 9, 10, 11)
    assert episode.test.labels.tolist() == [i % 5 for i in range(10, 30)]
    assert torch.equal(episode.test[4].xyz, household[14].xyz)
    assert torch.equal(episode.test[4].normal, household[14].normal)
    episode.test[4].xyz.zero_()
    assert torch.equal(episode.test[4].xyz, household[14].xyz)


def test_missing_and_malformed_pickles(tmp_path: Path, household: Household) -> None:
    with pytest.raises(MissingDataError, match=r"5way_2shot/0\.pkl(\n.*)*Point-BERT"):
        load_few_shot_pickle(tmp_path, 5, 2, 0)
    path = tmp_path / "5way_2shot" / "0.pkl"
    path.parent.mkdir()
    good = episode_file(household)
    for content, message in [
        ({"train": good["train"]}, "a dictionary with 'train' and 'test'"),
        ([1, 2], "a dictionary with"),
        ({**good, "test": [(1, 2)]}, r"must list \(points, new label, original label\)"),
        ({**good, "test": [(p[:, :4], a, b) for p, a, b in good["test"]]}, r"not of shape \(N, 3\) or \(N, 6\)"),
        ({**good, "train": [(p, a + 1, b) for p, a, b in good["train"]]}, "must map 5 classes to labels 0 to 4"),
        (
            {**good, "train": good["train"][1:]},
            "has 1, 2, 2, 2, 2 training objects of its 5 classes, and 5way_2shot says 2 of each",
        ),
        (
            {**good, "train": good["train"] * 2},
            "has 4, 4, 4, 4, 4 training objects of its 5 classes, and 5way_2shot says 2 of each",
        ),
        ({**good, "train": [(p * np.nan, a, b) for p, a, b in good["train"]]}, "item 0/train/0 has coordinates"),
    ]:
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(BadFileError, match=message):
            load_few_shot_pickle(tmp_path, 5, 2, 0)
    path.write_bytes(pickle.dumps(good)[:1000])
    with pytest.raises(BadFileError, match="not a pickle of NumPy arrays"):
        load_few_shot_pickle(tmp_path, 5, 2, 0)


class Mischief:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


def test_a_pickle_cannot_run_anything(tmp_path: Path) -> None:
    path, target = tmp_path / "a.pkl", tmp_path / "was here"
    for content in (Mischief(target), {"train": [Mischief(target)]}, np.array([Mischief(target)], dtype=object)):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(BadFileError, match="which is not part of a NumPy array"):
            load_array_pickle(path)
    assert not target.exists()
    for name in (b"os\nsystem", b"builtins\neval", b"numpy.core.multiarray\n_reconstruct.__globals__"):
        path.write_bytes(b"c" + name + b"\n(S'touch x'\ntR.")
        with pytest.raises(BadFileError):
            load_array_pickle(path)


class Made:
    """What a pickle may ask for: a call, and what it then fills the result with."""

    def __init__(self, *reduced: object) -> None:
        self.reduced = reduced

    def __reduce__(self) -> tuple[object, ...]:
        return self.reduced


RECONSTRUCT, SCALAR = np.zeros(1).__reduce__()[0], np.float64(1).__reduce__()[0]
FROM_BUFFER = np.zeros(1).__reduce_ex__(5)[0]
# Objects that a type of changed flags takes for plain bytes.
OBJECTS = Made(np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0))


@pytest.mark.parametrize(
    "forged",
    [
        Made(np.ndarray, ((1,), "O", b"A" * 8)),
        Made(SCALAR, (OBJECTS, b"A" * 8)),
        Made(FROM_BUFFER, (b"A" * 8, OBJECTS, (1,), "C")),
        Made(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,), OBJECTS, False, b"A" * 8)),
        Made(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1000,), np.dtype("O"), False, [1])),
    ],
)
def test_bytes_of_a_pickle_are_not_taken_for_addresses(tmp_path: Path, forged: Made) -> None:
    """They crash a process that looks at the objects, as this one would where it prints what it has read."""
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"xyz": forged}))
    with pytest.raises(BadFileError, match="is not a pickle of NumPy arrays"):
        load_array_pickle(path)


def test_plain_values_and_arrays_survive(tmp_path: Path) -> None:
    content = {
        **{"a": [np.arange(3.0), np.float32(2), ("x", 1, None)], "b": np.zeros((0, 3), np.int32)},
        **{"big": np.arange(6, dtype=">i4").reshape(2, 3).T, "words": np.array(["a", "bcd"])},
        "objects": np.array([np.arange(2), "x", None], dtype=object),
    }
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
        read = load_array_pickle(tmp_path / "a.pkl")
        np.testing.assert_array_equal(read["a"][0], content["a"][0])
        assert read["a"][1:] == content["a"][1:]
        assert read["b"].shape == (0, 3)
        np.testing.assert_array_equal(read["big"], content["big"])
        assert read["words"].tolist() == ["a", "bcd"]
        np.testing.assert_array_equal(read["objects"][0], [0, 1])
        assert read["objects"][1:].tolist() == ["x", None]
        assert torch.from_numpy(read["a"][0]).tolist() == [0, 1, 2]
