from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from pathlib import Path

import jsonargparse
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import Dataset

from pc3d.data import (
    Compose,
    EpochSampler,
    FarthestPointSample,
    Household,
    PointBatch,
    PointCloud,
    PointDataModule,
    PointLoader,
    RandomPointDropout,
    RandomSubsample,
    ScaleTranslate,
    Selection,
    sample_generator,
)

AUGMENT = Compose([RandomSubsample(128), ScaleTranslate()])


@pytest.fixture(scope="module")
def objects() -> Selection:
    return Selection(Household("test"), range(23))


def ids_of(batch: PointBatch) -> list[str]:
    return [meta["id"] for meta in batch.meta]


def same(first: PointBatch, second: PointBatch) -> bool:
    return ids_of(first) == ids_of(second) and torch.equal(first.xyz, second.xyz)


# The same seed gives the same batches


@pytest.mark.parametrize("num_workers", [2, 4])
def test_batches_do_not_depend_on_workers(objects: Selection, num_workers: int) -> None:
    transform = Compose([FarthestPointSample(256, start="random"), RandomSubsample(128), ScaleTranslate()])
    loaders = [
        PointLoader(objects, 5, transform=transform, num_workers=n, seed=7, drop_last=False) for n in (0, num_workers)
    ]
    torch.manual_seed(0)  # the global state must play no part
    for _ in range(2):
        plain, parallel = (list(loader) for loader in loaders)
        torch.manual_seed(1)
        assert len(plain) == len(parallel) == 5
        assert all(same(a, b) for a, b in zip(plain, parallel, strict=True))


def test_epochs_differ_and_each_goes_once_through_all(objects: Selection) -> None:
    loader = PointLoader(objects, 5, transform=AUGMENT, drop_last=False)
    epochs = [list(loader) for _ in range(3)]
    orders = [[name for batch in epoch for name in ids_of(batch)] for epoch in epochs]
    assert len({tuple(order) for order in orders}) == 3
    assert {tuple(sorted(order)) for order in orders} == {tuple(sorted(orders[0]))}
    assert len(set(orders[0])) == 23
    # The augmentation of one object differs from epoch to epoch too.
    clouds = [{c.meta["id"]: c.xyz for batch in epoch for c in batch.unbind()} for epoch in epochs]
    assert not any(torch.equal(clouds[0][name], clouds[1][name]) for name in clouds[0])


def test_seed_and_epoch_alone_decide(objects: Selection) -> None:
    loader = PointLoader(objects, 5, transform=AUGMENT, seed=1)
    epochs = [list(loader) for _ in range(3)]
    fresh = PointLoader(objects, 5, transform=AUGMENT, seed=1)
    fresh.sampler.set_epoch(2)
    assert all(same(a, b) for a, b in zip(fresh, epochs[2], strict=True))
    other = PointLoader(objects, 5, transform=AUGMENT, seed=2)
    assert not same(next(iter(other)), epochs[0][0])


def test_a_data_sets_own_transform_is_seeded_too() -> None:
    objects = Household("test", transform=AUGMENT)
    first, second = (next(iter(PointLoader(objects, 4, num_workers=n))) for n in (0, 2))
    assert same(first, second)
    torch.manual_seed(0)
    direct = objects[0]
    assert not torch.equal(direct.xyz, objects[0].xyz)
    torch.manual_seed(0)
    assert torch.equal(direct.xyz, objects[0].xyz)


def test_without_shuffling_every_epoch_is_the_same(objects: Selection) -> None:
    loader = PointLoader(objects, 5, transform=AUGMENT, shuffle=False, drop_last=False)
    first, second = list(loader), list(loader)
    assert [name for batch in first for name in ids_of(batch)] == [objects.load(i).meta["id"] for i in range(23)]
    assert all(same(a, b) for a, b in zip(first, second, strict=True))


def test_sample_generator_is_a_function_of_its_key() -> None:
    def draw(*key: int) -> float:
        return float(torch.rand((), generator=sample_generator(*key), dtype=torch.float64))

    keys = [(s, e, i) for s in range(4) for e in range(5) for i in range(50)]
    assert len({draw(*key) for key in keys}) == len(keys)
    assert draw(1, 2, 3) == draw(1, 2, 3)


def test_any_map_style_data_set_will_do() -> None:
    class Two(Dataset[PointCloud]):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> PointCloud:
            return PointCloud(xyz=torch.full((3, 3), float(index)))

    batch = next(iter(PointLoader(Two(), 2, transform=RandomPointDropout(), shuffle=False)))
    assert batch.dense().shape == (2, 3, 3)


def test_items_that_are_no_clouds_are_refused_with_the_way_out() -> None:
    pairs = [(torch.zeros(3, 3), 0)] * 2
    with pytest.raises(TypeError, match=r"item 0 of list must be a PointCloud, got tuple: .*PointDataset"):
        next(iter(PointLoader(pairs, 2, shuffle=False)))  # type: ignore[arg-type]


# Processes share the work


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("num_samples", [24, 25, 29, 35, 36])
def test_processes_together_see_the_batch_of_one(num_samples: int, world_size: int, drop_last: bool) -> None:
    batch_size = 4
    one = EpochSampler(num_samples, batch_size * world_size, drop_last=drop_last, rank=0, world_size=1)
    many = [
        EpochSampler(num_samples, batch_size, drop_last=drop_last, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for epoch in (0, 3):
        alone = one.batches(epoch)
        shares = [sampler.batches(epoch) for sampler in many]
        assert [len(share) for share in shares] == [len(alone)] * world_size
        assert {len(sampler) for sampler in many} == {len(alone)}
        joined = [[index for share in shares for index in share[i]] for i in range(len(alone))]
        whole = [i for i, batch in enumerate(joined) if len(batch) == batch_size * world_size]
        assert [joined[i] for i in whole] == [alone[i] for i in whole]
        assert all(len(batch) >= 1 for share in shares for batch in share)
        flat = [index for batch in joined for index in batch]
        assert flat == [index for batch in alone for index in batch]
        expected = num_samples // (batch_size * world_size) * batch_size * world_size if drop_last else num_samples
        assert len(flat) == len(set(flat)) == expected


def test_a_rest_smaller_than_the_processes_borrows() -> None:
    samplers = [EpochSampler(9, 4, shuffle=False, drop_last=False, rank=rank, world_size=2) for rank in range(2)]
    assert [sampler.batches(0) for sampler in samplers] == [[[0, 1, 2, 3], [7]], [[4, 5, 6], [8]]]
    with pytest.raises(ValueError, match="1 samples do not go round 2 processes"):
        len(EpochSampler(1, 4, drop_last=False, rank=0, world_size=2))


def test_batches_of_one_that_have_none_to_lend_take_the_rest_in() -> None:
    """Scenes are judged one by one: 8 of them by 3 processes."""
    samplers = [EpochSampler(8, 1, shuffle=False, drop_last=False, rank=rank, world_size=3) for rank in range(3)]
    assert [sampler.batches(0) for sampler in samplers] == [[[0], [3, 4]], [[1], [5, 6]], [[2], [7]]]
    assert [len(sampler) for sampler in samplers] == [2, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 1, "seed": -1}, "seed must not be negative"),
        ({"batch_size": 1, "rank": 0}, "both rank and world_size"),
    ],
)
def test_bad_sampler_arguments(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpochSampler(10, **arguments)


# An interrupted epoch goes on where it stopped


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_in_the_middle_of_an_epoch(objects: Selection, num_workers: int) -> None:
    whole = PointLoader(objects, 5, transform=AUGMENT)
    expected = list(whole) + list(whole)
    for stop in range(1, 8):
        loader = PointLoader(objects, 5, transform=AUGMENT, num_workers=num_workers)
        seen = []
        while len(seen) < stop:
            for batch in loader:
                seen.append(batch)
                if len(seen) == stop:
                    break
        state = loader.state_dict()
        resumed = PointLoader(objects, 5, transform=AUGMENT, num_workers=num_workers)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        while len(seen) < 8:
            seen += list(resumed)
        assert all(same(a, b) for a, b in zip(seen, expected, strict=True)), stop


def test_workers_are_deaf_to_what_a_scheduler_sends_to_every_process(objects: Selection) -> None:
    loader = PointLoader(objects, 2, transform=AUGMENT, num_workers=2)
    batches = iter(loader)
    found = [next(batches), next(batches)]  # one of each worker, which is thus ready
    workers = loader._loader._iterator._workers  # type: ignore[union-attr]
    for name in ("INT", "USR1", "TERM"):  # by another process
        subprocess.run(["kill", f"-{name}", *(str(worker.pid) for worker in workers)], check=True)
    found += batches
    assert all(worker.is_alive() for worker in workers)
    expected = list(PointLoader(objects, 2, transform=AUGMENT))
    assert len(found) == len(expected) > 4
    assert all(map(same, found, expected))


class Hanging(Dataset[PointCloud]):
    """Its second item never comes."""

    def __init__(self, outside_of_python: bool) -> None:
        self.outside_of_python = outside_of_python

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> PointCloud:
        if index == 1 and self.outside_of_python:  # as threads of a library do that were forked while they held a lock
            lock = ctypes.create_string_buffer(64)
            for _ in range(2):
                ctypes.CDLL(None).pthread_mutex_lock(lock)
        time.sleep(600 * index)
        return PointCloud(torch.zeros(1, 3))


@pytest.mark.parametrize("outside_of_python", [False, True])
def test_a_worker_that_hangs_is_ended(outside_of_python: bool) -> None:
    loader = PointLoader(Hanging(outside_of_python), 1, num_workers=1, shuffle=False)
    next(iter(loader))
    (worker,) = loader._loader._iterator._workers  # type: ignore[union-attr]
    worker.terminate()
    worker.join(5)
    code = worker.exitcode
    worker.kill()
    assert code == 0


def test_workers_on_macs_are_ended_by_any_sigterm(objects: Selection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python has no sigwaitinfo there."""
    monkeypatch.delattr("signal.sigwaitinfo")
    loader = PointLoader(objects, 2, transform=AUGMENT, num_workers=1)
    found = [next(batches := iter(loader))]
    (worker,) = loader._loader._iterator._workers  # type: ignore[union-attr]
    subprocess.run(["kill", "-INT", str(worker.pid)], check=True)
    found += batches
    assert all(map(same, found, PointLoader(objects, 2, transform=AUGMENT)))
    worker.terminate()
    worker.join(5)
    code = worker.exitcode
    worker.kill()
    assert code == 0


def test_a_script_that_leaves_its_workers_ends(tmp_path: Path) -> None:
    """The process, at its end, tells workers to end and waits for them."""
    script = tmp_path / "script.py"
    script.write_text("""
from pc3d.data import Household, PointLoader

if __name__ == "__main__":
    batches = iter(PointLoader(Household("test", num_points=32), 4, num_workers=2))
    next(batches)
    print("last line", flush=True)
""")
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "last line\n"
        assert process.wait(30) == 0


def test_a_state_of_something_else_is_refused(objects: Selection) -> None:
    with pytest.raises(ValueError, match=r"has 'epoch' and 'batches', got \['step'\]"):
        PointLoader(objects, 5).load_state_dict({"step": 3})


class Recorder(pl.LightningModule):
    """A model that notes the batches it sees and whose weight depends on their order."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.seen: list[tuple[int, list[str]]] = []

    def training_step(self, batch: PointBatch, batch_idx: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, ids_of(batch)))
        return (batch.dense().mean(dim=(0, 1)) - self.weight).square().sum()

    def validation_step(self, batch: PointBatch, batch_idx: int) -> None:
        self.log("points", float(len(batch.xyz)), batch_size=len(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(objects: Selection, validate: bool, checkpoint: Path | None = None, **arguments: object) -> Recorder:
    model = Recorder()
    module = PointDataModule(
        objects,
        objects if validate else None,
        batch_size=5,
        seed=3,
        train_transforms=[RandomSubsample(64), ScaleTranslate()],
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_epochs=3, devices=1, **quiet, **arguments)
    trainer.fit(model, module, ckpt_path=checkpoint)
    return model


@pytest.mark.filterwarnings("ignore::pytorch_lightning.utilities.warnings.PossibleUserWarning")
@pytest.mark.parametrize("validate", [False, True])
def test_lightning_resumes_at_the_next_batch(tmp_path: Path, objects: Selection, validate: bool) -> None:
    """A checkpoint after any step, the last of an epoch too, leads to the batches and weights of the whole run."""
    saver = pl.callbacks.ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(objects, validate, callbacks=[saver])
    assert len(whole.seen) == 12
    for step in range(1, 12):
        resumed = fit(objects, validate, tmp_path / f"step={step}.ckpt", enable_checkpointing=False)
        assert resumed.seen == whole.seen[step:], step
        assert torch.equal(resumed.weight, whole.weight), step


# The data module


def test_loaders_of_the_module(objects: Selection) -> None:
    module = PointDataModule(
        Household("train", labelled_only=True),
        test=objects,
        validation_fraction=0.2,
        batch_size=32,
        eval_batch_size=10,
        train_transforms=[RandomSubsample(256)],
        eval_transforms=[RandomSubsample(128)],
        seed=1,
    )
    train, validation, test = module.train_dataloader(), module.val_dataloader(), module.test_dataloader()
    assert len(module.train) + len(module.validation) == 365
    assert {batch.dense().shape for batch in train} == {(32, 256, 3)}
    assert sum(len(batch) for batch in validation) == len(module.validation)
    assert [len(batch) for batch in test] == [10, 10, 3]
    assert {batch.dense().shape[1] for batch in test} == {128}
    assert all(same(a, b) for a, b in zip(list(test), list(module.predict_dataloader()), strict=True))


def test_what_the_module_lacks_is_named(objects: Selection) -> None:
    empty = PointDataModule()
    assert empty.val_dataloader() == []
    with pytest.raises(ValueError, match="no train set"):
        empty.train_dataloader()
    with pytest.raises(ValueError, match="no test set"):
        empty.test_dataloader()
    with pytest.raises(ValueError, match="23 training samples do not fill one batch of 24"):
        PointDataModule(objects, batch_size=24).train_dataloader()
    with pytest.raises(ValueError, match="validation or validation_fraction, not both"):
        PointDataModule(objects, objects, validation_fraction=0.5)
    with pytest.raises(ValueError, match="needs a train set"):
        PointDataModule(validation_fraction=0.5)


CONFIG = """
data:
  train: {class_path: pc3d.data.Household, init_args: {split: train, num_points: 512}}
  test: {class_path: pc3d.data.Household, init_args: {split: test}}
  train_transforms:
  - {class_path: pc3d.data.RandomSubsample, init_args: {num_points: 256}}
  - {class_path: pc3d.data.Normalize}
  - {class_path: pc3d.data.ScaleTranslate, init_args: {shift: 0.1}}
  - {class_path: pc3d.data.RotateVertical, init_args: {axis: z}}
  validation_fraction: 0.1
  batch_size: 16
"""


def test_the_module_is_built_from_yaml() -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PointDataModule, "data")
    built = parser.instantiate(parser.parse_string(CONFIG)).data
    assert built.batch_size == 16
    assert built.train_transform.transforms[2].shift == 0.1
    assert next(iter(built.train_dataloader())).dense().shape == (16, 256, 3)
    for wrong in (
        ("shift: 0.1", "drift: 0.1"),
        ("pc3d.data.Normalize", "pc3d.data.Normalise"),
        ("axis: z", "axis: up"),
    ):
        with pytest.raises(jsonargparse.ArgumentError):
            parser.parse_string(CONFIG.replace(*wrong))


def test_the_types_do_not_need_lightning() -> None:
    """The data module is imported only when asked for."""
    import subprocess
    import sys

    code = "import sys, pc3d.data; assert 'pytorch_lightning' not in sys.modules; pc3d.data.PointDataModule"
    subprocess.run([sys.executable, "-c", code], check=True)
    import pc3d.data

    with pytest.raises(AttributeError, match="no attribute 'PointDataModul'"):
        _ = pc3d.data.PointDataModul
