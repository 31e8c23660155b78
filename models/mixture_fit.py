"""How one mixture is fitted to noisy frequencies, and how strongly it is held back from fitting noise.

The fit minimises the squared residuals of all measured frequencies, which is the Gaussian likelihood of the
noise, plus a penalty on the mutual information between the component and each column, whose weight follows the
noise: a dependence is believed as far as it explains more of the moments than noise would.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.anchor import THINNING, Anchor
from models.generator import MixtureGenerator
from models.study import Study

Progress = Callable[[float], None]

START_STEPS = 60

INFORMATION_PER_NOISE = 2.0
"""Penalty on mutual information over the standard deviation of a frequency's noise.

The squared residuals that noise alone offers to a dependence grow with its variance, the information such a
dependence has to claim with its standard deviation, so the penalty is linear in the latter. The constant is
measured on Adult (docs/benchmarks.md), whose columns have many levels and hang together strongly.
"""

SHRINKAGES = (1.0, 1.5, 2.0, 3.0)
"""The multiples of the penalty of which the noisy moments choose one, from weak to strong."""

CHOOSING_DRAWS, CHOOSING_COMPONENTS = 3, 100
"""How often the moments are thinned for that choice, and how fine the shapes that it is made with are at most."""

WIDE = 1_000
"""One-hot width from which on one thinning is enough: so many pairs of levels leave little to chance."""


@dataclass(frozen=True, kw_only=True)
class FitPlan:
    """How to fit, chosen from public numbers.

    Attributes:
        components: C.
        steps: at most so many iterations of L-BFGS, after a start of `START_STEPS` steps with Adam.
        learning_rate: of that start.
        shrinkage: weight of the mutual information (nats, summed over columns) in the loss.
    """

    components: int
    steps: int
    learning_rate: float
    shrinkage: float


def plan_fit(study: Study, anchor: Anchor) -> FitPlan:
    """Components and penalty by the noise; of a penalty that is to be chosen, the multiple 1."""
    settings, noise, width = study.warm_start, max(anchor.noise_std, 1e-5), anchor.layout.width
    # Finer shapes where the noise lets them be seen; a step costs components x width^2.
    components = settings.components or int(
        min(max(100.0, 15 / noise**0.5), 1_500.0, max(100.0, 1e9 / width**2))
    )
    return FitPlan(
        components=components,
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        shrinkage=(1.0 if settings.shrinkage is None else settings.shrinkage) * shrinkage_of(anchor),
    )


def shrinkage_of(anchor: Anchor) -> float:
    """The penalty on mutual information that the anchor's noise calls for."""
    return INFORMATION_PER_NOISE * anchor.noise_std


def fit_mixture(
    anchor: Anchor,
    plan: FitPlan,
    *,
    label_weight: float = 1.0,
    progress: Progress | None = None,
    seed: int = 0,
    start: MixtureGenerator | None = None,
) -> MixtureGenerator:
    """Fit a mixture of products to noisy frequencies.

    Args:
        anchor: the frequencies.
        plan: how.
        label_weight: of columns and pairs with the label, above 0.
        progress: called with the done part.
        seed: of the first logits.
        start: a fit to go on from, which stays as it is; else from the columns' frequencies.

    References:
        Liu, Nocedal: On the limited memory BFGS method for large scale optimization, 1989.
    """
    generator = _first_guess(anchor, plan.components, seed) if start is None else copy.deepcopy(start)
    # Equal weights: shapes and weights say the same twice, and free weights fit noise.
    generator.component_logits.requires_grad_(False)
    told = progress or (lambda _: None)
    # In units in which steps and tolerances of the line search are sensible.
    unit = 1e-3 / max(anchor.noise_std, 1e-5) ** 2

    def loss() -> Tensor:
        penalty = plan.shrinkage * information(generator) if plan.shrinkage else 0.0
        return (anchor.loss(generator, label_weight=label_weight) + penalty) * unit

    adam = torch.optim.Adam([generator.logits], plan.learning_rate)
    for step in range(START_STEPS if start is None else 0):
        adam.zero_grad()
        loss().backward()
        adam.step()
        told(step / (START_STEPS + plan.steps))
    _descend(
        generator, loss, plan.steps, lambda done: told((START_STEPS + done) / (START_STEPS + plan.steps))
    )
    told(1.0)
    return generator


def _first_guess(anchor: Anchor, components: int, seed: int) -> MixtureGenerator:
    """The columns' frequencies, each component a little off."""
    source, layout = torch.Generator().manual_seed(seed), anchor.layout
    middle = anchor.frequencies.one_way.clamp_min(1e-4).log().float()
    spread = 0.5 * torch.randn(components, layout.width, generator=source)
    return MixtureGenerator(middle + spread, torch.zeros(components), layout.cardinalities)


def _descend(
    generator: MixtureGenerator, loss: Callable[[], Tensor], steps: int, progress: Callable[[int], None]
) -> None:
    """L-BFGS until it stands still or `steps` iterations are done."""
    slice_steps = 10
    optimizer = torch.optim.LBFGS(
        [generator.logits],
        max_iter=slice_steps,
        max_eval=2 * slice_steps,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_change=1e-12,
        tolerance_grad=1e-10,
    )

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    before = float("inf")
    for done in range(0, steps, slice_steps):
        after = float(optimizer.step(evaluate).detach())  # at the start of the slice
        if before - after < 1e-4 * abs(after):
            break
        before = after
        progress(done)


def information(generator: MixtureGenerator) -> Tensor:
    """Mutual information between the component and each column, summed over columns; nats, 0 or more."""
    weights = generator.weights()
    logs = torch.cat([part.log_softmax(1) for part in generator.logits.split(generator.cardinalities, 1)], 1)
    P = logs.exp()
    mean = weights @ P
    return (weights[:, None] * P * logs).sum() - (mean * mean.clamp_min(1e-12).log()).sum()


def choose_shrinkage(
    anchor: Anchor,
    plan: FitPlan,
    *,
    label_weight: float = 1.0,
    progress: Progress | None = None,
    seed: int = 0,
) -> float:
    """Which of `SHRINKAGES` fits what was not fitted to best.

    Fits to one half of the thinned moments, with the weakest penalty first and each from the one before, until the
    other half is met worse. Privacy: post-processing of the noisy moments; no patient is asked.

    Args:
        anchor: the noisy moments.
        plan: how to fit; its penalty is that of multiple 1.
        label_weight: as `fit_mixture`.
        progress: called with the done part.
        seed: of the thinning and of first logits.
    """
    if not anchor.noise_std or not plan.shrinkage:
        return 1.0
    told, factor = progress or (lambda _: None), (1 + THINNING**2) ** 0.5
    draws = CHOOSING_DRAWS if anchor.layout.width < WIDE else 1
    halves = [anchor.thinned(seed=seed + draw) for draw in range(draws)]
    fits: list[MixtureGenerator | None] = [None] * draws
    plan = replace(plan, components=min(plan.components, CHOOSING_COMPONENTS))
    best, least = SHRINKAGES[0], float("inf")
    for place, multiple in enumerate(SHRINKAGES):
        stronger, missed = replace(plan, shrinkage=multiple * factor * plan.shrinkage), 0.0
        for draw, (fitted_to, judged_by) in enumerate(halves):
            fitted = fit_mixture(fitted_to, stronger, label_weight=label_weight, seed=seed, start=fits[draw])
            with torch.no_grad():
                missed += float(judged_by.loss(fitted, label_weight=label_weight))
            fits[draw] = fitted
            told((place + (draw + 1) / draws) / len(SHRINKAGES))
        if missed >= least:
            break
        best, least = multiple, missed
    return best
