"""The generator's step: weights from judgements, pairs kept, and a mixture that says what pairs cannot."""

import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.generator import MixtureGenerator
from models.refinement import judged_records
from models.reweighting import MOST, density_ratio, fit_to_records, refined_generator, scaled
from models.study import Study

COINS = (2, 2, 2)


def study_of(cardinalities, num_judged=20_000):
    columns = [
        {"kind": "categorical", "name": f"c{k}", "categories": [f"v{j}" for j in range(d)]}
        for k, d in enumerate(cardinalities)
    ]
    definition = {
        "name": "refine",
        "privacy": {"epsilon": 1.0, "delta": 1e-5},
        "measure": {"budget_share": 0.5},
        "refine": {"rounds": 1, "num_judged": num_judged, "power": 1.0},
        "table": {"columns": columns},
    }
    return Study.from_dict(json.loads(json.dumps(definition)))


def coins():
    """Three fair coins that know nothing of each other."""
    source = torch.Generator().manual_seed(0)
    return MixtureGenerator(0.01 * torch.randn(20, 6, generator=source), torch.zeros(20), COINS)


def parity(codes):
    return codes.sum(1) % 2 == 0


def test_a_parity_that_no_pair_says_is_learnt_from_judgements():
    study, before = study_of(COINS), coins()
    judged = judged_records(before, study.refine, round_number=2)
    logits = torch.where(parity(judged), math.log(1.9), math.log(0.1))  # 95 % of patients have it
    done = []
    after = refined_generator(study, before, logits, round_number=2, progress=done.append)
    drawn = after.sample_codes(40_000, generator=torch.Generator().manual_seed(1))
    assert 0.88 < float(parity(drawn).float().mean()) < 0.97
    for a, b in itertools.combinations(range(3), 2):
        table = torch.bincount(drawn[:, a] * 2 + drawn[:, b], minlength=4) / len(drawn)
        assert (table - 0.25).abs().max() < 0.015
    assert done == sorted(done)
    assert done[-1] == pytest.approx(1.0)


def test_judgements_that_say_nothing_change_nothing():
    source = torch.Generator().manual_seed(3)
    before = MixtureGenerator(1.5 * torch.randn(6, 9, generator=source), torch.zeros(6), (4, 2, 3))
    study = study_of((4, 2, 3))
    after = refined_generator(study, before, torch.full((20_000,), 5.0), round_number=2)
    assert (after.moments() - before.moments()).abs().max() < 0.015


@settings(max_examples=30, deadline=None)
@given(constant=st.floats(-50, 50), power=st.floats(0.05, 1), seed=st.integers(0, 9))
def test_a_constant_in_all_judgements_drops_out(constant, power, seed):
    logits = 3 * torch.randn(500, generator=torch.Generator().manual_seed(seed))
    weights = density_ratio(logits, power)
    assert torch.allclose(weights, density_ratio(logits + constant, power), rtol=1e-4)
    assert weights.min() >= math.exp(-MOST)
    assert weights.max() <= math.exp(MOST) * (1 + 1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1_000))
def test_scaled_weights_keep_every_pair(seed):
    source = torch.Generator().manual_seed(seed)
    codes = torch.stack([torch.randint(d, (4_000,), generator=source) for d in (3, 2, 4)], 1)
    weights = torch.exp(0.5 * torch.randn(4_000, generator=source, dtype=torch.float64)) * (
        1 + 0.5 * (codes[:, 0] == codes[:, 1])
    )
    found = scaled(weights, codes, (3, 2, 4))
    assert found.sum() == pytest.approx(1)
    for a, b, d in ((0, 1, 2), (0, 2, 4), (1, 2, 4)):
        cell = codes[:, a] * d + codes[:, b]
        wanted, now = cell.bincount() / 4_000, cell.bincount(found)
        assert (wanted - now).abs().max() < 0.004


def test_of_many_pairs_those_furthest_off_are_scaled():
    cards = (2,) * 30  # 435 pairs
    source = torch.Generator().manual_seed(0)
    codes = torch.randint(2, (20_000, 30), generator=source)
    weights = (1 + 2.0 * (codes[:, 4] == codes[:, 17])).double()
    cell = codes[:, 4] * 2 + codes[:, 17]
    found = cell.bincount(scaled(weights, codes, cards))
    assert (found - cell.bincount() / 20_000).abs().max() < 1e-6


def test_a_level_that_was_hardly_drawn_stays_possible():
    codes = torch.zeros(5_000, 2, dtype=torch.int64)
    codes[0] = torch.tensor([1, 1])
    fitted = fit_to_records(codes, torch.full((5_000,), 1 / 5_000, dtype=torch.float64), (2, 2))
    assert fitted.probabilities()[:, 1].min() > 0
    assert fitted.one_way().detach()[1].item() == pytest.approx(1 / 5_000, rel=0.7)
