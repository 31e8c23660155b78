"""Keys and roles: every cell of role x route, anonymous first; nothing of another researcher is visible."""

from __future__ import annotations

import datetime as dt
import re

import pytest
from fastapi.routing import APIRoute

from server import keys
from server.api.auth import scope_of
from server.errors import InvalidError, NotFoundError
from server.tables import ApiKeyRow

DIGEST = "sha256:" + "0" * 64
EVERYBODY = {"operator", "researcher", "auditor"}
READERS = {"operator", "auditor"}
USERS = {"operator", "researcher"}
OPERATOR = {"operator"}
# Who may: the others get 403. What a role may reach then answers by the state of things. A route that stands neither
# here nor among the open ones fails the first test.
ROUTES = {
    "POST /v1/studies": OPERATOR,
    "GET /v1/studies": READERS,
    "GET /v1/studies/{name}": READERS,
    "POST /v1/sites": OPERATOR,
    "GET /v1/sites": READERS,
    "GET /v1/sites/{name}": READERS,
    "PUT /v1/sites/{name}/state": OPERATOR,
    "POST /v1/invitations": OPERATOR,
    "GET /v1/invitations": READERS,
    "POST /v1/enrolments/{name}/approve": OPERATOR,
    "POST /v1/enrolments/{name}/deny": OPERATOR,
    "POST /v1/runs": OPERATOR,
    "GET /v1/runs": READERS,
    "GET /v1/runs/{run_id}": READERS,
    "GET /v1/runs/{run_id}/events": READERS,
    "POST /v1/runs/{run_id}/stop": OPERATOR,
    "POST /v1/runs/{run_id}/resume": OPERATOR,
    "GET /v1/releases": EVERYBODY,
    "GET /v1/releases/{digest}": EVERYBODY,
    "GET /v1/releases/{digest}/preview": USERS,
    "POST /v1/releases/{digest}/preview": USERS,
    "GET /v1/releases/{digest}/pictures": EVERYBODY,
    "POST /v1/releases/{digest}/publish": OPERATOR,
    "POST /v1/releases/{digest}/withhold": OPERATOR,
    "POST /v1/releases/{digest}/withdraw": OPERATOR,
    "POST /v1/cohorts": USERS,
    "GET /v1/cohorts": USERS,
    "GET /v1/cohorts/{cohort_id}": USERS,
    "DELETE /v1/cohorts/{cohort_id}": USERS,
    "POST /v1/cohorts/{cohort_id}/cancel": USERS,
    "GET /v1/cohorts/{cohort_id}/files/{name:path}": USERS,
    "HEAD /v1/cohorts/{cohort_id}/files/{name:path}": USERS,
    "GET /v1/ledger/checkpoint": READERS,
    "GET /v1/ledger/entries": READERS,
    "GET /v1/ledger/proofs/inclusion": READERS,
    "GET /v1/ledger/proofs/consistency": READERS,
    "GET /v1/ledger/export": READERS,
    "GET /v1/keys": EVERYBODY,
    "POST /v1/keys": OPERATOR,
    "GET /v1/keys/{prefix}": EVERYBODY,
    "DELETE /v1/keys/{prefix}": EVERYBODY,
    "POST /v1/keys/current/rotate": EVERYBODY,
}
# Public, or taken on the word of a secret or of a site's signature (test_invitations.py, test_site_word.py,
# test_api_tokens.py).
OPEN_ROUTES = {
    "GET /v1/health",
    "GET /v1/federation",
    "POST /v1/enrolments",
    "POST /v1/sites/{name}/leave",
    "POST /v1/sites/{name}/key",
    "POST /v1/oauth/token",
}
PARAMETERS = {"{digest}": DIGEST, "{name:path}": "cohort.csv"}


def _address(route: str) -> tuple[str, str]:
    """A route as (method, path of something that there is not)."""
    method, _, path = route.partition(" ")
    for name, value in PARAMETERS.items():
        path = path.replace(name, value)
    return method, re.sub(r"\{\w+\}", "none", path)


def _routes(api) -> list:
    """The application's own routes, and those of the routers that it includes."""
    found = []
    for route in api.client.app.routes:
        inner = getattr(route, "original_router", None)
        found += [route] if inner is None else inner.routes
    return [route for route in found if isinstance(route, APIRoute)]


def test_every_route_of_the_application_stands_in_the_table(api) -> None:
    declared = {f"{method} {route.path}" for route in _routes(api) for method in route.methods}
    assert declared == set(ROUTES) | OPEN_ROUTES


def test_without_a_key_every_route_answers_401(api) -> None:
    for route in ROUTES:
        method, path = _address(route)
        answer = api.call(None, method, path)
        assert answer.status_code == 401, route
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("role", ["operator", "researcher", "auditor"])
def test_a_role_reaches_its_routes_and_no_other(api, role: str) -> None:
    for route, allowed in ROUTES.items():
        method, path = _address(route)
        body = {"json": {}} if method in {"POST", "PUT"} else {}
        if path.endswith("/current/rotate"):
            body = {"json": {"overlap_hours": 1}}
        answer = api.call(role, method, path, **body)
        assert (answer.status_code == 403) == (role not in allowed), (route, answer.text)
        assert answer.status_code < 500, route
        assert answer.status_code != 401, route


def test_a_key_without_the_scope_of_a_route_is_refused_there_whatever_its_role(api, store) -> None:
    """Every route x a key of each role that has every scope but the one that the route needs."""
    by_name = {f"{method} {one.path}": one for one in _routes(api) for method in one.methods}
    for route, allowed in ROUTES.items():
        method, path = _address(route)
        needed = scope_of(by_name[route].tags[0], method, by_name[route].name)
        assert needed in keys.SCOPES, route
        others = [scope for scope in keys.SCOPES if scope != needed]
        role = sorted(allowed)[0]
        api.keys["scoped"] = keys.create_key(store, role=role, owner="x", scopes=others).text
        answer = api.call("scoped", method, path)
        assert answer.status_code == 403, route
        assert f'scope="{needed}"' in answer.headers["www-authenticate"]


def test_what_changes_nothing_needs_no_right_to_write(api) -> None:
    for route in _routes(api):
        for method in route.methods:
            if f"{method} {route.path}" in ROUTES:
                reads = method in {"GET", "HEAD"} or route.path.endswith("/preview")
                assert scope_of(route.tags[0], method, route.name).endswith(":read" if reads else ":write")


def test_the_document_says_which_roles_and_which_scope_an_operation_needs(api) -> None:
    paths = api.client.app.openapi()["paths"]
    by_name = {f"{method} {one.path}": one for one in _routes(api) for method in one.methods}
    for route, allowed in ROUTES.items():
        method, _, path = route.partition(" ")
        operation = paths[by_name[route].path_format][method.lower()]
        assert set(operation["x-roles"]) == allowed, route
        needed = scope_of(by_name[route].tags[0], method, by_name[route].name)
        assert operation["security"] == [{"API key": [needed]}], route
    for route in OPEN_ROUTES:
        method, _, path = route.partition(" ")
        assert not {"x-roles", "security"} & set(paths[path][method.lower()]), route


def test_health_needs_no_key(api) -> None:
    assert api.get(None, "/v1/health").json()["status"] == "ok"


def test_a_wrong_key_is_401_and_says_nothing_more(api) -> None:
    unknown = "ftw_aaaaaaaaaa_" + "A" * 43
    for text in ("", "ftw_", "nonsense", unknown, unknown.replace("_a", "_\x00"), "x" * 5000):
        answer = api.client.get("/v1/releases", headers={"Authorization": f"Bearer {text}".encode()})
        assert answer.status_code == 401
        assert len(text) < 5 or text not in answer.text


def test_a_key_with_one_other_character_is_not_the_key(store) -> None:
    text = keys.create_key(store, role="auditor", owner="anna").text
    assert keys.check_key(store, text).owner == "anna"
    for at in (5, 20, len(text) - 2):
        other = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
        with pytest.raises(keys.KeyRefusedError, match="not a key"):
            keys.check_key(store, other)


def test_only_the_hash_of_a_secret_is_kept(store) -> None:
    text = keys.create_key(store, role="auditor", owner="anna").text
    with store.database.read() as session:
        row = session.query(ApiKeyRow).one()
        kept = " ".join(str(getattr(row, column.key)) for column in ApiKeyRow.__table__.columns)
    assert text.split("_", 2)[2] not in kept


def test_a_key_expires_and_can_be_revoked_and_notes_its_use(store, clock) -> None:
    made = keys.create_key(store, role="researcher", owner="rita", lifetime=dt.timedelta(days=1))
    assert keys.list_keys(store)[0].last_used_at is None
    keys.check_key(store, made.text)
    first = keys.list_keys(store)[0].last_used_at
    keys.check_key(store, made.text)
    assert keys.list_keys(store)[0].last_used_at == first  # at most one write a minute
    clock.move(minutes=2)
    keys.check_key(store, made.text)
    assert keys.list_keys(store)[0].last_used_at > first
    clock.move(days=1)
    with pytest.raises(keys.KeyRefusedError, match="expired on"):
        keys.check_key(store, made.text)
    other = keys.create_key(store, role="researcher", owner="rita")
    keys.revoke_key(store, other.key.prefix)
    with pytest.raises(keys.KeyRefusedError, match="was revoked"):
        keys.check_key(store, other.text)
    with pytest.raises(NotFoundError):
        keys.revoke_key(store, "nothing")


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("role", {"role": "root", "owner": "x"}),
        ("owner", {"role": "auditor", "owner": ""}),
        ("owner", {"role": "auditor", "owner": "a\nb"}),
        ("lifetime", {"role": "auditor", "owner": "x", "lifetime": dt.timedelta(0)}),
    ],
)
def test_a_key_that_makes_no_sense_is_not_made(store, field: str, values: dict) -> None:
    with pytest.raises(InvalidError) as caught:
        keys.create_key(store, **values)
    assert caught.value.field == field


def test_another_researchers_cohort_does_not_exist(api, scenario) -> None:
    release = scenario.release()
    made = api.post("researcher", "/v1/cohorts", {"release": release.digest, "num_patients": 5}).json()
    path = f"/v1/cohorts/{made['id']}"
    unknown = api.get("stranger", "/v1/cohorts/cohort-000000000000")
    for method, target in (("GET", path), ("DELETE", path), ("GET", f"{path}/files/cohort.csv")):
        answer = api.call("stranger", method, target)
        assert answer.status_code == 404
        assert answer.json()["detail"].replace(made["id"], "cohort-000000000000") == unknown.json()["detail"]
    assert api.get("stranger", "/v1/cohorts").json()["items"] == []
    assert [one["id"] for one in api.get("researcher", "/v1/cohorts").json()["items"]] == [made["id"]]
    # The operator sees that it is there and may cancel it, but never its files.
    assert api.get("operator", path).status_code == 200
    assert api.get("operator", f"{path}/files/cohort.csv").status_code == 403
    assert api.call("operator", "DELETE", path).json()["state"] == "cancelled"


def test_a_candidate_does_not_exist_for_researchers(api, scenario) -> None:
    from server import round_records

    scenario.register()
    scenario.enrol()
    run = scenario.start()
    for round in (1, 2, 3):
        scenario.record(run, round)
    digest = round_records.complete_run(scenario.store, run, release_round=3).digest
    wanted = {"release": digest, "num_patients": 5}
    assert api.get("researcher", "/v1/releases").json()["items"] == []
    assert api.get("researcher", f"/v1/releases/{digest}").status_code == 404
    assert api.post("researcher", "/v1/cohorts", wanted).status_code == 404
    assert api.post("operator", "/v1/cohorts", wanted).status_code == 409
    assert api.get("auditor", f"/v1/releases/{digest}").json()["state"] == "candidate"
    assert (
        api.post("operator", f"/v1/releases/{digest}/withhold", {"reason": "not yet"}).json()["state"]
        == "withheld"
    )
    assert api.post("operator", f"/v1/releases/{digest}/publish").json()["state"] == "published"
    assert api.post("researcher", "/v1/cohorts", wanted).status_code == 202
    assert (
        api.post("operator", f"/v1/releases/{digest}/withdraw", {"reason": "x"}).json()["state"]
        == "withdrawn"
    )
    assert api.post("researcher", "/v1/cohorts", wanted).status_code == 409
    assert api.get("researcher", f"/v1/releases/{digest}").json()["state"] == "withdrawn"
