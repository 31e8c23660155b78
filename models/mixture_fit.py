"""How one mixture is fitted to noisy frequencies, and how strongly it is held back from fitting noise.

The fit minimises the squared residuals of all measured frequencies, which is the Gaussian likelihood of the
noise, plus a penalty on the mutual information between the component and each column, whose weight follows the
noise: a dependence is believed as far as it explains more of the moments than noise would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.anchor import THINNING, Anchor
from models.generator import MixtureGenerator
from models.mixture_objective import MixtureObjective
from models.study import Study

Progress = Callable[[float], None]

START_STEPS = 60
_SLICE_STEPS, _TOLERANCE = 10, 1e-3
"""The descent ends when so many iterations take off less than this part of the loss.

A closer fit follows the noise: at 1e-4 Adult's triples come out one per cent worse at epsilon 1, all else the same.
"""

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
        start: a fit to go on from, of equal weights; else from the columns' frequencies.

    References:
        Liu, Nocedal: On the limited memory BFGS method for large scale optimization, 1989.
    """
    told = progress or (lambda _: None)
    objective = MixtureObjective(
        anchor,
        shrinkage=plan.shrinkage,
        label_weight=label_weight,
        # In units in which steps and tolerances of the line search are sensible.
        unit=1e-3 / max(anchor.noise_std, 1e-5) ** 2,
    )
    if start is None:
        logits = torch.nn.Parameter(_first_guess(anchor, plan.components, seed))
        adam = torch.optim.Adam([logits], plan.learning_rate)
        for step in range(START_STEPS):
            logits.grad = objective(logits.detach())[1]
            adam.step()
            told(step / (START_STEPS + plan.steps))
    else:
        logits = start.logits.T.contiguous()
    logits = _descend(
        objective,
        logits.detach(),
        (anchor.frequencies.one_way.clamp_min(0.0) + max(anchor.noise_std, 1e-5)).float()[:, None],
        plan.steps,
        lambda done: told((START_STEPS + done) / (START_STEPS + plan.steps)),
    )
    told(1.0)
    # Equal weights: shapes and weights say the same twice, and free weights fit noise.
    return MixtureGenerator(logits.T.contiguous(), torch.zeros(logits.shape[1]), anchor.layout.cardinalities)


def _first_guess(anchor: Anchor, components: int, seed: int) -> Tensor:
    """Logits (D, C): the columns' frequencies, each component a little off."""
    source, width = torch.Generator().manual_seed(seed), anchor.layout.width
    middle = anchor.frequencies.one_way.clamp_min(1e-4).log().float()
    spread = 0.5 * torch.randn(components, width, generator=source)
    return (middle + spread).T.contiguous()


def _descend(
    objective: MixtureObjective,
    logits: Tensor,
    frequencies: Tensor,
    steps: int,
    progress: Callable[[int], None],
) -> Tensor:
    """L-BFGS until it stands still or `steps` iterations are done.

    A level's logits bear on the loss in proportion to its frequency, so that what is descended in is logits times its
    root.

    Args:
        objective: of (D, C) logits.
        logits: (D, C) to start from.
        frequencies: (D, 1) of the levels, above 0.
        steps: at most so many iterations.
        progress: called with the iterations done.
    """
    scale = (frequencies.log().mean() / 2).exp() / frequencies.sqrt()
    scaled = torch.nn.Parameter(logits / scale)
    optimizer = torch.optim.LBFGS(
        [scaled],
        max_iter=_SLICE_STEPS,
        max_eval=2 * _SLICE_STEPS,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_change=1e-12,
        tolerance_grad=1e-10,
    )

    def evaluate() -> float:
        value, gradient = objective(scaled.detach() * scale)
        scaled.grad = gradient.mul_(scale)
        return value

    before = float("inf")
    for done in range(0, steps, _SLICE_STEPS):
        after = float(optimizer.step(evaluate))  # at the start of the slice
        if before - after < _TOLERANCE * abs(after):
            break
        before = after
        progress(done)
    return scaled.detach() * scale


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
