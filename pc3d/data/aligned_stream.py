"""Shards read sequentially, from disks, web servers or buckets, for data without random access."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from glob import glob
from itertools import count, islice
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pc3d._extras import require
from pc3d.data.aligned_files import TERMS, TOOL, read_text_filter, unpack_cloud, without_silent_texts
from pc3d.data.dataset import BadFileError, MissingDataError
from pc3d.data.loader import _process, leave_signals_to_the_main_process, sample_generator
from pc3d.data.shard_files import read_shard
from pc3d.data.transforms import Compose, Transform
from pc3d.data.types import PointBatch, PointCloud, collate

require("pytorch_lightning", extra="train", purpose="AlignedStream")

import pytorch_lightning as pl  # noqa: E402  # after the check, whose message says how to install it


class _Stream(IterableDataset[PointBatch]):
    """Endless batches of this worker of this process: its own share of the shards, round after round."""

    def __init__(
        self,
        urls: Sequence[str],
        silent: frozenset[str],
        transform: Transform | None,
        batch_size: int,
        buffer_size: int,
        seed: int,
    ) -> None:
        self.urls, self.silent, self.transform, self.batch_size = list(urls), silent, transform, batch_size
        self.buffer_size, self.seed, self.epoch = buffer_size, seed, 0
        # Asked for here: workers are started anew and belong to no process group.
        self.process, self.processes = 0, 1

    def __iter__(self) -> Iterator[PointBatch]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        part, parts = self.process * workers + number, self.processes * workers
        samples = self._samples(part, parts)
        for step in count():
            clouds = [
                self._transformed(cloud, step * self.batch_size + i, part)
                for i, cloud in enumerate(islice(samples, self.batch_size))
            ]
            yield collate(clouds)

    def _samples(self, part: int, parts: int) -> Iterator[PointCloud]:
        """Shapes of one reader; every round deals the shards anew, the same to all readers."""
        generator = sample_generator(self.seed, self.epoch, 2**62 + part)
        for turn in count():
            order = torch.randperm(len(self.urls), generator=sample_generator(self.seed, self.epoch, 2**63 + turn))
            # Each round by itself: a buffer that holds more than a reader's share would give a shape twice in a batch.
            yield from self._shuffled(self._shapes(order[part::parts].tolist()), generator)

    def _shapes(self, shards: Sequence[int]) -> Iterator[PointCloud]:
        """Shapes of some shards, in their order."""
        for url in (self.urls[i] for i in shards):
            for sample in read_shard(url):
                if "npz" not in sample:
                    raise BadFileError(url, f"has no KEY.npz for the key {sample['__key__']!r}")
                cloud = unpack_cloud(sample["npz"], url, f"in {sample['__key__']}.npz")
                yield without_silent_texts(cloud, self.silent)

    def _shuffled(self, samples: Iterator[PointCloud], generator: torch.Generator) -> Iterator[PointCloud]:
        """A sample drawn from a buffer each time, whose place the next one takes; in the end those that are left."""
        buffer = list(islice(samples, self.buffer_size))
        for sample in samples:
            chosen = int(torch.randint(len(buffer), (), generator=generator))
            yield buffer[chosen]
            buffer[chosen] = sample
        for chosen in torch.randperm(len(buffer), generator=generator).tolist():
            yield buffer[chosen]

    def _transformed(self, cloud: PointCloud, number: int, part: int) -> PointCloud:
        if self.transform is None:
            return cloud
        return self.transform(cloud, sample_generator(self.seed, self.epoch, part * 2**40 + number))


class StreamLoader:
    """A fixed number of batches an epoch from a stream of shards.

    Args:
        stream: the source of the samples.
        num_batches: per epoch and process.
        num_workers: processes that read.
        pin_memory: hand out batches in page-locked memory.
    """

    def __init__(self, stream: _Stream, num_batches: int, num_workers: int, pin_memory: bool) -> None:
        self._stream, self.num_batches = stream, num_batches
        self._options: dict[str, Any] = {"num_workers": num_workers, "pin_memory": pin_memory, "batch_size": None}
        self._options["worker_init_fn"] = leave_signals_to_the_main_process
        self.sampler = self.batch_sampler = _Epoch(stream)

    def __len__(self) -> int:
        """Batches of one epoch on this process."""
        return self.num_batches

    def __iter__(self) -> Iterator[PointBatch]:
        self._stream.process, self._stream.processes = _process()
        yield from islice(DataLoader(self._stream, collate_fn=_as_is, **self._options), self.num_batches)
        self.sampler.set_epoch(self._stream.epoch + 1)


class _Epoch:
    """What Lightning tells the epoch to."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    def set_epoch(self, epoch: int) -> None:
        self._stream.epoch = epoch


def _as_is(batch: Any) -> Any:
    return batch


class AlignedStream(pl.LightningDataModule):
    """Training batches from shards of shapes with targets, streamed in order with WebDataset.

    If the shards are on a disk, :class:`pc3d.data.AlignedShards` is better: it reads in any order, resumes exactly, and
    can make batches of similar shapes. Here, shards may be URLs (``https://...``, ``pipe:aws s3 cp s3://... -``). Each
    reader (a worker of a process) reads its own share of the shards, which changes every round, and returns each shape
    of it once per round, in an order drawn from a buffer of shapes. Batches are a function of (seed, epoch, number of
    readers). An epoch is a fixed number of batches on every process, so shards need not have the same size. If they
    have, and an epoch has the batches of one round, it contains every shape once. A run resumed within an epoch starts
    the stream of that epoch again.

    Args:
        urls: one per shard, or one with a range as in ``train-{000000..000876}.tar`` or, of paths, with ``*``.
        num_batches: per epoch and process.
        text_filter: a file like ``gpt4_filtering.json``: shapes flagged ``"N"`` in it lose their raw texts.
        train_transforms: applied in turn to every shape.
        batch_size: shapes per batch and process.
        buffer_size: shapes that each reader draws from; they take about 250 kB each.
        num_workers: processes that read and prepare batches, per training process; 0 reads in the training process.
        seed: of all draws.
        pin_memory: hand out batches in page-locked memory.

    Raises:
        ValueError: no shard, a folder or a kind of address that cannot be read, or a number out of range; of
            :meth:`check_readers`.
        MissingDataError: a shard that is a path, or the filter, is not there. URLs are checked only when they are read.
        BadFileError: while training, a shard is empty, cut short or damaged, or the command that reads it failed.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        num_batches: int,
        *,
        text_filter: Path | str | None = None,
        train_transforms: list[Transform] | None = None,
        batch_size: int = 200,
        buffer_size: int = 2000,
        num_workers: int = 0,
        seed: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__()
        self.urls = _expanded(urls)
        sizes = {"urls": len(self.urls), "num_batches": num_batches}
        for name, value in {**sizes, "batch_size": batch_size, "buffer_size": buffer_size}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        _check_urls(self.urls)
        self.num_batches, self.num_workers, self.pin_memory = num_batches, num_workers, pin_memory
        self.batch_size = batch_size
        transform = Compose(train_transforms) if train_transforms else None
        silent = read_text_filter(text_filter)
        self._stream = _Stream(self.urls, silent, transform, batch_size, buffer_size, seed)

    def check_readers(self, processes: int) -> None:
        """Check that each reader gets a shard.

        Args:
            processes: that train together.

        Raises:
            ValueError: there are fewer shards than readers.
        """
        workers = max(self.num_workers, 1)
        if len(self.urls) < processes * workers:
            raise ValueError(
                f"{len(self.urls)} shard(s) cannot be shared by {processes * workers} readers ({processes} process(es) "
                f"of {workers} worker(s)): use fewer num_workers or processes, or more and smaller shards"
            )

    def train_dataloader(self) -> StreamLoader:
        """Batches of the stream.

        Raises:
            ValueError: see :meth:`check_readers`.
        """
        self.check_readers(_process()[1])
        return StreamLoader(self._stream, self.num_batches, self.num_workers, self.pin_memory)


def _expanded(urls: str | Sequence[str]) -> list[str]:
    """A URL for each shard, from one with ranges or stars, or several as they are."""
    if not isinstance(urls, str):
        return list(urls)
    webdataset = require("webdataset", extra="train", purpose="streams of shards")
    try:
        found: list[str] = webdataset.shardlists.expand_urls(urls)
    except AssertionError as error:  # of a variable as in ${NAME}
        raise ValueError(f"urls: {urls}: {error}") from error
    return [each for url in found for each in ((sorted(glob(url)) if _path_of(url) else []) or [url])]


def _path_of(url: str) -> Path | None:
    """The file that an address names; None where it names something else."""
    parsed = urlparse(url)
    return Path(parsed.path if parsed.scheme else url) if parsed.scheme in ("", "file") else None


def _check_urls(urls: Sequence[str]) -> None:
    """Refuses addresses of which nothing can be read."""
    webdataset = require("webdataset", extra="train", purpose="streams of shards")
    known = ["file", *(name for name in webdataset.gopen_schemes if not name.startswith("_"))]
    missing: list[Path | str] = []
    for url in urls:
        path, scheme = _path_of(url), urlparse(url).scheme
        if path is None and scheme not in known:
            raise ValueError(
                f"urls: {url}: of addresses, {', '.join(known)} are read: name a command that prints the shard, as in "
                "pipe:aws s3 cp s3://BUCKET/train-000000.tar -"
            )
        if path is not None and url and path.is_dir():
            raise ValueError(f"urls: {url} is a folder: name its shards, as in {path}/*.tar")
        if path is not None and not path.is_file():
            missing.append(url)
    if missing:
        raise MissingDataError.of("AlignedStream", missing, Path(), TOOL, TERMS)
