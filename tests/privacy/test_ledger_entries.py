"""Entries: every kind reads back, and nothing that breaks its rules can be written or read."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from privacy.canonical import canonical_bytes, digest
from privacy.events import MechanismEvent
from privacy.ledger import (
    BODIES,
    MAX_ENTRY_BYTES,
    Aggregated,
    Body,
    CohortDrawn,
    Entry,
    EntryError,
    GateJudged,
    KeyRotated,
    Receipted,
    Refused,
    Released,
    SiteEnrolled,
    SiteLeft,
    SitePolicy,
    StudyDefined,
    Withdrawn,
    decode_entry,
    encode_entry,
    release_digest,
    rotate_key,
)
from privacy.receipt import Receipt, sign_receipt
from privacy.signing import SigningKey

MERCY = SigningKey.generate(name="mercy")
LOG = SigningKey.generate(name="fedtwin.example/ledger")
D = digest("something")
RECEIPT = Receipt(
    study_digest=D,
    run="run-1",
    round=1,
    site="mercy",
    base_digest=D,
    update_digest=D,
    events=(MechanismEvent(phase="measure", kind="gaussian", noise_multiplier=2.0),),
    spend_epsilon=1.5,
    spend_delta=1e-5,
    policy_digest=D,
    code_digest=D,
    dataset_fingerprint="x",
    noise_source="aes-ctr",
    nonce="n",
    issued_at=datetime(2026, 1, 31, tzinfo=UTC),
)
EXAMPLES: list[Body] = [
    StudyDefined(
        definition={"name": "Sérieuse 😀", "privacy": {"epsilon": 2, "delta": 1e-5}}, epsilon=2.0, delta=1e-5
    ),
    SiteEnrolled(site="mercy", verify_key=MERCY.public.text, node_key="ecdsa-sha2-nistp384 AAAA"),
    SiteLeft(site="mercy", reason="left"),
    SitePolicy(site="mercy", policy={"epsilon_total": "3.0", "max_delta": None, "min_patients": 100}),
    Receipted(envelope=sign_receipt(RECEIPT, MERCY)),
    Refused(site="mercy", study_digest=D, run="run-1", round=2, code="budget"),
    Aggregated(
        study_digest=D,
        run="run-1",
        round=1,
        base_digest=D,
        receipts=(D, digest("other")),
        result_digest=D,
        next_base_digest=D,
    ),
    Released(study_digest=D, run="run-1", round=1, weights_digest=D, state="published"),
    CohortDrawn(
        cohort="c-1", release_digest=D, rows=5, conditions_digest=D, files={"a.csv": D, "certificate.json": D}
    ),
    Withdrawn(release_digest=D, reason="operator"),
    GateJudged(release_digest=D, verdict="passed", card={"attacks": []}),
    rotate_key("coordinator", LOG, SigningKey.generate(name=LOG.name)),
]
TIME = "2026-01-31T12:00:00Z"


def written(body: Body) -> dict[str, Any]:
    value = json.loads(encode_entry(Entry(body=body, logged_at=TIME)))
    assert isinstance(value, dict)
    return value


def test_the_examples_are_of_every_kind() -> None:
    assert {body.KIND for body in EXAMPLES} == set(BODIES)


@pytest.mark.parametrize("body", EXAMPLES, ids=lambda body: body.KIND)
def test_an_entry_reads_back_and_is_canonical(body: Body) -> None:
    entry = Entry(body=body, logged_at=TIME)
    data = encode_entry(entry)
    assert decode_entry(data) == entry
    assert canonical_bytes(json.loads(data)) == data
    assert set(json.loads(data)) == {"body", "kind", "logged_at", "version"}


@pytest.mark.parametrize("body", EXAMPLES, ids=lambda body: body.KIND)
def test_no_field_is_optional_and_none_may_be_added(body: Body) -> None:
    value = written(body)
    for name in value["body"]:
        left = {key: item for key, item in value["body"].items() if key != name}
        with pytest.raises(EntryError, match="has the fields"):
            decode_entry(canonical_bytes({**value, "body": left}))
    with pytest.raises(EntryError, match="has the fields"):
        decode_entry(canonical_bytes({**value, "body": {**value["body"], "more": 1}}))
    with pytest.raises(EntryError, match="has the fields"):
        decode_entry(canonical_bytes({**value, "more": 1}))


@pytest.mark.parametrize("body", EXAMPLES, ids=lambda body: body.KIND)
@pytest.mark.parametrize("nonsense", [None, 0, -1, "", "x", [], {}, True, "sha256:00"])
def test_nonsense_in_any_field_is_refused_or_a_legal_value(body: Body, nonsense: Any) -> None:
    """No field of any kind makes the reader crash; what it takes, it writes back."""
    value = written(body)
    for name in value["body"]:
        data = canonical_bytes({**value, "body": {**value["body"], name: nonsense}})
        try:
            entry = decode_entry(data)
        except EntryError:
            continue
        assert encode_entry(entry) == data
        free_text = name in ("reason", "code", "run", "cohort", "node_key", "site") and nonsense in (
            "x",
            "sha256:00",
        )
        free_object = name in ("definition", "policy", "card") and nonsense == {}
        assert free_text or free_object or value["body"][name] == nonsense, (name, nonsense)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "unknown"},
        {"kind": None},
        {"kind": []},
        {"version": 2},
        {"version": "1"},
        {"logged_at": "2026-01-31"},
        {"logged_at": "2026-13-01T00:00:00Z"},
        {"logged_at": 0},
        {"body": []},
        {"body": None},
    ],
)
def test_a_wrong_frame_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(EntryError):
        decode_entry(canonical_bytes({**written(EXAMPLES[2]), **change}))


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b"\xff", b'{"body":{},"body":{}}'])
def test_what_is_no_entry_is_refused(data: bytes) -> None:
    with pytest.raises(EntryError):
        decode_entry(data)


def test_bodies_that_contradict_themselves_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="not those of the definition"):
        StudyDefined(definition={"privacy": {"epsilon": 1.0, "delta": 1e-5}}, epsilon=2.0, delta=1e-5)
    with pytest.raises(ValueError, match="the site is 'hill'"):
        SiteEnrolled(site="hill", verify_key=MERCY.public.text, node_key="x")
    with pytest.raises(ValueError, match="names a receipt twice"):
        Aggregated(
            study_digest=D,
            run="r",
            round=1,
            base_digest=D,
            receipts=(D, D),
            result_digest=D,
            next_base_digest=D,
        )
    with pytest.raises(ValueError, match="epsilon_total is"):
        SitePolicy(site="mercy", policy={"epsilon_total": 3.0})


def test_a_key_rotation_needs_both_keys() -> None:
    new = SigningKey.generate(name=LOG.name)
    good = rotate_key("coordinator", LOG, new)
    assert good.open() == ("coordinator", LOG.public, new.public)
    alone = {**good.envelope, "signatures": good.envelope["signatures"][:1]}
    reordered = {**good.envelope, "signatures": good.envelope["signatures"][::-1]}
    for envelope in (alone, reordered):
        with pytest.raises(ValueError, match="key rotation"):
            KeyRotated(envelope=envelope)
    with pytest.raises(ValueError, match="same name"):
        rotate_key("site", LOG, MERCY)
    with pytest.raises(ValueError, match="same name"):
        rotate_key("coordinator", LOG, LOG)


def test_an_entry_too_long_for_a_bundle_is_refused_before_it_is_written() -> None:
    body = StudyDefined(definition={"text": "x" * MAX_ENTRY_BYTES}, epsilon=1.0, delta=1e-5)
    with pytest.raises(EntryError, match="the most is 65535"):
        encode_entry(Entry(body=body, logged_at=TIME))


def test_a_study_keeps_its_digest_through_the_log() -> None:
    """Floats in a definition come back as RFC 8785 writes them, and the digest does not change."""
    study = StudyDefined(definition={"a": 1.0, "b": 1e-5, "c": [0.1, 1e21]}, epsilon=1.0, delta=1e-5)
    again = decode_entry(encode_entry(Entry(body=study, logged_at=TIME))).body
    assert isinstance(again, StudyDefined)
    assert again.study_digest == study.study_digest == digest({"a": 1, "b": 0.00001, "c": [0.1, 1e21]})


def test_a_release_is_named_by_its_study_and_its_weights() -> None:
    released = Released(study_digest=D, run="r", round=1, weights_digest=digest("w"), state="candidate")
    assert released.release_digest == release_digest(D, digest("w"))
    assert release_digest(D, digest("w")) != release_digest(digest("w"), D)
