"""The site's cache of what it was sent: bounded, checked when read, and never in the way."""

from __future__ import annotations

import os
from pathlib import Path

from client.parts import PartCache
from models.digests import digest_of


def keep(cache: PartCache, data: bytes) -> str:
    digest = digest_of(data)
    cache.keep(digest, data)
    return digest


def test_what_was_kept_is_found_also_after_a_restart(tmp_path: Path) -> None:
    digest = keep(PartCache(tmp_path / "parts"), b"a part")
    assert PartCache(tmp_path / "parts").find(digest) == b"a part"


def test_what_was_never_kept_is_not_there(tmp_path: Path) -> None:
    assert PartCache(tmp_path / "parts").find(digest_of(b"else")) is None


def test_a_part_that_was_altered_or_cut_off_counts_as_absent_and_is_removed(tmp_path: Path) -> None:
    cache = PartCache(tmp_path)
    digest = keep(cache, b"a part")
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"a pa")
    assert cache.find(digest) is None
    assert list(tmp_path.iterdir()) == []


def test_it_stays_within_its_bound_and_forgets_what_was_not_used_for_longest(tmp_path: Path) -> None:
    cache = PartCache(tmp_path, max_bytes=300)
    first, second, third = (keep(cache, bytes([k]) * 100) for k in range(3))
    for k, digest in enumerate((second, third, first)):
        os.utime(tmp_path / digest.removeprefix("sha256:"), (k, k))
    cache.find(second)  # used just now
    keep(cache, b"x" * 100)
    assert cache.find(third) is None
    assert cache.find(second) is not None
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 300


def test_a_part_larger_than_the_bound_is_not_kept(tmp_path: Path) -> None:
    cache = PartCache(tmp_path, max_bytes=10)
    assert cache.find(keep(cache, b"x" * 11)) is None


def test_a_digest_that_is_none_names_no_file(tmp_path: Path) -> None:
    cache = PartCache(tmp_path / "parts")
    (tmp_path / "secret").write_bytes(b"of the site")
    for digest in ("", "sha256:", "sha256:../secret", "../secret", "sha256:" + "A" * 64):
        cache.keep(digest, b"overwritten")
        assert cache.find(digest) is None
    assert (tmp_path / "secret").read_bytes() == b"of the site"


def test_a_folder_that_cannot_be_written_costs_only_that_it_is_sent_again(tmp_path: Path) -> None:
    (tmp_path / "parts").write_bytes(b"a file where the folder should be")
    cache = PartCache(tmp_path / "parts")
    assert cache.find(keep(cache, b"a part")) is None
