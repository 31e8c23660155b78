"""What conditions will give, before anything is asked for: their share of the release, and a look at some patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from models.conditions import ConditionError
from models.sampling import CohortSampler, ConditionReport, RareConditionError
from models.study import Study
from server.api.pages.distributions import load_generator
from server.errors import InvalidError
from server.releases import Release
from server.store import Store

PREVIEW_PATIENTS = 20
FEW_COMPONENTS = 5.0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a cohort under the conditions would be.

    Attributes:
        report: how the conditions meet the generator; None where they do not.
        is_whole: whether nothing was asked for.
        num_components: of the generator.
        header, rows: of the preview.
        too_rare: why too few patients satisfy the conditions, in words; empty where enough do.
        fault: what cannot be read in the conditions; empty where all can.
    """

    report: ConditionReport | None = None
    is_whole: bool = False
    num_components: int = 0
    header: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    too_rare: str = ""
    fault: str = ""

    @property
    def is_thin(self) -> bool:
        """Whether few of the generator's components carry the cohort."""
        return self.report is not None and self.report.effective_components < FEW_COMPONENTS


def estimate(
    store: Store, release: Release, study: Study, conditions: Sequence[Any], *, seed: int
) -> Estimate:
    """Weigh conditions against a release and draw a preview; costs no privacy."""
    try:
        generator = load_generator(store, release, study).table
        sampler = CohortSampler(generator, study.table, conditions)
        table = next(sampler.chunks(PREVIEW_PATIENTS, seed=seed))
    except RareConditionError as error:
        return Estimate(too_rare=str(error))
    except (ConditionError, InvalidError) as error:
        return Estimate(fault=str(error))
    return Estimate(
        report=sampler.report,
        is_whole=not conditions,
        num_components=generator.num_components,
        header=[column.title or column.name for column in study.table.columns],
        rows=[list(row) for row in table.itertuples(index=False, name=None)],
    )
