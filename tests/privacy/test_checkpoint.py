"""Checkpoints: the C2SP form, who may sign, what a witness refuses, and stock openssl as the judge."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from privacy.checkpoint import (
    Checkpoint,
    cosign,
    cosigned_message,
    open_checkpoint,
    parse_checkpoint,
    sign_checkpoint,
    sign_head,
    witness,
)
from privacy.merkle import EMPTY_ROOT, LedgerVerificationError, consistency_proof, leaf_hash, root_from_leaves
from privacy.signing import SigningKey

LOG = SigningKey.generate(name="fedtwin.example/ledger")
OTHER_LOG = SigningKey.generate(name="fedtwin.example/ledger")
MERCY = SigningKey.generate(name="mercy")
HILL = SigningKey.generate(name="hill")
LEAVES = [leaf_hash(bytes([n])) for n in range(20)]
DOCUMENT = Path(__file__).parents[2] / "docs" / "ledger.md"


def head(size: int, leaves: list[bytes] = LEAVES) -> Checkpoint:
    return Checkpoint(origin=LOG.name, size=size, root=root_from_leaves(leaves[:size]))


def note(size: int, *cosigners: SigningKey, leaves: list[bytes] = LEAVES) -> bytes:
    lines = [cosign(head(size, leaves), key, timestamp=1700000000) for key in cosigners]
    return parse_checkpoint(sign_checkpoint(head(size, leaves), LOG)).with_signatures(lines).encode()


def test_the_signed_text_is_that_of_c2sp() -> None:
    assert head(0).text == "fedtwin.example/ledger\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"
    lines = note(3, MERCY).decode().split("\n")
    assert lines[3] == ""
    assert lines[4].startswith("— fedtwin.example/ledger ")
    assert lines[5].startswith("— mercy ")
    assert lines[6:] == [""]
    assert cosigned_message(head(3), 17).startswith(b"cosignature/v1\ntime 17\nfedtwin.example/ledger\n3\n")


def test_a_note_reads_back_as_it_was_written() -> None:
    signed = parse_checkpoint(note(7, MERCY, HILL))
    assert signed.encode() == note(7, MERCY, HILL)
    assert signed.verify(LOG.public) == head(7)
    assert signed.cosigned_at(MERCY.public) == signed.cosigned_at(HILL.public) == 1700000000


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\n7\n", b"\n07\n"),
        (b"\n7\n", b"\n+7\n"),
        (b"\n7\n", b"\n-7\n"),
        (b"\n7\n", b"\n7 \n"),
        (b"\n7\n", b"\n\n7\n"),
        (b"\n\n", b"\n"),
        (b"\n\n", b"\nextension\n\n"),
        (b"\n\n", b"\n\n\n"),
        ("— ".encode(), b"- "),
        ("— fed".encode(), "—  fed".encode()),
        (b"fedtwin.example/ledger\n", b"fedtwin example\n"),
        (b"fedtwin.example/ledger\n", b"\xff\n"),
    ],
)
def test_other_spellings_are_refused(old: bytes, new: bytes) -> None:
    assert old in note(7)
    with pytest.raises(LedgerVerificationError):
        parse_checkpoint(note(7).replace(old, new, 1))


def test_truncated_oversized_and_unsigned_notes_are_refused() -> None:
    good = note(7)
    for end in range(len(good)):
        with pytest.raises(LedgerVerificationError):
            open_checkpoint(good[:end], LOG.public)
    with pytest.raises(LedgerVerificationError, match="bytes"):
        parse_checkpoint(good + b"x" * 70_000)
    with pytest.raises(LedgerVerificationError):
        parse_checkpoint((head(7).text + "\n").encode())


def test_a_base64_with_stray_bits_is_refused() -> None:
    """43 characters of base64 leave two bits that mean nothing; only zero is accepted."""
    text = note(7)
    root = text.split(b"\n")[2]
    stray = root[:-2] + bytes([root[-2] + 1]) + b"="
    with pytest.raises(LedgerVerificationError):
        parse_checkpoint(text.replace(root, stray))


def test_only_the_pinned_key_opens_a_checkpoint() -> None:
    assert open_checkpoint(note(7), LOG.public) == head(7)
    for key in (OTHER_LOG.public, MERCY.public):
        with pytest.raises(LedgerVerificationError, match="no signature by"):
            open_checkpoint(note(7, MERCY), key)


def test_a_signature_does_not_carry_to_another_size_root_or_origin() -> None:
    signed = parse_checkpoint(note(7, MERCY))
    for other in (
        replace(signed.checkpoint, size=8),
        replace(signed.checkpoint, root=EMPTY_ROOT),
        replace(signed.checkpoint, origin="other"),
    ):
        moved = replace(signed, checkpoint=other)
        with pytest.raises(LedgerVerificationError, match="does not hold"):
            moved.verify(LOG.public)
        with pytest.raises(LedgerVerificationError, match="does not hold"):
            moved.cosigned_at(MERCY.public)


def test_a_cosignature_is_no_checkpoint_signature_and_the_other_way_round() -> None:
    """One key that is both the log's and a witness': the statements stay apart."""
    bare = parse_checkpoint(sign_checkpoint(head(7), LOG))
    assert bare.cosigned_at(LOG.public) is None
    only_cosigned = replace(bare, signatures=()).with_signatures([cosign(head(7), LOG, timestamp=1)])
    with pytest.raises(LedgerVerificationError, match="no signature by"):
        only_cosigned.verify(LOG.public)


def test_a_new_cosignature_of_a_site_replaces_its_older_one() -> None:
    signed = parse_checkpoint(note(7, MERCY))
    later = signed.with_signatures([cosign(head(7), MERCY, timestamp=1800000000)])
    assert later.cosigned_at(MERCY.public) == 1800000000
    assert len(later.signatures) == 2


def test_a_witness_signs_what_only_grew() -> None:
    for old in range(1, 12):
        proof = consistency_proof(LEAVES, old, 12)
        line = witness(
            note(12), MERCY, coordinator=LOG.public, seen=head(old), proof=proof, timestamp=1700000000
        )
        assert parse_checkpoint(note(12)).with_signatures([line]).cosigned_at(MERCY.public) == 1700000000
    witness(note(12), MERCY, coordinator=LOG.public, seen=head(12), proof=[], timestamp=1)
    witness(note(12), MERCY, coordinator=LOG.public, seen=head(0), proof=[], timestamp=1)
    witness(note(12), MERCY, coordinator=LOG.public, seen=None, proof=[], timestamp=1)


def test_a_witness_refuses_forks_roll_backs_and_strangers() -> None:
    forked = [*LEAVES[:3], leaf_hash(b"other"), *LEAVES[4:]]

    def refuse(text: bytes, seen: Checkpoint, proof: list[bytes], match: str) -> None:
        with pytest.raises(LedgerVerificationError, match=match):
            witness(text, MERCY, coordinator=LOG.public, seen=seen, proof=proof, timestamp=1)

    refuse(note(12, leaves=forked), head(8), consistency_proof(forked, 8, 12), "does not begin with")
    refuse(note(8, leaves=forked), head(8), [], "forked")
    refuse(note(8), head(12), consistency_proof(LEAVES, 8, 12), "rolled back")
    refuse(note(12), head(8), [], "empty")
    refuse(sign_checkpoint(head(12), OTHER_LOG), head(8), consistency_proof(LEAVES, 8, 12), "no signature")
    refuse(note(12), replace(head(8), origin="another"), [], "the one seen is")


def test_the_head_is_recomputed_before_it_is_signed() -> None:
    root = root_from_leaves(LEAVES[:12])
    signed = sign_head(LEAVES[:12], LOG, previous=head(8), expected_root=root)
    assert open_checkpoint(signed, LOG.public) == head(12)
    damaged = [*LEAVES[:3], leaf_hash(b"bit flip"), *LEAVES[4:12]]
    with pytest.raises(LedgerVerificationError, match="changed or damaged"):
        sign_head(damaged, LOG, previous=head(8), expected_root=root)
    with pytest.raises(LedgerVerificationError, match="not those signed before"):
        sign_head(damaged, LOG, previous=head(8), expected_root=root_from_leaves(damaged))
    with pytest.raises(LedgerVerificationError, match="old backup"):
        sign_head(LEAVES[:5], LOG, previous=head(8), expected_root=root_from_leaves(LEAVES[:5]))


@pytest.mark.parametrize("origin", ["", "two words", "a+b", "line\nbreak", "cosignature/v1"])
def test_origins_that_could_be_taken_for_something_else_are_refused(origin: str) -> None:
    with pytest.raises(ValueError, match="origin is"):
        Checkpoint(origin=origin, size=0, root=EMPTY_ROOT)


@pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl is not installed: its verdict was NOT asked"
)
@pytest.mark.parametrize("name", ["verify-checkpoint", "verify-cosignature"])
def test_the_documented_openssl_commands_verify_and_refuse(name: str, tmp_path: Path) -> None:
    """The blocks of docs/ledger.md as they stand there, on a good and on a changed checkpoint."""
    found = re.search(rf"```sh {name}\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    script = found.group(1).replace("/tmp/", "./")
    for attempt in range(8):  # base64 of some keys has a plus or a slash
        log, site = SigningKey.generate(name=LOG.name), SigningKey.generate(name=f"site-{attempt}")
        checkpoint = Checkpoint(origin=log.name, size=3, root=root_from_leaves(LEAVES[:3]))
        line = cosign(checkpoint, site, timestamp=1700000000 + attempt)
        good = parse_checkpoint(sign_checkpoint(checkpoint, log)).with_signatures([line]).encode()
        for text, status in ((good, 0), (good.replace(b"\n3\n", b"\n4\n"), 1)):
            (tmp_path / "checkpoint").write_bytes(text)
            result = subprocess.run(
                ["bash", "-c", script],
                cwd=tmp_path,
                env={
                    "PATH": "/usr/bin:/bin:/usr/local/bin",
                    "KEY": log.public.text,
                    "SITE": site.public.text,
                },
                capture_output=True,
                text=True,
                check=False,
            )
            assert result.returncode == status, result.stdout + result.stderr
            assert ("Verified Successfully" in result.stdout) is (status == 0)
