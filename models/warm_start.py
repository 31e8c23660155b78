"""Warm start: the first generator of a study, from the summed noisy moments. Post-processing: no budget.

One mixture for all sites, or one per site where their patients differ so much that this meets the noisy moments
better (`models.site_fit`). How a mixture is fitted is `models.mixture_fit`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from models.anchor import Anchor, AnchorError
from models.generator import MixtureGenerator
from models.mixture_fit import FitPlan, Progress, choose_shrinkage, fit_mixture, plan_fit
from models.moments import MomentLayout
from models.scores import scores_of
from models.site_fit import SiteMoments, better_by_site, fit_by_site, sites_differ
from models.study import Study


@dataclass(frozen=True)
class WarmStart:
    """What the warm start found.

    Attributes:
        generator: the fitted mixture.
        fitted_to: the noisy frequencies.
        plan: how it was fitted; where by site, how one mixture for all would have been.
        by_site: whether the sites' patients differ so much that each site has components of its own.
    """

    generator: MixtureGenerator
    fitted_to: Anchor
    plan: FitPlan
    by_site: bool = False

    @property
    def anchor(self) -> Tensor:
        """(size + 1,) the noisy frequencies for the wire; see `models.anchor.Anchor.to_tensor`."""
        return self.fitted_to.to_tensor()

    def scores(self) -> dict[str, float]:
        """Fit on the noisy moments; see `models.scores.score`."""
        return scores_of(self.generator.first_columns(self.fitted_to.layout.num_columns), self.fitted_to)


def warm_start(
    study: Study,
    noisy_sum: Tensor,
    *,
    noise_std: float,
    layout: MomentLayout | None = None,
    earlier: Anchor | None = None,
    sites: Sequence[SiteMoments] = (),
    progress: Progress | None = None,
    seed: int = 0,
) -> WarmStart:
    """Fit a generator to the sites' noisy moments.

    Privacy: post-processing of what the sites released; costs nothing.

    Args:
        study: its schema and settings.
        noisy_sum: (size,) float64, the sites' vectors added up.
        noise_std: standard deviation of the noise in one entry of `noisy_sum`, all sites' noise together.
        layout: of the vectors; the study's own without emphasis if None.
        earlier: what earlier exchanges told.
        sites: what each site told, where that may be looked at on its own; not used after an earlier exchange.
            A study whose release tells sites apart needs them, and has none but those that it names.
        progress: called with the done part, from 0 to 1.
        seed: of the components' first logits.

    Raises:
        AnchorError: the moments are not finite, or tell of no patients; those of one site, where the release tells
            sites apart.
    """
    anchor = Anchor.from_sum(layout or MomentLayout.of(study.table.measured), noisy_sum, noise_std=noise_std)
    if earlier is not None:
        anchor = earlier.joined(anchor)
    told, label_weight = progress or (lambda _: None), study.warm_start.label_weight
    plan, multiple = plan_fit(study, anchor), 1.0
    if study.warm_start.shrinkage is None:
        multiple = choose_shrinkage(
            anchor, plan, label_weight=label_weight, progress=lambda done: told(0.5 * done), seed=seed
        )

    def fit(to: Anchor, components: int) -> MixtureGenerator:
        own = plan_fit(study, to)
        own = replace(own, components=min(own.components, components), shrinkage=multiple * own.shrinkage)
        return fit_mixture(to, own, label_weight=label_weight, seed=seed)

    plan = replace(plan, shrinkage=multiple * plan.shrinkage)
    told(0.5)
    named = study.table.site_names
    if named and not sites:
        raise AnchorError(
            "the moments of one site tell of no patients, and the release is to tell sites apart"
        )
    apart = earlier is None and study.warm_start.by_site and sites_differ(sites)
    if named or (apart and better_by_site(sites, fit, components=plan.components, seed=seed)):
        generator = fit_by_site(sites, fit, names=named, seed=seed)
        told(1.0)
        return WarmStart(generator, anchor, plan, by_site=True)
    generator = fit_mixture(
        anchor,
        plan,
        label_weight=label_weight,
        progress=lambda done: told(0.5 + 0.5 * done),
        seed=seed,
    )
    return WarmStart(generator, anchor, plan)
