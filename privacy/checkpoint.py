"""Checkpoints: signed tree heads in C2SP's tlog-checkpoint format, with the sites as witnesses.

    fedtwin.example/ledger          origin: which log
    20852163                        entries in it
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=    Merkle tree head, base64

    — fedtwin.example/ledger Az3grlgt...    the coordinator's Ed25519 signature over the lines above the blank
    — saint-mary jWbPPwAAAABkGFDL...        a site's cosignature/v1, with the time at which it looked

The coordinator signs with `sign_head`, which recomputes the head from the leaves. A site answers with
`witness`, which checks the coordinator's signature and that the log only grew since the last checkpoint that
the site has seen. Sites sign cosignature/v1 and not the bare note, because that statement has a time and its
own first line: the same Ed25519 key signs receipts, and neither can be taken for the other.

References: C2SP signed-note, tlog-checkpoint, tlog-cosignature.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from privacy.merkle import HASH_SIZE, LedgerVerificationError, root_from_leaves, verify_consistency
from privacy.signing import COSIGNATURE, ED25519, SignatureError, SigningKey, VerifyKey

MAX_SIGNATURES: Final = 1024
MAX_NOTE_BYTES: Final = 65_535
_ORIGIN: Final = re.compile(r"[^\s+\x00-\x1f\x7f]{1,128}")
_SIZE: Final = re.compile(r"0|[1-9][0-9]{0,18}")
_DASH: Final = "\N{EM DASH} "


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A tree head: which log, how many entries, which root.

    Attributes:
        origin: name of the log, no spaces; also the coordinator's key name.
        size: entries, 0 or more.
        root: 32 bytes, RFC 6962.
    """

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        if _ORIGIN.fullmatch(self.origin) is None or self.origin.startswith("cosignature/"):
            raise ValueError(f"origin is {self.origin!r}; it must be a name without spaces or +")
        if not 0 <= self.size < 2**63:
            raise ValueError(f"size is {self.size}; it must be 0 or more")
        if len(self.root) != HASH_SIZE:
            raise ValueError(f"root has {len(self.root)} bytes; it must have 32")

    @property
    def text(self) -> str:
        """The three lines that are signed, with their final newline."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


@dataclass(frozen=True, kw_only=True)
class NoteSignature:
    """One signature line of a note.

    Attributes:
        name: key name.
        key_id: four bytes that name key and signature type.
        signature: what follows: 64 bytes for the coordinator, 8 (time) + 64 for a site.
    """

    name: str
    key_id: bytes
    signature: bytes

    @property
    def line(self) -> str:
        """The line as it stands in a note, without its newline."""
        return f"{_DASH}{self.name} {base64.b64encode(self.key_id + self.signature).decode()}"


@dataclass(frozen=True, kw_only=True)
class SignedCheckpoint:
    """A checkpoint as it was received. Nothing in it is believed before `verify`.

    Attributes:
        checkpoint: what it states.
        signatures: its signature lines, in order.
    """

    checkpoint: Checkpoint
    signatures: tuple[NoteSignature, ...]

    def encode(self) -> bytes:
        """The note's bytes."""
        lines = "".join(f"{signature.line}\n" for signature in self.signatures)
        return f"{self.checkpoint.text}\n{lines}".encode()

    def verify(self, key: VerifyKey) -> Checkpoint:
        """The checkpoint, once the coordinator's signature by `key` holds.

        Raises:
            LedgerVerificationError: there is no such signature, or it does not hold.
        """
        found = self._by(key, ED25519)
        if not found:
            raise LedgerVerificationError(
                f"the checkpoint of size {self.checkpoint.size} has no signature by {key.text}"
            )
        for signature in found:
            _verify(key, signature.signature, self.checkpoint.text.encode(), self.checkpoint.size)
        return self.checkpoint

    def cosigned_at(self, key: VerifyKey) -> int | None:
        """When the site with `key` cosigned, in seconds since 1970; None if it did not.

        Raises:
            LedgerVerificationError: there is such a cosignature and it does not hold.
        """
        times = []
        for signature in self._by(key, COSIGNATURE):
            if len(signature.signature) != 72:
                raise LedgerVerificationError(f"the cosignature of {key.name!r} has not 72 bytes")
            timestamp = int.from_bytes(signature.signature[:8], "big")
            message = cosigned_message(self.checkpoint, timestamp)
            _verify(key, signature.signature[8:], message, self.checkpoint.size)
            times.append(timestamp)
        return max(times, default=None)

    def with_signatures(self, lines: Iterable[str]) -> SignedCheckpoint:
        """The same checkpoint with more signature lines; a line by a key that has one already replaces it.

        Raises:
            LedgerVerificationError: a line is not a signature line.
        """
        merged = {(s.name, s.key_id): s for s in self.signatures}
        for line in lines:
            signature = _parse_line(line)
            merged[signature.name, signature.key_id] = signature
        return SignedCheckpoint(checkpoint=self.checkpoint, signatures=tuple(merged.values()))

    def has_signature(self, key: VerifyKey, signature_type: int) -> bool:
        """Whether there is a line by `key` of this C2SP signature type; it need not hold."""
        return bool(self._by(key, signature_type))

    def _by(self, key: VerifyKey, signature_type: int) -> list[NoteSignature]:
        wanted = (key.name, key.key_id(signature_type))
        return [s for s in self.signatures if (s.name, s.key_id) == wanted]


def parse_checkpoint(note: bytes) -> SignedCheckpoint:
    """Read a signed checkpoint; its bytes are exactly `encode()` of the result, or it is refused.

    Raises:
        LedgerVerificationError: not such a note.
    """
    if len(note) > MAX_NOTE_BYTES:
        raise LedgerVerificationError(f"the checkpoint has {len(note)} bytes; the most is {MAX_NOTE_BYTES}")
    try:
        text = note.decode()
    except UnicodeDecodeError as error:
        raise LedgerVerificationError("the checkpoint is not UTF-8") from error
    body, blank, lines = text.rpartition("\n\n")
    parts = body.split("\n")
    if not blank or len(parts) != 3 or not lines.endswith("\n") or _SIZE.fullmatch(parts[1]) is None:
        raise LedgerVerificationError(
            "the checkpoint has not the form: origin, size, root, blank line, signatures, each ending in newline"
        )
    signatures = tuple(_parse_line(line) for line in lines[:-1].split("\n"))
    if len(signatures) > MAX_SIGNATURES:
        raise LedgerVerificationError(
            f"the checkpoint has {len(signatures)} signatures; the most is {MAX_SIGNATURES}"
        )
    try:
        checkpoint = Checkpoint(origin=parts[0], size=int(parts[1]), root=_decode(parts[2]))
    except ValueError as error:
        raise LedgerVerificationError(f"the checkpoint cannot be used: {error}") from error
    return SignedCheckpoint(checkpoint=checkpoint, signatures=signatures)


def open_checkpoint(note: bytes, key: VerifyKey) -> Checkpoint:
    """Read a checkpoint and check the coordinator's signature, under a key pinned beforehand.

    Raises:
        LedgerVerificationError: it does not hold, or the origin is not the key's name.
    """
    checkpoint = parse_checkpoint(note).verify(key)
    if checkpoint.origin != key.name:
        raise LedgerVerificationError(f"the checkpoint is of {checkpoint.origin!r}, the key of {key.name!r}")
    return checkpoint


def sign_checkpoint(checkpoint: Checkpoint, key: SigningKey) -> bytes:
    """The note of a checkpoint with the coordinator's signature. Prefer `sign_head`, which recomputes the head.

    Raises:
        ValueError: the key's name is not the checkpoint's origin.
    """
    if key.name != checkpoint.origin:
        raise ValueError(f"the key is of {key.name!r}, the checkpoint of {checkpoint.origin!r}")
    signature = NoteSignature(
        name=key.name, key_id=key.public.key_id(ED25519), signature=key.sign(checkpoint.text.encode())
    )
    return SignedCheckpoint(checkpoint=checkpoint, signatures=(signature,)).encode()


def sign_head(
    leaf_hashes: Sequence[bytes], key: SigningKey, *, previous: Checkpoint | None, expected_root: bytes
) -> bytes:
    """Sign the head of these leaves, recomputed from them; call it after they were committed durably.

    Args:
        leaf_hashes: of every entry, read back from the store, in order.
        key: the coordinator's; its name is the log's origin.
        previous: the last checkpoint that was ever signed under this origin, None for the first.
        expected_root: the head that the writer's own `CompactRange` holds.

    Raises:
        LedgerVerificationError: the recomputed head differs from the writer's, or the tree does not begin
            with the one of `previous`. Nothing was signed; do not append until it is understood.
    """
    root = root_from_leaves(leaf_hashes)
    if root != expected_root:
        raise LedgerVerificationError(
            "the head recomputed from the stored leaves is not the one that was kept: the store was changed or "
            "damaged; nothing was signed"
        )
    if previous is not None:
        if previous.origin != key.name or previous.size > len(leaf_hashes):
            raise LedgerVerificationError(
                f"the last checkpoint is of {previous.origin!r} with {previous.size} entries, the store of "
                f"{key.name!r} with {len(leaf_hashes)}: an old backup must not be signed under the same key"
            )
        if root_from_leaves(leaf_hashes[: previous.size]) != previous.root:
            raise LedgerVerificationError(
                f"the first {previous.size} entries are not those signed before; nothing was signed"
            )
    return sign_checkpoint(Checkpoint(origin=key.name, size=len(leaf_hashes), root=root), key)


def witness(
    note: bytes,
    key: SigningKey,
    *,
    coordinator: VerifyKey,
    seen: Checkpoint | None,
    proof: Sequence[bytes],
    timestamp: int,
) -> str:
    """A site's cosignature line for a checkpoint, once it is the continuation of what the site saw before.

    Args:
        note: the coordinator's signed checkpoint.
        key: the site's own.
        coordinator: its key as pinned at enrolment.
        seen: the last checkpoint this site cosigned; keep the new one durably **before** sending the line.
        proof: consistency proof from `seen` to this one; empty if `seen` is None.
        timestamp: now, in seconds since 1970.

    Returns:
        A line for `SignedCheckpoint.with_signatures`.

    Raises:
        LedgerVerificationError: bad signature, another log, fewer entries than seen, or another history: do not
            answer, keep both notes, tell the auditor.
    """
    checkpoint = open_checkpoint(note, coordinator)
    if seen is not None:
        if seen.origin != checkpoint.origin:
            raise LedgerVerificationError(
                f"this is log {checkpoint.origin!r}; the one seen is {seen.origin!r}"
            )
        if seen.size > checkpoint.size:
            raise LedgerVerificationError(
                f"the ledger was rolled back: {seen.size} entries were seen, now it shows {checkpoint.size}"
            )
    if seen is not None and seen.size > 0:
        verify_consistency(
            old_size=seen.size,
            old_root=seen.root,
            new_size=checkpoint.size,
            new_root=checkpoint.root,
            proof=proof,
        )
    return cosign(checkpoint, key, timestamp=timestamp)


def cosign(checkpoint: Checkpoint, key: SigningKey, *, timestamp: int) -> str:
    """The bare cosignature/v1 line; `witness` makes the checks that give it a meaning."""
    if not 0 <= timestamp < 2**63:
        raise ValueError(f"timestamp is {timestamp}; it must be seconds since 1970")
    signature = timestamp.to_bytes(8, "big") + key.sign(cosigned_message(checkpoint, timestamp))
    return NoteSignature(name=key.name, key_id=key.public.key_id(COSIGNATURE), signature=signature).line


def cosigned_message(checkpoint: Checkpoint, timestamp: int) -> bytes:
    """The bytes that a cosignature/v1 signs."""
    return f"cosignature/v1\ntime {timestamp}\n{checkpoint.text}".encode()


def _verify(key: VerifyKey, signature: bytes, message: bytes, size: int) -> None:
    try:
        key.verify(signature, message)
    except SignatureError as error:
        raise LedgerVerificationError(f"the checkpoint of size {size}: {error}") from None


def _parse_line(line: str) -> NoteSignature:
    name, space, encoded = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not space or _ORIGIN.fullmatch(name) is None:
        raise LedgerVerificationError(f"{line[:80]!r} is not a signature line")
    try:
        data = _decode(encoded)
    except ValueError as error:
        raise LedgerVerificationError(f"the signature of {name!r} is not base64") from error
    if len(data) < 5:
        raise LedgerVerificationError(f"the signature of {name!r} is too short")
    return NoteSignature(name=name, key_id=data[:4], signature=data[4:])


def _decode(text: str) -> bytes:
    """Base64 with one spelling only: padding bits must be zero."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{text[:80]!r} is not base64") from error
    if base64.b64encode(data).decode() != text:
        raise ValueError(f"{text[:80]!r} is not base64 in its one form")
    return data
