"""Refine: the anchored GAN. The site's part without the patients, and how a generator is scored.

At a site the discriminator takes DP-SGD steps on patients against hard generated records; then the generator
takes a step against that discriminator, which is post-processing of it. The measured moments stay in the
generator's loss as an anchor, so that a noisy discriminator cannot carry it away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from models.anchor import Anchor
from models.generator import MixtureGenerator
from models.losses import fake_loss, generator_loss, real_loss
from models.moments import MomentLayout, pair_sum
from models.study import RefineSettings, Study

PerRecordLoss = Callable[[Tensor], Tensor]
DpStep = Callable[[Tensor, PerRecordLoss, PerRecordLoss], None]

_BETAS = (0.5, 0.9)


def refine_generator(
    study: Study, arrays: Mapping[str, Tensor], discriminator: nn.Module, *, dp_step: DpStep
) -> dict[str, Tensor]:
    """One round at one site.

    Privacy: touches patients only through `dp_step`; the rest is post-processing of the discriminator.

    Args:
        study: its settings and schema.
        arrays: the shared generator and `anchor`, as sent by the coordinator.
        discriminator: the site's own; trained in place.
        dp_step: one DP-SGD step of the discriminator: (fakes, real_loss, fake_loss).

    Returns:
        The generator's update, its arrays less those it started from.

    Raises:
        GeneratorError, AnchorError: the arrays are not of this study.
    """
    settings, cardinalities = study.refine, study.table.cardinalities
    generator = MixtureGenerator.from_arrays(arrays, cardinalities)
    anchor = Anchor.from_tensor(MomentLayout.of(study.table), arrays["anchor"])
    optimizer = torch.optim.Adam(generator.parameters(), lr=settings.generator_learning_rate, betas=_BETAS)
    base = generator.to_arrays()
    for _ in range(settings.generator_steps):
        for _ in range(settings.discriminator_steps):
            with torch.no_grad():
                fakes = generator.hard_samples(settings.num_fakes, settings.temperature)
            dp_step(fakes, real_loss, fake_loss)
        generator_step(
            generator,
            discriminator,
            anchor,
            optimizer,
            num_fakes=settings.num_fakes,
            temperature=settings.temperature,
            anchor_weight=settings.anchor_weight,
            label_weight=study.warm_start.label_weight,
        )
    refined = generator.to_arrays()
    return {name: refined[name] - base[name] for name in base}


def largest_move(settings: RefineSettings) -> float:
    """How far a coordinate of the generator can move in one round, whatever the gradients, from public settings.

    A step of Adam is the learning rate times |m|/sqrt(v), where both are sums over the past gradients with weights
    that fall by beta1 and beta2; by Cauchy and Schwarz no gradients make the ratio larger than the factor below,
    and for these betas the corrections of the first steps only shorten it.

    References:
        Kingma, Ba: Adam: a method for stochastic optimization, ICLR 2015, section 2.1.
    """
    first, second = _BETAS
    factor = (1 - first) / (1 - second) ** 0.5 / (1 - first**2 / second) ** 0.5
    # 1 % for rounding in float32.
    return 1.01 * factor * settings.generator_learning_rate * settings.generator_steps


def generator_step(
    generator: MixtureGenerator,
    discriminator: nn.Module,
    anchor: Anchor,
    optimizer: torch.optim.Optimizer,
    *,
    num_fakes: int,
    temperature: float,
    anchor_weight: float,
    label_weight: float = 1.0,
) -> float:
    """One step of the generator against a discriminator, held by the anchor; the loss before it."""
    fakes = generator.hard_samples(num_fakes, temperature)
    loss = generator_loss(discriminator(fakes)).mean()
    if anchor_weight:
        loss = loss + anchor_weight * anchor.loss(generator, label_weight=label_weight)
    optimizer.zero_grad(set_to_none=True)
    # Only the generator's parameters: the discriminator moves under DP-SGD alone.
    gradients = torch.autograd.grad(loss, list(generator.parameters()), allow_unused=True)
    for parameter, gradient in zip(generator.parameters(), gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    return loss.item()


def score(study: Study, generator: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> dict[str, float]:
    """How a round's generator fits the noisy moments; no patient is asked.

    Args:
        study: its schema.
        generator: the generator's arrays.
        anchor: holds `anchor`, as the warm start made it.

    Returns:
        `residual`: mean squared residual over the noise variance, about 1 for the truth and below 1 where noise
        was fitted; `misfit`: what of it noise does not explain, so 0 for every generator that the noisy moments
        cannot tell from the truth; `residual_one_way`: as `residual`, over single columns.
    """
    cardinalities = study.table.cardinalities
    held = Anchor.from_tensor(MomentLayout.of(study.table), anchor["anchor"])
    return scores_of(MixtureGenerator.from_arrays(generator, cardinalities), held)


@torch.no_grad()
def scores_of(generator: MixtureGenerator, anchor: Anchor) -> dict[str, float]:
    """See `score`."""
    layout = anchor.layout
    singles, pairs, triples = (float(part.sum()) for part in anchor.squares(anchor.residuals(generator)))
    # Degrees of freedom: centring leaves (d_a - 1)(d_b - 1) of a pair's cells to the noise.
    free = [d - 1.0 for d in layout.cardinalities]
    others = [d for k, d in enumerate(free) if k != layout.label]
    cells = layout.width + pair_sum(free) + layout.num_contrasts * pair_sum(others)
    variance = max(anchor.noise_std, 1e-9) ** 2
    residual = (singles + (pairs + triples) / 2) / (variance * cells)  # a pair stands twice
    # A chi-square mean over n cells has a standard deviation of sqrt(2/n): allow two of them.
    return {
        "misfit": max(0.0, residual - 1 - 2 * (2 / cells) ** 0.5),
        "residual": residual,
        "residual_one_way": singles / (variance * layout.width),
    }
