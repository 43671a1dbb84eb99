"""Batches that depend only on (seed, epoch), not on workers, processes or interruptions."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pc3d.data.dataset import PointDataset
from pc3d.data.mixing import SceneCollate
from pc3d.data.transforms import Transform
from pc3d.data.types import PointBatch, PointCloud
from pc3d.data.view_pairs import ViewPairs

# What a worker needs to make one batch: the epoch and the positions in the data set.
BatchKey = tuple[int, list[int]]


def sample_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """The generator of one sample in one epoch: a pure function of the three numbers."""
    word = np.random.SeedSequence([seed, epoch, index]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(word))


def batch_generator(seed: int, epoch: int, indices: Sequence[int]) -> torch.Generator:
    """The generator of what happens to one batch as a whole: a pure function of the arguments."""
    # No sample has so large an index, and the order of an epoch has one less: a stream of its own.
    word = np.random.SeedSequence([seed, epoch, 2**63 + 1, *indices]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(word))


def _process() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class EpochSampler(Sampler[BatchKey]):
    """Sampler of the batches of each epoch on this process.

    The order of an epoch is a permutation drawn from (seed, epoch), the same on every process. It is cut into global
    batches of ``batch_size * processes``; process ``r`` takes the ``r``-th equal run of each. So two processes with
    batches of 16 together see what one process with batches of 32 sees, and their runs concatenated are its batch.

    Without ``drop_last``, nothing is repeated and nothing is left out. The last global batch is distributed as evenly
    as possible. If it has fewer samples than there are processes, it takes samples from the previous one, because every
    process must make the same number of steps. If batches have one sample, the last ones have two.

    Args:
        num_samples: length of the data set.
        batch_size: samples per batch and process.
        shuffle: permute each epoch; otherwise the order of the data set.
        drop_last: leave out the last, incomplete global batch.
        seed: of the permutations.
        rank: of this process; None asks ``torch.distributed`` at each epoch.
        world_size: number of processes; likewise.

    Raises:
        ValueError: a size is not positive, or there are too few samples for the processes.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        if (rank is None) != (world_size is None):
            raise ValueError("give both rank and world_size, or neither")
        self.num_samples, self.batch_size = num_samples, batch_size
        self.shuffle, self.drop_last, self.seed = shuffle, drop_last, seed
        self._fixed_process = None if rank is None or world_size is None else (rank, world_size)
        self._neighbors: Tensor | None = None
        self._group_size = 1
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; Lightning calls this at the start of each epoch."""
        self.epoch = epoch

    def group_neighbors(self, neighbors: Tensor | None, group_size: int = 1) -> None:
        """Make batches of groups from now on: samples and some of their neighbours, side by side.

        Every epoch, as many samples as there are groups are drawn at random, each at most once; each is followed by
        ``group_size - 1`` of its neighbours, drawn anew without repetition. A batch is ``batch_size / group_size``
        groups.

        Args:
            neighbors: ``(num_samples, k)`` positions of the nearest samples of each, itself first; None for plain
                batches again.
            group_size: samples per group, at most k.

        Raises:
            ValueError: neighbours that are not of this data set, or a batch that is not of whole groups.
        """
        if neighbors is None:
            self._neighbors, self._group_size = None, 1
            return
        if neighbors.ndim != 2 or len(neighbors) != self.num_samples:
            raise ValueError(f"neighbors must be ({self.num_samples}, k), got {tuple(neighbors.shape)}")
        if not 1 <= group_size <= neighbors.shape[1]:
            raise ValueError(f"group_size must be between 1 and the {neighbors.shape[1]} neighbors, got {group_size}")
        if self.batch_size % group_size or not self.shuffle:
            raise ValueError(
                f"a batch of {self.batch_size} is not made of whole groups of {group_size}, or not shuffled: choose a "
                "multiple for batch_size"
            )
        self._neighbors, self._group_size = neighbors, group_size

    def _process(self) -> tuple[int, int]:
        return self._fixed_process or _process()

    def _bounds(self) -> list[int]:
        """Where the global batches begin and end in the order of the epoch."""
        _, world_size = self._process()
        global_size = self.batch_size * world_size
        bounds = list(range(0, self.num_samples + 1, global_size))
        rest = self.num_samples - bounds[-1]
        if self.drop_last or rest == 0:
            return bounds
        if self.num_samples < world_size:
            raise ValueError(
                f"{self.num_samples} samples do not go round {world_size} processes, each of which must make the same "
                "number of steps: use fewer processes"
            )
        if self.num_samples < len(bounds) * world_size:  # batches of one sample have none to lend
            return [*bounds[:-1], self.num_samples]
        bounds[-1] = min(bounds[-1], self.num_samples - world_size)
        return [*bounds, self.num_samples]

    def __len__(self) -> int:
        return len(self._bounds()) - 1

    def order(self, epoch: int) -> list[int]:
        """The data set's positions in the order of an epoch, all processes together."""
        if not self.shuffle:
            return list(range(self.num_samples))
        # The index -1 of a sample does not exist: 2**63 keeps the stream apart from every sample's own.
        generator = sample_generator(self.seed, epoch, 2**63)
        order = torch.randperm(self.num_samples, generator=generator)
        if self._neighbors is not None:
            seeds = order[: -(-self.num_samples // self._group_size)]
            others = self._neighbors[seeds, 1:].long()
            drawn = torch.rand(others.shape, generator=generator).argsort(1)[:, : self._group_size - 1]
            order = torch.cat([seeds[:, None], others.gather(1, drawn)], dim=1).flatten()[: self.num_samples]
        return [int(i) for i in order]

    def batches(self, epoch: int) -> list[list[int]]:
        """The batches of this process in an epoch, as positions in the data set."""
        rank, world_size = self._process()
        order, bounds = self.order(epoch), self._bounds()
        result = []
        for start, stop in pairwise(bounds):
            size, extra = divmod(stop - start, world_size)
            begin = start + rank * size + min(rank, extra)
            result.append(order[begin : begin + size + (rank < extra)])
        return result

    def __iter__(self) -> Iterator[BatchKey]:
        for batch in self.batches(self.epoch):
            yield self.epoch, batch


class _BatchMaker(Dataset[PointBatch]):
    """Makes a whole batch from its key, in whatever process it is called."""

    def __init__(
        self,
        dataset: Dataset[PointCloud],
        transform: Transform | None,
        collate: SceneCollate | ViewPairs | None,
        seed: int,
        fixed: bool,
    ) -> None:
        self.dataset, self.transform, self.seed, self.fixed = dataset, transform, seed, fixed
        self.collate = collate or SceneCollate()

    def _sample(self, epoch: int, index: int) -> PointCloud:
        generator = sample_generator(self.seed, 0 if self.fixed else epoch, index)
        own = self.dataset
        cloud = own.sample(index, generator) if isinstance(own, PointDataset) else own[index]
        if not isinstance(cloud, PointCloud):
            raise TypeError(
                f"item {index} of {type(own).__name__} must be a PointCloud, got {type(cloud).__name__}: let the data "
                "set give PointCloud(xyz, label=...), best as a pc3d.data.PointDataset"
            )
        return cloud if self.transform is None else self.transform(cloud, generator)

    def __getitem__(self, key: BatchKey) -> PointBatch:
        epoch, indices = key
        clouds = [self._sample(epoch, index) for index in indices]
        return self.collate(clouds, batch_generator(self.seed, 0 if self.fixed else epoch, indices))


class _Remaining(Sampler[BatchKey]):
    """The keys of one iteration, set anew before each by the loader."""

    def __init__(self) -> None:
        self.keys: list[BatchKey] = []

    def __iter__(self) -> Iterator[BatchKey]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


def leave_signals_to_the_main_process(worker: int) -> None:
    """Let a worker be deaf to what asks a run to stop.

    Ctrl-C reaches every process of a terminal, and a scheduler's signals every process of a job; a worker that dies of
    one would fail the step that is to be finished. SIGTERM is also how the process that it works for ends a worker, one
    that hangs or that is left over when a script ends: from that process alone it is heard. Macs do not tell who sent
    a signal: there, SIGTERM ends a worker whoever sends it.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_told, daemon=True).start()


def _end_when_told() -> None:
    """Wait for the SIGTERM of the process that this one works for, in a thread: the main one may hang in a library."""
    main = multiprocessing.parent_process()
    while main is None or signal.sigwaitinfo({signal.SIGTERM}).si_pid != main.pid:
        pass
    os._exit(0)  # as PyTorch's own workers do, told by that process


def _as_is(batch: Any) -> Any:
    return batch


class PointLoader:
    """Iterate over a data set in batches that are a function of (seed, epoch) alone.

    Every sample is transformed with its own generator, determined by (seed, epoch, position). The same seed therefore
    gives the same batches with 0, 2 or 4 workers, on one process or several (see :class:`EpochSampler`), and after a
    resume.

    Each complete iteration advances the epoch by one; ``loader.sampler.set_epoch(e)`` chooses it. ``state_dict()``
    stores the epoch and the number of its batches that were returned; after ``load_state_dict()``, the next iteration
    continues from there. Lightning calls all three itself.

    Args:
        dataset: a :class:`PointDataset`, or any map-style data set of :class:`PointCloud`. This guarantee does not
            include random transforms inside a data set that is not a ``PointDataset``.
        batch_size: clouds per batch and process.
        transform: applied after the data set's own.
        collate: how samples become a batch, such as ``SceneCollate(mix_probability=0.8)`` or :class:`ViewPairs`; None
            packs them.
        shuffle: a new order each epoch. Use False for evaluation: random transforms then repeat in every epoch, seeded
            per item, so that scores are reproducible.
        drop_last: leave out the last incomplete batch (batch normalisation needs two samples).
        num_workers: processes that prepare batches; 0 prepares them in this one.
        seed: of the order and of the transforms.
        pin_memory: hand out batches in page-locked memory.
        persistent_workers: keep the workers from one epoch to the next.
    """

    def __init__(
        self,
        dataset: Dataset[PointCloud],
        batch_size: int,
        *,
        transform: Transform | None = None,
        collate: SceneCollate | ViewPairs | None = None,
        shuffle: bool = True,
        drop_last: bool = True,
        num_workers: int = 0,
        seed: int = 0,
        pin_memory: bool = False,
        persistent_workers: bool = True,
    ) -> None:
        num_samples = len(dataset)  # type: ignore[arg-type]  # Dataset does not declare __len__, map-style ones have it
        self.dataset, self.batch_size = dataset, batch_size
        self.sampler = EpochSampler(num_samples, batch_size, shuffle=shuffle, drop_last=drop_last, seed=seed)
        # It yields whole batches; Lightning looks for either name.
        self.batch_sampler = self.sampler
        self._keys = _Remaining()
        self._loader: DataLoader[PointBatch] = DataLoader(
            _BatchMaker(dataset, transform, collate, seed, fixed=not shuffle),
            batch_size=None,
            sampler=self._keys,
            num_workers=num_workers,
            collate_fn=_as_is,
            pin_memory=pin_memory,
            persistent_workers=persistent_workers and num_workers > 0,
            worker_init_fn=leave_signals_to_the_main_process,
        )
        self._handed_out = 0
        self._resume: tuple[int, int] | None = None

    def __len__(self) -> int:
        """Batches of one epoch on this process."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[PointBatch]:
        # A generator: the epoch is read at the first batch, after Lightning has called set_epoch.
        epoch = self.sampler.epoch
        batches = self.sampler.batches(epoch)
        self._handed_out = self._resume[1] if self._resume is not None and self._resume[0] == epoch else 0
        self._resume = None
        self._keys.keys = [(epoch, batch) for batch in batches[self._handed_out :]]
        for batch in self._loader:
            self._handed_out += 1
            yield batch
        self.sampler.set_epoch(epoch + 1)
        self._handed_out = 0

    def state_dict(self) -> dict[str, Any]:
        """The epoch and the number of its batches returned so far."""
        if self._resume is not None:
            return {"epoch": self._resume[0], "batches": self._resume[1]}
        return {"epoch": self.sampler.epoch, "batches": self._handed_out}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from where ``state_dict()`` was taken, at the next iteration.

        Raises:
            ValueError: the state lacks a key.
        """
        if not {"epoch", "batches"} <= set(state):
            raise ValueError(f"a loader's state has 'epoch' and 'batches', got {sorted(state)}")
        self.sampler.set_epoch(int(state["epoch"]))
        self._resume = (int(state["epoch"]), int(state["batches"]))
