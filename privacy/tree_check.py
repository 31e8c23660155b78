"""Recompute the Merkle tree and its hash tiles from the entries, bundle by bundle, and compare with the export's."""

from __future__ import annotations

from privacy.checkpoint import Checkpoint
from privacy.export import TILE_WIDTH, ReadFile, tile_path
from privacy.findings import Problems
from privacy.merkle import CompactRange, root_from_leaves


class TreeCheck:
    """The tree so far.

    Attributes:
        tree: its right edge.
        problems: of the check `tree`.
    """

    def __init__(self, read: ReadFile, problems: Problems) -> None:
        self.tree = CompactRange()
        self.problems = problems
        self._read = read
        self._levels: list[list[bytes]] = [[]]

    def root_with(self, leaves: list[bytes]) -> bytes:
        """The head of the entries so far and of `leaves` after them."""
        tree = self.tree.copy()
        for leaf in leaves:
            tree.append(leaf)
        return tree.root()

    def grow(self, leaves: list[bytes]) -> None:
        """Append a bundle's leaves to the tree and compare the hash tiles that it completes."""
        self._levels[0] = leaves
        if len(leaves) < TILE_WIDTH:
            for leaf in leaves:
                self.tree.append(leaf)
            return
        level, number = 0, self.tree.size // TILE_WIDTH
        while len(self._levels[level]) == TILE_WIDTH:
            self._check_tile(tile_path(str(level), number), b"".join(self._levels[level]))
            root = root_from_leaves(self._levels[level])
            if level == 0:
                self.tree.append_subtree(root, TILE_WIDTH)
            if level + 1 == len(self._levels):
                self._levels.append([])
            self._levels[level + 1].append(root)
            self._levels[level] = []
            level, number = level + 1, number >> 8

    def _check_tile(self, path: str, hashes: bytes) -> None:
        found = self._read(path)
        if found != hashes:
            what = "is missing" if found is None else "differs from the hashes of the entries"
            self.problems.add(f"{path} {what}")

    def check_head(self, head: Checkpoint, *, whole: bool) -> None:
        """Compare the last tiles and the head; `whole` says whether every entry could be read."""
        if not whole:
            self.problems.add("the head could not be recomputed, because entries are missing or unreadable")
            return
        for level, hashes in enumerate(self._levels):
            if hashes:
                width = len(hashes)
                number = self.tree.size >> 8 * (level + 1)
                self._check_tile(tile_path(str(level), number, width), b"".join(hashes))
        if self.tree.root() != head.root:
            self.problems.add(
                f"the head of these {head.size} entries is {self.tree.root().hex()}, the signed one "
                f"{head.root.hex()}: entries were changed, removed, added or reordered after signing"
            )
