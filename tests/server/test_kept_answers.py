"""What the catalogue keeps in memory is never older than the database, whoever changed it; keys end at once."""

from __future__ import annotations

import hashlib

import pytest
from fastapi.testclient import TestClient

from server import keys, releases
from server.api.app import create_app
from server.api.kept_answers import KeptAnswers
from server.database import Database
from server.store import Store


@pytest.fixture
def release(scenario) -> releases.Release:
    return scenario.release()


@pytest.fixture
def other(store: Store, home, facts, clock, api):
    """A second API process's application: its own store, its own memory, the same database and keys."""
    own = Store.open(home, clock=clock)
    app = create_app(store=own, starter=api.starter, facts=facts)
    yield type(api)(client=TestClient(app), starter=api.starter, keys=api.keys)
    app.state.previewer.close()
    own.close()


def _states(api, who: str = "researcher") -> list[str]:
    return [one["state"] for one in api.get(who, "/v1/releases").json()["items"]]


def test_a_kept_answer_is_the_one_that_was_made(api, release) -> None:
    for path in ("/v1/releases", f"/v1/releases/{release.digest}", "/v1/releases?q=heart&limit=1"):
        first, again = api.get("researcher", path), api.get("researcher", path)
        assert first.status_code == again.status_code == 200
        assert (first.content, first.headers["etag"]) == (again.content, again.headers["etag"])
        assert again.headers["etag"] == f'"{hashlib.sha256(again.content).hexdigest()}"'
        same = api.get("researcher", path, headers={"If-None-Match": again.headers["etag"]})
        assert (same.status_code, same.content) == (304, b"")


def test_the_second_answer_asks_the_database_once(api, store: Store, release, monkeypatch) -> None:
    api.get("researcher", "/v1/releases")
    asked = []
    monkeypatch.setattr(Database, "read", lambda *_: pytest.fail("the answer was made again"))
    rows = Database.rows
    monkeypatch.setattr(Database, "rows", lambda self: asked.append(self) or rows(self))
    assert api.get("researcher", "/v1/releases").status_code == 200
    assert len(asked) == 1


def test_what_another_process_publishes_and_withdraws_is_seen_at_once(api, other, scenario) -> None:
    scenario.register()
    assert (_states(api), _states(other)) == ([], [])
    scenario.enrol()
    run = scenario.start()
    for round in range(1, scenario.study.num_rounds + 1):
        scenario.record(run, round)
    from server.round_records import complete_run

    digest = complete_run(scenario.store, run, release_round=1).digest
    assert (_states(api), _states(other), _states(other, "auditor")) == ([], [], ["candidate"])
    assert other.get("researcher", f"/v1/releases/{digest}").status_code == 404
    api.post("operator", f"/v1/releases/{digest}/publish")
    assert (_states(api), _states(other), _states(other, "auditor")) == (["published"],) * 3
    assert other.get("researcher", f"/v1/releases/{digest}").json()["state"] == "published"
    other.post("operator", f"/v1/releases/{digest}/withdraw", {"reason": "a site asked"})
    assert (_states(api), _states(other)) == (["withdrawn"],) * 2
    assert api.get("researcher", f"/v1/releases/{digest}").json()["reason"] == "a site asked"


def test_a_revoked_key_is_refused_at_once_by_every_process(api, other, store, release) -> None:
    assert _states(api) == _states(other) == ["published"]
    keys.revoke_key(store, api.keys["researcher"].split("_")[1])
    for one in (api, other):
        assert one.get("researcher", "/v1/releases").status_code == 401
    assert _states(api, "stranger") == ["published"]


def test_what_an_operator_was_told_no_researcher_is_told(api, store, scenario) -> None:
    release = scenario.release()
    releases.withdraw_release(store, release.digest, reason="")
    candidate = {"state": "candidate"}
    assert api.get("operator", "/v1/releases", params=candidate).json()["items"] == []
    path = f"/v1/releases/{release.digest}"
    assert api.get("operator", path).content == api.get("researcher", path).content
    with (
        store.database.write() as session
    ):  # a state that a researcher may not see, made behind the ledger's back
        releases._row(session, release.digest).state = "withheld"
    keys.create_key(store, role="researcher", owner="new")
    api.client.app.state.kept_answers = KeptAnswers()
    assert api.get("operator", path).json()["state"] == "withheld"
    assert api.get("researcher", path).status_code == 404


def test_answers_go_when_there_is_no_room_and_never_back_in_time() -> None:
    kept = KeptAnswers(max_bytes=10)
    kept.put("a", 5, b"12345", "x")
    kept.put("a", 4, b"old", "y")  # it took longer
    assert kept.get("a", 5) == (b"12345", "x")
    assert kept.get("a", 4) is None
    assert kept.get("a", 6) is None
    kept.put("b", 5, b"12345", "x")
    kept.get("a", 5)
    kept.put("c", 5, b"1", "x")
    assert kept.get("b", 5) is None
    assert kept.get("a", 5) is not None
    kept.put("d", 5, b"12345678901", "x")
    assert kept.get("d", 5) is None
    for size in range(6, 40):  # one in another's place takes no more room
        kept.put("a", size, b"12345", "x")
    assert kept.get("c", 5) == (b"1", "x")
