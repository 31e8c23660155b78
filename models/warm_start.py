"""Warm start: fit the mixture to the summed noisy moments. Post-processing: no budget, as many steps as it takes.

The fit minimises the squared residuals of all measured frequencies, which is the Gaussian likelihood of the
noise, plus a penalty on the mutual information between the component and each column, whose weight follows the
noise: a dependence is believed as far as it explains more of the moments than noise would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.anchor import Anchor
from models.generator import MixtureGenerator
from models.moments import MomentLayout
from models.refinement import scores_of
from models.study import Study

Progress = Callable[[float], None]

INFORMATION_PER_NOISE = 1.5
"""Penalty on mutual information over the standard deviation of a frequency's noise.

The squared residuals that noise alone offers to a dependence grow with its variance, the information such a
dependence has to claim with its standard deviation, so the penalty is linear in the latter. The constant is
measured (docs/benchmarks.md); a factor of 2 either way costs little.
"""


@dataclass(frozen=True, kw_only=True)
class FitPlan:
    """How to fit, chosen from public numbers.

    Attributes:
        components: C.
        steps, learning_rate: of Adam with a cosine schedule.
        shrinkage: weight of the mutual information (nats, summed over columns) in the loss.
    """

    components: int
    steps: int
    learning_rate: float
    shrinkage: float


@dataclass(frozen=True)
class WarmStart:
    """What the warm start found.

    Attributes:
        generator: the fitted mixture.
        anchor: (size + 1,) the noisy frequencies and their noise; see `models.anchor.Anchor.to_tensor`.
        plan: how it was fitted.
    """

    generator: MixtureGenerator
    anchor: Tensor
    plan: FitPlan

    def scores(self) -> dict[str, float]:
        """Fit on the noisy moments; see `models.refinement.score`."""
        held = Anchor.from_tensor(MomentLayout(self.generator.cardinalities), self.anchor)
        return scores_of(self.generator, held)


def warm_start(
    study: Study,
    noisy_sum: Tensor,
    *,
    noise_std: float,
    num_releases: int,
    progress: Progress | None = None,
    seed: int = 0,
) -> WarmStart:
    """Fit a generator to the sites' noisy moments.

    Privacy: post-processing of what the sites released; costs nothing.

    Args:
        study: its schema and settings.
        noisy_sum: (size,) float64, the sites' vectors added up.
        noise_std: standard deviation of the noise in one entry of one site's vector.
        num_releases: how many sites' vectors were added, each with its own noise.
        progress: called with the done part, from 0 to 1.
        seed: of the components' first logits.

    Raises:
        AnchorError: the moments are not finite, or tell of no patients.
    """
    layout = MomentLayout(study.table.cardinalities)
    anchor = Anchor.from_sum(layout, noisy_sum, noise_std=noise_std * num_releases**0.5)
    plan = plan_fit(study, anchor)
    label = None if study.table.label is None else study.table.names.index(study.table.label)
    generator = fit_mixture(
        anchor, plan, label=label, label_weight=study.warm_start.label_weight, progress=progress, seed=seed
    )
    return WarmStart(generator, anchor.to_tensor(), plan)


def plan_fit(study: Study, anchor: Anchor) -> FitPlan:
    """Components and penalty by the noise."""
    settings, noise = study.warm_start, max(anchor.noise_std, 1e-7)
    components = settings.components or int(min(3000, max(300, 2.0 / noise)))
    return FitPlan(
        components=components,
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        shrinkage=settings.shrinkage * shrinkage_of(anchor),
    )


def shrinkage_of(anchor: Anchor) -> float:
    """The penalty on mutual information that the anchor's noise calls for."""
    return INFORMATION_PER_NOISE * anchor.noise_std


def fit_mixture(
    anchor: Anchor,
    plan: FitPlan,
    *,
    label: int | None = None,
    label_weight: float = 1.0,
    progress: Progress | None = None,
    seed: int = 0,
) -> MixtureGenerator:
    """Fit a mixture of products to noisy frequencies.

    Args:
        anchor: the frequencies.
        plan: how.
        label: index of the column whose pairs weigh `label_weight`.
        label_weight: above 0.
        progress: called with the done part.
        seed: of the first logits.
    """
    source = torch.Generator().manual_seed(seed)
    layout = anchor.layout
    start = anchor.one_way.clamp_min(1e-4).log().float()
    spread = 0.5 * torch.randn(plan.components, layout.width, generator=source)
    generator = MixtureGenerator(start + spread, torch.zeros(plan.components), layout.cardinalities)
    # Equal weights: shapes and weights say the same twice, and free weights fit noise.
    generator.component_logits.requires_grad_(False)
    optimizer = torch.optim.Adam([generator.logits], plan.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, plan.steps)
    for step in range(plan.steps):
        loss = anchor.loss(generator, label=label, label_weight=label_weight)
        if plan.shrinkage:
            loss = loss + plan.shrinkage * information(generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress is not None and (step % 10 == 9 or step + 1 == plan.steps):
            progress((step + 1) / plan.steps)
    return generator


def information(generator: MixtureGenerator) -> Tensor:
    """Mutual information between the component and each column, summed over columns; nats, 0 or more."""
    weights = generator.weights()
    logs = torch.cat([part.log_softmax(1) for part in generator.logits.split(generator.cardinalities, 1)], 1)
    P = logs.exp()
    mean = weights @ P
    return (weights[:, None] * P * logs).sum() - (mean * mean.clamp_min(1e-12).log()).sum()
