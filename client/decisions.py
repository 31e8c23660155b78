"""A person's decision on a study that asked: one way in, for the command line and for the page."""

from __future__ import annotations

from client.debits import Decision, StudyRequest
from client.guard import Guard


class DecisionError(ValueError):
    """The decision cannot be written down; the message says what is missing."""


def decide(guard: Guard, study: str, decision: Decision, *, by: str, reason: str = "") -> StudyRequest:
    """Write a decision into the site's record.

    Args:
        guard: the site's.
        study: name or digest of a study that asked.
        decision: `approved`, `denied` or `withdrawn`.
        by: who decides.
        reason: why; needed to deny and to withdraw.

    Returns:
        The study as it asked, before the decision.

    Raises:
        DecisionError: no such study, or more than one of that name; nobody is named; no reason where one is needed.
        RecordError, RefusedError: the record cannot be used, or is busy.
    """
    known = guard.requests()
    asked = [one for one in known if study in (one.study_name, one.study_digest)]
    if len(asked) != 1:
        names = ", ".join(one.study_digest if asked else one.study_name for one in asked or known)
        found = (
            f"{len(asked)} studies named {study!r} have asked" if asked else f"no study {study!r} has asked"
        )
        raise DecisionError(f"{found}; name one of: {names}" if names else f"{found}, nor any other")
    if not by.strip():
        raise DecisionError("nobody is named; a decision has a person's name")
    if decision != "approved" and not reason.strip():
        raise DecisionError("there is no reason; say why, for those who read the record later")
    (one,) = asked
    guard.decide(one.study_digest, decision, study_name=one.study_name, by=by.strip(), reason=reason.strip())
    return one
