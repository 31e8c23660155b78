"""`/docs`: the whole OpenAPI document as pages of our own, for anybody, with nothing from elsewhere."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from models.condition_reader import parse_condition
from models.schema import StudySchema
from server.api.pages.reference import CONDITIONS, operation_name, prose, read_areas
from server.api.pages.reference_schemas import kind_of, read_fields
from server.api.problems import KINDS

METHODS = {"get", "head", "post", "put", "delete"}


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'fedtwin.db'}"  # no database is asked


@pytest.fixture
def document(api) -> dict:
    return api.client.app.openapi()


def _page(api, path: str) -> str:
    answer = api.client.get(path, headers={"Accept": "text/html"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/html")
    return answer.text


def _sections(page: str) -> dict[str, str]:
    """Each operation's section by its name, as text."""
    parts = re.findall(
        r'<section class="operation" aria-labelledby="([^"]+)">(.*?)</section>', page, re.DOTALL
    )
    return {name: html.unescape(re.sub(r"<[^>]+>", " ", text)) for name, text in parts}


def test_every_operation_has_a_section_with_its_parameters_fields_answers_and_a_command(
    api, document
) -> None:
    overview, pages = _page(api, "/docs"), {}
    for path, operations in document["paths"].items():
        for method in METHODS & set(operations):
            operation, name = operations[method], operation_name(method, path)
            area = operation["tags"][0]
            assert f'href="/docs/{area}#{name}"' in overview, name
            pages[area] = pages.get(area) or _page(api, f"/docs/{area}")
            assert pages[area].count(f'id="{name}"') == 1, name
            text = _sections(pages[area])[name]
            assert f"{method.upper()}   {path}" in text or f"{method.upper()} {path}" in " ".join(
                text.split()
            )
            for told in [*operation.get("parameters", ()), {"name": operation["summary"]}]:
                assert told["name"] in text, name
            for status, answer in operation["responses"].items():
                assert status in text
                assert all(header in text for header in answer.get("headers", ())), name
            for scope in operation.get("security", [{}])[0].get("API key", ()):
                assert f"scope  {scope}" in text, name
            assert "curl" in text
    assert set(pages) == {tag["name"] for tag in document["tags"]}


def test_the_fields_of_bodies_stand_with_their_bounds(api) -> None:
    text = " ".join(_sections(_page(api, "/docs/cohorts"))["post-cohorts"].split())
    assert "num_patients required integer, 1 to 10,000,000" in text
    assert "each one of csv, parquet, jsonl, fhir, omop, png, dicom, zip" in text
    assert "by default csv, parquet" in text
    assert "files[].digest" in text
    assert "Idempotency-Key" in text
    assert '"conditions": [ "age >= 60", "sex == \'female\'" ]' in text
    assert 'curl -X POST \\ -H "Authorization: Bearer $FEDTWIN_KEY" \\' in text


def test_every_kind_of_problem_that_the_coordinator_gives_is_explained(api) -> None:
    page = _page(api, "/docs")
    for name, kind in KINDS.items():
        assert f'id="problem-{name}"' in page
        assert str(prose(kind.advice)) in page
    used = set()
    for path in Path(__file__).resolve().parents[2].joinpath("server/api").rglob("*.py"):
        text = path.read_text()
        used |= {
            kind
            for _, kind in re.findall(
                r'(?:ProblemError|_answer)\(\s*(?:request, )?(\d{3}), "([a-z-]+)"', text
            )
        }
    assert used <= set(KINDS)
    assert len(used) > 10


def test_nobody_needs_a_key_and_nothing_is_loaded_from_elsewhere(api) -> None:
    for path in ("/docs", "/docs/cohorts", "/docs/keys"):
        page = _page(api, path)
        assert set(re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="([^"]+)"', page)) == {
            "/static/fedtwin.svg", "/static/fedtwin.css", "/static/htmx.min.js",
        }  # fmt: skip
        answer = api.client.get(path)
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    missing = api.client.get("/docs/nothing")
    assert missing.status_code == 404
    assert "'cohorts'" in missing.json()["detail"]


def test_every_link_inside_leads_somewhere(api, document) -> None:
    pages = {
        path: _page(api, path) for path in ("/docs", *(f"/docs/{name}" for name in read_areas(document)))
    }
    for where, page in pages.items():
        names = re.findall(r'\sid="([^"]+)"', page)
        assert len(names) == len(set(names)), where
        for target in re.findall(r'href="((?:/docs)?[^":]*#[^"]*|/docs[^"]*)"', page):
            path, _, name = html.unescape(target).partition("#")
            assert path in ("", *pages), (where, target)
            assert not name or f'id="{name}"' in pages[path or where], (where, target)


def test_both_forms_of_every_condition_that_is_shown_are_read_and_mean_the_same(api) -> None:
    columns = [
        {"name": "age", "kind": "integer", "minimum": 0, "maximum": 99},
        {"name": "sex", "kind": "categorical", "categories": ["female", "male"]},
        {"name": "smoker", "kind": "boolean", "missing": True},
        {"name": "ward", "kind": "categorical", "categories": ["A", "B", "C"]},
        {"name": "admitted", "kind": "date", "minimum": "2024-01-01", "maximum": "2025-01-01"},
        *(
            {"name": name, "kind": "continuous", "minimum": 0, "maximum": 300, "missing": True}
            for name in ("chol", "diastolic", "systolic", "capital-gain")
        ),
    ]
    schema = StudySchema.model_validate({"columns": columns})
    page = html.unescape(_page(api, "/docs"))
    for one in CONDITIONS:
        assert parse_condition(one.text, schema) == parse_condition(one.data, schema), one.text
        assert f"<code>{one.text}</code>" in page


def test_schemas_become_words() -> None:
    schemas = {"Node": {"type": "object", "properties": {"next": {"$ref": "#/components/schemas/Node"}}}}
    assert [one.name for one in read_fields(schemas["Node"], schemas)] == ["next", "next.next"]
    assert kind_of({"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]}, {}) == (
        "string (date-time) or null"
    )
    assert kind_of({"type": "array", "items": {"type": "array", "items": {}}}, {}) == (
        "array of array of any value"
    )
    assert str(prose("a `<b>` **c**\n\nd")) == "<p>a <code>&lt;b&gt;</code> <strong>c</strong></p><p>d</p>"


def test_headers_that_the_document_promises_are_sent(api, scenario, document) -> None:
    release = scenario.release().digest
    asked = {
        ("get", "/v1/releases"): api.get("researcher", "/v1/releases"),
        ("get", "/v1/releases/{digest}"): api.get("researcher", f"/v1/releases/{release}"),
        ("post", "/v1/cohorts"): api.post(
            "researcher", "/v1/cohorts", {"release": release, "num_patients": 5}
        ),
        ("post", "/v1/keys"): api.post("operator", "/v1/keys", {"role": "auditor", "owner": "ann"}),
        ("post", "/v1/runs"): api.post("operator", "/v1/runs", {"study": "heart"}),
        ("post", "/v1/keys/current/rotate"): api.post("stranger", "/v1/keys/current/rotate", {}),
        ("delete", "/v1/keys/{prefix}"): api.call("auditor", "DELETE", "/v1/keys/aaaaaaaaaa"),
        ("get", "/v1/keys"): api.get("auditor", "/v1/keys"),
    }
    for (method, path), answer in asked.items():
        told = document["paths"][path][method]["responses"][str(answer.status_code)]
        promised = {name.lower() for name in told.get("headers", ())}
        assert promised or answer.status_code == 404, path
        assert promised <= set(answer.headers), (path, promised)
