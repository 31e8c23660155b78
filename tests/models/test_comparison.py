"""The paid comparison: exact, bounded per patient, and in favour of whoever is nearer to the patients."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.comparison import base_of_comparison, compared, gain, is_better
from models.generator import GeneratorError, MixtureGenerator
from models.study import GAIN_BOUND, Study
from models.table import EncodedTable

CARDS = (3, 2)
STUDY = Study.from_dict(
    {
        "name": "compare",
        "privacy": {"epsilon": 1.0, "delta": 1e-5},
        "measure": {"budget_share": 0.5},
        "refine": {"rounds": 1},
        "table": {
            "columns": [
                {"kind": "categorical", "name": f"c{k}", "categories": [f"v{j}" for j in range(d)]}
                for k, d in enumerate(CARDS)
            ]
        },
    }
)


def mixture(seed, strength=1.0):
    source = torch.Generator().manual_seed(seed)
    return MixtureGenerator(
        strength * torch.randn(4, 5, generator=source), torch.randn(4, generator=source), CARDS
    )


def table_of(codes, counts=None):
    counts = torch.ones(len(codes), dtype=torch.int64) if counts is None else torch.tensor(counts)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return EncodedTable(codes=torch.as_tensor(codes), patient_offsets=offsets)


def test_log_likelihoods_are_those_of_the_distribution():
    generator = mixture(0)
    cells = torch.tensor(list(itertools.product(*(range(d) for d in CARDS))))
    likelihoods = generator.log_likelihood(cells).exp()
    assert float(likelihoods.sum()) == pytest.approx(1, abs=1e-5)
    drawn = generator.sample_codes(100_000, generator=torch.Generator().manual_seed(1))
    found = torch.bincount(drawn[:, 0] * 2 + drawn[:, 1], minlength=6) / 100_000
    assert torch.allclose(likelihoods, found, atol=0.01)


def test_patients_speak_for_the_generator_that_they_are_drawn_from():
    truth, other = mixture(0), mixture(1)
    patients = table_of(truth.sample_codes(4_000, generator=torch.Generator().manual_seed(2)))
    assert gain(other, truth, patients) > 100
    assert float(gain(other, truth, patients)) == pytest.approx(
        -float(gain(truth, other, patients)), rel=1e-4
    )
    assert gain(truth, truth, patients) == 0


@settings(max_examples=40, deadline=None)
@given(
    seeds=st.tuples(st.integers(0, 50), st.integers(51, 99)),
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    extra=st.integers(1, 3),
)
def test_one_patient_moves_the_sum_by_the_bound_at_most(seeds, counts, extra):
    before, after = (mixture(seed, strength=12.0) for seed in seeds)  # likelihoods that differ by far
    source = torch.Generator().manual_seed(seeds[0])
    codes = torch.stack([torch.randint(d, (sum(counts) + extra,), generator=source) for d in CARDS], 1)
    without = gain(before, after, table_of(codes[: sum(counts)], counts))
    added = gain(before, after, table_of(codes, [*counts, extra]))
    assert float((added - without).abs()) <= GAIN_BOUND + 1e-6
    assert STUDY.mechanism("compare")["max_grad_norm"] == repr(GAIN_BOUND)


def test_a_patient_with_many_records_has_one_voice():
    before, after = mixture(0), mixture(1)
    codes = torch.tensor([[0, 1], [0, 1], [0, 1], [2, 0]])
    thrice = gain(before, after, table_of(codes, [3, 1]))
    once = gain(before, after, table_of(codes[2:], [1, 1]))
    assert float(thrice) == pytest.approx(float(once), rel=1e-5)


def test_what_is_sent_reads_back_and_nothing_else_does():
    before, after = mixture(0), mixture(1)
    arrays = base_of_comparison(before.to_arrays(), after.to_arrays())
    read = compared(STUDY, arrays)
    assert [torch.equal(a.logits, b.logits) for a, b in zip(read, (before, after), strict=True)] == [
        True,
        True,
    ]
    with pytest.raises(GeneratorError, match="of neither"):
        compared(STUDY, {**arrays, "anchor": torch.zeros(3)})
    with pytest.raises(GeneratorError, match="missing"):
        compared(STUDY, {name: array for name, array in arrays.items() if name.startswith("before.")})


def test_only_a_gain_beyond_the_noise_is_believed():
    assert not is_better(19.0, noise_std=10.0, agreeing=1.0)
    assert is_better(21.0, noise_std=10.0, agreeing=0.5)
    assert not is_better(-100.0, noise_std=10.0, agreeing=1.0)


def test_one_loud_site_of_four_does_not_make_a_gain():
    assert not is_better(1e9, noise_std=10.0, agreeing=0.25)


def test_the_comparison_pays_less_than_a_measurement_and_is_part_of_the_plan():
    assert [STUDY.phase_of(number) for number in range(1, STUDY.num_rounds + 1)] == [
        "measure",
        "refine",
        "compare",
    ]
    calibrated = STUDY.calibrated(measure=3.0, refine=1.0)
    assert calibrated.mechanism("compare")["noise_multiplier"] == repr(4.0 * 3.0)
    assert calibrated.mechanism("compare")["kind"] == "gaussian"
