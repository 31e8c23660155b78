"""Cohort jobs: files with a certificate that verifies; a killed worker's job is taken up; same seed, same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from privacy.cohort_certificate import verify_certificate
from privacy.merkle import LedgerVerificationError
from privacy.signing import SigningKey
from server import cohort_queue, cohorts, jobs, ledger_store, releases
from server.cohorts import CohortRequest
from server.errors import ConflictError
from server.store import Store, utc_now


@pytest.fixture
def release(scenario) -> str:
    return scenario.release().digest


def _files(store: Store, cohort: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store.cohorts / cohort).iterdir()}


def test_a_cohort_becomes_files_with_a_certificate_that_verifies_offline(api, store, release: str) -> None:
    wanted = {
        "release": release,
        "num_patients": 300,
        "conditions": ["age >= 60", "sex == 'female'"],
        "seed": 7,
    }
    path = api.post("researcher", "/v1/cohorts", wanted).headers["location"]
    assert api.get("researcher", f"{path}/files/cohort.csv").status_code == 409
    assert jobs.make_next(store)
    assert not jobs.make_next(store)
    done = api.get("researcher", path).json()
    assert (done["state"], done["percent"], done["reason"]) == ("completed", 100.0, "")
    got = {}
    for file in done["files"]:
        answer = api.get("researcher", file["url"])
        assert answer.status_code == 200
        assert "sha256:" + hashlib.sha256(answer.content).hexdigest() == file["digest"]
        assert answer.headers["etag"] == f'"{file["digest"].removeprefix("sha256:")}"'
        again = api.get("researcher", file["url"], headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
        got[file["name"]] = answer.content
    assert set(got) == {
        "cohort.csv",
        "cohort.parquet",
        "dictionary.json",
        "certificate.html",
        "certificate.json",
    }
    part = api.get("researcher", f"{path}/files/cohort.csv", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, got["cohort.csv"][10:20])
    folder = store.cohorts / done["id"]
    assert _files(store, done["id"]) == got  # and no draft is left
    table = pd.read_csv(folder / "cohort.csv")
    assert len(table) == 300
    assert (table["age"] >= 60).all()
    assert set(table["sex"]) == {"female"}
    parquet = pq.read_table(folder / "cohort.parquet")
    assert parquet.num_rows == 300
    assert parquet.schema.metadata[b"fedtwin.synthetic"] == b"true"

    certificate = json.loads(got["certificate.json"])
    statement = certificate["statement"]
    assert statement["synthetic"] is True
    assert statement["release"]["gate"] == "none passed"
    assert [one["site"] for one in statement["privacy"]["sites"]] == ["north", "south", "west"]
    assert {one["epsilon"] for one in statement["privacy"]["sites"]} == {"1.875"}
    digests = {n: "sha256:" + hashlib.sha256(data).hexdigest() for n, data in got.items()}
    digests.pop("certificate.json")
    key = store.key.public
    verify_certificate(certificate, key, digests)
    entry = next(ledger_store.read_entries(store, start=done["ledger_index"], count=1)).entry.body
    assert (entry.KIND, entry.rows, entry.release_digest) == ("cohort", 300, release)


def test_a_changed_certificate_or_file_is_found_out(store, release: str) -> None:
    cohorts.create_cohort(store, CohortRequest(release=release, num_patients=20), owner="rita")
    jobs.make_next(store)
    (made,) = cohorts.list_cohorts(store, owner="rita")
    key = store.key.public
    certificate = json.loads(json.dumps(made.certificate))
    verify_certificate(certificate, key, {})
    with pytest.raises(LedgerVerificationError, match=r"cohort\.csv has not the digest"):
        verify_certificate(certificate, key, {"cohort.csv": "sha256:" + "0" * 64})
    with pytest.raises(LedgerVerificationError):
        verify_certificate(certificate, SigningKey.generate(name="coordinator").public, {})

    def tampered(*path: str, to: object) -> dict:
        copy = json.loads(json.dumps(certificate))
        part = copy
        for name in path[:-1]:
            part = part[name]
        part[path[-1]] = to
        return copy

    for copy in (
        tampered("statement", "synthetic", to=False),
        tampered("statement", "release", "gate", to="passed"),
        tampered("statement", "files", "cohort.csv", to="sha256:" + "0" * 64),
        tampered("ledger", "index", to=0),
        tampered("ledger", "inclusion_proof", to=[]),
        tampered("ledger", "checkpoint", to="nothing"),
        tampered("ledger", "entry", to="AAAA"),
        {"statement": certificate["statement"]},
    ):
        with pytest.raises(LedgerVerificationError):
            verify_certificate(copy, key, {})


def test_the_same_request_with_the_same_seed_gives_the_same_bytes(store, release: str) -> None:
    def make(seed: int | None) -> dict[str, bytes]:
        request = CohortRequest(release=release, num_patients=500, seed=seed, conditions=("age < 50",))
        made = cohorts.create_cohort(store, request, owner="rita")
        jobs.make_next(store)
        files = _files(store, made.id)
        files.pop("certificate.json")
        files.pop("certificate.html")  # names the cohort and the time
        return files

    first, again, other, unseeded = make(3), make(3), make(4), make(None)
    assert first == again
    assert first != other
    assert unseeded not in (first, other)


def test_conditions_too_rare_to_honour_fail_in_words(store, release: str) -> None:
    rare = CohortRequest(release=release, num_patients=5, conditions=("age >= 20 and age < 20",))
    made = cohorts.create_cohort(store, rare, owner="rita")
    assert jobs.make_next(store)
    ended = cohorts.get_cohort(store, made.id)
    assert ended.state == "failed"
    assert "satisfies the conditions" in ended.reason
    assert ended.entry is None


def test_a_release_damaged_on_disk_serves_nobody_and_tells_no_path(store, release: str) -> None:
    made = cohorts.create_cohort(store, CohortRequest(release=release, num_patients=5), owner="rita")
    path = store.path_of(releases.get_release(store, release).weights_digest)
    path.write_bytes(b"something else")
    jobs.make_next(store)
    ended = cohorts.get_cohort(store, made.id)
    assert ended.state == "failed"
    assert str(store.files) not in ended.reason


def test_a_dead_workers_job_is_taken_up_when_its_claim_runs_out_and_the_dead_can_write_nothing(
    store, release: str, clock
) -> None:
    made = cohorts.create_cohort(store, CohortRequest(release=release, num_patients=50), owner="rita")
    dead = cohort_queue.claim_next(store)
    assert dead is not None
    cohort_queue.report_patients(store, dead, 20)
    assert not cohort_queue.has_work(store)
    assert cohort_queue.claim_next(store) is None
    clock.move(seconds=61)
    assert cohort_queue.has_work(store)
    heir = cohort_queue.claim_next(store)
    assert heir is not None
    for act in (
        lambda: cohort_queue.report_patients(store, dead, 50),
        lambda: cohort_queue.fail_cohort(store, dead, "late"),
        lambda: jobs.make_cohort(store, dead),
    ):
        with pytest.raises(cohort_queue.ClaimLostError):
            act()
    cohort_queue.release_claim(store, dead)  # not its to give back
    jobs.make_cohort(store, heir)
    assert cohorts.get_cohort(store, made.id).state == "completed"
    with pytest.raises(cohort_queue.ClaimLostError):
        jobs.make_cohort(store, dead)
    kinds = [stored.entry.kind for stored in ledger_store.read_entries(store)]
    assert kinds.count("cohort") == 1


def test_a_job_that_kills_every_worker_is_given_up(store, release: str, clock) -> None:
    made = cohorts.create_cohort(store, CohortRequest(release=release, num_patients=50), owner="rita")
    for _ in range(cohort_queue.MAX_ATTEMPTS):
        assert cohort_queue.claim_next(store) is not None
        clock.move(seconds=61)
    assert cohort_queue.claim_next(store) is None
    assert cohorts.get_cohort(store, made.id).state == "failed"


def test_two_workers_never_take_one_job(store, release: str) -> None:
    for _ in range(6):
        cohorts.create_cohort(store, CohortRequest(release=release, num_patients=5), owner="rita")
    taken: list[str] = []

    def take() -> None:
        while (claim := cohort_queue.claim_next(store)) is not None:
            taken.append(claim.cohort.id)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 6


def test_cancelling_while_it_runs_ends_it_without_files_or_entry(store, release: str) -> None:
    made = cohorts.create_cohort(store, CohortRequest(release=release, num_patients=50), owner="rita")
    claim = cohort_queue.claim_next(store)
    assert cohorts.cancel_cohort(store, made.id).state == "cancelled"
    with pytest.raises(cohort_queue.ClaimLostError):
        jobs.make_cohort(store, claim)
    assert not any((store.cohorts / made.id).glob("*"))
    assert cohorts.cancel_cohort(store, made.id).state == "cancelled"
    assert "cohort" not in [stored.entry.kind for stored in ledger_store.read_entries(store)]
    other = cohorts.create_cohort(store, CohortRequest(release=release, num_patients=5), owner="rita")
    jobs.make_next(store)
    with pytest.raises(ConflictError, match="completed"):
        cohorts.cancel_cohort(store, other.id)


def test_a_worker_asked_to_end_puts_its_job_back(store, release: str) -> None:
    made = cohorts.create_cohort(store, CohortRequest(release=release, num_patients=50), owner="rita")
    for _ in range(cohort_queue.MAX_ATTEMPTS + 1):
        claim = cohort_queue.claim_next(store)
        cohort_queue.release_claim(store, claim)
    assert cohorts.get_cohort(store, made.id).state == "queued"
    assert cohorts.get_cohort(store, made.id).attempts == 0


def _worker(home: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "server.jobs", "--home", str(home)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _wait(until, process: subprocess.Popen[bytes], seconds: float = 180.0) -> None:
    """Poll another process's effect."""
    deadline = time.monotonic() + seconds
    while not until():
        assert process.poll() is None, "the worker ended"
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


def test_a_worker_killed_in_the_middle_loses_nothing(own_home) -> None:
    """A real worker process, SIGKILLed while it writes; another takes the job up and the bytes are the same."""
    home, scenario = own_home
    store = scenario.store
    release = scenario.release().digest
    request = CohortRequest(release=release, num_patients=400_000, formats=("csv",), seed=5)
    made = cohorts.create_cohort(store, request, owner="rita")
    worker = _worker(home.path)
    try:
        _wait(lambda: cohorts.get_cohort(store, made.id).patients_done > 0, worker)
        worker.send_signal(signal.SIGKILL)
        assert worker.wait() == -signal.SIGKILL
    finally:
        worker.kill()
        worker.wait()
    left = cohorts.get_cohort(store, made.id)
    assert (left.state, left.files, left.entry) == ("running", (), None)
    later = replace(store, clock=lambda: utc_now() + cohort_queue.CLAIM_TIME)
    assert jobs.make_next(later)
    done = cohorts.get_cohort(store, made.id)
    assert (done.state, done.attempts) == ("completed", 2)
    assert set(_files(store, made.id)) == {
        "cohort.csv",
        "dictionary.json",
        "certificate.html",
        "certificate.json",
    }
    undisturbed = cohorts.create_cohort(store, request, owner="rita")
    jobs.make_next(store)
    assert cohorts.get_cohort(store, undisturbed.id).files[0].sha256 == done.files[0].sha256


def test_the_worker_process_makes_a_cohort_and_ends_on_sigterm(own_home) -> None:
    home, scenario = own_home
    store = scenario.store
    request = CohortRequest(release=scenario.release().digest, num_patients=1000)
    made = cohorts.create_cohort(store, request, owner="rita")
    worker = _worker(home.path)
    try:
        _wait(lambda: cohorts.get_cohort(store, made.id).state == "completed", worker)
        worker.terminate()
        assert worker.wait(timeout=30) == 0
    finally:
        worker.kill()
        worker.wait()
    assert len((home.cohorts / made.id / "cohort.csv").read_text().splitlines()) == 1001
