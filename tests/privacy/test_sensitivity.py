"""Adding or removing one patient changes a noise-free release by at most the clip, whatever the numbers are.

Hypothesis looks for a counter-example over records (tiny, huge, NaN, Inf, equal to one another), generated records,
batch sizes and modules. Each example runs the code that a site runs, with the noise taken out.
"""

import math

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from privacy.dpsgd import DiscriminatorTrainer
from privacy.mechanisms import bounded_sum

torch.set_num_threads(1)
ROOM = 1 + 1e-5
FEATURES = 4
quick = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
thorough = settings(quick, max_examples=5000)

numbers = st.one_of(
    st.floats(-10, 10, width=32),
    st.floats(width=32, allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, 1.0, -1.0, 1e4, -1e4, 1e-30, 1e30, math.nan, math.inf, -math.inf]),
)
records = st.lists(st.lists(numbers, min_size=FEATURES, max_size=FEATURES), min_size=1, max_size=12)
fakes = st.lists(st.lists(numbers, min_size=FEATURES, max_size=FEATURES), min_size=0, max_size=3)
clips = st.sampled_from([1e-3, 0.1, 1.0, 30.0])


class EveryoneNoNoise:
    """Draws every patient and adds nothing: the exact sums. For tests only."""

    kind = "test"

    def normal(self, shape, *, scale=1.0):
        return torch.zeros(shape, dtype=torch.float64)

    def uniform(self, n):
        return torch.full((n,), 1e-9, dtype=torch.float64)


def mlp(scale):
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.LayerNorm(5), nn.LeakyReLU(0.2), nn.Linear(5, 1)), scale


def conv(scale):
    layers = (
        nn.Unflatten(1, (1, 2, 2)),
        nn.Conv2d(1, 3, 2, padding=1),
        nn.GroupNorm(3, 3),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(27, 1),
    )
    return nn.Sequential(*layers), scale


def positions(scale):
    layers = (nn.Unflatten(1, (2, 2)), nn.Linear(2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6, 1))
    return nn.Sequential(*layers), scale


MODULES = {"mlp": mlp, "conv": conv, "positions": positions}


def real_loss(scores):
    return functional.softplus(-scores.squeeze(1))


def steep_loss(scores):
    return 1e6 * scores.squeeze(1) ** 3


def trainer_of(kind, scale, max_grad_norm, physical_batch_size=5):
    torch.manual_seed(11)
    module, factor = MODULES[kind](scale)
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(factor)
    return DiscriminatorTrainer(
        module,
        torch.optim.SGD(module.parameters(), lr=1.0),
        sample_rate=1.0,
        noise_multiplier=1.0,
        max_grad_norm=max_grad_norm,
        nominal_batch_size=1,
        physical_batch_size=physical_batch_size,
        noise=EveryoneNoNoise(),
    )


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, FEATURES)


def neighbours_stay_close(kind, rows, leaves, scale, max_grad_norm, physical_batch_size, loss):
    trainer = trainer_of(kind, scale, max_grad_norm, physical_batch_size)
    leaves %= len(rows)
    with_patient = trainer.clipped_patient_sum(tensor(rows), loss)
    without = trainer.clipped_patient_sum(tensor(rows[:leaves] + rows[leaves + 1 :]), loss)
    assert bool(torch.isfinite(with_patient).all())
    assert float((with_patient - without).norm()) <= max_grad_norm * ROOM


cases = st.tuples(
    st.sampled_from(sorted(MODULES)),
    records,
    st.integers(0, 11),
    st.sampled_from([0.0, 1e-3, 1.0, 50.0]),
    clips,
    st.integers(1, 13),
    st.sampled_from([real_loss, steep_loss]),
)


@quick
@given(case=cases)
@example(
    case=("mlp", [[1.0] * FEATURES], 0, 1.0, 1.0, 1, real_loss)
)  # the last patient leaves an empty batch
@example(case=("conv", [[math.nan] * FEATURES, [1e30] * FEATURES], 0, 50.0, 1.0, 2, steep_loss))
def test_one_patient_moves_the_discriminators_gradient_by_at_most_the_clip(case):
    neighbours_stay_close(*case)


@pytest.mark.slow
@thorough
@given(case=cases)
def test_one_patient_moves_the_discriminators_gradient_by_at_most_the_clip_in_many_more_cases(case):
    neighbours_stay_close(*case)


@settings(quick, max_examples=60)
@given(rows=records, generated=fakes, leaves=st.integers(0, 11), max_grad_norm=clips)
def test_one_patient_moves_the_whole_step_by_at_most_the_clip_whatever_the_generated_records(
    rows, generated, leaves, max_grad_norm
):
    leaves %= len(rows)
    ends = []
    for table in (rows, rows[:leaves] + rows[leaves + 1 :]):
        trainer = trainer_of("mlp", 1.0, max_grad_norm)
        trainer.step(tensor(table), tensor(generated), real_loss, real_loss)
        ends.append(torch.cat([p.grad.double().flatten() for p in trainer.module.parameters()]))
    assert bool(torch.isfinite(ends[0]).all())
    # Between them lie the public grid (half a step per parameter, on either side) and float32 of the result.
    width = 2.0 ** (math.floor(math.log2(max_grad_norm)) - 10) * len(ends[0]) ** 0.5
    float32 = 2.0**-23 * float(ends[0].norm() + ends[1].norm())
    assert float((ends[0] - ends[1]).norm()) <= max_grad_norm * ROOM + width + float32


@quick
@given(
    rows=st.lists(st.lists(st.floats(), min_size=3, max_size=3), min_size=1, max_size=12),
    leaves=st.integers(0, 11),
    max_norm=st.sampled_from([1e-3, 1.0, 40.0]),
)
def test_one_patient_moves_a_bounded_sum_by_at_most_the_bound(rows, leaves, max_norm):
    leaves %= len(rows)
    with_patient = bounded_sum(torch.tensor(rows, dtype=torch.float64), max_norm)
    rest = torch.tensor(rows[:leaves] + rows[leaves + 1 :], dtype=torch.float64).reshape(-1, 3)
    change = with_patient - bounded_sum(rest, max_norm)
    assert bool(torch.isfinite(with_patient).all())
    assert float(change.norm()) <= max_norm * ROOM


@pytest.mark.parametrize("same_direction", [True, False])
def test_rounding_in_a_full_physical_batch_stays_within_the_room(same_direction):
    """512 patients, all clipped; in the worst case all alike, so that the float32 sum is 512 clips long."""
    torch.manual_seed(2)
    module = nn.Sequential(nn.Linear(150, 256), nn.LeakyReLU(0.2), nn.Linear(256, 1))
    table = (
        (torch.ones(512, 150) + 0.01 * torch.rand(512, 150)) if same_direction else torch.randn(512, 150) * 9
    )
    trainer = DiscriminatorTrainer(
        module,
        torch.optim.SGD(module.parameters(), lr=1.0),
        sample_rate=1.0,
        noise_multiplier=1.0,
        max_grad_norm=0.01,
        nominal_batch_size=1,
        physical_batch_size=512,
        noise=EveryoneNoNoise(),
    )
    with_patient = trainer.clipped_patient_sum(table, real_loss)
    for leaves in (0, 100, 511):
        rest = torch.cat([table[:leaves], table[leaves + 1 :]])
        change = with_patient - trainer.clipped_patient_sum(rest, real_loss)
        assert float(change.norm()) <= 0.01 * ROOM
