"""Receipts: what they say, that nobody but the site can say it, and that they say nothing else."""

from __future__ import annotations

import base64
import json
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.canonical import canonical_bytes, digest
from privacy.checkpoint import Checkpoint, cosigned_message
from privacy.envelope import open_statement, pre_authentication_encoding, sign_statement
from privacy.events import MechanismEvent
from privacy.merkle import EMPTY_ROOT
from privacy.receipt import (
    RECEIPT_TYPE,
    Receipt,
    ReceiptError,
    decimal_text,
    open_receipt,
    parse_decimal,
    parse_time,
    receipt_digest,
    sign_receipt,
    time_text,
)
from privacy.signing import SignatureError, SigningKey

MERCY = SigningKey.generate(name="mercy")
HILL = SigningKey.generate(name="hill")
EVENT = MechanismEvent(
    phase="refine", kind="subsampled_gaussian", noise_multiplier=1.1, sample_rate=0.05, steps=80
)
RECEIPT = Receipt(
    study_digest=digest("study"),
    run="run-1",
    round=2,
    site="mercy",
    base_digest=digest("base"),
    update_digest=digest("update"),
    events=(EVENT,),
    spend_epsilon=1.2345678901234567,
    spend_delta=1e-5,
    policy_digest=digest("policy"),
    code_digest=digest("code"),
    dataset_fingerprint="hmac-sha256:" + "0" * 64,
    noise_source="aes-ctr",
    nonce="a nonce",
    issued_at=datetime(2026, 1, 31, 12, 0, 0, 999_999, tzinfo=timezone(timedelta(hours=1))),
)


def changed(envelope: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """The same envelope and signature around another payload."""
    payload = {**json.loads(base64.b64decode(envelope["payload"])), **change}
    return {**envelope, "payload": base64.b64encode(canonical_bytes(payload)).decode()}


def test_a_receipt_reads_back_with_every_digit() -> None:
    envelope = sign_receipt(RECEIPT, MERCY)
    assert open_receipt(envelope, MERCY.public) == RECEIPT
    assert open_receipt(json.loads(json.dumps(envelope)), MERCY.public) == RECEIPT
    assert RECEIPT.issued_at == datetime(2026, 1, 31, 11, 0, 0, tzinfo=UTC), "kept in UTC to the second"


def test_a_receipt_says_no_count_and_no_loss() -> None:
    """The whole list: whoever adds a field has to come by here."""
    assert {field.name for field in fields(Receipt)} == {
        "study_digest",
        "run",
        "round",
        "site",
        "base_digest",
        "update_digest",
        "events",
        "spend_epsilon",
        "spend_delta",
        "policy_digest",
        "code_digest",
        "dataset_fingerprint",
        "noise_source",
        "nonce",
        "issued_at",
    }
    assert set(RECEIPT.to_dict()) == {field.name for field in fields(Receipt)}


def test_real_numbers_travel_as_decimal_strings() -> None:
    data = RECEIPT.to_dict()
    assert (data["spend_epsilon"], data["spend_delta"]) == ("1.2345678901234567", "1e-05")
    assert not any(isinstance(value, float) for value in (*data.values(), *data["events"][0].values()))


@pytest.mark.parametrize("name", sorted(RECEIPT.to_dict()))
def test_no_field_can_be_changed_under_the_signature(name: str) -> None:
    envelope = sign_receipt(RECEIPT, MERCY)
    others: dict[str, Any] = {
        "round": 3,
        "events": [replace(EVENT, steps=79).to_dict()],
        "spend_epsilon": "0.1",
        "spend_delta": "1e-06",
        "issued_at": "2026-01-31T11:00:01Z",
        "site": "hill",
    }
    other = others.get(name, digest("other"))
    with pytest.raises(ReceiptError, match="does not hold"):
        open_receipt(changed(envelope, {name: other}), MERCY.public)


def test_only_the_sites_pinned_key_opens_its_receipt() -> None:
    envelope = sign_receipt(RECEIPT, MERCY)
    for key in (HILL.public, SigningKey.generate(name="mercy").public):
        with pytest.raises(ReceiptError, match="signed by"):
            open_receipt(envelope, key)
    with pytest.raises(ValueError, match="the key is of"):
        sign_receipt(RECEIPT, HILL)
    stolen = sign_statement(RECEIPT_TYPE, RECEIPT.to_dict(), [HILL])
    with pytest.raises(ReceiptError, match="a receipt of 'mercy' is signed by 'hill'"):
        open_receipt(stolen, HILL.public)


def test_a_key_id_in_the_envelope_convinces_nobody() -> None:
    """Another's signature under mercy's key id."""
    envelope = sign_statement(RECEIPT_TYPE, RECEIPT.to_dict(), [HILL])
    envelope["signatures"][0]["keyid"] = MERCY.public.text
    with pytest.raises(ReceiptError, match="does not hold"):
        open_receipt(envelope, MERCY.public)


def test_a_statement_of_another_kind_is_no_receipt() -> None:
    other = sign_statement("application/vnd.fedtwin.other+json", RECEIPT.to_dict(), [MERCY])
    with pytest.raises(ReceiptError, match="holds"):
        open_receipt(other, MERCY.public)
    relabelled = {**other, "payloadType": RECEIPT_TYPE}
    with pytest.raises(ReceiptError, match="does not hold"):
        open_receipt(relabelled, MERCY.public)


def test_what_a_site_signs_for_a_receipt_cosigns_no_checkpoint() -> None:
    """The first bytes differ for good: no payload and no checkpoint can make the two messages equal."""
    checkpoint = Checkpoint(origin="DSSEv1", size=0, root=EMPTY_ROOT)
    assert cosigned_message(checkpoint, 0).startswith(b"cosignature/v1\n")
    assert pre_authentication_encoding(RECEIPT_TYPE, b"").startswith(b"DSSEv1 ")
    assert checkpoint.text.startswith("DSSEv1\n"), (
        "an origin has no space, so a note is no DSSE message either"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"signatures": []},
        {"signatures": "x"},
        {"signatures": [{"keyid": MERCY.public.text}]},
        {"signatures": [{"keyid": MERCY.public.text, "sig": "AA==", "more": 1}]},
        {"signatures": [{"keyid": MERCY.public.text, "sig": "!"}]},
        {"signatures": [{"keyid": 1, "sig": "AA=="}]},
        {"payload": ""},
        {"payload": "e30"},
        {"payload": "e31="},
        {"payload": None},
        {"payloadType": None},
    ],
)
def test_broken_envelopes_raise_one_error(change: dict[str, Any]) -> None:
    with pytest.raises(ReceiptError):
        open_receipt({**sign_receipt(RECEIPT, MERCY), **change}, MERCY.public)


def test_two_signatures_where_one_belongs_are_refused() -> None:
    envelope = sign_statement(RECEIPT_TYPE, RECEIPT.to_dict(), [MERCY, HILL])
    with pytest.raises(ReceiptError, match="signed by"):
        open_receipt(envelope, MERCY.public)
    assert open_statement(envelope, RECEIPT_TYPE, [MERCY.public, HILL.public]) == RECEIPT.to_dict()
    with pytest.raises(SignatureError):
        open_statement(envelope, RECEIPT_TYPE, [HILL.public, MERCY.public])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("round", 0),
        ("round", True),
        ("round", "2"),
        ("round", 2.5),
        ("spend_epsilon", 1.5),
        ("spend_epsilon", "nan"),
        ("spend_epsilon", "0.0"),
        ("spend_epsilon", "1.50"),
        ("spend_epsilon", "1e400"),
        ("spend_delta", "0.0"),
        ("spend_delta", "1.0"),
        ("study_digest", "sha256:0"),
        ("study_digest", 1),
        ("run", ""),
        ("run", "line\nbreak"),
        ("site", "x" * 129),
        ("nonce", None),
        ("events", []),
        ("events", [{}]),
        ("events", "x"),
        ("events", [{**EVENT.to_dict(), "steps": 0}]),
        ("events", [{**EVENT.to_dict(), "noise_multiplier": "1.10"}]),
        ("events", [{**EVENT.to_dict(), "noise_multiplier": 1.1}]),
        ("issued_at", "2026-01-31 11:00:00Z"),
        ("issued_at", "2026-01-31T11:00:00+00:00"),
        ("issued_at", "2026-02-31T11:00:00Z"),
    ],
)
def test_a_well_signed_receipt_of_nonsense_is_refused(name: str, value: Any) -> None:
    envelope = sign_statement(RECEIPT_TYPE, {**RECEIPT.to_dict(), name: value}, [MERCY])
    with pytest.raises(ReceiptError, match="cannot be used"):
        open_receipt(envelope, MERCY.public)


@pytest.mark.parametrize("name", sorted(RECEIPT.to_dict()))
def test_no_field_is_optional(name: str) -> None:
    left = {key: value for key, value in RECEIPT.to_dict().items() if key != name}
    with pytest.raises(ReceiptError, match="has the fields"):
        open_receipt(sign_statement(RECEIPT_TYPE, left, [MERCY]), MERCY.public)


def test_a_time_without_its_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        replace(RECEIPT, issued_at=datetime(2026, 1, 31))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_decimal_strings_keep_every_double(value: float) -> None:
    assert parse_decimal(decimal_text(value), name="x") == value


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9999, 12, 30), timezones=st.just(UTC)))
def test_times_read_back_to_the_second(moment: datetime) -> None:
    assert parse_time(time_text(moment), name="x") == moment.replace(microsecond=0)


def test_a_receipts_digest_is_that_of_what_was_signed() -> None:
    envelope = sign_receipt(RECEIPT, MERCY)
    assert receipt_digest(envelope) == digest(RECEIPT.to_dict())
    assert receipt_digest(sign_receipt(replace(RECEIPT, nonce="other"), MERCY)) != receipt_digest(envelope)


def test_the_encoding_that_dsse_signs_is_the_published_one() -> None:
    """The test vector of DSSE's protocol.md."""
    encoded = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
    assert encoded == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
