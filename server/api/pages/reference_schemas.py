"""JSON Schema, as the API's description has it, as rows that a person reads: one per field, under its whole name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Schema = Mapping[str, Any]
MAX_DEPTH = 5
_LIMITS = (
    ("minimum", "maximum", ""),
    ("minLength", "maxLength", " characters"),
    ("minItems", "maxItems", " items"),
)


@dataclass(frozen=True, kw_only=True)
class Field:
    """A field of a body, or a parameter.

    Attributes:
        name: with those that it lies in: `files[].digest`.
        kind: in JSON's words.
        limits: what its value must keep, in words.
        text: what it is; Markdown.
        is_needed: whether it must be there (of an answer: is).
    """

    name: str
    kind: str
    limits: tuple[str, ...] = ()
    text: str = ""
    is_needed: bool = False


def read_fields(schema: Schema, schemas: Mapping[str, Schema], *, prefix: str = "") -> list[Field]:
    """The fields of an object, those inside of it behind it.

    Args:
        schema: of the object; anything else has no fields.
        schemas: those that it refers to, by name.
        prefix: name of what it lies in.
    """
    return list(_fields(schema, schemas, prefix, depth=0, seen=frozenset()))


def read_field(
    name: str, schema: Schema, schemas: Mapping[str, Schema], *, text: str, is_needed: bool
) -> Field:
    """One field by its schema."""
    plain = _resolved(schema, schemas)
    return Field(
        name=name,
        kind=kind_of(schema, schemas),
        limits=tuple(_limits(plain, schemas)),
        text=text or str(schema.get("description", "")),
        is_needed=is_needed,
    )


def kind_of(schema: Schema, schemas: Mapping[str, Schema]) -> str:
    """What a value is: `string`, `array of object`, `integer or null`."""
    plain = _resolved(schema, schemas)
    choices = _choices(plain)
    if choices:
        return " or ".join(dict.fromkeys(kind_of(one, schemas) for one in choices))
    kind = str(plain.get("type", "string" if "enum" in plain or "const" in plain else "any value"))
    if kind == "array":
        inner = kind_of(plain.get("items", {}), schemas)
        return f"array of ({inner})" if " or " in inner else f"array of {inner}"
    if kind == "object" and isinstance(values := plain.get("additionalProperties"), Mapping):
        return f"object of {kind_of(values, schemas)} by name"
    form = plain.get("format")
    return f"{kind} ({form})" if form else kind


def _fields(
    schema: Schema, schemas: Mapping[str, Schema], prefix: str, *, depth: int, seen: frozenset[str]
) -> Iterator[Field]:
    name = str(schema.get("$ref", ""))
    plain = _resolved(schema, schemas)
    if depth > MAX_DEPTH or name in seen:
        return
    seen = seen | {name} if name else seen
    for one in _choices(plain):
        yield from _fields(one, schemas, prefix, depth=depth, seen=seen)
    if plain.get("type") == "array":
        yield from _fields(plain.get("items", {}), schemas, f"{prefix}[]", depth=depth + 1, seen=seen)
    needed = set(plain.get("required", ()))
    for inner, value in plain.get("properties", {}).items():
        whole = f"{prefix}.{inner}" if prefix else str(inner)
        yield read_field(whole, value, schemas, text="", is_needed=inner in needed)
        yield from _fields(value, schemas, whole, depth=depth + 1, seen=seen)


def _limits(schema: Schema, schemas: Mapping[str, Schema]) -> Iterator[str]:
    parts = [_resolved(one, schemas) for one in _choices(schema)] or [schema]
    for part in parts:
        if "enum" in part:
            yield "one of " + ", ".join(map(str, part["enum"]))
        if "const" in part:
            yield f"always {part['const']}"
        for least, most, of in _LIMITS:
            low, high = (_number(part.get(name)) for name in (least, most))
            if low and high:
                yield f"{low} to {high}{of}"
            elif low or high:
                yield f"at {'least' if low else 'most'} {low or high}{of}"
        if isinstance(items := part.get("items"), Mapping):
            plain = _resolved(items, schemas)
            if "enum" in plain:
                yield "each one of " + ", ".join(map(str, plain["enum"]))
        if "pattern" in part:
            yield f"matches {part['pattern']}"
    if schema.get("default") is not None:
        yield f"by default {_shown(schema['default'])}"


def _choices(schema: Schema) -> list[Schema]:
    return [one for kind in ("anyOf", "oneOf", "allOf") for one in schema.get(kind, ())]


def _resolved(schema: Schema, schemas: Mapping[str, Schema]) -> Schema:
    """The schema that a reference means, with what stands beside the reference."""
    if "$ref" not in schema:
        return schema
    beside = {name: value for name, value in schema.items() if name != "$ref"}
    return {**_resolved(schemas[str(schema["$ref"]).rpartition("/")[2]], schemas), **beside}


def _number(value: float | None) -> str:
    """For people; empty where there is none. JSON Schema has whole numbers as 1.0 too."""
    if value is None:
        return ""
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _shown(value: object) -> str:
    if value == []:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
