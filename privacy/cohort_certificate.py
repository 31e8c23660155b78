"""A cohort's certificate, checked with nothing but the coordinator's public key; no I/O.

`certificate.json` has two parts. `statement` says in words and digests what was drawn from what; the cohort's ledger
entry names its digest under `certificate`, and the digest of every file. `ledger` is that entry with its inclusion
proof and the signed checkpoint.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final

from privacy.canonical import CanonicalError, digest
from privacy.checkpoint import open_checkpoint
from privacy.ledger import CohortDrawn, decode_entry
from privacy.merkle import LedgerVerificationError, leaf_hash, verify_inclusion
from privacy.signing import VerifyKey

CERTIFICATE_FILE: Final = "certificate.json"
STATEMENT_NAME: Final = "certificate"


def verify_certificate(certificate: Mapping[str, Any], key: VerifyKey, files: Mapping[str, str]) -> None:
    """Check a certificate and the files beside it.

    Args:
        certificate: as read from `certificate.json`.
        key: the coordinator's, pinned beforehand.
        files: `sha256:` digest of each file that lies beside it, by its name in the certificate; one that is not
            there is not checked.

    Raises:
        LedgerVerificationError: says what does not hold.
    """
    try:
        statement, ledger = certificate["statement"], certificate["ledger"]
        entry = base64.b64decode(ledger["entry"], validate=True)
        proof = [base64.b64decode(part, validate=True) for part in ledger["inclusion_proof"]]
        index, note = int(ledger["index"]), str(ledger["checkpoint"]).encode()
        drawn = decode_entry(entry).body
        stated, told = digest(statement), statement["files"]
    except (KeyError, TypeError, ValueError, binascii.Error, CanonicalError) as error:
        raise LedgerVerificationError(f"this is not a cohort's certificate: {error!r}") from error
    checkpoint = open_checkpoint(note, key)
    verify_inclusion(
        leaf=leaf_hash(entry), index=index, size=checkpoint.size, proof=proof, root=checkpoint.root
    )
    if not isinstance(drawn, CohortDrawn) or drawn.files.get(STATEMENT_NAME) != stated:
        raise LedgerVerificationError("the statement is not the one in the ledger: it was changed")
    logged = {name: value for name, value in drawn.files.items() if name != STATEMENT_NAME}
    if told != logged:
        raise LedgerVerificationError("the statement names other files than the ledger")
    for name, value in files.items():
        if name not in logged:
            raise LedgerVerificationError(
                f"{name} is no file of this cohort; it has {', '.join(sorted(logged))}: take {name} away"
            )
        if logged[name] != value:
            raise LedgerVerificationError(
                f"{name} has not the digest that the ledger names: it was changed, or its download broke off; "
                "fetch it again"
            )
