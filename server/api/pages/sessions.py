"""Who is signed in: a cookie that names an API key and never holds it, signed, short, and worth no more than the key.

A session is looked up with its key at every request, so a key that is revoked or expires ends it at once. Signing
out ends it in this process; the cookie is worthless after `LIFETIME` in any case.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import hmac
import secrets
import threading
from dataclasses import dataclass

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from server.keys import ApiKey, KeyRefusedError, good_key
from server.store import Store

LIFETIME = dt.timedelta(hours=8)
COOKIE = "__Host-fedtwin"
VISIT_COOKIE = "__Host-fedtwin-visit"


class SignInNeededError(Exception):
    """Nobody is signed in, or no longer; the message says why, for the one who was."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """Somebody who is signed in.

    Attributes:
        key: as it stands now.
        token: the cookie. Sensitive: do not log.
        form_token: what every form of this session carries.
    """

    key: ApiKey
    token: str
    form_token: str


class Sessions:
    """Makes and reads the cookies of one coordinator; the secret comes from the key that signs its ledger."""

    def __init__(self, store: Store) -> None:
        self._store = store
        derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"fedtwin pages: sessions")
        self._secret = derived.derive(store.key.to_pem())
        self._ended: dict[str, float] = {}
        self._lock = threading.Lock()

    def begin(self, key: ApiKey) -> str:
        """The cookie of a new session of a key that was just checked."""
        ends = int((self._store.clock() + LIFETIME).timestamp())
        content = f"{key.prefix}.{ends}.{secrets.token_urlsafe(16)}"
        return f"{content}.{self._mac('session', content)}"

    def read(self, token: str | None) -> Session:
        """The session of a cookie.

        Raises:
            SignInNeededError: none, not ours, over, or its key is no longer good.
        """
        if not token:
            raise SignInNeededError("")
        content, _, mac = token.rpartition(".")
        if not hmac.compare_digest(mac.encode(), self._mac("session", content).encode()):
            raise SignInNeededError("")
        prefix, ends, _ = content.split(".")
        if int(ends) <= self._store.clock().timestamp() or token in self._ended:
            raise SignInNeededError("Your session is over. Sign in again.")
        try:
            key = good_key(self._store, prefix)
        except KeyRefusedError as error:
            raise SignInNeededError(f"Your session is over: {error}.") from error
        return Session(key=key, token=token, form_token=self._mac("form", token))

    def end(self, token: str) -> None:
        """Sign out."""
        now = self._store.clock().timestamp()
        with self._lock:
            self._ended = {one: ends for one, ends in self._ended.items() if ends > now}
            self._ended[token] = now + LIFETIME.total_seconds()

    def visit_token(self, visit: str) -> str:
        """What the form to sign in carries, for the visitor with this cookie."""
        return self._mac("visit", visit)

    def _mac(self, use: str, content: str) -> str:
        made = hmac.digest(self._secret, f"{use}\n{content}".encode("utf-8", "replace"), hashlib.sha256)
        return base64.urlsafe_b64encode(made).decode().rstrip("=")


def is_visit(text: str | None) -> bool:
    """Whether a visitor's cookie is one that we gave: 16 random bytes."""
    try:
        return text is not None and len(base64.b64decode(f"{text}==", altchars=b"-_", validate=True)) == 16
    except (binascii.Error, ValueError):
        return False
