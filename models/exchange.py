"""What crosses the wire in a round, once for both sides: JSON beside safetensors, nothing that runs.

A message is a pair (body, arrays): `body` is UTF-8 JSON, `arrays` a safetensors record. Its digest is that
of both, and is what a site's receipt signs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor

from models.digests import digest_of
from models.study import Study
from models.weights import decode_arrays, encode_arrays

MessageKind = Literal["quote", "measure", "refine", "witness"]
EMPTY_DIGEST = digest_of(b"")

# How Flower carries a message: one record of this name with the bytes `body` and `arrays`, under this type.
RECORD_NAME = "fedtwin"
MESSAGE_TYPES: Mapping[str, str] = {
    "quote": "query.quote",
    "witness": "query.witness",
    "measure": "train.measure",
    "refine": "train.refine",
}
APP_REFUSED_CODE = 100  # a site's error code for an app that its policy does not allow


class ExchangeError(ValueError):
    """A message that does not have the form it must have; nothing of it was used."""


@dataclass(frozen=True, kw_only=True)
class RoundRequest:
    """What the coordinator asks of a site in one round.

    Attributes:
        kind: `quote` and `witness` cost nothing and release nothing of patients; `measure` and `refine` spend.
        run: the run's identifier.
        round: from 1; for a quote the round it would start with.
        nonce: unpredictable, different in every request that is not a retry.
        study: the whole definition, so that a site needs no other source for what it agreed to.
        arrays: generator weights and the anchor's moments; empty but for `refine`.
        checkpoint: the ledger's newest checkpoint for the site to witness: `note`, the text; `since`, the size
            that the site witnessed last; `proof`, the consistency proof between the two in hexadecimal.
    """

    kind: MessageKind
    run: str
    round: int
    nonce: str
    study: Study
    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    checkpoint: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _check_head(self.kind, self.run, self.round, self.nonce)

    def encode(self) -> tuple[bytes, bytes]:
        """The message as (body, arrays)."""
        body = {
            "kind": self.kind,
            "run": self.run,
            "round": self.round,
            "nonce": self.nonce,
            "study": self.study.to_dict(),
            "checkpoint": None if self.checkpoint is None else dict(self.checkpoint),
        }
        return _dump(body), encode_arrays(self.arrays) if self.arrays else b""

    @property
    def base_digest(self) -> str:
        """Digest of the arrays: the generator (and anchor) that the site is to start from."""
        return digest_of(self.encode()[1])

    @property
    def digest(self) -> str:
        """Digest of what is to be computed: a retry has the same, another computation another."""
        body, arrays = self.encode()
        content = {**json.loads(body), "nonce": "", "checkpoint": None}
        return digest_of(hashlib.sha256(_dump(content)).digest() + hashlib.sha256(arrays).digest())

    @classmethod
    def decode(cls, body: bytes, arrays: bytes) -> RoundRequest:
        """Read what `encode` wrote.

        Raises:
            ExchangeError: not of that form.
            StudyError: the study in it cannot be used.
            ArraysError: the arrays are no safetensors record.
        """
        data = _load(body, {"kind", "run", "round", "nonce", "study", "checkpoint"})
        return cls(
            kind=data["kind"],
            run=data["run"],
            round=data["round"],
            nonce=data["nonce"],
            study=Study.from_dict(data["study"]),
            arrays=decode_arrays(arrays) if arrays else {},
            checkpoint=data["checkpoint"],
        )


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A site's no, in words that say nothing about its patients.

    Attributes:
        code: `budget`, `policy`, `approval`, `data`, `request`, `busy` or `internal`.
        reason: for people.
    """

    code: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class RoundReply:
    """What a site answers.

    Attributes:
        kind, run, round, nonce: those of the request.
        site: the site's name.
        receipt: the signed envelope (`privacy.receipt`) for a round that ran.
        quote: for `quote`: `spent_epsilon`, `projected_epsilon`, `cap_epsilon` as decimal strings, `ready`.
        refusal: why the site did not run it; then there are no arrays and no receipt.
        arrays: `moments` after `measure`; the generator's update after `refine`.
        policy: the site's policy in force, whose digest the receipt names; the coordinator logs a changed one.
        witness: `size` of the newest checkpoint that the site has seen, and, where it was shown a consistent
            one, `signature`: its countersignature as a line of the note.
    """

    kind: MessageKind
    run: str
    round: int
    nonce: str
    site: str
    receipt: Mapping[str, Any] | None = None
    quote: Mapping[str, Any] | None = None
    refusal: Refusal | None = None
    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    policy: Mapping[str, Any] | None = None
    witness: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _check_head(self.kind, self.run, self.round, self.nonce)
        if self.refusal is not None and (self.arrays or self.receipt is not None):
            raise ExchangeError("a refusal carries neither arrays nor a receipt")

    def encode(self) -> tuple[bytes, bytes]:
        """The message as (body, arrays)."""
        refusal = None if self.refusal is None else {"code": self.refusal.code, "reason": self.refusal.reason}
        body = {
            "kind": self.kind,
            "run": self.run,
            "round": self.round,
            "nonce": self.nonce,
            "site": self.site,
            "receipt": None if self.receipt is None else dict(self.receipt),
            "quote": None if self.quote is None else dict(self.quote),
            "refusal": refusal,
            "policy": None if self.policy is None else dict(self.policy),
            "witness": None if self.witness is None else dict(self.witness),
        }
        return _dump(body), encode_arrays(self.arrays) if self.arrays else b""

    @property
    def update_digest(self) -> str:
        """Digest of the arrays: what the receipt vouches for."""
        return digest_of(encode_arrays(self.arrays)) if self.arrays else EMPTY_DIGEST

    @classmethod
    def decode(cls, body: bytes, arrays: bytes) -> RoundReply:
        """Read what `encode` wrote.

        Raises:
            ExchangeError: not of that form.
            ArraysError: the arrays are no safetensors record.
        """
        data = _load(
            body,
            {"kind", "run", "round", "nonce", "site", "receipt", "quote", "refusal", "policy", "witness"},
        )
        refusal = data["refusal"]
        return cls(
            kind=data["kind"],
            run=data["run"],
            round=data["round"],
            nonce=data["nonce"],
            site=data["site"],
            receipt=data["receipt"],
            quote=data["quote"],
            refusal=None if refusal is None else Refusal(code=refusal["code"], reason=refusal["reason"]),
            arrays=decode_arrays(arrays) if arrays else {},
            policy=data["policy"],
            witness=data["witness"],
        )


def _dump(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _load(body: bytes, fields: set[str]) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except ValueError as error:
        raise ExchangeError(f"the body is not JSON: {error}") from error
    if not isinstance(data, dict) or set(data) != fields:
        found = sorted(data) if isinstance(data, dict) else type(data).__name__
        raise ExchangeError(f"the body has the fields {sorted(fields)}, this one {found}")
    return data


def _check_head(kind: object, run: object, round_number: object, nonce: object) -> None:
    if kind not in get_args(MessageKind):
        raise ExchangeError(f"kind is {kind!r}; it must be one of {get_args(MessageKind)}")
    for name, value in (("run", run), ("nonce", nonce)):
        if not isinstance(value, str) or not 1 <= len(value) <= 128:
            raise ExchangeError(f"{name} is {value!r}; it must be a text of 1 to 128 characters")
    if isinstance(round_number, bool) or not isinstance(round_number, int) or round_number < 1:
        raise ExchangeError(f"round is {round_number!r}; it must be a whole number, 1 or more")
