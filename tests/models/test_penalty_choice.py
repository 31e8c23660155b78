"""The penalty is chosen by the noisy moments themselves, thinned into a half to fit to and one to judge by."""

import json

import pytest
import torch

from models.anchor import THINNING, Anchor
from models.mixture_fit import SHRINKAGES, choose_shrinkage, plan_fit, shrinkage_of
from models.moments import MomentLayout
from models.study import Study
from models.table import EncodedTable
from models.warm_start import warm_start

CARDS = (4, 3, 6, 2, 5, 5, 8)
LAYOUT = MomentLayout(CARDS, 3)


def make_study(**warm_start_settings):
    columns = [
        {"kind": "categorical", "name": f"c{k}", "categories": [f"v{j}" for j in range(d)]}
        for k, d in enumerate(CARDS)
    ]
    definition = {
        "name": "fit",
        "privacy": {"epsilon": 1.0, "delta": 1e-5},
        "table": {"columns": columns, "label": "c3"},
        "warm_start": {"components": 60, **warm_start_settings},
    }
    return Study.from_dict(json.loads(json.dumps(definition)))


def codes(n, dependence):
    """Each column follows the one before it, modulo its levels, with this probability."""
    source = torch.Generator().manual_seed(1)
    drawn = [torch.randint(d, (n,), generator=source) for d in CARDS]
    for before, (own, levels) in enumerate(zip(drawn[1:], CARDS[1:], strict=True)):
        follows = torch.rand(n, generator=source) < dependence
        drawn[before + 1] = torch.where(follows, drawn[before] % levels, own)
    return EncodedTable(torch.stack(drawn, 1), torch.arange(n + 1))


def noisy_anchor(n, dependence, std, seed=0):
    source = torch.Generator().manual_seed(seed)
    exact = LAYOUT.sum(codes(n, dependence))
    noisy = exact + std * torch.randn(exact.shape, dtype=torch.float64, generator=source)
    return Anchor.from_sum(LAYOUT, noisy, noise_std=std)


def test_the_two_halves_have_independent_noise_of_the_declared_size():
    emphasis = torch.ones(len(CARDS), len(CARDS), dtype=torch.float64)
    emphasis[0, 2] = emphasis[2, 0] = 3.0
    closer = LAYOUT.emphasised(emphasis)
    table, std = codes(5_000, 0.3), 30.0
    exact = Anchor.from_sum(closer, closer.sum(table), noise_std=0.0)
    off: dict[str, list] = {"first": [], "second": []}
    for seed in range(300):
        source = torch.Generator().manual_seed(10_000 + seed)
        noise = std * torch.randn(closer.size, dtype=torch.float64, generator=source)
        # The patients are known here: else the estimate of their number would move both halves together.
        frequencies = closer.read(closer.sum(table) / 5_000 + noise / 5_000)
        anchor = Anchor(exact.layout, frequencies, std / closer.scale / 5_000, emphasis.square())
        first, second = anchor.thinned(seed=seed)
        for name, half in (("first", first), ("second", second)):
            found = half.frequencies
            parts = (
                found.one_way - exact.frequencies.one_way,
                (found.interactions - exact.frequencies.interactions)[:4, 7:13].flatten(),  # emphasised
                (found.label_interactions - exact.frequencies.label_interactions)[0, :4, 4:7].flatten(),
            )
            off[name].append(torch.cat(parts))
    one, other = torch.stack(off["first"]), torch.stack(off["second"])
    correlation = (one * other).mean(0) / (one.square().mean(0) * other.square().mean(0)).sqrt()
    assert float(correlation.mean().abs()) < 0.03
    expected = std / closer.scale / 5_000
    for half, factor in ((one, (1 + THINNING**2) ** 0.5), (other, (1 + THINNING**-2) ** 0.5)):
        assert float(half[:, : sum(CARDS)].std()) == pytest.approx(factor * expected, rel=0.05)
        # Centring leaves (1 - 1/4)(1 - 1/6) of a pair's variance; the emphasis of 3 divides its noise by 3.
        pair = half[:, sum(CARDS) : sum(CARDS) + 24]
        assert float(pair.std()) == pytest.approx(factor * expected / 3 * (3 / 4 * 5 / 6) ** 0.5, rel=0.05)


def test_columns_that_are_independent_call_for_the_strongest_penalty():
    anchor = noisy_anchor(600, 0.0, 20.0)
    assert choose_shrinkage(anchor, plan_fit(make_study(), anchor)) >= SHRINKAGES[-2]


def test_columns_that_hang_together_call_for_the_weakest():
    anchor = noisy_anchor(5_000, 0.9, 20.0)
    assert choose_shrinkage(anchor, plan_fit(make_study(), anchor)) == SHRINKAGES[0]


def test_what_is_chosen_meets_the_truth_as_well_as_the_best():
    anchor = noisy_anchor(800, 0.25, 15.0, seed=3)
    exact = LAYOUT.sum(codes(800, 0.25))
    truth = Anchor.from_sum(LAYOUT, exact, noise_std=0.0)

    def missed(**settings):
        noisy = LAYOUT.write(anchor.frequencies) * 800
        fitted = warm_start(make_study(**settings), noisy, noise_std=15.0)
        with torch.no_grad():
            return float(truth.loss(fitted.generator))

    fixed = [missed(shrinkage=multiple) for multiple in SHRINKAGES]
    assert max(fixed) > 1.3 * min(fixed)  # else the choice would not matter
    assert missed() < 1.15 * min(fixed)


def test_a_study_may_fix_the_penalty():
    noisy = LAYOUT.sum(codes(600, 0.0))
    fitted = warm_start(make_study(shrinkage=0.5), noisy, noise_std=20.0)
    assert fitted.plan.shrinkage == pytest.approx(0.5 * shrinkage_of(fitted.fitted_to))


def test_the_choice_is_told_of_while_it_is_made():
    told = []
    warm_start(make_study(), LAYOUT.sum(codes(600, 0.0)), noise_std=20.0, progress=told.append)
    assert told == sorted(told)
    assert told[0] < 0.3
    assert told[-1] == 1.0
