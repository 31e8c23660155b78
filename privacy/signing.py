"""Ed25519 keys: sign, verify, and the text form in which people pin them.

A verify key's text is C2SP's `name+hash+base64(0x01 || key)`, the hash being the key id: the first four
bytes of SHA-256(name || newline || 0x01 || key). A key is pinned by this text, never taken from a message.

References: RFC 8032; C2SP signed-note; C2SP tlog-cosignature (signature type 0x04).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ED25519: Final = 0x01
COSIGNATURE: Final = 0x04
_NAME: Final = re.compile(r"[^\s+\x00-\x1f\x7f]{1,128}")
_P: Final = 2**255 - 19
# y coordinates of the eight points whose order divides 8: under such a key one signature fits many messages.
_Y8: Final = 2707385501144840649318225287225658788936804267575313519463743609750303402022
_LOW_ORDER_Y: Final = frozenset({0, 1, _P - 1, _Y8, _P - _Y8})


class SignatureError(Exception):
    """A signature that does not hold, or a key that cannot be used."""


class VerifyKey:
    """A public Ed25519 key with the name it is known by.

    Equal when name and key are equal; usable as a dictionary key.

    Attributes:
        name: 1 to 128 characters, no space, no `+`.
        raw: the 32 bytes of RFC 8032.
    """

    __slots__ = ("_key", "name", "raw")

    def __init__(self, *, name: str, raw: bytes) -> None:
        """Take a key.

        Raises:
            SignatureError: not a name, or a key of low order or not in canonical form (such a key would
                accept signatures that nobody made).
        """
        self.name = _check_name(name)
        self.raw = bytes(raw)
        if len(self.raw) != 32:
            raise SignatureError(f"key {name!r} has {len(self.raw)} bytes; an Ed25519 key has 32")
        y = int.from_bytes(self.raw, "little") & (2**255 - 1)
        if y >= _P or y in _LOW_ORDER_Y:
            raise SignatureError(f"key {name!r} is not a usable Ed25519 key (low order or not canonical)")
        self._key = Ed25519PublicKey.from_public_bytes(self.raw)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VerifyKey) and (self.name, self.raw) == (other.name, other.raw)

    def __hash__(self) -> int:
        return hash((self.name, self.raw))

    def __repr__(self) -> str:
        return f"VerifyKey({self.text!r})"

    def key_id(self, signature_type: int = ED25519) -> bytes:
        """The four bytes that name this key in a signed note, for a C2SP signature type."""
        message = self.name.encode() + b"\n" + bytes([signature_type]) + self.raw
        return hashlib.sha256(message).digest()[:4]

    @property
    def text(self) -> str:
        """`name+hash+base64`: what an auditor or an operator pins."""
        encoded = base64.b64encode(bytes([ED25519]) + self.raw).decode()
        return f"{self.name}+{self.key_id().hex()}+{encoded}"

    @classmethod
    def from_text(cls, text: str) -> VerifyKey:
        """Read what `text` wrote; one spelling only.

        Raises:
            SignatureError: not of that form, or its hash does not fit.
        """
        parts = text.strip().split("+", 2)
        try:
            data = base64.b64decode(parts[2], validate=True)
            key = cls(name=parts[0], raw=data[1:])
        except (IndexError, binascii.Error, ValueError) as error:
            raise SignatureError(f"{text!r} is no key: it must be name+hash+base64") from error
        if key.text != text.strip():
            raise SignatureError(f"{text!r} is no key: its hash or its base64 is not that of its contents")
        return key

    @classmethod
    def from_pem(cls, data: bytes, *, name: str) -> VerifyKey:
        """Read a SubjectPublicKeyInfo PEM (`-----BEGIN PUBLIC KEY-----`), as openssl writes it.

        Raises:
            SignatureError: not such a PEM, or not Ed25519.
        """
        try:
            key = serialization.load_pem_public_key(data)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise SignatureError(f"the public key of {name!r} is not a PEM public key") from error
        if not isinstance(key, Ed25519PublicKey):
            raise SignatureError(f"the public key of {name!r} is not an Ed25519 key")
        return cls(name=name, raw=key.public_bytes_raw())

    def to_pem(self) -> bytes:
        """The key as SubjectPublicKeyInfo PEM; the name is not in it."""
        return self._key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def verify(self, signature: bytes, message: bytes) -> None:
        """Check an Ed25519 signature over `message`.

        Raises:
            SignatureError: it does not hold.
        """
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            raise SignatureError(f"a signature of {self.name!r} does not hold") from None


class SigningKey:
    """A private Ed25519 key. `repr` shows the public half only.

    `SigningKey.generate(name="saint-mary")`, `.sign(message)`, `.public.text` to hand out, `.to_pem()` to keep.
    """

    __slots__ = ("_key", "public")

    def __init__(self, key: Ed25519PrivateKey, *, name: str) -> None:
        self._key = key
        self.public = VerifyKey(name=name, raw=key.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"SigningKey(of {self.public.text!r})"

    @property
    def name(self) -> str:
        """The name that goes into notes and envelopes."""
        return self.public.name

    @classmethod
    def generate(cls, *, name: str) -> SigningKey:
        """A new key from the operating system's entropy."""
        return cls(Ed25519PrivateKey.generate(), name=name)

    @classmethod
    def from_seed(cls, seed: bytes, *, name: str) -> SigningKey:
        """The key of a 32-byte RFC 8032 secret (test vectors, hardware exports)."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed), name=name)

    @classmethod
    def from_pem(cls, data: bytes, *, name: str) -> SigningKey:
        """Read an unencrypted PKCS8 PEM, as `to_pem` and `openssl genpkey -algorithm ed25519` write it.

        Raises:
            SignatureError: not such a PEM, or not Ed25519.
        """
        try:
            key = serialization.load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise SignatureError(f"the private key of {name!r} is not an unencrypted PKCS8 PEM") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise SignatureError(f"the private key of {name!r} is not an Ed25519 key")
        return cls(key, name=name)

    def to_pem(self) -> bytes:
        """The key as unencrypted PKCS8 PEM: write it with mode 0600 and nowhere else."""
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature of `message`.

        Callers keep the uses of one key apart by what they sign: DSSE starts with `DSSEv1 `, a cosignature
        with `cosignature/v1` and a newline, a checkpoint with an origin that is neither.
        """
        return self._key.sign(message)


def _check_name(name: str) -> str:
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise SignatureError(f"key name is {name!r}; it must be 1 to 128 characters with no space and no +")
    return name
