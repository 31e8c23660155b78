"""The OpenAPI document: it reads well, and its examples are what it describes."""

from __future__ import annotations

import json

import pytest


def test_the_openapi_document_reads_well(api) -> None:
    document = api.client.app.openapi()
    assert json.dumps(document)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (method, path)
            assert operation["description"], (method, path)
            assert operation["tags"], (method, path)
            problems = {code: r for code, r in operation["responses"].items() if code >= "400"}
            assert problems
            # RFC 6749 prescribes the form of what is wrong with a client.
            own = {"400", "401"} if path == "/v1/oauth/token" else set()
            for code, response in problems.items():
                kind = "application/json" if code in own else "application/problem+json"
                assert list(response["content"]) == [kind], (path, code)
    assert "HTTPValidationError" not in document["components"]["schemas"]
    assert document["components"]["securitySchemes"]["API key"]["scheme"] == "bearer"


def test_every_operation_has_examples_and_they_fit_their_schemas(api) -> None:
    document = api.client.app.openapi()
    jsonschema_rs = pytest.importorskip(
        "jsonschema_rs", reason="it comes with schemathesis, in the dev extra"
    )

    def check(schema: dict, example: object, where: tuple) -> None:
        whole = {**schema, "components": document["components"]}
        faults = list(jsonschema_rs.validator_for(whole).iter_errors(example))
        assert not faults, (where, faults[0].message, example)

    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            bodies = [*operation["responses"].items(), ("body", operation.get("requestBody", {}))]
            for name, body in bodies:
                for kind, content in body.get("content", {}).items():
                    if "schema" in content and "json" in kind:
                        check(content["schema"], content["example"], (path, method, name))
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    check(parameter["schema"], parameter["example"], (path, method, parameter["name"]))
