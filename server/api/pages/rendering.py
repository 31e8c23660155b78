"""Templates: Jinja with autoescape on, the filters that they use, and the answer that carries the page."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from server.api.pages import charts
from server.api.pages.access import session_or_none
from server.keys import ApiKey
from server.tables import Role
from server.unit_words import unit_words

FOLDER = Path(__file__).parent


EVERYBODY: frozenset[Role] = frozenset({"researcher", "operator", "auditor"})
ASKERS: frozenset[Role] = frozenset({"researcher", "operator"})
READERS: frozenset[Role] = frozenset({"operator", "auditor"})


@dataclass(frozen=True, kw_only=True)
class Place:
    """A place in the navigation, and who sees it.

    Attributes:
        areas: which the key's scopes must let it read; those of the page's tags.
    """

    title: str
    path: str
    roles: frozenset[Role]
    areas: tuple[str, ...]

    def is_for(self, key: ApiKey) -> bool:
        """Whether this key reaches it."""
        return key.role in self.roles and all(key.allows(f"{area}:read") for area in self.areas)


PLACES = (
    Place(title="Catalogue", path="/", roles=EVERYBODY, areas=("releases",)),
    Place(title="Cohorts", path="/cohorts", roles=ASKERS, areas=("cohorts",)),
    Place(title="Runs", path="/runs", roles=READERS, areas=("runs",)),
    Place(title="Sites", path="/sites", roles=READERS, areas=("sites", "joining")),
    Place(title="Spends", path="/spends", roles=READERS, areas=("studies", "sites", "runs")),
    Place(title="Ledger", path="/ledger", roles=READERS, areas=("ledger",)),
    Place(title="Keys", path="/keys", roles=EVERYBODY, areas=("keys",)),
)


def places_of(key: ApiKey) -> list[Place]:
    """Where this key reaches, in the navigation's order."""
    return [place for place in PLACES if place.is_for(key)]


def render(
    request: Request,
    template: str,
    context: Mapping[str, Any],
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> HTMLResponse:
    """A page. `here` in the context is the path of the navigation's place that it belongs to."""
    session = session_or_none(request)
    places = [] if session is None else places_of(session.key)
    text = (
        environment()
        .get_template(template)
        .render({"here": None, **context}, session=session, places=places, version=version("fedtwin"))
    )
    return HTMLResponse(text, status_code=status, headers=dict(headers or {}))


@cache
def environment() -> Environment:
    """Autoescape for every template, whatever its name; a name that is not there is an error, not an empty text."""
    made = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        day=lambda moment: f"{moment:%d %b %Y}",
        minute=lambda moment: "" if moment is None else f"{moment:%d %b %Y %H:%M} UTC",
        duration=duration,
        number=number,
        count=lambda value: f"{value:,}",
        of=lambda value, what: f"{value:,} {what}{'' if value == 1 else 's'}",
        sentence=lambda text: f"{text[:1].upper()}{text[1:]}",
        size=size,
        share=share,
        short=short,
        shown=shown,
        unit=lambda column: unit_words(getattr(column, "unit", "")),
        compact=lambda data: json.dumps(data, ensure_ascii=False),
        pretty=lambda data: json.dumps(data, indent=2, ensure_ascii=False, sort_keys=True),
    )
    made.globals.update(
        bars=charts.bars,
        histogram=charts.histogram,
        curve=charts.curve,
        meter=charts.meter,
        isinstance=isinstance,
    )
    return made


def duration(seconds: float | None) -> str:
    """A time span for people: two parts at most."""
    if seconds is None:
        return "not known yet"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def number(value: object) -> str:
    """Three significant digits for a number (also one written as text), the thing itself otherwise."""
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value)
    try:
        read = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return str(value)
    return f"{read:,.0f}" if abs(read) >= 1000 else f"{read:.3g}"


def size(num_bytes: int) -> str:
    """A file's size."""
    amount = float(num_bytes)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def share(value: float) -> str:
    """A probability as a percentage that never says 0 of what is not 0."""
    percent = 100 * value
    if percent >= 10 or percent == 0:
        return f"{percent:.0f} %"
    return f"{percent:.1f} %" if percent >= 1 else f"{percent:.2g} %"


def short(digest: str) -> str:
    """The start of a digest, enough to tell two apart."""
    return digest.removeprefix("sha256:")[:12]


def shown(value: Any) -> str:
    """A cell of a table of patients."""
    if pd.isna(value):
        return ""
    if str(value) in {"True", "False"}:
        return "yes" if str(value) == "True" else "no"
    if isinstance(value, dt.datetime):
        return f"{value:%Y-%m-%d}"
    return f"{value:.10g}" if isinstance(value, float) else str(value)
