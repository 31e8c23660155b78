"""DSSE envelopes: a signed JSON statement that says what kind of statement it is.

`{"payload": base64, "payloadType": ..., "signatures": [{"keyid": ..., "sig": base64}]}`; each signature is
Ed25519 over `DSSEv1 <length> <type> <length> <payload>`, so a statement of one kind can never be taken for
one of another, nor for a checkpoint. The payload is canonical JSON; the key id is the signer's whole key text
and is only a hint: a reader compares it with the key that it has pinned.

References: DSSE v1 (secure-systems-lab), protocol.md.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

from privacy.canonical import CanonicalError, canonical_bytes, digest_of_bytes, parse_canonical
from privacy.signing import SignatureError, SigningKey, VerifyKey


def sign_statement(
    payload_type: str, statement: Mapping[str, Any], keys: Sequence[SigningKey]
) -> dict[str, Any]:
    """A statement in an envelope, signed by each key.

    Args:
        payload_type: media type, `application/vnd.fedtwin.<kind>+json`.
        statement: JSON data.
        keys: one or more; one signature each, in this order.

    Raises:
        CanonicalError: the statement has no canonical JSON.
    """
    payload = canonical_bytes(dict(statement))
    message = pre_authentication_encoding(payload_type, payload)
    return {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [
            {"keyid": key.public.text, "sig": base64.b64encode(key.sign(message)).decode()} for key in keys
        ],
    }


def open_statement(
    envelope: Mapping[str, Any], payload_type: str, keys: Sequence[VerifyKey]
) -> dict[str, Any]:
    """The statement in an envelope, once it has exactly one good signature by each of `keys`, in this order.

    Raises:
        SignatureError: not such an envelope, another kind of statement, other signers, or a bad signature.
    """
    signers, payload = envelope_parts(envelope, payload_type)
    if [signer for signer, _ in signers] != [key.text for key in keys]:
        raise SignatureError(
            f"the envelope is signed by {[signer for signer, _ in signers]}, not by {[key.text for key in keys]}"
        )
    message = pre_authentication_encoding(payload_type, payload)
    for key, (_, signature) in zip(keys, signers, strict=True):
        key.verify(signature, message)
    try:
        statement = parse_canonical(payload)
    except CanonicalError as error:
        raise SignatureError(f"the signed statement is {error}") from error
    if not isinstance(statement, dict):
        raise SignatureError("the signed statement is not a JSON object")
    return statement


def envelope_digest(envelope: Mapping[str, Any], payload_type: str) -> str:
    """`sha256:` digest of the signed payload: the name by which other entries refer to the statement.

    Raises:
        SignatureError: not such an envelope. The signature is **not** checked.
    """
    return digest_of_bytes(envelope_parts(envelope, payload_type)[1])


def envelope_parts(envelope: Mapping[str, Any], payload_type: str) -> tuple[list[tuple[str, bytes]], bytes]:
    """([(key text, signature), ...], payload) of an envelope; nothing of it is verified.

    Raises:
        SignatureError: not an envelope of this type.
    """
    if not isinstance(envelope, Mapping) or set(envelope) != {"payload", "payloadType", "signatures"}:
        raise SignatureError("an envelope has the fields payload, payloadType and signatures")
    if envelope["payloadType"] != payload_type:
        raise SignatureError(f"the envelope holds {envelope['payloadType']!r}, not {payload_type!r}")
    signatures = envelope["signatures"]
    if not isinstance(signatures, list) or not signatures:
        raise SignatureError("the envelope has no signatures")
    signers = []
    for item in signatures:
        if not isinstance(item, dict) or set(item) != {"keyid", "sig"} or not isinstance(item["keyid"], str):
            raise SignatureError("a signature in an envelope has the fields keyid and sig")
        signers.append((item["keyid"], _decode(item["sig"])))
    return signers, _decode(envelope["payload"])


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """The bytes that a DSSE signature signs (PAE).

    >>> pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
    b'DSSEv1 29 http://example.com/HelloWorld 11 hello world'
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _decode(text: object) -> bytes:
    """Standard base64 with one spelling only."""
    try:
        data = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        data = b""
    if not data or base64.b64encode(data).decode() != text:
        raise SignatureError("a field of the envelope is not base64 in its one form")
    return data
