"""Selection of the epoch that is kept, and the result of the usual practice in the field for comparison."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class EpochScore:
    """Scores after an epoch, fractions in [0, 1].

    Attributes:
        epoch: counted from 1.
        validation: on the validation part; None where there is none.
        test: on the test split; None unless the protocol is ``"legacy"``.
    """

    epoch: int
    validation: float | None = None
    test: float | None = None


class EpochSelection:
    """The scores of the epochs of a run, and the weights of the best epoch on validation.

    Of epochs with the same score the earliest counts as the best. The test split never chooses what is kept.

    Attributes:
        history: scores of the epochs so far.
        weights: of the best epoch on validation, on the CPU; None before there is one.
    """

    def __init__(self) -> None:
        self.history: list[EpochScore] = []
        self.weights: dict[str, Tensor] | None = None

    def record(self, score: EpochScore, model: nn.Module) -> None:
        """Take the scores after an epoch, and the weights if they are the best so far on validation."""
        best = self.best("validation")
        self.history.append(score)
        if score.validation is not None and (best is None or score.validation > (best.validation or 0.0)):
            self.weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}

    def best(self, on: str) -> EpochScore | None:
        """The epoch with the highest score on ``"validation"`` or ``"test"``; None where none has one."""
        scored = [score for score in self.history if getattr(score, on) is not None]
        return max(scored, key=lambda score: (getattr(score, on), -score.epoch)) if scored else None

    def kept(self) -> EpochScore | None:
        """The epoch that is exported: the best on validation, or the last without validation."""
        return self.best("validation") or (self.history[-1] if self.history else None)

    def restore(self, model: nn.Module) -> None:
        """Give a model the weights of the best epoch; without validation it keeps those that it has."""
        if self.weights is not None:
            model.load_state_dict(self.weights)

    def summary(self, epochs: int, score: str) -> dict[str, Any]:
        """What a report needs to know.

        Args:
            epochs: of the whole run.
            score: name of the score that validation looks at.
        """
        kept, legacy = self.kept(), self.best("test")
        by = f"highest {score} on validation, of {epochs} epochs" if self.best("validation") else "the last epoch"
        return {
            "epoch": kept.epoch if kept is not None else epochs,
            "by": by,
            "score": score,
            "validation": None if kept is None else kept.validation,
            "legacy": None if legacy is None else {"epoch": legacy.epoch, "test": legacy.test},
        }

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, for a checkpoint."""
        return {"history": [asdict(score) for score in self.history], "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.history = [EpochScore(**score) for score in state["history"]]
        self.weights = state["weights"]
