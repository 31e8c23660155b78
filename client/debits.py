"""What the guard answers with: a debit, a quote, a study's request, or a refusal."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from client.claims import RoundClaim

Decision = Literal["approved", "denied", "withdrawn"]


class RefusedError(Exception):
    """The guard says no. Nothing was spent and nothing may be computed; the refusal is in the record.

    Attributes:
        code: `policy`, `budget`, `approval`, `request`, `busy`, or `data`. All but `data` depend on the policy,
            the record and the request alone and may be told; `data` depends on patients and must stay here.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Debit:
    """A spend that is on the disk: what pays for one round.

    Attributes:
        run, round, study_digest, request_digest: what it pays for.
        spend_epsilon, spend_delta: cumulative spend of the study at this site, this debit included.
        seq: its entry in the record.
        reply_digest: of the reply that was kept for it; None while there is none. If there is one, resend that reply;
            never compute again.
        reply_path: where that reply lies, as `settle` was told.
    """

    run: str
    round: int
    study_digest: str
    request_digest: str
    spend_epsilon: float
    spend_delta: float
    seq: int
    reply_digest: str | None = None
    reply_path: str | None = None
    claim: RoundClaim | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class Quote:
    """What planned rounds would cost, asked before anything is spent.

    Attributes:
        spent_epsilon: what the study has spent here so far.
        projected_epsilon: what it would have spent after the planned rounds; infinite where it cannot be established.
        cap_epsilon: the cap on the study here, the site's or the study's own.
        delta: what these hold at.
        reasons: what stands against it; empty if it is allowed now.
    """

    spent_epsilon: float
    projected_epsilon: float
    cap_epsilon: float
    delta: float
    reasons: tuple[str, ...]

    @property
    def allowed(self) -> bool:
        """Whether the planned rounds may run now, as far as the guard knows."""
        return not self.reasons

    @property
    def sentence(self) -> str:
        """The projection in plain words."""
        return (
            f"these rounds would bring you from epsilon {self.spent_epsilon:.3f} to {self.projected_epsilon:.3f} "
            f"of your cap {self.cap_epsilon:g} (delta {self.delta:g})"
        )


@dataclass(frozen=True, kw_only=True)
class StudyRequest:
    """A study that asked for this site, for the person who decides.

    Attributes:
        study_name, study_digest: the study.
        columns: what it reads.
        projected_epsilon: where it would bring a patient (`client.history.most_asked`); a decimal string.
        cap_epsilon, delta: as last quoted; decimal strings.
        asked_at: when it was last quoted.
        decision: `approved`, `denied`, `withdrawn`, or None while nobody has decided.
        decided_by, reason: who decided, and why.
    """

    study_name: str
    study_digest: str
    columns: tuple[str, ...]
    projected_epsilon: str
    cap_epsilon: str
    delta: str
    asked_at: datetime
    decision: Decision | None
    decided_by: str = ""
    reason: str = ""
