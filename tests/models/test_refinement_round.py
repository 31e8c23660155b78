"""The refine phase without patients: what a site does around its DP steps, and what it says of generated records."""

import json

import pytest
import torch

from models.discriminator import Discriminator
from models.generator import MixtureGenerator
from models.losses import fake_loss, real_loss
from models.refinement import LOGIT_BOUND, judge_records, judged_records
from models.study import Study
from models.table import one_hot

CARDS = (3, 4, 2)


@pytest.fixture
def study():
    columns = [
        {"kind": "categorical", "name": f"c{k}", "categories": [f"v{j}" for j in range(d)]}
        for k, d in enumerate(CARDS)
    ]
    definition = {
        "name": "refine",
        "privacy": {"epsilon": 1.0, "delta": 1e-5},
        "measure": {"budget_share": 0.5},
        "refine": {"rounds": 1, "steps": 6, "num_judged": 1_000},
        "federation": {"patients_per_site": 1_600},
        "table": {"columns": columns, "label": "c2"},
    }
    return Study.from_dict(json.loads(json.dumps(definition)))


@pytest.fixture
def generator():
    source = torch.Generator().manual_seed(0)
    return MixtureGenerator(torch.randn(8, sum(CARDS), generator=source), torch.zeros(8), CARDS)


def test_patients_are_met_only_through_the_dp_step(study, generator):
    discriminator, met = Discriminator(sum(CARDS), 16), []
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    found = judge_records(
        study,
        generator.to_arrays(),
        discriminator,
        round_number=2,
        dp_step=lambda fakes, real, fake: met.append((fakes, real, fake)),
    )
    assert len(met) == study.refine.steps
    assert all(fakes.shape == (32, sum(CARDS)) and fakes.sum() == 32 * len(CARDS) for fakes, _, _ in met)
    assert {(real, fake) for _, real, fake in met} == {(real_loss, fake_loss)}
    assert all(torch.equal(value, before[name]) for name, value in discriminator.state_dict().items())
    assert set(found) == {"logits"}
    assert found["logits"].shape == (1_000,)
    assert found["logits"].dtype == torch.float32


def test_what_is_judged_is_the_same_at_every_site_and_other_in_every_round(study, generator):
    again = MixtureGenerator.from_arrays(generator.to_arrays(), CARDS)
    second = judged_records(generator, study.refine, round_number=2)
    assert torch.equal(second, judged_records(again, study.refine, round_number=2))
    assert not torch.equal(second, judged_records(generator, study.refine, round_number=3))


def test_the_average_of_the_steps_judges_and_within_the_bound(study, generator):
    discriminator = Discriminator(sum(CARDS), 16)
    last = discriminator.layers[-1]

    def jolt(*_: object) -> None:  # bias goes 100, -100, 100, ...: the mean of all steps is near 0
        with torch.no_grad():
            last.weight.zero_()
            last.bias.copy_(torch.where(last.bias > 0, -100.0, 100.0))

    with torch.no_grad():
        last.bias.fill_(-1.0)
    calm = judge_records(study, generator.to_arrays(), discriminator, round_number=2, dp_step=jolt)["logits"]
    assert calm.abs().max() < 1.0

    def shout(*_: object) -> None:
        with torch.no_grad():
            last.bias.fill_(1e9)

    loud = judge_records(study, generator.to_arrays(), discriminator, round_number=2, dp_step=shout)["logits"]
    assert (loud == LOGIT_BOUND).all()


def test_a_discriminator_that_learns_likes_what_patients_look_like(study, generator):
    torch.manual_seed(0)
    study = study.model_copy(update={"refine": study.refine.model_copy(update={"steps": 200})})
    discriminator = Discriminator(sum(CARDS), 16)
    teach = torch.optim.Adam(discriminator.parameters(), 5e-3)
    patients = one_hot(torch.zeros(64, len(CARDS), dtype=torch.int64), CARDS)  # level 0 everywhere

    def step(fakes, real, fake):
        loss = real(discriminator(patients)).mean() + fake(discriminator(fakes)).mean()
        teach.zero_grad()
        loss.backward()
        teach.step()

    said = judge_records(study, generator.to_arrays(), discriminator, round_number=2, dp_step=step)["logits"]
    zeros = (judged_records(generator, study.refine, round_number=2) == 0).sum(1)
    assert said[zeros == 3].mean() > said[zeros == 1].mean() + 2 > said[zeros == 0].mean() + 2


def test_losses_are_one_per_record_and_rise_with_the_mistake():
    logits = torch.tensor([-8.0, 0.0, 8.0])
    assert torch.allclose(real_loss(logits), fake_loss(-logits))
    assert real_loss(logits).shape == (3,)
    assert (real_loss(logits).diff() < 0).all()
