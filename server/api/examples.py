"""An example for every operation of the OpenAPI document, where its author gave none: put together from its fields'.

A field's own `examples` come first, then its default, then what its kind and name suggest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_DIGEST = "sha256:" + "4f" * 32
_MOMENT = "2026-03-01T12:00:00Z"
# What a field or parameter of this name looks like, or of this name in the schema of that title; of several kinds the
# one that fits. None: most often it is null.
_NAMED: Mapping[str, Any] = {
    "digest": _DIGEST,
    "release": _DIGEST,
    "study_digest": _DIGEST,
    "weights_digest": _DIGEST,
    "policy_digest": _DIGEST,
    "generator": _DIGEST,
    "app_digest": "4f" * 32,
    "study": "heart",
    "title": "Heart disease at three hospitals",
    "description": "Adults who were examined for chest pain.",
    "site": "saint-mary",
    "sites": ["saint-mary", "north"],
    "name": "heart",
    "identifier": "b7Qx0aTk",
    "invitation": "b7Qx0aTk",
    "secret": "Zm9v...",
    "coordinator": "coordinator",
    "api_url": "https://coordinator.example.org",
    "ca_certificate": "-----BEGIN CERTIFICATE-----\nMIIB...\n-----END CERTIFICATE-----\n",
    "ca_fingerprint": "sha256:" + "9c" * 32,
    "ledger_key": "coordinator+937acbfd+AYaH...",
    "receipt_key": "saint-mary+1a2b3c4d+AZx...",
    "node_id": "8402731951706",
    "policy": {"epsilon_per_study": "3.0", "epsilon_total": "10.0", "max_delta": "1e-05"},
    "owner": "rita",
    "created_by": "olga",
    "started_by": "olga",
    "decided_by": "",
    "answered_at": None,
    "decided_at": None,
    "ended_at": None,
    "revoked_at": None,
    "replaced_by": None,
    "missing": None,
    "scopes": ["releases:read", "cohorts:read", "cohorts:write"],
    "rows_per_day": 1_000_000,
    "rows_left_today": 995_000,
    "expires_at": "2027-03-01T12:00:00Z",
    "run": "run-5b1e0c77a2d4",
    "run_id": "run-5b1e0c77a2d4",
    "cohort_id": "cohort-3f2a9c01d4e5",
    "prefix": "abcdefghij",
    "version": "0.1.0",
    "unit": "a",
    "role": "researcher",
    "phase": "refine",
    "round": 4,
    "rounds": 10,
    "percent": 40.0,
    "eta_seconds": 61.5,
    "attempt": 1,
    "seconds": 9.8,
    "scores": {"misfit": "0.031"},
    "level": "info",
    "text": "round 4 is recorded",
    "trust": "local",
    "modality": "table",
    "epsilon": 3.0,
    "delta": 1e-05,
    "reason": "",
    "definition": {"name": "heart", "privacy": {"epsilon": 3.0, "delta": 1e-05}},
    "conditions": ["age >= 60 and sex == 'female'"],
    "columns": ["age", "sex"],
    "columns_left_out": {},
    "categories": None,
    "minimum": 18,
    "maximum": 99,
    "levels": 82,
    "label": "ill",
    "limits_of_use": [
        "For exploring and planning; a final figure comes from an analysis where the patients are."
    ],
    "share_of_release": 0.137,
    "effective_components": 12.4,
    "effective_sample_size": 20,
    "ledger_index": 42,
    "index": 42,
    "size": 57,
    "logged_at": "2026-03-01T12:00:00.000Z",
    "body": {"site": "saint-mary", "run": "run-5b1e0c77a2d4", "round": 4},
    "canonical": "eyJib2R5Ijp7...",
    "hashes": ["5f" * 32, "a1" * 32],
    "next_cursor": "MjAyNi0wMy0wMVQxMjowMDowMCswMDowMHxjb2hvcnQtM2Yy...",
    "envelope": {"payloadType": "...", "payload": "eyJ...", "signatures": [{"keyid": "...", "sig": "..."}]},
    "WordTaken.state": "left",
    "ColumnOut.name": "age",
    "ColumnOut.title": "Age in years",
    "ColumnOut.description": "Completed years at the examination.",
    "ColumnOut.missing": False,
    "FileOut.name": "cohort.csv",
    "FormatOut.name": "fhir",
    "SiteOut.name": "saint-mary",
    "SiteOut.title": "Saint Mary Hospital",
    "NewInvitationOut.text": "fedtwin-invitation:...",
    "SpendOut.round": 4,
}
# A whole value of the schema of that title, where its fields depend on each other.
_WHOLE: Mapping[str, Any] = {
    "CohortOut": {
        "id": "cohort-3f2a9c01d4e5",
        "owner": "rita",
        "state": "completed",
        "release": _DIGEST,
        "num_patients": 5000,
        "seed": 7,
        "conditions": ["age >= 60", "sex == 'female'"],
        "columns": [],
        "formats": ["csv", "parquet"],
        "percent": 100.0,
        "patients_done": 5000,
        "eta_seconds": None,
        "reason": "",
        "files": [
            {
                "name": "cohort.parquet",
                "num_bytes": 48213,
                "digest": "sha256:" + "9c" * 32,
                "media_type": "application/vnd.apache.parquet",
                "url": "/v1/cohorts/cohort-3f2a9c01d4e5/files/cohort.parquet",
            }
        ],
        "ledger_index": 42,
        "created_at": _MOMENT,
        "started_at": "2026-03-01T12:00:01Z",
        "ended_at": "2026-03-01T12:00:03Z",
        "expires_at": "2026-03-31T12:00:03Z",
        "deleted_at": None,
    }
}
_BY_FORMAT = {"date-time": _MOMENT, "date": "2026-03-01"}
_MAX_DEPTH = 12

Schema = Mapping[str, Any]


def add_examples(document: dict[str, Any]) -> None:
    """Give every JSON body, question or answer, and every parameter that must be there an example, in place."""
    schemas = document["components"]["schemas"]
    for operations in document["paths"].values():
        for operation in operations.values():
            bodies = [*operation["responses"].values(), operation.get("requestBody", {})]
            for body in bodies:
                for kind, content in body.get("content", {}).items():
                    if "json" in kind and "schema" in content and not {"example", "examples"} & set(content):
                        content["example"] = example_of(content["schema"], schemas)
            for parameter in operation.get("parameters", ()):
                if parameter.get("required") and "example" not in parameter:
                    parameter["example"] = example_of(parameter["schema"], schemas, name=parameter["name"])


def example_of(schema: Schema, schemas: Schema, *, name: str = "", of: str = "", depth: int = 0) -> Any:
    """A value that the schema allows.

    Args:
        schema: of JSON Schema, as FastAPI writes it.
        schemas: those that it refers to, by name.
        name: of the field.
        of: title of the schema that the field belongs to.
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
    for known in (f"{of}.{name}", name):
        if known in _NAMED and _fits(_NAMED[known], schema):
            return _NAMED[known]
    if choices:
        chosen = next((one for one in choices if one.get("type") != "null"), choices[0])
        return example_of(chosen, schemas, name=name, of=of, depth=depth + 1)
    if schema.get("default") is not None:
        return schema["default"]
    return _of_type(schema, schemas, depth)


def _fits(value: Any, schema: Schema) -> bool:
    kinds: Mapping[str, tuple[type, ...]] = {
        "string": (str,),
        "integer": (int,),
        "number": (int, float),
        "boolean": (bool,),
        "object": (dict,),
        "null": (type(None),),
    }
    if "anyOf" in schema:
        return any(_fits(value, one) for one in schema["anyOf"])
    if isinstance(value, list):
        return schema.get("type") == "array" and all(_fits(one, schema.get("items", {})) for one in value)
    if isinstance(value, bool) and schema.get("type") != "boolean":
        return False
    if isinstance(value, str) and "format" in schema:
        return "T" in value and schema["format"] == "date-time"
    return "properties" not in schema and isinstance(value, kinds.get(str(schema.get("type")), ()))


def _of_type(schema: Schema, schemas: Schema, depth: int) -> Any:
    kind = schema.get("type")
    if kind == "object":
        if depth > _MAX_DEPTH:
            return {}
        title = str(schema.get("title", ""))
        if title in _WHOLE:
            return _WHOLE[title]
        return {
            field: example_of(one, schemas, name=field, of=title, depth=depth + 1)
            for field, one in schema.get("properties", {}).items()
        }
    if kind == "array":
        if depth > _MAX_DEPTH:
            return []
        return [example_of(schema.get("items", {}), schemas, depth=depth + 1)]
    if kind == "string":
        return _BY_FORMAT.get(schema.get("format", ""), "text")
    if kind in ("integer", "number"):
        least = schema.get("minimum", 1)
        return max(int(least) if least == int(least) else least, 1)
    return {"boolean": True, "null": None}.get(str(kind), {})
