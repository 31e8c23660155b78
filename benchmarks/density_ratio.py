"""What the adversarial phase could bring: a discriminator trained under DP, used to weigh records instead of to push.

    python benchmarks/density_ratio.py --dataset parity --epsilon 10 3
    python benchmarks/density_ratio.py --data DIR --dataset adult --epsilon 10

Not the product: all patients at one site, a warm start from a part of epsilon, then DP-SGD of one discriminator against
its records with the rest. exp(D) estimates how much likelier a record is among patients than among generated ones, so
generated records are drawn again with these weights (to a power below 1, since a discriminator is too sure), which are
then scaled until every pair of columns is as in the warm start. All of it after DP-SGD is post-processing.

References:
    Azadi, Olsson, Darrell, Goodfellow, Odena: Discriminator Rejection Sampling, ICLR 2019.
    Deming, Stephan: On a Least Squares Adjustment of a Sampled Frequency Table, 1940 (the scaling).
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from parity_data import load_parity
from rich.console import Console
from rich.table import Table
from tabular import FIGURES, codes_of, judge, make_study
from tabular_data import LOADERS, BenchmarkData, data_folder, load
from torch import Tensor

from models.discriminator import Discriminator
from models.encoding import one_hot
from models.generator import MixtureGenerator
from models.losses import fake_loss, real_loss
from models.measurement import Measurement
from models.study import Study
from models.study_generator import fit_study
from models.table import EncodedTable
from privacy.budget import PrivacyBudget
from privacy.calibration import calibrate_phases
from privacy.dpsgd import DiscriminatorTrainer
from privacy.events import MechanismEvent
from privacy.mechanisms import release_sum
from privacy.noise import SystemNoise

POOL = 200_000
DRAWN = 40_000
MOST = 3.0  # of the weights' logarithm
SCALINGS = 3


def calibrated(data: BenchmarkData, epsilon: float, share: float, steps: int) -> Study:
    """A study whose measurement has `share` of epsilon and whose discriminator `steps` steps."""
    changes = [f"measure.budget_share={share}"] if share < 1 else []
    if share < 1:
        changes += ["refine.rounds=1", "refine.generator_steps=1", f"refine.discriminator_steps={steps}"]
        changes += ["refine.sample_rate=0.02", "refine.hidden_width=128"]
    study = make_study(data, epsilon=epsilon, delta=1e-5, changes=changes)
    plan = calibrate_phases(
        budget=PrivacyBudget(epsilon=epsilon, delta=1e-5),
        measure=[MechanismEvent.from_dict(study.mechanism("measure"))],
        refine=[MechanismEvent.from_dict(study.mechanism("refine"))] * study.refine.rounds,
        measure_share=share,
    )
    assert plan.measure_noise_multiplier is not None
    return study.calibrated(measure=plan.measure_noise_multiplier, refine=plan.refine_noise_multiplier)


def warm(study: Study, codes: np.ndarray) -> MixtureGenerator:
    """Measure the patients and fit."""
    patients = EncodedTable(codes=torch.from_numpy(codes), patient_offsets=torch.arange(len(codes) + 1))
    measurement = Measurement.of(study)
    multiplier = study.measure.noise_multiplier
    assert multiplier is not None
    noisy = release_sum(
        measurement.sum(patients),
        max_norm=measurement.sensitivity,
        noise_multiplier=multiplier,
        noise=SystemNoise(),
    )
    return fit_study(study, noisy, noise_std=multiplier * measurement.sensitivity).generator.table


def discriminator_of(study: Study, generator: MixtureGenerator, codes: np.ndarray) -> Discriminator:
    """Train one under DP-SGD, patients against the generator's records."""
    settings, sizes = study.refine, study.table.cardinalities
    assert settings.noise_multiplier is not None
    records = one_hot(torch.from_numpy(codes), sizes)
    fakes = one_hot(generator.sample_codes(60_000, generator=torch.Generator().manual_seed(0)), sizes)
    module = Discriminator(sum(sizes), settings.hidden_width)
    batch = int(settings.sample_rate * len(records))
    trainer = DiscriminatorTrainer(
        module,
        torch.optim.Adam(module.parameters(), lr=2e-3, betas=(0.5, 0.9)),
        sample_rate=settings.sample_rate,
        noise_multiplier=settings.noise_multiplier,
        max_grad_norm=settings.max_grad_norm,
        nominal_batch_size=batch,
        physical_batch_size=4096,
        noise=SystemNoise(),
    )
    for _ in range(settings.steps_per_round):
        trainer.step(records, fakes[torch.randint(len(fakes), (batch,))], real_loss, fake_loss)
    return module


def scaled(weights: Tensor, codes: np.ndarray, sizes: Sequence[int]) -> Tensor:
    """The weights (N,) brought to the pool's own pairs of columns, one pair after the other."""
    flat = torch.full_like(weights, 1 / len(weights))
    for _ in range(SCALINGS):
        for a, b in itertools.combinations(range(len(sizes)), 2):
            cell = torch.from_numpy(codes[:, a] * sizes[b] + codes[:, b])
            cells = sizes[a] * sizes[b]
            wanted, found = (torch.bincount(cell, weights=one, minlength=cells) for one in (flat, weights))
            weights = weights * (wanted / found.clamp_min(1e-12))[cell]
    return weights / weights.sum()


@torch.no_grad()
def drawn_again(
    generator: MixtureGenerator, discriminator: Discriminator, power: float, *, keep_pairs: bool
) -> np.ndarray:
    """Records of the generator drawn by their weights: (DRAWN, K)."""
    pool = generator.sample_codes(POOL, generator=torch.Generator().manual_seed(5))
    sizes = generator.cardinalities
    logits = torch.cat([discriminator(one_hot(part, sizes)) for part in pool.split(20_000)])
    weights = (power * logits).clamp(max=MOST).double().exp()
    weights = weights / weights.sum()
    if keep_pairs:
        weights = scaled(weights, pool.numpy(), sizes)
    return pool.numpy()[np.random.default_rng(0).choice(POOL, DRAWN, p=weights.numpy())]


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="folder with the data sets (default: FEDTWIN_DATA)")
    parser.add_argument("--dataset", choices=[*sorted(LOADERS), "parity"], default="parity")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[10.0])
    parser.add_argument("--share", type=float, default=0.5, help="of epsilon, for the measurement")
    parser.add_argument("--steps", type=int, default=1600, help="of DP-SGD")
    parser.add_argument("--power", type=float, default=0.5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    made_up = arguments.dataset == "parity"
    data = load_parity() if made_up else load(arguments.dataset, data_folder(arguments.data))
    codes = codes_of(data.one_row_each(), data)
    table = Table(title=f"{arguments.dataset}: one site, delta 1e-5, one run")
    for name in ("epsilon", "records", *FIGURES.values()):
        table.add_column(name, justify="left" if name == "records" else "right")

    def add(epsilon: str, name: str, rows: np.ndarray) -> None:
        found = judge(rows, data)
        table.add_row(epsilon, name, *(f"{found[figure]:.4f}" for figure in FIGURES))

    add("", "real data", codes)
    for epsilon in arguments.epsilon:
        told = f"{epsilon:g}"
        whole = warm(calibrated(data, epsilon, 1.0, 0), codes)
        source = torch.Generator().manual_seed(1)
        add(told, "warm start, all of epsilon", whole.sample_codes(DRAWN, generator=source).numpy())
        study = calibrated(data, epsilon, arguments.share, arguments.steps)
        generator = warm(study, codes)
        add(
            told,
            f"warm start, {arguments.share:g} of it",
            generator.sample_codes(DRAWN, generator=source).numpy(),
        )
        judge_of = discriminator_of(study, generator, codes)
        for keep in (False, True):
            name = "weighed, pairs kept" if keep else "weighed"
            add(told, name, drawn_again(generator, judge_of, arguments.power, keep_pairs=keep))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
