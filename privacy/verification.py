"""The offline verifier: is this export of a ledger true, whole, continued from what was seen, and within budget?

No network, no server code, no files: the caller gives `read`, which maps a file name of the export
(`privacy.export`) to bytes. Memory is bounded by a few bundles and by studies, sites, runs and rounds.

    report = audit_export(read, key=VerifyKey.from_text(text), since=old_note)
    report.raise_for_problems()

Trust: the auditor's pinned key, the sites' keys as they were enrolled in the ledger, SHA-256, Ed25519 and the two
accountants. What this cannot see: whether a site's code did what its receipt says (see docs/assurance/ledger.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from privacy.audit_report import AuditReport, SiteSpend, state_checks
from privacy.bundles import Bundle, read_bundle
from privacy.checkpoint import Checkpoint, SignedCheckpoint
from privacy.checkpoint_checks import CheckpointChecks
from privacy.export import CHECKPOINT_FILE, ReadFile, bundle_paths
from privacy.merkle import HASH_SIZE, LedgerVerificationError
from privacy.recomputation import Accounting, MapSpends, Recompute, check_spends, recompute_epsilon
from privacy.replay import LedgerReplay
from privacy.signing import VerifyKey
from privacy.tree_check import TreeCheck

MapBundles = Callable[[Callable[[bytes], "Bundle | str"], Iterable[bytes]], Iterator["Bundle | str"]]
Progress = Callable[[Literal["entries", "epsilons"], int, int], None]


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
    witnesses: Sequence[VerifyKey] = (),
    accounting: Accounting = "every",
    map_bundles: MapBundles = map,
    map_spends: MapSpends = map,
    recompute: Recompute = recompute_epsilon,
    progress: Progress | None = None,
) -> AuditReport:
    """Check an export from its first entry to its newest checkpoint.

    Args:
        read: gives a file of the export by name; None where there is none.
        key: the coordinator's, pinned by the auditor; any key of its chain of rotations.
        since: a signed checkpoint that the auditor kept from earlier; the ledger must continue it.
        quorum: how many sites must have countersigned; by default more than half of those enrolled at the time.
        witnesses: keys of sites that the auditor knows from elsewhere; each must have countersigned all but the
            newest round. It is what sites invented by the coordinator cannot stand in for.
        accounting: recompute the epsilon after `every` receipt, or only after the `last` of each site and study
            (epsilon only grows, so the caps are as safe; single earlier claims are then not proved).
        map_bundles, map_spends: `map`, or one that spreads the work over processes and keeps the order.
        recompute: epsilon of merged events; by default by `privacy.accounting`.
        progress: called with a stage, how much of it is done, and the total.

    Returns:
        The report; it never raises for what is wrong with the export.
    """
    progress = progress or _silent
    replay = LedgerReplay()
    tree = TreeCheck(read, replay.problems["tree"])
    checkpoints = CheckpointChecks(read, key, replay, quorum=quorum, witnesses=witnesses)
    newest = checkpoints.parse("checkpoint", read(CHECKPOINT_FILE))
    kept = None if since is None else checkpoints.parse("since", since)
    head = (
        newest.checkpoint
        if newest is not None
        else Checkpoint(origin=key.name, size=0, root=bytes(HASH_SIZE))
    )
    num_compositions = 0
    if newest is not None:
        if kept is not None and kept.checkpoint.size > head.size:
            replay.problems["since"].add(
                f"you kept a checkpoint of {kept.checkpoint.size} entries, this export has {head.size}: rolled back"
            )
        whole = _replay_bundles(read, head, kept, replay, tree, checkpoints, map_bundles, progress)
        tree.check_head(head, whole=whole)
        checkpoints.finish(newest, kept)
        num_compositions = check_spends(
            replay, accounting, map_spends, recompute, lambda done, total: progress("epsilons", done, total)
        )
    return AuditReport(
        origin=head.origin,
        size=head.size,
        root="sha256:" + head.root.hex(),
        key=key.text,
        checks=state_checks(
            replay,
            head.size,
            since_given=since is not None,
            witnessed_size=checkpoints.witnessed_size,
            num_compositions=num_compositions,
            accounting=accounting,
        ),
        spends=tuple(
            SiteSpend(site=site, study_digest=study, epsilon=epsilon, budget=budget)
            for site, study, epsilon, budget in replay.spends()
        ),
        counts={kind: count for kind, count in replay.counts.items() if kind != "broken"},
        witnessed_size=checkpoints.witnessed_size,
        num_compositions=num_compositions,
    )


def read_bundle_or_say(data: bytes) -> Bundle | str:
    """`read_bundle`, with a text instead of an exception for a bundle whose framing is broken."""
    try:
        return read_bundle(data)
    except LedgerVerificationError as error:
        return str(error)


def _replay_bundles(
    read: ReadFile,
    head: Checkpoint,
    kept: SignedCheckpoint | None,
    replay: LedgerReplay,
    tree: TreeCheck,
    checkpoints: CheckpointChecks,
    map_bundles: MapBundles,
    progress: Progress,
) -> bool:
    """Advance tree, replay and checkpoints together, bundle by bundle; whether no bundle was missing or broken."""
    marks = checkpoints.marks(head, kept)
    mark = next(marks, None)
    missing: list[str] = []
    bundles = map_bundles(read_bundle_or_say, _bundle_files(read, head.size, missing))
    for (path, width), bundle in zip(bundle_paths(head.size), bundles, strict=False):
        if isinstance(bundle, str) or len(bundle.facts) != width:
            found = (
                bundle if isinstance(bundle, str) else f"it holds {len(bundle.facts)} entries, not {width}"
            )
            replay.problems["entries"].add(f"{path}: {found}; nothing after it was checked")
            return False
        leaves = [bundle.leaves[i : i + HASH_SIZE] for i in range(0, len(bundle.leaves), HASH_SIZE)]
        start = tree.tree.size
        for offset, fact in enumerate(bundle.facts):
            while mark is not None and mark[0].checkpoint.size == start + offset:
                checkpoints.check_mark(mark, tree.root_with(leaves[:offset]))
                mark = next(marks, None)
            replay.apply(start + offset, fact)
        tree.grow(leaves)
        progress("entries", tree.tree.size, head.size)
    if missing:
        replay.problems["entries"].add(f"{missing[0]} is missing; nothing after it was checked")
        return False
    while mark is not None:
        checkpoints.check_mark(mark, tree.root_with([]))
        mark = next(marks, None)
    return True


def _bundle_files(read: ReadFile, size: int, missing: list[str]) -> Iterator[bytes]:
    for path, _ in bundle_paths(size):
        data = read(path)
        if data is None:
            missing.append(path)
            return
        yield data


def _silent(stage: str, done: int, total: int) -> None:
    """No progress wanted."""
