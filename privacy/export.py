"""An export of the ledger: files that any static file server can host and anybody can check.

The layout is C2SP tlog-tiles, so that other people's log tools can read it too:

    checkpoint                     the newest signed checkpoint, with its cosignatures
    tile/entries/000               entries 0-255, each as a 2-byte length and its canonical bytes
    tile/entries/x001/234.p/17     the last 17 of them, where the last bundle is not full
    tile/0/000, tile/1/000.p/3     Merkle tree hashes: of leaves, of full tiles of 256 below
    checkpoints/000                earlier signed checkpoints, oldest first, framed like entries (ours, not C2SP's)

Everything here maps names to bytes; whoever calls does the reading and writing.

References: C2SP tlog-tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from privacy.checkpoint import parse_checkpoint
from privacy.merkle import CompactRange, LedgerVerificationError, leaf_hash, root_from_leaves

TILE_WIDTH: Final = 256
CHECKPOINT_FILE: Final = "checkpoint"
MAX_RECORD_BYTES: Final = 65_535

ReadFile = Callable[[str], bytes | None]
"""Gives a file of an export by its name, None where there is none."""


def write_export(
    entries: Iterable[bytes], checkpoint: bytes, *, history: Iterable[bytes] = ()
) -> Iterator[tuple[str, bytes]]:
    """The files of an export, one after the other, in bounded memory.

    Write the files as they come, `checkpoint` (the last) last: a reader then never sees a head without its
    entries. A full bundle or tile never changes again, so a server may skip the ones that it has already.

    Args:
        entries: canonical bytes of the first `size` entries, in order (`ledger.encode_entry`).
        checkpoint: the signed note for exactly these entries, with the cosignatures at hand.
        history: earlier signed notes with their cosignatures, oldest first; thin them as you like, a
            cosignature vouches for everything before it.

    Yields:
        (file name with `/`, bytes).

    Raises:
        LedgerVerificationError: the entries are not those that the checkpoint's head stands for.
    """
    head = parse_checkpoint(checkpoint).checkpoint
    tree, levels = CompactRange(), [list[bytes]()]
    bundle: list[bytes] = []
    number = 0
    for entry in entries:
        bundle.append(entry)
        leaf = leaf_hash(entry)
        tree.append(leaf)
        levels[0].append(leaf)
        if len(bundle) == TILE_WIDTH:
            yield tile_path("entries", number), pack(bundle)
            yield from _full_tiles(levels, number)
            bundle, number = [], number + 1
    if bundle:
        yield tile_path("entries", number, len(bundle)), pack(bundle)
    for level, hashes in enumerate(levels):
        if hashes:
            yield tile_path(str(level), tree.size >> 8 * (level + 1), len(hashes)), b"".join(hashes)
    if (tree.size, tree.root()) != (head.size, head.root):
        raise LedgerVerificationError(
            f"the {tree.size} entries to export are not those under the checkpoint of {head.size}; nothing should be "
            "published until it is understood"
        )
    notes: list[bytes] = []
    number = 0
    for note in history:
        notes.append(note)
        if len(notes) == TILE_WIDTH:
            yield tile_path_of("checkpoints", number), pack(notes)
            notes, number = [], number + 1
    if notes:
        yield tile_path_of("checkpoints", number), pack(notes)
    yield CHECKPOINT_FILE, checkpoint


def tile_path(level: str, number: int, width: int = TILE_WIDTH) -> str:
    """The name of a tile (`level` 0, 1, ...) or of an entry bundle (`level` entries).

    >>> tile_path("entries", 1234067), tile_path("0", 3, 17)
    ('tile/entries/x001/x234/067', 'tile/0/003.p/17')
    """
    return tile_path_of(f"tile/{level}", number, width)


def tile_path_of(folder: str, number: int, width: int = TILE_WIDTH) -> str:
    """The name of file `number` in `folder`, in groups of three digits; `.p/<width>` if it is not full."""
    digits = f"{number:03d}"
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[i : i + 3] for i in range(0, len(digits), 3)]
    path = "/".join([folder, *(f"x{group}" for group in groups[:-1]), groups[-1]])
    return path if width == TILE_WIDTH else f"{path}.p/{width}"


def bundle_paths(size: int) -> Iterator[tuple[str, int]]:
    """(file name, number of entries) of every entry bundle of a log with `size` entries, in order."""
    for number in range(-(-size // TILE_WIDTH)):
        width = min(TILE_WIDTH, size - number * TILE_WIDTH)
        yield tile_path("entries", number, width), width


def pack(records: Sequence[bytes]) -> bytes:
    """Records, each behind its length in two bytes, big-endian.

    Raises:
        ValueError: a record of more than 65,535 bytes.
    """
    for record in records:
        if len(record) > MAX_RECORD_BYTES:
            raise ValueError(f"a record has {len(record)} bytes; the most is {MAX_RECORD_BYTES}")
    return b"".join(len(record).to_bytes(2, "big") + record for record in records)


def unpack(data: bytes) -> list[bytes]:
    """Read what `pack` wrote.

    Raises:
        LedgerVerificationError: a length that does not fit.
    """
    records, at = [], 0
    while at < len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if end > len(data) or at + 2 > len(data):
            raise LedgerVerificationError(f"a bundle ends within a record, at byte {at}")
        records.append(data[at + 2 : end])
        at = end
    return records


def _full_tiles(levels: list[list[bytes]], number: int) -> Iterator[tuple[str, bytes]]:
    """The tiles that bundle `number` completes, from the leaves upwards; empties them."""
    level = 0
    while len(levels[level]) == TILE_WIDTH:
        yield tile_path(str(level), number), b"".join(levels[level])
        if level + 1 == len(levels):
            levels.append([])
        levels[level + 1].append(root_from_leaves(levels[level]))
        levels[level].clear()
        level, number = level + 1, number >> 8
