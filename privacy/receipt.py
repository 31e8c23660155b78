"""Receipts: a site's signed statement of what it ran and spent in one round.

No count, no loss, no metric: only what an auditor needs to recompute the spend and to tie it to the study, the
generator, the site's policy and its code.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from privacy.budget import check_delta
from privacy.canonical import check_digest
from privacy.envelope import envelope_digest, open_statement, sign_statement
from privacy.events import MechanismEvent
from privacy.signing import SignatureError, SigningKey, VerifyKey

RECEIPT_TYPE: Final = "application/vnd.fedtwin.receipt+json"
_TIME: Final = re.compile(
    r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z"
)
_DIGESTS: Final = ("study_digest", "base_digest", "update_digest", "policy_digest", "code_digest")
_TEXTS: Final = ("run", "site", "dataset_fingerprint", "noise_source", "nonce")


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a site says of one round.

    Attributes:
        study_digest: `sha256:...` of the study's canonical definition.
        run: the run's identifier, 1 to 128 characters.
        round: from 1.
        site: the site's name, as enrolled.
        base_digest: of the arrays the site started from (generator and anchor; of no bytes for a measurement).
        update_digest: of the arrays it sent.
        events: the mechanisms that ran in this round, at least one.
        spend_epsilon: cumulative epsilon of this site for this study after this round, over every event ever
            debited (also of rounds without a receipt): at least what the receipts' events cost.
        spend_delta: the delta it holds at.
        policy_digest: of the site's policy in force (`ledger.SitePolicy`).
        code_digest: of the code that ran.
        dataset_fingerprint: keyed by a secret of the site and bound to the run: equal for equal data in one run,
            meaningless to others; over several runs it would tell whether patients changed.
        noise_source: `NoiseSource.kind`; `aes-ctr` for the real one.
        nonce: unpredictable, from the request.
        issued_at: when, with its time zone; kept in UTC to the second.
    """

    study_digest: str
    run: str
    round: int
    site: str
    base_digest: str
    update_digest: str
    events: tuple[MechanismEvent, ...]
    spend_epsilon: float
    spend_delta: float
    policy_digest: str
    code_digest: str
    dataset_fingerprint: str
    noise_source: str
    nonce: str
    issued_at: datetime

    def __post_init__(self) -> None:
        for name in _DIGESTS:
            check_digest(getattr(self, name), name=name)
        for name in _TEXTS:
            check_text(getattr(self, name), name=name)
        check_round(self.round)
        object.__setattr__(self, "issued_at", _whole_second(self.issued_at))
        object.__setattr__(self, "events", tuple(self.events))
        if not self.events:
            raise ValueError("events is empty; a round without a mechanism needs no receipt")
        if not (math.isfinite(self.spend_epsilon) and self.spend_epsilon > 0):
            raise ValueError(f"spend_epsilon is {self.spend_epsilon!r}; it must be a finite number above 0")
        check_delta(self.spend_delta, name="spend_delta")

    def to_dict(self) -> dict[str, Any]:
        """The receipt as JSON data; real numbers are decimal strings."""
        return {
            **{name: getattr(self, name) for name in (*_DIGESTS, *_TEXTS, "round")},
            "issued_at": time_text(self.issued_at),
            "events": [event.to_dict() for event in self.events],
            "spend_epsilon": decimal_text(self.spend_epsilon),
            "spend_delta": decimal_text(self.spend_delta),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Receipt:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: a field is missing, unknown, or out of its range.
        """
        check_fields(data, _FIELDS, what="a receipt")
        numbers = {name: parse_decimal(data[name], name=name) for name in ("spend_epsilon", "spend_delta")}
        events = read_events(json.dumps(data["events"]))
        issued_at = parse_time(data["issued_at"], name="issued_at")
        return cls(**{**data, **numbers, "events": events, "issued_at": issued_at})


class ReceiptError(SignatureError):
    """An envelope that is no receipt of the expected site, or whose signature does not hold."""


_FIELDS: Final = frozenset(
    (*_DIGESTS, *_TEXTS, "round", "issued_at", "events", "spend_epsilon", "spend_delta")
)


def sign_receipt(receipt: Receipt, key: SigningKey) -> dict[str, Any]:
    """The receipt in a DSSE envelope, signed by the site's key.

    Raises:
        ValueError: the key is not the site's (its name is not `receipt.site`).
    """
    if key.name != receipt.site:
        raise ValueError(f"the key is of {key.name!r}, the receipt of {receipt.site!r}")
    return sign_statement(RECEIPT_TYPE, receipt.to_dict(), [key])


def open_receipt(envelope: Mapping[str, Any], key: VerifyKey) -> Receipt:
    """The receipt in an envelope, once its signature under the site's pinned key holds.

    Raises:
        ReceiptError: not a receipt, another signer, a bad signature, or a site other than the key's.
    """
    try:
        receipt = Receipt.from_dict(open_statement(envelope, RECEIPT_TYPE, [key]))
    except SignatureError as error:
        raise ReceiptError(str(error)) from error
    except (ValueError, TypeError) as error:
        raise ReceiptError(f"the signed receipt of {key.name!r} cannot be used: {error}") from error
    if receipt.site != key.name:
        raise ReceiptError(f"a receipt of {receipt.site!r} is signed by {key.name!r}")
    return receipt


def receipt_digest(envelope: Mapping[str, Any]) -> str:
    """The digest by which an aggregate names a receipt: that of the signed payload (not of the signature)."""
    return envelope_digest(envelope, RECEIPT_TYPE)


def decimal_text(value: float) -> str:
    """A real number as a decimal string: the shortest that reads back exactly."""
    return repr(float(value))


def parse_decimal(text: object, *, name: str) -> float:
    """Read what `decimal_text` wrote; one spelling only.

    Raises:
        ValueError: not such a text.
    """
    if not isinstance(text, str):
        raise ValueError(f"{name} is {text!r}; it must be a decimal string")
    value = float(text)
    if not math.isfinite(value) or repr(value) != text:
        raise ValueError(f"{name} is {text!r}; it must be the shortest decimal string of a finite number")
    return value


@lru_cache(maxsize=4096)
def read_events(text: str) -> tuple[MechanismEvent, ...]:
    """Mechanism events from a JSON list; one spelling of each number only.

    Raises:
        ValueError: it cannot be used.
    """
    data = json.loads(text)
    if not isinstance(data, list) or not all(isinstance(event, dict) for event in data):
        raise ValueError("events is not a list of objects")
    try:
        events = tuple(MechanismEvent.from_dict(event) for event in data)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"an event cannot be used: {error}") from error
    if [event.to_dict() for event in events] != data:
        raise ValueError(
            "an event is not written in its one form: real numbers are the shortest decimal strings"
        )
    return events


def check_fields(data: object, fields: frozenset[str], *, what: str) -> None:
    """Raise ValueError unless `data` is a mapping with exactly these fields."""
    if not isinstance(data, Mapping) or data.keys() != fields:
        found = sorted(data) if isinstance(data, Mapping) else type(data).__name__
        raise ValueError(f"{what} has the fields {sorted(fields)}, this one {found}")


def check_text(value: object, *, name: str) -> str:
    """Return `value` if it is a text of 1 to 128 printable characters; ValueError otherwise."""
    if not isinstance(value, str) or not 1 <= len(value) <= 128 or not value.isprintable():
        raise ValueError(f"{name} is {value!r}; it must be a text of 1 to 128 printable characters")
    return value


def check_round(value: object) -> int:
    """Return `value` if it is a round number, a whole number from 1; ValueError otherwise."""
    if type(value) is not int or not 1 <= value < 2**31:
        raise ValueError(f"round is {value!r}; it must be a whole number, 1 or more")
    return value


def time_text(moment: datetime) -> str:
    """A time as entries and receipts write it: UTC, to the second."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def parse_time(text: object, *, name: str) -> datetime:
    """Read what `time_text` wrote; one spelling only. ValueError otherwise."""
    return datetime.fromisoformat(check_time(text, name=name))


def check_time(value: object, *, name: str) -> str:
    """Return `value` if it reads `YYYY-MM-DDTHH:MM:SSZ`; ValueError otherwise."""
    if not isinstance(value, str) or _TIME.fullmatch(value) is None:
        raise ValueError(f"{name} is {value!r}; it must be UTC in the form 2026-01-31T23:59:59Z")
    return value


def _whole_second(moment: datetime) -> datetime:
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise ValueError(f"issued_at is {moment!r}; it must be a datetime with its time zone")
    return moment.astimezone(UTC).replace(microsecond=0)
