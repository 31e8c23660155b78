"""The enrolled sites: who may be asked, the key their receipts must carry, and their Flower node."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import select
from sqlalchemy.orm import Session

from privacy.canonical import digest
from privacy.ledger import Body, Entry, SiteEnrolled, SiteLeft, SitePolicy, encode_entry
from privacy.signing import SignatureError, VerifyKey
from server import ledger_store
from server.errors import ConflictError, InvalidError, NotFoundError
from server.store import Store
from server.tables import SiteRow, SiteState


@dataclass(frozen=True, kw_only=True)
class Site:
    """An enrolled site.

    Attributes:
        name: as in its receipts and in every round.
        receipt_key: the text of the Ed25519 key that its receipts are verified with.
        node_public_key: the OpenSSH text of its Flower node's key.
        node_id: Flower's number for the node, as text; None until it was registered.
        policy: what the site publishes of its policy (caps); its digest is what receipts name.
        state: `enrolled`, `suspended` (is not asked) or `left`.
    """

    name: str
    title: str
    receipt_key: str
    node_public_key: str
    node_id: str | None
    policy: Mapping[str, Any]
    policy_digest: str
    state: SiteState
    enrolled_at: dt.datetime

    @property
    def key(self) -> VerifyKey:
        """The key that the site's receipts are verified with."""
        return VerifyKey.from_text(self.receipt_key)


def enrol_site(
    store: Store,
    *,
    name: str,
    receipt_key: str,
    node_public_key: str,
    policy: Mapping[str, Any],
    title: str = "",
    node_id: str | None = None,
) -> Site:
    """Enrol a site, with its ledger entries; the same card again changes nothing, or only its policy.

    Args:
        receipt_key: `VerifyKey.text`; the name in it must be the site's.
        node_public_key: OpenSSH text.
        policy: as the site's guard digests it (`privacy.ledger.SitePolicy`): caps are decimal strings or null.

    Raises:
        InvalidError: a key that cannot be used.
        ConflictError: the name or a key is taken by another card.
    """
    card = SiteCard(
        name=name, title=title, receipt_key=receipt_key, node_public_key=node_public_key, policy=policy
    )
    with store.database.write() as session:
        return enrol_card(store, session, card, node_id=node_id)


@dataclass(frozen=True, kw_only=True)
class SiteCard:
    """What a site hands over to be enrolled; nothing in it is secret. Checked when it is made.

    Raises:
        InvalidError: a key that cannot be used, or is another site's name's; a policy that is none.
    """

    name: str
    receipt_key: str
    node_public_key: str
    policy: Mapping[str, Any]
    title: str = ""

    def __post_init__(self) -> None:
        try:
            key = VerifyKey.from_text(self.receipt_key)
        except SignatureError as error:
            raise InvalidError("receipt_key", str(error)) from error
        if key.name != self.name:
            raise InvalidError(
                "receipt_key", f"the key is named {key.name!r}, the site {self.name!r}; they must be equal"
            )
        try:
            for body in self.entries:
                encode_entry(Entry(body=body, logged_at="2000-01-01T00:00:00Z"))
        except (ValueError, TypeError) as error:
            raise InvalidError("site", f"the site's card cannot be used: {error}") from error

    @property
    def entries(self) -> list[Body]:
        """The ledger's: the site, then its policy."""
        return [
            SiteEnrolled(site=self.name, verify_key=self.receipt_key.strip(), node_key=self.node_public_key),
            SitePolicy(site=self.name, policy=dict(self.policy)),
        ]

    @property
    def policy_digest(self) -> str:
        """As the site's receipts name it."""
        return digest(dict(self.policy))


def enrol_card(store: Store, session: Session, card: SiteCard, *, node_id: str | None = None) -> Site:
    """`enrol_site` in the caller's `store.database.write()` transaction."""
    receipt_key = card.receipt_key.strip()
    row = session.get(SiteRow, card.name)
    if row is not None:
        if (row.receipt_key, row.node_public_key) != (receipt_key, card.node_public_key):
            raise ConflictError(
                f"site {card.name!r} is enrolled with other keys; a new key needs the operator to remove the old site"
            )
        if row.policy_digest != card.policy_digest:
            row.policy, row.policy_digest, row.changed_at = (
                dict(card.policy),
                card.policy_digest,
                store.clock(),
            )
            ledger_store.append(store, session, card.entries[1:])
        return _site(row)
    check_keys_are_free(session, card)
    now = store.clock()
    row = SiteRow(
        name=card.name,
        title=card.title,
        receipt_key=receipt_key,
        node_public_key=card.node_public_key,
        node_id=node_id,
        policy=dict(card.policy),
        policy_digest=card.policy_digest,
        state="enrolled",
        enrolled_at=now,
        changed_at=now,
    )
    session.add(row)
    session.flush()
    ledger_store.append(store, session, card.entries)
    return _site(row)


def check_keys_are_free(session: Session, card: SiteCard) -> None:
    """See that no other site has one of the card's keys.

    Raises:
        ConflictError: one has.
    """
    taken = session.scalars(
        select(SiteRow.name).where(
            (SiteRow.receipt_key == card.receipt_key.strip())
            | (SiteRow.node_public_key == card.node_public_key)
        )
    ).first()
    if taken is not None:
        raise ConflictError(f"a key of site {card.name!r} already belongs to site {taken!r}")


def get_site(store: Store, name: str) -> Site:
    """The site of that name.

    Raises:
        NotFoundError: there is none.
    """
    with store.database.read() as session:
        return _site(_row(session, name))


def list_sites(store: Store, *, state: str | None = None) -> list[Site]:
    """All sites by name, or those in one state."""
    query = select(SiteRow).order_by(SiteRow.name)
    if state is not None:
        query = query.where(SiteRow.state == state)
    with store.database.read() as session:
        return [_site(row) for row in session.scalars(query)]


def set_node_id(store: Store, name: str, node_id: str | None) -> None:
    """Remember Flower's number for the site's node; None once it was shut out.

    Raises:
        NotFoundError: there is no such site.
    """
    with store.database.write() as session:
        row = _row(session, name)
        row.node_id, row.changed_at = node_id, store.clock()


def set_state(
    store: Store, name: str, state: SiteState, *, reason: Literal["left", "revoked"] = "left"
) -> Site:
    """Suspend a site, take it back, or note that it left, which is for good and gets a ledger entry.

    Args:
        reason: whether the site left by itself or the operator revoked it; for `left` only.

    Raises:
        NotFoundError: there is no such site.
        InvalidError: not a state.
        ConflictError: it left already.
    """
    if state not in get_args(SiteState):
        raise InvalidError("state", f"state is {state!r}; it must be one of {get_args(SiteState)}")
    with store.database.write() as session:
        row = _row(session, name)
        if row.state == state:
            return _site(row)
        if row.state == "left":
            raise ConflictError(f"site {name!r} left; it comes back under another name with new keys")
        row.state, row.changed_at = state, store.clock()
        if state == "left":
            ledger_store.append(store, session, [SiteLeft(site=name, reason=reason)])
        return _site(row)


def _row(session: Session, name: str) -> SiteRow:
    row = session.get(SiteRow, name)
    if row is None:
        raise NotFoundError("site", name, session.scalars(select(SiteRow.name).order_by(SiteRow.name)))
    return row


def _site(row: SiteRow) -> Site:
    return Site(
        name=row.name,
        title=row.title,
        receipt_key=row.receipt_key,
        node_public_key=row.node_public_key,
        node_id=row.node_id,
        policy=row.policy,
        policy_digest=row.policy_digest,
        state=row.state,
        enrolled_at=row.enrolled_at,
    )
