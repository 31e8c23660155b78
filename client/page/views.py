"""What the pages show, made of the record, the policy and the notices by the functions that everything else uses."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from safetensors import deserialize

from client.debits import StudyRequest
from client.guard import Guard
from client.home import SiteHome
from client.limits import Plan, policy_objections
from client.policy import SitePolicy
from client.record import RecordEntry
from client.state import LostReplyError, SiteState
from privacy.accounting import AccountingError

PAGE_SIZE = 20
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Part(Generic[Item]):
    """One page of a long list.

    Attributes:
        items: what is on it.
        number, last: this page and the last, from 1.
        first: place of its first item in the list, from 1; 0 where the list is empty.
        total: how many there are in all.
    """

    items: Sequence[Item]
    number: int
    last: int
    first: int
    total: int


def part_of(items: Sequence[Item], number: str, *, size: int = PAGE_SIZE) -> Part[Item]:
    """A page of a list; a number that is none, or too large, is the nearest that there is."""
    last = max(1, math.ceil(len(items) / size))
    wanted = int(number) if number.isascii() and number.isdigit() and len(number) < 10 else 1
    wanted = min(max(1, wanted), last)
    start = (wanted - 1) * size
    return Part(
        items=items[start : start + size],
        number=wanted,
        last=last,
        first=start + 1 if items else 0,
        total=len(items),
    )


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A spend against its cap, for people and as shares of a bar's width in percent.

    Attributes:
        spent, projected, cap: epsilon.
        spent_width, added_width, cap_place: of the bar, 0 to 100.
    """

    spent: float
    projected: float
    cap: float
    spent_width: float
    added_width: float
    cap_place: float

    @property
    def is_beyond(self) -> bool:
        """Whether the projected spend is above the cap, so that it would be refused."""
        return self.projected > self.cap


def bar_of(spent: float, projected: float, cap: float) -> Bar:
    """A bar that holds the larger of cap and projection; an infinite projection fills it."""
    projected = max(spent, projected)
    whole = max(cap, projected if math.isfinite(projected) else 2 * cap, 1e-12)
    end = projected if math.isfinite(projected) else whole
    return Bar(
        spent=spent,
        projected=projected,
        cap=cap,
        spent_width=round(100 * spent / whole, 2),
        added_width=round(100 * (end - spent) / whole, 2),
        cap_place=round(100 * cap / whole, 2),
    )


@dataclass(frozen=True, kw_only=True)
class Question:
    """A study that asked, with what a person needs to decide.

    Attributes:
        request: as `fedtwin site requests` has it.
        spend: what it has spent and would spend, against its cap here.
        objections: why the policy would refuse it whatever anybody decides.
        decisions: every decision on it, the latest first.
        runs_by_itself: nobody decided, and the policy does not wait for a person.
    """

    request: StudyRequest
    spend: Bar
    objections: tuple[str, ...]
    decisions: tuple[RecordEntry, ...]
    runs_by_itself: bool

    @property
    def identifier(self) -> str:
        """The study's digest, hexadecimal, for an address."""
        return self.request.study_digest.removeprefix("sha256:")

    @property
    def is_waiting(self) -> bool:
        """Whether nothing runs until a person decides."""
        return self.request.decision is None and not self.runs_by_itself


def questions(guard: Guard) -> list[Question]:
    """Every study that asked: those that wait first, then the latest first."""
    entries = guard.history()
    found = [_question(request, guard.policy, entries) for request in reversed(guard.requests())]
    return sorted(found, key=lambda one: not one.is_waiting)


def _question(request: StudyRequest, policy: SitePolicy, entries: Sequence[RecordEntry]) -> Question:
    mine = [entry for entry in entries if entry.body.get("study_digest") == request.study_digest]
    spent = [float(entry.body["spend_epsilon"]) for entry in mine if entry.kind == "debit"]
    cap = min(float(request.cap_epsilon), policy.epsilon_per_study)  # the policy may have changed since
    plan = Plan(
        run=None,
        study_name=request.study_name,
        study_digest=request.study_digest,
        columns=request.columns,
        events=(),
        delta=float(request.delta),
        study_epsilon=cap,
    )
    return Question(
        request=request,
        spend=bar_of(max(spent, default=0.0), float(request.projected_epsilon), cap),
        objections=tuple(one.reason for one in policy_objections(plan, policy, datetime.now(UTC))),
        decisions=tuple(entry for entry in reversed(mine) if entry.kind == "decision"),
        runs_by_itself=request.decision is None and policy.approval == "automatic",
    )


def total_spend(guard: Guard) -> Bar | None:
    """Everything that this site ever spent, against the cap in total; None where it cannot be established."""
    try:
        spent = guard.spent(delta=guard.policy.max_delta).epsilon
    except AccountingError:
        return None
    return bar_of(spent, spent, guard.policy.epsilon_total)


@dataclass(frozen=True, kw_only=True)
class SentReply:
    """A reply as it was sent, from the copy that the site keeps.

    Attributes:
        body: its JSON part, indented; the receipt in it decoded.
        arrays: name, kind and shape of each array, as text.
        num_bytes: of the arrays.
    """

    body: str
    arrays: Sequence[tuple[str, str, str]]
    num_bytes: int


def sent_reply(site: SiteHome, run: str, number: int, digest: str) -> SentReply | None:
    """The copy of a reply, if it is still kept and is what the record names; None otherwise."""
    try:
        body, arrays = SiteState(site.state).reply_bytes(run, number, digest)
    except (LostReplyError, ValueError):
        return None
    shown: Any = json.loads(body)
    if shown.get("receipt") is not None:
        shown["receipt"]["payload"] = json.loads(base64.b64decode(shown["receipt"]["payload"]))
    return SentReply(
        body=json.dumps(shown, indent=2, ensure_ascii=False),
        arrays=[
            (name, array["dtype"], " × ".join(map(str, array["shape"])) or "one number")
            for name, array in (deserialize(arrays) if arrays else ())
        ],
        num_bytes=len(arrays),
    )
