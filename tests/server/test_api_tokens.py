"""Keys through the API: scopes, rotation with overlap, revocation; OAuth 2.0 tokens that end with their key."""

from __future__ import annotations

import base64
import datetime as dt

import httpx
import pytest
from sqlalchemy import func, select

from server import access_tokens, keys
from server.tables import AccessTokenRow

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def _token(api, key: str, **more) -> httpx.Response:
    form = {"grant_type": "client_credentials", "client_id": key.split("_")[1], "client_secret": key, **more}
    return api.client.post("/v1/oauth/token", data=form)


def _as(api, text: str, method: str, path: str, **options) -> httpx.Response:
    return api.client.request(method, path, headers={"Authorization": f"Bearer {text}"}, **options)


def test_an_operator_makes_a_scoped_key_and_it_reaches_no_further(api) -> None:
    wanted = {
        "role": "researcher",
        "owner": "rita",
        "days": 30,
        "scopes": ["releases:read"],
        "rows_per_day": 9,
    }
    made = api.post("operator", "/v1/keys", wanted)
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    key = made.json()["key"]
    assert _as(api, key, "GET", "/v1/releases").status_code == 200
    refused = _as(api, key, "GET", "/v1/cohorts")
    assert refused.status_code == 403
    assert "needs the scope cohorts:read" in refused.json()["detail"]
    assert 'error="insufficient_scope"' in refused.headers["www-authenticate"]
    shown = api.get("operator", made.headers["location"]).json()
    assert (shown["owner"], shown["scopes"], shown["rows_per_day"]) == ("rita", ["releases:read"], 9)
    assert "key" not in shown
    assert key.split("_", 2)[2] not in api.get("operator", "/v1/keys").text


def test_a_key_that_makes_no_sense_names_the_field(api) -> None:
    for field, change in (
        ("role", {"role": "root"}),
        ("owner", {"owner": ""}),
        ("owner", {"owner": "a\nb"}),
        ("days", {"days": 0}),
        ("scopes", {"scopes": ["everything"]}),
        ("scopes", {"scopes": []}),
        ("rows_per_day", {"rows_per_day": -1}),
    ):
        answer = api.post("operator", "/v1/keys", {"role": "auditor", "owner": "x", **change})
        assert answer.status_code == 422, change
        assert [fault["field"] for fault in answer.json()["errors"]] == [field]


def test_a_scoped_key_gives_no_scope_that_it_has_not(api, store) -> None:
    api.keys["scoped"] = keys.create_key(
        store, role="operator", owner="o", scopes=["keys:read", "keys:write", "runs:read"]
    ).text
    wanted = {"role": "operator", "owner": "o"}
    assert api.post("scoped", "/v1/keys", wanted).status_code == 403
    assert api.post("scoped", "/v1/keys", {**wanted, "scopes": ["runs:write"]}).status_code == 403
    assert api.post("scoped", "/v1/keys", {**wanted, "scopes": ["runs:read"]}).status_code == 201


def test_a_rotated_key_takes_over_and_the_old_one_ends_after_the_overlap(api, store, clock) -> None:
    old = api.keys["researcher"]
    made = api.post("researcher", "/v1/keys/current/rotate", {"overlap_hours": 24})
    assert made.status_code == 201
    api.keys["new"] = made.json()["key"]
    assert api.get("new", "/v1/keys/current").json()["owner"] == "researcher"
    assert api.get("researcher", "/v1/keys/current").json()["replaced_by"] == made.json()["prefix"]
    again = api.post("researcher", "/v1/keys/current/rotate", {"overlap_hours": 24})
    assert again.status_code == 409
    assert "rotated already" in again.json()["detail"]
    clock.move(hours=24, seconds=1)
    assert _as(api, old, "GET", "/v1/releases").status_code == 401
    assert api.get("new", "/v1/releases").status_code == 200
    with pytest.raises(keys.InvalidError, match="overlap"):
        keys.rotate_key(store, made.json()["prefix"], overlap=dt.timedelta(seconds=-1))


def test_nobody_sees_or_revokes_anothers_key_but_the_operator(api) -> None:
    prefix = api.keys["stranger"].split("_")[1]
    unknown = api.get("researcher", "/v1/keys/aaaaaaaaaa").json()["detail"]
    for method in ("GET", "DELETE"):
        answer = api.call("researcher", method, f"/v1/keys/{prefix}")
        assert answer.status_code == 404
        assert answer.json()["detail"].replace(prefix, "aaaaaaaaaa") == unknown
    listed = api.get("researcher", "/v1/keys").json()["items"]
    assert {one["owner"] for one in listed} == {"researcher"}
    assert len(api.get("operator", "/v1/keys").json()["items"]) == 4
    assert api.call("operator", "DELETE", f"/v1/keys/{prefix}").json()["revoked_at"] is not None
    assert api.get("stranger", "/v1/releases").status_code == 401


def test_a_key_is_exchanged_for_a_token_by_form_or_by_basic(api) -> None:
    key = api.keys["researcher"]
    made = _token(api, key)
    assert made.status_code == 200
    assert made.headers["cache-control"] == "no-store"
    told = made.json()
    assert (told["token_type"], told["expires_in"], told["scope"]) == ("Bearer", 900, "")
    assert _as(api, told["access_token"], "GET", "/v1/cohorts").status_code == 200
    _, prefix, secret = key.split("_", 2)
    basic = base64.b64encode(f"{prefix}:{secret}".encode()).decode()
    other = api.client.post(
        "/v1/oauth/token",
        data={"grant_type": "client_credentials", "scope": "releases:read"},
        headers={"Authorization": f"Basic {basic}"},
    )
    assert other.json()["scope"] == "releases:read"
    narrow = other.json()["access_token"]
    assert _as(api, narrow, "GET", "/v1/releases").status_code == 200
    assert _as(api, narrow, "GET", "/v1/cohorts").status_code == 403


def test_a_token_ends_with_its_time_and_with_its_key(api, store, clock) -> None:
    key = api.keys["researcher"]
    first, second = (_token(api, key).json()["access_token"] for _ in range(2))
    clock.move(minutes=16)
    late = _as(api, first, "GET", "/v1/releases")
    assert late.status_code == 401
    assert "/v1/oauth/token" in late.json()["detail"]
    third = _token(api, key).json()["access_token"]  # clears what has ended
    with store.database.read() as session:
        assert session.scalar(select(func.count()).select_from(AccessTokenRow)) == 1
        kept = session.scalars(select(AccessTokenRow)).one()
        assert third not in str(vars(kept))
    keys.revoke_key(store, key.split("_")[1])
    for token in (second, third):
        assert _as(api, token, "GET", "/v1/releases").status_code == 401
    brief = keys.create_key(store, role="auditor", owner="a", lifetime=dt.timedelta(minutes=2))
    assert access_tokens.issue_token(store, brief.key).lifetime <= dt.timedelta(minutes=2)


def test_a_token_does_not_turn_into_a_key(api) -> None:
    token = _token(api, api.keys["operator"]).json()["access_token"]
    wanted = {"role": "operator", "owner": "x"}
    assert _as(api, token, "POST", "/v1/keys", json=wanted).status_code == 403
    assert _as(api, token, "POST", "/v1/keys/current/rotate", json={}).status_code == 403


@pytest.mark.parametrize(
    ("form", "status", "error"),
    [
        ({}, 400, "invalid_request"),
        ({"grant_type": "password"}, 400, "unsupported_grant_type"),
        ({"grant_type": "client_credentials"}, 401, "invalid_client"),
        ({"grant_type": "client_credentials", "client_id": "x", "client_secret": "y"}, 401, "invalid_client"),
    ],
)
def test_what_is_wrong_with_a_client_is_said_as_oauth_says_it(
    api, form: dict, status: int, error: str
) -> None:
    answer = api.client.post("/v1/oauth/token", data=form)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error_description"]


def test_no_scope_beyond_the_keys_and_no_field_twice(api, store) -> None:
    scoped = keys.create_key(store, role="researcher", owner="r", scopes=["releases:read"]).text
    for scope in ("cohorts:write", "nonsense"):
        answer = _token(api, scoped, scope=scope)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_scope")
    twice = "grant_type=client_credentials&grant_type=client_credentials"
    assert (
        api.client.post("/v1/oauth/token", content=twice, headers=FORM).json()["error"] == "invalid_request"
    )
    for body in (b"\xff\xfe", b"&" * 1000, b"a=" + b"%00" * 100):
        assert api.client.post("/v1/oauth/token", content=body, headers=FORM).status_code == 400


def test_guessing_secrets_is_stopped_and_blocks_no_sites(api) -> None:
    for _ in range(10):
        assert (
            api.client.post("/v1/oauth/token", data={"grant_type": "client_credentials"}).status_code == 401
        )
    stopped = api.client.post("/v1/oauth/token", data={"grant_type": "client_credentials"})
    assert stopped.status_code == 429
    assert int(stopped.headers["retry-after"]) >= 1
    api.client.app.state.wrong_answers.check("testclient")


def test_keys_are_listed_newest_first_a_page_at_a_time_and_each_once(api, store, clock) -> None:
    for number in range(7):
        keys.create_key(store, role="researcher", owner="researcher" if number % 2 else "other")
    before = [one.prefix for one in keys.list_keys(store)]
    seen, cursor = [], None
    while True:
        page = api.get(
            "operator", "/v1/keys", params={"limit": 3, **({"cursor": cursor} if cursor else {})}
        ).json()
        assert len(page["items"]) <= 3
        seen += [one["prefix"] for one in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
        keys.create_key(store, role="researcher", owner="late")  # shifts nothing
    assert seen == before
    own = api.get("researcher", "/v1/keys", params={"limit": 2}).json()
    rest = api.get("researcher", "/v1/keys", params={"cursor": own["next_cursor"]}).json()
    assert [one["owner"] for page in (own, rest) for one in page["items"]] == ["researcher"] * 4
    assert rest["next_cursor"] is None
    assert api.get("researcher", "/v1/keys", params={"limit": 0}).status_code == 422
    assert api.get("researcher", "/v1/keys", params={"cursor": "?"}).status_code == 422
