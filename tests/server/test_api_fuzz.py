"""Whatever JSON comes, the API answers below 500 and in problem+json."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

text = st.text(st.characters(exclude_categories=()), max_size=30)
number = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
value = st.recursive(
    st.none() | st.booleans() | number | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
column = st.sampled_from(["sex", "age", "ill", "nothing"]) | text
condition = (
    text
    | value
    | st.fixed_dictionaries(
        {"column": column, "op": st.sampled_from(["==", "<", "in", "is missing", "?"]), "value": value}
    )
    | st.builds("{} {} {!r}".format, column, st.sampled_from(["==", "<", "in", "and", "not in", "is"]), value)
)
quick = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def _send(api, who: str, path: str, body: object, **options) -> None:
    import json

    content = json.dumps(body).encode()  # lone surrogates as escapes, as a hostile client would
    headers = {"Content-Type": "application/json", **options}
    answer = api.post(who, path, content=content, headers=headers)
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.fixture
def digest(scenario) -> str:
    return scenario.release().digest


@quick
@given(
    conditions=st.lists(condition, max_size=3) | value,
    extra=st.dictionaries(st.sampled_from(["seed", "formats", "num_patients", "x"]), value, max_size=2),
)
def test_no_cohort_request_breaks_the_api(api, digest: str, conditions, extra) -> None:
    _send(
        api,
        "researcher",
        "/v1/cohorts",
        {"release": digest, "num_patients": 5, "conditions": conditions, **extra},
    )


@quick
@given(
    body=st.dictionaries(
        st.sampled_from(["name", "receipt_key", "node_public_key", "policy", "title"]), value
    )
    | value
)
def test_no_site_card_breaks_the_api(api, scenario, body) -> None:
    good = {
        "name": "north",
        "receipt_key": scenario.keys["north"].public.text,
        "node_public_key": "ecdsa x",
        "policy": {},
    }
    _send(api, "operator", "/v1/sites", {**good, **body} if isinstance(body, dict) else body)


@quick
@given(
    place=st.sampled_from(["name", "title", "privacy", "table", "refine", "measure", "federation"]), new=value
)
def test_no_study_breaks_the_api(api, study, place: str, new) -> None:
    _send(api, "operator", "/v1/studies", {**study.to_dict(), place: new})


@quick
@given(body=value, path=st.sampled_from(["/v1/runs", "/v1/studies", "/v1/cohorts"]))
def test_no_body_breaks_the_api(api, body, path: str) -> None:
    _send(api, "operator", path, body)


@quick
@given(
    name=text,
    path=st.sampled_from(["studies", "sites", "runs", "releases", "cohorts", "ledger/checkpoint?size="]),
)
def test_no_name_breaks_the_api(api, name: str, path: str) -> None:
    from urllib.parse import quote

    end = quote(name.encode("utf-8", "surrogatepass"), safe="")
    target = f"/v1/{path}{end}" if path.endswith("=") else f"/v1/{path}/{end}"
    answer = api.get("operator", target)
    assert answer.status_code < 500, answer.text
