"""Quotas, expiry, validators and ranges: what is left is told, what is gone says so, what one has is not sent again."""

from __future__ import annotations

import base64
import hashlib

import pytest

from server import cohorts, jobs, keys, ledger_store
from server.allowances import Allowances
from server.api.metering import RequestMeter


def _made(api, store, release: str, **more) -> dict:
    wanted = {"release": release, "num_patients": 60, "seed": 3, **more}
    path = api.post("researcher", "/v1/cohorts", wanted).headers["location"]
    assert jobs.make_next(store)
    done = api.get("researcher", path).json()
    assert done["state"] == "completed", done
    return done


def test_a_day_has_so_many_rows_and_the_answer_says_how_many_are_left(api, store, scenario, clock) -> None:
    release = scenario.release().digest
    api.keys["small"] = keys.create_key(store, role="researcher", owner="sam", rows_per_day=100).text
    first = api.post("small", "/v1/cohorts", {"release": release, "num_patients": 60})
    assert first.status_code == 202
    assert '"rows";q=100;w=86400' in first.headers["ratelimit-policy"]
    assert '"rows";r=40;t=' in first.headers["ratelimit"]
    assert '"requests";' in first.headers["ratelimit"]
    refused = api.post("small", "/v1/cohorts", {"release": release, "num_patients": 41})
    assert refused.status_code == 429
    problem = refused.json()
    assert problem["type"].endswith(":quota")
    assert problem["errors"][0]["field"] == "num_patients"
    assert "40 of your 100 rows per day are left" in problem["detail"]
    assert "at 00:00 UTC" in problem["detail"]
    assert int(refused.headers["retry-after"]) == pytest.approx(
        12 * 3600, abs=60
    )  # the test's clock is at noon
    assert '"rows";r=40;' in refused.headers["ratelimit"]
    too_many = api.post("small", "/v1/cohorts", {"release": release, "num_patients": 101})
    assert "ask the operator for a larger quota" in too_many.json()["detail"]
    # A cancelled cohort gives back what was not drawn; another key of the same owner brings no more.
    assert api.call("small", "DELETE", first.headers["location"]).status_code == 200
    api.keys["other"] = keys.create_key(store, role="researcher", owner="sam", rows_per_day=100).text
    assert api.post("other", "/v1/cohorts", {"release": release, "num_patients": 90}).status_code == 202
    assert api.post("small", "/v1/cohorts", {"release": release, "num_patients": 20}).status_code == 429
    assert api.get("small", "/v1/keys/current").json()["rows_left_today"] == 10
    api.keys["sue"] = keys.create_key(store, role="researcher", owner="sue", rows_per_day=100).text
    assert api.post("sue", "/v1/cohorts", {"release": release, "num_patients": 100}).status_code == 202
    clock.move(hours=13)
    assert api.post("small", "/v1/cohorts", {"release": release, "num_patients": 100}).status_code == 202


def test_the_same_idempotency_key_costs_the_quota_once(api, store, scenario) -> None:
    release = scenario.release().digest
    api.keys["small"] = keys.create_key(store, role="researcher", owner="sam", rows_per_day=100).text
    wanted, name = {"release": release, "num_patients": 100}, {"Idempotency-Key": "one"}
    first = api.post("small", "/v1/cohorts", wanted, headers=name)
    again = api.post("small", "/v1/cohorts", wanted, headers=name)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]


def test_a_key_that_asks_too_often_is_told_when_to_ask_again(api) -> None:
    now = [0.0]
    api.client.app.state.meter = RequestMeter(3, clock=lambda: now[0])
    left = [api.get("researcher", "/v1/releases") for _ in range(4)]
    assert [answer.status_code for answer in left] == [200, 200, 200, 429]
    assert left[0].headers["ratelimit-policy"] == '"requests";q=3;w=60'
    assert left[0].headers["ratelimit"].startswith('"requests";r=2;t=')
    assert left[3].headers["retry-after"] == "20"
    assert "3 times a minute" in left[3].json()["detail"]
    assert api.get("stranger", "/v1/releases").status_code == 200  # another key
    now[0] = 20.0
    assert api.get("researcher", "/v1/releases").status_code == 200
    assert api.get(None, "/v1/health").status_code == 200


def test_a_cohort_expires_its_certificate_and_its_entry_stay(api, store, scenario, clock) -> None:
    release = scenario.release().digest
    done = _made(api, store, release)
    path = f"/v1/cohorts/{done['id']}"
    assert done["expires_at"].startswith("2026-03-31")
    assert jobs.clear_folders(store) == 0
    clock.move(days=30, seconds=1)
    # From the moment on that it expires, whether the worker came by or not.
    for removed in (0, 1):
        shown = api.get("researcher", path).json()
        assert (shown["state"], shown["percent"]) == ("expired", 100.0)
        assert [file["name"] for file in shown["files"]] == ["certificate.json"]
        gone = api.get("researcher", f"{path}/files/cohort.csv")
        assert gone.status_code == 410
        assert f"seed {done['seed']}" in gone.json()["detail"]
        certificate = api.get("researcher", f"{path}/files/certificate.json")
        assert certificate.json()["statement"]["cohort"] == done["id"]
        if not removed:
            assert jobs.clear_folders(store) == 1
    assert not (store.cohorts / done["id"]).exists()
    assert jobs.clear_folders(store) == 0
    entry = next(ledger_store.read_entries(store, start=done["ledger_index"], count=1)).entry.body
    assert entry.cohort == done["id"]
    again = _made(api, store, release)
    digests = {file["name"]: file["digest"] for file in again["files"]}
    assert {name: digests[name] for name in ("cohort.csv", "cohort.parquet")} == {
        name: certificate.json()["statement"]["files"][name] for name in ("cohort.csv", "cohort.parquet")
    }


def test_ranges_give_the_same_file_in_pieces(api, store, scenario) -> None:
    done = _made(api, store, scenario.release().digest)
    url = f"/v1/cohorts/{done['id']}/files/cohort.csv"
    whole = api.get("researcher", url)
    size, etag = len(whole.content), whole.headers["etag"]
    assert etag == f'"{hashlib.sha256(whole.content).hexdigest()}"'
    told = base64.b64encode(hashlib.sha256(whole.content).digest()).decode()
    assert whole.headers["repr-digest"] == f"sha-256=:{told}:"

    def ask(**headers: str):
        return api.get("researcher", url, headers={name.replace("_", "-"): v for name, v in headers.items()})

    for asked, part in (
        ("0-9", slice(0, 10)),
        (f"{size - 5}-", slice(size - 5, None)),
        ("-7", slice(-7, None)),
    ):
        answer = ask(Range=f"bytes={asked}")
        assert (answer.status_code, answer.content) == (206, whole.content[part])
        assert answer.headers["repr-digest"] == whole.headers["repr-digest"]
    assert ask(Range=f"bytes=3-{10**17}").content == whole.content[3:]
    assert ask(Range="bytes=10-", If_Range=etag).status_code == 206
    assert ask(Range="bytes=10-", If_Range='"another"').status_code == 200
    for beyond in (f"bytes={size}-", f"bytes={10**17}-", "bytes=-0"):
        answer = ask(Range=beyond)
        assert answer.status_code == 416
        assert answer.headers["content-range"] == f"bytes */{size}"
        assert answer.headers["content-type"] == "application/problem+json"
    for unreadable in ("bytes=", "bytes=9-3", "lines=1-2", "bytes=0-1,3-4", "x", "bytes=" + "9" * 30 + "-"):
        answer = ask(Range=unreadable)
        assert (answer.status_code, answer.content) == (200, whole.content), unreadable
    assert ask(If_None_Match=etag).status_code == 304
    head = api.call("researcher", "HEAD", url)
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == size
    assert head.headers["etag"] == etag


def test_what_one_has_of_the_catalogue_is_not_sent_again(api, scenario) -> None:
    digest = scenario.release().digest
    for path in ("/v1/releases", f"/v1/releases/{digest}"):
        first = api.get("researcher", path)
        assert first.headers["etag"] == f'"{hashlib.sha256(first.content).hexdigest()}"'
        again = api.get("researcher", path, headers={"If-None-Match": f'"x", W/{first.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b"")
        assert api.get("researcher", path, headers={"If-None-Match": '"x"'}).status_code == 200
    api.post("operator", f"/v1/releases/{digest}/withdraw", {"reason": "x"})
    later = api.get("researcher", path, headers={"If-None-Match": first.headers["etag"]})
    assert later.status_code == 200


def test_the_catalogue_is_searched(api, scenario) -> None:
    digest = scenario.release().digest
    hits = [
        {"q": "heart hospitals"},
        {"q": "AGE"},
        {"study": "heart"},
        {"modality": "table"},
        {"column": "ill"},
        {"state": "published"},
        {"study": "heart", "column": "age", "q": "disease"},
    ]
    for query in hits:
        items = api.get("researcher", "/v1/releases", params=query).json()["items"]
        assert [one["digest"] for one in items] == [digest], query
    for query in (
        {"q": "lungs"},
        {"study": "x"},
        {"modality": "image"},
        {"column": "height"},
        {"state": "withdrawn"},
    ):
        assert api.get("researcher", "/v1/releases", params=query).json()["items"] == [], query
    assert api.get("researcher", "/v1/releases", params={"state": "candidate"}).json()["items"] == []
    assert api.get("researcher", "/v1/releases", params={"state": "secret"}).status_code == 422


def test_the_settings_reach_the_store(store, home) -> None:
    assert store.allowances == Allowances()
    assert store.allowances.keep_cohorts.days == 30
    assert cohorts.MAX_PATIENTS < 10**9


def test_formats_that_a_release_cannot_be_had_in_say_why_at_once(api, scenario) -> None:
    digest = scenario.release().digest
    told = {one["name"]: one for one in api.get("researcher", f"/v1/releases/{digest}").json()["formats"]}
    assert told["csv"]["missing"] is None
    for name in ("fhir", "omop", "png", "dicom"):
        answer = api.post(
            "researcher", "/v1/cohorts", {"release": digest, "num_patients": 5, "formats": ["csv", name]}
        )
        assert answer.status_code == 422
        (fault,) = answer.json()["errors"]
        assert fault["field"] == "formats"
        assert told[name]["missing"] in fault["detail"]
