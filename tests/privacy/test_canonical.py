"""Canonical JSON: RFC 8785 as it is written, and nothing but it is read."""

from __future__ import annotations

import json
import math
import os
import struct
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.canonical import (
    MAX_SAFE_INTEGER,
    CanonicalError,
    canonical_bytes,
    check_digest,
    digest,
    parse_canonical,
)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_SAFE_INTEGER, MAX_SAFE_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_what_is_written_reads_back_and_is_written_the_same(value: Any) -> None:
    data = canonical_bytes(value)
    assert canonical_bytes(parse_canonical(data)) == data


@given(VALUES)
def test_only_the_canonical_spelling_is_read(value: Any) -> None:
    data = canonical_bytes(value)
    for text in (json.dumps(value), json.dumps(value, indent=1), json.dumps(value, ensure_ascii=False)):
        if text.encode() != data:
            with pytest.raises(CanonicalError):
                parse_canonical(text.encode())


@given(st.binary(max_size=40))
def test_no_bytes_crash_the_reader(data: bytes) -> None:
    try:
        value = parse_canonical(data)
    except CanonicalError:
        return
    assert canonical_bytes(value) == data


def test_rfc_8785_section_3_2_sample() -> None:
    """The input of section 3.2.2 gives the bytes of section 3.2.4."""
    text = (
        r'{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],'
        r'"string":"\u20ac$\u000F\u000aA\u0027\u0042\u0022\u005c\\\"\/","literals":[null,true,false]}'
    )
    expected = (
        r'{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        r'"string":"€$\u000f\nA'
        "'"
        r'B\"\\\\\"/"}'
    ).encode()
    assert canonical_bytes(json.loads(text)) == expected
    assert canonical_bytes(parse_canonical(expected)) == expected


def test_rfc_8785_section_3_2_3_order_is_that_of_utf_16() -> None:
    value = {
        "\u20ac": "Euro Sign",
        "\r": "Carriage Return",
        "\ufb33": "Hebrew Letter Dalet With Dagesh",
        "1": "One",
        "\U0001f600": "Emoji: Grinning Face",
        "\u0080": "Control",
        "\u00f6": "Latin Small Letter O With Diaeresis",
    }
    data = canonical_bytes(value)
    assert list(json.loads(data)) == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    assert parse_canonical(data) == value, "the emoji stands before the dalet, unlike in Python's order"


@pytest.mark.parametrize(
    ("bits", "text"),
    [
        ("0000000000000000", "0"),
        ("8000000000000000", "0"),
        ("0000000000000001", "5e-324"),
        ("8000000000000001", "-5e-324"),
        ("7fefffffffffffff", "1.7976931348623157e+308"),
        ("4340000000000000", "9007199254740992"),
        ("c340000000000000", "-9007199254740992"),
        ("4430000000000000", "295147905179352830000"),
        ("44b52d02c7e14af5", "9.999999999999997e+22"),
        ("44b52d02c7e14af6", "1e+23"),
        ("444b1ae4d6e2ef4e", "999999999999999700000"),
        ("444b1ae4d6e2ef50", "1e+21"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
        ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("41b3de4355555555", "333333333.3333333"),
        ("becbf647612f3696", "-0.0000033333333333333333"),
    ],
)
def test_rfc_8785_appendix_b_numbers(bits: str, text: str) -> None:
    (value,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical_bytes(value) == text.encode()
    assert float(parse_canonical(text.encode())) == value


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"a":1}',
        b'{"a":1,"a":2}',
        b'{"a":{"b":1,"b":1}}',
        b'{"b":1,"a":1}',
        b'{"a": 1}',
        b' {"a":1}',
        b'{"a":1}\n',
        b'{"a":1}{}',
        b"\xef\xbb\xbf{}",
        b"1.0",
        b"-0",
        b"1E2",
        b"1e2",
        b"01",
        b"+1",
        b"9007199254740993",
        b"1e400",
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b'"\\u0041"',
        b'"\\/"',
        b'"\\ud800"',
        b'"\xed\xa0\x80"',
        b'"\xff"',
        b'"\x01"',
        b"'a'",
        b"{",
        b"",
        b"[" * 65 + b"]" * 65,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"\xf0\x9f\x98\x80":1,"\xee\x80\x80":1,"\xf0\x9f\x98\x80":1}',
    ],
)
def test_other_spellings_are_refused(data: bytes) -> None:
    with pytest.raises(CanonicalError):
        parse_canonical(data)


def test_depth_64_is_read_and_brackets_in_text_are_no_depth() -> None:
    deep = b"[" * 64 + b"]" * 64
    assert canonical_bytes(parse_canonical(deep)) == deep
    assert parse_canonical(b'"' + b"[" * 100 + b'"') == "[" * 100


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, 2**53, -(2**53), "\ud800", {1: 2}, {1, 2}, b"x", object()]
)
def test_what_has_no_canonical_form_raises(value: Any) -> None:
    with pytest.raises(CanonicalError):
        canonical_bytes(value)


def test_a_digest_names_a_value_not_a_spelling() -> None:
    assert digest({"b": 1, "a": 2.0}) == digest({"a": 2, "b": 1})
    assert digest({}) == "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert check_digest(digest({}), name="x") == digest({})
    for wrong in ("", "sha256:" + "A" * 64, "sha256:" + "0" * 63, digest({}) + "\n", None):
        with pytest.raises(ValueError, match="x is"):
            check_digest(wrong, name="x")


def jcs_samples() -> dict[str, tuple[bytes, bytes]]:
    """The cyberphone/json-canonicalization samples as name: (input, output); empty where the data is absent."""
    root = os.environ.get("FEDTWIN_DATA")
    archive = Path(root or ".") / "vectors" / "jcs_testdata.tar.gz"
    if root is None or not archive.is_file():
        return {}
    with tarfile.open(archive) as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar.getmembers() if m.isfile()}  # type: ignore[union-attr]
    inputs = {Path(name).name: data for name, data in files.items() if "/input/" in f"/{name}"}
    outputs = {Path(name).name: data for name, data in files.items() if "/output/" in f"/{name}"}
    return {name: (data, outputs[name]) for name, data in inputs.items()}


def test_the_rfc_8785_sample_files_are_written_and_read_as_published() -> None:
    samples = jcs_samples()
    if not samples:
        pytest.skip("FEDTWIN_DATA has no vectors/jcs_testdata.tar.gz: the RFC 8785 sample files were NOT run")
    assert len(samples) >= 6
    for name, (given_text, expected) in samples.items():
        assert canonical_bytes(json.loads(given_text)) == expected, name
        assert canonical_bytes(parse_canonical(expected)) == expected, name
        if given_text != expected:
            with pytest.raises(CanonicalError):
                parse_canonical(given_text)
