"""Which epoch is kept, and starting from a pre-trained encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_objects import encoder
from torch import nn

from pc3d.models import MaskedPointModel, PointViT, ViT3D, save_encoder, to_official_state
from pc3d.tasks import EpochScore, EpochSelection, start_from

# (validation, test) after epochs 1 to 5: the best on test is another epoch than the best on validation.
LOG = [(0.5, 0.60), (0.7, 0.50), (0.7, 0.90), (0.6, 0.95), (0.65, 0.40)]


def numbered(epoch: int) -> nn.Module:
    """A model whose weight says after which epoch it was."""
    model = nn.Linear(1, 1)
    model.weight.data.fill_(float(epoch))
    return model


def test_validation_chooses_and_the_test_split_is_told_beside() -> None:
    selection = EpochSelection()
    for epoch, (validation, test) in enumerate(LOG, start=1):
        selection.record(EpochScore(epoch, validation, test), numbered(epoch))
    assert selection.kept() == EpochScore(2, 0.7, 0.5)  # the first of two equal ones
    assert selection.best("test") == EpochScore(4, 0.6, 0.95)
    model = numbered(5)
    selection.restore(model)
    assert model.weight.item() == 2.0
    assert selection.summary(5, "accuracy") == {
        "epoch": 2,
        "by": "highest accuracy on validation, of 5 epochs",
        "score": "accuracy",
        "validation": 0.7,
        "legacy": {"epoch": 4, "test": 0.95},
    }


def test_without_validation_the_last_epoch_is_kept_whatever_the_test_split_says() -> None:
    selection = EpochSelection()
    for epoch, (_, test) in enumerate(LOG, start=1):
        selection.record(EpochScore(epoch, None, test), numbered(epoch))
    model = numbered(5)
    selection.restore(model)
    assert model.weight.item() == 5.0
    summary = selection.summary(5, "accuracy")
    assert (summary["epoch"], summary["by"], summary["validation"]) == (5, "the last epoch", None)
    assert summary["legacy"] == {"epoch": 4, "test": 0.95}
    assert EpochSelection().summary(3, "accuracy")["epoch"] == 3  # nothing was watched at all


def test_a_selection_goes_on_from_its_state() -> None:
    first, second = EpochSelection(), EpochSelection()
    for epoch, (validation, test) in enumerate(LOG, start=1):
        first.record(EpochScore(epoch, validation, test), numbered(epoch))
        if epoch == 3:
            second.load_state_dict(first.state_dict())
        if epoch > 3:
            second.record(EpochScore(epoch, validation, test), numbered(epoch))
    assert second.history == first.history
    assert first.weights is not None
    assert second.weights is not None
    assert torch.equal(first.weights["weight"], second.weights["weight"])


def test_a_model_that_scores_nothing_is_kept_all_the_same() -> None:
    selection = EpochSelection()
    for epoch in (1, 2):
        selection.record(EpochScore(epoch, 0.0), numbered(epoch))
    assert selection.weights is not None
    assert selection.weights["weight"].item() == 1.0


# ---- starting from an encoder ------------------------------------------------------------------------------------


def pretrained(**changes: int) -> PointViT:
    source = encoder(2, **changes)
    torch.manual_seed(7)
    source.reset_parameters()
    return source


def test_all_weights_but_the_class_token_are_taken(tmp_path: Path) -> None:
    source = pretrained()
    save_encoder(source, tmp_path / "encoder")
    own = encoder(1, num_groups=16, drop_path=0.0)  # how many patches is no weight
    token = own.cls_token
    assert token is not None
    before = token.detach().clone()
    report = start_from(own, tmp_path)
    for name, value in source.state_dict().items():
        if not name.startswith("cls_"):
            assert torch.equal(own.state_dict()[name], value), name
    assert torch.equal(token, before)
    assert report.fresh == ("cls_token", "cls_position")
    assert set(report.taken) == set(own.state_dict()) - set(report.fresh)
    start_from(own, tmp_path, "pretrained")
    assert source.cls_token is not None
    assert source.cls_position is not None
    assert torch.equal(token[0], source.cls_token[0])
    assert torch.equal(own.cls_position[0], source.cls_position[0])  # type: ignore[index]


def test_class_tokens_are_dropped_with_a_message_where_there_is_no_place_for_them(tmp_path: Path) -> None:
    save_encoder(pretrained(), tmp_path / "encoder")
    own = encoder(0)
    report = start_from(own, tmp_path)
    assert report.unknown == ("cls_token", "cls_position")
    assert "2 that this backbone does not have (cls_token, cls_position)" in str(report)
    with pytest.raises(ValueError, match=r"needs a class token on both sides; model\.backbone has none"):
        start_from(own, tmp_path, "pretrained")
    save_encoder(encoder(0), tmp_path / "bare")
    with pytest.raises(ValueError, match=r"needs a class token on both sides; .*bare has none"):
        start_from(encoder(1), tmp_path / "bare", "pretrained")


def test_an_encoder_built_otherwise_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    save_encoder(PointViT(16, 3, 2, tokenizer_dims=(8, 12, 16), num_groups=12, group_size=8), tmp_path / "deeper")
    own = encoder(1)
    before = {name: value.clone() for name, value in own.state_dict().items()}
    with pytest.raises(ValueError, match=r"do not fit model\.backbone: transformer\.blocks\.2.* depth=3 \(here 2\)"):
        start_from(own, tmp_path / "deeper")
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    with pytest.raises(ValueError, match="class_token must be 'fresh' or 'pretrained', got 'old'"):
        start_from(own, tmp_path / "deeper", "old")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"class_path pc3d\.models\.PointViT"):
        start_from(nn.Linear(1, 1), tmp_path / "deeper")


def test_an_encoder_whose_vector_is_its_class_token_brings_it_along(tmp_path: Path) -> None:
    sizes = {"embed_dim": 16, "depth": 1, "num_heads": 2}
    source, own = (ViT3D(**sizes) for _ in range(2))  # type: ignore[arg-type]
    save_encoder(source, tmp_path / "encoder")
    report = start_from(own, tmp_path)
    assert report.fresh == ()
    assert all(torch.equal(value, own.state_dict()[name]) for name, value in source.state_dict().items())


def test_an_official_checkpoint_starts_an_encoder(tmp_path: Path) -> None:
    torch.manual_seed(3)
    source = PointViT()
    model = MaskedPointModel(source, 1)
    torch.save({"base_model": to_official_state(model, module_prefix=True)}, tmp_path / "pretrain.pth")
    own = PointViT(num_cls_tokens=1, num_groups=128)
    report = start_from(own, tmp_path / "pretrain.pth")
    assert report.fresh == ("cls_token", "cls_position")
    assert all(torch.equal(own.state_dict()[name], value) for name, value in source.state_dict().items())
    with pytest.raises(ValueError, match=r"does not fit"):
        start_from(encoder(1), tmp_path / "pretrain.pth")
