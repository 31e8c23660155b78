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

    Where `refine.rounds` is not given, the whole budget goes to the measurement: at epsilon 10, on a real table and
    on one made up to need it, no part of it spent on the adversarial phase brought more. Where `measure.exchanges` is
    not given and there are pictures, they are looked at a second time from `SECOND_LOOK_EPSILON` on.
    """
    if study.algorithm != "auto":
        return Decision(study=study, because="as the definition says")
    if study.refine.rounds:
        because = (
            f"refine.rounds = {study.refine.rounds} is given, and the measurement has "
            f"{study.measure.budget_share:.0%} of epsilon"
        )
        return Decision(study=_as(study, "measure-and-refine"), because=because)
    settled = _as(study, "measure")
    if study.image is not None:
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
    because = (
        "the whole of epsilon measured brought more than a part of it spent on refinement wherever it was tried; set "
        "refine.rounds and measure.budget_share to refine all the same"
    )
    return Decision(study=settled, because=because)


def _as(study: Study, algorithm: str) -> Study:
    return Study.from_dict({**study.to_dict(), "algorithm": algorithm})
