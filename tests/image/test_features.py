"""Stored features: resumption, what is refused, what is read back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_towers import JOINT, PATCH, picture
from torch import Tensor

from pc3d.data import BadFileError
from pc3d.image import (
    DenseFeatures,
    FeatureMismatchError,
    FeatureStore,
    LiveFeatures,
    PictureFeatures,
    TextFeatures,
    open_clip_pair,
    precompute,
    prompt_ensemble,
)
from pc3d.image.features import content_hash


class Means:
    """Extractor that counts its calls: mean colours, and of every row."""

    def __init__(self, **identity: Any) -> None:
        self.calls = 0
        self.settings = {"name": "means", "scale": 1.0, **identity}

    def __call__(self, content: Any) -> dict[str, Tensor]:
        self.calls += 1
        values = torch.from_numpy(np.asarray(content, dtype=np.float32))
        return {"mean": values.mean(dim=(0, 1))[None] * self.settings["scale"], "rows": values.mean(dim=1)}

    def identity(self) -> dict[str, Any]:
        return self.settings


def items(count: int) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    return ((f"object {i}", picture(10 + i, 8, seed=i)) for i in range(count))


def test_features_come_back_to_half_precision(tmp_path: Path) -> None:
    store = precompute(items(7), Means(), tmp_path, shard_size=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"features-0000{i}.safetensors" for i in range(3)]
    assert list(store) == [f"object {i}" for i in range(7)]
    assert len(store) == 7
    assert "object 6" in store
    assert "object 7" not in store
    for name, image in items(7):
        expected = Means()(image)
        for key, value in expected.items():
            assert store[name][key].dtype == torch.float32
            # A relative rounding of 2^-11.
            torch.testing.assert_close(store[name][key], value, rtol=2**-11, atol=0)
    exact = precompute(items(2), Means(), tmp_path / "exact", dtype=torch.float32)
    assert torch.equal(exact["object 1"]["rows"], Means()(picture(11, 8, seed=1))["rows"])


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    def stopping() -> Iterator[tuple[str, NDArray[np.uint8]]]:
        for number, item in enumerate(items(9)):
            if number == 5:
                raise KeyboardInterrupt
            yield item

    first = Means()
    with pytest.raises(KeyboardInterrupt):
        precompute(stopping(), first, tmp_path, shard_size=2)
    assert first.calls == 5
    again, seen = Means(), []
    store = precompute(items(9), again, tmp_path, shard_size=2, progress=lambda done, item: seen.append((done, item)))
    assert again.calls == 9 - 4  # two whole shards were kept
    assert seen == [(i + 1, f"object {i}") for i in range(9)]
    whole = precompute(items(9), Means(), tmp_path / "whole", shard_size=2)
    for name in whole:
        for key in ("mean", "rows"):
            assert torch.equal(store[name][key], whole[name][key])
    more = Means()
    assert len(precompute(items(11), more, tmp_path)) == 11
    assert more.calls == 2


def test_features_made_otherwise_are_refused(tmp_path: Path) -> None:
    precompute(items(2), Means(), tmp_path)
    for other in (Means(scale=2.0), Means(extra=[1, 2])):
        with pytest.raises(FeatureMismatchError, match=r"(scale: 1\.0, expected 2\.0|extra: null, expected \[1, 2\])"):
            precompute(items(3), other, tmp_path)
        with pytest.raises(FeatureMismatchError, match="made otherwise than expected"):
            FeatureStore(tmp_path, other.identity())
    assert len(FeatureStore(tmp_path, Means().identity())) == 2


def test_another_version_of_a_library_is_no_other_teacher(tmp_path: Path) -> None:
    first = precompute(items(2), Means(versions={"torch": "2.13"}), tmp_path)
    assert first.teacher["versions"] == {"torch": "2.13"}
    assert len(precompute(items(3), Means(versions={"torch": "2.14"}), tmp_path)) == 3
    assert len(FeatureStore(tmp_path, Means().identity())) == 3


def test_other_content_under_the_same_id_is_refused(tmp_path: Path) -> None:
    precompute(items(2), Means(), tmp_path)
    changed = picture(11, 8, seed=1)
    changed[0, 0, 0] ^= 1
    with pytest.raises(FeatureMismatchError, match="'object 1' was computed from other content"):
        precompute([("object 1", changed)], Means(), tmp_path)


def test_a_damaged_shard_is_noticed(tmp_path: Path) -> None:
    precompute(items(4), Means(), tmp_path, shard_size=2)
    path = tmp_path / "features-00001.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    store = FeatureStore(tmp_path)
    assert store["object 0"]["mean"].shape == (1, 3)
    with pytest.raises(BadFileError, match=r"features-00001\.safetensors: was changed or damaged"):
        store["object 2"]
    path.write_bytes(data[:-10])
    with pytest.raises(BadFileError, match="not a readable shard"):
        FeatureStore(tmp_path)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(BadFileError, match="has the format None"):
        FeatureStore(tmp_path)


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no features-\*\.safetensors"):
        FeatureStore(tmp_path)
    with pytest.raises(ValueError, match="the id 'a' stands twice"):
        precompute([("a", picture()), ("a", picture())], Means(), tmp_path / "twice")
    with pytest.raises(ValueError, match=r"mean of 'object 0' is not finite in torch\.float16 \(largest 2\.\d+e\+06\)"):
        precompute(items(1), Means(scale=1e4), tmp_path / "large")
    for options, message in (({"shard_size": 0}, "shard_size"), ({"dtype": torch.int8}, "dtype must be")):
        with pytest.raises(ValueError, match=message):
            precompute(items(1), Means(), tmp_path / "options", **options)  # type: ignore[arg-type]
    store = precompute(items(1), Means(), tmp_path / "one")
    with pytest.raises(KeyError, match="'object 9' is none of the 1 items"):
        store["object 9"]
    precompute([("object 0", picture(10, 8, seed=0))], Means(), tmp_path / "other")
    (tmp_path / "other" / "features-00000.safetensors").rename(tmp_path / "one" / "features-00007.safetensors")
    with pytest.raises(BadFileError, match=r"has the id 'object 0', which features-00000\.safetensors has too"):
        FeatureStore(tmp_path / "one")


def test_hashes_tell_content_apart() -> None:
    image = picture()
    hashes = [
        content_hash(image),
        content_hash(image.reshape(56, 40, 3)),
        content_hash([image, image]),
        content_hash("ab"),
        content_hash(["a", "b"]),
        content_hash(["ab", ""]),
    ]
    assert len(set(hashes)) == len(hashes)
    assert content_hash([image]) == content_hash(image)


def test_towers_are_stored_and_live_alike(open_clip_vit: tuple[str, str], tmp_path: Path) -> None:
    pair = open_clip_pair(*open_clip_vit)
    views = {"a": [picture(seed=i) for i in range(3)], "b": [picture(33, 33, seed=9)]}
    texts = {"a": ["chair", "wooden chair"], "b": ["lamp"]}
    whole = {"a": picture(), "b": picture(33, 50)}
    for number, (contents, extractor, shapes) in enumerate(
        (
            (views, PictureFeatures(pair.image), {"image": (3, JOINT)}),
            (texts, TextFeatures(pair.text), {"original": (2, JOINT), "prompt_avg": (2, JOINT)}),
            (whole, DenseFeatures(pair.image, 32), {"dense": (4, 6, JOINT)}),
        )
    ):
        contents_any: Any = contents
        live = LiveFeatures(contents_any, extractor)
        store = precompute(contents_any.items(), extractor, tmp_path / str(number), dtype=torch.float32)
        assert {key: tuple(value.shape) for key, value in live["a"].items()} == shapes
        assert list(live) == list(store)
        assert live.identity() == extractor.identity()
        FeatureStore(tmp_path / str(number), live.identity())
        for name in live:
            for key, value in live[name].items():
                torch.testing.assert_close(store[name][key], value, atol=1e-6, rtol=1e-6)
    with pytest.raises(KeyError, match="none of the 2 items"):
        live["c"]
    with pytest.raises(FeatureMismatchError, match="short_side: 32, expected 64"):
        FeatureStore(tmp_path / "2", DenseFeatures(pair.image, 64).identity())
    averaged = TextFeatures(pair.text)("chair")["prompt_avg"]
    torch.testing.assert_close(averaged, prompt_ensemble(pair.text, ["chair"], TextFeatures(pair.text).templates))
    assert pair.image.stride == PATCH
