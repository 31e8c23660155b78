"""/v1/health: whether the coordinator works; needs no key and says nothing else."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter
from pydantic import BaseModel, Field
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from server.api.auth import StoreDep
from server.api.problems import ProblemError, responses

router = APIRouter(prefix="/v1/health", tags=["health"])
VERSION = version("fedtwin")


class Health(BaseModel):
    """It works."""

    status: str = Field(examples=["ok"])
    version: str


@router.get("", summary="Is the coordinator well?", responses=responses(503))
def get_health(store: StoreDep) -> Health:
    """Asks the database."""
    try:
        with store.database.rows() as connection:
            connection.execute(text("SELECT 1"))
    except SQLAlchemyError as error:
        raise ProblemError(503, "unavailable", "the database does not answer") from error
    return Health(status="ok", version=VERSION)
