"""Check signed checkpoints against the tree and the keys in force: the newest, the earlier ones, the auditor's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from privacy.checkpoint import Checkpoint, SignedCheckpoint, parse_checkpoint
from privacy.export import ReadFile, tile_path_of, unpack
from privacy.merkle import LedgerVerificationError
from privacy.replay import LedgerReplay
from privacy.signing import COSIGNATURE, ED25519, VerifyKey


class CheckpointChecks:
    """What checkpoints say, beside a replay that knows whose keys were in force when.

    Attributes:
        witnessed_size: of the newest checkpoint that a quorum of sites countersigned; 0 for none.
        compared: whether the tree reached the auditor's own checkpoint.
    """

    def __init__(
        self,
        read: ReadFile,
        key: VerifyKey,
        replay: LedgerReplay,
        *,
        quorum: int | None,
        witnesses: Sequence[VerifyKey],
    ) -> None:
        self.witnessed_size = 0
        self._pinned = dict.fromkeys(
            witnesses, 0
        )  # to the size of the newest checkpoint that each countersigned
        self.compared = False
        self._read, self._key, self._quorum = read, key, quorum
        self._replay, self._problems = replay, replay.problems
        self._early: list[SignedCheckpoint] = []  # before a first rotation, under a key not known yet

    def parse(self, check: str, note: bytes | None) -> SignedCheckpoint | None:
        """A checkpoint of this log; None, with a problem noted under `check`, if it is none."""
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

    def marks(
        self, head: Checkpoint, kept: SignedCheckpoint | None
    ) -> Iterator[tuple[SignedCheckpoint, str]]:
        """(checkpoint, check it belongs to) of the kept one and of all in the export, by size."""
        waiting = kept if kept is not None and kept.checkpoint.size <= head.size else None
        size = 0
        for note in self._history():
            signed = self.parse("history", note)
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

    def check_mark(self, mark: tuple[SignedCheckpoint, str], root: bytes) -> None:
        """Compare a checkpoint with the tree's head at its size; the replay stands at that size too."""
        signed, check = mark
        self.compared |= check == "since"
        if root != signed.checkpoint.root:
            self._problems[check].add(
                f"the first {signed.checkpoint.size} entries are not those of the checkpoint of that size: the ledger "
                "was rewritten or forked"
            )
            return
        if check == "history":
            self._replay.counts["checkpoint"] += 1
            self.check_signed("history", signed)
            self.check_cosigned(signed)

    def check_signed(self, check: str, signed: SignedCheckpoint) -> None:
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

    def check_cosigned(self, signed: SignedCheckpoint) -> None:
        """Every cosignature on a checkpoint, and whether they make a quorum."""
        size, known, sites = signed.checkpoint.size, 1, 0
        for name, record in self._replay.sites.items():
            lines = [key for key in record.keys if signed.has_signature(key, COSIGNATURE)]
            known += len(lines)
            try:
                sites += record.active and bool([signed.cosigned_at(key) for key in lines])
            except LedgerVerificationError as error:
                self._problems["witnesses"].add(f"site {name!r}: {error}")
        if len(signed.signatures) != known:
            self._problems["witnesses"].add(
                f"the checkpoint of size {size} has {len(signed.signatures)} signatures, of which {known} are by the "
                "coordinator and enrolled sites"
            )
        for key in self._pinned:
            if signed.has_signature(
                key, COSIGNATURE
            ):  # of an enrolled site, so it was verified above, or unknown
                self._pinned[key] = max(self._pinned[key], size)
        active = max((n for index, n in self._replay.membership[-1:] if index < size), default=0)
        if sites >= (self._quorum if self._quorum is not None else active // 2 + 1) and sites:
            self.witnessed_size = max(self.witnessed_size, size)

    def finish(self, newest: SignedCheckpoint, kept: SignedCheckpoint | None) -> None:
        """The checks that need the whole replay: the chain of keys, the newest and the kept checkpoint."""
        self.check_signed("checkpoint", newest)
        self.check_cosigned(newest)
        rotations = self._replay.rotations
        for early in self._early:
            self._verify_by("history", early, rotations[0][1] if rotations else self._key)
        chain = [key for _, old, new in rotations for key in (old, new)]
        if chain and self._key not in chain:
            self._problems["checkpoint"].add(
                "your key is not in the chain of the coordinator's keys in this ledger"
            )
        if kept is not None:
            self.check_signed("since", kept)
            if not self.compared and kept.checkpoint.size <= newest.checkpoint.size:
                self._problems["since"].add("the entries that it stands for are not all here to compare")
        self._check_witnesses()

    def _check_witnesses(self) -> None:
        for key, size in self._pinned.items():
            rounds = self._rounds_after(size)
            if size == 0 or rounds > 1:
                self._problems["witnesses"].add(
                    f"{key.name!r}, whose key you gave, countersigned no more than the first {size} entries; {rounds} "
                    "rounds follow"
                )
        unwitnessed = self._rounds_after(self.witnessed_size)
        if unwitnessed > 1 and (self._quorum is not None or self.witnessed_size == 0):
            wanted = "more than half of the sites" if self._quorum is None else f"{self._quorum} sites"
            self._problems["witnesses"].add(
                f"{unwitnessed} rounds stand after the newest checkpoint that {wanted} countersigned (of size "
                f"{self.witnessed_size}); the coordinator could still show others a different end"
            )

    def _rounds_after(self, size: int) -> int:
        return sum(index >= size for index in self._replay.aggregated_at)
