"""The benchmark of discriminators: every row costs the same epsilon, sites train on their own, sums hold the fit."""

import io

import images_metrics
import images_refine
import numpy as np
import pandas as pd
import pytest
import torch
from images_data import ImageData
from images_discriminator import (
    DiscriminatorPlan,
    FederatedDiscriminator,
    PictureDiscriminator,
    records_of,
    weights_of,
)
from images_looks import Sites, planned
from rich.console import Console

from models.image_schema import ImageSchema
from models.schema import CategoricalColumn, StudySchema

IMAGE = ImageSchema(size=8, conditioned_on=("way",))


def bars(count, seed, *, bright=180):
    source = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    pictures = torch.randint(0, 60, (count, 1, 8, 8), generator=source)
    pictures[labels == 0, :, :, 3:5] += bright
    pictures[labels == 1, :, 3:5] += bright
    return pictures.to(torch.uint8), labels


def bar_data(train=800, patients=None):
    ways = ("up", "across")
    parts = {}
    for part, count in (("train", train), ("test", 200)):
        pictures, labels = bars(count, len(parts))
        rows = pd.DataFrame({"patient": (np.arange(count) % (patients or count)).astype(str)})
        rows["way"] = [ways[label] for label in labels]
        parts[part] = pictures, rows
    column = CategoricalColumn(kind="categorical", name="way", categories=ways)
    return ImageData(
        name="bars",
        table=StudySchema(columns=(column,), label="way", patient_id="patient"),
        image=IMAGE,
        train=parts["train"][0],
        train_rows=parts["train"][1],
        test=parts["test"][0],
        test_rows=parts["test"][1],
    )


def options_of(*words):
    return images_refine.read_arguments(["--sample-rate", "0.1", "--discriminator-steps", "12", *words])


@pytest.mark.parametrize("title", list(images_refine.ROWS))
@pytest.mark.parametrize("epsilon", [1.0, 10.0])
def test_every_row_costs_the_same_epsilon_and_has_the_same_steps(title, epsilon):
    looks, opposed = images_refine.ROWS[title]
    row = planned(bar_data(), looks, opposed, epsilon, options_of("--steps", "900"))
    assert 0.98 * epsilon < row.plan.spend.epsilon <= epsilon
    assert row.study.measure.exchanges == looks
    assert (row.plan.refine_noise_multiplier is not None) == opposed
    last = 900 // (looks + 1) if opposed else 0
    assert row.study.warm_start.image.steps + last == 900


def test_a_discriminator_leaves_the_measurement_less_of_epsilon():
    noise = [planned(bar_data(), 1, opposed, 3.0, options_of()).plan for opposed in (False, True)]
    alone, beside = (plan.measure_noise_multiplier for plan in noise)
    assert beside > 1.3 * alone


def test_sites_hold_every_patient_once_and_refuse_several_pictures_of_one():
    tables = Sites(bar_data(), 3).tables
    assert sum(len(table.codes) for table in tables) == 800
    assert max(len(table.codes) for table in tables) - min(len(table.codes) for table in tables) <= 1
    with pytest.raises(SystemExit, match="several pictures"):
        Sites(bar_data(patients=300), 3)


def discriminator():
    pictures, _ = bars(400, 5, bright=90)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PictureDiscriminator(IMAGE, 2, pictures.float() / 255, width=4)


def records(module, bright, seed):
    pictures, codes = bars(300, seed, bright=bright)
    return records_of(module, pictures.float() / 255, codes)


def test_a_discriminator_looks_at_the_pictures_own_category():
    module = discriminator()
    pictures, codes = bars(50, 1)
    pictures = pictures.float() / 255
    both = [module(records_of(module, pictures, torch.full_like(codes, c))) for c in (0, 1)]
    assert not torch.allclose(*both)
    torch.testing.assert_close(
        module(records_of(module, pictures, codes)), torch.where(codes == 1, both[1], both[0])
    )


def test_pretraining_tells_categories_and_forgets_the_last_layer():
    module = discriminator()
    before = module.first.weight.clone()
    module.pretrain(*bars(300, 2), steps=5)
    assert not torch.equal(module.first.weight, before)
    assert float(module(records(module, 180, 3)).detach().abs().max()) == 0


def test_the_sites_discriminator_learns_what_tells_patients_from_fakes_within_the_steps_it_has():
    module = discriminator()
    sites = [records(module, 180, seed) for seed in (10, 11)]
    plan = DiscriminatorPlan(
        steps=30, sample_rate=0.2, noise_multiplier=0.3, batch_size=60, learning_rate=5e-3
    )
    federated = FederatedDiscriminator(module, sites, plan)
    fakes = records(module, 90, 12)
    federated.train(fakes, 20)
    assert federated.left == 10
    federated.train(fakes, 100)
    assert federated.left == 0
    with torch.no_grad():
        held_out = module(records(module, 180, 13))
        assert float((held_out[:, None] > module(fakes)).float().mean()) > 0.9
    after = {name: value.clone() for name, value in module.state_dict().items()}
    federated.train(fakes, 5)
    assert all(torch.equal(value, after[name]) for name, value in module.state_dict().items())


def test_weights_prefer_what_the_discriminator_takes_for_real_and_leave_the_categories_alone():
    module = discriminator()
    pictures, codes = bars(200, 4)
    weights = weights_of(module, pictures, codes, power=0.5)
    with torch.no_grad():
        logits = module(records_of(module, pictures.float() / 255, codes))
    for c in (0, 1):
        own = codes == c
        assert torch.equal(weights[own].argsort(), logits[own].argsort())
        assert float(weights[own].log().mean()) == pytest.approx(0, abs=1e-5)


def test_rows_run_are_shown_and_are_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(images_refine, "PICTURES", 400)
    monkeypatch.setattr(images_refine, "POOL_ROWS", 400)
    monkeypatch.setattr(images_metrics, "FRACTAL_CLASSES", 4)
    words = ["--steps", "12", "--classifier-steps", "10", "--keep", str(tmp_path / "kept"), "--sites", "2"]
    words += ["--set", "warm_start.image.width=4", "--rows", "real data", "one look, opposed"]
    options = options_of(*words, "--runs", "2", "--pictures", str(tmp_path / "sheets"))
    options.dataset = "bars"
    told = io.StringIO()
    found = images_refine.run(options, bar_data(200), Console(file=told))
    images_refine.show(found, options, Console(file=told, width=160))
    assert {name: len(runs) for name, runs in found.items()} == {
        "real data": 1,
        "epsilon 10, one look, opposed": 2,
        "epsilon 10, one look, opposed, weighed": 2,
    }
    assert "±" in told.getvalue()
    assert len(list((tmp_path / "sheets").iterdir())) == 2
    monkeypatch.setattr(images_refine, "fractal_network", None)  # a second call reads what the first kept
    assert images_refine.run(options, bar_data(200), Console(file=told)) == found
    options.strength = 0.7  # other settings are other runs
    with pytest.raises(TypeError):
        images_refine.run(options, bar_data(200), Console(file=told))
