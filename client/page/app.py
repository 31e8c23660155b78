"""The page's addresses: requests and decisions, what left, what was refused, the policy, what staff was told."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from client.debits import RefusedError
from client.decisions import DecisionError, decide
from client.guard import Guard
from client.home import SiteHome
from client.page import words
from client.page.access import Door
from client.page.departures import departures
from client.page.notices import read_notices
from client.page.views import part_of, questions, sent_reply, total_spend
from client.policy import PolicyError, load_policy
from client.record import RecordError
from privacy.accounting import AccountingError

FOLDER = Path(__file__).parent
MAX_FORM_BYTES = 65_536
DECISIONS = {"approve": "approved", "deny": "denied", "withdraw": "withdrawn"}


def create_page(site: SiteHome, *, port: int, token: str) -> Door:
    """The whole page as an ASGI application, its door in front.

    Args:
        site: whose record, policy and notices.
        port: where it will be served, on 127.0.0.1.
        token: the secret that the address carries.
    """
    page = SitePage(site)
    routes = [
        Route("/", page.show_requests),
        Route("/study/{study}", page.show_study),
        Route("/study/{study}/{decision}", page.decide, methods=["POST"]),
        Route("/left", page.show_departures),
        Route("/left/{run}/{round:int}", page.show_round),
        Route("/refused", page.show_refusals),
        Route("/policy", page.show_policy),
        Route("/notices", page.show_notices),
        Route("/page.css", lambda _: _static("page.css", "text/css")),
        Route("/icon.svg", lambda _: _static("icon.svg", "image/svg+xml")),
    ]
    handlers: Any = {
        PolicyError: page.show_problem,
        RecordError: page.show_problem,
        RefusedError: page.show_problem,
        AccountingError: page.show_problem,
        OSError: page.show_problem,
        HTTPException: page.show_missing,
    }
    door = Door(Starlette(routes=routes, exception_handlers=handlers), port=port, token=token)
    page.csrf = door.csrf
    return door


class SitePage:
    """One method for each address; every request reads policy and record afresh.

    Args:
        site: the site's folder.
    """

    csrf = ""

    def __init__(self, site: SiteHome) -> None:
        self._site = site
        self._templates = Environment(
            loader=FileSystemLoader(FOLDER / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals["site"] = site
        self._templates.filters |= {
            "epsilon": words.epsilon_text,
            "odds": words.odds,
            "chance": words.chance,
            "computed": words.computed,
            "noise": words.noise,
            "reads": words.reads,
            "moment": lambda at: f"{at:%Y-%m-%d %H:%M:%S} UTC",
        }

    def show_requests(self, request: Request) -> Response:
        """The studies that asked, those that wait first."""
        guard = self._guard()
        asked = questions(guard)
        part = part_of(asked, request.query_params.get("page", ""))
        return self._render(
            "requests.html", guard=guard, part=part, waiting=sum(one.is_waiting for one in asked)
        )

    def show_study(self, request: Request) -> Response:
        """One study, and the forms to decide on it."""
        return self._study(request.path_params["study"])

    def _study(self, identifier: str, *, problem: str = "", form: Any = None, status: int = 200) -> Response:
        guard = self._guard()
        found = [one for one in questions(guard) if one.identifier == identifier]
        if not found:
            raise HTTPException(404)
        return self._render(
            "study.html",
            guard=guard,
            status=status,
            one=found[0],
            total=total_spend(guard),
            automatic=guard.policy.approval == "automatic",
            problem=problem,
            form=form or {},
        )

    async def decide(self, request: Request) -> Response:
        """Take a decision from a form; the record has it when this answers."""
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_FORM_BYTES:
                return self._error("The form is too large", "Shorten the reason.", status=413)
        fields = {name: values[0] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}
        return await run_in_threadpool(self._decide, request, fields)

    def _decide(self, request: Request, form: dict[str, str]) -> Response:
        identifier, decision = request.path_params["study"], DECISIONS.get(request.path_params["decision"])
        if decision is None:
            raise HTTPException(404)
        if form.get("csrf") != self.csrf:
            return self._error(
                "This form is not the page's own", "Open the page again and repeat.", status=403
            )
        by, reason = form.get("by", ""), form.get("reason", "")
        try:
            decide(self._guard(), f"sha256:{identifier}", decision, by=by, reason=reason)  # type: ignore[arg-type]
        except DecisionError as error:
            return self._study(identifier, problem=str(error), form=form, status=400)
        return RedirectResponse(f"/study/{identifier}", status_code=303)

    def show_departures(self, request: Request) -> Response:
        """What left this building, round by round, the latest first."""
        guard = self._guard()
        found = departures(guard.history())
        return self._render(
            "left.html",
            guard=guard,
            part=part_of(found, request.query_params.get("page", "")),
            total=total_spend(guard),
            num_sent=sum(one.digest is not None for one in found),
        )

    def show_round(self, request: Request) -> Response:
        """One round with the very message that was sent."""
        place = request.path_params["run"], request.path_params["round"]
        guard = self._guard()
        found = [one for one in departures(guard.history()) if (one.run, one.round) == place]
        if not found:
            raise HTTPException(404)
        reply = None if found[0].digest is None else sent_reply(self._site, *place, found[0].digest)
        return self._render("round.html", guard=guard, one=found[0], reply=reply)

    def show_refusals(self, request: Request) -> Response:
        """What this site said no to, the latest first."""
        guard = self._guard()
        entries = [entry for entry in guard.history() if entry.kind in ("refused", "foreign-app")]
        part = part_of(entries[::-1], request.query_params.get("page", ""))
        return self._render("refused.html", guard=guard, part=part)

    def show_policy(self, request: Request) -> Response:
        """The policy in force, in words."""
        guard = self._guard()
        return self._render(
            "policy.html",
            guard=guard,
            policy=guard.policy,
            sentences=words.policy_sentences(guard.policy),
            total=total_spend(guard),
        )

    def show_notices(self, request: Request) -> Response:
        """What staff was told."""
        part = part_of(read_notices(self._site.notices), request.query_params.get("page", ""))
        return self._render("notices.html", part=part)

    def show_problem(self, request: Request, error: Exception) -> Response:
        """The policy or the record cannot be used: what is wrong, and what to do."""
        if isinstance(error, PolicyError):
            return self._error(
                "The policy cannot be used, so this site refuses everything", str(error), status=500
            )
        if isinstance(error, RefusedError):
            return self._error("Another process is writing the record", str(error), status=503)
        return self._error("The record or a file cannot be used", str(error), status=500)

    def show_missing(self, request: Request, error: HTTPException) -> Response:
        """No such address, or not by this method."""
        if error.status_code == 404:
            return self._error("There is nothing here", "Choose one of the pages above.", status=404)
        return self._error("That cannot be done", error.detail, status=error.status_code)

    def _guard(self) -> Guard:
        """The guard with the policy as it is now, once its whole record holds."""
        guard = Guard(self._site.record_file, load_policy(self._site.policy_file), timeout_seconds=10.0)
        guard.verify()
        return guard

    def _render(
        self, template: str, *, guard: Guard | None = None, status: int = 200, **values: Any
    ) -> Response:
        head = None if guard is None else guard.head()
        text = self._templates.get_template(template).render(head=head, csrf=self.csrf, **values)
        return HTMLResponse(text, status_code=status)

    def _error(self, title: str, detail: str, *, status: int) -> Response:
        return self._render("problem.html", status=status, title=title, detail=detail)


def _static(name: str, media_type: str) -> Response:
    return Response((FOLDER / "static" / name).read_bytes(), media_type=media_type)
