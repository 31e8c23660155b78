"""What an audit looks for and where it notes what it finds: checks, problems, and what is to be recomputed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from privacy.accounting import Group
from privacy.canonical import digest_of_bytes
from privacy.entries import SitePolicy
from privacy.signing import VerifyKey

TOLERANCE: Final = 1e-6
REAL_NOISE: Final = "aes-ctr"
NO_ARRAYS: Final = digest_of_bytes(b"")
KEPT_PROBLEMS: Final = 20
CHECKS: Final = {
    "checkpoint": "the newest checkpoint is signed by the coordinator's key",
    "entries": "every entry is there, in canonical form, of a known kind and valid",
    "tree": "the Merkle tree recomputed from the entries is the one that was signed",
    "history": "every earlier checkpoint in the export is signed and is a beginning of this ledger",
    "since": "this ledger continues the one of the checkpoint that you kept",
    "witnesses": "the sites countersigned this ledger, and every countersignature holds",
    "keys": "every key was enrolled or replaced by the one before it",
    "receipts": "every receipt is signed by the site that was enrolled, under a policy and for a study in the ledger",
    "noise": "every site drew its noise from the cryptographic source",
    "spend": "every epsilon claimed is at least what the site's logged events cost, recomputed",
    "caps": "no site went beyond the study's budget or its own policy",
    "rounds": "every aggregate continues the round before it and uses only receipts in the ledger",
    "releases": "every release is the result of a logged round",
    "cohorts": "every cohort came from a release that was published at the time",
}


@dataclass
class Problems:
    """What broke in one check: how often, and the first few in words."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        """Count one more."""
        self.count += 1
        if len(self.first) < KEPT_PROBLEMS:
            self.first.append(text)


@dataclass
class Claim:
    """The claims made after one multiset of events at one delta: the least, with its place, and the greatest."""

    least: float
    greatest: float
    index: int


@dataclass
class SiteRecord:
    """What the ledger has said of one site so far.

    Attributes:
        keys: as enrolled and rotated, the one in force last.
        active: enrolled and not left.
        policies: by digest.
        events: everything it ran, over all studies, merged.
    """

    keys: list[VerifyKey]
    active: bool = True
    policies: dict[str, SitePolicy] = field(default_factory=dict)
    events: tuple[Group, ...] = ()


class CapCheck(NamedTuple):
    """A cap on a composition that no claim states: it is to be recomputed."""

    groups: tuple[Group, ...]
    delta: float
    cap: float
    what: str
