"""Language-guided segmentation as a task: its loss, what it trains, and that it comes back from a folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import QUIET, Stop
from tiny_scenes import Pointwise, SmallRooms, unet
from torch import Tensor

from pc3d.data import PointBatch, PointDataModule, collate
from pc3d.image import TextTower
from pc3d.methods import pretrain
from pc3d.models import Swin3D
from pc3d.nn import LanguageHead
from pc3d.tasks import (
    LanguageGuidance,
    SegmentationOptimisation,
    SemanticSegmentation,
    load_segmenter,
    segment_scene,
    segmentation_loss,
)

CLASSES = SmallRooms("test").classes
SMALL = {"width": 16, "num_heads": 2, "num_layers": 1}


class Letters(TextTower):
    """A text is how often it has each letter."""

    def __init__(self) -> None:
        super().__init__("letters", 26)
        self.empty = torch.nn.Parameter(torch.zeros(0))
        self.asked: list[str] = []

    def _encode(self, texts: list[str]) -> Tensor:
        self.asked += texts
        return torch.tensor([[float(text.count(chr(97 + k))) for k in range(26)] for text in texts])


@pytest.fixture(autouse=True)
def tower(monkeypatch: pytest.MonkeyPatch) -> Letters:
    found = Letters()
    monkeypatch.setattr("pc3d.tasks.language.load_text_tower", lambda name: found)
    return found


def task(backbone: torch.nn.Module | None = None, **changes: Any) -> SemanticSegmentation:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "head": "language",
        "language": LanguageGuidance(**SMALL),  # type: ignore[arg-type]
        "optimisation": SegmentationOptimisation(learning_rate=0.03),
        **changes,
    }
    return SemanticSegmentation(backbone or unet(), len(CLASSES), CLASSES, **arguments)


@pytest.fixture(scope="module")
def batch() -> PointBatch:
    rooms = SmallRooms("test")
    return collate([rooms[0], rooms[1]])


def test_texts_are_the_class_names_in_the_templates(tower: Letters) -> None:
    language = LanguageGuidance(templates=["a {}", "{} of a room"], **SMALL)  # type: ignore[arg-type]
    head = task(language=language).segmenter.head
    assert set(tower.asked) == {text for name in CLASSES for text in (f"a {name}", f"{name} of a room")}
    both = torch.nn.functional.normalize(tower.encode([f"a {CLASSES[3]}", f"{CLASSES[3]} of a room"]), dim=1)
    assert isinstance(head, LanguageHead)
    torch.testing.assert_close(head.text[3], torch.nn.functional.normalize(both.mean(0), dim=0))


def test_the_loss_is_that_of_the_logits_and_that_of_the_score_maps(
    batch: PointBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = [1.0 + k for k in range(len(CLASSES))]
    language = LanguageGuidance(auxiliary_weight=0.7, dropout=0.0, **SMALL)  # type: ignore[arg-type]
    method = task(Pointwise(), language=language, class_weights=weights)
    values: dict[str, float] = {}
    monkeypatch.setattr(method, "log", lambda name, value, **_: values.__setitem__(name, float(value)))
    monkeypatch.setattr(method, "optimizers", lambda: torch.optim.SGD(method.parameters(), lr=0.1))
    loss = method.training_step(batch, 0).item()
    logits, scores = method.segmenter.with_scores(batch)
    assert batch.segment is not None
    assert scores is not None
    main, auxiliary = (segmentation_loss(x, batch.segment, method.class_weights).item() for x in (logits, scores))
    assert values["train/loss"] == loss == pytest.approx(main + 0.7 * auxiliary, rel=1e-5)
    assert values["train/score_loss"] == pytest.approx(auxiliary, rel=1e-5)


def test_gradients_reach_backbone_and_head(batch: PointBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    swin = Swin3D(channels=(8, 16), depths=(1, 1), down_strides=(2,), num_heads=(2, 2), window_sizes=(3, 3),
                  voxel_size=0.4, signals="xyz_rgb")  # fmt: skip
    method = task(swin)
    monkeypatch.setattr(method, "log", lambda *_, **__: None)
    monkeypatch.setattr(method, "optimizers", lambda: torch.optim.SGD(method.parameters(), lr=0.1))
    for name, parameter in method.named_parameters():
        if "table" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    method.training_step(batch, 0).backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.ndim == 1 or parameter.grad.abs().sum() > 0, name


def run(folder: Path, stop: bool = False, resume: bool = False) -> SemanticSegmentation:
    method = task()
    torch.manual_seed(int(time.time()))
    data = PointDataModule(train=SmallRooms(), batch_size=2, validation_fraction=0.25, seed=4)
    callbacks = [Stop(4)] if stop else []
    pretrain(method, data, folder, resume=resume, every_n_steps=2, callbacks=callbacks, max_epochs=3, **QUIET)
    return method


def test_a_run_can_be_broken_off_and_comes_back_from_its_folder_without_the_tower(
    tmp_path: Path, batch: PointBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        run(tmp_path / "broken", stop=True)
    resumed = run(tmp_path / "broken", resume=True).state_dict()
    assert all(torch.equal(resumed[name], value) for name, value in whole.state_dict().items())
    monkeypatch.setattr("pc3d.tasks.language.load_text_tower", None)
    loaded = load_segmenter(tmp_path / "whole")
    assert isinstance(loaded.head, LanguageHead)
    with torch.no_grad():
        assert torch.equal(loaded(batch), whole.eval().segmenter(batch))
    labels = segment_scene(loaded, SmallRooms("test")[0])
    assert labels.label.shape == (600,)


def test_options_without_the_head_are_refused() -> None:
    with pytest.raises(ValueError, match="these are options of head 'language', got head 'mlp'"):
        task(head="mlp")
    with pytest.raises(TypeError, match="Linear is no backbone for scenes"):
        task(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"auxiliary_weight must not be negative, got -0\.1"):
        LanguageGuidance(auxiliary_weight=-0.1)
