"""Invitations: the operator invites, the site answers with its card, the operator admits it or does not.

An invitation is for one name, good once and until it expires. Its secret has 256 bits from the operating system and is
kept as a hash. The card that answered waits; only `approve` makes a site of it, with its ledger entries, in the
same transaction.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from privacy.canonical import digest
from privacy.invitation import Invitation, InvitationError, ledger_key_digest
from server import sites
from server.errors import ConflictError, InvalidError, NotFoundError, ServerError
from server.federation_facts import FederationFacts
from server.store import Store
from server.tables import InvitationRow, InvitationState, SiteRow

DEFAULT_LIFETIME = dt.timedelta(hours=72)
MAX_LIFETIME = dt.timedelta(days=30)
MAX_WRONG_SECRETS = 10
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
_SITE_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_NO_HASH = hashlib.sha256(b"no invitation has this secret").hexdigest()


class InvitationRefusedError(ServerError):
    """An answer to no invitation, or to one that is used up; says no more than its sender may know."""


@dataclass(frozen=True, kw_only=True)
class KeptInvitation:
    """An invitation as it is kept.

    Attributes:
        identifier: by which it is listed and withdrawn; not secret.
        site: the name that the site will have.
        state: `open` (nobody has answered), `pending` (a card waits for the operator), `enrolled`, `denied` or
            `withdrawn`. One that nobody answered in time stays `open`; `expires_at` says so.
        card: what the site answered; None before.
        reason: why it was denied or withdrawn.
    """

    identifier: str
    site: str
    state: InvitationState
    card: Mapping[str, Any] | None
    reason: str
    created_by: str
    decided_by: str
    created_at: dt.datetime
    expires_at: dt.datetime
    answered_at: dt.datetime | None
    decided_at: dt.datetime | None


@dataclass(frozen=True, kw_only=True)
class NewInvitation:
    """An invitation at the only moment at which its text is known."""

    text: str
    kept: KeptInvitation


def invite_site(
    store: Store,
    facts: FederationFacts,
    *,
    site: str,
    by: str,
    lifetime: dt.timedelta = DEFAULT_LIFETIME,
) -> NewInvitation:
    """Invite a site; an earlier invitation of that name that nobody answered is withdrawn.

    Raises:
        InvalidError: a name or lifetime that cannot be.
        ConflictError: there is such a site, or its card waits already.
    """
    if _SITE_NAME.fullmatch(site) is None:
        raise InvalidError(
            "site", f"site is {site!r}; use 1 to 63 lower-case letters, digits, dots and hyphens"
        )
    if not dt.timedelta(0) < lifetime <= MAX_LIFETIME:
        raise InvalidError(
            "hours", f"an invitation is good for more than 0 and at most 720 hours, not {lifetime}"
        )
    identifier = "".join(secrets.choice(_ALPHABET) for _ in range(10))
    secret = secrets.token_urlsafe(32)
    try:
        made = Invitation(
            api_url=facts.api_url,
            ca_fingerprint=facts.ca_fingerprint,
            ledger_key_digest=ledger_key_digest(facts.ledger_key),
            site=site,
            identifier=identifier,
            secret=secret,
        )
    except InvitationError as error:
        raise InvalidError("site", str(error)) from error
    with store.database.write() as session:
        _lock(store, session)
        now = store.clock()
        existing = session.get(SiteRow, site)
        if existing is not None:
            raise ConflictError(
                f"there is a site {site!r} already, which is {existing.state}; choose another name"
            )
        for earlier in _answering(session, site, "open", "pending"):
            if earlier.state == "pending":
                raise ConflictError(f"the card of site {site!r} waits already; approve or deny it first")
            earlier.state, earlier.reason, earlier.decided_at = "withdrawn", "replaced by another", now
            earlier.decided_by = by
        row = InvitationRow(
            id=identifier,
            site=site,
            secret_hash=_hash(secret),
            state="open",
            created_by=by,
            created_at=now,
            expires_at=now + lifetime,
        )
        session.add(row)
        session.flush()
        return NewInvitation(text=made.text, kept=_kept(row))


def answer_invitation(store: Store, *, identifier: str, secret: str, card: sites.SiteCard) -> KeptInvitation:
    """Take a site's card; a card with the same keys again tells how it stands, and brings its policy while it waits.

    Raises:
        InvitationRefusedError: unknown, a wrong secret, expired, used up, withdrawn, or for another name.
        ConflictError: the name or a key became another site's meanwhile.
    """
    content = _content(card)
    refusal: ServerError | None = None
    with store.database.write() as session:
        _lock(store, session)
        row = session.get(InvitationRow, identifier)
        good = secrets.compare_digest(_hash(secret), _NO_HASH if row is None else row.secret_hash)
        if row is None or not good:
            refusal = InvitationRefusedError("this is not an invitation of this coordinator")
            if row is not None and row.state == "open":
                row.wrong_secrets += 1  # kept although the answer is refused, hence no raise in here
                if row.wrong_secrets >= MAX_WRONG_SECRETS:
                    row.state, row.reason = "withdrawn", f"{MAX_WRONG_SECRETS} wrong secrets"
                    row.decided_at = store.clock()
        else:
            refusal = _objection(row, card, store.clock())
            if refusal is None:
                if row.state == "open":
                    _check_free(session, card)
                    row.state, row.card_digest, row.answered_at = "pending", _keys_digest(card), store.clock()
                if row.state == "pending":
                    row.card = content  # the same keys; the site's people may have edited the policy
                return _kept(row)
    raise refusal


def approve(store: Store, site: str, *, by: str) -> sites.Site:
    """Admit the site whose card waits: it becomes a site, and its keys and policy ledger entries.

    Raises:
        NotFoundError: no card waits under that name.
        ConflictError: a key of it became another site's meanwhile.
    """
    with store.database.write() as session:
        _lock(store, session)
        row = _waiting(session, site)
        assert row.card is not None
        enrolled = sites.enrol_card(store, session, sites.SiteCard(**row.card))
        row.state, row.decided_by, row.decided_at = "enrolled", by, store.clock()
        return enrolled


def deny(store: Store, site: str, *, by: str, reason: str) -> KeptInvitation:
    """Turn the waiting card of a site down, or take back an invitation that nobody answered; for good, in both cases.

    The site may be invited again.

    Raises:
        NotFoundError: no card waits under that name, and no invitation is open.
        InvalidError: no reason; the site is told it.
    """
    if not (reason.strip() and len(reason) <= 500 and reason.isprintable()):
        raise InvalidError("reason", "give a reason of 1 to 500 printable characters; the site is told it")
    with store.database.write() as session:
        _lock(store, session)
        unanswered = _answering(session, site, "open")
        row = unanswered[0] if unanswered else _waiting(session, site)
        row.state = "withdrawn" if unanswered else "denied"
        row.reason, row.decided_by, row.decided_at = reason, by, store.clock()
        return _kept(row)


def list_invitations(store: Store, *, state: str | None = None) -> list[KeptInvitation]:
    """All invitations, oldest first, or those in one state; no secret is among them."""
    query = select(InvitationRow).order_by(InvitationRow.created_at, InvitationRow.id)
    if state is not None:
        query = query.where(InvitationRow.state == state)
    with store.database.read() as session:
        return [_kept(row) for row in session.scalars(query)]


def _objection(row: InvitationRow, card: sites.SiteCard, now: dt.datetime) -> ServerError | None:
    """Why this answer, which knows the secret, is not taken."""
    if card.name != row.site:
        return InvitationRefusedError(f"this invitation is for a site named {row.site!r}, not {card.name!r}")
    if row.state == "withdrawn":
        return InvitationRefusedError(
            f"this invitation was withdrawn ({row.reason}); ask the operator for another"
        )
    if row.state == "open":
        if row.expires_at <= now:
            return InvitationRefusedError(
                f"this invitation expired at {row.expires_at:%Y-%m-%d %H:%M} UTC; ask the operator for another"
            )
        return None
    if row.card_digest != _keys_digest(card):
        return InvitationRefusedError(
            "this invitation was used already, with another card; if that was not you, tell the operator now"
        )
    return None


def _check_free(session: Session, card: sites.SiteCard) -> None:
    existing = session.get(SiteRow, card.name)
    if existing is not None:
        raise ConflictError(f"there is a site {card.name!r} already; ask the operator for another invitation")
    sites.check_keys_are_free(session, card)


def _waiting(session: Session, site: str) -> InvitationRow:
    rows = _answering(session, site, "pending")
    if not rows:
        waiting = (
            select(InvitationRow.site).where(InvitationRow.state == "pending").order_by(InvitationRow.site)
        )
        raise NotFoundError("waiting site", site, session.scalars(waiting))
    return rows[0]


def _answering(session: Session, site: str, *states: InvitationState) -> list[InvitationRow]:
    query = select(InvitationRow).where(InvitationRow.site == site, InvitationRow.state.in_(states))
    return list(session.scalars(query))


def _lock(store: Store, session: Session) -> None:
    store.database.lock(session, "invitations")


def _content(card: sites.SiteCard) -> dict[str, Any]:
    return {
        "name": card.name,
        "title": card.title,
        "receipt_key": card.receipt_key.strip(),
        "node_public_key": card.node_public_key,
        "policy": dict(card.policy),
    }


def _keys_digest(card: sites.SiteCard) -> str:
    return digest({"receipt_key": card.receipt_key.strip(), "node_public_key": card.node_public_key})


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def _kept(row: InvitationRow) -> KeptInvitation:
    return KeptInvitation(
        identifier=row.id,
        site=row.site,
        state=row.state,
        card=row.card,
        reason=row.reason,
        created_by=row.created_by,
        decided_by=row.decided_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        answered_at=row.answered_at,
        decided_at=row.decided_at,
    )
