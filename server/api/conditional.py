"""Answers that a reader may keep: a strong ETag, which is the SHA-256 of what is sent, and 304 for who has it already.

References:
    RFC 9110 sections 8.8.3 and 13.1.2. RFC 9530 (Repr-Digest).
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from fastapi import Request, Response
from pydantic import BaseModel

VALIDATORS = {
    "ETag": {
        "description": "The SHA-256 of what is sent: in `If-None-Match` it saves the answer.",
        "schema": {"type": "string", "examples": ['"4f4f4f..."']},
    },
    "Repr-Digest": {"description": "The same as RFC 9530 has it.", "schema": {"type": "string"}},
}
NOT_MODIFIED: dict[int | str, dict[str, Any]] = {
    200: {"headers": VALIDATORS},
    304: {"description": "You have it already.", "headers": VALIDATORS},
}


def validators(sha256: str) -> dict[str, str]:
    """The headers that name a body by its digest.

    Args:
        sha256: hexadecimal.
    """
    return {
        "ETag": f'"{sha256}"',
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:",
        "Cache-Control": "private, no-cache",
    }


def has_already(request: Request, headers: dict[str, str]) -> bool:
    """Whether the reader's `If-None-Match` names this body."""
    condition = request.headers.get("if-none-match")
    if condition is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in condition.split(",")]
    return "*" in tags or headers["ETag"] in tags


def json_body(model: BaseModel) -> tuple[bytes, str]:
    """(the model as JSON, its SHA-256)."""
    body = model.model_dump_json().encode()
    return body, hashlib.sha256(body).hexdigest()


def body_answer(request: Request, body: bytes, sha256: str, media_type: str = "application/json") -> Response:
    """The body, or 304."""
    headers = validators(sha256)
    if has_already(request, headers):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=media_type, headers=headers)
