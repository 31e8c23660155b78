"""What is wrong with a request's fields, in sentences: the field, its value, what it must be. Pydantic finds it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

MAX_SHOWN = 200
_WORDS = (
    (re.compile(r"^(Input|String|List|Dictionary|Value|Number) should "), "it must "),
    (re.compile(r" valid dictionary or object to extract fields from$"), "n object"),
    (re.compile(r" valid dictionary$"), "n object"),
    (re.compile(r" after validation, not \d+$"), ""),
)


def read_faults(errors: Sequence[Mapping[str, Any]], body: Any) -> list[tuple[str, str]]:
    """Pydantic's errors as (field, sentence); what may be one thing or another is one fault.

    Args:
        errors: as `RequestValidationError.errors` gives them.
        body: what was sent, parsed.
    """
    found: dict[str, tuple[Any, list[str]]] = {}
    alternatives = set()
    for error in errors:
        name, value, is_alternative = _place(error, body)
        said = found.setdefault(name, (value, []))[1]
        said.append(_said(error))
        if is_alternative:
            alternatives.add(name)
    # Where one alternative was right about the outside, what is wrong lies within.
    outer = {name for name in alternatives if any(other.startswith(f"{name}.") for other in found)}
    return [(name, _sentence(name, *told)) for name, told in found.items() if name not in outer]


def _place(error: Mapping[str, Any], body: Any) -> tuple[str, Any, bool]:
    """(the field's name, its value, whether pydantic speaks of one of several kinds that it may be)."""
    where, *parts = error["loc"]
    if where != "body":
        return ".".join(map(str, parts)) or str(where), error.get("input"), False
    names, value, is_alternative = [], body, False
    for part in parts:
        absent = error["type"] == "missing" and part == parts[-1]
        if isinstance(value, Mapping) and (part in value or absent):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:  # the name of a kind
            is_alternative = True
            continue
        names.append(str(part))
    return ".".join(names) or "body", value, is_alternative


def _said(error: Mapping[str, Any]) -> str:
    if error["type"] == "missing":
        return "missing"
    if error["type"] == "json_invalid":
        reason = str(error.get("ctx", {}).get("error", "it cannot be read"))
        return f"not JSON: {reason}, at character {error['loc'][-1]}"
    if error["type"] == "extra_forbidden":
        return "there is no field of this name here; /docs has those that there are"
    text = str(error["msg"])
    for pattern, better in _WORDS:
        text = pattern.sub(better, text)
    return text


def _sentence(name: str, value: Any, said: list[str]) -> str:
    if said == ["missing"] or said[0].startswith("not JSON"):
        return f"{'the body' if name == 'body' else name} is {said[0]}"
    shown = repr(value)
    if len(shown) > MAX_SHOWN:
        shown = shown[:MAX_SHOWN] + "..."
    first, *others = dict.fromkeys(said)
    return f"{name} is {shown}: " + " or ".join([first, *(one.removeprefix("it must be ") for one in others)])
