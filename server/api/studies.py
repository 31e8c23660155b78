"""/v1/studies: register a study, look at it."""

from __future__ import annotations

import datetime as dt
import json
import tomllib
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field

from models.study import Study
from server import studies
from server.api.auth import Operator, OperatorOrAuditor, StoreDep
from server.api.problems import ProblemError, located, responses
from server.api.slow_work import SlowWork

router = APIRouter(prefix="/v1/studies", tags=["studies"])
TOML_TYPES = frozenset({"application/toml", "text/toml", "text/plain"})

EXAMPLE_TOML = """name = "heart"
[privacy]
epsilon = 3.0
delta = 1e-5
[[table.columns]]
name = "age"
kind = "integer"
minimum = 18
maximum = 99
[[table.columns]]
name = "ill"
kind = "boolean"
"""


class StudyBudget(BaseModel):
    """What the study may cost each site, per patient, for everything it ever does there."""

    epsilon: float
    delta: float


class StudyOut(BaseModel):
    """A registered study."""

    name: str = Field(examples=["heart"])
    title: str
    digest: str = Field(description="SHA-256 of the RFC 8785 form of the definition.")
    budget: StudyBudget
    rounds: int = Field(description="Exchanges with the sites in one run.")
    created_by: str
    created_at: dt.datetime


class StudyDetail(StudyOut):
    """A registered study with its whole, calibrated definition."""

    definition: dict[str, Any]


class StudyList(BaseModel):
    """All studies."""

    items: list[StudyOut]


async def _definition(request: Request) -> Study:
    """The study in the body, TOML or JSON by its media type."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in {*TOML_TYPES, "application/json"}:
        raise ProblemError(
            415,
            "unsupported-media-type",
            f"the body is {media_type!r}; send application/toml or application/json",
        )
    try:
        text = (await request.body()).decode()
    except UnicodeDecodeError as error:
        raise ProblemError(422, "invalid", "the study definition is not UTF-8") from error
    if media_type in TOML_TYPES:
        return Study.from_toml(text)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of too many digits, or too deep
        raise ProblemError(422, "invalid", f"the study definition is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ProblemError(422, "invalid", "the study definition must be a JSON object")
    return Study.from_dict(data)


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/toml": {"schema": {"type": "string"}, "example": EXAMPLE_TOML},
            "application/json": {"schema": {"type": "object"}, "example": tomllib.loads(EXAMPLE_TOML)},
        },
    }
}


@router.post(
    "",
    status_code=201,
    summary="Register a study",
    responses={**located(201), **responses(409, 415, 503)},
    openapi_extra=_BODY,
)
async def create_study(
    request: Request,
    key: Operator,
    store: StoreDep,
    definition: Annotated[Study, Depends(_definition)],
    response: Response,
) -> StudyDetail:
    """Check a definition, find the noise that its budget demands, keep it, and write it into the ledger.

    The same definition again gives back what is kept. A study never changes. Finding the noise takes seconds; one study
    is worked on at a time, and the answer is 503 where too many wait.
    """
    slow: SlowWork = request.app.state.slow_work
    kept = await slow.run(lambda: studies.register_study(store, definition, created_by=key.owner))
    response.headers["Location"] = f"/v1/studies/{kept.study.name}"
    return _detail(kept)


@router.get("", summary="List studies", responses=responses())
def list_studies(_key: OperatorOrAuditor, store: StoreDep) -> StudyList:
    """All studies by name."""
    return StudyList(items=[StudyOut(**_fields(kept)) for kept in studies.list_studies(store)])


@router.get("/{name}", summary="Show a study", responses=responses(404))
def get_study(name: str, _key: OperatorOrAuditor, store: StoreDep) -> StudyDetail:
    """One study with its whole definition."""
    return _detail(studies.get_study(store, name))


def _fields(kept: studies.RegisteredStudy) -> dict[str, Any]:
    study = kept.study
    return {
        "name": study.name,
        "title": study.title,
        "digest": kept.digest,
        "budget": StudyBudget(epsilon=study.privacy.epsilon, delta=study.privacy.delta),
        "rounds": study.num_rounds,
        "created_by": kept.created_by,
        "created_at": kept.created_at,
    }


def _detail(kept: studies.RegisteredStudy) -> StudyDetail:
    return StudyDetail(**_fields(kept), definition=kept.study.to_dict())
