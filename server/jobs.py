"""The worker that makes cohorts: `python -m server.jobs --home FOLDER`, as many as the machine has room for.

A worker may be killed at any point: its claim runs out and another takes the job up. The files are complete and
synced before the one transaction that logs the cohort, proves it and ends the job.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

from models.conditions import ConditionError
from models.generator import GeneratorError
from models.sampling import CohortSampler, RareConditionError
from models.study_generator import StudyGenerator
from models.weights import decode_arrays
from privacy.canonical import digest
from privacy.cli.folders import write_durably
from privacy.cli.supervisor import WORKER_READY
from privacy.cohort_certificate import CERTIFICATE_FILE, STATEMENT_NAME
from server import cohort_queue, cohorts, ledger_store, provenance
from server.cohort_queue import Claim, ClaimLostError
from server.cohorts import CohortFile
from server.exports.context import ExportContext
from server.exports.formats import chosen_formats
from server.exports.writer import CohortWriter
from server.provenance_page import MEDIA_TYPE, PAGE_FILE, certificate_page
from server.releases import get_release
from server.store import Store
from server.studies import get_study

IDLE_SECONDS = 0.3
PART_PATIENTS = 5_000
CLEARING_SECONDS = 60.0
NICENESS = 10  # who waits for a page comes before who waits for a cohort

log = logging.getLogger("fedtwin.jobs")


def make_next(store: Store) -> bool:
    """Take one job and end it; False if there was none.

    Raises:
        KeyboardInterrupt: the worker was asked to end; the job was put back.
    """
    claim = cohort_queue.claim_next(store)
    if claim is None:
        return False
    cohort = claim.cohort
    log.info("cohort %s: %s patients, attempt %s", cohort.id, cohort.request.num_patients, cohort.attempts)
    try:
        make_cohort(store, claim)
    except ClaimLostError as error:
        log.info("%s", error)
        if cohorts.get_cohort(store, cohort.id).state == "cancelled":
            shutil.rmtree(store.cohorts / cohort.id, ignore_errors=True)
    except KeyboardInterrupt:
        cohort_queue.release_claim(store, claim)
        raise
    except (ConditionError, RareConditionError) as error:
        _fail(store, claim, str(error))
    except Exception:
        log.exception("cohort %s failed", cohort.id)
        _fail(
            store, claim, "the coordinator could not make it; its operator finds the reason in logs/jobs.log"
        )
    return True


def make_cohort(store: Store, claim: Claim) -> None:
    """Sample, write, log and certify one cohort.

    Privacy: post-processing of a release; costs nothing and touches no site.

    Raises:
        ClaimLostError: it was cancelled or another worker has it.
        RareConditionError: too few patients of the release satisfy the conditions.
    """
    cohort, request = claim.cohort, claim.cohort.request
    release = get_release(store, request.release)
    study = get_study(store, release.study).study
    arrays = decode_arrays(store.load(release.weights_digest))
    try:
        generator = StudyGenerator.from_arrays(arrays, study)
    except GeneratorError as error:
        raise RuntimeError(f"release {release.digest} holds no generator of its study: {error}") from error
    sampler = CohortSampler(generator.table, study.table, request.conditions)
    folder = store.cohorts / cohort.id
    context = ExportContext.of(release, study, request)
    formats = chosen_formats(request.formats, context)
    with CohortWriter(folder, formats, context, packed="zip" in request.formats, token=claim.token) as writer:
        done, seed = 0, request.seed or 0
        for number, chunk in enumerate(sampler.chunks(request.num_patients, seed=seed)):
            for rows, images in generator.with_pictures(chunk, seed=seed, chunk=number):
                for start in range(0, len(rows), PART_PATIENTS):  # a long chunk must not outlast the claim
                    part = slice(start, start + PART_PATIENTS)
                    writer.write(rows.iloc[part], None if images is None else images[part])
                    done += len(rows.iloc[part])
                    cohort_queue.report_patients(store, claim, done)
        files = writer.finish()
    digests = {file.name: f"sha256:{file.sha256}" for file in files}
    statement = provenance.make_statement(
        store, cohort, release=release, study=study, report=sampler.report, formats=formats, files=digests
    )
    page = certificate_page(statement)
    files.append(describe(PAGE_FILE, page, MEDIA_TYPE))
    statement["files"][PAGE_FILE] = f"sha256:{files[-1].sha256}"
    write_durably(folder / PAGE_FILE, page)
    logged = {**statement["files"], STATEMENT_NAME: digest(statement)}
    with store.database.write() as session:
        row, index = cohort_queue.log_cohort(store, session, claim, files, logged)
        proof, note = ledger_store.proof_of_newest(session, index)
        entry = ledger_store.entry_bytes(session, index)
        certificate = provenance.make_certificate(statement, index=index, entry=entry, proof=proof, note=note)
        data = provenance.certificate_bytes(certificate)
        row.files = [*row.files, asdict(describe(CERTIFICATE_FILE, data, "application/json"))]
        cohort_queue.complete_in(store, row, certificate)
    write_durably(folder / CERTIFICATE_FILE, data)


def describe(name: str, data: bytes, media_type: str) -> CohortFile:
    """A file that is held in memory."""
    sha256 = hashlib.sha256(data).hexdigest()
    return CohortFile(name=name, num_bytes=len(data), sha256=sha256, media_type=media_type)


def clear_folders(store: Store) -> int:
    """Remove what cohorts leave that expired, were deleted, or came to nothing; says how many folders went.

    The certificates, in the database, and the ledger entries stay.
    """
    cleared = [one for one in cohort_queue.list_to_clear(store) if cohorts.clear_files(store, one)]
    for cohort in cleared:
        log.info("the folder of cohort %s is cleared", cohort)
    return len(cleared)


def work(store: Store, stopped: threading.Event) -> None:
    """Take jobs until `stopped`."""
    looked = -CLEARING_SECONDS
    while not stopped.is_set():
        if time.monotonic() - looked >= CLEARING_SECONDS:
            looked = time.monotonic()
            clear_folders(store)
        if not cohort_queue.has_work(store) or not make_next(store):
            stopped.wait(IDLE_SECONDS)


def main() -> None:
    """Serve the home in `--home` or FEDTWIN_HOME until SIGTERM or Ctrl-C."""
    from privacy.cli.rooms import check_rooms
    from server.home import CoordinatorHome

    parser = argparse.ArgumentParser(prog="python -m server.jobs", description="Makes cohorts.")
    parser.add_argument("--home", default=os.environ.get("FEDTWIN_HOME"), help="the coordinator's folder")
    home = parser.parse_args().home
    if home is None:
        parser.error("give --home, or set FEDTWIN_HOME")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    check_rooms()
    os.nice(NICENESS)
    store = Store.open(CoordinatorHome.open(Path(home)))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    log.info(WORKER_READY)
    try:
        work(store, threading.Event())
    except KeyboardInterrupt:
        sys.exit(0)
    finally:
        store.close()


def _fail(store: Store, claim: Claim, reason: str) -> None:
    try:
        cohort_queue.fail_cohort(store, claim, reason)
    except ClaimLostError as error:
        log.info("%s", error)


if __name__ == "__main__":
    main()
