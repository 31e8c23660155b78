"""Who is asking: an API key as a bearer token, and the role that an endpoint needs, as annotated parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from server.api.problems import ProblemError
from server.keys import ApiKey, KeyRefusedError, check_key
from server.store import Store
from server.tables import Role

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="API key",
    description="`Authorization: Bearer ftw_...`; the operator makes keys with `fedtwin server key`.",
)
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="fedtwin"'}


def get_store(request: Request) -> Store:
    """The coordinator's state."""
    store: Store = request.app.state.store
    return store


StoreDep = Annotated[Store, Depends(get_store)]


def authenticate(
    store: StoreDep, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> ApiKey:
    """The key of the request.

    Raises:
        ProblemError: 401 without a key, or with one that is not good.
    """
    if credentials is None:
        raise ProblemError(
            401, "unauthenticated", "send your API key: Authorization: Bearer ftw_...", headers=CHALLENGE
        )
    try:
        return check_key(store, credentials.credentials)
    except KeyRefusedError as error:
        headers = {"WWW-Authenticate": f'{CHALLENGE["WWW-Authenticate"]}, error="invalid_token"'}
        raise ProblemError(401, "unauthenticated", str(error), headers=headers) from error


AnyRole = Annotated[ApiKey, Depends(authenticate)]


def _needs(*roles: Role) -> Callable[[ApiKey], ApiKey]:
    def check(key: AnyRole) -> ApiKey:
        if key.role not in roles:
            raise ProblemError(
                403, "forbidden", f"this needs the role {' or '.join(roles)}; the key has the role {key.role}"
            )
        return key

    return check


Operator = Annotated[ApiKey, Depends(_needs("operator"))]
OperatorOrAuditor = Annotated[ApiKey, Depends(_needs("operator", "auditor"))]
OperatorOrResearcher = Annotated[ApiKey, Depends(_needs("operator", "researcher"))]
