"""The catalogue and a release's page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from models.study import Study
from server import releases, studies
from server.api import previews
from server.api.auth import StoreDep
from server.api.pages.access import AnyRole, Operator, Posted
from server.api.pages.distributions import distributions
from server.api.pages.rendering import render
from server.api.releases import SEEN_BY_RESEARCHERS, visible_release
from server.cohorts import MAX_SEED
from server.errors import InvalidError
from server.keys import ApiKey
from server.releases import LIMITS_OF_USE, Release
from server.spends import SiteSpend, run_spends
from server.store import Store

router = APIRouter(tags=["releases"])
SHOWN = 20
SEARCHED = 1000
MAX_REASON = 1000
SCORE_MEANINGS = {
    "misfit": "how far single columns and pairs are from what was measured, beyond what the noise explains; "
    "0 is as near as the noise lets anybody tell",
    "residual": "the same distance in units of the noise; about 1 is noise alone",
    "residual_one_way": "that distance for single columns only",
    "gain": "nats by which a site's patients like the refined generator better than the one before refining, each "
    "patient's clipped, all of them noisy; below 0 they like it less",
    "gain_noise": "standard deviation of the noise in that gain",
    "preferred": "1 if the refined generator is proposed, 0 if the one before refining",
}


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A release in the catalogue."""

    release: Release
    study: Study
    spends: list[SiteSpend]


@router.get("/")
def catalogue(
    request: Request, session: AnyRole, store: StoreDep, q: str = "", state: str = "", page: int = 1
) -> Response:
    """Releases that the key may see, newest first; published ones unless another state is asked for."""
    visible = SEEN_BY_RESEARCHERS if session.key.role == "researcher" else _ALL_STATES
    state = state if state in visible else ("published" if session.key.role == "researcher" else "any")
    states = visible if state == "any" else (state,)
    found = list(_matching(store, states, q.strip().lower()))
    pages = max(1, -(-len(found) // SHOWN))
    page = min(max(page, 1), pages)
    part = found[(page - 1) * SHOWN : page * SHOWN]
    return render(
        request,
        "catalogue.html",
        {
            "here": "/",
            "items": [
                Listed(release=one, study=study, spends=run_spends(store, one.run)) for one, study in part
            ],
            "q": q,
            "state": state,
            "states": visible,
            "total": len(found),
            "page": page,
            "pages": pages,
        },
    )


@router.get("/releases/{digest}")
def show(request: Request, digest: str, session: AnyRole, store: StoreDep) -> Response:
    """Everything that is known of a release."""
    return _page(request, store, session.key, digest)


@router.get("/releases/{digest}/pictures.png")
async def show_pictures(
    request: Request,
    digest: str,
    session: AnyRole,
    store: StoreDep,
    where: previews.Where = None,
    seed: Annotated[int, Query(ge=0, le=MAX_SEED)] = 0,
) -> Response:
    """Pictures of a release's first patients under conditions on one sheet, as the API draws them."""
    return await previews.show_pictures(
        request, session.key, store, digest, where=where or (), seed=seed, is_patient=True
    )


@router.post("/releases/{digest}/publish")
def publish(digest: str, _session: Operator, _form: Posted, store: StoreDep) -> Response:
    """Serve it."""
    releases.publish_release(store, digest)
    return RedirectResponse(f"/releases/{digest}", 303)


@router.post("/releases/{digest}/withhold")
def withhold(digest: str, _session: Operator, form: Posted, store: StoreDep) -> Response:
    """Keep a candidate from being served."""
    return _with_reason(releases.withhold_release, store, digest, form.one("reason"))


@router.post("/releases/{digest}/withdraw")
def withdraw(digest: str, _session: Operator, form: Posted, store: StoreDep) -> Response:
    """Stop serving it for good."""
    return _with_reason(releases.withdraw_release, store, digest, form.one("reason"))


_ALL_STATES = ("candidate", "published", "withheld", "withdrawn")


def _with_reason(change: Callable[..., Release], store: Store, digest: str, reason: str) -> Response:
    if len(reason) > MAX_REASON or not (reason == "" or reason.isprintable()):
        raise InvalidError("reason", f"The reason must be one line of at most {MAX_REASON} characters.")
    change(store, digest, reason=reason)
    return RedirectResponse(f"/releases/{digest}", 303)


def _matching(store: Store, states: tuple[str, ...], words: str) -> list[tuple[Release, Study]]:
    """Releases of which a text that is shown holds all the words."""
    known: dict[str, Study] = {}
    matching = []
    for release in releases.list_releases(store, limit=SEARCHED, states=states):
        if release.study not in known:
            known[release.study] = studies.get_study(store, release.study).study
        study = known[release.study]
        text = " ".join(
            [study.name, study.title, study.description, release.digest, *release.sites, *study.table.names]
        )
        if all(word in text.lower() for word in words.split()):
            matching.append((release, study))
    return matching


def _page(request: Request, store: Store, key: ApiKey, digest: str) -> Response:
    release = visible_release(store, key, digest)
    study = studies.get_study(store, release.study).study
    return render(
        request,
        "release.html",
        {
            "here": "/",
            "release": release,
            "study": study,
            "spends": run_spends(store, release.run),
            "distributions": distributions(store, release, study),
            "limits": LIMITS_OF_USE,
            "meanings": SCORE_MEANINGS,
        },
    )
