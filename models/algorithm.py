"""What `algorithm = "auto"` makes of a study: a public rule, applied once, when the study is registered.

The rule looks at the definition alone, never at a patient, and writes what it chose into the settings, so that
everybody who approves the study reads the choice and not the wish.

References:
    docs/benchmarks.md, "Does the adversarial phase pay?": the figures behind the rule.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.study import Study


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

    Where `refine.rounds` is not given, the whole budget goes to the measurement: at no epsilon, number of sites or
    width that was tried did a part of it spent on the adversarial phase bring more.
    """
    if study.algorithm != "auto":
        return Decision(study=study, because="as the definition says")
    if study.refine.rounds:
        because = (
            f"refine.rounds = {study.refine.rounds} is given, and the measurement has "
            f"{study.measure.budget_share:.0%} of epsilon"
        )
        return Decision(study=_as(study, "measure-and-refine"), because=because)
    because = (
        "the whole of epsilon measured brought more than a part of it spent on refinement wherever it was tried; set "
        "refine.rounds and measure.budget_share to refine all the same"
    )
    return Decision(study=_as(study, "measure"), because=because)


def _as(study: Study, algorithm: str) -> Study:
    return Study.from_dict({**study.to_dict(), "algorithm": algorithm})
