"""PCP-MAE as a method: its loss, its published values, and that it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import data, encoder
from torch import Tensor

from pc3d.data import PointBatch
from pc3d.losses import patch_chamfer
from pc3d.methods import PCPMAE
from pc3d.nn import SampleRandom, random_mask


def method(**changes: Any) -> PCPMAE:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"decoder_depth": 2, "decoder_num_heads": 2, **changes}
    return PCPMAE(arguments.pop("encoder", None) or encoder(0), **arguments)


@pytest.fixture(scope="module")
def batch() -> PointBatch:
    result: PointBatch = next(iter(data(batch_size=6).train_dataloader()))
    return result


def logged(pcp: PCPMAE, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    values: dict[str, float] = {}
    monkeypatch.setattr(pcp, "log", lambda name, value, **_: values.__setitem__(name, float(value)))
    return values


def test_the_loss_is_reconstruction_and_the_error_of_positions(
    batch: PointBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    pcp = method(center_weight=7.0, reconstruction_weight=500.0, seed=5).eval()
    values = logged(pcp, monkeypatch)
    loss = pcp.training_step(batch, 4)
    mask = random_mask(SampleRandom(5, 0, 4, batch_size=6).uniform(12), 0.6)
    (branch,) = pcp.model(batch.dense(), [mask])
    centers = pcp.encoder.tokenizer(batch.dense()).centers
    errors = []
    for cloud in range(6):
        for row, patch in enumerate(mask[cloud].nonzero().flatten().tolist()):
            errors += ((branch.position[cloud, row] - centers[cloud, patch]).double() ** 2).tolist()
    reconstruction, center = 500 * patch_chamfer(branch.predicted, branch.target), sum(errors) / len(errors)
    assert values["train/reconstruction"] == pytest.approx(reconstruction.item())
    assert values["train/center"] == pytest.approx(center)
    assert loss.item() == values["train/loss"] == pytest.approx(reconstruction.item() + 7 * center)


def test_published_values_are_the_defaults() -> None:
    pcp = PCPMAE()
    assert pcp.encoder.config["position_features"] == "sinusoids"
    assert pcp.encoder.config["num_cls_tokens"] == 0
    assert (pcp.mask_ratio, pcp.num_masked, pcp.optimisation.learning_rate) == (0.6, 38, 5e-4)
    assert pcp.weights["center"] / pcp.reconstruction_weight == pytest.approx(0.1)
    # Point-MAE's network without its two position embeddings; one of sinusoids, a token, and the head of positions.
    square = 384 * 384 + 384
    assert sum(p.numel() for p in pcp.parameters()) == 29_006_432 - 2 * 50_048 + 2 * square + 384 + (2 * square + 768)


def test_an_encoder_of_class_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="num_cls_tokens=0"):
        method(encoder=encoder(1))


def test_positions_and_patches_of_eight_objects_can_be_learnt_by_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    small: PointBatch = next(iter(data(batch_size=8).train_dataloader()))
    pcp = method(encoder=encoder(0, drop_path=0.0, num_groups=8), decoder_depth=1, decoder_drop_path=0.0)
    values = logged(pcp, monkeypatch)
    optimizer = torch.optim.AdamW(pcp.parameters(), lr=3e-3)
    course = []
    for step in range(200):
        loss: Tensor = pcp.training_step(small, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append([values["train/reconstruction"], values["train/center"]])
    first, last = torch.tensor(course[0]), torch.tensor(course[-10:]).mean(0)
    assert (last < first / torch.tensor([10.0, 3.0])).all(), (first, last)
