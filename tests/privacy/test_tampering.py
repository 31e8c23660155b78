"""Every byte of an export counts: whatever is flipped, removed, moved or cut is found."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from privacy.accounting import Group
from privacy.checkpoint import Checkpoint, sign_checkpoint
from privacy.events import MechanismEvent
from privacy.export import pack, tile_path, unpack, write_export
from privacy.ledger_example import ExampleLedger, ExampleScale
from privacy.merkle import leaf_hash, root_from_leaves
from privacy.verification import audit_export


def cheap_cost(events: list[MechanismEvent], delta: float) -> float:
    """Stands in for the accountants, which thousands of audits could not afford; the claims agree with it."""
    return _cheap((event.noise_multiplier, event.sample_rate, event.steps) for event in events)


def cheap_recompute(key: tuple[tuple[Group, ...], float]) -> float:
    return _cheap(key[0])


def _cheap(groups: object) -> float:
    return round(sum(steps / sigma for sigma, _, steps in groups), 6)  # type: ignore[attr-defined]


SMALL = ExampleLedger(scale=ExampleScale(num_sites=1, num_rounds=2, num_cohorts=1), cost=cheap_cost)
ENTRIES = list(SMALL.write())
PARTS = 6
FILES = dict(write_export(ENTRIES, SMALL.note(cosigners=0), history=SMALL.history))


def broken(files: Mapping[str, bytes], since: bytes | None = None) -> list[str]:
    report = audit_export(files.get, key=SMALL.key.public, since=since, recompute=cheap_recompute)
    return [check.name for check in report.checks if check.held is False]


def test_the_untouched_export_holds() -> None:
    assert broken(FILES) == []


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", sorted(FILES))
def test_a_flipped_bit_in_any_byte_is_found(name: str, part: int) -> None:
    """Every byte, in parts so that they spread over processes."""
    data = FILES[name]
    places = range(part, len(data), PARTS)
    assert [at for at in places if not broken({**FILES, name: _flipped(data, at, 1 << at % 8)})] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("bit", range(8))
def test_any_flipped_bit_is_found(name: str, bit: int) -> None:
    data = FILES[name]
    missed = [at for at in range(len(data)) if not broken({**FILES, name: _flipped(data, at, 1 << bit)})]
    assert missed == []


@pytest.mark.parametrize("name", sorted(FILES))
def test_any_removed_file_is_found(name: str) -> None:
    assert broken({other: data for other, data in FILES.items() if other != name})


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_cut_anywhere_is_found(name: str) -> None:
    data = FILES[name]
    cuts = random.Random(5).sample(range(len(data)), 100)
    assert [at for at in cuts if not broken({**FILES, name: data[:at]})] == []


@pytest.mark.parametrize("name", sorted(FILES))
def test_anything_added_to_a_file_is_found(name: str) -> None:
    for extra in (b"\x00", b"\n", b"\x00\x00", b" ", FILES[name]):
        assert broken({**FILES, name: FILES[name] + extra}), extra


def test_any_entry_deleted_is_found_even_with_fitting_tiles_and_size() -> None:
    for gone in range(len(ENTRIES)):
        left = ENTRIES[:gone] + ENTRIES[gone + 1 :]
        assert broken(_same_checkpoint(left)), gone
        assert broken(_same_checkpoint([*left, ENTRIES[gone]])) or gone == len(ENTRIES) - 1, gone


def test_any_two_entries_swapped_are_found() -> None:
    for a in range(len(ENTRIES)):
        for b in range(a):
            moved = list(ENTRIES)
            moved[a], moved[b] = moved[b], moved[a]
            assert broken(_same_checkpoint(moved)), (a, b)


def test_every_roll_back_signed_by_the_coordinator_is_found_with_a_kept_checkpoint() -> None:
    for size in range(len(ENTRIES)):
        assert "since" in broken(_signed(ENTRIES[:size]), since=FILES["checkpoint"]), size


def test_every_fork_signed_by_the_coordinator_is_found_with_a_kept_checkpoint() -> None:
    """The coordinator changes one entry (its time), signs the new tree well, and grows it to any length."""
    for at, entry in enumerate(ENTRIES):
        fork = [*ENTRIES[:at], entry.replace(b'"logged_at":"2026', b'"logged_at":"2025'), *ENTRIES[at + 1 :]]
        assert "since" in broken(_signed(fork), since=FILES["checkpoint"]), at
        assert "since" in broken(_signed([*fork, ENTRIES[-1]]), since=FILES["checkpoint"]), at


def test_a_longer_ledger_is_no_fork() -> None:
    """The control of the two tests above: what only grew holds."""
    assert "since" not in broken(FILES, since=_signed(ENTRIES[:5])["checkpoint"])


def test_bundle_framing_round_trips_and_odd_lengths_are_refused() -> None:
    assert unpack(pack(ENTRIES)) == ENTRIES
    assert unpack(b"") == []


def _flipped(data: bytes, at: int, bits: int) -> bytes:
    return data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :]


def _same_checkpoint(entries: list[bytes]) -> dict[str, bytes]:
    """Tiles made to fit, the old signed head."""
    return {
        "checkpoint": FILES["checkpoint"],
        "checkpoints/000": FILES["checkpoints/000"],
        tile_path("entries", 0, len(entries)): pack(entries),
        tile_path("0", 0, len(entries)): b"".join(map(leaf_hash, entries)),
    }


def _signed(entries: list[bytes]) -> dict[str, bytes]:
    """An export of these entries with a head that the coordinator signed for them."""
    root = root_from_leaves(map(leaf_hash, entries))
    note = sign_checkpoint(Checkpoint(origin=SMALL.key.name, size=len(entries), root=root), SMALL.key)
    return dict(write_export(entries, note))
