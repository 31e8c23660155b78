"""What an audit found: every check with its answer in plain words, and the spends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from privacy.entries import BODIES
from privacy.findings import CHECKS, Problems
from privacy.merkle import LedgerVerificationError
from privacy.replay import LedgerReplay

NOTHING: Final = "nothing to check: "


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


def state_checks(
    replay: LedgerReplay,
    size: int,
    *,
    since_given: bool,
    witnessed_size: int,
    num_compositions: int,
    accounting: str,
) -> tuple[Check, ...]:
    """The answer to every check, with a note in plain words, from what an audit collected."""
    counts = replay.counts
    tail = size - witnessed_size
    witnessed = f"the first {witnessed_size} entries are countersigned by a quorum"
    if tail:
        witnessed += f"; the newest {tail} stand on the coordinator's word until the next round"
    cautious = counts.get("cautious claim", 0)
    spend = f"{num_compositions} distinct compositions recomputed by two accountants"
    if accounting == "last":
        spend += "; only the last claim of each site and study"
    if cautious:
        spend += (
            f"; {cautious} claim more than the logged rounds explain (a debit whose round gave no receipt)"
        )
    notes = {
        "checkpoint": f"{size} entries",
        "entries": ", ".join(f"{counts[kind]} {kind}" for kind in sorted(counts) if kind in BODIES),
        "history": f"{counts['checkpoint']} earlier checkpoints"
        if counts["checkpoint"]
        else NOTHING + "none",
        "since": "it does" if since_given else NOTHING + "you gave no earlier checkpoint",
        "witnesses": witnessed if witnessed_size else NOTHING + "no quorum of sites has countersigned yet",
        "receipts": _how_many(counts["receipt"], "receipts"),
        "noise": "" if counts["receipt"] else NOTHING + "no receipts",
        "spend": spend if num_compositions else NOTHING + "no receipts",
        "caps": "" if counts["receipt"] else NOTHING + "no receipts",
        "rounds": _how_many(counts["aggregate"], "rounds"),
        "releases": _how_many(counts["release"], "changes of state"),
        "cohorts": _how_many(counts["cohort"], "cohorts"),
    }
    return tuple(
        _check(name, title, notes.get(name, ""), replay.problems.get(name, Problems()))
        for name, title in CHECKS.items()
    )


def _check(name: str, title: str, note: str, found: Problems) -> Check:
    held = False if found.count else None if note.startswith(NOTHING) else True
    return Check(
        name=name,
        title=title,
        held=held,
        note="" if held is False and (note == "it does" or note.startswith(NOTHING)) else note,
        num_problems=found.count,
        problems=tuple(found.first),
    )


def _how_many(count: int, what: str) -> str:
    return f"{count} {what}" if count else f"{NOTHING}no {what}"
