"""Conditions of any form as the text that people write: what `models.conditions` reads as the same."""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Mapping
from typing import Any


def where_text(conditions: Iterable[str | Mapping[str, Any]]) -> str:
    """Conditions that must all hold, as one; empty where there is none."""
    return _joined("and", [condition_text(one) for one in conditions])


def condition_text(condition: str | Mapping[str, Any]) -> str:
    """One condition, given as text or as JSON data that was accepted.

    >>> condition_text({"any": [{"column": "age", "op": ">=", "value": 60}, "not smoker"]})
    '(age >= 60) or (not smoker)'
    """
    if isinstance(condition, str):
        return condition.strip()
    if "not" in condition:
        return f"not ({condition_text(condition['not'])})"
    for key, word in (("all", "and"), ("any", "or")):
        if key in condition:
            return _joined(word, [condition_text(one) for one in condition[key]])
    if "sum" in condition:
        terms = (
            _column(name) if times == 1 else f"{_value(times)} * {_column(name)}"
            for name, times in condition["sum"].items()
        )
        left = " + ".join(terms).replace(" + -", " - ")
    else:
        left = _column(condition["column"])
    right = f" {_value(condition['value'])}" if "value" in condition else ""
    return f"{left} {condition['op']}{right}"


def _column(name: object) -> str:
    text = str(name)
    plain = text.isidentifier() and not keyword.iskeyword(text) and text.lower() not in ("true", "false")
    return text if plain else f"`{text}`"


def _joined(word: str, texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f" {word} ".join(f"({text})" for text in texts)


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    # A back-quote would begin a column's name.
    return repr(value).replace("`", "\\x60")
