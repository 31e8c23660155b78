"""Who is asking: an API key or a token as a bearer, the scope that a route needs, the role that an endpoint needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, get_args

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from server import access_tokens
from server.api.metering import meter_request
from server.api.problems import ProblemError
from server.keys import ApiKey, KeyRefusedError, check_key
from server.store import Store
from server.tables import Role

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="API key",
    description="`Authorization: Bearer ftw_...`; the operator makes keys with `fedtwin server key`. "
    "A token of `POST /v1/oauth/token` stands in its place.",
)
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="fedtwin"'}
LOOKS = frozenset({"GET", "HEAD"})
# Endpoints, of the API and of the pages, that are asked by POST and change nothing.
READING_POSTS = frozenset({"post_preview", "show_estimate"})


async def get_store(request: Request) -> Store:
    """The coordinator's state."""
    store: Store = request.app.state.store
    return store


StoreDep = Annotated[Store, Depends(get_store)]


def scope_of(area: str, method: str, endpoint: str) -> str:
    """The scope that a route needs.

    Args:
        area: its tag.
        method: of HTTP.
        endpoint: name of its function.
    """
    return f"{area}:{'read' if method in LOOKS or endpoint in READING_POSTS else 'write'}"


def authenticate(
    request: Request,
    store: StoreDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> ApiKey:
    """The key of the request.

    Raises:
        ProblemError: 401 without a key, or with one that is not good; 403 where its scopes do not reach; 429 where
            it asks too often.
    """
    if credentials is None:
        raise ProblemError(
            401, "unauthenticated", "send your API key: Authorization: Bearer ftw_...", headers=CHALLENGE
        )
    text = credentials.credentials
    try:
        is_token = text.startswith(access_tokens.PREFIX)
        key = access_tokens.check_token(store, text) if is_token else check_key(store, text)
    except KeyRefusedError as error:
        headers = {"WWW-Authenticate": f'{CHALLENGE["WWW-Authenticate"]}, error="invalid_token"'}
        raise ProblemError(401, "unauthenticated", str(error), headers=headers) from error
    meter_request(request, key)
    route = request.scope["route"]
    scope = scope_of(route.tags[0], request.method, route.name)
    if not key.allows(scope):
        challenge = f'{CHALLENGE["WWW-Authenticate"]}, error="insufficient_scope", scope="{scope}"'
        detail = f"this needs the scope {scope}; the key has {', '.join(key.scopes or ())}"
        raise ProblemError(403, "forbidden", detail, headers={"WWW-Authenticate": challenge})
    return key


AnyRole = Annotated[ApiKey, Depends(authenticate)]


# By the dependency that demands it, the roles of which a key must have one; for the API's description.
ROLES_OF: dict[Callable[..., object], tuple[Role, ...]] = {authenticate: get_args(Role)}


def _needs(*roles: Role) -> Callable[[ApiKey], Awaitable[ApiKey]]:
    async def check(key: AnyRole) -> ApiKey:
        if key.role not in roles:
            raise ProblemError(
                403, "forbidden", f"this needs the role {' or '.join(roles)}; the key has the role {key.role}"
            )
        return key

    ROLES_OF[check] = roles
    return check


Operator = Annotated[ApiKey, Depends(_needs("operator"))]
OperatorOrAuditor = Annotated[ApiKey, Depends(_needs("operator", "auditor"))]
OperatorOrResearcher = Annotated[ApiKey, Depends(_needs("operator", "researcher"))]
