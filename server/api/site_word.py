"""/v1/sites/NAME/leave and /key: what a site says for itself, by its receipt key's signature instead of an API key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict

from server import site_word
from server.api.auth import StoreDep
from server.api.invitations import WrongAnswers
from server.api.problems import responses
from server.api.starter import RunStarter
from server.errors import ServerError
from server.sites import Site
from server.store import Store

router = APIRouter(prefix="/v1/sites", tags=["joining"])


class Word(BaseModel):
    """A DSSE envelope signed by the site."""

    model_config = ConfigDict(extra="forbid")
    envelope: dict[str, Any]


class WordTaken(BaseModel):
    """What the site is now."""

    site: str
    state: str
    receipt_key: str


@router.post("/{name}/leave", summary="A site leaves by its own word", responses=responses(409, 429))
def leave(name: str, word: Word, store: StoreDep, request: Request) -> WordTaken:
    """For good, with a ledger entry; its node is shut out."""
    taken = _take(site_word.leave, store, name, word.envelope, request)
    starter: RunStarter = request.app.state.starter
    starter.admit_sites()
    return taken


@router.post("/{name}/key", summary="A site replaces its receipt key", responses=responses(409, 429))
def rotate_key(name: str, word: Word, store: StoreDep, request: Request) -> WordTaken:
    """Signed by the old and by the new key; a ledger entry."""
    return _take(site_word.rotate_key, store, name, word.envelope, request)


def _take(
    change: Callable[[Store, str, Mapping[str, Any]], Site],
    store: Store,
    name: str,
    envelope: Mapping[str, Any],
    request: Request,
) -> WordTaken:
    address = request.client.host if request.client else "?"
    wrong: WrongAnswers = request.app.state.wrong_answers
    wrong.check(address)
    try:
        site = change(store, name, envelope)
    except ServerError:
        wrong.count(address)
        raise
    return WordTaken(site=site.name, state=site.state, receipt_key=site.receipt_key)
