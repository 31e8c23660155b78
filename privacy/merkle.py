"""RFC 6962 Merkle trees: grow them, prove things about them, check such proofs. No I/O.

A leaf hashes as SHA-256(0x00 || entry), a node as SHA-256(0x01 || left || right); a tree of n leaves splits
at the largest power of two below n; the empty tree's root is SHA-256 of nothing.

To keep a log: hold the leaf hashes (32 bytes each) and a `CompactRange`. Append with `append`, read `root()`.
To hand out proofs: `inclusion_proof(leaf_hashes, index)` and `consistency_proof(leaf_hashes, old, new)`.
To check: `verify_inclusion` and `verify_consistency` return None or raise `LedgerVerificationError`.

References: RFC 6962, section 2.1; the verification algorithms are those of RFC 9162, 2.1.3.2 and 2.1.4.2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Final

HASH_SIZE: Final = 32
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()

SubtreeHash = Callable[[int, int], bytes]
"""The Merkle tree hash of the leaves [start, end): what the proof functions need of a store."""


class LedgerVerificationError(Exception):
    """Something in a ledger, a checkpoint or a proof does not hold."""


def leaf_hash(entry: bytes) -> bytes:
    """The hash of an entry's canonical bytes as a leaf."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of the node above `left` and `right`."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class CompactRange:
    """The right edge of a growing tree: appends in O(log n) and gives the root, with O(log n) memory.

    Attributes:
        size: leaves so far.
        hashes: roots of the perfect subtrees that `size` splits into, largest first; with `size` they are
            the whole state, so `CompactRange(size=size, hashes=hashes)` continues where another stopped.
    """

    __slots__ = ("hashes", "size")

    def __init__(self, *, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        """Start empty, or from a kept state.

        Raises:
            ValueError: the number of hashes does not fit the size.
        """
        if len(hashes) != size.bit_count() or any(len(h) != HASH_SIZE for h in hashes):
            raise ValueError(f"{len(hashes)} hashes for size {size}; it needs {size.bit_count()} of 32 bytes")
        self.size = size
        self.hashes = list(hashes)

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash on the right."""
        self.append_subtree(leaf, 1)

    def append_subtree(self, root: bytes, width: int) -> None:
        """Add a perfect subtree of `width` leaves (a power of two that divides `size`).

        Raises:
            ValueError: such a subtree does not fit here.
        """
        if width < 1 or width & (width - 1) or self.size % width:
            raise ValueError(f"a subtree of {width} leaves does not fit after {self.size} leaves")
        carry = self.size // width
        while carry & 1:
            root = node_hash(self.hashes.pop(), root)
            carry >>= 1
        self.hashes.append(root)
        self.size += width

    def root(self) -> bytes:
        """The tree head of the leaves so far."""
        if not self.hashes:
            return EMPTY_ROOT
        head = self.hashes[-1]
        for left in reversed(self.hashes[:-1]):
            head = node_hash(left, head)
        return head

    def copy(self) -> CompactRange:
        """An independent copy: append to it and drop it if the transaction fails."""
        return CompactRange(size=self.size, hashes=self.hashes)


def root_from_leaves(leaf_hashes: Iterable[bytes]) -> bytes:
    """The tree head recomputed from every leaf hash, in order; do this before signing."""
    tree = CompactRange()
    for leaf in leaf_hashes:
        tree.append(leaf)
    return tree.root()


def subtree_hashes(leaf_hashes: Sequence[bytes]) -> SubtreeHash:
    """A `SubtreeHash` over leaf hashes held in memory."""

    def of(start: int, end: int) -> bytes:
        return root_from_leaves(leaf_hashes[start:end])

    return of


def inclusion_proof(leaf_hashes: Sequence[bytes], index: int, *, size: int | None = None) -> list[bytes]:
    """The audit path of leaf `index` in the tree of the first `size` leaves (all of them by default).

    Args:
        leaf_hashes: all leaf hashes, in order.
        index: from 0.
        size: tree size that the proof is for, above `index`.

    Raises:
        ValueError: no such leaf or tree.
    """
    size = len(leaf_hashes) if size is None else size
    if size > len(leaf_hashes):
        raise ValueError(f"size is {size}; the ledger has {len(leaf_hashes)} entries")
    return inclusion_path(subtree_hashes(leaf_hashes), index, size)


def consistency_proof(leaf_hashes: Sequence[bytes], old: int, new: int | None = None) -> list[bytes]:
    """The proof that the tree of the first `old` leaves is a prefix of that of the first `new` (default: all).

    Raises:
        ValueError: not 0 <= old <= new <= number of leaves.
    """
    new = len(leaf_hashes) if new is None else new
    if new > len(leaf_hashes):
        raise ValueError(f"new is {new}; the ledger has {len(leaf_hashes)} entries")
    return consistency_path(subtree_hashes(leaf_hashes), old, new)


def inclusion_path(subtree: SubtreeHash, index: int, size: int) -> list[bytes]:
    """`inclusion_proof` over any store that can hash a range of leaves (RFC 6962, 2.1.1)."""
    if not 0 <= index < size:
        raise ValueError(f"index is {index}; a tree of {size} entries has 0 to {size - 1}")
    start, end, path = 0, size, []
    while end - start > 1:
        split = start + _split(end - start)
        if index < split:
            path.append(subtree(split, end))
            end = split
        else:
            path.append(subtree(start, split))
            start = split
    return path[::-1]


def consistency_path(subtree: SubtreeHash, old: int, new: int) -> list[bytes]:
    """`consistency_proof` over any store that can hash a range of leaves (RFC 6962, 2.1.2)."""
    if not 0 <= old <= new:
        raise ValueError(f"old is {old}; it must lie between 0 and the newer size {new}")
    if old in (0, new):
        return []
    start, end, path, whole = 0, new, list[bytes](), True
    while old != end:
        split = start + _split(end - start)
        if old <= split:
            path.append(subtree(split, end))
            end = split
        else:
            path.append(subtree(start, split))
            start, whole = split, False
    if not whole:
        path.append(subtree(start, end))
    return path[::-1]


def verify_inclusion(*, leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that `leaf` is number `index` of the tree of `size` leaves with head `root`.

    Args:
        leaf: leaf hash.
        index: from 0.
        size: leaves in the tree.
        proof: audit path, from the leaf upwards.
        root: tree head, from a verified checkpoint.

    Raises:
        LedgerVerificationError: it is not, or the proof has the wrong length.
    """
    if not 0 <= index < size:
        raise LedgerVerificationError(f"index is {index}; a tree of {size} entries has no such entry")
    _check_hashes((leaf, *proof))
    position, last, head = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise LedgerVerificationError("the inclusion proof is too long")
        if position & 1 or position == last:
            head = node_hash(sibling, head)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            head = node_hash(head, sibling)
        position, last = position >> 1, last >> 1
    if last:
        raise LedgerVerificationError("the inclusion proof is too short")
    if head != root:
        raise LedgerVerificationError(f"entry {index} is not in the tree of {size} entries under this head")


def verify_consistency(
    *, old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Check that the newer tree begins with exactly the older one.

    Raises:
        LedgerVerificationError: it does not, or the proof has the wrong length; also for an older tree that
            is larger, and for an empty one (skip the check then: it would prove nothing).
    """
    if not 0 <= old_size <= new_size:
        raise LedgerVerificationError(f"the older size {old_size} is not between 0 and the newer {new_size}")
    _check_hashes(proof)
    if old_size == new_size:
        if proof:
            raise LedgerVerificationError("the consistency proof is too long: nothing is left to prove")
        if old_size == 0 and new_root != EMPTY_ROOT:
            raise LedgerVerificationError("a tree of 0 entries has another head than the empty one")
        if old_root != new_root:
            raise LedgerVerificationError(
                f"two different heads for one size {old_size}: the ledger was forked"
            )
        return
    if old_size == 0:
        raise LedgerVerificationError(
            "an empty older tree is a prefix of everything: nothing can be proved by it"
        )
    if not proof:
        raise LedgerVerificationError("the consistency proof is empty")
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    position, last = old_size - 1, new_size - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    old_head = new_head = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise LedgerVerificationError("the consistency proof is too long")
        if position & 1 or position == last:
            old_head, new_head = node_hash(sibling, old_head), node_hash(sibling, new_head)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            new_head = node_hash(new_head, sibling)
        position, last = position >> 1, last >> 1
    if last:
        raise LedgerVerificationError("the consistency proof is too short")
    if old_head != old_root or new_head != new_root:
        raise LedgerVerificationError(
            f"the ledger of {new_size} entries does not begin with the one of {old_size} entries seen before: "
            "entries were changed, removed or reordered"
        )


def _split(width: int) -> int:
    """The largest power of two below `width` (2 or more)."""
    return 1 << (width - 1).bit_length() - 1


def _check_hashes(hashes: Iterable[bytes]) -> None:
    if any(len(value) != HASH_SIZE for value in hashes):
        raise LedgerVerificationError("a hash in a proof has not 32 bytes")
