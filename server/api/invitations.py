"""/v1/federation, /v1/invitations, /v1/enrolments: how a site joins.

Two addresses take no key: what a federation is, is public; and a card is taken from whoever knows an invitation's
secret, at a limited pace, and then waits for the operator.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections import OrderedDict, deque
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from server import invitations, sites
from server.api.auth import Operator, OperatorOrAuditor, StoreDep
from server.api.problems import ProblemError, responses
from server.api.sites import TEXT, SiteCard, SiteOut, site_out
from server.api.starter import RunStarter
from server.federation_facts import FederationFacts
from server.invitations import InvitationRefusedError, KeptInvitation
from server.tables import InvitationState

router = APIRouter(tags=["joining"])
MAX_ADDRESSES = 4096


class WrongAnswers:
    """How many wrong answers an address gave lately. In memory: a restart forgives, the secret's length does not.

    Args:
        most: so many within `seconds` are heard; what comes beyond is not looked at.
        seconds: how long one counts.
    """

    def __init__(self, *, most: int = 10, seconds: float = 60.0) -> None:
        self._most, self._seconds = most, seconds
        self._times: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, address: str) -> None:
        """See that the address may still try.

        Raises:
            ProblemError: 429, with Retry-After.
        """
        with self._lock:
            times = self._times.get(address, deque())
            while times and time.monotonic() - times[0] > self._seconds:
                times.popleft()
            if len(times) >= self._most:
                wait = int(self._seconds - (time.monotonic() - times[0])) + 1
                raise ProblemError(
                    429,
                    "too-many",
                    f"too many wrong answers from this address; try again in {wait} s",
                    headers={"Retry-After": str(wait)},
                )

    def count(self, address: str) -> None:
        """Note a wrong answer."""
        with self._lock:
            self._times.setdefault(address, deque()).append(time.monotonic())
            self._times.move_to_end(address)
            while len(self._times) > MAX_ADDRESSES:
                self._times.popitem(last=False)


def get_facts(request: Request) -> FederationFacts:
    """What sites must know of this coordinator."""
    facts: FederationFacts | None = request.app.state.facts
    if facts is None:
        raise ProblemError(503, "unavailable", "this coordinator has no home folder, so no site can join it")
    return facts


FactsDep = Annotated[FederationFacts, Depends(get_facts)]


class FederationOut(BaseModel):
    """What a site must know to join, checked there against its invitation."""

    coordinator: str
    superlink_address: str = Field(examples=["federation.example.org:443"])
    api_url: str
    ca_certificate: str = Field(description="PEM of the authority that sites pin.")
    ca_fingerprint: str
    ledger_key: str
    app_digest: str


class InvitationIn(BaseModel):
    """Whom to invite."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"site": "saint-mary", "hours": 72}}
    )
    site: str = Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")
    hours: int = Field(default=72, ge=1, le=720)


class InvitationOut(BaseModel):
    """An invitation; `card` is what the site answered."""

    identifier: str
    site: str
    state: InvitationState
    card: SiteCard | None
    reason: str
    created_by: str
    decided_by: str
    created_at: dt.datetime
    expires_at: dt.datetime
    answered_at: dt.datetime | None
    decided_at: dt.datetime | None


class NewInvitationOut(InvitationOut):
    """An invitation at the only moment at which its text is known."""

    text: str = Field(description="Hand it to the site; it is shown this once.")


class InvitationList(BaseModel):
    """Invitations, oldest first."""

    items: list[InvitationOut]


class EnrolmentIn(BaseModel):
    """A site's answer to its invitation."""

    model_config = ConfigDict(extra="forbid")
    invitation: str = Field(min_length=1, max_length=20, pattern=TEXT)
    secret: str = Field(min_length=1, max_length=100, pattern=TEXT)
    card: SiteCard


class EnrolmentOut(BaseModel):
    """How a site's card stands."""

    site: str
    state: InvitationState = Field(examples=["pending"])
    reason: str = ""


class Denial(BaseModel):
    """Why a card is turned down."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"reason": "not our partner"}})
    reason: str = Field(min_length=1, max_length=500, pattern=TEXT)


@router.get("/v1/federation", summary="What a site must know to join", responses=responses(503))
def get_federation(facts: FactsDep) -> FederationOut:
    """Public. A site holds the authority's fingerprint and the ledger key against its invitation."""
    return FederationOut(**facts.to_dict())


@router.post("/v1/invitations", status_code=201, summary="Invite a site", responses=responses(409, 503))
def invite(wanted: InvitationIn, key: Operator, store: StoreDep, facts: FactsDep) -> NewInvitationOut:
    """Make an invitation for one name, good once; another that nobody answered is withdrawn by it."""
    made = invitations.invite_site(
        store, facts, site=wanted.site, by=key.owner, lifetime=dt.timedelta(hours=wanted.hours)
    )
    return NewInvitationOut(text=made.text, **_out(made.kept).model_dump())


@router.get("/v1/invitations", summary="List invitations", responses=responses())
def list_invitations(
    _key: OperatorOrAuditor, store: StoreDep, state: InvitationState | None = None
) -> InvitationList:
    """Who was invited and whose card waits; no secret is among them."""
    return InvitationList(items=[_out(one) for one in invitations.list_invitations(store, state=state)])


@router.post("/v1/enrolments", status_code=202, summary="Answer an invitation", responses=responses(409, 429))
def answer(wanted: EnrolmentIn, store: StoreDep, request: Request) -> EnrolmentOut:
    """Take a site's card, which then waits for the operator. The same again tells how it stands."""
    address = request.client.host if request.client else "?"
    wrong: WrongAnswers = request.app.state.wrong_answers
    wrong.check(address)
    card = sites.SiteCard(**wanted.card.model_dump())
    try:
        kept = invitations.answer_invitation(
            store, identifier=wanted.invitation, secret=wanted.secret, card=card
        )
    except InvitationRefusedError as error:
        wrong.count(address)
        raise ProblemError(403, "forbidden", str(error)) from error
    return EnrolmentOut(site=kept.site, state=kept.state, reason=kept.reason)


@router.post(
    "/v1/enrolments/{name}/approve", summary="Admit a site that waits", responses=responses(404, 409)
)
def approve(name: str, key: Operator, store: StoreDep, request: Request) -> SiteOut:
    """Its keys and policy become ledger entries, and its node may connect."""
    invitations.approve(store, name, by=key.owner)
    starter: RunStarter = request.app.state.starter
    starter.admit_sites()
    return site_out(sites.get_site(store, name))


@router.post("/v1/enrolments/{name}/deny", summary="Turn a site down that waits", responses=responses(404))
def deny(name: str, wanted: Denial, key: Operator, store: StoreDep) -> InvitationOut:
    """It is told the reason when it asks; it may be invited again."""
    return _out(invitations.deny(store, name, by=key.owner, reason=wanted.reason))


def _out(kept: KeptInvitation) -> InvitationOut:
    return InvitationOut(
        identifier=kept.identifier,
        site=kept.site,
        state=kept.state,
        card=None if kept.card is None else SiteCard(**kept.card),
        reason=kept.reason,
        created_by=kept.created_by,
        decided_by=kept.decided_by,
        created_at=kept.created_at,
        expires_at=kept.expires_at,
        answered_at=kept.answered_at,
        decided_at=kept.decided_at,
    )
