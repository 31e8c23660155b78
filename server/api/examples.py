"""An example for every operation of the OpenAPI document, where its author gave none: put together from its fields'.

A field's own `examples` come first, then its default, then what its kind and name suggest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_DIGEST = "sha256:" + "4f" * 32
# What a field or parameter of this name looks like.
_NAMED: Mapping[str, Any] = {
    "digest": _DIGEST,
    "release": _DIGEST,
    "study_digest": _DIGEST,
    "weights_digest": _DIGEST,
    "policy_digest": _DIGEST,
    "study": "heart",
    "title": "Heart disease at three hospitals",
    "site": "saint-mary",
    "sites": ["saint-mary", "north"],
    "name": "heart",
    "owner": "rita",
    "created_by": "olga",
    "started_by": "olga",
    "run": "run-5b1e0c77a2d4",
    "run_id": "run-5b1e0c77a2d4",
    "cohort_id": "cohort-3f2a9c01d4e5",
    "prefix": "abcdefghij",
    "version": "0.1.0",
    "unit": "a",
    "role": "researcher",
    "phase": "refine",
    "trust": "local",
    "modality": "table",
}
_BY_FORMAT = {"date-time": "2026-03-01T12:00:00Z", "date": "2026-03-01"}
_MAX_DEPTH = 12

Schema = Mapping[str, Any]


def add_examples(document: dict[str, Any]) -> None:
    """Give every JSON body, question or answer, and every parameter in a path an example, in place."""
    schemas = document["components"]["schemas"]
    for operations in document["paths"].values():
        for operation in operations.values():
            bodies = [*operation["responses"].values(), operation.get("requestBody", {})]
            for body in bodies:
                for kind, content in body.get("content", {}).items():
                    if "json" in kind and "schema" in content and not {"example", "examples"} & set(content):
                        content["example"] = example_of(content["schema"], schemas)
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path" and "example" not in parameter:
                    parameter["example"] = example_of(parameter["schema"], schemas, name=parameter["name"])


def example_of(schema: Schema, schemas: Schema, *, name: str = "", depth: int = 0) -> Any:
    """A value that the schema allows.

    Args:
        schema: of JSON Schema, as FastAPI writes it.
        schemas: those that it refers to, by name.
        name: of the field.
        depth: how deep in the whole it stands.
    """
    if "$ref" in schema:
        return example_of(schemas[schema["$ref"].rpartition("/")[2]], schemas, name=name, depth=depth + 1)
    for given in ("example", "const"):
        if given in schema:
            return schema[given]
    for given in ("examples", "enum"):
        if schema.get(given):
            return schema[given][0]
    choices = [one for kind in ("anyOf", "oneOf", "allOf") for one in schema.get(kind, ())]
    if choices:
        chosen = next((one for one in choices if one.get("type") != "null"), choices[0])
        return example_of(chosen, schemas, name=name, depth=depth + 1)
    if schema.get("default") is not None:
        return schema["default"]
    return _of_type(schema, schemas, name, depth)


def _of_type(schema: Schema, schemas: Schema, name: str, depth: int) -> Any:
    kind = schema.get("type")
    known = _NAMED.get(name)
    if kind == "object":
        properties = schema.get("properties", {})
        if depth > _MAX_DEPTH:
            return {}
        return {
            field: example_of(one, schemas, name=field, depth=depth + 1) for field, one in properties.items()
        }
    if kind == "array":
        if isinstance(known, list):
            return known
        if depth > _MAX_DEPTH:
            return []
        return [example_of(schema.get("items", {}), schemas, depth=depth + 1)]
    if kind == "string":
        return known if isinstance(known, str) else _BY_FORMAT.get(schema.get("format", ""), "text")
    if kind in ("integer", "number"):
        return max(schema.get("minimum", 1), 1)
    return {"boolean": True, "null": None}.get(str(kind), {})
