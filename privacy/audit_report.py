"""What an audit found: every check with its answer in plain words, and the spends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from privacy.merkle import LedgerVerificationError


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that an auditor wants to know, and the answer.

    Attributes:
        name: key in `replay.CHECKS`.
        title: what it states, in plain words.
        held: True, False, or None where there was nothing to check (the note says why).
        note: what was found, in plain words.
        num_problems: how often it broke.
        problems: the first of them, in words that name entry, site, round and figures.
    """

    name: str
    title: str
    held: bool | None
    note: str = ""
    num_problems: int = 0
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SiteSpend:
    """What one site claims to have spent for one study, and the budget."""

    site: str
    study_digest: str
    epsilon: float
    budget: float | None


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What held and what broke.

    Attributes:
        origin, size, root: of the checkpoint that was audited.
        key: text of the pinned key.
        checks: all of them, in reading order.
        spends: per site and study.
        counts: number of entries by kind.
        witnessed_size: the first so many entries are countersigned by a quorum of the sites.
        num_compositions: distinct epsilons that were recomputed.
    """

    origin: str
    size: int
    root: str
    key: str
    checks: tuple[Check, ...]
    spends: tuple[SiteSpend, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    witnessed_size: int = 0
    num_compositions: int = 0

    @property
    def held(self) -> bool:
        """Whether nothing broke."""
        return all(check.held is not False for check in self.checks)

    def raise_for_problems(self) -> None:
        """Return None if everything held.

        Raises:
            LedgerVerificationError: with every broken check and its first problem.
        """
        broken = [f"{c.title}: {c.problems[0]}" for c in self.checks if c.held is False]
        if broken:
            raise LedgerVerificationError("this does not hold: " + "; ".join(broken))

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON data."""
        return {
            "held": self.held,
            "origin": self.origin,
            "size": self.size,
            "root": self.root,
            "key": self.key,
            "checks": [
                {
                    "name": check.name,
                    "title": check.title,
                    "held": check.held,
                    "note": check.note,
                    "num_problems": check.num_problems,
                    "problems": list(check.problems),
                }
                for check in self.checks
            ],
            "spends": [
                {
                    "site": spend.site,
                    "study_digest": spend.study_digest,
                    "epsilon": repr(spend.epsilon),
                    "budget": None if spend.budget is None else repr(spend.budget),
                }
                for spend in self.spends
            ],
            "counts": dict(self.counts),
            "witnessed_size": self.witnessed_size,
            "num_compositions": self.num_compositions,
        }
