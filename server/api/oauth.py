"""/v1/oauth/token: a short-lived token for a key, as OAuth 2.0 clients ask for it.

Errors here have the form that RFC 6749 demands (`error`, `error_description` in application/json), because OAuth
clients read nothing else.

References:
    RFC 6749 sections 2.3.1, 4.4 and 5. RFC 6585 section 4.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any
from urllib.parse import parse_qs, unquote_plus

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from server.access_tokens import PREFIX, issue_token
from server.api.auth import StoreDep
from server.api.invitations import WrongAnswers
from server.api.problems import responses
from server.errors import InvalidError
from server.keys import KeyRefusedError, check_key

router = APIRouter(prefix="/v1/oauth", tags=["keys"])
NO_STORE = {"Cache-Control": "no-store"}


class TokenOut(BaseModel):
    """A token."""

    access_token: str = Field(examples=[f"{PREFIX}Zm9v..."])
    token_type: str = Field(examples=["Bearer"])
    expires_in: int = Field(description="Seconds.", examples=[900])
    scope: str = Field(description="Empty: all that the key's role may do.", examples=["releases:read"])


class OAuthError(BaseModel):
    """An error, RFC 6749 section 5.2."""

    error: str = Field(examples=["invalid_client"])
    error_description: str = Field(examples=["this is not a key of this coordinator"])


class _RefusedError(Exception):
    def __init__(self, status: int, error: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.error = status, error


async def _form(request: Request) -> dict[str, str]:
    """The form's fields; a field that stands twice is refused, as the RFC demands."""
    try:
        fields = parse_qs((await request.body()).decode(), keep_blank_values=True, max_num_fields=20)
    except ValueError:
        return {}
    return {name: values[0] for name, values in fields.items() if len(values) == 1}


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/x-www-form-urlencoded": {
                "schema": {
                    "type": "object",
                    "required": ["grant_type"],
                    "properties": {
                        "grant_type": {"type": "string", "enum": ["client_credentials"]},
                        "client_id": {"type": "string", "description": "The key's prefix."},
                        "client_secret": {
                            "type": "string",
                            "description": "The whole key, or its secret part.",
                        },
                        "scope": {"type": "string", "description": "Scopes, with spaces between them."},
                    },
                },
                "example": {
                    "grant_type": "client_credentials",
                    "client_id": "abcdefghij",
                    "client_secret": "ftw_abcdefghij_...",
                    "scope": "releases:read cohorts:write",
                },
            }
        },
    }
}


def _refused(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _ERROR_SCHEMA}}}


_ERROR_SCHEMA = OAuthError.model_json_schema()


@router.post(
    "/token",
    summary="Exchange a key for a token",
    openapi_extra=_BODY,
    responses={
        400: _refused("The form cannot be read, or asks for a scope that the key has not."),
        401: _refused("The client is not known, or its secret is wrong."),
        429: responses(429)[429],
    },
    response_model=TokenOut,
)
def create_token(
    request: Request, store: StoreDep, form: Annotated[dict[str, str], Depends(_form)]
) -> JSONResponse:
    """A token that is good for a quarter of an hour, by OAuth 2.0's client credentials grant.

    `client_id` is the key's prefix, `client_secret` the key; by HTTP Basic or in the form.
    """
    try:
        made = _issue(request, store, form)
    except _RefusedError as error:
        headers = dict(NO_STORE)
        if error.status == 401:
            headers["WWW-Authenticate"] = 'Basic realm="fedtwin"'
        body = {"error": error.error, "error_description": str(error)}
        return JSONResponse(body, error.status, headers=headers)
    return JSONResponse(made.model_dump(), headers=NO_STORE)


def _issue(request: Request, store: StoreDep, form: dict[str, str]) -> TokenOut:
    if "grant_type" not in form:
        raise _RefusedError(400, "invalid_request", "send a form with grant_type=client_credentials")
    if form["grant_type"] != "client_credentials":
        raise _RefusedError(400, "unsupported_grant_type", "grant_type must be client_credentials")
    address = request.client.host if request.client else "?"
    wrong: WrongAnswers = request.app.state.wrong_secrets
    wrong.check(address)
    try:
        key = check_key(store, _key_text(request, form))
    except KeyRefusedError as error:
        wrong.count(address)
        raise _RefusedError(401, "invalid_client", str(error)) from error
    wanted = form.get("scope", "").split() or None
    try:
        made = issue_token(store, key, scopes=wanted)
    except InvalidError as error:
        raise _RefusedError(400, "invalid_scope", str(error)) from error
    return TokenOut(
        access_token=made.text,
        token_type="Bearer",  # noqa: S106
        expires_in=int(made.lifetime.total_seconds()),
        scope=" ".join(made.scopes or ()),
    )


def _key_text(request: Request, form: dict[str, str]) -> str:
    """The key that the client's id and secret make."""
    scheme, _, rest = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            name, _, secret = base64.b64decode(rest, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            return ""
        name, secret = unquote_plus(name), unquote_plus(secret)
    else:
        name, secret = form.get("client_id", ""), form.get("client_secret", "")
    name = name.removeprefix("ftw_")
    return secret if secret.startswith(f"ftw_{name}_") else f"ftw_{name}_{secret}"
