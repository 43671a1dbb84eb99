"""Detect whether an encoder still distinguishes clouds while it is trained to make their views agree."""

from __future__ import annotations

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.nn import functional as F

from pc3d.nn.distributed import gather_rows


class CollapseWatch:
    """Measure how different the features of a batch are, and warn once if they have been similar for a while.

    Views agree trivially if every cloud has the same feature or, in self-distillation, the same distribution over
    prototypes. The measurement does not change the training, and nothing of it needs to be stored to resume.

    Args:
        threshold: of :func:`feature_spread`, below which a batch counts as collapsed.
        patience: collapsed batches in a row before the warning.
        information: least mutual information, in nats, between the prototypes and the clouds of a batch: the entropy of
            the mean of the teacher's distributions minus the mean of their entropies.

    Raises:
        ValueError: a threshold that is not positive, or a patience below 1.
    """

    def __init__(self, threshold: float = 0.01, patience: int = 100, information: float = 0.05) -> None:
        if not threshold > 0.0 or patience < 1 or not information > 0.0:
            raise ValueError(
                f"threshold, patience and information must be positive, got {threshold}, {patience} and {information}"
            )
        self.threshold, self.patience, self.information = threshold, patience, information
        self._collapsed = {"features": 0, "distributions": 0}
        self._warned: set[str] = set()

    @torch.no_grad()
    def __call__(self, features: Tensor, logits: Tensor | None = None) -> dict[str, Tensor]:
        """Measure a batch; with several processes the global batch, so each of them must call.

        Args:
            features: ``(B, C)``, one row per cloud: the features of the encoder, or those that the loss compares.
            logits: ``(B, K)`` logits of the teacher's distributions, centred and divided by their temperature.

        Returns:
            Scalars to log: ``feature_spread`` and ``effective_rank``. With logits also ``mean_entropy``, the mean
            entropy of the distributions, which should fall from ln K; and ``entropy_of_mean``, the entropy of their
            mean over the batch, which should stay near ln K.
        """
        features = gather_rows(features.detach().float())
        spread = feature_spread(features)
        values = {"feature_spread": spread, "effective_rank": effective_rank(features)}
        if len(features) > 1:  # the spread of one cloud is always 0
            self._look("features", "feature_spread", float(spread), self.threshold)
        if logits is not None:
            probability = gather_rows(logits.detach().float().softmax(1))
            values["mean_entropy"] = _entropy(probability).mean()
            values["entropy_of_mean"] = _entropy(probability.mean(0))
            if len(probability) > 1:
                told = float(values["entropy_of_mean"] - values["mean_entropy"])
                self._look("distributions", "entropy_of_mean less mean_entropy", told, self.information)
        return values

    def _look(self, what: str, measure: str, value: float, least: float) -> None:
        # NaN counts as collapsed, because it is not above the threshold.
        self._collapsed[what] = 0 if value > least else self._collapsed[what] + 1
        if self._collapsed[what] < self.patience or what in self._warned:
            return
        self._warned.add(what)
        remedy = {
            "features": "a lower learning rate or a longer warm-up; a teacher momentum closer to 1 or a higher weight "
            "of the term that keeps features apart also help",
            "distributions": "a teacher momentum closer to 1, so that the centre keeps up with the teacher; a lower "
            "learning rate, fewer prototypes or another teacher temperature also help",
        }[what]
        rank_zero_warn(
            f"the {what} of different clouds have been the same for {self.patience} steps ({measure} {value:.2g}, "
            f"which should be above {least:g}): they have collapsed, and training goes on to learn nothing from them. "
            f"Stop, and start again with {remedy}"
        )


def feature_spread(features: Tensor) -> Tensor:
    """Standard deviation of unit-length features ``(B, C)``, over the batch, times the square root of C.

    The root mean square over the C dimensions. 0 where all rows are parallel, at most ``sqrt(B / (B - 1))``, and about
    1 if directions are uniform (the 1 / sqrt(C) of SimSiam, Chen and He, 2021, section 4.1).
    """
    unit = F.normalize(features, dim=1)
    variance = (unit - unit.mean(0)).square().sum() / max(len(unit) - 1, 1)
    return variance.sqrt()


def effective_rank(features: Tensor) -> Tensor:
    """Exponential of the entropy of the singular values of unit-length features ``(B, C)``: from 1 to min(B, C).

    The features are not centred (RankMe, Garrido et al., 2023, equation 1; Roy and Vetterli, 2007).
    """
    unit = F.normalize(features.double(), dim=1)
    if not unit.isfinite().all():  # there are no singular values
        return unit.new_tensor(float("nan"))
    gram = unit @ unit.T if len(unit) <= unit.shape[1] else unit.T @ unit
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return _entropy(values / values.sum().clamp(min=1e-12)).exp()


def _entropy(probability: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(probability).sum(-1)
    return entropy
