"""A finished cohort's files go when their owner says so; its record, certificate and ledger entry stay."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from server import cohort_queue, cohorts, jobs, ledger_store
from server.errors import NotFoundError


@pytest.fixture
def release(scenario) -> str:
    return scenario.release().digest


def _ask(api, release: str, who: str = "researcher") -> str:
    wanted = {"release": release, "num_patients": 40, "seed": 3}
    return api.post(who, "/v1/cohorts", wanted).headers["location"]


def _made(api, store, release: str, who: str = "researcher") -> dict:
    path = _ask(api, release, who)
    assert jobs.make_next(store)
    return api.get(who, path).json()


def test_the_owner_removes_the_files_now_and_the_certificate_stays(api, store, release: str, clock) -> None:
    done = _made(api, store, release)
    path = f"/v1/cohorts/{done['id']}"
    for _ in range(2):  # again is harmless
        answer = api.call("researcher", "DELETE", path)
        assert answer.status_code == 200
        assert not (store.cohorts / done["id"]).exists()
        told = answer.json()
        assert (told["state"], told["percent"], told["ledger_index"]) == (
            "deleted",
            100.0,
            done["ledger_index"],
        )
        assert [file["name"] for file in told["files"]] == ["certificate.json"]
        assert dt.datetime.fromisoformat(told["deleted_at"]).date() == dt.date(2026, 3, 1)
    gone = api.get("researcher", f"{path}/files/cohort.csv")
    assert gone.status_code == 410
    assert "were deleted on 2026-03-01" in gone.json()["detail"]
    assert "seed 3" in gone.json()["detail"]
    certificate = api.get("researcher", told["files"][0]["url"]).json()
    entry = next(ledger_store.read_entries(store, start=done["ledger_index"], count=1)).entry.body
    assert entry.cohort == certificate["statement"]["cohort"] == done["id"]
    clock.move(days=60)
    assert api.get("researcher", path).json()["state"] == "deleted"  # not expired: it says who did it
    again = {file["name"]: file["digest"] for file in _made(api, store, release)["files"]}
    assert again["cohort.csv"] == certificate["statement"]["files"]["cohort.csv"]


def test_deleting_what_is_not_finished_cancels_it_and_what_came_to_nothing_stays_as_it_is(
    api, store, release: str
) -> None:
    path = _ask(api, release)
    assert api.call("researcher", "DELETE", path).json()["state"] == "cancelled"
    assert api.call("researcher", "DELETE", path).json()["state"] == "cancelled"
    path = _ask(api, release)
    claim = cohort_queue.claim_next(store)
    assert claim is not None
    cohort_queue.fail_cohort(store, claim, "for the test")
    told = api.call("researcher", "DELETE", path).json()
    assert (told["state"], told["reason"], told["deleted_at"]) == ("failed", "for the test", None)


def test_what_has_expired_stays_expired(api, store, release: str, clock) -> None:
    done = _made(api, store, release)
    clock.move(days=31)
    told = api.call("researcher", "DELETE", f"/v1/cohorts/{done['id']}").json()
    assert (told["state"], told["deleted_at"]) == ("expired", None)
    assert jobs.clear_folders(store) == 1


def test_cancelling_never_deletes(api, store, release: str) -> None:
    done = _made(api, store, release)
    refused = api.post("researcher", f"/v1/cohorts/{done['id']}/cancel")
    assert refused.status_code == 409
    assert "is completed" in refused.json()["detail"]
    assert api.get("researcher", f"/v1/cohorts/{done['id']}/files/cohort.csv").status_code == 200
    path = _ask(api, release)
    assert api.post("researcher", f"{path}/cancel").json()["state"] == "cancelled"
    assert api.post("researcher", f"{path}/cancel").json()["state"] == "cancelled"


def test_anothers_files_are_nobodys_to_delete(api, store, release: str) -> None:
    done = _made(api, store, release)
    path = f"/v1/cohorts/{done['id']}"
    assert api.call("stranger", "DELETE", path).status_code == 404
    assert api.post("stranger", f"{path}/cancel").status_code == 404
    assert api.call("auditor", "DELETE", path).status_code == 403
    refused = api.call("operator", "DELETE", path)
    assert refused.status_code == 409
    assert "its owner can delete its files" in refused.json()["detail"]
    assert api.get("researcher", f"{path}/files/cohort.csv").status_code == 200
    assert api.call("operator", "DELETE", _ask(api, release)).json()["state"] == "cancelled"


def test_files_that_do_not_go_at_once_are_not_served_and_go_later(
    api, store, release: str, monkeypatch
) -> None:
    done = _made(api, store, release)
    folder: Path = store.cohorts / done["id"]
    with monkeypatch.context() as stuck:
        stuck.setattr(cohorts.shutil, "rmtree", lambda *_, **__: None)
        assert api.call("researcher", "DELETE", f"/v1/cohorts/{done['id']}").json()["state"] == "deleted"
    assert folder.exists()
    assert api.get("researcher", f"/v1/cohorts/{done['id']}/files/cohort.csv").status_code == 410
    assert jobs.clear_folders(store) == 1
    assert not folder.exists()
    assert jobs.clear_folders(store) == 0


def test_what_a_failed_or_cancelled_cohort_leaves_is_cleared_once_no_worker_can_write_it(
    api, store, release: str, clock
) -> None:
    path = _ask(api, release)
    claim = cohort_queue.claim_next(store)
    assert claim is not None
    folder = store.cohorts / claim.cohort.id
    folder.mkdir(parents=True)
    (folder / "cohort.csv").write_text("half")
    assert api.call("researcher", "DELETE", path).json()["state"] == "cancelled"
    assert jobs.clear_folders(store) == 0  # its worker has not heard of it yet
    clock.move(seconds=cohort_queue.CLAIM_TIME.total_seconds() + 1)
    assert jobs.clear_folders(store) == 1
    assert not folder.exists()
    assert api.get("researcher", path).json()["state"] == "cancelled"


def test_there_is_nothing_to_delete_under_another_name(store) -> None:
    with pytest.raises(NotFoundError):
        cohorts.delete_cohort(store, "cohort-none")
