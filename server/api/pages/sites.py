"""Sites and invitations: who takes part, whose card waits, invite, approve, deny, suspend."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError

from privacy.signing import SignatureError, VerifyKey
from server import invitations, sites
from server.api import invitations as api
from server.api import sites as sites_api
from server.api.auth import StoreDep
from server.api.pages.access import Operator, OperatorOrAuditor, Posted
from server.api.pages.rendering import render
from server.errors import InvalidError
from server.store import Store

router = APIRouter(prefix="/sites")
DEFAULT_HOURS = 72


@router.get("", tags=["sites", "joining"])
def show(request: Request, session: OperatorOrAuditor, store: StoreDep) -> Response:
    """Who waits, who takes part, who was invited."""
    return _page(request, store)


@router.post("/invitations", tags=["joining"])
def invite(request: Request, session: Operator, form: Posted, store: StoreDep) -> Response:
    """Invite a site; its text is on this answer alone."""
    try:
        wanted = api.InvitationIn(site=form.one("site"), hours=form.one("hours") or DEFAULT_HOURS)  # type: ignore[arg-type]
    except ValidationError:
        raise InvalidError(
            "site",
            "A site's name has 1 to 63 lower-case letters, digits, dots and hyphens, and an invitation is good for "
            "1 to 720 hours.",
        ) from None
    made = api.invite(wanted=wanted, key=session.key, store=store, facts=api.get_facts(request))
    return _page(request, store, made=made)


@router.post("/{name}/approve", tags=["joining"])
def approve(request: Request, name: str, session: Operator, form: Posted, store: StoreDep) -> Response:
    """Admit a site whose card waits, once the operator typed the start of its key as the site read it."""
    waiting = next(
        (one for one in invitations.list_invitations(store, state="pending") if one.site == name), None
    )
    if waiting is not None and waiting.card is not None:
        digits = form.one("key").lower()
        if len(digits) < 8 or not key_digits(waiting.card["receipt_key"]).startswith(digits):
            raise InvalidError(
                "key",
                f"The key's digits {digits!r} are not those of the card that came for {name}. Somebody else may have "
                "answered its invitation: ask the site for its digits by telephone, and deny this card if they differ.",
            )
    api.approve(name=name, key=session.key, store=store, request=request)
    return RedirectResponse("/sites", 303)


@router.post("/{name}/deny", tags=["joining"])
def deny(name: str, session: Operator, form: Posted, store: StoreDep) -> Response:
    """Turn a card down."""
    invitations.deny(store, name, by=session.key.owner, reason=form.one("reason"))
    return RedirectResponse("/sites", 303)


@router.post("/{name}/state", tags=["sites"])
def set_state(request: Request, name: str, session: Operator, form: Posted, store: StoreDep) -> Response:
    """Suspend a site, or take it back; to remove one for good there is the command."""
    state = form.one("state")
    if state not in {"enrolled", "suspended"}:
        raise InvalidError("state", "A site can be suspended or taken back here.")
    wanted = sites_api.SiteStateIn(state=state)  # type: ignore[arg-type]
    sites_api.set_state(name=name, wanted=wanted, _key=session.key, store=store, request=request)
    return RedirectResponse("/sites", 303)


def key_digits(receipt_key: str) -> str:
    """The hexadecimal digits that tell two sites' keys apart on the telephone."""
    try:
        return VerifyKey.from_text(receipt_key.strip()).key_id().hex()
    except SignatureError:
        return ""


def _page(request: Request, store: Store, *, made: api.NewInvitationOut | None = None) -> Response:
    kept = list(reversed(invitations.list_invitations(store)))
    return render(
        request,
        "sites.html",
        {
            "here": "/sites",
            "sites": sites.list_sites(store),
            "waiting": [one for one in kept if one.state == "pending"],
            "invitations": [one for one in kept if one.state != "pending"],
            "now": store.clock(),
            "made": made,
            "hours": DEFAULT_HOURS,
        },
    )
