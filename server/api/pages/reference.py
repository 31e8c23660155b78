"""The API's reference, `/docs`: our own OpenAPI document as pages, with nothing from elsewhere and no script.

An overview, and a page per area with a section for each operation. What is shown is read from the document once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from shlex import quote
from typing import Any

from fastapi import APIRouter, Request, Response
from markupsafe import Markup, escape

from server.api.pages.reference_schemas import Field, kind_of, read_field, read_fields
from server.api.pages.rendering import render
from server.api.problems import KINDS
from server.errors import NotFoundError

router = APIRouter(prefix="/docs")
METHODS = ("get", "head", "post", "put", "delete")
BINARY = frozenset({"application/zip", "application/vnd.apache.parquet", "image/png"})


@dataclass(frozen=True, kw_only=True)
class ConditionExample:
    """A condition in both forms; `models.conditions` reads them."""

    text: str
    data: Mapping[str, Any] | str
    says: str


CONDITIONS = (
    ConditionExample(
        text="age >= 60",
        data={"column": "age", "op": ">=", "value": 60},
        says="of 60 and older; also ==, !=, <, <=, >",
    ),
    ConditionExample(
        text="40 <= age < 60",
        data={"all": [{"column": "age", "op": ">=", "value": 40}, {"column": "age", "op": "<", "value": 60}]},
        says="from 40, younger than 60",
    ),
    ConditionExample(
        text="sex == 'female' and not smoker",
        data={
            "all": [
                {"column": "sex", "op": "==", "value": "female"},
                {"not": {"column": "smoker", "op": "==", "value": True}},
            ]
        },
        says="women who are not known to smoke",
    ),
    ConditionExample(
        text="age > 80 or smoker",
        data={
            "any": [
                {"column": "age", "op": ">", "value": 80},
                {"column": "smoker", "op": "==", "value": True},
            ]
        },
        says="either",
    ),
    ConditionExample(
        text="ward in ['A', 'B']",
        data={"column": "ward", "op": "in", "value": ["A", "B"]},
        says="of one of these wards; also not in",
    ),
    ConditionExample(
        text="chol is missing",
        data={"column": "chol", "op": "is missing"},
        says="without a value; also is not missing",
    ),
    ConditionExample(
        text="admitted >= '2024-02-29'",
        data={"column": "admitted", "op": ">=", "value": "2024-02-29"},
        says="by a day",
    ),
    ConditionExample(
        text="diastolic < systolic",
        data="diastolic < systolic",
        says="by two columns; always a text",
    ),
    ConditionExample(
        text="systolic - diastolic >= 30",
        data={"sum": {"systolic": 1, "diastolic": -1}, "op": ">=", "value": 30},
        says="by a sum of columns, each times a number",
    ),
    ConditionExample(
        text="`capital-gain` > 0",
        data={"column": "capital-gain", "op": ">", "value": 0},
        says="by a column whose name is no plain word",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Body:
    """What goes over the wire, one way or the other.

    Attributes:
        example: as text; empty where there is none.
    """

    media_type: str
    kind: str
    fields: list[Field]
    example: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One kind of answer; `headers` are those beyond HTTP's own."""

    status: int
    phrase: str
    text: str
    headers: list[Field]
    bodies: list[Body]

    @property
    def is_good(self) -> bool:
        """Whether it is what one asked for."""
        return self.status < HTTPStatus.BAD_REQUEST


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One thing that can be asked for.

    Attributes:
        name: of its section.
        scope: that the key needs, where it is narrowed; empty where no key is needed.
        roles: of which the key needs one.
        command: the same with curl.
    """

    name: str
    method: str
    path: str
    title: str
    text: str
    scope: str
    roles: tuple[str, ...]
    parameters: list[Field]
    bodies: list[Body]
    answers: list[Answer]
    command: str


@dataclass(frozen=True, kw_only=True)
class Area:
    """Operations on one kind of thing."""

    name: str
    text: str
    operations: list[Operation]


@router.get("")
def overview(request: Request) -> Response:
    """What every call has in common, and all operations."""
    context = {
        "areas": list(_areas(request).values()),
        "kinds": list(KINDS.items()),
        "intro": request.app.state.describe()["info"]["description"],
        "conditions": CONDITIONS,
        "prose": prose,
    }
    return render(request, "reference.html", context)


@router.get("/{area}")
def show(request: Request, area: str) -> Response:
    """The operations of one area."""
    areas = _areas(request)
    if area not in areas:
        raise NotFoundError("part of the API", area, areas)
    context = {"area": areas[area], "areas": list(areas.values()), "prose": prose}
    return render(request, "reference_area.html", context)


def _areas(request: Request) -> Mapping[str, Area]:
    """Read once by each process: the document does not change."""
    state = request.app.state
    if not hasattr(state, "reference"):
        state.reference = read_areas(state.describe())
    areas: Mapping[str, Area] = state.reference
    return areas


def prose(text: str) -> Markup:
    """The little Markdown that descriptions have: paragraphs, `code` and **strong**.

    >>> str(prose("Give `a < b`, **not** c."))
    '<p>Give <code>a &lt; b</code>, <strong>not</strong> c.</p>'
    """
    told = []
    for part in re.split(r"\n\s*\n", text.strip()):
        safe = str(escape(" ".join(part.split())))
        safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
        safe = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", safe)
        told.append(f"<p>{safe}</p>")
    return Markup("".join(told))  # noqa: S704 - escaped above


def read_areas(document: Mapping[str, Any]) -> Mapping[str, Area]:
    """The areas of an OpenAPI document by name, in its order."""
    found: dict[str, list[Operation]] = {tag["name"]: [] for tag in document["tags"]}
    for path, operations in document["paths"].items():
        for method in METHODS:
            if method in operations:
                operation = operations[method]
                found[operation["tags"][0]].append(_operation(document, method, path, operation))
    return {
        tag["name"]: Area(name=tag["name"], text=tag["description"], operations=found[tag["name"]])
        for tag in document["tags"]
    }


def _operation(document: Mapping[str, Any], method: str, path: str, told: Mapping[str, Any]) -> Operation:
    schemas = document["components"]["schemas"]
    content = told.get("requestBody", {}).get("content", {})
    bodies = [_body(media_type, one, schemas) for media_type, one in content.items()]
    security = [scope for one in told.get("security", ()) for scopes in one.values() for scope in scopes]
    return Operation(
        name=operation_name(method, path),
        method=method.upper(),
        path=path,
        title=told["summary"],
        text=told.get("description", ""),
        scope=security[0] if security else "",
        roles=tuple(told.get("x-roles", ())),
        parameters=[_parameter(one, schemas) for one in told.get("parameters", ())],
        bodies=bodies,
        answers=[_answer(int(status), one, schemas) for status, one in sorted(told["responses"].items())],
        command=_command(method, path, told, bodies),
    )


def operation_name(method: str, path: str) -> str:
    """The name of an operation's section: `post-cohorts`."""
    return re.sub(r"[^a-z0-9]+", "-", f"{method} {path.removeprefix('/v1')}".lower()).strip("-")


def _parameter(told: Mapping[str, Any], schemas: Mapping[str, Any]) -> Field:
    where = {"path": "in the path", "query": "in the query", "header": "a header"}[told["in"]]
    field = read_field(
        told["name"],
        told["schema"],
        schemas,
        text=told.get("description", ""),
        is_needed=told.get("required", False),
    )
    return Field(
        name=field.name,
        kind=f"{field.kind}, {where}",
        limits=field.limits,
        text=field.text,
        is_needed=field.is_needed,
    )


def _answer(status: int, told: Mapping[str, Any], schemas: Mapping[str, Any]) -> Answer:
    return Answer(
        status=status,
        phrase=HTTPStatus(status).phrase,
        text=told.get("description", ""),
        headers=[
            read_field(name, one["schema"], schemas, text=one.get("description", ""), is_needed=False)
            for name, one in told.get("headers", {}).items()
        ],
        bodies=[_body(media_type, one, schemas) for media_type, one in told.get("content", {}).items()],
    )


def _body(media_type: str, told: Mapping[str, Any], schemas: Mapping[str, Any]) -> Body:
    schema = told.get("schema", {})
    return Body(
        media_type=media_type,
        kind="" if media_type in BINARY else kind_of(schema, schemas),
        fields=read_fields(schema, schemas),
        example=_example(media_type, told),
    )


def _example(media_type: str, told: Mapping[str, Any]) -> str:
    example = told.get("example", told.get("schema", {}).get("example"))
    if example is None:
        return ""
    if isinstance(example, str):
        return example.strip()
    if media_type == "application/x-www-form-urlencoded":
        return "&".join(f"{name}={value}" for name, value in example.items())
    return json.dumps(example, indent=2, ensure_ascii=False)


def _command(method: str, path: str, told: Mapping[str, Any], bodies: list[Body]) -> str:
    """The call with curl, its address and key in FEDTWIN_URL and FEDTWIN_KEY."""
    for one in told.get("parameters", ()):
        if one["in"] == "path":
            path = path.replace("{" + one["name"] + "}", str(one.get("example", one["name"])))
    asked = [f"{one['name']}={one['example']}" for one in told.get("parameters", ()) if _is_shown(one)]
    parts = [{"get": "curl", "head": "curl -I"}.get(method, f"curl -X {method.upper()}")]
    if told.get("security"):
        parts.append('-H "Authorization: Bearer $FEDTWIN_KEY"')
    parts += ["-G", *(f"--data-urlencode {quote(one)}" for one in asked)] if asked else []
    behind = ""
    if bodies:
        first = bodies[0]
        if first.media_type == "application/x-www-form-urlencoded":
            parts += [f"-d {quote(one)}" for one in first.example.split("&") if one]
        elif first.media_type.endswith("json"):
            parts.append(f'-H "Content-Type: {first.media_type}" -d @-')
            behind = f" <<'END'\n{first.example or '{}'}\nEND"
        else:
            parts.append(f'-H "Content-Type: {first.media_type}" --data-binary @FILE')
    return " \\\n  ".join([*parts, f'"$FEDTWIN_URL{path}"']) + behind


def _is_shown(parameter: Mapping[str, Any]) -> bool:
    return parameter["in"] == "query" and bool(parameter.get("required")) and "example" in parameter
