"""Pictures measured once or twice by sites that are all in this process: the product's mechanisms without its ledger.

For benchmarks that do with the same measurements what the product does not (`images_refine.py`).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from images import make_study
from images_data import ImageData
from torch import Tensor

from models.measurement import Measurement, base_of
from models.study import Study
from models.study_generator import StudyGenerator, base_of_next_exchange, fit_study
from models.table import EncodedTable
from privacy.budget import PrivacyBudget
from privacy.calibration import CalibratedPlan, calibrate_phases
from privacy.events import MechanismEvent
from privacy.mechanisms import release_sum
from privacy.noise import SystemNoise


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One row of the benchmark: a calibrated study, and the noise of its discriminator, if it has one."""

    study: Study
    plan: CalibratedPlan


class Sites:
    """Patients dealt to sites in turn. Sensitive: what leaves is noised here, by the product's mechanisms."""

    def __init__(self, data: ImageData, num_sites: int) -> None:
        codes = torch.stack([data.codes(data.train_rows, name) for name in data.table.names], 1)
        owners = np.unique(data.train_rows["patient"], return_inverse=True)[1]
        if len(np.unique(owners)) != len(owners):
            raise SystemExit(f"{data.name} has several pictures of a patient; this benchmark needs one each")
        picked = [torch.arange(len(codes))[site::num_sites] for site in range(num_sites)]
        self.tables = [
            EncodedTable(codes=codes[own], patient_offsets=torch.arange(len(own) + 1), images=data.train[own])
            for own in picked
        ]

    def measure(self, study: Study, measurement: Measurement) -> tuple[Tensor, float]:
        """The sites' noisy vectors added up, and the standard deviation of the noise in an entry."""
        multiplier = study.measure.noise_multiplier
        assert multiplier is not None
        noisy = [
            release_sum(
                measurement.sum(table),
                max_norm=measurement.sensitivity,
                noise_multiplier=multiplier,
                noise=SystemNoise(),
            )
            for table in self.tables
        ]
        scale = multiplier * measurement.sensitivity * math.sqrt(len(noisy))
        return torch.stack(noisy).sum(0), scale


def planned(
    data: ImageData, looks: int, opposed: bool, epsilon: float, options: argparse.Namespace
) -> Planned:
    """The study of a row, with noise that makes everything together cost epsilon."""
    # The fits' steps are in equal parts: after each look, and the last against the discriminator.
    steps = options.steps * looks // (looks + opposed)
    study = make_study(
        data,
        epsilon=epsilon,
        delta=options.delta,
        steps=steps,
        changes=[f"measure.exchanges={looks}", *options.set],
    )
    refine = MechanismEvent(
        phase="refine",
        kind="subsampled_gaussian",
        noise_multiplier=1.0,
        sample_rate=options.sample_rate,
        steps=options.discriminator_steps,
    )
    plan = calibrate_phases(
        budget=PrivacyBudget(epsilon=epsilon, delta=options.delta),
        measure=[MechanismEvent.from_dict(study.mechanism("measure"))] * looks,
        refine=[refine] if opposed else [],
        measure_share=options.share,
    )
    assert plan.measure_noise_multiplier is not None
    return Planned(study=study.calibrated(measure=plan.measure_noise_multiplier, refine=None), plan=plan)


def measured(study: Study, sites: Sites) -> tuple[StudyGenerator, Mapping[str, Tensor]]:
    """Measure as often as the study says, each time followed by a fit: the generator, and what it was fitted to."""
    kept: dict[str, Tensor] | None = None
    for exchange in range(study.measure.exchanges):
        measurement = Measurement.of(study, base_of(kept) if kept else None)
        noisy, noise_std = sites.measure(study, measurement)
        fitted = fit_study(study, noisy, noise_std=noise_std, measurement=measurement, earlier=kept)
        kept = fitted.generator.to_arrays() | fitted.anchor
        if exchange + 1 < study.measure.exchanges:
            kept |= base_of_next_exchange(fitted.generator)
    return fitted.generator, fitted.anchor
