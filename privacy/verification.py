"""The offline verifier: is this export of a ledger true, whole, continued from what was seen, and within budget?

No network, no server code, no files: the caller gives `read`, which maps a file name of the export
(`privacy.export`) to bytes. Memory is bounded by a few bundles and by studies, sites, runs and rounds.

    report = audit_export(read, key=VerifyKey.from_text(text), since=old_note)
    report.raise_for_problems()

Trust: the auditor's pinned key, the sites' keys as they were enrolled in the ledger, SHA-256, Ed25519 and the two
accountants. What this cannot see: whether a site's code did what its receipt says (see docs/assurance/ledger.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal

from privacy.accounting import AccountingError, Group, spend_of
from privacy.audit_report import AuditReport, Check, SiteSpend
from privacy.bundles import Bundle, read_bundle
from privacy.checkpoint import Checkpoint, SignedCheckpoint, parse_checkpoint
from privacy.events import MechanismEvent
from privacy.export import (
    CHECKPOINT_FILE,
    TILE_WIDTH,
    ReadFile,
    bundle_paths,
    tile_path,
    tile_path_of,
    unpack,
)
from privacy.merkle import HASH_SIZE, CompactRange, LedgerVerificationError, root_from_leaves
from privacy.replay import CHECKS, TOLERANCE, LedgerReplay, Problems
from privacy.signing import COSIGNATURE, ED25519, VerifyKey

SpendKey = tuple[tuple[Group, ...], float]
"""Merged events as (noise_multiplier, sample_rate, steps), and delta: what determines an epsilon."""

MapBundles = Callable[[Callable[[bytes], "Bundle | str"], Iterable[bytes]], Iterator["Bundle | str"]]
MapSpends = Callable[[Callable[[SpendKey], "float | str"], Iterable[SpendKey]], Iterator["float | str"]]
Progress = Callable[[Literal["entries", "epsilons"], int, int], None]
Accounting = Literal["every", "last"]
_BUNDLE_HASHES: Final = TILE_WIDTH * HASH_SIZE


def verify_export(read: ReadFile, *, key: VerifyKey, since: bytes | None = None) -> None:
    """Return None if everything holds; `audit_export` with its defaults, for callers that want no report.

    Raises:
        LedgerVerificationError: something does not hold.
    """
    audit_export(read, key=key, since=since).raise_for_problems()


def audit_export(
    read: ReadFile,
    *,
    key: VerifyKey,
    since: bytes | None = None,
    quorum: int | None = None,
    accounting: Accounting = "every",
    map_bundles: MapBundles = map,
    map_spends: MapSpends = map,
    recompute: Callable[[SpendKey], float | str] | None = None,
    progress: Progress | None = None,
) -> AuditReport:
    """Check an export from its first entry to its newest checkpoint.

    Args:
        read: gives a file of the export by name; None where there is none.
        key: the coordinator's, pinned by the auditor; any key of its chain of rotations.
        since: a signed checkpoint that the auditor kept from earlier; the ledger must continue it.
        quorum: how many sites must have countersigned; by default more than half of those enrolled at the time.
        accounting: recompute the epsilon after `every` receipt, or only after the `last` of each site and study
            (epsilon only grows, so the caps are as safe; single earlier claims are then not proved).
        map_bundles, map_spends: `map`, or one that spreads the work over processes and keeps the order.
        recompute: epsilon of merged events; by default by `privacy.accounting`.
        progress: called with a stage, how much of it is done, and the total.

    Returns:
        The report; it never raises for what is wrong with the export.
    """
    return _Audit(read, key, since, quorum, progress or _silent).run(
        accounting, map_bundles, map_spends, recompute or recompute_epsilon
    )


def recompute_epsilon(key: SpendKey) -> float | str:
    """Epsilon of merged events, by both accountants; a text where it could not be established."""
    groups, delta = key
    events = [
        MechanismEvent(
            phase="measure" if rate == 1 else "refine",
            kind="gaussian" if rate == 1 else "subsampled_gaussian",
            noise_multiplier=sigma,
            sample_rate=rate,
            steps=steps,
        )
        for sigma, rate, steps in groups
    ]
    try:
        return spend_of(events, delta=delta).epsilon
    except (AccountingError, ValueError) as error:
        return str(error)


def read_bundle_or_say(data: bytes) -> Bundle | str:
    """`read_bundle`, with a text instead of an exception for a bundle whose framing is broken."""
    try:
        return read_bundle(data)
    except LedgerVerificationError as error:
        return str(error)


class _Audit:
    """One audit: the tree, the checkpoints and the replay, advanced together bundle by bundle."""

    def __init__(
        self, read: ReadFile, key: VerifyKey, since: bytes | None, quorum: int | None, progress: Progress
    ) -> None:
        self._read, self._key, self._since, self._quorum, self._progress = read, key, since, quorum, progress
        self._replay = LedgerReplay()
        self._problems = self._replay.problems
        self._tree = CompactRange()
        self._levels: list[list[bytes]] = [[]]
        self._witnessed_size = 0
        self._compared = False
        self._early: list[SignedCheckpoint] = []  # before a first rotation, under a key not known yet

    def run(
        self,
        accounting: Accounting,
        map_bundles: MapBundles,
        map_spends: MapSpends,
        recompute: Callable[[SpendKey], float | str],
    ) -> AuditReport:
        note = self._read(CHECKPOINT_FILE)
        newest = self._parse("checkpoint", note)
        if newest is None:
            return self._report(Checkpoint(origin=self._key.name, size=0, root=bytes(HASH_SIZE)), 0, {})
        head = newest.checkpoint
        kept = None if self._since is None else self._parse("since", self._since)
        if kept is not None and kept.checkpoint.size > head.size:
            self._problems["since"].add(
                f"you kept a checkpoint of {kept.checkpoint.size} entries, this export has {head.size}: rolled back"
            )
        whole = self._stream(head, kept, map_bundles)
        self._check_head(head, whole)
        self._check_signed("checkpoint", newest)
        self._check_cosigned(newest)
        for early in self._early:
            self._verify_by(
                "history", early, self._replay.rotations[0][1] if self._replay.rotations else self._key
            )
        if kept is not None:
            self._check_signed("since", kept)
            if not self._compared and kept.checkpoint.size <= head.size:
                self._problems["since"].add("the entries that it stands for are not all here to compare")
        claims = self._replay.claims if accounting == "every" else self._replay.final_claims()
        capped = [(cap.groups, cap.delta) for cap in self._replay.caps.values()]
        keys = list(dict.fromkeys([*claims, *capped]))
        self._check_spends(keys, set(claims), map_spends, recompute)
        return self._report(head, len(keys), {"spend": accounting})

    # Entries and tree

    def _stream(self, head: Checkpoint, kept: SignedCheckpoint | None, map_bundles: MapBundles) -> bool:
        """Replay all bundles; whether none was missing or unreadable."""
        marks = self._marks(head, kept)
        mark = next(marks, None)
        missing: list[str] = []
        bundles = map_bundles(read_bundle_or_say, self._bundle_files(head.size, missing))
        for (path, width), bundle in zip(bundle_paths(head.size), bundles, strict=False):
            if isinstance(bundle, str) or len(bundle.facts) != width:
                found = (
                    bundle
                    if isinstance(bundle, str)
                    else f"it holds {len(bundle.facts)} entries, not {width}"
                )
                self._problems["entries"].add(f"{path}: {found}; nothing after it was checked")
                return False
            leaves = [bundle.leaves[i : i + HASH_SIZE] for i in range(0, len(bundle.leaves), HASH_SIZE)]
            start = self._tree.size
            for offset, fact in enumerate(bundle.facts):
                while mark is not None and mark[0].checkpoint.size == start + offset:
                    self._check_mark(mark, leaves[:offset])
                    mark = next(marks, None)
                self._replay.apply(start + offset, fact)
            self._grow(bundle.leaves, leaves)
            self._progress("entries", self._tree.size, head.size)
        if missing:
            self._problems["entries"].add(f"{missing[0]} is missing; nothing after it was checked")
            return False
        while mark is not None:
            self._check_mark(mark, [])
            mark = next(marks, None)
        return True

    def _bundle_files(self, size: int, missing: list[str]) -> Iterator[bytes]:
        for path, _ in bundle_paths(size):
            data = self._read(path)
            if data is None:
                missing.append(path)
                return
            yield data

    def _grow(self, joined: bytes, leaves: list[bytes]) -> None:
        """Append a bundle's leaves to the tree and compare the hash tiles that it completes."""
        if len(leaves) == TILE_WIDTH:
            self._tree.append_subtree(root_from_leaves(leaves), TILE_WIDTH)
        else:
            for leaf in leaves:
                self._tree.append(leaf)
        self._levels[0] = leaves
        level, number = 0, (self._tree.size - 1) // TILE_WIDTH
        while len(self._levels[level]) == TILE_WIDTH:
            self._check_tile(tile_path(str(level), number), b"".join(self._levels[level]))
            if level + 1 == len(self._levels):
                self._levels.append([])
            self._levels[level + 1].append(root_from_leaves(self._levels[level]))
            self._levels[level] = []
            level, number = level + 1, number >> 8

    def _check_tile(self, path: str, hashes: bytes) -> None:
        found = self._read(path)
        if found != hashes:
            what = "is missing" if found is None else "differs from the hashes of the entries"
            self._problems["tree"].add(f"{path} {what}")

    def _check_head(self, head: Checkpoint, whole: bool) -> None:
        if not whole:
            self._problems["tree"].add(
                "the head could not be recomputed, because entries are missing or unreadable"
            )
            return
        for level, hashes in enumerate(self._levels):
            if hashes:
                width = len(hashes)
                number = self._tree.size >> 8 * (level + 1)
                self._check_tile(tile_path(str(level), number, width), b"".join(hashes))
        if self._tree.root() != head.root:
            self._problems["tree"].add(
                f"the head of these {head.size} entries is {self._tree.root().hex()}, the signed one "
                f"{head.root.hex()}: entries were changed, removed, added or reordered after signing"
            )

    # Checkpoints

    def _parse(self, check: str, note: bytes | None) -> SignedCheckpoint | None:
        try:
            if note is None:
                raise LedgerVerificationError("the export has no file named checkpoint")
            signed = parse_checkpoint(note)
            if signed.checkpoint.origin != self._key.name:
                raise LedgerVerificationError(
                    f"this is the ledger {signed.checkpoint.origin!r}; your key is that of {self._key.name!r}"
                )
        except LedgerVerificationError as error:
            self._problems[check].add(str(error))
            return None
        return signed

    def _marks(
        self, head: Checkpoint, kept: SignedCheckpoint | None
    ) -> Iterator[tuple[SignedCheckpoint, str]]:
        """(checkpoint, check it belongs to) of the kept one and of all in the export, by size."""
        waiting = kept if kept is not None and kept.checkpoint.size <= head.size else None
        size = 0
        for note in self._history():
            signed = self._parse("history", note)
            if signed is None:
                continue
            if not size <= signed.checkpoint.size <= head.size:
                self._problems["history"].add(
                    f"a checkpoint of {signed.checkpoint.size} entries stands after one of {size}, in an export of "
                    f"{head.size}"
                )
                continue
            size = signed.checkpoint.size
            if waiting is not None and waiting.checkpoint.size <= size:
                yield waiting, "since"
                waiting = None
            yield signed, "history"
        if waiting is not None:
            yield waiting, "since"

    def _history(self) -> Iterator[bytes]:
        number = 0
        while (data := self._read(tile_path_of("checkpoints", number))) is not None:
            try:
                yield from unpack(data)
            except LedgerVerificationError as error:
                self._problems["history"].add(f"{tile_path_of('checkpoints', number)}: {error}")
            number += 1

    def _check_mark(self, mark: tuple[SignedCheckpoint, str], leaves: list[bytes]) -> None:
        """Compare a checkpoint with the tree so far and `leaves`, which are not in it yet."""
        signed, check = mark
        self._compared |= check == "since"
        tree = self._tree.copy()
        for leaf in leaves:
            tree.append(leaf)
        if tree.root() != signed.checkpoint.root:
            self._problems[check].add(
                f"the first {tree.size} entries are not those of the checkpoint of that size: the ledger was "
                "rewritten or forked"
            )
            return
        if check == "history":
            self._replay.counts["checkpoint"] += 1
            self._check_signed("history", signed)
            self._check_cosigned(signed)

    def _check_signed(self, check: str, signed: SignedCheckpoint) -> None:
        """The signature by the key in force at the checkpoint's size."""
        size = signed.checkpoint.size
        rotations = self._replay.rotations
        before = [new for index, _, new in rotations if index < size]
        if before:
            self._verify_by(check, signed, before[-1])
        elif rotations:
            self._verify_by(check, signed, rotations[0][1])
        elif check == "history" and not signed.has_signature(self._key, ED25519):
            self._early.append(signed)
        else:
            self._verify_by(check, signed, self._key)

    def _verify_by(self, check: str, signed: SignedCheckpoint, key: VerifyKey) -> None:
        try:
            signed.verify(key)
        except LedgerVerificationError as error:
            self._problems[check].add(str(error))

    def _check_cosigned(self, signed: SignedCheckpoint) -> None:
        """Every cosignature on a checkpoint, and whether they make a quorum."""
        size, known, sites = signed.checkpoint.size, 1, 0
        for name, record in self._replay.sites.items():
            lines = [key for key in record.keys if signed.has_signature(key, COSIGNATURE)]
            known += len(lines)
            try:
                sites += bool([signed.cosigned_at(key) for key in lines])
            except LedgerVerificationError as error:
                self._problems["witnesses"].add(f"site {name!r}: {error}")
        if len(signed.signatures) != known:
            self._problems["witnesses"].add(
                f"the checkpoint of size {size} has {len(signed.signatures)} signatures, of which {known} are by the "
                "coordinator and enrolled sites"
            )
        active = max((n for index, n in self._replay.membership[-1:] if index < size), default=0)
        if sites >= (self._quorum if self._quorum is not None else active // 2 + 1) and sites:
            self._witnessed_size = max(self._witnessed_size, size)

    # Epsilons

    def _check_spends(
        self,
        keys: list[SpendKey],
        claimed: set[SpendKey],
        map_spends: MapSpends,
        recompute: Callable[[SpendKey], float | str],
    ) -> None:
        costs: dict[SpendKey, float] = {}
        for done, (key, cost) in enumerate(zip(keys, map_spends(recompute, keys), strict=True), 1):
            self._progress("epsilons", done, len(keys))
            if isinstance(cost, str):
                where = f"entry {self._replay.claims[key].index}" if key in claimed else "a cap"
                self._problems["spend"].add(f"{where}: the epsilon could not be recomputed: {cost}")
                continue
            costs[key] = cost
            if key not in claimed:
                continue
            claim = self._replay.claims[key]
            if claim.least < cost - TOLERANCE:
                self._problems["spend"].add(
                    f"entry {claim.index}: claims epsilon {claim.least}; the site's logged events cost {cost}"
                )
            elif claim.greatest > cost + TOLERANCE:
                self._replay.counts["cautious claim"] += 1
        for cap in self._replay.caps.values():
            spent = costs.get((cap.groups, cap.delta), 0.0)
            if spent > cap.cap + TOLERANCE * max(cap.cap, 1):
                self._problems["caps"].add(f"{cap.what}: {spent} is beyond {cap.cap}")

    # Report

    def _report(self, head: Checkpoint, num_compositions: int, ran: dict[str, str]) -> AuditReport:
        chain = [old for _, old, _ in self._replay.rotations] + [new for _, _, new in self._replay.rotations]
        if chain and self._key not in chain:
            self._problems["checkpoint"].add(
                "your key is not in the chain of the coordinator's keys in this ledger"
            )
        self._check_witnesses()
        notes = self._notes(head, num_compositions, ran)
        checks = []
        for name, title in CHECKS.items():
            found = self._problems.get(name, Problems())
            note = notes.get(name, "")
            nothing = name in _MAY_BE_ABSENT and note.startswith("nothing to check")
            checks.append(
                Check(
                    name=name,
                    title=title,
                    held=False if found.count else None if nothing else True,
                    note=note,
                    num_problems=found.count,
                    problems=tuple(found.first),
                )
            )
        return AuditReport(
            origin=head.origin,
            size=head.size,
            root="sha256:" + head.root.hex(),
            key=self._key.text,
            checks=tuple(checks),
            spends=tuple(
                SiteSpend(site=site, study_digest=study, epsilon=epsilon, budget=budget)
                for site, study, epsilon, budget in self._replay.spends()
            ),
            counts={kind: count for kind, count in self._replay.counts.items() if kind != "broken"},
            witnessed_size=self._witnessed_size,
            num_compositions=num_compositions,
        )

    def _check_witnesses(self) -> None:
        unwitnessed = sum(index >= self._witnessed_size for index in self._replay.aggregated_at)
        if unwitnessed > 1 and (self._quorum is not None or self._witnessed_size == 0):
            wanted = "more than half of the sites" if self._quorum is None else f"{self._quorum} sites"
            self._problems["witnesses"].add(
                f"{unwitnessed} rounds stand after the newest checkpoint that {wanted} countersigned (of size "
                f"{self._witnessed_size}); the coordinator could still show others a different end"
            )

    def _notes(self, head: Checkpoint, num_compositions: int, ran: dict[str, str]) -> dict[str, str]:
        counts = self._replay.counts
        nothing = "nothing to check: "
        tail = head.size - self._witnessed_size
        witnessed = f"the first {self._witnessed_size} entries are countersigned by a quorum"
        cautious = counts.get("cautious claim", 0)
        spend = f"{num_compositions} distinct compositions recomputed by two accountants"
        if ran.get("spend") == "last":
            spend += "; only the last claim of each site and study"
        if cautious:
            spend += f"; {cautious} claim more than the logged rounds explain (a debit whose round gave no receipt)"
        return {
            "checkpoint": f"{head.size} entries, origin {head.origin}",
            "entries": ", ".join(f"{counts[k]} {k}" for k in sorted(counts) if k in _KIND_NAMES),
            "history": f"{counts['checkpoint']} earlier checkpoints"
            if counts["checkpoint"]
            else nothing + "none",
            "since": "it does" if self._since is not None else nothing + "you gave no earlier checkpoint",
            "witnesses": (
                witnessed
                + (
                    f"; the newest {tail} stand on the coordinator's word until the next round"
                    if tail
                    else ""
                )
                if self._witnessed_size
                else nothing + "no quorum of sites has countersigned yet"
            ),
            "receipts": f"{counts['receipt']} receipts" if counts["receipt"] else nothing + "no receipts",
            "spend": spend if num_compositions else nothing + "no receipts",
            "rounds": f"{counts['aggregate']} rounds" if counts["aggregate"] else nothing + "no rounds",
            "releases": f"{counts['release']} release entries"
            if counts["release"]
            else nothing + "no releases",
            "cohorts": f"{counts['cohort']} cohorts" if counts["cohort"] else nothing + "no cohorts",
        }


_MAY_BE_ABSENT: Final = {
    "history",
    "since",
    "witnesses",
    "receipts",
    "spend",
    "rounds",
    "releases",
    "cohorts",
}
_KIND_NAMES: Final = {
    "study", "site-enrolled", "site-left", "site-policy", "receipt", "refusal", "aggregate", "release", "cohort",
    "withdrawal", "gate", "key-rotation",
}  # fmt: skip


def _silent(stage: str, done: int, total: int) -> None:
    """No progress wanted."""
