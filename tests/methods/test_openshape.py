"""OpenShape: what a step computes, on one process and two, mining, whole runs, and what leaves them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.multiprocessing as mp
from openshape_tiny import IMAGE, TEXT, aligned, batch_of, data, encoder, method, step, worker
from tiny import QUIET, same
from torch import Tensor

from pc3d import load_encoder
from pc3d.data import AlignedSet, EpochSampler, PointBatch, collate, targets_of
from pc3d.losses import negatives_to_keep, shape_contrast
from pc3d.methods import Mining, OpenShape, StepDecay, pretrain
from pc3d.methods.mining import group_numbers, nearest
from pc3d.models import AlignedShapeEncoder, OpenShapePointBERT, OpenShapeSparseConv, PointViT, save_encoder

MINING = Mining(group_size=5, num_neighbors=8)


# ---- one step ----------------------------------------------------------------------------------------------------


def test_a_step_is_both_pairings_of_the_batch() -> None:
    found, batch = step(range(10)), batch_of(range(10))
    torch.manual_seed(0)
    model = method().double().eval().model
    embedding = model(batch.xyz.double().view(10, 64, 3), batch.dense("rgb"))
    texts = torch.cat([t.text_features for t in targets_of(batch) if t.texts])
    images = torch.cat([t.image_features for t in targets_of(batch) if t.image_kinds])
    with_text = torch.tensor([i for i in range(10) if i % 5])
    with_image = torch.tensor([i for i in range(10) if i % 7 for _ in range(3)])
    text = shape_contrast(model.text_head(embedding), texts.double(), with_text, 14.28)
    image = shape_contrast(model.image_head(embedding), images.double(), with_image, 14.28)
    torch.testing.assert_close(found["loss"], text.loss + image.loss, rtol=1e-6, atol=1e-6)
    assert found["train/text_accuracy"] == text.accuracy
    assert found["train/image_accuracy"] == image.accuracy
    torch.testing.assert_close(step(range(10), loss_factor="paper")["loss"], found["loss"] / 2)
    weighted = step(range(10), text_weight=0.25)
    torch.testing.assert_close(weighted["loss"], 0.25 * text.loss + image.loss, rtol=1e-6, atol=1e-6)


def test_a_pairing_without_weight_takes_no_part() -> None:
    found = step(range(10), image_weight=0.0)
    assert "train/image_loss" not in found
    assert "model.image_head.weight" not in found
    assert "model.text_head.weight" in found


@pytest.mark.slow
def test_two_processes_with_other_numbers_of_texts_compute_what_one_does(tmp_path: Path) -> None:
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call,attr-defined]
    two = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    one = step(range(10))
    for name, value in one.items():
        mean = (two[0][name] + two[1][name]) / 2  # as distributed training averages gradients
        torch.testing.assert_close(mean, value, rtol=1e-9, atol=1e-11, msg=name)
        if name.startswith("train/") or name == "loss":
            torch.testing.assert_close(two[0][name], value, rtol=1e-9, atol=1e-11, msg=name)


def test_everything_learns_the_scale_too() -> None:
    one = method(project_targets=True)
    one.log = lambda *_, **__: None  # type: ignore[method-assign]
    one._step(batch_of(range(10)), 0, 0, "train").backward()
    missing = [name for name, p in one.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    # Biases before batch norms have no gradient, and the mean of targets none of a bias of all texts alike.
    assert missing == [f"model.encoder.patches.{i}.bias" for i in (0, 3, 6)]


def test_a_shared_space_has_no_heads_and_compares_pictures_with_texts() -> None:
    one = OpenShape(encoder())
    assert one.model.shared
    assert sum(p.numel() for p in one.parameters()) == sum(p.numel() for p in encoder().parameters()) + 1
    assert one.model.logit_scale.item() == pytest.approx(14.28)
    found = aligned(10, 16, 16)
    batch = _batch(found)
    sides = one.sides(batch)
    one.mining = MINING
    keep = one.fair_negatives(sides, 10)
    means = [torch.nn.functional.normalize(t.image_features, dim=1).sum(0) for t in targets_of(batch)]
    similarity = torch.full((10, 10), math.nan)
    for i, target in enumerate(targets_of(batch)):
        for j, other in enumerate(targets_of(batch)):
            if len(target.image_features) and len(other.text_features):
                similarity[i, j] = torch.cosine_similarity(means[i], other.text_features[0], dim=0)
    assert torch.equal(keep, negatives_to_keep(similarity, torch.arange(10) // 5, 0.1))
    assert 0 < (~keep).sum() < 40


def _batch(found: Any) -> PointBatch:
    from pc3d.data import collate

    return collate([found[i].select(slice(64)) for i in range(10)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_weight": -1.0}, r"must not be negative nor both 0, got -1\.0 and 1\.0"),
        ({"text_weight": 0.0, "image_weight": 0.0}, r"nor both 0, got 0\.0 and 0\.0"),
        ({"loss_factor": "half"}, "loss_factor must be 'code' or 'paper', got 'half'"),
        ({"initial_logit_scale": 0.0}, r"logit_scale must be positive, got 0\.0"),
        ({"text_dim": 0}, "text_dim and image_dim must be at least 1, got 0 and 10"),
    ],
)
def test_bad_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method(**changes)


def test_targets_of_another_width_are_refused() -> None:
    one = method(text_dim=5)
    with pytest.raises(
        ValueError, match="text features of the data have 6 dimensions, the method was built with text_dim=5"
    ):
        one.sides(batch_of(range(3)))
    with pytest.raises(TypeError, match=r"encoder must have encode\(\) and embed_dim, got Linear"):
        OpenShape(torch.nn.Linear(2, 2))


def test_features_of_another_tower_are_refused(tmp_path: Path) -> None:
    """Of one width, so that nothing else would notice."""

    class Stored(dict[str, dict[str, Tensor]]):
        def __init__(self, rows: Any, name: str) -> None:
            super().__init__(rows)
            self.name = name

        def identity(self) -> dict[str, str]:
            return {"name": self.name, "weights": "0"}

    def batch(text: str, image: str = "offline:b") -> PointBatch:
        plain = aligned()
        joined = AlignedSet(plain.dataset, Stored(plain.texts, text), Stored(plain.images, image))
        return collate([joined[i].select(slice(64)) for i in range(1, 4)])

    one = method(text_space="offline:a", image_space="offline:b")
    assert {found.text_tower for found in targets_of(batch("offline:a"))} == {"offline:a"}
    assert one.sides(batch("offline:a"))["text"].features.shape == (3, TEXT)
    assert one.sides(batch_of(range(3))).keys() == {"text", "image"}  # what names no tower may be of any
    with pytest.raises(
        ValueError,
        match="text features of the data are of offline:a-centred, the method aligns with text_space=offline:a: "
        r"compute them with offline:a, or name the tower that made them, --model\.text_space offline:a-centred",
    ):
        one.sides(batch("offline:a-centred"))
    with pytest.raises(ValueError, match=r"image features of the data are of offline:c, .* image_space=offline:b"):
        one.sides(batch("offline:a", "offline:c"))
    assert method(text_weight=0.0, image_space="offline:b").sides(batch("offline:x")).keys() == {"image"}
    # One that says not what it aligns with still needs one space.
    several = collate([*batch("offline:a").unbind(), *batch("offline:x").unbind()])
    with pytest.raises(ValueError, match=r"text features of one batch are of several towers, .*: offline:a, offline:x"):
        method().sides(several)
    # A tower from a local folder calls itself by the last part of its name.
    (tmp_path / "clip").mkdir()
    local = method(text_space=f"transformers:{tmp_path / 'clip'}", image_space="open_clip:M//w/x.bin")
    assert local.sides(batch("transformers:clip", "open_clip:M/x.bin")).keys() == {"text", "image"}


# ---- the optimiser -----------------------------------------------------------------------------------------------


def test_the_rate_falls_in_steps() -> None:
    built = StepDecay(1e-3, 0.5, 3, 0.02).build(torch.nn.Linear(2, 2))
    optimizer, schedule = built["optimizer"], built["lr_scheduler"]["scheduler"]
    assert built["lr_scheduler"]["interval"] == "step"
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.02]
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1e-3] * 3 + [5e-4] * 3 + [2.5e-4])
    spared = StepDecay(decay_everything=False).build(torch.nn.Linear(2, 2))["optimizer"].param_groups
    assert [group["weight_decay"] for group in spared] == [0.01, 0.0]
    with pytest.raises(ValueError, match="decay_steps must be at least 1, got 0"):
        StepDecay(decay_steps=0)


# ---- mining ------------------------------------------------------------------------------------------------------


def test_batches_are_groups_of_neighbors() -> None:
    neighbors = nearest(
        torch.nn.functional.normalize(torch.randn(23, 4, generator=torch.Generator().manual_seed(0)), dim=1), 6
    )
    sampler = EpochSampler(23, 6, seed=1)
    plain = sampler.batches(0)
    sampler.group_neighbors(neighbors, 3)
    seeds = []
    for epoch in range(3):
        batches = sampler.batches(epoch)
        assert len(batches) == len(plain) == 3
        for batch in batches:
            for first in (0, 3):
                seed, *others = batch[first : first + 3]
                seeds.append(seed)
                assert len({seed, *others}) == 3
                assert set(others) <= set(neighbors[seed].tolist())
    assert len(set(seeds[:6])) == 6  # each seed at most once an epoch
    assert sampler.batches(0) == sampler.batches(0) != sampler.batches(1)
    two = [EpochSampler(23, 3, seed=1, rank=r, world_size=2) for r in (0, 1)]
    for half in two:
        half.group_neighbors(neighbors, 3)
    assert [a + b for a, b in zip(two[0].batches(0), two[1].batches(0), strict=True)] == sampler.batches(0)
    sampler.group_neighbors(None)
    assert sampler.batches(0) == plain


def test_nearest_is_the_sorted_cosines_itself_first() -> None:
    vectors = torch.nn.functional.normalize(
        torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).double(), dim=1
    )
    vectors[7] = vectors[3]  # a duplicate is not itself
    found = nearest(vectors, 5)
    assert found.dtype == torch.int32
    assert found[:, 0].tolist() == list(range(50))
    for i in range(50):
        order = sorted(range(50), key=lambda j: (j != i, -float(vectors[i] @ vectors[j])))
        assert set(found[i].tolist()) == set(order[:5])
    assert found[3, 1] == 7
    with pytest.raises(ValueError, match="num_neighbors=60 needs as many shapes, the training set has 50"):
        nearest(vectors, 60)


def test_bad_mining_is_refused() -> None:
    for changes, message in (
        ({"group_size": 1}, "group_size must be between 2 and num_neighbors=32, got 1"),
        ({"start_epoch": -1}, "start_epoch must be at least 0"),
        ({"refresh_epochs": 0}, "refresh_epochs must be at least 1, or None for never, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Mining(**changes)  # type: ignore[arg-type]
    sampler, neighbors = EpochSampler(10, 4), torch.zeros(10, 5, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"neighbors must be \(10, k\), got \(9, 5\)"):
        sampler.group_neighbors(neighbors[1:], 2)
    with pytest.raises(ValueError, match="group_size must be between 1 and the 5 neighbors, got 6"):
        sampler.group_neighbors(neighbors, 6)
    with pytest.raises(ValueError, match="a batch of 4 is not made of whole groups of 3"):
        sampler.group_neighbors(neighbors, 3)
    with pytest.raises(ValueError, match="a batch of 7 is not made of whole groups of 5"):
        group_numbers(7, 5, torch.device("cpu"))


class Spy(pl.Callback):
    """What each batch of each epoch held, and its loss mask's neighbours."""

    def __init__(self, stop_at: int | None) -> None:
        self.stop_at = stop_at
        self.ids: dict[int, list[list[str]]] = {}
        self.neighbors: dict[int, Tensor | None] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.stop_at:
            raise RuntimeError("pulled the plug")

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: PointBatch, batch_idx: int) -> None:
        self.ids.setdefault(trainer.current_epoch, []).append([str(meta["id"]) for meta in batch.meta])
        self.neighbors[trainer.current_epoch] = module._neighbors


def run(
    folder: Path,
    mining: Mining | None,
    epochs: int,
    *,
    resume: bool = False,
    stop_at: int | None = None,
    **trainer: Any,
) -> tuple[OpenShape, Spy]:
    spy = Spy(stop_at)
    torch.manual_seed(0)
    one = method(mining=mining)
    pretrain(one, data(), folder, max_epochs=epochs, resume=resume, callbacks=[spy], **QUIET, **trainer)
    return one, spy


def test_mining_starts_refreshes_and_survives_interruptions(tmp_path: Path) -> None:
    mining = Mining(5, 8, start_epoch=1, refresh_epochs=2)
    whole, seen = run(tmp_path / "whole", mining, 4)
    assert seen.neighbors[0] is None
    one, two, three = (seen.neighbors[epoch] for epoch in (1, 2, 3))
    assert one is not None
    assert two is one
    assert three is not None
    assert not torch.equal(three, one)
    names = [str(aligned()[i].meta["id"]) for i in range(40)]
    for epoch in (1, 2, 3):
        table = seen.neighbors[epoch]
        assert table is not None
        for ids in seen.ids[epoch]:
            rows = [names.index(item) for item in ids]
            for first in (0, 5):
                assert set(rows[first + 1 : first + 5]) <= set(table[rows[first]].tolist())
    # Stopped in the middle of epoch 2, and gone on with.
    with pytest.raises(RuntimeError, match="pulled the plug"):
        run(tmp_path / "cut", mining, 4, every_n_steps=2, stop_at=11)  # after a checkpoint of step 10
    again, _ = run(tmp_path / "cut", mining, 4, resume=True)
    assert same(again.state_dict(), whole.state_dict())


# ---- whole runs --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run(folder, None, 1)
    return folder


def test_a_run_leaves_the_encoder_with_its_heads_and_spaces(finished: Path) -> None:
    found = load_encoder(finished, expect=AlignedShapeEncoder)
    assert (found.text_dim, found.image_dim, found.embed_dim, found.joint_dim) == (TEXT, IMAGE, 16, TEXT + IMAGE)
    assert isinstance(found.encoder, OpenShapePointBERT)
    assert found.encoder.config == encoder().config
    assert found.logit_scale.item() != 14.28


def test_a_second_stage_goes_on_from_the_first(finished: Path, tmp_path: Path) -> None:
    first = load_encoder(finished, expect=AlignedShapeEncoder)
    second = method(start_from=str(finished), mining=MINING)
    assert same(second.model.state_dict(), first.state_dict())
    assert second.model.training
    with pytest.raises(ValueError, match="start_from holds an encoder with text_dim=6, got text_dim=7"):
        method(start_from=str(finished), text_dim=7)
    with pytest.raises(ValueError, match="give encoder or start_from, not both"):
        OpenShape(encoder(), start_from=str(finished))
    save_encoder(encoder(), tmp_path / "bare")
    bare = method(start_from=str(tmp_path / "bare"))
    assert same(bare.model.encoder.state_dict(), encoder().state_dict())


@pytest.mark.parametrize(
    "inner",
    [
        pytest.param(lambda: OpenShapeSparseConv(16, (1, 1, 1, 1), 16, 0.2), id="sparse"),
        pytest.param(lambda: PointViT(16, 1, 2, num_groups=8, group_size=8, tokenizer_dims=(8, 8, 8)), id="points"),
    ],
)
def test_other_encoders_are_aligned_too(inner: Any, tmp_path: Path) -> None:
    """One step; what is saved comes back, colours or none."""
    torch.manual_seed(0)
    one = OpenShape(inner(), TEXT, IMAGE)
    one.log = lambda *_, **__: None  # type: ignore[method-assign]
    one._step(batch_of(range(10)), 0, 0, "train").backward()
    save_encoder(one.encoder, tmp_path)
    xyz = batch_of(range(2)).dense()
    with torch.no_grad():
        assert torch.equal(load_encoder(tmp_path).encode(xyz), one.encoder.eval().encode(xyz))  # type: ignore[union-attr]


def test_a_few_shapes_find_their_targets(tmp_path: Path) -> None:
    """20 shapes: after 50 steps both kinds of target are found at 5 times chance or better."""
    torch.manual_seed(0)
    one = method()
    values: list[dict[str, float]] = []

    class Read(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            values.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    pretrain(one, data(20, 20, views=1), tmp_path, max_epochs=50, callbacks=[Read()], **QUIET)
    assert values[-1]["train/text_accuracy"] > 5 / 16
    assert values[-1]["train/image_accuracy"] > 5 / 17
    assert values[-1]["train/loss"] < 0.6 * values[0]["train/loss"]


# ---- what is refused or forgotten in time ------------------------------------------------------------------------


def test_what_cannot_be_mined_later_is_refused_at_the_start(tmp_path: Path) -> None:
    late = Mining(group_size=3, num_neighbors=8, start_epoch=50)
    with pytest.raises(ValueError, match="a batch of 10 is not made of whole groups of 3"):
        pretrain(method(mining=late), data(20), tmp_path / "groups", max_epochs=1, **QUIET)
    with pytest.raises(ValueError, match="num_neighbors=32 needs as many shapes, the training set has 20"):
        pretrain(method(mining=Mining(start_epoch=50)), data(20), tmp_path / "few", max_epochs=1, **QUIET)


def test_neighbors_do_not_depend_on_the_size_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = torch.nn.functional.normalize(torch.randn(23, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    whole = nearest(vectors, 4)
    monkeypatch.setattr("pc3d.methods.mining._CELLS_AT_ONCE", 50)  # two rows at a time
    assert torch.equal(nearest(vectors, 4), whole)


def test_a_head_that_is_not_trained_names_no_tower() -> None:
    spaces = {"text_space": "offline:minilm", "image_space": "offline:efficientnet-lite0"}
    pictures = method(text_weight=0.0, **spaces).encoder
    assert (pictures.text_space, pictures.image_space) == ("", spaces["image_space"])
    assert (pictures.config["text_space"], pictures.config["image_space"]) == ("", spaces["image_space"])
    shared = OpenShape(encoder(), text_weight=0.0, **spaces).encoder  # pictures lie among the texts there
    assert shared.text_space == spaces["text_space"]


def test_a_second_stage_keeps_the_towers_of_the_first(tmp_path: Path) -> None:
    first = method(text_space="offline:minilm").encoder
    save_encoder(first, tmp_path)
    again = method(start_from=str(tmp_path), image_space="offline:efficientnet-lite0").encoder
    assert (again.text_space, again.image_space) == ("offline:minilm", "offline:efficientnet-lite0")
    with pytest.raises(ValueError, match="an encoder with text_space=offline:minilm, got text_space=open_clip:x/y"):
        method(start_from=str(tmp_path), text_space="open_clip:x/y")
