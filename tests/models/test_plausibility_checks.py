"""What a reply cannot be: honest sites of any size and kind pass, broken and hostile ones are told in words."""

from __future__ import annotations

import pytest
import torch

from models.moments import MomentLayout
from models.plausibility import (
    ImplausibleError,
    check_judgements,
    check_moments,
    redundancy,
)
from models.refinement import LOGIT_BOUND
from models.table import EncodedTable

CARDS = (6, 9, 8, 7, 2)
LAYOUT = MomentLayout(CARDS, 4)


def table(n: int, seed: int, *, rows: int = 1, kind: str = "any") -> EncodedTable:
    source = torch.Generator().manual_seed(seed)
    codes = torch.stack([torch.randint(d, (n * rows,), generator=source) for d in CARDS], 1)
    if kind == "alike":  # every patient the same: the most extreme tables there are
        codes = codes[:1].expand(n * rows, -1)
    if kind == "tied":  # columns that determine each other
        codes = torch.stack([codes[:, 0] % d for d in CARDS], 1)
    return EncodedTable(codes, torch.arange(0, n * rows + 1, rows))


def noisy(exact: torch.Tensor, noise_std: float, seed: int) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return exact + noise_std * torch.randn(LAYOUT.size, generator=source, dtype=torch.float64)


def check(vector: torch.Tensor, noise_std: float) -> None:
    check_moments(LAYOUT, vector, noise_std=noise_std, sensitivity=LAYOUT.sensitivity)


@pytest.mark.parametrize("kind", ["any", "alike", "tied"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("n", "noise_std"), [(60, 4.0), (500, 4.0), (5_000, 60.0), (50_000, 1.0)])
def test_honest_sites_of_every_size_and_kind_pass(kind, rows, n, noise_std):
    exact = LAYOUT.sum(table(n, 0, rows=rows, kind=kind))
    for seed in range(40):
        check(noisy(exact, noise_std, seed), noise_std)


@pytest.mark.parametrize("kind", ["any", "alike", "tied"])
def test_honest_sites_pass_in_a_later_exchange_and_a_count_below_zero_does_not(kind):
    weights = torch.tensor([0.5, 3.0, 1.0, 0.2, 2.0], dtype=torch.float64)
    layout = LAYOUT.emphasised((weights[:, None] * weights).fill_diagonal_(1.0))
    exact = layout.sum(table(5_000, 0, kind=kind))
    for seed in range(40):
        check_moments(layout, noisy(exact, 20.0, seed), noise_std=20.0, sensitivity=layout.sensitivity)
    found = layout.read(exact)
    contrast = torch.tensor([[-300.0, 300.0], [300.0, -300.0]], dtype=torch.float64)  # sums stay as they are
    found.interactions[0:2, 6:8] += contrast
    found.interactions[6:8, 0:2] += contrast.T
    with pytest.raises(ImplausibleError, match="below zero"):
        check_moments(
            layout, noisy(layout.write(found), 1.0, 0), noise_std=1.0, sensitivity=layout.sensitivity
        )


def test_what_is_noise_for_certain_has_the_noises_size():
    exact, ratios = LAYOUT.sum(table(3_000, 1)), []
    for seed in range(200):
        energy, freedom = redundancy(LAYOUT, noisy(exact, 7.0, seed))
        ratios.append(energy / (freedom * 7.0**2))
    found = torch.tensor(ratios)
    assert float(found.mean()) == pytest.approx(1.0, abs=4 * (2 / freedom / 200) ** 0.5)
    assert float(found.std()) == pytest.approx((2 / freedom) ** 0.5, rel=0.2)  # chi-square's spread
    assert redundancy(LAYOUT, exact)[0] == pytest.approx(0.0, abs=1e-6)


EXACT = LAYOUT.sum(table(3_000, 2))
HONEST = noisy(EXACT, 10.0, 0)
HOSTILE = {
    "sign flip": (-HONEST, "within the noise of none"),
    "scaled with its noise": (1e6 * HONEST, "contradict each other"),
    "twice": (2 * HONEST, "contradict each other"),
    "zeros": (torch.zeros_like(HONEST), "times the noise that the study demands"),
    "no noise": (EXACT, "times the noise that the study demands"),
    "half the noise": (noisy(EXACT, 5.0, 0), "times the noise that the study demands"),
    "only noise": (noisy(0 * EXACT, 10.0, 3), "within the noise of none"),
    "shuffled": (HONEST.flip(0), "contradict each other"),
    "negative counts": (noisy(EXACT - LAYOUT.sum(table(900, 3, kind="alike")), 10.0, 1), "below zero"),
    "interactions turned": (
        noisy(
            torch.cat([tied[: LAYOUT.width], -tied[LAYOUT.width :]])
            if (tied := LAYOUT.sum(table(3_000, 4, kind="tied"))) is not None
            else EXACT,
            10.0,
            1,
        ),
        "below zero",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_vector_that_no_patients_can_make_is_told_in_words(name):
    vector, said = HOSTILE[name]
    with pytest.raises(ImplausibleError, match=said):
        check(vector, 10.0)


def test_a_tail_that_is_too_long_is_told_by_its_norm():
    more = torch.cat([HONEST, torch.full((50,), 1e6, dtype=torch.float64)])
    with pytest.raises(ImplausibleError, match="norm"):
        check_moments(LAYOUT, more, noise_std=10.0, sensitivity=2 * LAYOUT.sensitivity)


def test_one_column_is_enough():
    layout = MomentLayout((4,))
    codes = torch.arange(400)[:, None] % 4
    vector = layout.sum(EncodedTable(codes, torch.arange(401)))
    check_moments(layout, vector, noise_std=1.0, sensitivity=layout.sensitivity)


@pytest.mark.parametrize("counts", [(900, 100), (1000, 0), (1, 5, 900, 3)])
def test_one_column_whose_categories_are_not_equally_common_passes(counts):
    layout = MomentLayout((len(counts),), 0)
    codes = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))[:, None]
    exact = layout.sum(EncodedTable(codes, torch.arange(len(codes) + 1)))
    check_moments(layout, exact + 0.5, noise_std=1.0, sensitivity=layout.sensitivity)
    exact[int(exact.argmin())] = -30.0
    with pytest.raises(ImplausibleError, match=r"below zero|norm"):
        check_moments(layout, exact, noise_std=1.0, sensitivity=layout.sensitivity)


def test_judgements_that_no_round_gives_are_told_in_words():
    check_judgements(torch.tensor([0.0, LOGIT_BOUND, -LOGIT_BOUND]))
    with pytest.raises(ImplausibleError, match="sends 8 at most"):
        check_judgements(torch.tensor([0.0, 1.1 * LOGIT_BOUND]))
    with pytest.raises(ImplausibleError, match="no step was taken"):
        check_judgements(torch.full((5,), 3.0))
