"""Canary audits: correct code stays below its claim, every planted bug is refuted, and the estimators are sound."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from scipy import stats

from privacy.auditing import AuditFailedError, ClaimedTradeOff, audit_scores, one_run_epsilon, one_run_p_value
from privacy.events import MechanismEvent

torch.set_num_threads(1)
SURE = 1 - 1e-6  # a correct audit fails by chance once in a million


def load_benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "audit_canaries.py"
    spec = importlib.util.spec_from_file_location("audit_canaries_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


AUDITS = list(load_benchmark().audits())


@pytest.mark.parametrize("audit", [a for a in AUDITS if not a.planted], ids=lambda a: a.target)
def test_correct_code_stays_below_its_claim(audit):
    audit.result(1.0, SURE).check()


@pytest.mark.parametrize("audit", [a for a in AUDITS if a.planted], ids=lambda a: f"{a.target}: {a.planted}")
def test_a_planted_bug_is_refuted(audit):
    with pytest.raises(AuditFailedError, match="not what was claimed"):
        audit.result(1.0, SURE).check()


@pytest.mark.slow
@pytest.mark.parametrize("audit", [a for a in AUDITS if not a.planted], ids=lambda a: a.target)
def test_correct_code_stays_below_its_claim_with_ten_times_the_canaries(audit):
    for _ in range(10):
        audit.result(1.0, SURE).check()


@pytest.mark.slow
@pytest.mark.parametrize("audit", [a for a in AUDITS if a.planted], ids=lambda a: f"{a.target}: {a.planted}")
def test_a_planted_bug_is_refuted_ten_times_out_of_ten(audit):
    assert all(audit.result(1.0, SURE).refuted for _ in range(10))


def gaussian(sigma):
    return MechanismEvent(phase="refine", kind="gaussian", noise_multiplier=sigma)


def test_the_claimed_trade_off_of_one_gaussian_is_the_gaussian_one_and_never_below_it():
    claim = ClaimedTradeOff([gaussian(0.8)])
    for fpr in (1e-5, 1e-3, 0.1, 0.5, 0.9):
        exact = stats.norm.cdf(1 / 0.8 + stats.norm.ppf(fpr))
        assert exact - 1e-9 <= claim.best_tpr(fpr) <= exact + 1e-3


def test_two_events_compose_to_the_gaussian_of_both():
    claim = ClaimedTradeOff([gaussian(2.0), gaussian(2.0)])
    exact = stats.norm.cdf(2**0.5 / 2 + stats.norm.ppf(0.2))
    assert exact - 1e-9 <= claim.best_tpr(0.2) <= exact + 2e-3


def test_the_audit_is_sharp_enough_to_come_close_to_the_truth_and_never_beyond():
    torch.manual_seed(1)
    included = torch.rand(100_000) < 0.5
    scores = included + 2.0 * torch.randn(len(included))
    result = audit_scores(scores, included, ClaimedTradeOff([gaussian(2.0)]), confidence=SURE)
    assert not result.refuted
    assert 0.4 < result.mu_lower <= 0.5


def test_too_few_canaries_are_refused():
    with pytest.raises(ValueError, match="20 canaries"):
        audit_scores(torch.zeros(50), torch.ones(50).bool(), ClaimedTradeOff([gaussian(1.0)]))


def test_one_run_finds_most_of_what_randomized_response_betrays_and_never_more():
    """Epsilon 1 exactly: every answer is right with probability e / (1 + e)."""
    torch.manual_seed(2)
    included = torch.rand(20_000) < 0.5
    answer = torch.where(torch.rand(len(included)) < 0.731, included, ~included)
    scores = answer + 1e-3 * torch.rand(len(included))
    lower = one_run_epsilon(scores, included, delta=0.0, guesses=10_000, confidence=SURE)
    assert 0.8 < lower <= 1.0


def test_one_run_says_nothing_about_scores_that_say_nothing():
    torch.manual_seed(3)
    assert one_run_epsilon(torch.randn(1000), torch.rand(1000) < 0.5, delta=1e-5, guesses=500) == 0.0


def test_one_run_p_value_is_the_binomial_tail_at_delta_zero_and_grows_with_delta():
    assert one_run_p_value(100, 50, 40, 1.0, 0.0) == pytest.approx(stats.binom.sf(39, 50, 0.7310585786))
    assert one_run_p_value(100, 50, 40, 1.0, 1e-3) > one_run_p_value(100, 50, 40, 1.0, 0.0)


def test_one_run_refutes_a_mechanism_that_hides_nothing():
    torch.manual_seed(4)
    included = torch.rand(1000) < 0.5
    assert one_run_epsilon(included + 0.01 * torch.randn(1000), included, delta=0.0, guesses=800) > 4
