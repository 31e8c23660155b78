"""The pages in a real browser, through the public HTTPS port: researcher, operator, phone, dark, keys, no script."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from privacy.cli.folders import free_port
from server import jobs, runs
from server.api.app import create_app
from server.gateway import make_gateway, server_config
from server.keys import create_key

playwright = pytest.importorskip(
    "playwright.sync_api", reason="NOT SEEN in a browser: playwright is not installed"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None, reason="NOT SEEN in a browser: there is no Chromium on this machine"
    ),
    pytest.mark.xdist_group("browser"),
]
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class NoFederation:
    """Stands where the SuperLink would."""

    def start(self, run_id: str) -> str:
        return "1"

    def admit_sites(self) -> None:
        pass


@dataclass
class Site:
    """A coordinator that serves, and a way for people to look at it."""

    url: str
    scenario: Any
    release: Any
    browser: Any
    faults: list[str]
    key: str = ""  # of the person who signed in last

    @contextmanager
    def person(
        self, role: str, *, size: str = "desktop", scheme: str = "light", script: bool = True
    ) -> Iterator[Any]:
        """A page of somebody who has signed in as one does."""
        width, height = SIZES[size]
        context = self.browser.new_context(
            base_url=self.url,
            ignore_https_errors=True,
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            java_script_enabled=script,
            reduced_motion="reduce",
        )
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on(
            "console",
            lambda said: self.faults.append(said.text) if said.type in {"error", "warning"} else None,
        )
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.key = create_key(self.scenario.store, role=role, owner=f"{role} {size} {scheme}").text
        page.goto("/")
        assert page.url.startswith(f"{self.url}/sign-in")
        page.get_by_label("API key").fill(self.key)
        page.get_by_label("API key").press("Enter")
        page.wait_for_url(f"{self.url}/")
        yield page
        context.close()


@pytest.fixture
def site(own_home, browser, shared_previewer) -> Iterator[Site]:
    home, scenario = own_home
    release = scenario.release()
    app = create_app(home, store=scenario.store, starter=NoFederation())
    app.state.previewer = shared_previewer
    api = uvicorn.Config(app, port=home.api_port, log_level="warning")
    stopped = threading.Event()
    servers = [uvicorn.Server(api), uvicorn.Server(server_config(make_gateway(home), home))]
    threads = [threading.Thread(target=one.run) for one in servers]
    threads.append(threading.Thread(target=jobs.work, args=(scenario.store, stopped)))
    for thread in threads:
        thread.start()
    faults: list[str] = []
    until(lambda: all(one.started for one in servers))
    yield Site(
        url=f"https://127.0.0.1:{home.gateway.port}",
        scenario=scenario,
        release=release,
        browser=browser,
        faults=faults,
    )
    stopped.set()
    for one in servers:
        one.should_exit = True
    for thread in threads:
        thread.join(20)
    assert faults == []  # also what the content security policy would not allow


def until(holds: Callable[[], bool]) -> None:
    event = threading.Event()
    for _ in range(400):
        if holds():
            return
        event.wait(0.05)
    raise AssertionError("it did not come true within 20 s")


def ports() -> dict[str, int]:
    return {"api_port": free_port(), "gateway_port": free_port()}


@pytest.mark.parametrize("own_home", [ports()], indirect=True)
def test_a_researcher_gets_from_a_wish_to_a_file(site: Site, tmp_path: Path) -> None:
    with site.person("researcher") as page:
        page.get_by_role("link", name="Ask for a cohort").click()
        assert "100 %" in page.locator("#estimate").inner_text()
        page.get_by_text("Age years").click()
        page.get_by_label("From").fill("60")
        page.wait_for_selector("#estimate >> text=computed exactly")
        page.get_by_label("From").fill("120")
        page.wait_for_selector("#estimate >> text=Too rare to be drawn")
        page.get_by_label("From").fill("60")
        page.wait_for_selector("#estimate >> text=The first 20")
        page.get_by_label("Number of patients").fill("3000")
        page.get_by_role("button", name="Ask for the cohort").click()
        page.wait_for_selector("text=All files are there")  # by itself: nobody loads the page again
        with page.expect_download() as waiting:
            page.get_by_role("link", name="cohort.csv").click()
        file = tmp_path / "cohort.csv"
        waiting.value.save_as(file)
        assert hashlib.sha256(file.read_bytes()).hexdigest() in page.content()
        lines = file.read_text().splitlines()
        assert len(lines) == 3001
        assert min(int(line.split(",")[lines[0].split(",").index("age")]) for line in lines[1:]) >= 60
        page.get_by_text("Delete the files…").click()
        page.get_by_role("button", name="Delete the files").click()
        page.wait_for_selector("text=The files were deleted on")
        assert page.get_by_role("link", name="cohort.csv").count() == 0
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url(f"{site.url}/sign-in")
        page.goto("/cohorts")
        assert "/sign-in?next=/cohorts" in page.url


@pytest.mark.parametrize("own_home", [ports()], indirect=True)
def test_an_operator_sees_a_round_come_and_stops_the_run(site: Site) -> None:
    scenario = site.scenario
    with site.person("operator") as page:
        page.get_by_role("link", name="Runs").click()
        page.get_by_text("Start a run…").click()
        page.get_by_role("button", name="Start it").click()
        page.wait_for_selector("text=queued")
        run = page.url.rpartition("/")[2]
        runs.start_running(scenario.store, run)
        scenario.record(run, 1)
        page.wait_for_selector("text=Two way")  # by itself
        assert page.get_by_role("img", name="Two way").count() == 1
        page.get_by_text("Stop…").click()
        page.wait_for_timeout(2500)  # the question stays open while the monitor is drawn anew
        page.get_by_role("button", name="Stop the run").click()
        page.wait_for_selector(".state.stopping")
        assert runs.stop_requested(scenario.store, run)
        runs.finish_run(scenario.store, run, "stopped")
        page.wait_for_selector("text=Resume…")


@pytest.mark.parametrize("own_home", [ports()], indirect=True)
def test_a_key_is_made_shown_once_and_rotated_without_signing_in_again(site: Site) -> None:
    with site.person("operator") as page:
        page.get_by_role("link", name="Keys").click()
        page.get_by_label("Whom it is for").fill("Rita")
        page.get_by_label("Your present key").last.fill(site.key)
        page.get_by_role("button", name="Make the key").click()
        page.wait_for_selector("text=New key for Rita")
        made = page.locator("code.invitation").inner_text()
        page.goto("/keys")
        assert made not in page.content()
        page.get_by_text("Rotate…").click()
        page.get_by_label("Your present key").first.fill(site.key)
        page.get_by_role("button", name="Get a new key").click()
        page.wait_for_selector("text=You are signed in with it now")
        own = page.locator("code.invitation").inner_text()
        assert len({made, own, site.key}) == 3
        page.get_by_role("link", name="Keys").click()
        assert f"ftw_{own.split('_')[1]}_…" in page.locator("dd").first.inner_text()


@pytest.mark.parametrize("own_home", [ports()], indirect=True)
def test_pages_fit_a_phone_and_the_dark_and_every_field_has_a_name(site: Site) -> None:
    run = runs.list_runs(site.scenario.store)[0].id
    release = f"/releases/{site.release.digest}"
    paths = ["/", release, f"/cohorts/new?release={site.release.digest}", "/cohorts", "/runs", f"/runs/{run}"]
    paths += ["/sites", "/spends", "/ledger", "/ledger/entries/1", "/keys", "/docs", "/docs/cohorts"]
    for size, scheme in (("phone", "light"), ("desktop", "dark")):
        with site.person("operator", size=size, scheme=scheme) as page:
            for path in paths:
                page.goto(path)
                assert page.evaluate(LOOK) == {"beyond": 0, "nameless": [], "pale": []}, (path, size, scheme)


# Width beyond the window, fields and buttons without a name, and texts whose contrast is below WCAG's 4.5.
LOOK = """() => {
  const light = c => { const v = c.map(x => x / 255).map(x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
    return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };
  const numbers = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const ground = e => { for (; e; e = e.parentElement) { const c = numbers(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c.slice(0, 3); } return [255, 255, 255]; };
  const pale = [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && !e.closest('svg, .hidden')
      && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())).filter(e => {
    const [a, b] = [light(numbers(getComputedStyle(e).color).slice(0, 3)), light(ground(e))].sort((x, y) => y - x);
    return (a + .05) / (b + .05) < 4.5; }).map(e => e.outerHTML.slice(0, 80));
  const nameless = [...document.querySelectorAll('input:not([type=hidden]), select, button, a, progress')].filter(e =>
    !(e.labels && e.labels.length) && !e.getAttribute('aria-label') && !e.textContent.trim()).map(e => e.outerHTML);
  const root = document.documentElement;
  return {beyond: Math.max(0, root.scrollWidth - root.clientWidth), nameless, pale};
}"""


@pytest.mark.parametrize("own_home", [ports()], indirect=True)
def test_the_keyboard_alone_and_no_script_at_all_are_enough(site: Site) -> None:
    with site.person("researcher", script=False) as page:
        page.goto("/")
        page.keyboard.press("Tab")
        assert page.locator(":focus").inner_text() == "Skip to the content"
        assert page.locator(":focus").bounding_box()["y"] >= 0
        page.keyboard.press("Enter")
        page.goto(f"/cohorts/new?release={site.release.digest}")
        page.get_by_label("Further condition").fill("age >= 50")
        page.get_by_role("button", name="Show what this gives").press("Enter")
        page.wait_for_url("**/cohorts/estimate")
        assert "1 patient in" in page.locator("#estimate").inner_text()
        assert page.get_by_label("Further condition").input_value() == "age >= 50"
        page.get_by_role("button", name="Ask for the cohort").press("Enter")
        page.wait_for_selector("text=What was asked for")
        until(lambda: (page.reload(), "All files are there" in page.content())[1])
