"""What `algorithm = "auto"` makes of a study: a public rule, applied once, when the study is registered.

The rule looks at the definition alone, never at a patient, and writes what it chose into the settings, so that
everybody who approves the study reads the choice and not the wish.

References:
    docs/benchmarks.md, "Does the adversarial phase pay?" and "A second look": the figures behind the rule.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.study import Study

SECOND_LOOK_EPSILON = 1.0
"""From here on pictures are measured twice. Below it a second look was not shown to pay for its noise."""

REFINE_FROM = 20_000
"""Epsilon times a site's patients from which tables are refined. Below it nothing was found that pays for asking."""
REFINE_ROUNDS, MEASURED_SHARE = 2, 0.9
"""A tenth of epsilon refines: phases compose by squares, so that it is worth a third, and costs the rest little."""
FEWEST_COLUMNS = 3
"""Pairs say all of a table with fewer."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was chosen.

    Attributes:
        study: with `measure` or `measure-and-refine` for its algorithm, or as it was where it did not say `auto`.
        because: why, as a sentence for people.
    """

    study: Study
    because: str


def decide(study: Study) -> Decision:
    """Settle what a study leaves to us. A setting that the definition gives is never changed.

    Tables are refined where epsilon times `federation.patients_per_site` is `REFINE_FROM` or more, unless the
    definition gives `refine.rounds` or how the measurement's budget or noise is: the sites' patients keep the warm
    start where refining found nothing. Pictures are looked at a second time from `SECOND_LOOK_EPSILON` on, where
    `measure.exchanges` is not given.
    """
    if study.algorithm != "auto":
        return Decision(study=study, because="as the definition says")
    if study.refine.rounds:
        because = (
            f"refine.rounds = {study.refine.rounds} is given, and the measurement has "
            f"{study.measure.budget_share:.0%} of epsilon"
        )
        return Decision(study=_with(study, algorithm="measure-and-refine"), because=because)
    return _of_table(study) if study.image is None else _of_pictures(study)


def _of_table(study: Study) -> Decision:
    given = "rounds" in study.refine.model_fields_set or bool(
        {"budget_share", "noise_multiplier"} & study.measure.model_fields_set
    )
    epsilon, patients = study.privacy.epsilon, study.federation.patients_per_site
    reach = epsilon * patients
    told = (
        f"epsilon {epsilon:g} x {patients:,} patients of a site (federation.patients_per_site) = {reach:,.0f}"
    )
    reason = (
        "the definition gives refine.rounds, measure.budget_share or a noise multiplier"
        if given
        else "with table.site nothing is refined"
        if study.table.site is not None
        else f"pairs say all of fewer than {FEWEST_COLUMNS} columns"
        if len(study.table.columns) < FEWEST_COLUMNS
        else f"{told}, and below {REFINE_FROM:,} what refining finds was not shown to pay for asking"
        if reach < REFINE_FROM
        else None
    )
    if reason is not None:
        because = (
            f"the whole of epsilon measured: {reason}; set refine.rounds and measure.budget_share to refine"
        )
        return Decision(study=_with(study, algorithm="measure"), because=because)
    because = (
        f"{MEASURED_SHARE:.0%} of epsilon measured, and {REFINE_ROUNDS} rounds of refinement that count if the sites' "
        f"patients prefer what came of them: {told}, and from {REFINE_FROM:,} on these found what pairs of columns do "
        "not say, and cost a table of which they say all next to nothing; set refine.rounds = 0 to do without"
    )
    settled = _with(
        study,
        algorithm="measure-and-refine",
        measure=study.measure.model_copy(update={"budget_share": MEASURED_SHARE}).model_dump(
            exclude_none=True
        ),
        refine=study.refine.model_copy(update={"rounds": REFINE_ROUNDS}).model_dump(exclude_none=True),
    )
    return Decision(study=settled, because=because)


def _of_pictures(study: Study) -> Decision:
    settled = _with(study, algorithm="measure")
    given = {"exchanges", "noise_multiplier"} & study.measure.model_fields_set
    if given or study.privacy.epsilon < SECOND_LOOK_EPSILON:
        because = (
            f"measure.exchanges = {study.measure.exchanges}; left out it is 2 for pictures from epsilon "
            f"{SECOND_LOOK_EPSILON:g} on and 1 below, where a second look was not shown to pay for its noise"
        )
        return Decision(study=settled, because=because)
    twice = settled.measure.model_copy(update={"exchanges": 2})
    because = (
        f"in two exchanges: from epsilon {SECOND_LOOK_EPSILON:g} on a second look at pictures, with what the "
        "first found, came nearer to the patients' than one look; set measure.exchanges = 1 for one all the same"
    )
    return Decision(study=settled.model_copy(update={"measure": twice}), because=because)


def _with(study: Study, **settings: object) -> Study:
    return Study.from_dict({**study.to_dict(), **settings})
