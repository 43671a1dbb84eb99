"""Streams of shards: who reads what, how often, and that epochs differ."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from pc3d.data import AlignedStream, BadFileError, ChooseTargets, MissingDataError, PointCloud, targets_of
from pc3d.data.aligned import Targets
from pc3d.data.aligned_files import write_shard


def cloud(number: int) -> PointCloud:
    features = Targets(torch.full((2, 3), float(number)), torch.ones(1, 4), ("a", "b"), ("raw",) * 2, ("rendering",))
    return PointCloud(torch.full((5, 3), float(number)), meta={"id": str(number), "targets": features})


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four shards of unequal size with 14 shapes."""
    folder, bounds = tmp_path_factory.mktemp("shards"), [0, 2, 6, 9, 14]
    for number in range(4):
        clouds = [cloud(i) for i in range(bounds[number], bounds[number + 1])]
        write_shard(folder / f"train-{number:06}.tar", clouds)
    return str(folder / "train-{000000..000003}.tar")


def ids(stream: AlignedStream) -> list[list[int]]:
    return [[int(meta["id"]) for meta in batch.meta] for batch in stream.train_dataloader()]


def test_a_reader_visits_every_shape_once_a_round(urls: str) -> None:
    stream = AlignedStream(urls, 14, batch_size=2, buffer_size=1)
    seen = [number for batch in ids(stream) for number in batch]
    assert len(seen) == 28
    # Two rounds, of which a buffer of one holds a shape back.
    assert Counter(seen[:13]).most_common(1)[0][1] == 1
    assert all(count in (1, 2, 3) for count in Counter(seen).values())
    assert len(Counter(seen)) == 14


def test_batches_are_a_function_of_seed_and_epoch(urls: str) -> None:
    stream = AlignedStream(urls, 3, batch_size=4, buffer_size=6, seed=1)
    loader = stream.train_dataloader()
    assert len(loader) == 3
    first, second = ([[int(m["id"]) for m in b.meta] for b in loader] for _ in range(2))
    assert first != second
    loader.sampler.set_epoch(0)
    assert [[int(m["id"]) for m in b.meta] for b in loader] == first
    assert ids(AlignedStream(urls, 3, batch_size=4, buffer_size=6, seed=2)) != first


def test_processes_and_workers_share_the_shards(urls: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for rank in (0, 1):
        monkeypatch.setattr("pc3d.data.aligned_stream._process", lambda rank=rank: (rank, 2))
        stream = AlignedStream(urls, 4, batch_size=1, buffer_size=1, num_workers=2)
        seen += [number for batch in ids(stream) for number in batch]
    # Each of the four readers has a shard of its own, of 2 to 5 shapes, and gave two of it.
    assert len(set(seen)) == len(seen) == 8
    monkeypatch.setattr("pc3d.data.aligned_stream._process", lambda: (0, 3))
    with pytest.raises(ValueError, match="4 shards cannot be shared by 6 readers"):
        ids(AlignedStream(urls, 1, num_workers=2))


def test_transforms_are_seeded_per_shape(urls: str) -> None:
    def drawn() -> list[str]:
        stream = AlignedStream(urls, 3, train_transforms=[ChooseTargets()], batch_size=4, buffer_size=4)
        return [t.texts[0] for batch in stream.train_dataloader() for t in targets_of(batch)]

    assert drawn() == drawn()
    assert set(drawn()) == {"a", "b"}


def test_names_that_say_nothing_are_not_streamed(urls: str, tmp_path: Path) -> None:
    path = tmp_path / "filter.json"
    path.write_text('{"3": {"flag": "N", "name": "x"}, "4": {"flag": "Y", "name": "y"}}')
    stream = AlignedStream(urls, 14, text_filter=path, batch_size=1, buffer_size=1)
    seen = {meta["id"]: meta["targets"] for batch in stream.train_dataloader() for meta in batch.meta}
    assert {number: len(found.texts) for number, found in seen.items() if number in "345"} == {"3": 0, "4": 2, "5": 2}
    assert len(seen["3"].image_features) == 1
    with pytest.raises(MissingDataError, match=r"text_filter: 1 .* missing"):
        AlignedStream(urls, 1, text_filter=tmp_path / "none.json")


def test_what_cannot_be_streamed_is_refused(tmp_path: Path) -> None:
    for changes, message in (({"num_batches": 0}, "num_batches"), ({"batch_size": 0}, "batch_size")):
        with pytest.raises(ValueError, match=f"{message} must be at least 1, got 0"):
            AlignedStream("x.tar", **{"num_batches": 1, **changes})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="urls must be at least 1, got 0"):
        AlignedStream([], 1)
    with pytest.raises(MissingDataError, match=r"AlignedStream: 2 file\(s\) or folder\(s\) missing:\n.*none-0\.tar"):
        AlignedStream(str(tmp_path / "none-{0..1}.tar"), 1)
    assert len(AlignedStream("https://example.com/train-{000000..000007}.tar", 1).urls) == 8
    write_shard(tmp_path / "empty.tar", [])
    with pytest.raises((BadFileError, ValueError)):
        ids(AlignedStream([str(tmp_path / "empty.tar")], 1))
    write_shard(tmp_path / "bad.tar", [cloud(1)])
    data = (tmp_path / "bad.tar").read_bytes()
    (tmp_path / "bad.tar").write_bytes(data.replace(b"PK\x03\x04", b"PKxx"))
    with pytest.raises(BadFileError, match=r"bad\.tar: does not hold a packed shape"):
        ids(AlignedStream([str(tmp_path / "bad.tar")], 1, batch_size=1, buffer_size=1))
