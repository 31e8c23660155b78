"""Keys and roles: every cell of role x route, anonymous first; nothing of another researcher is visible."""

from __future__ import annotations

import datetime as dt

import pytest

from server import keys
from server.errors import InvalidError, NotFoundError
from server.tables import ApiKeyRow

DIGEST = "sha256:" + "0" * 64
# (method, path, who may: the others get 403). What a role may reach then answers by the state of things.
ROUTES = [
    ("POST", "/v1/studies", {"operator"}),
    ("GET", "/v1/studies", {"operator", "auditor"}),
    ("GET", "/v1/studies/none", {"operator", "auditor"}),
    ("POST", "/v1/sites", {"operator"}),
    ("GET", "/v1/sites", {"operator", "auditor"}),
    ("GET", "/v1/sites/none", {"operator", "auditor"}),
    ("PUT", "/v1/sites/none/state", {"operator"}),
    ("POST", "/v1/invitations", {"operator"}),
    ("GET", "/v1/invitations", {"operator", "auditor"}),
    ("POST", "/v1/enrolments/none/approve", {"operator"}),
    ("POST", "/v1/enrolments/none/deny", {"operator"}),
    ("POST", "/v1/runs", {"operator"}),
    ("GET", "/v1/runs", {"operator", "auditor"}),
    ("GET", "/v1/runs/none", {"operator", "auditor"}),
    ("POST", "/v1/runs/none/stop", {"operator"}),
    ("POST", "/v1/runs/none/resume", {"operator"}),
    ("GET", "/v1/releases", {"operator", "researcher", "auditor"}),
    ("GET", f"/v1/releases/{DIGEST}", {"operator", "researcher", "auditor"}),
    ("POST", f"/v1/releases/{DIGEST}/publish", {"operator"}),
    ("POST", f"/v1/releases/{DIGEST}/withhold", {"operator"}),
    ("POST", f"/v1/releases/{DIGEST}/withdraw", {"operator"}),
    ("POST", "/v1/cohorts", {"operator", "researcher"}),
    ("GET", "/v1/cohorts", {"operator", "researcher"}),
    ("GET", "/v1/cohorts/none", {"operator", "researcher"}),
    ("DELETE", "/v1/cohorts/none", {"operator", "researcher"}),
    ("GET", "/v1/cohorts/none/files/cohort.csv", {"operator", "researcher"}),
    ("GET", "/v1/ledger/checkpoint", {"operator", "auditor"}),
    ("GET", "/v1/ledger/entries", {"operator", "auditor"}),
    ("GET", "/v1/ledger/proofs/inclusion?index=0&size=1", {"operator", "auditor"}),
    ("GET", "/v1/ledger/proofs/consistency?old=0&new=0", {"operator", "auditor"}),
    ("GET", "/v1/ledger/export", {"operator", "auditor"}),
]

# Public, or taken on the word of a secret or of a site's signature (test_invitations.py, test_site_word.py).
OPEN_ROUTES = {
    ("GET", "/v1/health"),
    ("GET", "/v1/federation"),
    ("POST", "/v1/enrolments"),
    ("POST", "/v1/sites/{name}/leave"),
    ("POST", "/v1/sites/{name}/key"),
}


def test_the_table_of_routes_is_complete(api) -> None:
    declared = {
        (method.upper(), path)
        for path, methods in api.client.app.openapi()["paths"].items()
        for method in methods
        if (method.upper(), path) not in OPEN_ROUTES
    }
    listed = set()
    for method, path, _ in ROUTES:
        plain = path.partition("?")[0].replace(DIGEST, "{digest}")
        for collection, name in (
            ("studies", "name"),
            ("sites", "name"),
            ("enrolments", "name"),
            ("runs", "run_id"),
            ("cohorts", "cohort_id"),
        ):
            plain = plain.replace(f"/{collection}/none", f"/{collection}/{{{name}}}")
        listed.add((method, plain.replace("/files/cohort.csv", "/files/{name}")))
    assert listed == declared


def test_without_a_key_every_route_answers_401(api) -> None:
    for method, path, _ in ROUTES:
        answer = api.call(None, method, path)
        assert answer.status_code == 401, (method, path)
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("role", ["operator", "researcher", "auditor"])
def test_a_role_reaches_its_routes_and_no_other(api, role: str) -> None:
    for method, path, allowed in ROUTES:
        body = {"json": {}} if method in {"POST", "PUT"} else {}
        answer = api.call(role, method, path, **body)
        assert (answer.status_code == 403) == (role not in allowed), (method, path, answer.text)
        assert answer.status_code < 500, (method, path)
        assert answer.status_code != 401, (method, path)


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
