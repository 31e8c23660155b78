"""Who sees which page: every cell of role x page, anonymous first; sessions, forms from elsewhere, headers, markup."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from models.study import Study
from server import cohorts, keys, releases, round_records, runs, sites
from server.api.auth import scope_of
from server.api.pages import mount
from server.api.pages.sessions import COOKIE, LIFETIME
from server.cohorts import CohortRequest
from server.tables import SiteRow

ORIGIN = "https://testserver"
pytestmark = pytest.mark.usefixtures("quick_previews")
EVERYBODY = {"operator", "researcher", "auditor"}
READERS = {"operator", "auditor"}
ASKERS = {"operator", "researcher"}
DIGEST = "sha256:" + "0" * 64
# What a session may do with each page; the others get 403. `test_the_table_of_pages_is_complete` keeps it whole.
PAGES = {
    ("GET", "/"): EVERYBODY,
    ("GET", "/releases/{digest}"): EVERYBODY,
    ("GET", "/releases/{digest}/pictures.png"): EVERYBODY,
    ("POST", "/releases/{digest}/publish"): {"operator"},
    ("POST", "/releases/{digest}/withhold"): {"operator"},
    ("POST", "/releases/{digest}/withdraw"): {"operator"},
    ("GET", "/cohorts"): ASKERS,
    ("POST", "/cohorts"): ASKERS,
    ("GET", "/cohorts/new"): ASKERS,
    ("POST", "/cohorts/estimate"): ASKERS,
    ("GET", "/cohorts/{cohort_id}"): ASKERS,
    ("GET", "/cohorts/{cohort_id}/progress"): ASKERS,
    ("POST", "/cohorts/{cohort_id}/cancel"): ASKERS,
    ("POST", "/cohorts/{cohort_id}/delete"): ASKERS,
    ("GET", "/cohorts/{cohort_id}/files/{name}"): ASKERS,
    ("GET", "/runs"): READERS,
    ("POST", "/runs"): {"operator"},
    ("GET", "/runs/{run_id}"): READERS,
    ("GET", "/runs/{run_id}/monitor"): READERS,
    ("POST", "/runs/{run_id}/stop"): {"operator"},
    ("POST", "/runs/{run_id}/resume"): {"operator"},
    ("GET", "/sites"): READERS,
    ("POST", "/sites/invitations"): {"operator"},
    ("POST", "/sites/{name}/approve"): {"operator"},
    ("POST", "/sites/{name}/deny"): {"operator"},
    ("POST", "/sites/{name}/state"): {"operator"},
    ("GET", "/spends"): READERS,
    ("GET", "/ledger"): READERS,
    ("GET", "/ledger/export"): READERS,
    ("GET", "/ledger/entries/{index}"): READERS,
    ("GET", "/keys"): EVERYBODY,
    ("POST", "/keys"): {"operator"},
    ("POST", "/keys/rotate"): EVERYBODY,
    ("POST", "/keys/{prefix}/revoke"): EVERYBODY,
    ("POST", "/sign-out"): EVERYBODY,
}
OPEN_PAGES = {("GET", "/sign-in"), ("POST", "/sign-in"), ("GET", "/docs"), ("GET", "/docs/{area}")}


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """The store's own tests hold for PostgreSQL."""
    return f"sqlite:///{tmp_path / 'fedtwin.db'}"


@dataclass
class Visitor:
    """A person's browser, as far as HTTP goes."""

    client: TestClient
    keys: dict[str, str]

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(path, follow_redirects=False, **options)

    def post(self, path: str, fields: dict[str, Any] | None = None, **options: Any) -> httpx.Response:
        data = {"form_token": self.form_token(), **(fields or {})}
        return self.client.post(path, data=data, follow_redirects=False, **options)

    def form_token(self) -> str:
        found = re.search(
            r'name="form_token" value="([^"]+)"', self.client.get("/sites/none", headers=HTML).text
        )
        return found[1] if found else ""

    def sign_in(self, who: str, *, key: str | None = None, target: str = "/") -> httpx.Response:
        self.client.cookies.clear()
        page = self.client.get("/sign-in").text
        token = re.search(r'name="form_token" value="([^"]+)"', page)
        assert token is not None
        fields = {"form_token": token[1], "key": key or self.keys[who], "next": target}
        return self.client.post("/sign-in", data=fields, follow_redirects=False)


HTML = {"Accept": "text/html"}


@pytest.fixture
def visitor(api) -> Visitor:
    client = TestClient(
        api.client.app, base_url=ORIGIN, headers={**HTML, "Origin": ORIGIN}, raise_server_exceptions=False
    )
    return Visitor(client=client, keys=api.keys)


def pages_of(api) -> set[tuple[str, str]]:
    """(method, path) of every page that the application routes."""
    middleware = next(one for one in api.client.app.user_middleware if one.cls is mount.PagesBesideApi)
    paths = middleware.kwargs["pages"].openapi()["paths"]
    return {(method.upper(), path) for path, methods in paths.items() for method in methods}


def page_routes(api) -> list[APIRoute]:
    middleware = next(one for one in api.client.app.user_middleware if one.cls is mount.PagesBesideApi)
    found = []
    for route in middleware.kwargs["pages"].routes:
        inner = getattr(route, "original_router", None)
        found += [route] if inner is None else inner.routes
    return [route for route in found if isinstance(route, APIRoute)]


def address(path: str) -> str:
    """The page's path with names of things that are not there."""
    filled = (
        path.replace("{digest}", DIGEST).replace("{index}", "999").replace("/new", f"/new?release={DIGEST}")
    )
    return re.sub(r"\{\w+\}", "none", filled)


def test_the_table_of_pages_is_complete(api) -> None:
    assert pages_of(api) == set(PAGES) | OPEN_PAGES


def test_nobody_sees_a_page_without_signing_in(visitor: Visitor) -> None:
    for method, path in PAGES:
        answer = visitor.client.request(method, address(path), follow_redirects=False)
        if method == "GET":
            assert answer.status_code == 303, path
            assert answer.headers["location"].startswith("/sign-in?next=/"), path
        else:
            assert answer.status_code == 401, path
            assert "Nothing was done" in answer.text


@pytest.mark.parametrize("role", sorted(EVERYBODY))
def test_a_role_reaches_its_pages_and_no_other(visitor: Visitor, role: str) -> None:
    visitor.sign_in(role)
    for (method, path), allowed in PAGES.items():
        if path == "/sign-out":
            continue
        answer = (
            visitor.get(address(path))
            if method == "GET"
            else visitor.post(address(path), {"release": DIGEST})
        )
        assert (answer.status_code == 403) == (role not in allowed), (method, path, answer.text)
        assert answer.status_code < 500, (method, path, answer.text)
        assert answer.status_code not in {401, 303} or path == "/", (method, path)


def test_a_key_reaches_no_further_in_the_pages_than_in_the_api(api, visitor: Visitor, store) -> None:
    """Every page x a key of each role that has every scope but one that the page needs."""
    routes = {(method, route.path_format): route for route in page_routes(api) for method in route.methods}
    for (method, path), allowed in PAGES.items():
        if path == "/sign-out":
            continue
        needed = [scope_of(area, method, routes[method, path].name) for area in routes[method, path].tags]
        assert needed, path
        for lacking in needed:
            assert lacking in keys.SCOPES, path
            others = [scope for scope in keys.SCOPES if scope != lacking]
            made = keys.create_key(store, role=sorted(allowed)[0], owner="x", scopes=others)
            visitor.sign_in("x", key=made.text)
            send = visitor.get if method == "GET" else visitor.post
            answer = send(address(path))
            assert answer.status_code == 403, (method, path)
            assert f"needs the scope {lacking}" in answer.text


def test_a_narrow_key_lands_where_it_may_look(visitor: Visitor, store) -> None:
    made = keys.create_key(store, role="researcher", owner="x", scopes=["cohorts:read"])
    assert visitor.sign_in("x", key=made.text).headers["location"] == "/cohorts"
    shown = visitor.get("/cohorts").text
    for place in ("/keys", "/runs"):
        assert f'href="{place}"' not in shown
    assert "To the cohorts" in visitor.get("/").text


@pytest.mark.parametrize("role", sorted(EVERYBODY))
def test_the_navigation_leads_to_the_roles_places_only(visitor: Visitor, role: str) -> None:
    visitor.sign_in(role)
    home = visitor.get("/").text
    for place in ("/cohorts", "/runs", "/sites", "/spends", "/ledger", "/keys"):
        assert (f'href="{place}"' in home) == (role in PAGES["GET", place]), place


def test_a_form_of_another_session_is_refused_everywhere(visitor: Visitor) -> None:
    visitor.sign_in("operator")
    others = visitor.form_token()
    visitor.sign_in("operator")
    for method, path in PAGES:
        if method == "POST":
            for token in ("", "x", "é", others):
                answer = visitor.client.post(
                    address(path), data={"form_token": token}, follow_redirects=False
                )
                assert answer.status_code == 403, (path, token)
                assert "Nothing was done" in answer.text
    assert visitor.get("/").status_code == 200  # /sign-out too


ELSEWHERE = (
    {"Origin": "https://elsewhere.example"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "https://[::"},
    {"Origin": "https://testserver.elsewhere.example"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
)


def test_a_form_from_elsewhere_is_refused(visitor: Visitor) -> None:
    visitor.sign_in("operator")
    for headers in ELSEWHERE:
        answer = visitor.post("/sites/invitations", {"site": "eastbrook"}, headers=headers)
        assert answer.status_code == 403, headers
    assert "eastbrook" not in visitor.get("/sites").text


def test_behind_the_gateway_the_browsers_own_name_for_us_counts(visitor: Visitor, facts) -> None:
    visitor.sign_in("operator")
    theirs = {"Origin": "https://coordinator.example.org", "X-Forwarded-Host": "coordinator.example.org"}
    assert visitor.post("/sites/invitations", {"site": "saint-mary"}, headers=theirs).status_code == 200
    public = {"Origin": facts.api_url, "X-Forwarded-Host": "10.0.0.7"}
    assert visitor.post("/sites/invitations", {"site": "saint-jo"}, headers=public).status_code == 200
    usual = {"Origin": "https://coordinator.example.org", "X-Forwarded-Host": "coordinator.example.org:443"}
    assert visitor.post("/sites/invitations", {"site": "saint-ann"}, headers=usual).status_code == 200


def test_a_session_ends_with_its_key(visitor: Visitor, store) -> None:
    visitor.sign_in("researcher")
    assert visitor.get("/").status_code == 200
    keys.revoke_key(store, visitor.keys["researcher"].split("_")[1])
    answer = visitor.get("/cohorts")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/sign-in?next=/cohorts"
    assert (
        visitor.get("/cohorts/x/progress", headers={"HX-Request": "true"}).headers["hx-redirect"]
        == "/sign-in"
    )
    refused = visitor.sign_in("researcher")
    assert refused.status_code == 401
    assert "revoked" in refused.text


def test_a_session_ends_by_itself(visitor: Visitor, clock) -> None:
    visitor.sign_in("researcher")
    clock.move(seconds=LIFETIME.total_seconds() - 60)
    assert visitor.get("/").status_code == 200
    clock.move(seconds=61)
    assert visitor.get("/").status_code == 303


def test_a_cookie_that_was_signed_out_is_worthless(visitor: Visitor) -> None:
    visitor.sign_in("researcher")
    kept = visitor.client.cookies[COOKIE]
    assert visitor.post("/sign-out").status_code == 303
    visitor.client.cookies.clear()
    visitor.client.cookies.set(COOKIE, kept, domain="testserver.local")
    assert visitor.get("/", headers={"Cookie": f"{COOKIE}={kept}"}).status_code == 303


def test_a_cookie_that_we_did_not_make_is_worthless(visitor: Visitor) -> None:
    visitor.sign_in("researcher")
    good = visitor.client.cookies[COOKIE]
    visitor.client.cookies.clear()
    other = visitor.keys["operator"].split("_")[1]
    changed = ".".join([other, *good.split(".")[1:]])
    later = good.replace(good.split(".")[1], str(int(good.split(".")[1]) + 9999))
    for cookie in ("", "x", "...", good[:-1], changed, later, "a.b.c.d", good + "\\"):
        assert visitor.get("/", headers={"Cookie": f"{COOKIE}={cookie}"}).status_code == 303, cookie
    assert visitor.get("/", headers={"Cookie": f"{COOKIE}={good}"}).status_code == 200


def test_the_cookie_holds_no_key_and_scripts_cannot_read_it(visitor: Visitor) -> None:
    answer = visitor.sign_in("researcher")
    set_cookie = answer.headers.get_list("set-cookie")
    assert any(one.startswith(f"{COOKIE}=") for one in set_cookie)
    for one in set_cookie:
        assert {"HttpOnly", "Secure", "SameSite=strict", "Path=/"} <= set(one.split("; ")), one
    secret = visitor.keys["researcher"].split("_", 2)[2]
    assert secret not in str(answer.headers)
    assert secret not in visitor.get("/").text


def test_signing_in_needs_the_visitors_own_form(visitor: Visitor) -> None:
    visitor.client.get("/sign-in")
    fields = {"form_token": "x", "key": visitor.keys["operator"], "next": "/"}
    answer = visitor.client.post("/sign-in", data=fields, follow_redirects=False)
    assert answer.status_code == 403
    assert COOKIE not in visitor.client.cookies


def test_signing_in_leads_nowhere_else(visitor: Visitor) -> None:
    for target in (
        "//elsewhere.example",
        "/\\elsewhere.example",
        "https://elsewhere.example",
        "x",
        "/\nx",
        "/é",
    ):
        assert visitor.sign_in("researcher", target=target).headers["location"] == "/", target
        assert visitor.get("/sign-in", params={"next": target}).headers["location"] == "/", target


def test_signing_in_leads_back_to_the_page(visitor: Visitor) -> None:
    assert (
        visitor.sign_in("researcher", target="/cohorts?cursor=x").headers["location"] == "/cohorts?cursor=x"
    )


def test_wrong_keys_are_heard_at_a_limited_pace(visitor: Visitor) -> None:
    codes = [visitor.sign_in("nobody", key="ftw_wrong").status_code for _ in range(11)]
    assert codes == [401] * 10 + [429]
    answer = visitor.sign_in("researcher")
    assert answer.status_code == 429
    assert "try again in" in answer.text.lower()
    assert int(answer.headers["retry-after"]) > 0


def test_every_answer_forbids_the_browser_what_the_pages_do_not_need(visitor: Visitor) -> None:
    paths = ["/sign-in", "/static/fedtwin.css", "/nothing", "/static/nothing", "/"]
    visitor.get("/sign-in")
    for who in (None, "operator"):
        if who is not None:
            visitor.sign_in(who)
        for path in [*paths, *(address(path) for method, path in PAGES if method == "GET")]:
            answer = visitor.get(path)
            policy = answer.headers["content-security-policy"]
            assert "default-src 'self'" in policy, path
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "same-origin"
            if "/static/" not in path:
                assert answer.headers["cache-control"] == "no-store", path


def test_a_program_gets_problems_and_the_api_stays_the_api(api, visitor: Visitor) -> None:
    for path in ("/v2/studies", "/runs", "/nothing"):
        answer = visitor.get(path, headers={"Accept": "*/*"})
        assert answer.headers["content-type"] == "application/problem+json", path
    answer = visitor.get("/v1/nothing")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    visitor.sign_in("operator")
    assert visitor.get("/v1/runs").status_code == 401  # a cookie is no key
    assert not [path for path in api.client.app.openapi()["paths"] if not path.startswith("/v1")]


def test_a_form_that_cannot_be_read_is_a_page_that_says_so(visitor: Visitor) -> None:
    visitor.sign_in("operator")
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for content, headers, status in (
        (b"{}", {"Content-Type": "application/json"}, 415),
        (b"a=%ff", form, 422),
        (b"\xff=1", form, 422),
        (b"a=%00", form, 422),
        (b"&".join([b"a=1"] * 10_001), form, 422),
        (b"a=" + b"x" * 300_000, form, 413),
    ):
        answer = visitor.client.post("/runs", content=content, headers=headers)
        assert answer.status_code == status, content[:20]
        assert "<h1>" in answer.text


ODD = (
    "",
    "-1",
    "1e400",
    "nan",
    "²",
    "9" * 500,
    "\u202e",
    "'",
    "`x`",
    "age>",
    "__import__('os')",
    "(" * 300,
    "😀",
    "../..",
)


BUILDER_FIELDS = [
    "num_patients",
    "seed",
    "where",
    "c0.in",
    "c1.from",
    "c1.to",
    "c2.is",
    "c2.missing",
    "columns",
    "formats",
]
SEARCHES = [
    "/?q=",
    "/?page=",
    "/releases/",
    "/cohorts?cursor=",
    "/cohorts/",
    "/ledger?page=",
    "/ledger/entries/",
    "/docs/",
]


def test_odd_words_are_never_the_coordinators_mistake(visitor: Visitor, scenario) -> None:
    release = scenario.release()
    visitor.sign_in("operator")
    token = visitor.form_token()
    forms = [path for method, path in PAGES if method == "POST" and path != "/sign-out"]
    for number, word in enumerate(ODD):
        fields = dict.fromkeys(
            [*BUILDER_FIELDS[number % 3 :: 3], "study", "site", "hours", "reason", "key"], word
        )
        fields |= {"form_token": token, "release": release.digest}
        for path in forms[number % 2 :: 2]:
            filled = re.sub(r"\{\w+\}", quote(word, safe="") or "x", path)
            answer = visitor.client.post(filled, data=fields, follow_redirects=False)
            assert answer.status_code < 500, (path, word, answer.text)
        for path in SEARCHES[number % 2 :: 2]:
            assert visitor.get(path + quote(word, safe="")).status_code < 500, (path, word)


MARKUP = "<img src=x onerror=alert(1)>\"'&{{7*7}}"


def test_names_with_markup_stay_text_on_every_page(visitor: Visitor, scenario, study_toml: str) -> None:
    title = MARKUP.replace('"', '\\"')
    text = study_toml.replace("Heart disease at three hospitals", title)
    text = text.replace('"female"', f'"{title}"').replace('name = "sex"', f'name = "sex"\ntitle = "{title}"')
    scenario.study = Study.from_toml(text.replace('unit = "a"', f'unit = "{title}"\ndescription = "{title}"'))
    release = scenario.release()
    store = scenario.store
    key = next(iter(scenario.keys.values()))
    with store.database.write() as session:
        row = session.get(SiteRow, key.public.name)
        assert row is not None
        row.title = MARKUP
    run = runs.create_run(store, scenario.study.name, started_by=MARKUP).id
    runs.add_message(store, run, MARKUP)
    runs.start_running(store, run)
    refusal = round_records.SiteOutcome(site=key.public.name, outcome="refused", reason=MARKUP, receipt=None)
    others = [one for one in scenario.keys if one != key.public.name]
    accepted = [scenario.outcome(run, 1, one, base=scenario.base(1)) for one in others]
    scenario.record(run, 1, outcomes=[*accepted, refusal])
    cohort = cohorts.create_cohort(
        store,
        CohortRequest(
            release=release.digest,
            num_patients=5,
            conditions=({"column": "sex", "op": "in", "value": [MARKUP]},),
        ),
        owner=MARKUP,
    )
    visitor.sign_in("operator", key=keys.create_key(store, role="operator", owner=MARKUP).text)
    paths = [
        "/", f"/?q={MARKUP}", f"/releases/{release.digest}", "/cohorts", f"/cohorts/{cohort.id}",
        f"/cohorts/new?release={release.digest}", "/runs", f"/runs/{run}", "/sites", "/spends", "/ledger",
        "/ledger/entries/0", "/keys", f"/runs/{MARKUP}", f"/cohorts/{MARKUP}", f"/docs/{MARKUP}",
    ]  # fmt: skip
    shown = 0
    for path in paths:
        page = visitor.get(path).text
        assert "<img src=x" not in page, path
        assert "49" not in re.sub(r"[0-9a-f]{12,}", "", page) or "{{7*7}}" in page, path
        shown += "&lt;img src=x onerror=alert(1)&gt;&#34;&#39;&amp;{{7*7}}" in page
    assert shown >= 10  # it is there, as text
    fields = {
        "release": release.digest,
        "num_patients": "5",
        "where": MARKUP,
        "c0.in": MARKUP,
        "c1.from": MARKUP,
    }
    for path in ("/cohorts", "/cohorts/estimate"):
        assert "<img src=x" not in visitor.post(path, fields).text
    releases.withdraw_release(store, release.digest, reason=MARKUP)
    assert "<img src=x" not in visitor.get(f"/releases/{release.digest}").text
    assert sites.list_sites(store)


def test_no_page_has_script_or_style_of_its_own(visitor: Visitor, scenario) -> None:
    release = scenario.release()
    visitor.sign_in("operator")
    run = runs.list_runs(scenario.store)[0].id
    pages = [
        "/",
        f"/releases/{release.digest}",
        f"/cohorts/new?release={release.digest}",
        f"/runs/{run}",
        "/sites",
        "/keys",
        "/docs",
        "/docs/cohorts",
    ]
    for path in [*pages, "/spends", "/ledger", "/ledger/entries/0", "/nothing"]:
        page = visitor.get(path).text
        assert re.findall(r"<script(?! src=\"/static/)", page) == [], path
        assert re.findall(r"<style|\sstyle=|\son\w+=|javascript:", page) == [], path
        assert re.findall(r"(?:src|href)=\"(?:https?:)?//", page) == [], path


def test_the_one_foreign_script_is_the_released_htmx() -> None:
    data = (mount.STATIC / "htmx.min.js").read_bytes()
    assert b'version:"2.0.11"' in data
    # npm: htmx.org 2.0.11, package/dist/htmx.min.js
    assert (
        hashlib.sha256(data).hexdigest() == "d6fdc75f204e6bdefa99b69bf1e6d4ac69b8a364f77929f45c13476b4000f717"
    )
    assert "Zero-Clause BSD" in (mount.STATIC / "htmx-LICENSE.txt").read_text()
    assert {path.name for path in mount.STATIC.glob("*.js")} == {"htmx.min.js"}


def test_templates_and_files_travel_with_the_distribution() -> None:
    import tomllib
    from fnmatch import fnmatch

    from setuptools import find_namespace_packages

    root = Path(__file__).resolve().parents[2]
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = set(find_namespace_packages(str(root), include=settings["packages"]["find"]["include"]))
    folder = root / "server/api/pages"
    for path in [*folder.glob("templates/*"), *folder.glob("static/*")]:
        assert ".".join(path.parent.relative_to(root).parts) in packages
        assert any(fnmatch(path.name, pattern) for pattern in settings["package-data"]["*"]), path.name
