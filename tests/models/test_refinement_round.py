"""The refine phase without patients: what a site does around its DP steps, and how a generator is scored."""

import json

import pytest
import torch

from models.anchor import Anchor
from models.discriminator import Discriminator
from models.generator import MixtureGenerator
from models.losses import fake_loss, generator_loss, real_loss
from models.moments import MomentLayout
from models.refinement import generator_step, refine_generator, score
from models.study import Study
from models.table import EncodedTable, one_hot

CARDS = (3, 4, 2)


@pytest.fixture
def study():
    columns = [
        {"kind": "categorical", "name": f"c{k}", "categories": [f"v{j}" for j in range(d)]}
        for k, d in enumerate(CARDS)
    ]
    return Study.from_dict(
        json.loads(
            json.dumps(
                {
                    "name": "refine",
                    "privacy": {"epsilon": 1.0, "delta": 1e-5},
                    "measure": {"budget_share": 0.5},
                    "refine": {"rounds": 1, "generator_steps": 3, "discriminator_steps": 2, "num_fakes": 32},
                    "table": {"columns": columns, "label": "c2"},
                }
            )
        )
    )


@pytest.fixture
def arrays():
    source = torch.Generator().manual_seed(0)
    generator = MixtureGenerator(torch.randn(8, sum(CARDS), generator=source), torch.zeros(8), CARDS)
    codes = torch.stack([torch.randint(d, (5_000,), generator=source) for d in CARDS], 1)
    layout = MomentLayout(CARDS, 2)
    vector = layout.sum(EncodedTable(codes, torch.arange(5_001)))
    anchor = Anchor.from_sum(layout, vector, noise_std=20.0)
    return {**generator.to_arrays(), "anchor": anchor.to_tensor()}


def test_patients_are_met_only_through_the_dp_step(study, arrays):
    discriminator, met = Discriminator(sum(CARDS), 16), []
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    update = refine_generator(
        study, arrays, discriminator, dp_step=lambda fakes, real, fake: met.append(fakes)
    )
    assert len(met) == study.refine.steps_per_round
    assert all(fakes.shape == (32, sum(CARDS)) and not fakes.requires_grad for fakes in met)
    # The generator's steps leave the discriminator as DP-SGD made it, gradients included.
    assert all(torch.equal(value, before[name]) for name, value in discriminator.state_dict().items())
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    assert set(update) == {"logits", "component_logits"}
    assert update["logits"].abs().sum() > 0


def test_the_anchor_pulls_the_generator_back_to_the_moments(arrays):
    anchor = Anchor.from_tensor(MomentLayout(CARDS, 2), arrays["anchor"])
    generator = MixtureGenerator.from_arrays(arrays, CARDS)
    optimizer = torch.optim.Adam(generator.parameters(), 0.05)
    before = anchor.loss(generator).item()
    for _ in range(60):
        generator_step(
            generator,
            Discriminator(sum(CARDS), 8),
            anchor,
            optimizer,
            num_fakes=64,
            temperature=0.5,
            anchor_weight=1e3,
        )
    assert anchor.loss(generator).item() < before / 5


def test_a_discriminator_that_knows_moves_the_generator_towards_the_truth(arrays):
    torch.manual_seed(0)
    generator = MixtureGenerator.from_arrays(arrays, CARDS)
    wanted = torch.zeros(500, len(CARDS), dtype=torch.int64)  # every patient has level 0 everywhere
    discriminator = Discriminator(sum(CARDS), 16)
    teach = torch.optim.Adam(discriminator.parameters(), 5e-3)
    optimizer = torch.optim.Adam(generator.parameters(), 0.05)
    anchor = Anchor.from_tensor(MomentLayout(CARDS, 2), arrays["anchor"])
    before = generator.one_way()[0].item()
    for _ in range(60):
        fakes = generator.hard_samples(128, 0.5).detach()
        loss = (
            real_loss(discriminator(one_hot(wanted, CARDS))).mean() + fake_loss(discriminator(fakes)).mean()
        )
        teach.zero_grad()
        loss.backward()
        teach.step()
        generator_step(
            generator, discriminator, anchor, optimizer, num_fakes=128, temperature=0.5, anchor_weight=0.0
        )
    assert generator.one_way()[0].item() > before + 0.2


def test_losses_are_one_per_record_and_non_saturating():
    logits = torch.tensor([-8.0, 0.0, 8.0], requires_grad=True)
    for loss in (real_loss, fake_loss, generator_loss):
        assert loss(logits).shape == (3,)
    (gradient,) = torch.autograd.grad(generator_loss(logits).sum(), [logits])
    assert gradient[0].abs() > 0.99  # a generated record that is told apart easily still teaches


def test_a_worse_generator_scores_worse(study, arrays):
    anchor = {"anchor": arrays["anchor"]}
    good = {name: arrays[name] for name in ("logits", "component_logits")}
    bad = {**good, "logits": good["logits"] * 8}
    assert score(study, bad, anchor)["residual"] > score(study, good, anchor)["residual"]
    assert score(study, bad, anchor)["misfit"] > score(study, good, anchor)["misfit"] > 0
