"""What an interruption leaves behind: the same work goes on where it was, and ends as one that was left alone."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pc3d.data import Household
from pc3d.evaluation import Kept, PointPCA, ShapeDescriptor, extract_features, kept
from pc3d.evaluation.kept import content_key, identity_of
from pc3d.models import OpenShapePointBERT, PointViT, as_aligned

OPTIONS: dict[str, Any] = {"batch_size": 10, "num_points": 64}


class Counted(nn.Module):
    """An encoder that counts its calls, and is interrupted in one of them."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 8)
        nn.init.normal_(self.layer.weight, generator=torch.Generator().manual_seed(seed))
        nn.init.zeros_(self.layer.bias)
        self.calls, self.stop_at = 0, -1
        self.error: BaseException = KeyboardInterrupt()

    def encode(self, xyz: Tensor, pooling: str = "max") -> Tensor:
        self.calls += 1
        if self.calls == self.stop_at:
            raise self.error
        values: Tensor = self.layer(xyz).max(1).values if pooling == "max" else self.layer(xyz).mean(1)
        return values


def interrupted(folder: Path, encoder: Counted, at: int, error: BaseException | None = None) -> pytest.ExceptionInfo:
    encoder.stop_at, encoder.error = at, error or KeyboardInterrupt()
    with pytest.raises(type(encoder.error)) as caught, Kept(folder) as store:
        extract_features(encoder, Household("test"), kept=store, pooling="max", **OPTIONS)
    encoder.calls, encoder.stop_at = 0, -1
    return caught


def test_it_goes_on_to_the_same_end_without_encoding_anything_twice(tmp_path: Path) -> None:
    encoder, objects = Counted(), Household("test")
    expected = extract_features(encoder, objects, pooling="max", **OPTIONS)
    whole, encoder.calls = encoder.calls, 0
    assert whole == 13  # 124 objects
    folder = tmp_path / "kept"
    assert str(folder) in str(interrupted(folder, encoder, 6).value)
    assert str(folder) in str(interrupted(folder, encoder, 4).value)  # once more: 5 + 3 batches are there
    with Kept(folder) as store:
        found = extract_features(encoder, objects, kept=store, pooling="max", **OPTIONS)
        assert (store.given_back, encoder.calls) == (8, whole - 8)
    assert np.array_equal(found.values, expected.values)
    same = {name: value for name, value in dataclasses.asdict(expected).items() if not isinstance(value, np.ndarray)}
    assert {name: getattr(found, name) for name in same} == same
    assert not folder.exists()  # of what has ended nothing stays


@pytest.mark.parametrize(
    "change",
    [
        lambda options: {**options, "encoder": Counted(seed=1)},
        lambda options: {**options, "pooling": "mean"},
        lambda options: {**options, "num_points": 63},
        lambda options: {**options, "batch_size": 9},
        lambda options: {**options, "normalize": "box"},
    ],
)
def test_nothing_of_other_work_is_given_back(
    change: Callable[[dict[str, Any]], dict[str, Any]], tmp_path: Path
) -> None:
    interrupted(tmp_path / "kept", Counted(), 6)
    options = change({"encoder": Counted(), "pooling": "max", **OPTIONS})
    encoder = options.pop("encoder")
    with Kept(tmp_path / "kept") as store:
        extract_features(encoder, Household("test"), kept=store, **options)
        assert store.given_back == 0


def test_a_mistake_leaves_nothing_and_a_failure_after_long_work_its_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kept"
    interrupted(folder, Counted(), 6, ValueError("a bad file"))
    assert not folder.exists()
    monkeypatch.setattr(kept, "SECONDS", 0.0)
    interrupted(folder, Counted(), 6, ValueError("a bad file"))
    with Kept(folder) as store:
        extract_features(Counted(), Household("test"), kept=store, pooling="max", **OPTIONS)
        assert store.given_back == 5


def test_an_interruption_before_anything_was_computed_has_nothing_to_tell(tmp_path: Path) -> None:
    assert str(interrupted(tmp_path / "kept", Counted(), 1).value) == ""
    assert not (tmp_path / "kept").exists()


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(kept, "SECONDS", 0.0)
    with pytest.warns(UserWarning, match="starts over") as told, Kept(tmp_path / "file" / "kept") as store:
        extract_features(Counted(), Household("test"), kept=store, pooling="max", **OPTIONS)
    assert len(told) == 1


def test_what_cannot_be_read_is_computed_anew_with_a_warning(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    expected = extract_features(Counted(), Household("test"), pooling="max", **OPTIONS)
    interrupted(folder, Counted(), 6)
    interrupted(folder, Counted(), 3)  # two files, of five batches and of two
    first, second = sorted(folder.glob("kept-*.npz"), key=lambda path: -path.stat().st_size)
    second.write_bytes(b"")  # what a power cut may leave
    content = bytearray(first.read_bytes())
    content[300] ^= 255  # within the values of its first array
    first.write_bytes(content)
    with pytest.warns(UserWarning, match=rf"{second.name}: not a readable \.npz.*computed anew"):
        store = Kept(folder)
    if sys.platform == "linux":  # where open files can be listed
        assert [path for path in Path("/proc/self/fd").iterdir() if path.resolve().parent == folder] == []
    with pytest.warns(UserWarning, match=rf"{first.name}: not a readable \.npz.*computed anew"):
        found = extract_features(Counted(), Household("test"), kept=store, pooling="max", **OPTIONS)
    assert store.given_back == 4
    assert np.array_equal(found.values, expected.values)


@pytest.mark.parametrize(("place", "value"), [(8, 1), (10, 99)], ids=["encrypted", "unknown compression"])
def test_a_damaged_entry_is_computed_anew(tmp_path: Path, place: int, value: int) -> None:
    folder = tmp_path / "kept"
    interrupted(folder, Counted(), 6)
    (path,) = folder.glob("kept-*.npz")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + place] = value  # the entry of the first array in the directory at the end
    path.write_bytes(content)
    with Kept(folder) as store:
        with pytest.warns(UserWarning, match=r"not a readable \.npz.*computed anew"):
            extract_features(Counted(), Household("test"), kept=store, pooling="max", **OPTIONS)
        assert store.given_back == 4


def test_nothing_is_kept_that_did_not_reach_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.warns(UserWarning, match=r"Input/output error.*starts over"):
        assert str(interrupted(tmp_path / "kept", Counted(), 6).value) == ""
    assert list((tmp_path / "kept").iterdir()) == []


@pytest.mark.parametrize("version", ["pc3d.evaluation.kept.__version__", "torch.__version__"])
def test_other_versions_compute_anew(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tmp_path / "kept", Counted(), 6)
    monkeypatch.setattr(version, "99.0")
    with Kept(tmp_path / "kept") as store:
        extract_features(Counted(), Household("test"), kept=store, pooling="max", **OPTIONS)
        assert store.given_back == 0


def test_the_device_is_a_part_of_what_features_are_kept_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: dict[str, list[str]] = {"cpu": [], "meta": []}

    def of(self: Kept, content: list[str | Tensor], compute: Callable[[], Any]) -> Any:
        keys[device].append(content_key(content))
        return np.zeros((len(content[-1]), 8), np.float32)  # the second device cannot compute

    monkeypatch.setattr(Kept, "of", of)
    monkeypatch.setattr("pc3d.evaluation.features.identity_of", lambda encoder: "the same weights")
    for device in keys:
        extract_features(Counted().to(device), Household("test"), kept=Kept(tmp_path), pooling="max", **OPTIONS)
    assert len({*keys["cpu"], *keys["meta"]}) == 2 * len(keys["cpu"]) == 26


def test_keys_tell_contents_apart() -> None:
    contents: list[list[str | Tensor]] = [
        ["ab", "c"],
        ["a", "bc"],
        ["abc"],
        [torch.zeros(4)],
        [torch.zeros(2, 2)],
        [torch.zeros(2), torch.zeros(2)],
        [torch.zeros(4, dtype=torch.int32)],
        [torch.tensor(0.0)],
        [torch.zeros(0, 3)],
    ]
    assert len({content_key(content) for content in contents}) == len(contents)
    view = torch.arange(6.0).reshape(2, 3)
    assert content_key([view.T]) == content_key([view.T.contiguous()])  # by value


def test_encoders_are_told_apart_by_weights_configuration_and_space() -> None:
    def tiny(**options: Any) -> PointViT:
        torch.manual_seed(0)
        sizes = {"embed_dim": 16, "depth": 1, "num_heads": 2, "num_groups": 8, "group_size": 16, "num_points": 128}
        return PointViT(**{**sizes, **options})

    torch.manual_seed(0)
    aligned = as_aligned(OpenShapePointBERT(8, 16, 1, 2, 16, num_groups=4))
    names = [identity_of(model) for model in (tiny(), tiny(group_size=8), aligned, aligned.view("text"))]
    names += [identity_of(aligned.view("joint")), identity_of(ShapeDescriptor(0)), identity_of(ShapeDescriptor(1))]
    names += [identity_of(PointPCA(4)), identity_of(PointPCA(4).fit(Household("test"), num_points=64))]
    assert len(set(names)) == len(names)
    assert identity_of(tiny()) == names[0]
    assert identity_of(ShapeDescriptor(0)) == names[5]
