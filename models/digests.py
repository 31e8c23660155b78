"""Names of files by what is in them. Imports no torch, so that commands which only name files start fast."""

from __future__ import annotations

import hashlib


def digest_of(data: bytes) -> str:
    """`sha256:` and the hexadecimal SHA-256 of the bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()
