"""The warm start: what it finds in noisy moments."""

import itertools
import json

import pytest
import torch

from models.anchor import Anchor, AnchorError
from models.emphasis import emphasis_of
from models.generator import MixtureGenerator
from models.mixture_fit import FitPlan, fit_mixture, shrinkage_of
from models.moments import MomentLayout
from models.scores import scores_of
from models.study import Study
from models.table import EncodedTable, one_hot
from models.warm_start import warm_start

CARDS = (4, 3, 6, 2)


def make_study(**warm_start_settings):
    columns = [
        {"kind": "categorical", "name": f"c{k}", "categories": [f"v{j}" for j in range(d)]}
        for k, d in enumerate(CARDS)
    ]
    definition = {
        "name": "fit",
        "privacy": {"epsilon": 1.0, "delta": 1e-5},
        "table": {"columns": columns, "label": "c3"},
        "warm_start": {"steps": 250, "components": 200, **warm_start_settings},
    }
    return Study.from_dict(json.loads(json.dumps(definition)))


def correlated_table(n, seed=0):
    source = torch.Generator().manual_seed(seed)
    first = torch.randint(4, (n,), generator=source)
    second = (first + torch.randint(2, (n,), generator=source)) % 3
    third = (first + second + (torch.rand(n, generator=source) < 0.2)) % 6
    label = (first >= 2).long() ^ (torch.rand(n, generator=source) < 0.1)
    return EncodedTable(torch.stack([first, second, third, label], 1), torch.arange(n + 1))


def noisy_sum(table, std, seed=0):
    vector = MomentLayout(CARDS, 3).sum(table)
    return vector + std * torch.randn(
        vector.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def true_moments(table):
    hot = one_hot(table.codes, CARDS)
    return hot.T @ hot / len(hot)


def test_without_noise_the_moments_are_fitted():
    table = correlated_table(20_000)
    fitted = warm_start(make_study(), noisy_sum(table, 0.0), noise_std=0.0)
    assert (fitted.generator.moments() - true_moments(table)).abs().max() < 0.01


def test_noise_is_not_taken_for_dependence():
    layout, n = MomentLayout((8,) * 6), 20_000
    source = torch.Generator().manual_seed(0)
    codes = torch.randint(8, (n, 6), generator=source)
    codes[:, 1] = torch.where(torch.rand(n, generator=source) < 0.5, codes[:, 0], codes[:, 1])
    table = EncodedTable(codes, torch.arange(n + 1))
    released = layout.sum(table)
    released = released + 100.0 * torch.randn(released.shape, dtype=torch.float64, generator=source)
    noisy = Anchor.from_sum(layout, released, noise_std=100.0)
    truth = Anchor.from_sum(layout, layout.sum(table), noise_std=0.0)
    plan = FitPlan(components=100, steps=200, learning_rate=0.1, shrinkage=shrinkage_of(noisy))
    error = truth.residuals(fit_mixture(noisy, plan)).interactions
    noise = noisy.frequencies.interactions - truth.frequencies.interactions
    assert error.norm() < 0.65 * noise.norm()


def test_sites_add_up_as_if_their_patients_were_together():
    table = correlated_table(9_000)
    halves = [table.select(torch.arange(0, 4_000)), table.select(torch.arange(4_000, 9_000))]
    layout, study = MomentLayout(CARDS, 3), make_study()
    together = warm_start(study, layout.sum(table), noise_std=2**0.5)
    added = warm_start(study, layout.sum(halves[0]) + layout.sum(halves[1]), noise_std=2**0.5)
    torch.testing.assert_close(together.generator.moments(), added.generator.moments(), atol=1e-4, rtol=0)


def test_the_anchor_carries_noise_of_all_sites_per_frequency():
    layout, table = MomentLayout(CARDS, 3), correlated_table(10_000)
    anchor = Anchor.from_sum(layout, layout.sum(table), noise_std=30.0)
    assert anchor.noise_std == pytest.approx(30.0 / layout.scale / 10_000)
    again = Anchor.from_tensor(layout, anchor.to_tensor())
    for name in ("one_way", "interactions", "label_interactions"):
        torch.testing.assert_close(getattr(again.frequencies, name), getattr(anchor.frequencies, name))


def test_two_exchanges_tell_as_much_as_their_noises_allow():
    layout, table = MomentLayout(CARDS, 3), correlated_table(10_000)
    emphasis = torch.ones(len(CARDS), len(CARDS), dtype=torch.float64)
    emphasis[0, 1] = emphasis[1, 0] = 3.0
    closer = layout.emphasised(emphasis)
    first = Anchor.from_sum(layout, layout.sum(table), noise_std=40.0)
    second = Anchor.from_sum(closer, closer.sum(table), noise_std=20.0)
    both = first.joined(second)
    for a, b in ((0, 0), (0, 1), (0, 2)):
        stds = [one.noise_std / float(one.precision[a, b]) ** 0.5 for one in (first, second, both)]
        assert stds[2] == pytest.approx((stds[0] ** -2 + stds[1] ** -2) ** -0.5)
    assert float(both.precision[0, 1]) > float(both.precision[0, 2])
    off_diagonal = both.precision[~torch.eye(len(CARDS), dtype=torch.bool)]
    assert float(off_diagonal.mean()) == pytest.approx(1)
    for name in ("one_way", "interactions", "label_interactions"):
        torch.testing.assert_close(getattr(both.frequencies, name), getattr(first.frequencies, name))
    again = Anchor.from_tensor(layout, both.to_tensor())
    torch.testing.assert_close(again.precision, both.precision)
    assert again.noise_std == both.noise_std


def test_a_pair_that_hangs_together_is_looked_at_more_closely():
    fitted = warm_start(make_study(), noisy_sum(correlated_table(20_000), 5.0), noise_std=5.0)
    emphasis = emphasis_of(fitted.generator)
    MomentLayout(CARDS, 3).emphasised(emphasis)  # is one
    moments, margins = fitted.generator.moments().detach(), fitted.generator.one_way().detach()
    offsets = MomentLayout(CARDS).offsets
    parts = [slice(*offsets[k : k + 2]) for k in range(len(CARDS))]
    tied = {
        (a, b): float(
            (moments[parts[a], parts[b]] - torch.outer(margins[parts[a]], margins[parts[b]])).abs().sum()
        )
        for a, b in itertools.combinations(range(len(CARDS)), 2)
    }
    ordered = sorted(tied, key=tied.__getitem__)
    weights = [float(emphasis[pair]) for pair in ordered]
    assert weights == sorted(weights)
    assert weights[-1] > 1.05 * weights[0]


@pytest.mark.parametrize("columns", [1, 2, 3, 5, 13, 31])
def test_the_emphasis_of_any_generator_can_be_used(columns):
    source = torch.Generator().manual_seed(columns)
    cards = [int(d) for d in torch.randint(1, 9, (columns,), generator=source)]
    for scale in (0.0, 0.01, 3.0):
        logits = scale * torch.randn(7, sum(cards), generator=source)
        emphasis = emphasis_of(MixtureGenerator(logits, torch.randn(7, generator=source), cards))
        MomentLayout(cards).emphasised(emphasis)


def test_the_truth_and_the_fit_have_no_misfit_and_independence_has():
    table = correlated_table(20_000)
    study = make_study()
    fitted = warm_start(study, noisy_sum(table, 60.0), noise_std=60.0)
    assert fitted.scores()["misfit"] < 2
    anchor = Anchor.from_tensor(MomentLayout(CARDS, 3), fitted.anchor)
    flat = warm_start(study, noisy_sum(table, 60.0), noise_std=60.0).generator
    with torch.no_grad():
        flat.logits.copy_(flat.one_way().log().expand_as(flat.logits))
    assert scores_of(flat, anchor)["misfit"] > 10


def test_more_noise_means_no_more_components():
    table, study = correlated_table(20_000), make_study(steps=2, components=0)
    counts = [
        warm_start(study, noisy_sum(table, std), noise_std=std).plan.components for std in (1.0, 30.0, 600.0)
    ]
    assert counts == sorted(counts, reverse=True)
    assert (
        warm_start(make_study(steps=2, components=17), noisy_sum(table, 30.0), noise_std=30.0).plan.components
        == 17
    )


def test_progress_goes_from_nothing_to_all():
    told = []
    warm_start(
        make_study(steps=35),
        noisy_sum(correlated_table(5_000), 9.0),
        noise_std=9.0,
        progress=told.append,
    )
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_moments_of_nobody_or_not_finite_are_refused():
    layout, study = MomentLayout(CARDS, 3), make_study()
    noise = 50 * torch.randn(layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(AnchorError, match="within the noise"):
        warm_start(study, noise, noise_std=50.0)
    noise[3] = float("nan")
    with pytest.raises(AnchorError, match="not finite"):
        warm_start(study, noise, noise_std=50.0)
