"""Units for people: UCUM's codes for times are words to them."""

from __future__ import annotations

_WORDS = {"a": "years", "mo": "months", "wk": "weeks", "d": "days", "h": "hours"}


def unit_words(code: str | None) -> str:
    """The unit of that code, as one reads it; empty where there is none."""
    return _WORDS.get(code or "", code or "")
