"""Read one entry bundle of an export on its own: everything that needs no other bundle, so that many run at once.

Canonical form, leaf hashes, the rules of each kind, and every signature inside an entry. A signature is checked
here under the key that the entry names; whether that was the enrolled key at this place of the log is for
`privacy.replay`, which sees the entries in order.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, NamedTuple

from privacy.canonical import parse_canonical
from privacy.envelope import pre_authentication_encoding
from privacy.export import unpack
from privacy.ledger import CohortDrawn, EntryError, KeyRotated, Receipted, StudyDefined, decode_entry
from privacy.merkle import leaf_hash
from privacy.receipt import RECEIPT_TYPE, Receipt
from privacy.signing import SignatureError, VerifyKey


class StudyFact(NamedTuple):
    """A study entry without its definition, which its digest stands for."""

    study: str
    epsilon: float
    delta: float


class ReceiptFact(NamedTuple):
    """A receipt whose signature holds under `key`; events as JSON text, for `receipt.read_events`."""

    digest: str
    key: str
    study: str
    run: str
    round: int
    site: str
    base: str
    events: str
    epsilon: float
    delta: float
    policy: str
    noise_source: str
    issued_at: str


class CohortFact(NamedTuple):
    """A cohort entry: only its release matters to the rules."""

    release: str


class RotationFact(NamedTuple):
    """A key rotation whose two signatures hold."""

    role: str
    old: VerifyKey
    new: VerifyKey


class Broken(NamedTuple):
    """An entry that cannot be used, and which check it fails: `entries` or `receipts`."""

    check: str
    problem: str


class Bundle(NamedTuple):
    """What one bundle says.

    Attributes:
        leaves: the leaf hashes, joined: exactly what the level 0 tile must hold.
        facts: one per entry, in order: one of the facts above, or a body of `privacy.ledger` as it is.
    """

    leaves: bytes
    facts: list[Any]


def read_bundle(data: bytes) -> Bundle:
    """Read and check the entries of one bundle.

    Raises:
        LedgerVerificationError: the bundle's framing is broken, so that its entries cannot even be told apart.
    """
    entries = unpack(data)
    texts: dict[str, str] = {}
    return Bundle(b"".join(map(leaf_hash, entries)), [_fact(entry, texts) for entry in entries])


def _fact(data: bytes, texts: dict[str, str]) -> Any:
    try:
        body = decode_entry(data).body
    except EntryError as error:
        return Broken("entries", str(error))
    if isinstance(body, Receipted):
        try:
            return _receipt_fact(body, texts)
        except (SignatureError, ValueError, TypeError) as error:
            return Broken("receipts", str(error))
    if isinstance(body, StudyDefined):
        return StudyFact(body.study_digest, body.epsilon, body.delta)
    if isinstance(body, CohortDrawn):
        return CohortFact(texts.setdefault(body.release_digest, body.release_digest))
    if isinstance(body, KeyRotated):
        return RotationFact(*body.open())
    return body


def _receipt_fact(body: Receipted, texts: dict[str, str]) -> ReceiptFact:
    ((keyid, signature),), payload = body.parts
    _key(keyid).verify(signature, pre_authentication_encoding(RECEIPT_TYPE, payload))
    data = parse_canonical(payload)
    receipt = Receipt.from_dict(data)

    def shared(text: str) -> str:  # equal texts become one object, which pickles once
        return texts.setdefault(text, text)

    return ReceiptFact(
        digest=body.receipt_digest,
        key=shared(keyid),
        study=shared(receipt.study_digest),
        run=shared(receipt.run),
        round=receipt.round,
        site=shared(receipt.site),
        base=shared(receipt.base_digest),
        events=shared(json.dumps(data["events"])),
        epsilon=receipt.spend_epsilon,
        delta=receipt.spend_delta,
        policy=shared(receipt.policy_digest),
        noise_source=shared(receipt.noise_source),
        issued_at=shared(data["issued_at"]),
    )


@lru_cache(maxsize=4096)
def _key(text: str) -> VerifyKey:
    return VerifyKey.from_text(text)
