"""The API's answers: progress, paging, idempotency, and a problem that names field, value and bound for bad input."""

from __future__ import annotations

import base64
import io
import json
import zipfile

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from privacy.checkpoint import open_checkpoint
from privacy.merkle import LedgerVerificationError, leaf_hash, verify_consistency, verify_inclusion
from privacy.verification import verify_export
from server import jobs, runs


def _problem(answer, status: int) -> dict:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert {"type", "title", "detail"} <= set(body)
    return body


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
        problem = _problem(api.post("researcher", "/v1/cohorts", wanted), 422)
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
        problem = _problem(
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
    problem = _problem(answer, 422)
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
    assert "x-www-form-urlencoded; send application/json" in _problem(answer, 415)["detail"]


def test_an_address_says_all_that_it_takes(api) -> None:
    for path, methods in (
        ("/v1/cohorts", "GET, POST"),
        ("/v1/cohorts/x", "DELETE, GET"),
        ("/v1/health", "GET"),
    ):
        answer = api.call("researcher", "PATCH", path)
        assert answer.headers["allow"] == methods
        assert _problem(answer, 405)["detail"] == f"this address takes {methods}, not PATCH"


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
    _problem(api.post("operator", "/v1/runs", content=too_much), 413)

    def parts():
        for _ in range(20):
            yield b"x" * 2**16

    _problem(api.post("operator", "/v1/runs", content=parts()), 413)  # without a Content-Length
    answer = api.post(
        "operator", "/v1/studies", content=too_much, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422  # a study may be larger
    _problem(api.post("operator", "/v1/runs", content=b"x", headers={"Content-Encoding": "gzip"}), 415)


def test_addresses_that_lead_nowhere_are_problems_too(api) -> None:
    for path in ("/v1/studies/%00", "/v1/runs?study=%00", "/v1/cohorts?cursor=%00"):
        _problem(api.get("operator", path), 400)
    for path in (
        "/v1/nothing",
        "/v2/studies",
        "/v1/cohorts/../../etc/passwd",
        "/v1/studies/%2e%2e%2f",
        "/v1/runs/",
    ):
        _problem(api.get("operator", path), 404)
    _problem(api.call("operator", "PUT", "/v1/runs"), 405)


def test_file_names_cannot_climb_out(api, scenario) -> None:
    release = scenario.release()
    made = api.post("researcher", "/v1/cohorts", {"release": release.digest, "num_patients": 5}).json()
    assert jobs.make_next(scenario.store)
    for name in ("..%2f..%2ffedtwin.db", "%2e%2e", ".cohort.csv", "cohort.csv%2f", "C:cohort.csv"):
        assert api.get("researcher", f"/v1/cohorts/{made['id']}/files/{name}").status_code == 404


def test_a_study_goes_in_as_toml_or_json_and_comes_out_calibrated(api, study_toml: str) -> None:
    toml = {"Content-Type": "application/toml"}
    made = api.post("operator", "/v1/studies", content=study_toml, headers=toml)
    assert made.status_code == 201
    assert made.headers["location"] == "/v1/studies/heart"
    shown = api.get("auditor", "/v1/studies/heart").json()
    assert shown["definition"]["measure"]["noise_multiplier"] == 2.5
    again = api.post("operator", "/v1/studies", shown["definition"])
    assert again.json()["digest"] == shown["digest"]
    changed = {**shown["definition"], "title": "Another"}
    assert "never changes" in _problem(api.post("operator", "/v1/studies", changed), 409)["detail"]
    _problem(
        api.post("operator", "/v1/studies", content=study_toml, headers={"Content-Type": "text/csv"}), 415
    )


def test_a_study_that_cannot_be_names_its_fields(api, study_toml: str) -> None:
    for field, old, new in (
        ("privacy.epsilon", "epsilon = 4.0", "epsilon = -4.0"),
        ("privacy.delta", "delta = 1e-5", "delta = 2"),
        ("name", 'name = "heart"', 'name = "Heart!"'),
        ("table.columns.1", "maximum = 99", "maximum = -3"),
        ("refine.rounds", "rounds = 2", 'rounds = "two"'),
    ):
        content = study_toml.replace(old, new, 1)
        headers = {"Content-Type": "application/toml"}
        problem = _problem(api.post("operator", "/v1/studies", content=content, headers=headers), 422)
        assert any(fault["field"].startswith(field) for fault in problem["errors"]), problem


def test_toml_that_is_none_says_where(api) -> None:
    answer = api.post(
        "operator", "/v1/studies", content="name = ", headers={"Content-Type": "application/toml"}
    )
    assert "not TOML" in _problem(answer, 422)["detail"]


def test_an_unknown_study_lists_what_exists(api, scenario) -> None:
    scenario.register()
    problem = _problem(api.post("operator", "/v1/runs", {"study": "lungs"}), 404)
    assert "'lungs'" in problem["detail"]
    assert "'heart'" in problem["detail"]


def test_a_run_is_started_followed_stopped_and_resumed(api, scenario) -> None:
    scenario.register()
    scenario.enrol()
    made = api.post("operator", "/v1/runs", {"study": "heart"})
    assert made.status_code == 202
    path = made.headers["location"]
    run = made.json()["id"]
    assert api.starter.started == [run]
    assert "one at a time" in _problem(api.post("operator", "/v1/runs", {"study": "heart"}), 409)["detail"]
    runs.start_running(scenario.store, run)
    scenario.record(run, 1)
    runs.report_progress(scenario.store, run, phase="refine", round=1, percent=50.0, eta_seconds=30.0)
    shown = api.get("auditor", path).json()
    assert (shown["phase"], shown["round"], shown["rounds"], shown["percent"]) == ("refine", 1, 3, 50.0)
    assert shown["eta_seconds"] == 30.0
    assert [(one["site"], one["spent_epsilon"], one["cap_epsilon"]) for one in shown["spends"]] == [
        ("north", "1.625", "4.0"),
        ("south", "1.625", "4.0"),
        ("west", "1.625", "4.0"),
    ]
    assert shown["messages"][0]["text"].startswith("queued over 3 sites")
    assert shown["release"] is None
    assert api.post("operator", f"{path}/stop").json()["state"] == "stopping"
    runs.finish_run(scenario.store, run, "stopped")
    assert api.post("operator", f"{path}/resume").json()["state"] == "queued"
    assert api.starter.started == [run, run]


def test_a_run_that_cannot_be_started_fails_in_words_and_blocks_nothing(api, scenario) -> None:
    scenario.register()
    scenario.enrol()
    api.starter.fails_with = "no SuperLink answers"
    assert (
        "no SuperLink answers"
        in _problem(api.post("operator", "/v1/runs", {"study": "heart"}), 503)["detail"]
    )
    (run,) = api.get("operator", "/v1/runs").json()["items"]
    assert (run["state"], run["reason"]) == ("failed", "could not be started: no SuperLink answers")
    api.starter.fails_with = None
    assert api.post("operator", "/v1/runs", {"study": "heart"}).status_code == 202


def test_a_site_is_enrolled_by_its_card(api, scenario) -> None:
    key = scenario.keys["north"]
    card = {
        "name": "north",
        "receipt_key": key.public.text,
        "node_public_key": "ecdsa-sha2-nistp384 AAAA north",
        "policy": {"epsilon_per_study": "3.0"},
    }
    assert api.post("operator", "/v1/sites", card).status_code == 201
    assert api.post("operator", "/v1/sites", card).status_code == 201
    (site,) = api.get("auditor", "/v1/sites").json()["items"]
    assert (site["name"], site["state"], site["policy"]) == ("north", "enrolled", card["policy"])
    for field, change in (
        ("receipt_key", {"receipt_key": "north+00000000+AAAA"}),
        ("receipt_key", {"name": "south"}),
        ("name", {"name": "../x"}),
        ("site", {"policy": {"epsilon_per_study": 3.0}, "name": "north"}),
    ):
        problem = _problem(api.post("operator", "/v1/sites", {**card, **change}), 422)
        assert field in {fault["field"] for fault in problem["errors"]}


def test_a_release_shows_dictionary_budgets_and_that_no_gate_was_passed(api, scenario) -> None:
    digest = scenario.release().digest
    (listed,) = api.get("researcher", "/v1/releases").json()["items"]
    assert (listed["digest"], listed["gate"]) == (digest, "none passed")
    shown = api.get("researcher", f"/v1/releases/{digest}").json()
    assert [column["name"] for column in shown["columns"]] == ["sex", "age", "ill"]
    assert shown["columns"][1] == {
        "name": "age", "kind": "integer", "title": "age", "description": "", "unit": "a", "missing": False,
        "categories": None, "minimum": 0, "maximum": 99, "levels": 10,
    }  # fmt: skip
    assert shown["budget"] == {"epsilon": 4.0, "delta": 1e-5}
    assert {one["site"]: one["spent_epsilon"] for one in shown["spends"]} == dict.fromkeys(
        scenario.keys, "1.875"
    )
    assert any("No release gate was passed" in line for line in shown["limits_of_use"])


def test_the_same_idempotency_key_gives_the_same_cohort(api, scenario) -> None:
    digest = scenario.release().digest
    wanted = {"release": digest, "num_patients": 5, "conditions": ["age > 3"]}
    name = {"Idempotency-Key": "first-try"}
    first = api.post("researcher", "/v1/cohorts", wanted, headers=name)
    again = api.post("researcher", "/v1/cohorts", wanted, headers=name)
    assert first.status_code == again.status_code == 202
    assert first.headers["location"] == again.headers["location"]
    other = api.post("researcher", "/v1/cohorts", {**wanted, "num_patients": 6}, headers=name)
    assert "another request" in _problem(other, 422)["detail"]
    # Another owner's key of the same name is another key.
    foreign = api.post("stranger", "/v1/cohorts", wanted, headers=name)
    assert foreign.headers["location"] != first.headers["location"]
    assert _problem(api.post("researcher", "/v1/cohorts", wanted, headers={"Idempotency-Key": "a b"}), 422)


def test_pages_follow_each_other_without_gap_or_double(api, scenario) -> None:
    digest = scenario.release().digest
    made = [
        api.post("researcher", "/v1/cohorts", {"release": digest, "num_patients": n}).json()["id"]
        for n in range(1, 8)
    ]
    seen: list[str] = []
    cursor = None
    while True:
        query = {"limit": 3, **({"cursor": cursor} if cursor else {})}
        page = api.get("researcher", "/v1/cohorts", params=query).json()
        seen += [one["id"] for one in page["items"]]
        if len(seen) == 3:  # a row that comes meanwhile does not shift the pages
            api.post("researcher", "/v1/cohorts", {"release": digest, "num_patients": 99})
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == made[::-1]
    for bad in ("x", "AAAA", "MjAyNg==", "\U0001f600"):
        _problem(api.get("researcher", "/v1/cohorts", params={"cursor": bad}), 422)
    _problem(api.get("researcher", "/v1/cohorts", params={"limit": 0}), 422)
    _problem(api.get("researcher", "/v1/cohorts", params={"limit": 201}), 422)


def test_the_auditor_reads_the_whole_ledger_and_checks_it(api, scenario) -> None:
    scenario.release()
    key = scenario.store.key.public
    note = api.get("auditor", "/v1/ledger/checkpoint")
    head = open_checkpoint(note.content, key)
    listed = api.get("auditor", "/v1/ledger/entries", params={"count": 500}).json()
    assert listed["size"] == head.size == len(listed["items"])
    leaf = leaf_hash(base64.b64decode(listed["items"][4]["canonical"]))
    path = {"index": 4, "size": head.size}
    proof = api.get("auditor", "/v1/ledger/proofs/inclusion", params=path).json()["hashes"]
    verify_inclusion(leaf=leaf, **path, proof=[bytes.fromhex(part) for part in proof], root=head.root)
    old = open_checkpoint(api.get("auditor", "/v1/ledger/checkpoint", params={"size": 1}).content, key)
    sizes = {"old": old.size, "new": head.size}
    proof = api.get("auditor", "/v1/ledger/proofs/consistency", params=sizes).json()["hashes"]
    verify_consistency(
        old_size=old.size, old_root=old.root, new_size=head.size, new_root=head.root,
        proof=[bytes.fromhex(part) for part in proof],
    )  # fmt: skip
    _problem(api.get("auditor", "/v1/ledger/proofs/inclusion", params={"index": 99, "size": 9}), 422)
    _problem(api.get("auditor", "/v1/ledger/checkpoint", params={"size": 9999}), 404)


def test_the_export_passes_the_offline_verifier_once_the_sites_countersigned(api, scenario, tmp_path) -> None:
    _problem(api.get("auditor", "/v1/ledger/export"), 404)
    release = scenario.release()
    api.post("researcher", "/v1/cohorts", {"release": release.digest, "num_patients": 20})
    assert jobs.make_next(scenario.store)
    scenario.countersign()
    exported = api.get("auditor", "/v1/ledger/export")
    with zipfile.ZipFile(io.BytesIO(exported.content)) as archive:
        archive.extractall(tmp_path)
    assert (tmp_path / "checkpoint").read_bytes() == api.get("auditor", "/v1/ledger/checkpoint").content

    def read(name: str) -> bytes | None:
        path = tmp_path / name
        return path.read_bytes() if path.is_file() else None

    key = scenario.store.key.public
    verify_export(read, key=key)
    old = api.get("auditor", "/v1/ledger/checkpoint", params={"size": 1}).content
    verify_export(read, key=key, since=old)
    (tmp_path / "checkpoint").write_bytes(old)
    with pytest.raises(LedgerVerificationError):
        verify_export(read, key=key)


def test_a_database_that_is_locked_is_503_and_to_be_tried_again(api, scenario) -> None:
    scenario.register()

    def away(*_args, **_kwargs):
        raise OperationalError("SELECT", {}, Exception("database is locked"))

    event.listen(scenario.store.database.engine, "begin", away)
    answer = api.get("operator", "/v1/studies")
    _problem(answer, 503)
    assert answer.headers["retry-after"] == "5"
    _problem(api.get(None, "/v1/health"), 503)
    event.remove(scenario.store.database.engine, "begin", away)
    assert api.get("operator", "/v1/studies").status_code == 200


def test_the_openapi_document_reads_well(api) -> None:
    document = api.client.app.openapi()
    assert json.dumps(document)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (method, path)
            assert operation["description"], (method, path)
            assert operation["tags"], (method, path)
            problems = {code: r for code, r in operation["responses"].items() if code >= "400"}
            assert problems
            # RFC 6749 prescribes the form of what is wrong with a client.
            own = {"400", "401"} if path == "/v1/oauth/token" else set()
            for code, response in problems.items():
                kind = "application/json" if code in own else "application/problem+json"
                assert list(response["content"]) == [kind], (path, code)
    assert "HTTPValidationError" not in document["components"]["schemas"]
    assert document["components"]["securitySchemes"]["API key"]["scheme"] == "bearer"


def test_every_operation_has_examples_and_they_fit_their_schemas(api) -> None:
    document = api.client.app.openapi()
    jsonschema_rs = pytest.importorskip(
        "jsonschema_rs", reason="it comes with schemathesis, in the dev extra"
    )

    def check(schema: dict, example: object, where: tuple) -> None:
        whole = {**schema, "components": document["components"]}
        faults = list(jsonschema_rs.validator_for(whole).iter_errors(example))
        assert not faults, (where, faults[0].message, example)

    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            bodies = [*operation["responses"].items(), ("body", operation.get("requestBody", {}))]
            for name, body in bodies:
                for kind, content in body.get("content", {}).items():
                    if "schema" in content and "json" in kind:
                        check(content["schema"], content["example"], (path, method, name))
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    check(parameter["schema"], parameter["example"], (path, method, parameter["name"]))
