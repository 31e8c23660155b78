"""API keys: one's own, with what is left of its quotas, to rotate and to revoke; for an operator everybody's too.

Who makes a key has to show the present one again: a session, like a token, must not turn into a key that lives longer
than it. The text of a new key is on one answer and nowhere else.
"""

from __future__ import annotations

import datetime as dt

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError

from server import keys
from server.api import keys as api
from server.api.auth import StoreDep
from server.api.invitations import WrongAnswers
from server.api.metering import RequestMeter
from server.api.pages.access import AnyRole, Form, Operator, Posted, SessionsDep
from server.api.pages.rendering import render
from server.api.pages.sessions import Session
from server.api.pages.sign_in import set_session
from server.errors import ConflictError, InvalidError
from server.keys import AREAS, ApiKey, KeyRefusedError, check_key
from server.row_quotas import row_quota
from server.store import Store

router = APIRouter(prefix="/keys", tags=["keys"])
DEFAULT_DAYS, DEFAULT_OVERLAP_HOURS = 365, 168
NEW_KEY = {"role": ("researcher",), "days": (str(DEFAULT_DAYS),)}


@router.get("")
def show(request: Request, session: AnyRole, store: StoreDep) -> Response:
    """The key of this session and the others of its owner; for an operator all."""
    return _page(request, store, session)


@router.post("")
def create(request: Request, session: Operator, form: Posted, store: StoreDep) -> Response:
    """Make a key for somebody; what cannot be is said in the form."""
    answer = Response()
    try:
        _see_key(request, store, session, form)
        made = api.create_key(wanted=_wanted(form), key=session.key, store=store, response=answer)
    except InvalidError as error:
        return _page(request, store, session, form=form, fault=str(error), status=422)
    return _page(request, store, session, made=made)


@router.post("/rotate")
def rotate(
    request: Request, session: AnyRole, form: Posted, store: StoreDep, sessions: SessionsDep
) -> Response:
    """Give the owner of this session a key in place of the present one, and go on with it."""
    try:
        _see_key(request, store, session, form)
        hours = _whole(form, "overlap_hours", "Hours that the old key stays good", most=720)
        made = keys.rotate_key(store, session.key.prefix, overlap=dt.timedelta(hours=hours))
    except (InvalidError, ConflictError) as error:
        status = 409 if isinstance(error, ConflictError) else 422
        return _page(request, store, session, rotation_fault=str(error), status=status)
    sessions.end(session.token)
    token = sessions.begin(made.key)
    request.state.session = sessions.read(token)
    new = api.new_key_out(made)
    answer = _page(request, store, request.state.session, made=new, replaced=session.key.prefix)
    set_session(answer, token)
    return answer


@router.post("/{prefix}/revoke")
def revoke(prefix: str, session: AnyRole, _form: Posted, store: StoreDep) -> Response:
    """Make a key worthless; whoever revokes the own one is signed out by that."""
    api.revoke_key(prefix=prefix, key=session.key, store=store)
    return RedirectResponse("/keys", 303)


def _see_key(request: Request, store: Store, session: Session, form: Form) -> None:
    """See that whoever sits there has the session's key.

    Raises:
        InvalidError: the form holds another, or none.
        ProblemError: 429, too many wrong ones.
    """
    wrong: WrongAnswers = request.app.state.wrong_answers
    wrong.check(session.key.prefix)
    try:
        if check_key(store, form.one("key")).prefix == session.key.prefix:
            return
    except KeyRefusedError:
        pass
    wrong.count(session.key.prefix)
    raise InvalidError("key", f"That is not the key ftw_{session.key.prefix}_… that you are signed in with.")


def _wanted(form: Form) -> api.KeyIn:
    rows = form.one("rows_per_day")
    try:
        return api.KeyIn(
            role=form.one("role"),  # type: ignore[arg-type]
            owner=form.one("owner"),
            days=_whole(form, "days", "Good for days", least=1, most=3650),
            scopes=list(form.many("scopes")) or None,
            rows_per_day=_whole(form, "rows_per_day", "Rows a day", most=10**15) if rows else None,
        )
    except ValidationError as error:
        field = str(error.errors()[0]["loc"][0])
        told = {"role": "Choose a role.", "owner": "Say in 1 to 128 letters whom the key is for."}
        raise InvalidError(field, told.get(field, "Choose scopes from the list.")) from error


def _whole(form: Form, name: str, title: str, *, least: int = 0, most: int) -> int:
    text = form.one(name).replace(",", "").replace(" ", "")
    if not (text.isascii() and text.isdigit() and least <= int(text[:20]) <= most):
        raise InvalidError(
            name, f"{title}: {form.one(name)!r} is no whole number between {least:,} and {most:,}."
        )
    return int(text)


def _page(
    request: Request,
    store: Store,
    session: Session,
    *,
    made: api.NewKeyOut | None = None,
    replaced: str | None = None,
    form: Form | None = None,
    fault: str = "",
    rotation_fault: str = "",
    status: int = 200,
) -> Response:
    own, now = session.key, store.clock()
    is_operator = own.role == "operator"
    found = keys.list_keys(store, owner=None if is_operator else own.owner)
    listed = [(one, _state(one, now)) for one in found]
    meter: RequestMeter = request.app.state.meter
    context = {
        "here": "/keys",
        "own": keys.get_key(store, own.prefix),
        "quota": row_quota(store, own.owner, rows_per_day=own.rows_per_day),
        "requests_per_minute": meter.per_minute,
        "usual_rows": store.allowances.rows_per_day,
        "good": [(one, state) for one, state in listed if state == "good"],
        "ended": [(one, state) for one, state in listed if state != "good"],
        "can_write": own.allows("keys:write"),
        "can_make": is_operator and own.allows("keys:write"),
        "areas": AREAS,
        "allowed": set(own.scopes or keys.SCOPES),
        "form": form or Form(fields=NEW_KEY),
        "overlap_hours": DEFAULT_OVERLAP_HOURS,
        "made": made,
        "replaced": replaced,
        "fault": fault,
        "rotation_fault": rotation_fault,
    }
    return render(request, "keys.html", context, status=status)


def _state(key: ApiKey, now: dt.datetime) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= now else "good"
