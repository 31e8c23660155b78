"""Ledger entries: what the log says, one frozen value per kind, and their canonical bytes.

An entry is `{"body": {...}, "kind": "...", "logged_at": "...", "version": 1}` in canonical JSON. To append:

    data = encode_entry(Entry(body=Receipted(envelope=envelope), logged_at="2026-01-31T12:00:00Z"))
    tree.append(leaf_hash(data))        # privacy.merkle.CompactRange

`decode_entry(data)` gives the entry back or raises `EntryError`. Bodies are validated when they are made, so what
is in the log can be read. The order that the verifier expects: `SiteEnrolled` and `SitePolicy` before a site's
first receipt; `StudyDefined` before anything of the study; a round's `Receipted` (and `Refused`) before its
`Aggregated`; `Released` after the `Aggregated` it names; `CohortDrawn` after its release was published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from privacy.canonical import CanonicalError, canonical_bytes, parse_canonical
from privacy.entries import (
    BODIES,
    CAPS,
    ROTATION_TYPE,
    Aggregated,
    Body,
    CohortDrawn,
    GateJudged,
    KeyRole,
    KeyRotated,
    Receipted,
    Refused,
    Released,
    ReleaseState,
    SiteEnrolled,
    SiteLeft,
    SitePolicy,
    StudyDefined,
    Withdrawn,
    release_digest,
    rotate_key,
)
from privacy.receipt import check_fields, check_time, decimal_text, parse_decimal

__all__ = [
    "BODIES",
    "CAPS",
    "MAX_ENTRY_BYTES",
    "ROTATION_TYPE",
    "VERSION",
    "Aggregated",
    "Body",
    "CohortDrawn",
    "Entry",
    "EntryError",
    "GateJudged",
    "KeyRole",
    "KeyRotated",
    "Receipted",
    "Refused",
    "ReleaseState",
    "Released",
    "SiteEnrolled",
    "SiteLeft",
    "SitePolicy",
    "StudyDefined",
    "Withdrawn",
    "decode_entry",
    "encode_entry",
    "release_digest",
    "rotate_key",
]

VERSION: Final = 1
MAX_ENTRY_BYTES: Final = 65_535


class EntryError(ValueError):
    """Bytes that are not a ledger entry, or an entry that must not be written."""


_FIELDS: Final = {kind: frozenset(f.name for f in fields(body)) for kind, body in BODIES.items()}
_ENTRY_FIELDS: Final = frozenset({"kind", "version", "logged_at", "body"})


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the log.

    Attributes:
        body: what happened.
        logged_at: when the coordinator wrote it, UTC, `YYYY-MM-DDTHH:MM:SSZ`; its own word, unlike a
            cosignature's time.
    """

    body: Body
    logged_at: str

    def __post_init__(self) -> None:
        check_time(self.logged_at, name="logged_at")

    @property
    def kind(self) -> str:
        """The body's kind: `study`, `receipt`, ..."""
        return self.body.KIND


def encode_entry(entry: Entry) -> bytes:
    """The canonical bytes that go into the log: hash them with `merkle.leaf_hash`, store them as they are.

    Raises:
        EntryError: more than 65,535 bytes, or no canonical JSON.
    """
    try:
        data = canonical_bytes(
            {
                "kind": entry.kind,
                "version": VERSION,
                "logged_at": entry.logged_at,
                "body": _body_to_dict(entry.body),
            }
        )
    except CanonicalError as error:
        raise EntryError(f"this {entry.kind} entry cannot be written: {error}") from error
    if len(data) > MAX_ENTRY_BYTES:
        raise EntryError(
            f"this {entry.kind} entry has {len(data)} bytes; the most is {MAX_ENTRY_BYTES} (C2SP tlog-tiles): "
            "shorten what it lists, for a study its categories and descriptions"
        )
    return data


def decode_entry(data: bytes) -> Entry:
    """Read an entry's canonical bytes.

    Raises:
        EntryError: not canonical, of an unknown kind or version, or a body that breaks a rule of its kind.
    """
    try:
        value = parse_canonical(data)
        check_fields(value, _ENTRY_FIELDS, what="an entry")
        if value["version"] != VERSION or value["kind"] not in BODIES:
            raise ValueError(f"kind {value['kind']!r} of version {value['version']!r} is not known here")
        kind, body = value["kind"], value["body"]
        check_fields(body, _FIELDS[kind], what=f"a {kind} entry")
        if kind == StudyDefined.KIND:
            body = {**body, **{name: parse_decimal(body[name], name=name) for name in ("epsilon", "delta")}}
        return Entry(body=BODIES[kind](**body), logged_at=value["logged_at"])
    except (ValueError, TypeError, AttributeError) as error:
        raise EntryError(f"not a ledger entry: {error}") from error


def _body_to_dict(body: Body) -> dict[str, Any]:
    data = {field.name: getattr(body, field.name) for field in fields(body)}
    if isinstance(body, StudyDefined):
        data["epsilon"], data["delta"] = decimal_text(body.epsilon), decimal_text(body.delta)
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in data.items()}
