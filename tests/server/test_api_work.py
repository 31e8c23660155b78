"""The API's main job: studies, runs, sites, releases, cohorts and the ledger go in and come out."""

from __future__ import annotations

import base64
import io
import zipfile

import pytest

from privacy.checkpoint import open_checkpoint
from privacy.merkle import LedgerVerificationError, leaf_hash, verify_consistency, verify_inclusion
from privacy.verification import verify_export
from server import jobs, runs


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
    assert "never changes" in api.problem(api.post("operator", "/v1/studies", changed), 409)["detail"]
    api.problem(
        api.post("operator", "/v1/studies", content=study_toml, headers={"Content-Type": "text/csv"}), 415
    )


def test_a_study_that_cannot_be_names_its_fields(api, study_toml: str) -> None:
    for field, old, new in (
        ("privacy.epsilon", "epsilon = 4.0", "epsilon = -4.0"),
        ("privacy.delta", "delta = 1e-5", "delta = 2"),
        ("name", 'name = "heart"', 'name = "Heart!"'),
        ("table.columns.1", "maximum = 99", "maximum = -3"),
        ("refine.rounds", "rounds = 1", 'rounds = "two"'),
    ):
        content = study_toml.replace(old, new, 1)
        headers = {"Content-Type": "application/toml"}
        problem = api.problem(api.post("operator", "/v1/studies", content=content, headers=headers), 422)
        assert any(fault["field"].startswith(field) for fault in problem["errors"]), problem


def test_toml_that_is_none_says_where(api) -> None:
    answer = api.post(
        "operator", "/v1/studies", content="name = ", headers={"Content-Type": "application/toml"}
    )
    assert "not TOML" in api.problem(answer, 422)["detail"]


def test_an_unknown_study_lists_what_exists(api, scenario) -> None:
    scenario.register()
    problem = api.problem(api.post("operator", "/v1/runs", {"study": "lungs"}), 404)
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
    assert "one at a time" in api.problem(api.post("operator", "/v1/runs", {"study": "heart"}), 409)["detail"]
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
        in api.problem(api.post("operator", "/v1/runs", {"study": "heart"}), 503)["detail"]
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
        problem = api.problem(api.post("operator", "/v1/sites", {**card, **change}), 422)
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
    assert "another request" in api.problem(other, 422)["detail"]
    # Another owner's key of the same name is another key.
    foreign = api.post("stranger", "/v1/cohorts", wanted, headers=name)
    assert foreign.headers["location"] != first.headers["location"]
    assert api.problem(api.post("researcher", "/v1/cohorts", wanted, headers={"Idempotency-Key": "a b"}), 422)


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
        api.problem(api.get("researcher", "/v1/cohorts", params={"cursor": bad}), 422)
    api.problem(api.get("researcher", "/v1/cohorts", params={"limit": 0}), 422)
    api.problem(api.get("researcher", "/v1/cohorts", params={"limit": 201}), 422)


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
    api.problem(api.get("auditor", "/v1/ledger/proofs/inclusion", params={"index": 99, "size": 9}), 422)
    api.problem(api.get("auditor", "/v1/ledger/checkpoint", params={"size": 9999}), 404)


def test_the_export_passes_the_offline_verifier_once_the_sites_countersigned(api, scenario, tmp_path) -> None:
    api.problem(api.get("auditor", "/v1/ledger/export"), 404)
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
