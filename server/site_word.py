"""What a site itself may change by its signature: leave, or go on with another receipt key. Both are ledger entries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from privacy.leaving import open_leaving
from privacy.ledger import KeyRotated
from privacy.signing import SignatureError
from server import ledger_store, sites
from server.errors import ConflictError, InvalidError, NotFoundError
from server.store import Store
from server.tables import RunRow, SiteRow


def leave(store: Store, name: str, envelope: Mapping[str, Any]) -> sites.Site:
    """Let a site go by its own word; again is harmless.

    Raises:
        InvalidError: not the site's word to this federation, or there is no such site: an outsider is told no more.
    """
    try:
        open_leaving(envelope, sites.get_site(store, name).key, ledger=store.key.public)
    except (SignatureError, NotFoundError):
        raise InvalidError(
            "envelope", f"this is not the word of a site {name!r} of this federation"
        ) from None
    return sites.set_state(store, name, "left", reason="left")


def rotate_key(store: Store, name: str, envelope: Mapping[str, Any]) -> sites.Site:
    """Replace a site's receipt key by another that both keys have signed; again is harmless.

    Args:
        envelope: of `privacy.ledger.rotate_key("site", old, new)`.

    Raises:
        InvalidError: it is no such envelope, or of another site.
        ConflictError: the old key is not the site's, the site left, or it takes part in the active run.
    """
    try:
        entry = KeyRotated(envelope=dict(envelope))
        role, old, new = entry.open()
    except (ValueError, TypeError) as error:
        raise InvalidError("envelope", f"this is no rotation of a site's key: {error}") from error
    if role != "site" or old.name != name:
        raise InvalidError("envelope", f"this is no rotation of a key of site {name!r}")
    with store.database.write() as session:
        row = session.get(SiteRow, name, with_for_update=True)
        if row is None or row.receipt_key not in (old.text, new.text):
            raise ConflictError(f"the old key is not that of a site {name!r} of this federation")
        if row.receipt_key == old.text:
            if row.state == "left":
                raise ConflictError(f"site {name!r} left")
            active = session.scalars(select(RunRow).where(RunRow.active == 1)).first()
            if active is not None and name in active.sites:
                raise ConflictError(
                    f"site {name!r} takes part in run {active.id!r}; rotate its key when the run has ended"
                )
            row.receipt_key, row.changed_at = new.text, store.clock()
            session.flush()
            ledger_store.append(store, session, [entry])
    return sites.get_site(store, name)
