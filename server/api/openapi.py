"""The OpenAPI document: FastAPI's, with our problems, who may call what, the headers of answers, and examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from server.api.auth import ROLES_OF, scope_of
from server.api.examples import add_examples
from server.api.problems import Problem
from server.tables import Role

_TEXT = {"type": "string"}
QUOTA_HEADERS = {
    "RateLimit-Policy": {
        "description": "How much the key, or its owner, may ask for: requests a minute, and rows a day where it "
        "concerns them.",
        "schema": {**_TEXT, "examples": ['"requests";q=6000;w=60']},
    },
    "RateLimit": {
        "description": "What is left of that (`r`), and in how many seconds there is more (`t`).",
        "schema": {**_TEXT, "examples": ['"requests";r=5999;t=1']},
    },
}
RETRY_AFTER = {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 0}}
CHALLENGE = {"description": "How to show a key, and the scope that is lacking.", "schema": _TEXT}


def describe(app: FastAPI, routers: Sequence[APIRouter]) -> dict[str, Any]:
    """The document of an application; made once.

    Args:
        routers: those that the application includes.
    """
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            description=app.description,
            routes=app.routes,
            tags=app.openapi_tags,
        )
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(problem.pop("$defs", {}))
        schemas["Problem"] = problem
        _add_access(document, routers)
        add_examples(document)
        app.openapi_schema = document
    return app.openapi_schema


def roles_of(route: APIRoute) -> tuple[Role, ...]:
    """The roles of which a key must have one to call a route; none where it takes no key."""
    demanded = [ROLES_OF[call] for call in _calls(route.dependant) if call in ROLES_OF]
    return min(demanded, key=len, default=())


def _add_access(document: dict[str, Any], routers: Sequence[APIRouter]) -> None:
    """Say of each operation which roles (`x-roles`) and scope it needs, and which headers its answers have."""
    for router in routers:
        for route in router.routes:
            if not isinstance(route, APIRoute):
                continue
            roles = roles_of(route)
            for method in sorted(route.methods or ()):
                operation = document["paths"][route.path_format][method.lower()]
                answers = operation["responses"]
                if roles:
                    scope = scope_of(str(route.tags[0]), method, route.name)
                    operation["security"] = [{name: [scope]} for one in operation["security"] for name in one]
                    operation["x-roles"] = list(roles)
                    for status in ("401", "403"):
                        _give(answers, status, {"WWW-Authenticate": CHALLENGE})
                    for status in answers:
                        if status < "400" or status == "429":
                            _give(answers, status, QUOTA_HEADERS)
                for status in ("429", "503"):
                    _give(answers, status, {"Retry-After": RETRY_AFTER})


def _give(answers: dict[str, Any], status: str, headers: dict[str, Any]) -> None:
    if status in answers:  # declared values are shared between operations
        answers[status] = {**answers[status], "headers": {**answers[status].get("headers", {}), **headers}}


def _calls(dependant: Dependant) -> Iterator[Any]:
    for one in dependant.dependencies:
        yield one.call
        yield from _calls(one)
