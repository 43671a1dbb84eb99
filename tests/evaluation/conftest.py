"""Features made up so that the right answer is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pc3d.evaluation import Features

MakeFeatures = Callable[..., Features]


@pytest.fixture
def planted() -> MakeFeatures:
    """Features whose class is a direction of its own, with noise; ``signal=0`` leaves only the noise."""

    def make(
        num_per_class: int = 12, num_classes: int = 4, *, signal: float = 5.0, unlabelled: int = 0, seed: int = 0
    ) -> Features:
        generator = np.random.default_rng(seed)
        labels = np.repeat(np.arange(num_classes), num_per_class)
        values = signal * np.eye(num_classes, 16)[labels] + generator.normal(size=(labels.size, 16))
        labels = np.concatenate([labels, np.full(unlabelled, -1)])
        values = np.concatenate([values, generator.normal(size=(unlabelled, 16))])
        classes = tuple(f"class {k}" for k in range(num_classes))
        return Features(values.astype(np.float32), labels.astype(np.int64), classes, data="planted")

    return make
