"""Hostile clients: sizes, depths, paths, compressed bombs, foreign and dead keys; and nothing of another is visible."""

from __future__ import annotations

import datetime as dt
import gzip
import json

import pytest

from server import jobs, keys

TRICKS = (
    "../../fedtwin.db",
    "..%2f..%2ffedtwin.db",
    "..%252f..%252ffedtwin.db",
    "%2e%2e/%2e%2e/fedtwin.db",
    "....//....//fedtwin.db",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "fhir/%2e%2e/certificate.json",
    "fhir%2f..%2fcohort.csv",
    "%2e/cohort.csv",
    "cohort.csv/",
    "cohort.csv%00.txt",
    "cohort.csv%0a",
    "COHORT.CSV",
    "cohort.csv::$DATA",
    "C:\\cohort.csv",
    "..\\..\\fedtwin.db",
    ".drafts.x/cohort.csv",
    "~",
    "%ff%fe",
    "\N{FULLWIDTH FULL STOP}\N{FULLWIDTH FULL STOP}/x",
    "x" * 5000,
)


@pytest.fixture
def database_url(tmp_path) -> str:
    return f"sqlite:///{tmp_path / 'fedtwin.db'}"


@pytest.fixture
def cohort(api, scenario, store) -> dict:
    release = scenario.release().digest
    made = api.post("researcher", "/v1/cohorts", {"release": release, "num_patients": 5}).json()
    assert jobs.make_next(store)
    return made


def test_no_trick_in_a_path_reaches_a_file(api, cohort: dict) -> None:
    for trick in TRICKS:
        for path in (f"/v1/cohorts/{cohort['id']}/files/{trick}", f"/v1/cohorts/{trick}/files/cohort.csv"):
            answer = api.get("researcher", path)
            assert answer.status_code in (400, 404), (trick, answer.status_code)
            assert answer.headers["content-type"] == "application/problem+json"
    for trick in TRICKS:
        answer = api.get("researcher", f"/v1/releases/{trick}")
        assert answer.status_code in (400, 404, 422), trick


def test_a_billion_rows_are_refused_by_name_and_bound(api, cohort: dict) -> None:
    for number in (10**9, 10**18, 10**30, 1e9, "1e9", [10**9]):
        wanted = {"release": cohort["release"], "num_patients": number}
        answer = api.post("researcher", "/v1/cohorts", wanted)
        assert answer.status_code == 422
        (fault,) = answer.json()["errors"]
        assert fault["field"] == "num_patients"


def test_deep_and_wide_json_is_refused_in_a_sentence(api, cohort: dict) -> None:
    deep = '{"not":' * 2_000 + '"age > 1"' + "}" * 2_000
    nested: object = "age > 1"
    for _ in range(60):
        nested = {"not": nested}
    wide = {"any": [{"column": "age", "op": "==", "value": n} for n in range(5_000)]}
    release = cohort["release"]
    bodies = [
        f'{{"release": "{release}", "num_patients": 5, "conditions": [{deep}]}}'.encode(),
        json.dumps({"release": release, "num_patients": 5, "conditions": [nested]}).encode(),
        json.dumps({"release": release, "num_patients": 5, "conditions": [wide]}).encode(),
        json.dumps({"release": release, "num_patients": 5, "conditions": ["not " * 1900 + "ill"]}).encode(),
        json.dumps(
            {"release": release, "num_patients": 5, "conditions": ["(" * 1500 + "ill" + ")" * 1500]}
        ).encode(),
        json.dumps({"release": release, "num_patients": 5, "columns": ["age"] * 10_000}).encode(),
        b'{"release":' + b"[" * 200_000,
        b'{"num_patients": 1' + b"0" * 100_000 + b"}",
        b'{"a": NaN, "num_patients": Infinity}',
    ]
    for body in bodies:
        for path in ("/v1/cohorts", f"/v1/releases/{release}/preview"):
            answer = api.post("researcher", path, content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code in (400, 422), (body[:60], answer.status_code)
            assert answer.headers["content-type"] == "application/problem+json"
            assert len(answer.content) < 50_000


def test_a_condition_that_computes_for_ever_cannot_be_written(api, cohort: dict) -> None:
    for text in (
        "age > 9**9**9**9",
        "age > 'x' * 10**9",
        "age in [0] * 10**9",
        "age > (lambda: 1)()",
        "age > 1e999",
    ):
        answer = api.post(
            "researcher",
            "/v1/cohorts",
            {"release": cohort["release"], "num_patients": 5, "conditions": [text]},
        )
        assert answer.status_code == 422, text
        assert answer.json()["errors"][0]["field"] == "conditions"


def test_compressed_bodies_are_not_unpacked(api) -> None:
    bomb = gzip.compress(b"0" * 50_000_000)
    for coding in ("gzip", "deflate", "br", "zstd", "gzip, gzip"):
        answer = api.post(
            "researcher",
            "/v1/cohorts",
            content=bomb,
            headers={"Content-Encoding": coding, "Content-Type": "application/json"},
        )
        assert answer.status_code == 415
    plain = api.post("researcher", "/v1/cohorts", content=bomb, headers={"Content-Type": "application/json"})
    assert plain.status_code in (400, 422)


def test_dead_and_foreign_keys_are_all_the_same_401(api, store, clock) -> None:
    expired = keys.create_key(store, role="operator", owner="x", lifetime=dt.timedelta(hours=1)).text
    revoked = keys.create_key(store, role="operator", owner="x")
    keys.revoke_key(store, revoked.key.prefix)
    clock.move(hours=2)
    for text in (expired, revoked.text, "ftt_" + "A" * 43, "ftw_" + "a" * 10 + "_" + "A" * 43, "null", "é"):
        answer = api.client.get("/v1/releases", headers={"Authorization": f"Bearer {text}".encode()})
        assert answer.status_code == 401, text
        assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    for scheme in ("Basic eDp5", "Bearer", "Digest x", "bearer  "):
        assert api.client.get("/v1/releases", headers={"Authorization": scheme}).status_code == 401


def test_no_answer_lets_another_site_read_it(api, cohort: dict) -> None:
    origin = {"Origin": "https://elsewhere.example"}
    for method, path in (
        ("GET", "/v1/releases"),
        ("OPTIONS", "/v1/cohorts"),
        ("GET", f"/v1/cohorts/{cohort['id']}"),
    ):
        answer = api.call("researcher", method, path, headers=origin)
        assert not [name for name in answer.headers if name.startswith("access-control-")]


def _everything_of(api, who: str) -> str:
    """Every answer that a caller gets by asking all that it can for lists."""
    pages = []
    for path in ("/v1/cohorts", "/v1/keys", "/v1/releases", "/v1/keys/current"):
        answer = api.get(who, path, params={"limit": 200} if path != "/v1/keys/current" else {})
        pages.append(answer.text)
    return "\n".join(pages)


def test_nothing_that_another_researcher_made_is_visible(api, cohort: dict, store) -> None:
    """Owner x route: a stranger asks for what is not theirs in every way that there is."""
    marked = keys.create_key(store, role="researcher", owner="researcher").key
    seen = _everything_of(api, "stranger")
    for secret in (cohort["id"], str(cohort["seed"]), marked.prefix, '"researcher"'.replace('"', "") + "@"):
        assert secret not in seen
    foreign, unknown = f"/v1/cohorts/{cohort['id']}", "/v1/cohorts/cohort-000000000000"
    for method, end in (
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("GET", "/files/cohort.csv"),
        ("HEAD", "/files/cohort.csv"),
        ("GET", "/files/certificate.json"),
        ("GET", "/files/nothing"),
    ):
        found = api.call("stranger", method, foreign + end)
        nothing = api.call("stranger", method, unknown + end)
        assert (found.status_code, nothing.status_code) == (404, 404)
        assert found.text.replace(cohort["id"], "cohort-000000000000") == nothing.text
        assert set(found.headers) == set(nothing.headers)
    # Not by a cursor that points into the other's list, either; nor by the other's idempotency key.
    own = api.get("researcher", "/v1/cohorts", params={"limit": 1}).json()
    assert [one["id"] for one in own["items"]] == [cohort["id"]]
    from server.api.paging import encode_cursor

    cursor = encode_cursor(dt.datetime(2100, 1, 1, tzinfo=dt.UTC), "z")
    assert api.get("stranger", "/v1/cohorts", params={"cursor": cursor}).json()["items"] == []
    assert api.get("auditor", foreign).status_code == 403
    assert api.get("operator", f"{foreign}/files/certificate.json").status_code == 403
