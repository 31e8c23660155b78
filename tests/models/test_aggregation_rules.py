"""How sites' vectors become one: what the mean keeps, what the robust rules withstand, and what they cost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.aggregation import capped_shares, combine, combine_equally, combine_moments
from models.moments import MomentLayout
from models.study import FederationSettings
from models.table import EncodedTable

CARDS = (3, 4, 2)
LAYOUT = MomentLayout(CARDS, 2)
ROBUST = ("median", "trimmed-mean")


def rule(name: str, **fields: object) -> FederationSettings:
    return FederationSettings.model_validate({"aggregation": name, "quorum": 5, **fields})


def equal(k: int) -> torch.Tensor:
    return torch.full((k,), 1 / k, dtype=torch.float64)


def moments(n: int, seed: int, *, noise_std: float = 0.0) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    codes = torch.stack([torch.randint(d, (n,), generator=source) for d in CARDS], 1)
    exact = LAYOUT.sum(EncodedTable(codes, torch.arange(n + 1)))
    return exact + noise_std * torch.randn(LAYOUT.size, generator=source, dtype=torch.float64)


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("k", [3, 4, 5, 9])
@given(seed=st.integers(0, 10_000), lie=st.sampled_from([-1e6, 0.0, 3.0, 1e6]))
@settings(max_examples=20, deadline=None)
def test_one_liar_cannot_leave_the_honest_sites_range(name, k, seed, lie):
    source = torch.Generator().manual_seed(seed)
    honest = torch.randn(k - 1, 50, generator=source, dtype=torch.float64)
    shares = capped_shares(torch.rand(k, generator=source) + 0.01, max(1 / k, 0.4))
    values = torch.cat([honest, torch.full((1, 50), lie, dtype=torch.float64)])
    found = combine(values, shares, rule(name))
    assert bool((found >= honest.min(0).values - 1e-9).all())
    assert bool((found <= honest.max(0).values + 1e-9).all())


@pytest.mark.parametrize("name", ROBUST)
def test_two_liars_of_five_are_withstood_where_the_study_says_two(name):
    values = torch.tensor([[1.0], [2.0], [3.0], [1e9], [1e9]], dtype=torch.float64)
    assert 1 <= float(combine(values, equal(5), rule(name, max_faulty_sites=2))) <= 3


def test_the_trimmed_mean_trims_at_four_sites():
    values = torch.tensor([[1.0], [2.0], [4.0], [1e6]], dtype=torch.float64)
    assert float(combine(values, equal(4), rule("trimmed-mean"))) == pytest.approx(3.0)
    assert float(combine(values, equal(4), rule("median"))) == pytest.approx(3.0)


def test_of_five_the_median_is_the_middle_one_and_the_trimmed_mean_averages_three():
    values = torch.tensor([[5.0], [1.0], [2.0], [4.0], [9.0]], dtype=torch.float64)
    assert float(combine(values, equal(5), rule("median"))) == pytest.approx(4.0)
    assert float(combine(values, equal(5), rule("trimmed-mean"))) == pytest.approx((2 + 4 + 5) / 3)


def test_sites_that_agree_are_left_alone_by_every_rule():
    values = torch.randn(1, 30, dtype=torch.float64).expand(5, 30)
    for name in ("mean", *ROBUST):
        assert torch.allclose(combine(values, equal(5), rule(name)), values[0])


@given(totals=st.lists(st.floats(0.1, 1e9), min_size=3, max_size=8), cap=st.floats(0.34, 1.0))
@settings(max_examples=60, deadline=None)
def test_no_share_is_above_the_cap_and_all_sum_to_one(totals, cap):
    shares = capped_shares(torch.tensor(totals, dtype=torch.float64), cap)
    assert float(shares.sum()) == pytest.approx(1.0)
    assert float(shares.max()) <= cap * (1 + 1e-9)
    assert float(shares.min()) > 0


def test_without_a_large_site_the_mean_of_moments_is_their_sum_and_its_noise():
    vectors = [moments(n, seed) for seed, n in enumerate((900, 1000, 1100))]
    found = combine_moments(LAYOUT, vectors, rule("mean"), noise_std=2.0)
    assert torch.allclose(found.vector, torch.stack(vectors).sum(0))
    assert found.noise_std == pytest.approx(2 * 3**0.5)
    assert found.shares == found.claimed


def test_a_site_that_claims_a_million_times_the_patients_counts_for_its_cap():
    vectors = [moments(1000, 0), moments(1000, 1), 1e6 * moments(1000, 2)]
    found = combine_moments(LAYOUT, vectors, rule("mean", max_site_share=0.4), noise_std=1.0)
    assert found.shares == pytest.approx((0.3, 0.3, 0.4), abs=0.01)
    assert found.claimed[2] > 0.999


def test_two_sites_are_not_capped_since_nobody_can_say_which_claims_too_much():
    vectors = [moments(9000, 0), moments(1000, 1)]
    found = combine_moments(LAYOUT, vectors, rule("mean"), noise_std=1.0)
    assert torch.allclose(found.vector, vectors[0] + vectors[1])


@pytest.mark.parametrize("name", ["mean", *ROBUST])
def test_the_stated_noise_is_the_noise_that_is_there(name):
    sizes, noise = (4000, 2000, 3000, 3500), 20.0
    exact = [moments(n, 0) for n in sizes]
    source = torch.Generator().manual_seed(1)
    off, said = [], []
    truth = combine_moments(LAYOUT, exact, rule(name), noise_std=0.0)
    for _ in range(60):
        noisy = [v + noise * torch.randn(LAYOUT.size, generator=source, dtype=torch.float64) for v in exact]
        found = combine_moments(LAYOUT, noisy, rule(name), noise_std=noise)
        off.append(found.vector / found.vector[:3].sum() - truth.vector / truth.vector[:3].sum())
        said.append(found.noise_std / float(found.vector[:3].sum()))
    real = float(torch.stack(off)[:, LAYOUT.width :].square().mean().sqrt())
    assert sum(said) / len(said) == pytest.approx(real, rel=0.15)


@pytest.mark.parametrize("name", ROBUST)
def test_a_hospital_of_another_size_is_no_outlier(name):
    vectors = [moments(n, seed) for seed, n in enumerate((20_000, 2000, 2000, 2000))]
    found = combine_moments(LAYOUT, vectors, rule(name), noise_std=1.0)
    per_patient = found.vector / found.vector[:3].sum()
    assert torch.allclose(per_patient, vectors[0] / vectors[0][:3].sum(), atol=0.03)


@pytest.mark.parametrize("name", ROBUST)
def test_too_few_sites_for_a_robust_rule_are_refused_in_words(name):
    with pytest.raises(ValueError, match="needs at least 3 sites"):
        combine(torch.zeros(2, 5, dtype=torch.float64), equal(2), rule(name))


@pytest.mark.parametrize("name", ROBUST)
def test_a_study_whose_quorum_is_too_small_for_its_rule_is_refused(name):
    with pytest.raises(ValueError, match=r"quorum is 2; .* needs 3 or more"):
        FederationSettings.model_validate({"aggregation": name, "quorum": 2})
    with pytest.raises(ValueError, match="needs 5 or more"):
        FederationSettings.model_validate({"aggregation": name, "quorum": 4, "max_faulty_sites": 2})


def test_judgements_count_alike_whatever_the_rule():
    said = [torch.full((5,), float(k)) for k in (1, 2, 6)]
    assert torch.equal(combine_equally(said, rule("mean")), torch.full((5,), 3.0, dtype=torch.float64))
    assert torch.equal(combine_equally(said, rule("median")), torch.full((5,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("name", ROBUST)
def test_one_site_that_says_the_opposite_does_not_turn_the_judgement_round(name):
    honest = [torch.full((4,), 1.0 + 0.1 * k) for k in range(3)]
    found = combine_equally([*honest, torch.full((4,), -8.0)], rule(name))
    assert float(found.min()) >= 1.0


def test_with_no_reply_there_is_nothing_to_combine():
    with pytest.raises(ValueError, match="no site's reply"):
        combine_equally([], rule("mean"))
