"""What cannot be is a problem that names field, value and bound; a body or address that makes no sense is one, too."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from server import jobs


def test_an_impossible_number_of_patients_is_named_with_its_bound(api) -> None:
    impossible = [
        (0, "1"),
        (-1, "1"),
        (10**12, "10000000"),
        (10**400, "10000000"),
        (1.5, "integer"),
        ("many", "integer"),
        (None, "integer"),
        (True, "integer"),
    ]
    for num_patients, bound in impossible:
        wanted = {"release": "sha256:" + "0" * 64, "num_patients": num_patients}
        problem = api.problem(api.post("researcher", "/v1/cohorts", wanted), 422)
        (fault,) = problem["errors"]
        assert fault["field"] == "num_patients"
        assert fault["detail"].startswith(f"num_patients is {num_patients!r}"[:100])
        assert bound in fault["detail"]


def test_a_field_that_cannot_be_is_named(api, scenario) -> None:
    release = scenario.release().digest
    for field, change in [
        ("release", {"release": "latest"}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": 2**53}),
        ("formats.0", {"formats": ["xlsx"]}),
        ("formats", {"formats": []}),
        ("columns", {"columns": ["height"]}),
        ("colums", {"colums": ["age"]}),
        ("formats", {"formats": ["zip"]}),
        ("conditions", {"conditions": ["height > 3"]}),
        ("conditions", {"conditions": [{"column": "age", "op": "~", "value": 3}]}),
        ("conditions", {"conditions": "age >= 'old'"}),
        ("conditions", {"conditions": ["age > 1"] * 101}),
        ("conditions", {"conditions": ["age > 1 and " * 400 + "age > 1"]}),
    ]:
        problem = api.problem(
            api.post("researcher", "/v1/cohorts", {"release": release, "num_patients": 5, **change}), 422
        )
        named = {fault["field"] for fault in problem["errors"]}
        assert field in named | {name.partition(".")[0] for name in named}, change


DIGEST = "sha256:" + "0" * 64
SENTENCES = [
    ({"release": DIGEST}, [("num_patients", "num_patients is missing")]),
    (
        {"release": DIGEST, "num_patients": 0},
        [("num_patients", "num_patients is 0: it must be greater than or equal to 1")],
    ),
    (
        {"release": DIGEST, "num_patients": 5, "conditions": 5},
        [("conditions", "conditions is 5: it must be a valid string or a valid list")],
    ),
    (
        {"release": DIGEST, "num_patients": 5, "conditions": ["age > 1", 5]},
        [("conditions.1", "conditions.1 is 5: it must be a valid string or an object")],
    ),
    (
        {"release": DIGEST, "num_patients": 5, "formats": []},
        [("formats", "formats is []: it must have at least 1 item")],
    ),
    (
        {"release": DIGEST, "num_patients": 5, "colums": ["age"]},
        [
            (
                "colums",
                "colums is ['age']: there is no field of this name here; /docs has those that there are",
            )
        ],
    ),
    (b"[1]", [("body", "body is [1]: it must be an object")]),
    (b"", [("body", "the body is missing")]),
    (b'{"release": "x",}', [("body", "the body is not JSON: Illegal trailing comma")]),
]


@pytest.mark.parametrize(("content", "faults"), SENTENCES)
def test_what_is_wrong_is_said_as_one_says_it(api, content, faults) -> None:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    answer = api.post("researcher", "/v1/cohorts", content=data, headers={"Content-Type": "application/json"})
    problem = api.problem(answer, 422)
    assert [fault["field"] for fault in problem["errors"]] == [field for field, _ in faults]
    for fault, (_, said) in zip(problem["errors"], faults, strict=True):
        if "not JSON" in said:  # what follows is Python's own
            assert fault["detail"].startswith(said.partition(": ")[0])
            assert "at character" in fault["detail"]
        else:
            assert fault["detail"] == said
    assert problem["detail"] == "; ".join(fault["detail"] for fault in problem["errors"])


def test_a_body_of_another_kind_is_named(api) -> None:
    answer = api.post(
        "researcher",
        "/v1/cohorts",
        content=b"a=b",
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    assert "x-www-form-urlencoded; send application/json" in api.problem(answer, 415)["detail"]


def test_an_address_says_all_that_it_takes(api) -> None:
    for path, methods in (
        ("/v1/cohorts", "GET, POST"),
        ("/v1/cohorts/x", "DELETE, GET"),
        ("/v1/health", "GET"),
    ):
        answer = api.call("researcher", "PATCH", path)
        assert answer.headers["allow"] == methods
        assert api.problem(answer, 405)["detail"] == f"this address takes {methods}, not PATCH"


def test_a_body_that_is_no_request_is_a_problem_and_never_a_crash(api) -> None:
    broken = [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"a":' * 50_000,
        b"1" * 10_000,
        b'{"release": "\\ud800"}',
        b"null",
    ]
    for content in broken:
        for path in ("/v1/cohorts", "/v1/runs", "/v1/sites", "/v1/studies"):
            answer = api.post("operator", path, content=content, headers={"Content-Type": "application/json"})
            assert answer.status_code in {400, 422}, (path, content[:20], answer.text)
            assert answer.headers["content-type"] == "application/problem+json"


def test_bodies_have_limits(api) -> None:
    too_much = b'{"study": "' + b"x" * 2**20 + b'"}'
    api.problem(api.post("operator", "/v1/runs", content=too_much), 413)

    def parts():
        for _ in range(20):
            yield b"x" * 2**16

    api.problem(api.post("operator", "/v1/runs", content=parts()), 413)  # without a Content-Length
    answer = api.post(
        "operator", "/v1/studies", content=too_much, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422  # a study may be larger
    api.problem(api.post("operator", "/v1/runs", content=b"x", headers={"Content-Encoding": "gzip"}), 415)


def test_addresses_that_lead_nowhere_are_problems_too(api) -> None:
    for path in ("/v1/studies/%00", "/v1/runs?study=%00", "/v1/cohorts?cursor=%00"):
        api.problem(api.get("operator", path), 400)
    for path in (
        "/v1/nothing",
        "/v2/studies",
        "/v1/cohorts/../../etc/passwd",
        "/v1/studies/%2e%2e%2f",
        "/v1/runs/",
    ):
        api.problem(api.get("operator", path), 404)
    api.problem(api.call("operator", "PUT", "/v1/runs"), 405)


def test_file_names_cannot_climb_out(api, scenario) -> None:
    release = scenario.release()
    made = api.post("researcher", "/v1/cohorts", {"release": release.digest, "num_patients": 5}).json()
    assert jobs.make_next(scenario.store)
    for name in ("..%2f..%2ffedtwin.db", "%2e%2e", ".cohort.csv", "cohort.csv%2f", "C:cohort.csv"):
        assert api.get("researcher", f"/v1/cohorts/{made['id']}/files/{name}").status_code == 404


def test_a_database_that_is_locked_is_503_and_to_be_tried_again(api, scenario) -> None:
    scenario.register()

    def away(*_args, **_kwargs):
        raise OperationalError("SELECT", {}, Exception("database is locked"))

    event.listen(scenario.store.database.engine, "begin", away)
    answer = api.get("operator", "/v1/studies")
    api.problem(answer, 503)
    assert answer.headers["retry-after"] == "5"
    api.problem(api.get(None, "/v1/health"), 503)
    event.remove(scenario.store.database.engine, "begin", away)
    assert api.get("operator", "/v1/studies").status_code == 200
