"""The cohort builder, a cohort's progress and files, and the list of one's own."""

from __future__ import annotations

import hashlib
import secrets
import shlex

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool

from models.study import Study
from server import cohorts, studies
from server.api import cohorts as api
from server.api.auth import StoreDep
from server.api.pages.access import Form, OperatorOrResearcher, Posted
from server.api.pages.conditions_form import column_fields, example, in_words, read_conditions, read_request
from server.api.pages.estimates import Estimate, estimate
from server.api.pages.rendering import render
from server.api.pages.sessions import Session
from server.api.paging import decode_cursor, encode_cursor
from server.api.releases import visible_release
from server.cohorts import DEFAULT_FORMATS, MAX_PATIENTS, OPEN_STATES, CohortRequest
from server.condition_text import where_text
from server.errors import InvalidError, QuotaExceededError
from server.exports.context import ExportContext
from server.exports.formats import FORMATS as EXPORT_FORMATS
from server.releases import Release, get_release
from server.row_quotas import row_quota
from server.store import Store

router = APIRouter(prefix="/cohorts", tags=["cohorts"])
SHOWN = 20


@router.get("")
def list_own(
    request: Request, session: OperatorOrResearcher, store: StoreDep, cursor: str | None = None
) -> Response:
    """One's own cohorts, newest first; an operator's list is everybody's."""
    owner = None if session.key.role == "operator" else session.key.owner
    found = cohorts.list_cohorts(store, owner=owner, limit=SHOWN + 1, before=decode_cursor(cursor))
    more = encode_cursor(found[SHOWN - 1].created_at, found[SHOWN - 1].id) if len(found) > SHOWN else None
    names = {release: _title(store, release) for release in {one.request.release for one in found}}
    context = {"here": "/cohorts", "items": found[:SHOWN], "more": more, "later": cursor, "names": names}
    return render(request, "cohorts.html", context)


@router.get("/new", tags=["releases"])
async def new(request: Request, session: OperatorOrResearcher, store: StoreDep, release: str) -> Response:
    """The builder, with nothing asked for yet but every column."""
    kept, study = await run_in_threadpool(_release, store, session, release)
    fields = {"num_patients": ("1000",), "formats": DEFAULT_FORMATS, "columns": study.table.names}
    return await _builder(request, store, session, kept, study, Form(fields=fields))


@router.post("/estimate", tags=["releases"])
async def show_estimate(
    request: Request, session: OperatorOrResearcher, form: Posted, store: StoreDep
) -> Response:
    """What the form's conditions will give: for a script the part of the page, for others the whole."""
    release, study = await run_in_threadpool(_release, store, session, form.one("release"))
    if request.headers.get("hx-request") != "true":
        return await _builder(request, store, session, release, study, form)
    told = await _estimate(request, store, release, study, form)
    return await run_in_threadpool(render, request, "_estimate.html", {"estimate": told})


@router.post("")
async def create(request: Request, session: OperatorOrResearcher, form: Posted, store: StoreDep) -> Response:
    """Ask for the cohort, and go to its page; what cannot be is said in the form."""
    release, study = await run_in_threadpool(_release, store, session, form.one("release"))

    def queue() -> str:
        wanted, key = read_request(study.table, form), session.key
        return cohorts.create_cohort(
            store,
            wanted,
            owner=key.owner,
            idempotency_key=_once(form, wanted),
            rows_per_day=key.rows_per_day,
        ).id

    try:
        made = await run_in_threadpool(queue)
    except InvalidError as error:
        status = 429 if isinstance(error, QuotaExceededError) else 422
        return await _builder(request, store, session, release, study, form, fault=str(error), status=status)
    return RedirectResponse(f"/cohorts/{made}", 303)


@router.get("/{cohort_id}")
def show(request: Request, cohort_id: str, session: OperatorOrResearcher, store: StoreDep) -> Response:
    """A cohort: progress, then files."""
    return _page(request, store, session, cohort_id, "cohort.html")


@router.get("/{cohort_id}/progress")
def progress(request: Request, cohort_id: str, session: OperatorOrResearcher, store: StoreDep) -> Response:
    """The part of the page that changes."""
    return _page(request, store, session, cohort_id, "_cohort.html")


@router.post("/{cohort_id}/cancel")
def cancel(cohort_id: str, session: OperatorOrResearcher, _form: Posted, store: StoreDep) -> Response:
    """End a cohort that is not finished."""
    api.cancel_cohort(cohort_id=cohort_id, key=session.key, store=store)
    return RedirectResponse(f"/cohorts/{cohort_id}", 303)


@router.post("/{cohort_id}/delete")
def delete(cohort_id: str, session: OperatorOrResearcher, _form: Posted, store: StoreDep) -> Response:
    """Remove the files now."""
    api.delete_cohort(cohort_id=cohort_id, key=session.key, store=store)
    return RedirectResponse(f"/cohorts/{cohort_id}", 303)


@router.get("/{cohort_id}/files/{name:path}")
def download(
    request: Request, cohort_id: str, name: str, session: OperatorOrResearcher, store: StoreDep
) -> Response:
    """A file, as the API serves it."""
    return api.get_file(cohort_id=cohort_id, name=name, key=session.key, store=store, request=request)


def _once(form: Form, wanted: CohortRequest) -> str | None:
    """A name for this form with this content, so that a double click or a reload asks for nothing twice."""
    once = form.one("once")
    if not once:
        return None
    return "page-" + hashlib.sha256(f"{once}\n{wanted!r}".encode("utf-8", "replace")).hexdigest()


def _release(store: Store, session: Session, digest: str) -> tuple[Release, Study]:
    release = visible_release(store, session.key, digest)
    return release, studies.get_study(store, release.study).study


async def _builder(
    request: Request,
    store: Store,
    session: Session,
    release: Release,
    study: Study,
    form: Form,
    *,
    fault: str = "",
    status: int = 200,
) -> Response:
    told = await _estimate(request, store, release, study, form)

    def page() -> Response:
        context = {
            "here": "/cohorts",
            "release": release,
            "study": study,
            "fields": column_fields(study.table, form),
            "form": form,
            "once": form.one("once") or secrets.token_urlsafe(12),
            "example": example(study.table),
            "formats": _formats(release, study),
            "most": MAX_PATIENTS,
            "quota": row_quota(store, session.key.owner, rows_per_day=session.key.rows_per_day),
            "fault": fault,
            "estimate": told,
        }
        return render(request, "cohort_new.html", context, status=status)

    return await run_in_threadpool(page)


def _formats(release: Release, study: Study) -> list[tuple[str, str, str]]:
    """(name, title, why this release cannot be had in it, empty where it can)."""
    request = CohortRequest(release=release.digest, num_patients=1, seed=0)
    context = ExportContext.of(release, study, request)
    listed = [(one.name, one.title, one.missing(context) or "") for one in EXPORT_FORMATS.values()]
    return [*listed, ("zip", "Everything in one zip", "")]


async def _estimate(request: Request, store: Store, release: Release, study: Study, form: Form) -> Estimate:
    try:
        conditions = read_conditions(study.table, form)
    except InvalidError as error:
        return Estimate(fault=str(error))
    seed = form.one("seed")
    return await estimate(
        store,
        request.app.state.previewer,
        release,
        study,
        conditions,
        columns=form.many("columns"),
        seed=int(seed[:15]) if seed.isascii() and seed.isdecimal() else 0,
    )


def _page(request: Request, store: Store, session: Session, cohort_id: str, template: str) -> Response:
    cohort = api.get_cohort(cohort_id=cohort_id, key=session.key, store=store)
    is_open, is_part = cohort.state in OPEN_STATES, template == "_cohort.html"
    context = {
        "here": "/cohorts",
        "cohort": cohort,
        "title": _title(store, cohort.release),
        "is_open": is_open,
        "is_part": is_part,
        "is_mine": cohort.owner == session.key.owner,
        "conditions": in_words(cohort.conditions),
        "command": _command(cohort),
    }
    # The whole page once it has ended: asking stops.
    return render(
        request, template, context, headers={"HX-Refresh": "true"} if is_part and not is_open else {}
    )


def _command(cohort: api.CohortOut) -> str:
    """What asks for the same from a terminal, to be copied there."""
    words = ["fedtwin", "cohort", "request", "--release", cohort.release, "-n", str(cohort.num_patients)]
    words += ["--seed", str(cohort.seed)]
    if cohort.conditions:
        words += ["--where", where_text(cohort.conditions)]
    if cohort.columns:
        words += ["--columns", ",".join(cohort.columns)]
    for name in cohort.formats:
        words += ["--format", name]
    return shlex.join(words)


def _title(store: Store, digest: str) -> str:
    study = studies.get_study(store, get_release(store, digest).study).study
    return study.title or study.name
