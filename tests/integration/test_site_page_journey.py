"""A data manager in a real browser: a study asks, is approved on the site's page, runs, and what left is to be seen."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import uvicorn
from in_process import InProcessLab

from client.guard import Guard
from client.page.app import create_page
from client.policy import load_policy
from models.study import Study
from privacy.cli.folders import free_port
from server import runs, studies
from server.rounds import RoundFailedError, run_rounds

_spec = importlib.util.spec_from_file_location("chromium", Path(__file__).parents[1] / "chromium.py")
assert _spec is not None
assert _spec.loader is not None
chromium = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(chromium)

pytestmark = [
    pytest.mark.skipif(chromium.PROGRAM is None, reason="no Chromium is installed here"),
    pytest.mark.xdist_group(
        "site-page"
    ),  # one page, one browser, and the first test begins with nobody asking
]

TOKEN = "a-token-of-the-test"
STUDY = """
name = "small"
[privacy]
epsilon = 4.0
delta = 1e-5
[measure]
budget_share = 0.6
noise_multiplier = 1.5
[warm_start]
components = 20
steps = 30
[refine]
rounds = 1
steps = 4
num_judged = 1_000
hidden_width = 16
noise_multiplier = 1.5
[federation]
patients_per_site = 800
quorum = 2
[table]
[[table.columns]]
name = "age"
kind = "integer"
minimum = 0
maximum = 99
bins = 5
[[table.columns]]
name = "ill"
kind = "boolean"
"""
# The lowest contrast of a text with what is behind it, by WCAG 2.
CONTRAST = """
(() => {
  const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => { const f = v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    return .2126 * f(r) + .7152 * f(g) + .0722 * f(b); };
  const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] > 0) return c; } return [255, 255, 255]; };
  let lowest = [21, ""];
  for (const e of document.querySelectorAll("body *")) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || !e.getClientRects().length) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < lowest[0]) lowest = [ratio, e.textContent.trim().slice(0, 40)];
  }
  return lowest;
})()
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessLab]:
    source = np.random.default_rng(1)
    tables = {}
    for name in ("ash", "birch"):
        age = source.integers(0, 100, 300)
        tables[name] = pd.DataFrame({"age": age, "ill": age > 60})
    made = InProcessLab(tmp_path_factory.mktemp("page"), tables)
    policy = made.sites["ash"].policy_file
    policy.write_text(policy.read_text().replace('"automatic"', '"manual"'))
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def address(lab: InProcessLab) -> Iterator[str]:
    port = free_port()
    door = create_page(lab.sites["ash"], port=port, token=TOKEN)
    server = uvicorn.Server(uvicorn.Config(door, port=port, lifespan="off", log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    # No name but this machine's resolves: a page that wanted anything from elsewhere would lack it.
    nowhere = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    with chromium.Chromium(tmp_path_factory.mktemp("profile"), nowhere) as opened:
        yield opened


def debits(lab: InProcessLab) -> list[dict]:
    site = lab.sites["ash"]
    history = Guard(site.record_file, load_policy(site.policy_file)).history()
    return [dict(entry.body) for entry in history if entry.kind in ("debit", "settled")]


def test_a_study_is_approved_on_the_page_runs_and_is_seen_there_and_the_approval_is_taken_back(
    lab, address, browser
) -> None:
    studies.register_study(lab.store, Study.from_toml(STUDY), created_by="olga")
    run = runs.create_run(lab.store, "small", started_by="olga").id
    browser.look(scripts=False)
    browser.open(address)
    assert "fedtwin site page" in browser.text
    browser.open(f"{address}/?token={TOKEN}")
    assert browser.address == f"{address}/"
    assert "No study has asked yet" in browser.text

    with pytest.raises(RoundFailedError, match="nobody at this site has approved"):
        run_rounds(lab.federation, lab.store, run)
    browser.open(f"{address}/")
    assert "One study waits for your decision" in browser.text
    browser.click("article h2 a")
    assert "2 columns of your table" in browser.text
    assert debits(lab) == []

    browser.type("#approve-by", "Grace Hopper")
    browser.press("Tab", times=2)  # over the reason, to the button
    browser.enter()
    assert "Approved. If its run has ended meanwhile" in browser.text
    runs.resume_run(lab.store, run)
    assert run_rounds(lab.federation, lab.store, run) is not None

    browser.open(f"{address}/left")
    assert "3 replies made from patients" in browser.text
    sent = [body["reply_digest"] for body in debits(lab) if "reply_digest" in body]
    assert [digest in browser.text for digest in sent] == [True, True, True]
    browser.click("article:last-of-type h3 a")
    assert "Round 1 of small" in browser.text
    assert "The copy that this site keeps has that digest" in browser.text
    assert f'"run": "{run}"' in browser.text
    assert "moments" in browser.text

    browser.open(f"{address}/")
    browser.click("article h2 a")
    browser.type("#withdraw-by", "Grace Hopper")
    browser.type("#withdraw-reason", "the board met")
    browser.click("button.second")
    assert "withdrawn" in browser.text
    again = runs.create_run(lab.store, "small", started_by="olga").id
    with pytest.raises(RoundFailedError, match="this site has withdrawn"):
        run_rounds(lab.federation, lab.store, again)


@pytest.fixture
def asked(lab: InProcessLab) -> None:
    """A study has asked, whichever tests came before."""
    site = lab.sites["ash"]
    if not Guard(site.record_file, load_policy(site.policy_file)).requests():
        studies.register_study(lab.store, Study.from_toml(STUDY), created_by="olga")
        with pytest.raises(RoundFailedError):
            run_rounds(lab.federation, lab.store, runs.create_run(lab.store, "small", started_by="olga").id)


def test_pages_fit_a_telephone_are_readable_in_both_colours_and_load_nothing_from_elsewhere(
    asked, address, browser
) -> None:
    browser.open(f"{address}/?token={TOKEN}")
    browser.look()
    study = browser.evaluate("document.querySelector('article h2 a').href")
    for place in ("/", study.removeprefix(address), "/left", "/refused", "/policy", "/notices", "/nothing"):
        backgrounds = set()
        for dark in (False, True):
            for width in (390,) if dark else (1100, 320, 390):
                browser.look(width=width, dark=dark)
                browser.open(address + place)
                assert browser.evaluate("document.documentElement.scrollWidth") <= width, place
            ratio, text = browser.evaluate(CONTRAST)
            assert ratio >= 4.5, f"{place}, dark {dark}: {text!r}"
            backgrounds.add(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert len(backgrounds) == 2
        loaded = browser.evaluate("performance.getEntriesByType('resource').map(e => e.name)")
        assert loaded
        assert all(name.startswith(address) for name in loaded)


def test_the_keyboard_reaches_the_content_first_and_every_link_and_field(asked, address, browser) -> None:
    browser.look()
    browser.open(f"{address}/?token={TOKEN}")
    browser.open(browser.evaluate("document.querySelector('article h2 a').href"))
    reached = []
    for _ in range(40):
        browser.press("Tab")
        focused = browser.evaluate(
            "document.activeElement === document.body ? '' : document.activeElement.outerHTML.slice(0, 60)"
        )
        if not focused:
            break
        assert browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        reached.append(focused)
    assert 'class="skip"' in reached[0]
    wanted = "document.querySelectorAll('a, button, summary, input:not([type=hidden]), textarea').length"
    assert len(reached) == browser.evaluate(wanted)
    unnamed = (
        "[...document.querySelectorAll('input:not([type=hidden]), textarea')].filter(e => !e.labels.length)"
    )
    assert browser.evaluate(f"{unnamed}.length") == 0
