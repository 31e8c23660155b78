"""What a caller of the coordinator's API hears when it does not get what it asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import httpx


@dataclass(frozen=True, kw_only=True)
class FieldFault:
    """What is wrong with one field of a request."""

    field: str
    detail: str


class CoordinatorError(Exception):
    """The coordinator refused, failed or did not answer; as text it says what is wrong with which field.

    Attributes:
        detail: the sentence for people.
        status: HTTP status; None where nothing was answered.
        type: the problem's URI, such as `urn:fedtwin:problem:invalid`; empty where nothing was answered.
        title: the same in words.
        errors: what is wrong with single fields.
        retry_after_seconds: when it may be asked again, if the coordinator said so.

    References:
        RFC 9457 (problem+json).
    """

    def __init__(
        self,
        detail: str,
        *,
        status: int | None = None,
        type: str = "",
        title: str = "",
        errors: Sequence[FieldFault] = (),
        retry_after_seconds: float | None = None,
    ) -> None:
        self.detail, self.status, self.type, self.title = detail, status, type, title
        self.errors, self.retry_after_seconds = tuple(errors), retry_after_seconds
        # Often the sentence is the one fault's own.
        more = [f"  {one.field}: {one.detail}" for one in self.errors if one.detail not in detail]
        super().__init__("\n".join([detail, *more]))


def error_of(response: httpx.Response) -> CoordinatorError:
    """The error that an answer of 400 or more is; what is no problem+json is quoted."""
    wait = response.headers.get("retry-after", "")
    retry_after = float(wait) if wait.isascii() and wait.isdigit() else None
    status = response.status_code
    try:
        problem = response.json()
        detail = str(problem.get("detail") or problem.get("title") or status)
        faults = [
            FieldFault(field=str(one["field"]), detail=str(one["detail"]))
            for one in problem.get("errors", [])
        ]
    except (ValueError, AttributeError, TypeError, KeyError):
        text = f"the coordinator answered {status}: {response.text[:200]}"
        return CoordinatorError(text, status=status, retry_after_seconds=retry_after)
    return CoordinatorError(
        detail,
        status=status,
        type=str(problem.get("type", "")),
        title=str(problem.get("title", "")),
        errors=faults,
        retry_after_seconds=retry_after,
    )
