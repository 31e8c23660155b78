"""Canonical JSON: one value, one byte string, so that a digest or a signature means the value.

Writing follows RFC 8785 (JCS). Reading is stricter than JSON: bytes that are not exactly what writing
their value gives are refused, so duplicate names, other spacing, other number spellings, byte order
marks and lone surrogates all are.

References: RFC 8785, sections 3.1 (I-JSON, RFC 7493) and 3.2.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Final

import rfc8785

MAX_SAFE_INTEGER: Final = 2**53 - 1
MAX_DEPTH: Final = 64
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_ASTRAL: Final = re.compile(rb"[\xf0-\xf4]")


class CanonicalError(ValueError):
    """Bytes that are not canonical JSON, or a value that has no canonical JSON."""


def canonical_bytes(value: Any) -> bytes:
    """The RFC 8785 form of `value`.

    Args:
        value: None, bool, int within 2^53 - 1, finite float, str, list, tuple or dict with str keys.

    Returns:
        UTF-8 bytes; equal for equal values.

    Raises:
        CanonicalError: the value has no such form (NaN, an integer beyond 2^53 - 1, a lone surrogate,
            another type).

    >>> canonical_bytes({"b": 1.0, "a": [True, None, "é"]})
    b'{"a":[true,null,"\\xc3\\xa9"],"b":1}'
    """
    try:
        return bytes(rfc8785.dumps(value))
    except (rfc8785.CanonicalizationError, RecursionError, UnicodeEncodeError) as error:
        raise CanonicalError(f"no canonical JSON for this value: {error}") from error


def digest(value: Any) -> str:
    """`sha256:` and the hexadecimal SHA-256 of the canonical bytes of `value`."""
    return digest_of_bytes(canonical_bytes(value))


def digest_of_bytes(data: bytes) -> str:
    """`sha256:` and the hexadecimal SHA-256 of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def check_digest(value: object, *, name: str) -> str:
    """Return `value` if it is `sha256:` and 64 lower-case hexadecimal digits.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, str) or _DIGEST.fullmatch(value) is None:
        raise ValueError(f"{name} is {value!r}; it must be sha256: and 64 lower-case hexadecimal digits")
    return value


class _NotPlainError(ValueError):
    """A number that only rfc8785 writes as ECMAScript does: the fast way of re-encoding would be wrong."""


def _refuse_float(text: str) -> float:
    raise _NotPlainError(text)


def _read_small(text: str) -> int:
    if len(text) > 15:
        raise _NotPlainError(text)
    return int(text)


def _read_number(text: str) -> int | float:
    return float(text) if len(text) > 310 or abs(int(text)) > MAX_SAFE_INTEGER else int(text)


def _refuse_constant(text: str) -> None:
    raise CanonicalError(f"{text} is not JSON")


_plain = json.JSONDecoder(parse_float=_refuse_float, parse_int=_read_small, parse_constant=_refuse_constant)
_any = json.JSONDecoder(parse_int=_read_number, parse_constant=_refuse_constant)
_write_plain = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False, check_circular=False
).encode


def parse_canonical(data: bytes) -> Any:
    """Read canonical JSON.

    A round trip decides: the bytes must be exactly `canonical_bytes` of what they say. Numbers beyond
    2^53 - 1 in magnitude read as floats, as RFC 8785 writes them; integers come back as int.

    Args:
        data: the bytes, whole.

    Returns:
        dict, list, str, int, float, bool or None.

    Raises:
        CanonicalError: not JSON, not UTF-8, nested deeper than 64, or not the canonical form; the message says
            which.
    """
    value, problem = _scan(data)
    if problem is not None:
        raise CanonicalError(problem)
    return value


def _scan(data: bytes) -> tuple[Any, str | None]:
    try:
        text = data.decode("utf-8")
        # Python sorts names by code point, RFC 8785 by UTF-16 unit: they differ only beyond the basic plane.
        plain = text.isascii() or _ASTRAL.search(data) is None
        try:
            value = (_plain if plain else _any).decode(text)
        except _NotPlainError:
            plain, value = False, _any.decode(text)
    except UnicodeDecodeError as error:
        return None, f"not UTF-8 at byte {error.start}"
    except CanonicalError as error:
        return None, str(error)
    except RecursionError:
        return None, f"nested deeper than {MAX_DEPTH}"
    except (ValueError, OverflowError) as error:
        return None, f"not JSON: {error}"
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        return None, f"nested deeper than {MAX_DEPTH}"
    try:
        written = _write_plain(value).encode() if plain else canonical_bytes(value)
    except (CanonicalError, UnicodeEncodeError, ValueError) as error:
        return None, f"not canonical: {error}"
    return (value, None) if written == data else (None, _difference(data, written))


def _depth(value: Any) -> int:
    deepest, todo = 0, [(value, 1)]
    while todo:
        item, level = todo.pop()
        if isinstance(item, dict | list):
            deepest = max(deepest, level)
            children = item.values() if isinstance(item, dict) else item
            todo.extend((child, level + 1) for child in children)
    return deepest


def _difference(data: bytes, written: bytes) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(data, written, strict=False)) if a != b),
        min(len(data), len(written)),
    )
    return (
        f"not canonical from byte {at} (duplicate name, order of names, spacing, escape or number form): "
        f"{data[at : at + 24]!r} where RFC 8785 writes {written[at : at + 24]!r}"
    )
