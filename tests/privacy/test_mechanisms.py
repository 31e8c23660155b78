"""The Gaussian mechanism for bounded sums: scale, grid, refusal of what is not bounded."""

import pytest
import torch
from scipy import stats

from privacy.mechanisms import GRID_BITS, bounded_sum, public_grid, release_sum, round_to_grid_
from privacy.noise import SystemNoise

torch.set_num_threads(1)


def test_release_has_the_claimed_scale_and_distribution():
    values = torch.linspace(-1e6, 1e6, 1_000_000, dtype=torch.float64)
    released = release_sum(values, max_norm=3.0, noise_multiplier=0.7, noise=SystemNoise())
    errors = (released - values).numpy()
    assert abs(errors.std() / 2.1 - 1) < 0.005
    assert stats.kstest(errors / 2.1, "norm").pvalue > 1e-4


@pytest.mark.parametrize("scale", [1e-6, 0.37, 1.0, 2.0, 1000.0])
def test_grid_is_a_power_of_two_far_below_the_noise_and_far_above_float_spacing(scale):
    grid = public_grid(scale)
    assert torch.frexp(torch.tensor(grid, dtype=torch.float64)).mantissa.item() == 0.5
    assert 2.0**-GRID_BITS / 2 < grid / scale <= 2.0**-GRID_BITS
    assert grid > 2.0**-40 * scale


def test_every_released_value_is_a_multiple_of_the_public_grid():
    values = torch.randn(10_000, dtype=torch.float64) * 1e4
    released = release_sum(values, max_norm=1.0, noise_multiplier=1.3, noise=SystemNoise())
    steps = released / public_grid(1.3)
    assert torch.equal(steps, steps.round())


def test_rounding_is_exact_on_multiples_and_moves_nothing_by_more_than_half_a_step():
    grid = 2.0**-11
    on_grid = torch.arange(-1000, 1000, dtype=torch.float64) * grid
    assert torch.equal(round_to_grid_(on_grid.clone(), grid), on_grid)
    anywhere = torch.randn(10_000, dtype=torch.float64)
    assert float((round_to_grid_(anywhere.clone(), grid) - anywhere).abs().max()) <= grid / 2


def test_a_sum_within_bounds_is_the_plain_sum():
    rows = torch.randn(50, 7, dtype=torch.float64)
    rows /= rows.norm(dim=1, keepdim=True) * 1.5
    assert torch.allclose(bounded_sum(rows, 1.0), rows.sum(0), atol=1e-12)


def test_one_hot_outer_products_keep_their_direction_and_meet_the_bound():
    codes = torch.eye(5, dtype=torch.float64)[torch.tensor([0, 3, 4])].flatten()
    row = torch.outer(codes, codes).flatten().unsqueeze(0)  # norm 3
    clipped = bounded_sum(row, 2.0)
    assert clipped.norm().item() == pytest.approx(2.0)
    assert torch.allclose(clipped / 2.0, row[0] / 3.0)


def test_rows_with_nan_or_inf_count_as_zero():
    rows = torch.ones(4, 3, dtype=torch.float64)
    rows[1, 0] = float("nan")
    rows[2, 2] = -float("inf")
    assert torch.equal(bounded_sum(rows, 10.0), torch.full((3,), 2.0, dtype=torch.float64))


def test_no_patient_gives_zeros_which_still_get_noise():
    empty = bounded_sum(torch.empty(0, 4), 1.0)
    assert torch.equal(empty, torch.zeros(4, dtype=torch.float64))
    assert float(release_sum(empty, max_norm=1.0, noise_multiplier=1.0, noise=SystemNoise()).abs().min()) > 0


def test_the_input_is_left_as_it_was():
    values = torch.ones(5, dtype=torch.float64)
    release_sum(values, max_norm=1.0, noise_multiplier=1.0, noise=SystemNoise())
    assert torch.equal(values, torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_norm", 0.0), ("max_norm", float("nan")), ("noise_multiplier", 0.0), ("noise_multiplier", -1.0)],
)
def test_a_number_out_of_range_is_refused_by_name(field, value):
    numbers = {"max_norm": 1.0, "noise_multiplier": 1.0} | {field: value}
    with pytest.raises(ValueError, match=field):
        release_sum(torch.zeros(2), noise=SystemNoise(), **numbers)


def test_a_sum_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="no bounded sum"):
        release_sum(
            torch.tensor([1.0, float("nan")]), max_norm=1.0, noise_multiplier=1.0, noise=SystemNoise()
        )
