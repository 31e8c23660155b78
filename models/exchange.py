"""What crosses the wire in a round, once for both sides: JSON beside bytes of known digests, nothing that runs.

A message is a pair (body, payload): `body` is UTF-8 JSON.

A request names its parts (the study, and each array as a safetensors record) by their digests, and its payload
holds those that the site is not known to hold, one after the other. The site keeps what it was sent; where it lacks
a part it says so, and is sent it. What a request is, and so what a receipt signs and what a retry is, depends on
the digests of all its parts and never on which of them travelled.

A reply's payload is one safetensors record, whose digest the site's receipt signs.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal, get_args

from torch import Tensor

from models.digests import digest_of
from models.parts import PartsError, PartsLackingError, PartStore, pack, unpack
from models.study import Study
from models.weights import SealedArrays, decode_arrays, seal

MessageKind = Literal["quote", "measure", "refine", "compare", "witness"]
EMPTY_DIGEST = digest_of(b"")

# How Flower carries a message: one record of this name with the bytes `body` and `arrays`, under this type.
RECORD_NAME = "fedtwin"
MESSAGE_TYPES: Mapping[str, str] = {
    "quote": "query.quote",
    "witness": "query.witness",
    "measure": "train.measure",
    "refine": "train.refine",
    "compare": "train.compare",
}
APP_REFUSED_CODE = 100  # a site's error code for an app that its policy does not allow


_HEAD = ("kind", "run", "round", "nonce")
_STUDY = "study"  # the name of the part that is the definition; no array has it


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
        arrays: what the round starts from: a later measurement's emphasis, the generator, or the two to compare.
        checkpoint: the ledger's newest checkpoint for the site to witness: `note`, the text; `since`, the size
            that the site witnessed last; `proof`, the consistency proof between the two in hexadecimal;
            `rotations`, the envelopes by which the coordinator's key was replaced, oldest first.
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
        if _STUDY in self.arrays:
            raise ExchangeError(f"an array is named {_STUDY!r}, which is the definition's name")
        object.__setattr__(self, "arrays", seal(self.arrays))

    def encode(self, held: Collection[str] = ()) -> tuple[bytes, bytes]:
        """The message as (body, payload).

        Args:
            held: digests of parts that need not be sent.
        """
        assert isinstance(self.arrays, SealedArrays)
        contents = {_STUDY: self.study.encoded, **self.arrays.parts}
        sent, payload = pack(contents, self.parts, held=held)
        body = {
            **_head(self),
            "parts": self.parts,
            "sent": sent,
            "checkpoint": None if self.checkpoint is None else dict(self.checkpoint),
        }
        return _dump(body), payload

    @cached_property
    def parts(self) -> Mapping[str, str]:
        """Digests of all parts by name: `study`, and each array's."""
        assert isinstance(self.arrays, SealedArrays)
        return {_STUDY: self.study.digest, **self.arrays.part_digests}

    @property
    def base_digest(self) -> str:
        """Digest of the arrays as one record: the generator (and anchor) that the site is to start from."""
        assert isinstance(self.arrays, SealedArrays)
        return self.arrays.digest

    @cached_property
    def digest(self) -> str:
        """Digest of what is to be computed: a retry has the same, another computation another."""
        return digest_of(
            _dump({"kind": self.kind, "run": self.run, "round": self.round, "parts": self.parts})
        )

    @classmethod
    def decode(cls, body: bytes, payload: bytes, *, store: PartStore | None = None) -> RoundRequest:
        """Read what `encode` wrote; what was sent is kept in the store, what was not is taken from it.

        Raises:
            PartsLackingError: a part was neither sent nor is it held.
            ExchangeError: not of that form, or a part is not what its digest says.
            StudyError: the study in it cannot be used.
            ArraysError: an array is no safetensors record.
        """
        data = _load(body, {"kind", "run", "round", "nonce", "parts", "sent", "checkpoint"})
        _check_head(data["kind"], data["run"], data["round"], data["nonce"])
        if not isinstance(data["parts"], dict) or _STUDY not in data["parts"]:
            raise ExchangeError("parts must name the study and each array by digest")
        try:
            contents = unpack(data["parts"], data["sent"], payload, store=store)
        except PartsError as error:
            raise ExchangeError(str(error)) from error
        except PartsLackingError as error:
            error.head = {name: data[name] for name in _HEAD}
            raise
        study = _read_study(contents.pop(_STUDY))
        if study.digest != data["parts"][_STUDY]:
            raise ExchangeError(
                "the study reads differently here than at the coordinator: the two run different versions"
            )
        arrays: dict[str, Tensor] = {}
        for name, part in contents.items():
            found = decode_arrays(part)
            if set(found) != {name}:
                raise ExchangeError(f"part {name!r} holds the arrays {sorted(found)}")
            arrays |= found
        return cls(
            kind=data["kind"],
            run=data["run"],
            round=data["round"],
            nonce=data["nonce"],
            study=study,
            arrays=arrays,
            checkpoint=data["checkpoint"],
        )


@lru_cache(maxsize=8)
def _read_study(data: bytes) -> Study:
    try:
        return Study.from_dict(json.loads(data))
    except (ValueError, TypeError) as error:
        raise ExchangeError(f"the study is not JSON data: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A site's no, in words that say nothing about its patients.

    Attributes:
        code: `budget`, `policy`, `approval`, `request`, `busy`, `lost-reply`, or `not-ready`, which says no more.
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
        lacks: digests of parts that the site needs to read the request; then nothing else was done with it.
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
    lacks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_head(self.kind, self.run, self.round, self.nonce)
        if (self.refusal is not None or self.lacks) and (self.arrays or self.receipt is not None):
            raise ExchangeError("a refusal carries neither arrays nor a receipt")
        object.__setattr__(self, "arrays", seal(self.arrays))

    @classmethod
    def of_lacking(cls, lacking: PartsLackingError, *, site: str) -> RoundReply:
        """The reply that asks for the parts of a request that could not be read."""
        return cls(**lacking.head, site=site, lacks=lacking.digests)

    def encode(self) -> tuple[bytes, bytes]:
        """The message as (body, payload)."""
        refusal = None if self.refusal is None else {"code": self.refusal.code, "reason": self.refusal.reason}
        body = {
            **_head(self),
            "site": self.site,
            "receipt": None if self.receipt is None else dict(self.receipt),
            "quote": None if self.quote is None else dict(self.quote),
            "refusal": refusal,
            "policy": None if self.policy is None else dict(self.policy),
            "witness": None if self.witness is None else dict(self.witness),
            "lacks": list(self.lacks),
        }
        assert isinstance(self.arrays, SealedArrays)
        return _dump(body), self.arrays.encoded

    @property
    def update_digest(self) -> str:
        """Digest of the arrays: what the receipt vouches for."""
        assert isinstance(self.arrays, SealedArrays)
        return self.arrays.digest

    @classmethod
    def decode(cls, body: bytes, payload: bytes) -> RoundReply:
        """Read what `encode` wrote.

        Raises:
            ExchangeError: not of that form.
            ArraysError: the arrays are no safetensors record.
        """
        fields = {*_HEAD, "site", "receipt", "quote", "refusal", "policy", "witness", "lacks"}
        data = _load(body, fields)
        refusal, lacks = data["refusal"], data["lacks"]
        if not isinstance(lacks, list) or not all(isinstance(one, str) for one in lacks):
            raise ExchangeError("lacks must list digests")
        return cls(
            **{
                **data,
                "refusal": None
                if refusal is None
                else Refusal(code=refusal["code"], reason=refusal["reason"]),
                "lacks": tuple(lacks),
                "arrays": SealedArrays.read(payload),
            }
        )


def _head(message: RoundRequest | RoundReply) -> dict[str, Any]:
    return {name: getattr(message, name) for name in _HEAD}


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
