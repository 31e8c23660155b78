"""Sites whose patients differ get a mixture each, and tell each other how columns hang together."""

import pytest
import torch

from models.anchor import Anchor, AnchorError
from models.mixture_fit import fit_mixture, plan_fit
from models.moments import MomentLayout
from models.site_fit import _drawn_together, fit_by_site, site_moments, sites_differ
from models.study import Study
from models.table import EncodedTable
from models.warm_start import warm_start

CARDS = (4, 3, 5, 2, 4, 3)
LABEL = 3
LAYOUT = MomentLayout(CARDS, LABEL)


def make_study(**warm_start_settings):
    columns = [
        {"kind": "categorical", "name": f"c{k}", "categories": [f"v{j}" for j in range(d)]}
        for k, d in enumerate(CARDS)
    ]
    return Study.from_dict(
        {
            "name": "fit",
            "privacy": {"epsilon": 1.0, "delta": 1e-5},
            "table": {"columns": columns, "label": f"c{LABEL}"},
            "warm_start": {"components": 60, **warm_start_settings},
        }
    )


def patients(n, *, lean, seed):
    """Neighbouring columns hang together alike everywhere; the higher `lean`, the higher each column's levels."""
    source = torch.Generator().manual_seed(seed)
    common = torch.rand(n, generator=source)
    columns = []
    for d in CARDS:
        own = torch.rand(n, generator=source)
        mixed = torch.where(torch.rand(n, generator=source) < 0.5, common, own)
        columns.append((mixed ** (1 / lean) * d).long().clamp(max=d - 1))
    return EncodedTable(torch.stack(columns, 1), torch.arange(n + 1))


def released(tables, std, seed=0):
    source = torch.Generator().manual_seed(seed)
    exact = [LAYOUT.sum(table) for table in tables]
    return [one + std * torch.randn(one.shape, dtype=torch.float64, generator=source) for one in exact]


def named(vectors):
    return {f"site-{place}": vector for place, vector in enumerate(vectors)}


def shares_of(tables):
    total = sum(table.num_records for table in tables)
    return [table.num_records / total for table in tables]


def unlike(n=400):
    return [patients(n, lean=lean, seed=k) for k, lean in enumerate((0.05, 0.5, 10.0))]


def alike(n=400, seed=0):
    return [patients(n, lean=1.0, seed=10 * seed + k) for k in range(3)]


def started(tables, std, *, seed=0, **settings):
    vectors = released(tables, std, seed)
    sites = site_moments(LAYOUT, named(vectors), shares_of(tables), noise_std=std)
    return warm_start(make_study(**settings), sum(vectors), noise_std=std * len(tables) ** 0.5, sites=sites)


def missed(generator, tables):
    truth = Anchor.from_sum(LAYOUT, sum(LAYOUT.sum(table) for table in tables), noise_std=0.0)
    with torch.no_grad():
        return float(truth.loss(generator))


def test_hospitals_that_differ_have_a_part_each_and_the_release_is_nearer_to_their_patients():
    tables = unlike()
    gains = []
    for seed in range(3):
        found, together = started(tables, 9.0, seed=seed), started(tables, 9.0, seed=seed, by_site=False)
        assert found.by_site
        assert not together.by_site
        gains.append(missed(together.generator, tables) / missed(found.generator, tables))
    assert min(gains) > 1.2


@pytest.mark.parametrize("seed", range(3))
def test_parts_of_one_population_are_fitted_together(seed):
    tables = alike(seed=seed)
    found, together = started(tables, 12.0, seed=seed), started(tables, 12.0, seed=seed, by_site=False)
    assert not found.by_site
    torch.testing.assert_close(found.generator.logits, together.generator.logits)


def test_chance_alone_is_not_taken_for_a_difference():
    for std in (0.5, 12.0):  # next to no noise: what is left is who happened to come to which hospital
        found = [
            sites_differ(
                site_moments(
                    LAYOUT, named(released(alike(seed=seed), std, seed)), shares_of(alike()), noise_std=std
                )
            )
            for seed in range(20)
        ]
        assert sum(found) <= 1


def test_one_site_does_not_differ_from_itself():
    table = patients(500, lean=2.0, seed=0)
    assert not sites_differ(site_moments(LAYOUT, named(released([table], 5.0)), [1.0], noise_std=5.0))


def test_the_sites_dependence_is_nearer_to_the_truth_drawn_together_than_alone():
    tables = unlike(300)
    exact = [Anchor.from_sum(LAYOUT, LAYOUT.sum(table), noise_std=0.0) for table in tables]
    margins = [one.frequencies.one_way for one in exact]
    alone = together = 0.0
    for seed in range(10):
        vectors = released(tables, 15.0, seed)
        anchors = [
            site.anchor for site in site_moments(LAYOUT, named(vectors), shares_of(tables), noise_std=15.0)
        ]
        drawn = _drawn_together(anchors, margins)
        for truth, own, better in zip(exact, anchors, drawn, strict=True):
            for name in ("interactions", "label_interactions"):
                wanted = getattr(truth.frequencies, name)
                alone += float((getattr(own.frequencies, name) - wanted).square().sum())
                together += float((getattr(better.frequencies, name) - wanted).square().sum())
    assert together < 0.5 * alone


def test_without_noise_every_site_keeps_its_own_dependence():
    tables = unlike(4_000)
    anchors = [
        site.anchor
        for site in site_moments(
            LAYOUT, named([LAYOUT.sum(table) for table in tables]), shares_of(tables), noise_std=1e-3
        )
    ]
    margins = [one.frequencies.one_way for one in anchors]
    for own, drawn in zip(anchors, _drawn_together(anchors, margins), strict=True):
        torch.testing.assert_close(
            drawn.frequencies.interactions, own.frequencies.interactions, atol=1e-3, rtol=0
        )
        torch.testing.assert_close(
            drawn.frequencies.label_interactions, own.frequencies.label_interactions, atol=1e-3, rtol=0
        )


def test_a_site_counts_for_its_share_and_the_order_of_components_does_not_tell_sites_apart():
    tables, study = unlike(), make_study()
    sites = site_moments(LAYOUT, named(released(tables, 8.0)), [0.7, 0.2, 0.1], noise_std=8.0)

    def fit(anchor, components):
        return fit_mixture(anchor, plan_fit(study, anchor))

    generator = fit_by_site(sites, fit).requires_grad_(False)
    assert float(generator.weights().sum()) == pytest.approx(1.0, abs=1e-5)
    heavy = (generator.weights() > 0.5 * generator.weights().max()).nonzero().flatten()
    assert len(heavy) == generator.num_components // 3  # those of the site that counts for most
    assert float(heavy.double().mean()) == pytest.approx(generator.num_components / 2, rel=0.2)
    expected = sum(site.share * site.anchor.frequencies.one_way for site in sites)
    assert float((generator.one_way().double() - expected).abs().max()) < 0.05


def test_a_site_whose_noise_hides_its_patients_is_not_looked_at_alone():
    tables = [patients(400, lean=1.0, seed=0), patients(3, lean=1.0, seed=1)]
    with pytest.raises(AnchorError):
        site_moments(LAYOUT, named(released(tables, 60.0)), shares_of(tables), noise_std=60.0)
