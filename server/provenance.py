"""The certificate beside each cohort: where it came from, what it cost whom, and the proof that this was logged.

`certificate.json` has two parts. `statement` says everything in words and digests; the cohort's ledger entry
names its digest under `certificate`. `ledger` is that entry with its inclusion proof and the signed checkpoint,
so that a reader who has the coordinator's public key needs nothing else.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from models.sampling import ConditionReport
from models.study import Study
from privacy.canonical import digest
from privacy.checkpoint import open_checkpoint
from privacy.ledger import CohortDrawn, decode_entry
from privacy.merkle import LedgerVerificationError, leaf_hash, verify_inclusion
from privacy.signing import VerifyKey
from server import ledger_store
from server.cohorts import Cohort
from server.releases import LIMITS_OF_USE, Release
from server.spends import run_spends
from server.store import Store

CERTIFICATE_FILE = "certificate.json"
STATEMENT_NAME = "certificate"
SOFTWARE = ("fedtwin", "torch", "numpy", "pandas", "pyarrow")


def make_statement(
    store: Store,
    cohort: Cohort,
    *,
    release: Release,
    study: Study,
    report: ConditionReport,
    files: Mapping[str, str],
) -> dict[str, Any]:
    """What the certificate states.

    Args:
        report: how the conditions met the generator.
        files: `sha256:` digest of each data file by name.
    """
    spends = {spend.site: spend for spend in run_spends(store, release.run)}
    return {
        "version": 1,
        "synthetic": True,
        "title": "Synthetic patients: no record is a person",
        "cohort": cohort.id,
        "num_patients": cohort.request.num_patients,
        "seed": cohort.request.seed,
        "conditions": {
            "asked": list(cohort.request.conditions),
            "held_by": "every record",
            "probability_in_release": repr(float(report.probability)),
            "probability_is_exact": report.exact,
        },
        "release": {
            "digest": release.digest,
            "weights_digest": release.weights_digest,
            "run": release.run,
            "round": release.round,
            "gate": release.gate,
            "ledger_index": release.entry,
        },
        "study": {"name": study.name, "title": study.title, "digest": release.study_digest},
        "privacy": {
            "unit": "one patient of one site with all records; neighbours add or remove one patient",
            "trust": "local: noise is added at each site before anything leaves it",
            "sites": [
                {
                    "site": name,
                    "epsilon": spends[name].spent_epsilon if name in spends else None,
                    "delta": spends[name].spent_delta if name in spends else None,
                    "cap": spends[name].cap_epsilon if name in spends else None,
                }
                for name in release.sites
            ],
            "cost_of_this_cohort": "none: drawing from a release is post-processing",
        },
        "algorithm": "measure, warm-start, refine: noisy moments, a mixture fitted to them, an anchored GAN",
        "files": dict(files),
        "software": {name: version(name) for name in SOFTWARE},
        "limits_of_use": list(LIMITS_OF_USE),
        "made_at": ledger_store.time_text(store.clock()),
    }


def make_certificate(
    statement: Mapping[str, Any], *, index: int, entry: bytes, proof: list[bytes], note: str
) -> dict[str, Any]:
    """The statement with the proof that it was logged."""
    return {
        "statement": dict(statement),
        "ledger": {
            "index": index,
            "entry": base64.b64encode(entry).decode(),
            "inclusion_proof": [base64.b64encode(part).decode() for part in proof],
            "checkpoint": note,
        },
    }


def certificate_bytes(certificate: Mapping[str, Any]) -> bytes:
    """The certificate as the file that is handed out."""
    return (json.dumps(certificate, indent=2, ensure_ascii=False) + "\n").encode()


def verify_certificate(certificate: Mapping[str, Any], key: VerifyKey, files: Mapping[str, str]) -> None:
    """Check a certificate and the files beside it, with nothing but the coordinator's public key.

    Args:
        certificate: as read from `certificate.json`.
        key: the coordinator's, pinned beforehand.
        files: `sha256:` digest of each data file that lies beside it, by name.

    Raises:
        LedgerVerificationError: says what does not hold.
    """
    try:
        statement, ledger = certificate["statement"], certificate["ledger"]
        entry = base64.b64decode(ledger["entry"], validate=True)
        proof = [base64.b64decode(part, validate=True) for part in ledger["inclusion_proof"]]
        index, note = int(ledger["index"]), str(ledger["checkpoint"]).encode()
        drawn = decode_entry(entry).body
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise LedgerVerificationError(f"this is not a cohort's certificate: {error!r}") from error
    checkpoint = open_checkpoint(note, key)
    verify_inclusion(
        leaf=leaf_hash(entry), index=index, size=checkpoint.size, proof=proof, root=checkpoint.root
    )
    if not isinstance(drawn, CohortDrawn) or drawn.files.get(STATEMENT_NAME) != digest(statement):
        raise LedgerVerificationError("the statement is not the one in the ledger: it was changed")
    logged = {name: value for name, value in drawn.files.items() if name != STATEMENT_NAME}
    if statement.get("files") != logged:
        raise LedgerVerificationError("the statement names other files than the ledger")
    for name, value in files.items():
        if logged.get(name) != value:
            raise LedgerVerificationError(f"{name} has not the digest that the ledger names: it was changed")
