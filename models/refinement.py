"""Refine: the anchored GAN. A site's part without its patients.

At a site the discriminator takes DP-SGD steps on patients against hard generated records. Then it judges records
that the shared generator draws alike for all sites, and what it says of them leaves: post-processing of DP-SGD. The
discriminator stays. What the coordinator makes of the judgements is `models.reweighting`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from models.generator import MixtureGenerator
from models.losses import fake_loss, real_loss
from models.study import RefineSettings, Study
from models.table import one_hot

PerRecordLoss = Callable[[Tensor], Tensor]
DpStep = Callable[[Tensor, PerRecordLoss, PerRecordLoss], None]

LOGIT_BOUND = 8.0
"""A judgement beyond this is sent as this: it tells of one patient in three thousand."""

FAKES = 60_000
"""Records that a round's fakes are taken from."""

RECORDS_AT_ONCE = 20_000
_FORGETS = 1 / 500
_OTHERS = 2**32  # seeds of judged records lie beyond those of fakes


def judge_records(
    study: Study,
    arrays: Mapping[str, Tensor],
    discriminator: nn.Module,
    *,
    round_number: int,
    dp_step: DpStep,
) -> dict[str, Tensor]:
    """One round at one site.

    The discriminator that judges is the moving average of the steps' (each has noise of its own, which averages out).

    Privacy: touches patients only through `dp_step`; the rest is post-processing of the discriminator.

    Args:
        study: its settings and schema.
        arrays: the shared generator, as sent by the coordinator.
        discriminator: the site's own; trained in place.
        round_number: of the run.
        dp_step: one DP-SGD step of the discriminator: (fakes, real_loss, fake_loss).

    Returns:
        `logits`: (num_judged,) float32 within `LOGIT_BOUND`, high for what looks like a patient.

    Raises:
        GeneratorError: the arrays are not of this study.

    References:
        Polyak, Juditsky: Acceleration of stochastic approximation by averaging, 1992.
        De et al.: Unlocking High-Accuracy Differentially Private Image Classification through Scale, 2022, section 3.
    """
    settings, cardinalities = study.refine, study.table.cardinalities
    generator = MixtureGenerator.from_arrays(arrays, cardinalities)
    fakes = generator.sample_codes(FAKES, generator=torch.Generator().manual_seed(round_number))
    average = AveragedModel(discriminator, avg_fn=_moving)
    for _ in range(settings.steps):
        picked = torch.randint(len(fakes), (study.expected_batch_size,))
        dp_step(one_hot(fakes[picked], cardinalities), real_loss, fake_loss)
        average.update_parameters(discriminator)
    judged = judged_records(generator, settings, round_number=round_number)
    with torch.no_grad():
        said = [average(one_hot(part, cardinalities)) for part in judged.split(RECORDS_AT_ONCE)]
    return {"logits": torch.cat(said).nan_to_num().clamp(-LOGIT_BOUND, LOGIT_BOUND)}


def judged_records(generator: MixtureGenerator, settings: RefineSettings, *, round_number: int) -> Tensor:
    """What all sites judge in a round, and the coordinator weighs: (num_judged, K) int64 codes."""
    source = torch.Generator().manual_seed(_OTHERS + round_number)
    return generator.sample_codes(settings.num_judged, generator=source)


def _moving(average: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
    """The mean of all steps at first, of about the last 500 later."""
    return average + (current - average) * max(_FORGETS, 1 / (int(steps) + 1))
