"""Prompts, ensembles, zero-shot logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pc3d.image import (
    ULIP_TEMPLATES,
    TextTower,
    class_map,
    drop_absent_classes,
    fill,
    multi_view_logits,
    prompt_ensemble,
    smooth_by_keys,
    zero_shot_logits,
)


class Letters(TextTower):
    """Counts letters: enough of a text tower to check what is done with one."""

    def __init__(self) -> None:
        super().__init__("letters", 26)
        self.empty = torch.nn.Parameter(torch.zeros(0))
        self.computed: list[str] = []

    def _encode(self, texts: list[str]) -> Tensor:
        self.computed += texts
        return torch.tensor([[float(text.lower().count(chr(97 + i))) for i in range(26)] for text in texts])


def test_equal_texts_are_computed_once_and_order_is_kept() -> None:
    tower = Letters()
    features = tower.encode(["lamp", "a chair", "lamp", "b"], batch_size=2)
    assert sorted(tower.computed) == ["a chair", "b", "lamp"]
    for row, text in enumerate(["lamp", "a chair", "lamp", "b"]):
        assert torch.equal(features[row], Letters()._encode([text])[0])


def test_an_ensemble_is_the_unit_mean_of_unit_vectors() -> None:
    names, templates = ["chair", "table lamp"], ["a {}.", "photo of my {}", "{} again"]
    vectors = prompt_ensemble(Letters(), names, templates)
    for row, name in enumerate(names):
        total = [0.0] * 26
        for template in templates:
            text = template.format(name)
            counts = [text.lower().count(chr(97 + i)) for i in range(26)]
            length = math.sqrt(sum(count * count for count in counts))
            total = [a + count / length for a, count in zip(total, counts, strict=True)]
        length = math.sqrt(sum(value * value for value in total))
        torch.testing.assert_close(vectors[row], torch.tensor([value / length for value in total]))
    torch.testing.assert_close(prompt_ensemble(Letters(), names, templates[::-1]), vectors)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))


def test_the_templates_of_ulip_are_sixty_four() -> None:
    assert len(set(ULIP_TEMPLATES)) == len(ULIP_TEMPLATES) == 64
    assert all(template.count("{}") == 1 for template in ULIP_TEMPLATES)
    for template in (
        "a point cloud model of {}.",
        "There is the {} in the scene.",
        "itap of my {}.",
        "a photo of the weird {}.",
        "a jpeg corrupted photo of a {}.",
        "a black and white photo of a {}",
        "the plushie {}.",
        "an embroidered {}.",
    ):
        assert template in ULIP_TEMPLATES


def test_zero_shot_logits_are_scaled_cosines() -> None:
    features, classes = torch.randn(3, 4, 5), torch.randn(6, 5)
    logits = zero_shot_logits(features, classes, logit_scale=10)
    for i in range(3):
        for j in range(4):
            for k in range(6):
                a, b = features[i, j].double(), classes[k].double()
                assert float(logits[i, j, k]) == pytest.approx(10 * float(a @ b / a.norm() / b.norm()), abs=1e-5)
    summed = multi_view_logits(features, classes, logit_scale=10)
    torch.testing.assert_close(summed, logits.sum(dim=1))
    weighted = multi_view_logits(features, classes, [1, 0, 2, 0.5], logit_scale=10)
    torch.testing.assert_close(weighted, logits[:, 0] + 2 * logits[:, 2] + 0.5 * logits[:, 3])


def test_a_class_map_classifies_every_cell() -> None:
    dense, classes = torch.randn(2, 5, 3, 4), torch.randn(6, 5)
    logits = class_map(dense, classes)
    assert logits.shape == (2, 6, 3, 4)
    torch.testing.assert_close(logits[1, :, 2, 3], zero_shot_logits(dense[1, :, 2, 3], classes))


def test_unsure_cells_are_averaged_by_their_keys() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, keys = torch.randn(2, 3, 2, 4, generator=generator), torch.randn(2, 5, 2, 4, generator=generator)
    smooth = smooth_by_keys(logits, keys, threshold=0.6)
    changed = 0
    for batch in range(2):
        flat, key = logits[batch].flatten(1).double(), keys[batch].flatten(1).double()
        for i in range(8):
            expected = flat[:, i]
            if float(flat[:, i].softmax(dim=0).max()) < 0.6:
                weights = [float(key[:, i] @ key[:, j] / key[:, i].norm() / key[:, j].norm()) for j in range(8)]
                total = sum(abs(weight) for weight in weights)
                expected = torch.stack([weight * flat[:, j] for j, weight in enumerate(weights)]).sum(0) / total
                changed += 1
            torch.testing.assert_close(smooth[batch].flatten(1)[:, i].double(), expected, atol=1e-5, rtol=1e-5)
    assert 0 < changed < 16
    with pytest.raises(ValueError, match="must have the same batch and grid"):
        smooth_by_keys(logits, keys[:, :, :1])


def test_classes_that_no_cell_is_sure_of_are_dropped() -> None:
    # Probabilities of three classes in two cells; 0.6 and 0.55 reach a half, 0.3 does not.
    probability = torch.tensor([[0.6, 0.15], [0.1, 0.55], [0.3, 0.3]])
    logits = probability.log().reshape(1, 3, 1, 2).repeat(2, 1, 1, 1)
    logits[1] = torch.tensor([[0.34, 0.34], [0.36, 0.34], [0.3, 0.32]]).log().reshape(3, 1, 2)
    kept = drop_absent_classes(logits)
    assert kept[0, :, 0, 0].isfinite().tolist() == [True, True, False]
    # Where no class reaches a half, the surest is left.
    assert kept[1, :, 0, 0].isfinite().tolist() == [False, True, False]
    assert torch.equal(kept[0, :2], logits[0, :2])
    assert torch.equal(drop_absent_classes(logits, 0.0), logits)
    with pytest.raises(ValueError, match="threshold must be between 0 and 1"):
        drop_absent_classes(logits, 2.0)


def test_wrong_prompts_and_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must have the place \{\} once, got 'a photo'"):
        fill(["a photo"], "chair")
    with pytest.raises(ValueError, match="one or more strings in a list"):
        fill("a {}", "chair")
    with pytest.raises(ValueError, match="one or more strings in a list"):
        fill([], "chair")
    with pytest.raises(ValueError, match=r"features \(2, 4\) and class_vectors \(3, 5\)"):
        zero_shot_logits(torch.randn(2, 4), torch.randn(3, 5))
    with pytest.raises(ValueError, match="got 2 for 3 views"):
        multi_view_logits(torch.randn(3, 4), torch.randn(2, 4), [1.0, 1.0])
