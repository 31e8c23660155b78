"""An invitation to join a federation: one line of text that an operator hands to one site, once.

It carries where the coordinator is, what the site must find there (fingerprint of the authority, digest of the ledger's
key) and a secret that is good once. Both rooms read it, so its form is here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import asdict, dataclass, field, fields
from typing import Final

from privacy.canonical import CanonicalError, canonical_bytes, parse_canonical
from privacy.receipt import check_fields

PREFIX: Final = "fedtwin-invitation-1"
_FINGERPRINT = re.compile(r"([0-9A-F]{2}:){31}[0-9A-F]{2}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_URL = re.compile(r"https?://[^/?#\s@]+")


class InvitationError(ValueError):
    """A text that is no invitation, or not the whole of one."""


@dataclass(frozen=True, kw_only=True)
class Invitation:
    """What an invitation says.

    Attributes:
        api_url: the coordinator's API, without a path.
        ca_fingerprint: SHA-256 of the authority's certificate, `AB:CD:...`, as people compare it.
        ledger_key_digest: see `ledger_key_digest`.
        site: the name that the site will have.
        identifier: which invitation it is; not secret.
        secret: 256 bits, good once. Never log.
    """

    api_url: str
    ca_fingerprint: str
    ledger_key_digest: str
    site: str
    identifier: str
    secret: str = field(repr=False)

    def __post_init__(self) -> None:
        rules = (
            ("api_url", _URL),
            ("ca_fingerprint", _FINGERPRINT),
            ("ledger_key_digest", _DIGEST),
            ("site", _NAME),
            ("identifier", re.compile(r"[a-z0-9]{10}")),
            ("secret", _SECRET),
        )
        for name, pattern in rules:
            value = getattr(self, name)
            if not isinstance(value, str) or pattern.fullmatch(value) is None:
                shown = "not printed" if name == "secret" else repr(value)
                raise InvitationError(f"{name} of an invitation is {shown}, which it cannot be")

    @property
    def text(self) -> str:
        """One line: the form's name, the contents, and eight digits that show whether any of it is missing."""
        body = base64.urlsafe_b64encode(canonical_bytes(asdict(self))).decode().rstrip("=")
        return f"{PREFIX}.{body}.{_check(body)}"

    @classmethod
    def parse(cls, text: str) -> Invitation:
        """Read what `text` wrote; blanks and line breaks that a mail program put in are ignored.

        Raises:
            InvitationError: not an invitation, cut off or changed. Never repeats the text: a secret is in it.
        """
        parts = "".join(text.split()).split(".")
        if len(parts) != 3 or parts[0] != PREFIX:
            raise InvitationError(
                f"this is no invitation, which begins with {PREFIX}; paste the whole line that the operator sent"
            )
        if parts[2] != _check(parts[1]):
            raise InvitationError(
                "this invitation is not whole: a character is missing or changed; paste it again"
            )
        try:
            data = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
            value = parse_canonical(data)
            check_fields(value, frozenset(one.name for one in fields(cls)), what="an invitation")
            return cls(**value)
        except (binascii.Error, CanonicalError, ValueError, TypeError) as error:
            if isinstance(error, InvitationError):
                raise
            raise InvitationError("this invitation cannot be read; ask the operator for another") from None


def ledger_key_digest(text: str) -> str:
    """SHA-256 of a ledger key's text (`name+hash+base64`), as `sha256:...`."""
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _check(body: str) -> str:
    return hashlib.sha256(f"{PREFIX}.{body}".encode()).hexdigest()[:8]
