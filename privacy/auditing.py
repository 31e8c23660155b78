"""White-box audits: does what a mechanism released betray a canary better than its claimed cost allows?

A canary is a patient that an auditor makes up and adds, by a coin, to the data. The auditor sees the release and all
else (weights, other patients, settings) and scores how much the release looks as if the canary were in. From scores
and coins come a false and a true positive rate; differential privacy bounds one by the other. An audit cannot prove
a claim; it can refute one, with the confidence stated.

Two estimators, which do not replace each other:
    - `audit_scores` compares the rates with the whole trade-off curve of the claimed events. It is sharp, and it
      takes the canaries' scores as independent, as orthogonal canaries in one step, or separate runs, are.
    - `one_run_epsilon` needs no independence between the canaries of one run: it is valid for any mechanism,
      and therefore less sharp.

References:
    Steinke, Nasr, Jagielski, Privacy auditing with one (1) training run, NeurIPS 2023 (arXiv:2305.08846), theorem
    5.2 and appendix D.
    Dong, Roth, Su, Gaussian differential privacy, JRSS B 2022 (arXiv:1905.02383), section 2.
    Nasr et al., Tight auditing of differentially private machine learning, USENIX Security 2023.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from dp_accounting.pld import privacy_loss_distribution as pld
from scipy import stats
from torch import Tensor

from privacy.events import MechanismEvent

LOSSES = np.concatenate([np.linspace(-12, 12, 481), np.linspace(12.5, 60, 96)])  # where the curve is bounded
THRESHOLDS = 60


class AuditFailedError(AssertionError):
    """A mechanism betrays more than its claim allows."""


class ClaimedTradeOff:
    """The best true positive rate that a list of events allows at any false positive rate.

    Args:
        events: what is claimed to have run, composed in this order; at least one.
    """

    def __init__(self, events: Sequence[MechanismEvent]) -> None:
        if not events:
            raise ValueError("events is empty; a claim names at least one mechanism event")
        composed, *others = [
            pld.from_gaussian_mechanism(
                event.noise_multiplier, sampling_prob=event.sample_rate, value_discretization_interval=1e-3
            ).self_compose(event.steps)
            for event in events
        ]
        for other in others:
            composed = composed.compose(other)
        self._slopes = np.exp(LOSSES)
        self._deltas = np.asarray(composed.get_delta_for_epsilon(LOSSES))

    def best_tpr(self, fpr: float) -> float:
        """Upper bound on the true positive rate of any attack with this false positive rate."""
        return float(min(1.0, np.min(self._slopes * fpr + self._deltas)))


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """What an audit saw, next to what was claimed.

    Attributes:
        num_canaries: scores that the rates were estimated from (the threshold was chosen on others).
        fpr_upper: upper confidence bound of the false positive rate.
        tpr_lower: lower confidence bound of the true positive rate.
        allowed_tpr: the best true positive rate that the claim allows at `fpr_upper`.
        mu_lower: lower bound of mu, the distance of two unit Gaussians that are as easily told apart.
        confidence: that both bounds hold.
    """

    num_canaries: int
    fpr_upper: float
    tpr_lower: float
    allowed_tpr: float
    mu_lower: float
    confidence: float

    @property
    def refuted(self) -> bool:
        """Whether the claim cannot be true, with this confidence."""
        return self.tpr_lower > self.allowed_tpr

    def check(self) -> None:
        """Raise AuditFailedError when the claim is refuted."""
        if self.refuted:
            raise AuditFailedError(
                f"at a false positive rate of at most {self.fpr_upper:.4g} the canaries are found at a rate of "
                f"at least {self.tpr_lower:.4g}; the claimed events allow {self.allowed_tpr:.4g} (confidence "
                f"{self.confidence:g}). Noise, clipping, sampling or book-keeping is not what was claimed"
            )


def audit_scores(
    scores: Tensor, included: Tensor, claim: ClaimedTradeOff, *, confidence: float = 0.999
) -> AuditResult:
    """Test a claim on the scores of independent canaries.

    The threshold is chosen on every second canary and the rates are estimated on the others, so that looking for the
    best threshold costs no confidence.

    Args:
        scores: (M,), higher when the release looks as if the canary were in.
        included: (M,) bool, the coins.
        claim: of the events that were debited.
        confidence: that both rates' bounds hold, in (0, 1).

    Raises:
        ValueError: fewer than 20 canaries on either side of the coin in either half.
    """
    values, coins = scores.double().numpy(), included.bool().numpy()
    chosen, tested = slice(0, None, 2), slice(1, None, 2)
    for half in (chosen, tested):
        if min(coins[half].sum(), (~coins[half]).sum()) < 20:
            raise ValueError("an audit needs 20 canaries in and 20 out in either half; use more canaries")

    def rates(half: slice, threshold: float) -> tuple[float, float]:
        return _bounded_rates(values[half], coins[half], threshold, confidence)

    def excess(threshold: float) -> float:
        fpr, tpr = rates(chosen, threshold)
        return tpr - claim.best_tpr(fpr)

    candidates = np.unique(np.quantile(values[chosen], np.linspace(0.005, 0.995, THRESHOLDS), method="lower"))
    fpr_upper, tpr_lower = rates(tested, max(candidates, key=excess))
    sharpest = max(candidates, key=lambda threshold: _mu(*rates(chosen, threshold)))
    return AuditResult(
        num_canaries=len(values[tested]),
        fpr_upper=fpr_upper,
        tpr_lower=tpr_lower,
        allowed_tpr=claim.best_tpr(fpr_upper),
        mu_lower=_mu(*rates(tested, sharpest)),
        confidence=confidence,
    )


def _mu(fpr: float, tpr: float) -> float:
    """How far apart two unit Gaussians are that can be told apart with these rates."""
    return float(stats.norm.isf(fpr) - stats.norm.isf(tpr)) if tpr > 0 and fpr < 1 else -math.inf


def _bounded_rates(
    values: np.ndarray, coins: np.ndarray, threshold: float, confidence: float
) -> tuple[float, float]:
    """Upper bound of the false and lower bound of the true positive rate (Clopper and Pearson)."""
    positive, error = values > threshold, (1 - confidence) / 2
    outs, ins = int((~coins).sum()), int(coins.sum())
    false, true = int((positive & ~coins).sum()), int((positive & coins).sum())
    fpr = 1.0 if false == outs else float(stats.beta.isf(error, false + 1, outs - false))
    tpr = 0.0 if true == 0 else float(stats.beta.ppf(error, true, ins - true + 1))
    return fpr, tpr


def one_run_epsilon(
    scores: Tensor, included: Tensor, *, delta: float, guesses: int, confidence: float = 0.999
) -> float:
    """Lower bound of epsilon from many canaries in a single run, whatever they share.

    Guesses `guesses` canaries, the half with the highest scores as in and the half with the lowest as out, and asks
    how small epsilon can be for so many to be right.

    Args:
        scores: (M,), higher when the release looks as if the canary were in.
        included: (M,) bool, fair independent coins.
        delta: in [0, 1), of the claim.
        guesses: at most M; the fewer, the surer each.
        confidence: that the bound holds.

    Returns:
        epsilon, 0 when nothing can be said.
    """
    if not 2 <= guesses <= len(scores):
        raise ValueError(f"guesses is {guesses}; it must lie between 2 and the {len(scores)} canaries")
    order = scores.argsort()
    half = guesses // 2
    correct = int((~included[order[:half]]).sum() + included[order[-half:]].sum())
    low, high = 0.0, 20.0
    if one_run_p_value(len(scores), 2 * half, correct, 0.0, delta) > 1 - confidence:
        return 0.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        if one_run_p_value(len(scores), 2 * half, correct, middle, delta) < 1 - confidence:
            low = middle
        else:
            high = middle
    return low


def one_run_p_value(num_canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """How likely at most so many right guesses are, in one run of any (epsilon, delta)-DP mechanism.

    References:
        Steinke, Nasr, Jagielski 2023, theorem 5.2 and appendix D.
    """
    rate = 1 / (1 + math.exp(-epsilon))
    at_least = float(stats.binom.sf(correct - 1, guesses, rate))
    below = np.cumsum(stats.binom.pmf(np.arange(correct - 1, -1, -1), guesses, rate))
    alpha = float(np.max(below / np.arange(1, correct + 1))) if correct else 0.0
    return min(1.0, at_least + alpha * delta * 2 * num_canaries)
