"""Streams of shards: who reads what, how often, and that epochs differ."""

from __future__ import annotations

import bz2
import gzip
import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pc3d.data import AlignedStream, BadFileError, ChooseTargets, MissingDataError, PointCloud, targets_of
from pc3d.data.aligned import Targets
from pc3d.data.aligned_files import write_index, write_shard


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


@pytest.mark.parametrize("buffer_size", [1, 5, 100])
def test_a_reader_visits_every_shape_once_a_round(urls: str, buffer_size: int) -> None:
    stream = AlignedStream(urls, 14, batch_size=2, buffer_size=buffer_size)
    seen = [number for batch in ids(stream) for number in batch]
    assert sorted(seen[:14]) == sorted(seen[14:]) == list(range(14))
    assert seen[:14] != seen[14:]


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_of_one_size_give_every_shape_once_an_epoch(tmp_path: Path, workers: int) -> None:
    for number in range(6):
        write_shard(tmp_path / f"{number}.tar", [cloud(4 * number + i) for i in range(4)])
    stream = AlignedStream(str(tmp_path / "*.tar"), 12, batch_size=2, buffer_size=3, num_workers=workers)
    loader = stream.train_dataloader()
    epochs = [[int(meta["id"]) for batch in loader for meta in batch.meta] for _ in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(24))] * 2
    assert epochs[0] != epochs[1]


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
    refusal = r"4 shard\(s\) cannot be shared by 6 readers \(3 process\(es\) of 2 worker\(s\)\): use fewer num_workers"
    with pytest.raises(ValueError, match=refusal):
        AlignedStream(urls, 1, num_workers=2).train_dataloader()


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
    with pytest.raises(MissingDataError, match=r"1 file\(s\) or folder\(s\) missing:\n.*/none-\*\.tar"):
        AlignedStream(str(tmp_path / "none-*.tar"), 1)
    with pytest.raises(MissingDataError, match=f"file://{tmp_path}/none.tar"):
        AlignedStream([f"file://{tmp_path}/none.tar"], 1)
    with pytest.raises(ValueError, match=rf"urls: {tmp_path} is a folder: name its shards, as in {tmp_path}/\*\.tar"):
        AlignedStream(str(tmp_path), 1)
    with pytest.raises(ValueError, match=r"urls: s3://a/b.tar: of addresses, file, pipe, .*: name a command"):
        AlignedStream("s3://a/b.tar", 1)
    with pytest.raises(ValueError, match=r"urls: \$\{NONE\}/b.tar: missing environment variable"):
        AlignedStream("${NONE}/b.tar", 1)


def test_a_compressed_shard_is_read(urls: str, tmp_path: Path) -> None:
    whole = Path(urls.replace("{000000..000003}", "000001")).read_bytes()
    for compress in (gzip.compress, bz2.compress):
        (tmp_path / "packed").write_bytes(compress(whole))
        stream = AlignedStream([str(tmp_path / "packed")], 4, batch_size=1, buffer_size=1)
        assert ids(stream) == [[2], [3], [4], [5]]


# ---- shards that are not whole -----------------------------------------------------------------------------------


def cut(shard: bytes, member: int, offset: int) -> bytes:
    """A shard of three shapes that ends some bytes after the beginning of its n-th header, the end being the fourth."""
    with tarfile.open(fileobj=io.BytesIO(shard)) as tar:
        starts = [found.offset for found in tar]
    return shard[: [*starts, 2 * starts[2] - starts[1]][member] + offset]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda shard: cut(shard, 1, 0), "empty header at byte"),  # tarfile itself takes it for whole
        (lambda shard: cut(shard, 1, 100), "truncated header at byte"),  # likewise
        (lambda shard: cut(shard, 3, 0), "empty header at byte"),  # all shapes, but no end
        (lambda shard: cut(shard, 2, 700), "unexpected end of data"),
        (lambda shard: cut(shard, 1, 0) + b"\xff" * 512 + shard[len(cut(shard, 1, 512)) :], "bad checksum at byte"),
        (lambda shard: cut(shard, 1, 0) + b"\xff" * 300_000, "bad checksum at byte"),  # more than a pipe holds
        (lambda shard: shard + shard, "it goes on after its end: tar files are not joined by cat"),
        (lambda shard: gzip.compress(shard) + gzip.compress(shard), "it goes on after its end"),
        (lambda shard: bz2.compress(shard) + bz2.compress(shard), "it goes on after its end"),
        (lambda shard: bz2.compress(shard) + b"\xff" * 30_000, "End of stream already reached"),
        (lambda shard: gzip.compress(shard)[:-300], "unexpected end of data"),
        (lambda shard: b"", "empty header at byte 0"),
        (lambda shard: b"<html>not found</html>" * 100, "invalid header at byte 0"),
    ],
)
def test_a_shard_that_is_not_whole_is_an_error(damage: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.tar"
    write_shard(path, [cloud(i) for i in range(3)])
    path.write_bytes(damage(path.read_bytes()))
    for url in (str(path), f"pipe:cat {path}"):
        told = f"{re.escape(url)}: is no tar file, was cut short or is damaged .{message}.*: copy or make it anew"
        with pytest.raises(BadFileError, match=told):
            ids(AlignedStream([url], 4, batch_size=1, buffer_size=1))
    with pytest.raises(BadFileError, match=f"{path}: is not a whole, uncompressed tar file"):
        write_index(tmp_path / "train-index.npz", [path])


def test_what_is_in_a_shard_must_be_shapes(tmp_path: Path) -> None:
    path = tmp_path / "bad.tar"
    stream = AlignedStream(["pipe:cat " + str(path)], 1, batch_size=1, buffer_size=1)
    write_shard(path, [])
    with pytest.raises(BadFileError, match=r"bad\.tar: is a tar file without shapes \(KEY.npz\): copy or make it anew"):
        ids(stream)
    write_shard(path, [cloud(1)])
    data = path.read_bytes()
    path.write_bytes(data.replace(b"PK\x03\x04", b"PKxx"))
    with pytest.raises(BadFileError, match=r"bad\.tar: does not hold a packed shape in shapes/1\.npz"):
        ids(stream)
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("shapes/1.json"))
    with pytest.raises(BadFileError, match=r"bad\.tar: has no KEY.npz for the key 'shapes/1'"):
        ids(stream)


def test_a_command_that_fails_is_not_the_end_of_a_shard(urls: str, tmp_path: Path) -> None:
    whole = urls.replace("{000000..000003}", "000001")
    assert ids(AlignedStream([f"pipe:cat {whole}"], 4, batch_size=1, buffer_size=1)) == [[2], [3], [4], [5]]
    for command in (f"cat {whole}; exit 3", f"head -c 512 {whole}; exit 3", "exit 3"):
        with pytest.raises(BadFileError, match="the command that reads it ended with exit code 3: copy or make it"):
            ids(AlignedStream([f"pipe:{command}"], 8, batch_size=1, buffer_size=1))
    # One that is left in the midst of its shard may fail of that.
    assert len(ids(AlignedStream([f"pipe:cat {whole} && sleep 0.1 && echo"], 1, batch_size=1, buffer_size=1))) == 1
