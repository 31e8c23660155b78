"""Studies: registered once, calibrated then, and never changed; their digest is what everything else names."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import select

from models.algorithm import decide
from models.study import Study
from privacy.budget import PrivacyBudget
from privacy.events import MechanismEvent
from privacy.ledger import StudyDefined
from server import ledger_store
from server.errors import ConflictError, InvalidError, NotFoundError
from server.store import Store
from server.tables import StudyRow


@dataclass(frozen=True, kw_only=True)
class RegisteredStudy:
    """A study as it is kept: calibrated, with its digest."""

    study: Study
    digest: str
    created_by: str
    created_at: dt.datetime


def register_study(store: Store, study: Study, *, created_by: str) -> RegisteredStudy:
    """Settle what `auto` leaves open and the noise that the budget demands; keep the study, with a ledger entry.

    The same definition again, as it was given or as it is kept, gives back what is kept.

    Privacy: the noise is chosen so that the measurement and all refinement rounds together, as one
    composition, cost each site at most the study's epsilon at its delta. Noise multipliers that the definition
    brings along are held to the same.

    Raises:
        ConflictError: another definition has this name.
        InvalidError: no noise meets the budget, the given noise is too small, or the definition is too large.
    """
    study = decide(study).study
    with store.database.read() as session:
        row = session.get(StudyRow, study.name)
        if row is not None:
            return _same_or_refuse(row, study)
    resolved = _resolve(study)
    with store.database.write() as session:
        store.database.lock(session, "studies")
        row = session.get(StudyRow, study.name)
        if row is not None:
            return _same_or_refuse(row, study)
        row = StudyRow(
            name=resolved.name,
            digest=resolved.digest,
            definition=resolved.to_dict(),
            created_by=created_by,
            created_at=store.clock(),
        )
        session.add(row)
        session.flush()
        entry = StudyDefined(
            definition=resolved.to_dict(), epsilon=study.privacy.epsilon, delta=study.privacy.delta
        )
        ledger_store.append(store, session, [entry])
        return _registered(row)


def get_study(store: Store, name: str) -> RegisteredStudy:
    """The study of that name.

    Raises:
        NotFoundError: there is none; lists those there are.
    """
    known = get_studies(store, [name])
    if name not in known:
        with store.database.read() as session:
            names = session.scalars(select(StudyRow.name).order_by(StudyRow.name).limit(50))
            raise NotFoundError("study", name, names)
    return known[name]


def get_studies(store: Store, names: Collection[str]) -> dict[str, RegisteredStudy]:
    """Those of these names that there are, by name; one query for those that were not read before."""
    unread = [name for name in names if name not in store.studies]
    if unread:
        with store.database.read() as session:
            rows = session.scalars(select(StudyRow).where(StudyRow.name.in_(unread)))
            store.studies.update((row.name, _registered(row)) for row in rows)
    return {name: store.studies[name] for name in names if name in store.studies}


def list_studies(store: Store) -> list[RegisteredStudy]:
    """All studies by name."""
    with store.database.read() as session:
        return [_registered(row) for row in session.scalars(select(StudyRow).order_by(StudyRow.name))]


def _same_or_refuse(row: StudyRow, study: Study) -> RegisteredStudy:
    kept = _registered(row)
    wanted = kept.study if study.is_calibrated else _without_noise(kept.study)
    if study != wanted:
        raise ConflictError(
            f"study {study.name!r} is registered with another definition ({row.digest}); "
            "a study never changes: give the new one another name"
        )
    return kept


def _without_noise(study: Study) -> Study:
    return Study.from_dict(
        {
            **study.to_dict(),
            "measure": {**study.to_dict()["measure"], "noise_multiplier": None},
            "refine": {**study.to_dict()["refine"], "noise_multiplier": None},
        }
    )


def _resolve(study: Study) -> Study:
    from privacy.accounting import AccountingError, spend_of
    from privacy.calibration import CalibrationError, calibrate_phases

    given = (study.measure.noise_multiplier, study.refine.noise_multiplier)
    budget = PrivacyBudget(epsilon=study.privacy.epsilon, delta=study.privacy.delta)
    measure = [MechanismEvent.from_dict(study.mechanism("measure"))] * study.measure.exchanges
    refine = [MechanismEvent.from_dict(study.mechanism("refine"))] * study.refine.rounds
    compare = [MechanismEvent.from_dict(study.mechanism("compare"))] if refine else []
    try:
        if study.is_calibrated:
            spend = spend_of([*measure, *refine, *compare], delta=budget.delta)
            if spend.epsilon > budget.epsilon:
                raise InvalidError(
                    "privacy.epsilon",
                    f"the given noise multipliers {given} cost epsilon {spend.epsilon:.4g} at delta {budget.delta:g}; "
                    f"the study's budget is {budget.epsilon:g}: leave them out and they are found for you",
                )
            return study
        if given != (None, None):
            raise InvalidError(
                "noise_multiplier",
                "give the noise multipliers of all phases that run, or of none: then they are found",
            )
        plan = calibrate_phases(
            budget=budget,
            measure=measure,
            refine=refine,
            compare=compare,
            measure_share=study.measure.budget_share,
        )
    except (AccountingError, CalibrationError) as error:
        raise InvalidError("privacy", str(error)) from error
    if plan.measure_noise_multiplier is None:
        raise InvalidError("measure", "a study needs its measure phase")
    return study.calibrated(measure=plan.measure_noise_multiplier, refine=plan.refine_noise_multiplier)


def _registered(row: StudyRow) -> RegisteredStudy:
    return RegisteredStudy(
        study=Study.from_dict(row.definition),
        digest=row.digest,
        created_by=row.created_by,
        created_at=row.created_at,
    )
