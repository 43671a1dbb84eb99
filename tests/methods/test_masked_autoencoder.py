"""Point-MAE and Point-CMAE as methods: what a step computes, draws, logs and optimises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import QUIET, cmae, data, encoder, mae
from torch import Tensor

from pc3d.data import PointBatch
from pc3d.losses import patch_chamfer, token_contrast
from pc3d.methods import MaskedAutoencoder, Optimisation, PointCMAE, PointMAE
from pc3d.nn import SampleRandom, random_mask


@pytest.fixture(scope="module")
def batch() -> PointBatch:
    result: PointBatch = next(iter(data(batch_size=6).train_dataloader()))
    return result


def logged(method: MaskedAutoencoder, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    values: dict[str, float] = {}
    monkeypatch.setattr(method, "log", lambda name, value, **_: values.__setitem__(name, float(value)))
    return values


def test_the_loss_is_the_weighted_sum_of_its_published_terms(
    batch: PointBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = cmae(contrast_weight=3.0, reconstruction_weight=500.0, seed=5).eval()  # no drop path, fixed statistics
    values = logged(method, monkeypatch)
    loss = method.training_step(batch, 4)
    draws = SampleRandom(5, 0, 4, batch_size=6)
    masks = [random_mask(draws.uniform(12), 0.6) for _ in range(2)]
    first, second = method.model(batch.dense(), masks)
    reconstruction = 500 * (
        patch_chamfer(first.predicted, first.target) + patch_chamfer(second.predicted, second.target)
    )
    contrast = token_contrast(first.features, second.features, masks[0] & masks[1])
    torch.testing.assert_close(loss, reconstruction + 3 * contrast)
    assert values["train/reconstruction"] == pytest.approx(reconstruction.item())
    assert values["train/contrast"] == pytest.approx(contrast.item())
    assert values["train/loss"] == pytest.approx(loss.item())
    assert -1 <= values["train/token_cosine"] <= 1


def test_point_mae_has_one_term(batch: PointBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    method = mae()
    values = logged(method, monkeypatch)
    assert method.training_step(batch, 0).item() == pytest.approx(values["train/reconstruction"])
    assert "train/contrast" not in values


def test_published_values_are_the_defaults() -> None:
    method = PointCMAE()
    assert method.encoder.config | {"tokenizer_dims": None} == {
        "embed_dim": 384,
        "depth": 12,
        "num_heads": 6,
        "mlp_ratio": 4.0,
        "num_groups": 64,
        "group_size": 32,
        "num_points": 1024,
        "num_cls_tokens": 2,
        "drop_path": 0.1,
        "add_position": "every_block",
        "ignore_near_origin": False,
        "tokenizer_dims": None,
        "position_features": "coordinates",
    }
    assert (method.mask_ratio, method.num_masked, method.mask_type) == (0.6, 38, "random")
    assert (method.contrast, method.contrast_weight, method.reconstruction_weight) == ("same_token", 1.0, 1000.0)
    assert sum(p.numel() for p in method.parameters()) == 36_354_240 - 164_864
    assert sum(p.numel() for p in PointMAE().parameters()) == 29_006_432


def test_a_step_is_a_function_of_seed_epoch_and_index_alone(batch: PointBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    method = cmae()
    logged(method, monkeypatch)
    state = {name: value.clone() for name, value in method.state_dict().items()}

    def step(index: int, seed: int = 0) -> float:
        method.load_state_dict(state)
        method.seed = seed
        torch.manual_seed(torch.seed())  # whatever the default generator holds
        before = torch.get_rng_state()
        loss = method.train().training_step(batch, index).item()
        assert torch.equal(torch.get_rng_state(), before)
        return loss

    assert step(3) == step(3)
    assert len({step(0), step(1), step(2), step(0, seed=1)}) == 4


def test_masks_differ_between_branches_samples_and_steps(batch: PointBatch) -> None:
    method = cmae()
    centers = torch.zeros(6, 12, 3)
    draws = SampleRandom(0, 0, 0, batch_size=6)
    first, second = method.draw_mask(centers, draws), method.draw_mask(centers, draws)
    assert first.sum(1).tolist() == second.sum(1).tolist() == [7] * 6
    assert not torch.equal(first, second)
    assert len({tuple(row.tolist()) for row in first}) > 1


@pytest.mark.parametrize("kind", ["random", "block"])
def test_both_mask_types_train_both_methods(kind: Any, batch: PointBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    for method in (cmae(mask_type=kind), mae(mask_type=kind)):
        logged(method, monkeypatch)
        loss = method.training_step(batch, 0)
        loss.backward()
        assert loss.isfinite()
        assert all(parameter.grad is not None for parameter in method.parameters())


def test_contrast_variants_differ_and_l1_is_available(batch: PointBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = set()
    for method in (cmae(), cmae(contrast="all_tokens"), cmae(chamfer="l1")):
        logged(method, monkeypatch)
        losses.add(round(method.training_step(batch, 0).item(), 5))
    assert len(losses) == 3


def test_mixed_precision_keeps_the_loss_in_float32(batch: PointBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    method = cmae().eval()
    logged(method, monkeypatch)
    full = method.training_step(batch, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = method.training_step(batch, 0)
    assert mixed.dtype == torch.float32
    assert mixed.item() == pytest.approx(full.item(), rel=0.02)


def test_weight_decay_spares_vectors_and_tokens() -> None:
    method = cmae()
    groups = Optimisation().build(method, method.model.undecayed(), 10)["optimizer"].param_groups
    names = {id(p): name for name, p in method.named_parameters()}
    decayed = {names[id(p)] for p in groups[0]["params"]}
    spared = {names[id(p)] for p in groups[1]["params"]}
    assert decayed | spared == set(names.values())
    assert not decayed & spared
    assert "model.encoder.cls_position" in decayed
    assert {name for name in names.values() if "token" in name.rpartition(".")[2]} <= spared
    for name, parameter in method.named_parameters():
        assert (name in spared) == (parameter.ndim == 1 or name == "model.encoder.cls_token"), name
    assert (groups[0]["weight_decay"], groups[1]["weight_decay"]) == (0.05, 0.0)
    assert groups[0]["betas"] == (0.9, 0.999)


def test_a_schedule_needs_a_length() -> None:
    for max_epochs in (None, -1):
        with pytest.raises(ValueError, match=r"set trainer\.max_epochs"):
            Optimisation().build(mae(), [], max_epochs)


@pytest.mark.parametrize(("stepping", "rates"), [("clean", [0, 1, 2, 3]), ("official", [0, 0, 1, 2])])
def test_the_learning_rate_of_an_epoch(stepping: Any, rates: list[int], tmp_path: Path) -> None:
    from pc3d.methods import pretrain

    method = mae(optimisation=Optimisation(stepping=stepping, warmup_epochs=10, schedule_epochs=300))
    pretrain(method, data(240), tmp_path, max_epochs=4, **QUIET)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("train/learning_rate")
    seen = [float(line.split(",")[column]) for line in lines[1:] if line.split(",")[column]]
    assert seen == pytest.approx([1e-6 + epoch * (1e-3 - 1e-6) / 10 for epoch in rates])


def test_reconstruction_for_pictures_uses_matching_mask_and_absolute_coordinates(batch: PointBatch) -> None:
    method, xyz = cmae(), batch.dense()
    for branch in (0, 1):
        picture = method.reconstruct(xyz, generator=torch.Generator().manual_seed(0), branch=branch)
        again = method.reconstruct(xyz, generator=torch.Generator().manual_seed(0), branch=branch)
        assert all(torch.equal(a, b) for a, b in zip(picture, again, strict=True))
        assert picture.mask.sum(1).tolist() == [7] * 6
        assert picture.predicted.shape == (6, 7, 8, 3)
        # Every true patch point is a point of the cloud.
        distance = torch.cdist(picture.patches.flatten(1, 2).double(), xyz.double()).min(-1).values
        assert distance.max() < 1e-6
    assert method.training


def test_eight_objects_can_be_learnt_by_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    small: PointBatch = next(iter(data(batch_size=8).train_dataloader()))
    method = PointCMAE(
        encoder(2, drop_path=0.0, num_groups=8), decoder_depth=1, decoder_num_heads=2, decoder_drop_path=0.0
    )
    values = logged(method, monkeypatch)
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    course = []
    for step in range(200):
        loss: Tensor = method.training_step(small, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(values["train/reconstruction"])
    assert sum(course[-10:]) / 10 < course[0] / 10


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mask_ratio 0\.01 masks 0 of 12"):
        cmae(mask_ratio=0.01)
    with pytest.raises(ValueError, match=r"mask_type.*'blob'"):
        cmae(mask_type="blob")
    with pytest.raises(ValueError, match="seed must be at least 0"):
        cmae(seed=-1)
    with pytest.raises(ValueError, match="num_cls_tokens=1; with 2 branches"):
        PointCMAE(encoder(1))


def test_clouds_of_different_length_are_refused(batch: PointBatch) -> None:
    ragged = PointBatch(batch.xyz[:10], torch.tensor([0, 4, 10]))
    with pytest.raises(ValueError, match="equal length"):
        mae().training_step(ragged, 0)
