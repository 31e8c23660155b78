"""The paid comparison: is the refined generator nearer to the patients than the one it was made from?

A site's patients say so by their log likelihoods, each within a bound, in one noisy number. Of all questions that a
generator can be asked with patients, this one is proper: no generator has a higher expected log likelihood than the
patients' own distribution.

References:
    Gneiting, Raftery: Strictly Proper Scoring Rules, Prediction, and Estimation, 2007, section 4 (logarithmic score).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from models.generator import GeneratorError, MixtureGenerator
from models.study import GAIN_BOUND, Study
from models.table import EncodedTable
from models.weights import arrays_under

BEFORE, AFTER = "before.", "after."
GAIN = "gain"
CONVINCING = 2.0
"""Standard deviations of the noise that a gain must exceed to be believed."""

_PATIENTS_AT_ONCE = 5_000


def base_of_comparison(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the sites are sent: both generators' arrays."""
    return {
        prefix + name: array
        for prefix, one in ((BEFORE, before), (AFTER, after))
        for name, array in one.items()
    }


def compared(study: Study, arrays: Mapping[str, Tensor]) -> tuple[MixtureGenerator, MixtureGenerator]:
    """Read what `base_of_comparison` gave.

    Raises:
        GeneratorError: the arrays are not two generators of this study.
    """
    names = [BEFORE, AFTER]
    unknown = sorted(name for name in arrays if not name.startswith(tuple(names)))
    if unknown:
        raise GeneratorError(f"a comparison is of two generators; {unknown} are of neither")
    before, after = (
        MixtureGenerator.from_arrays(arrays_under(arrays, prefix), study.table.cardinalities)
        for prefix in names
    )
    return before, after


@torch.no_grad()
def gain(before: MixtureGenerator, after: MixtureGenerator, table: EncodedTable) -> Tensor:
    """By how many nats `after` likes the patients better, summed over them: (1,) float64.

    Privacy: an exact sum over patients, each adding at most `GAIN_BOUND` either way (the mean over the patient's
        records, then clipped); to be noised before anything else. Unit: one patient; neighbours: one added or removed.
    """
    total = torch.zeros(1, dtype=torch.float64)
    for patients in torch.arange(table.num_patients).split(_PATIENTS_AT_ONCE):
        part = table.select(patients)
        codes = part.codes.long()
        off = (after.log_likelihood(codes) - before.log_likelihood(codes)).double()
        of_patient = torch.arange(part.num_patients).repeat_interleave(part.patient_offsets.diff())
        sums = torch.zeros(part.num_patients, dtype=torch.float64).index_add_(0, of_patient, off)
        means = sums / part.patient_offsets.diff()
        total += means.clamp(-GAIN_BOUND, GAIN_BOUND).sum()
    return total


def is_better(gain: float, *, noise_std: float, agreeing: float) -> bool:
    """Whether what the sites say speaks for the refined generator beyond doubt.

    Args:
        gain: the sites' gains as one.
        noise_std: standard deviation of the noise in it.
        agreeing: the part of the sites whose own noisy gain is above 0; below a half, one site's word, however loud,
            is not enough.
    """
    return gain > CONVINCING * noise_std and agreeing >= 0.5
