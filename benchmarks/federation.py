"""The seam between the benchmarks and the product: sites' tables in, a trained generator out.

Each site's noise comes from the product's own noise source, so two runs with one seed differ; `seed` only moves
what is not private.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch

from models.discriminator import Discriminator
from models.encoding import encode_table
from models.generator import MixtureGenerator
from models.moments import MomentLayout
from models.refinement import aggregate, refine_generator, score
from models.study import Study
from models.table import EncodedTable, one_hot
from models.warm_start import warm_start
from privacy.budget import PrivacyBudget
from privacy.calibration import calibrate_phases
from privacy.dpsgd import DiscriminatorTrainer
from privacy.events import MechanismEvent
from privacy.mechanisms import release_sum
from privacy.noise import SystemNoise


def calibrated(study: Study) -> Study:
    """The study with the noise that its budget needs."""
    plan = calibrate_phases(
        budget=PrivacyBudget(epsilon=study.privacy.epsilon, delta=study.privacy.delta),
        measure=MechanismEvent.from_dict(study.mechanism("measure")),
        refine=[MechanismEvent.from_dict(study.mechanism("refine"))] * study.refine.rounds,
        measure_share=study.measure.budget_share,
    )
    assert plan.measure_noise_multiplier is not None
    return study.calibrated(measure=plan.measure_noise_multiplier, refine=plan.refine_noise_multiplier)


def train_federation(study: Study, tables: Sequence[pd.DataFrame], *, seed: int) -> MixtureGenerator:
    """Measure, warm-start and refine over sites that each add their own noise."""
    return train_encoded(study, [encode_table(table, study.table) for table in tables], seed=seed)


def train_encoded(study: Study, tables: Sequence[EncodedTable], *, seed: int) -> MixtureGenerator:
    """As `train_federation`, from tables that are encoded already."""
    study = study if study.is_calibrated else calibrated(study)
    layout, noise = MomentLayout(study.table.cardinalities), SystemNoise()
    multiplier = study.measure.noise_multiplier
    assert multiplier is not None
    total = torch.zeros(layout.size, dtype=torch.float64)
    for table in tables:
        total += release_sum(
            layout.sum(table), max_norm=layout.sensitivity, noise_multiplier=multiplier, noise=noise
        )
    fitted = warm_start(
        study, total, noise_std=multiplier * layout.sensitivity, num_releases=len(tables), seed=seed
    )
    if study.refine.rounds == 0:
        return fitted.generator
    return _refine(study, tables, fitted.generator.to_arrays(), {"anchor": fitted.anchor}, noise)


def _refine(
    study: Study,
    tables: Sequence[EncodedTable],
    generator: dict[str, torch.Tensor],
    anchor: dict[str, torch.Tensor],
    noise: SystemNoise,
) -> MixtureGenerator:
    settings, cardinalities = study.refine, study.table.cardinalities
    assert settings.noise_multiplier is not None
    sites = []
    for table in tables:
        discriminator = Discriminator(sum(cardinalities), settings.hidden_width)
        trainer = DiscriminatorTrainer(
            discriminator,
            torch.optim.Adam(
                discriminator.parameters(), lr=settings.discriminator_learning_rate, betas=(0.5, 0.9)
            ),
            sample_rate=settings.sample_rate,
            noise_multiplier=settings.noise_multiplier,
            max_grad_norm=settings.max_grad_norm,
            nominal_batch_size=settings.nominal_batch_size,
            physical_batch_size=4096,
            noise=noise,
        )
        # One record per row: the benchmark's tables have one record per patient here.
        sites.append((discriminator, trainer, one_hot(table.codes, cardinalities)))
    best = (score(study, generator, anchor)["misfit"], generator)
    for _ in range(settings.rounds):
        updates = [
            refine_generator(
                study,
                {**generator, **anchor},
                discriminator,
                dp_step=lambda fakes, real, fake, trainer=trainer, rows=rows: trainer.step(
                    rows, fakes, real, fake
                ),
            )
            for discriminator, trainer, rows in sites
        ]
        generator = aggregate(generator, updates)
        misfit = score(study, generator, anchor)["misfit"]
        best = min(best, (misfit, generator), key=lambda found: (found[0], found[1] is not generator))
    return MixtureGenerator.from_arrays(best[1], cardinalities)
