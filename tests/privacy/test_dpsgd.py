"""One DP-SGD step of a discriminator: what it draws, adds, divides by, and refuses."""

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional

from privacy.bookkeeping import BookKeepingClip, GradientSums
from privacy.dpsgd import DiscriminatorTrainer, poisson_sample
from privacy.mechanisms import public_grid
from privacy.module_checks import UnsupportedModuleError
from privacy.noise import SystemNoise

torch.set_num_threads(1)


def real_loss(scores):
    return functional.softplus(-scores.squeeze(1))


def fake_loss(scores):
    return functional.softplus(scores.squeeze(1))


class Silence:
    """No noise and chosen coins: shows the exact sums. For tests only."""

    kind = "test"

    def __init__(self, coins=None):
        self.coins = coins

    def normal(self, shape, *, scale=1.0):
        return torch.zeros(shape, dtype=torch.float64)

    def uniform(self, n):
        return torch.full((n,), 1e-9, dtype=torch.float64) if self.coins is None else self.coins[:n]


def discriminator():
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))


def trainer_of(module, *, noise=None, **changes):
    numbers = {
        "sample_rate": 0.5,
        "noise_multiplier": 1.0,
        "max_grad_norm": 0.3,
        "nominal_batch_size": 20,
        "physical_batch_size": 16,
    } | changes
    return DiscriminatorTrainer(
        module, torch.optim.SGD(module.parameters(), lr=1.0), noise=noise or SystemNoise(), **numbers
    )


def flat(module):
    return torch.cat([p.detach().double().flatten() for p in module.parameters()])


def moved(module, trainer, *args):
    """What one step adds to the parameters, times -1: the released gradient, as the learning rate is 1."""
    before = flat(module)
    trainer.step(*args)
    return before - flat(module)


def clipped(module, records, loss, max_grad_norm=0.3):
    clip = BookKeepingClip(module, max_grad_norm=max_grad_norm)
    sums = GradientSums(clip.parameters)
    if len(records):
        clip.add_clipped_sum(records, loss, sums)
    return sums.flat


PATIENTS, FAKES = torch.randn(50, 6), torch.randn(30, 6)


@pytest.mark.parametrize("clipping", ["book-keeping", "opacus-hooks"])
@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_without_noise_a_step_is_the_clipped_sums_over_the_public_divisor(clipping):
    coins = torch.rand(50, dtype=torch.float64)
    module = discriminator()
    expected = clipped(module, PATIENTS[coins < 0.5], real_loss) + clipped(module, FAKES, fake_loss)
    trainer = trainer_of(module, noise=Silence(coins), clipping=clipping)
    gradient = moved(module, trainer, PATIENTS, FAKES, real_loss, fake_loss)
    # The grid's half-step on every parameter, and float32 parameters, lie between the two.
    assert (gradient * 20 - expected).abs().max() < public_grid(0.3) / 2 + 1e-5


def test_nothing_of_a_step_is_left_in_the_next():
    module = discriminator()
    trainer = trainer_of(module, noise=Silence())
    trainer.step(PATIENTS, FAKES, real_loss, fake_loss)
    expected = clipped(module, PATIENTS, real_loss) + clipped(module, FAKES, fake_loss)
    gradient = moved(module, trainer, PATIENTS, FAKES, real_loss, fake_loss)
    assert (gradient * 20 - expected).abs().max() < public_grid(0.3) / 2 + 1e-4
    nothing = moved(module, trainer, PATIENTS[:0], FAKES[:0], real_loss, fake_loss)
    assert nothing.abs().max() == 0


@pytest.mark.parametrize("physical_batch_size", [1, 7, 50, 1000])
def test_the_physical_batch_size_changes_nothing(physical_batch_size):
    module = discriminator()
    whole = trainer_of(module, noise=Silence(), physical_batch_size=50)
    parts = trainer_of(module, noise=Silence(), physical_batch_size=physical_batch_size)
    expected = whole.clipped_patient_sum(PATIENTS, real_loss)
    assert (parts.clipped_patient_sum(PATIENTS, real_loss) - expected).norm() < 1e-5 * expected.norm()


def test_noise_on_the_released_gradient_has_the_claimed_scale_in_every_layer():
    module = nn.Sequential(nn.Linear(600, 700), nn.Tanh(), nn.Linear(700, 600), nn.Tanh(), nn.Linear(600, 1))
    trainer = trainer_of(module, noise_multiplier=1.7, max_grad_norm=2.0, nominal_batch_size=10)
    records = torch.randn(3, 600)
    before = [p.detach().double().clone() for p in module.parameters()]
    trainer.step(records[:0], records[:0], real_loss, fake_loss)
    for p, start in zip(module.parameters(), before, strict=True):
        noise = (start - p.detach().double()).flatten() * 10 / 3.4
        assert abs(float(noise.std()) - 1) < 5 / (2 * len(noise)) ** 0.5 if len(noise) > 1 else True
        if len(noise) > 1000:
            assert stats.kstest(noise.numpy(), "norm").pvalue > 1e-5


def test_an_empty_draw_still_gets_noise_and_counts_as_a_step():
    module = discriminator()
    trainer = trainer_of(module, noise=SystemNoise())
    gradient = moved(module, trainer, PATIENTS[:0], FAKES[:0], real_loss, fake_loss)
    assert (gradient != 0).float().mean() > 0.95
    assert trainer.steps_taken == 1


def test_generated_records_are_clipped_and_get_no_noise_of_their_own():
    module = discriminator()
    extreme = FAKES * 1e6
    expected = clipped(module, extreme, fake_loss)
    trainer = trainer_of(module, noise=Silence())
    gradient = moved(module, trainer, PATIENTS[:0], extreme, real_loss, fake_loss)
    assert (gradient * 20 - expected).norm() < 1e-4 * expected.norm()
    assert expected.norm() <= 30 * 0.3


def test_two_steps_on_the_same_data_never_carry_the_same_noise():
    gradients = []
    for _ in range(2):
        torch.manual_seed(0)
        module = discriminator()
        gradients.append(moved(module, trainer_of(module), PATIENTS[:0], FAKES[:0], real_loss, fake_loss))
    assert (gradients[0] == gradients[1]).sum() == 0


def test_patients_are_drawn_by_independent_coins_at_the_public_rate():
    noise, rate, draws = SystemNoise(), 0.1, 3000
    hits = torch.zeros(400)
    sizes = []
    for _ in range(draws):
        drawn = poisson_sample(400, rate, noise)
        hits[drawn] += 1
        sizes.append(len(drawn))
    # Every patient is drawn as often as every other, and the size varies as a binomial does: not fixed, not shuffled.
    assert stats.chisquare(hits.numpy()).pvalue > 1e-4
    assert abs(float(hits.sum()) / (draws * 400) - rate) < 5 * (rate * 0.9 / (draws * 400)) ** 0.5
    variance = torch.tensor(sizes, dtype=torch.float64).var()
    assert abs(float(variance) / (400 * rate * 0.9) - 1) < 0.2


def test_a_rate_of_one_draws_everyone_and_no_patients_draw_nobody():
    assert torch.equal(poisson_sample(50, 1.0, SystemNoise()), torch.arange(50))
    assert len(poisson_sample(0, 0.5, SystemNoise())) == 0


class TwoRecordsEach:
    """Patients with several records each, of which one is shown per draw."""

    def __init__(self, table):
        self.table = table
        self.asked = []

    @property
    def num_patients(self):
        return len(self.table)

    def gather(self, indices):
        self.asked.append(indices)
        return self.table[indices, torch.randint(0, self.table.shape[1], (len(indices),))]


def test_records_are_gathered_by_patient_never_by_record():
    patients = TwoRecordsEach(torch.randn(40, 2, 6))
    trainer = trainer_of(discriminator(), sample_rate=1.0)
    trainer.step(patients, FAKES, real_loss, fake_loss)
    assert torch.equal(torch.cat(patients.asked), torch.arange(40))


def test_several_records_in_one_draw_are_clipped_together_as_one_patient():
    module = discriminator()
    trainer = trainer_of(module, sample_rate=1.0, noise=Silence())
    one_patient = torch.randn(1, 9, 6) * 1e3
    total = trainer.clipped_patient_sum(one_patient, lambda scores: functional.softplus(-scores).mean((1, 2)))
    assert 0.29 < total.norm() <= 0.3


def test_the_event_says_what_ran():
    event = trainer_of(discriminator()).event(12)
    assert (event.kind, event.noise_multiplier, event.sample_rate) == ("subsampled_gaussian", 1.0, 0.5)
    assert (event.steps, event.max_grad_norm, event.phase) == (12, 0.3, "refine")


def test_a_step_beyond_the_authorised_ones_is_refused_before_anything_is_drawn():
    module = discriminator()
    trainer = trainer_of(module, authorised_steps=2)
    for _ in range(2):
        trainer.step(PATIENTS, FAKES, real_loss, fake_loss)
    before = flat(module)
    with pytest.raises(RuntimeError, match="2 steps were authorised"):
        trainer.step(PATIENTS, FAKES, real_loss, fake_loss)
    assert torch.equal(before, flat(module))


def test_a_step_that_breaks_half_way_counts_as_taken():
    trainer = trainer_of(discriminator(), authorised_steps=1)
    patients = TwoRecordsEach(torch.randn(40, 2, 5))  # one feature too few: the forward pass breaks
    with pytest.raises(RuntimeError, match="shapes"):
        trainer.step(patients, FAKES, real_loss, fake_loss)
    with pytest.raises(RuntimeError, match="authorised"):
        trainer.step(PATIENTS, FAKES, real_loss, fake_loss)


class CentredScores(nn.Module):
    """Subtracts the batch's mean: mixes records without any layer that says so."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 1)

    def forward(self, x):
        scores = self.inner(x)
        return scores - scores.mean(0)


def test_a_module_that_mixes_records_is_refused_at_the_first_step():
    with pytest.raises(UnsupportedModuleError, match="depends on another record"):
        trainer_of(CentredScores()).step(PATIENTS, FAKES, real_loss, fake_loss)


@pytest.mark.parametrize("which", ["real", "fake"])
def test_a_loss_that_mixes_records_is_refused_at_the_first_step(which):
    def relative(scores):
        return functional.softplus(scores.squeeze(1) - scores.mean())

    losses = (relative, fake_loss) if which == "real" else (real_loss, relative)
    with pytest.raises(UnsupportedModuleError, match="depends on another record"):
        trainer_of(discriminator()).step(PATIENTS, FAKES, *losses)


def test_a_mean_over_the_batch_is_refused_because_it_divides_by_a_secret():
    with pytest.raises(ValueError, match="secret"):
        trainer_of(discriminator()).step(PATIENTS, FAKES[:0], lambda s: real_loss(s).mean(), fake_loss)


def test_an_optimizer_over_other_parameters_is_refused():
    module = discriminator()
    with pytest.raises(ValueError, match="not the module's trainable ones"):
        DiscriminatorTrainer(
            module,
            torch.optim.SGD(module[0].parameters(), lr=1.0),
            sample_rate=0.5,
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            nominal_batch_size=1,
            physical_batch_size=1,
            noise=SystemNoise(),
        )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sample_rate", 0.0),
        ("sample_rate", 1.1),
        ("noise_multiplier", 0.0),
        ("noise_multiplier", float("nan")),
        ("max_grad_norm", -1.0),
        ("nominal_batch_size", 0),
        ("nominal_batch_size", float("inf")),
        ("physical_batch_size", 0),
        ("clipping", "none"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        trainer_of(discriminator(), **{field: value})


def test_training_separates_patients_from_generated_records():
    module = discriminator()
    noise = SystemNoise()
    trainer = DiscriminatorTrainer(
        module,
        torch.optim.Adam(module.parameters(), lr=5e-3),
        sample_rate=0.1,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        nominal_batch_size=200,
        physical_batch_size=64,
        noise=noise,
    )
    patients, fakes = torch.randn(2000, 6) + 1.0, torch.randn(200, 6) - 1.0
    for _ in range(100):
        trainer.step(patients, fakes, real_loss, fake_loss)
    with torch.no_grad():
        assert (module(patients) > 0).float().mean() > 0.9
        assert (module(fakes) < 0).float().mean() > 0.9
