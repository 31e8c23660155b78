"""What operators and auditors see and do on the pages: runs, sites, spends, the ledger."""

from __future__ import annotations

import re
import zipfile
from html import unescape
from io import BytesIO
from pathlib import Path

import pytest

from privacy.invitation import Invitation
from privacy.merkle import leaf_hash, verify_inclusion
from privacy.signing import SigningKey
from server import invitations, ledger_store, runs, sites
from server.spends import study_spends


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """The store's own tests hold for PostgreSQL."""
    return f"sqlite:///{tmp_path / 'fedtwin.db'}"


def words(page: str) -> str:
    """A page's text, as one line."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())


@pytest.fixture
def started(operator, scenario) -> str:
    scenario.register()
    scenario.enrol()
    return operator.send("/runs", study="heart").headers["location"]


def test_an_operator_starts_watches_stops_and_resumes_a_run(api, operator, started: str, scenario) -> None:
    run = started.rpartition("/")[2]
    assert api.starter.started == [run]
    assert "is queued" in words(operator.see("/runs"))
    operator.send("/runs", 409, study="heart")
    runs.start_running(scenario.store, run)
    scenario.record(run, 1)
    page = operator.see(started)
    assert 'hx-trigger="every 2s"' in page
    assert "two way" in words(page)
    assert "round 1: 0.031" in page
    assert "north accepted 1 1.62 4" in words(page)
    operator.send(f"{started}/stop")
    assert "Stop…" not in operator.see(started)
    runs.finish_run(scenario.store, run, "stopped")
    part = operator.client.get(f"{started}/monitor")
    assert part.headers["hx-refresh"] == "true"
    operator.send(f"{started}/stop", 409)
    operator.send(f"{started}/resume")
    assert api.starter.started == [run, run]


def test_a_run_that_cannot_be_started_is_a_page_with_the_reason(api, operator, scenario) -> None:
    scenario.register()
    scenario.enrol()
    api.starter.fails_with = "the SuperLink does not answer"
    page = words(operator.send("/runs", 503, study="heart").text)
    assert "the SuperLink does not answer" in page
    assert "Wait a few seconds" in page


def test_an_auditor_watches_a_run_and_has_no_buttons(auditor, started: str) -> None:
    page = auditor.see(started)
    assert "Stop…" not in page
    assert "Start a run" not in auditor.see("/runs")


def test_a_site_is_admitted_only_with_the_digits_of_its_own_key(operator, scenario, facts) -> None:
    page = operator.send("/sites/invitations", 200, site="saint-mary", hours="5").text
    text = re.search(r'class="digest invitation">([^<]+)<', page)
    assert text is not None
    assert text[1] not in operator.see("/sites")
    invitation = Invitation.parse(unescape(text[1]))
    key = SigningKey.generate(name="saint-mary")
    policy = {"epsilon_per_study": "4.0", "epsilon_total": None, "max_delta": "1e-05"}
    card = sites.SiteCard(
        name="saint-mary", receipt_key=key.public.text, node_public_key="ecdsa AAAA", policy=policy
    )
    invitations.answer_invitation(
        scenario.store, identifier=invitation.identifier, secret=invitation.secret, card=card
    )
    assert "Waiting for you saint-mary" in words(operator.see("/sites"))
    digits = key.public.key_id().hex()
    for wrong in ("", digits[:6], "00000000", digits[:-1] + "x"):
        operator.send("/sites/saint-mary/approve", 422, key=wrong)
    assert sites.list_sites(scenario.store) == []
    operator.send("/sites/saint-mary/approve", key=digits.upper())
    assert sites.get_site(scenario.store, "saint-mary").state == "enrolled"
    operator.send("/sites/saint-mary/state", state="suspended")
    assert "Take back" in operator.see("/sites")
    operator.send("/sites/saint-mary/state", 422, state="left")
    for fields in ({"site": "Ünï"}, {"site": "x", "hours": "9999"}, {"site": "x", "hours": "soon"}):
        operator.send("/sites/invitations", 422, **fields)


def test_spends_are_the_newest_of_every_site(auditor, scenario) -> None:
    scenario.release()
    assert [(one.site, one.spent_epsilon) for one in study_spends(scenario.store)] == [
        (name, "1.875") for name in sorted(scenario.keys)
    ]
    page = words(auditor.see("/spends"))
    assert "budget ε 4, δ 1e-05" in page
    assert "south 1.88 4 1e-05" in page
    assert "south 4 10 1e-05" in page  # the site's own caps


def test_the_ledger_page_proves_what_it_shows(auditor, scenario) -> None:
    scenario.release()
    scenario.countersign()
    page = words(auditor.see("/ledger"))
    assert scenario.store.key.public.text in page
    assert "fedtwin audit verify ledger.zip" in page
    assert "4: the coordinator's and 3 of sites" in page
    total = ledger_store.num_entries(scenario.store)
    for index, stored in enumerate(ledger_store.read_entries(scenario.store)):
        text = auditor.see(f"/ledger/entries/{index}")
        path = re.findall(r"<li><code class=\"digest\">([0-9a-f]{64})", text)
        root = re.search(r"<dt>Root</dt><dd><code class=\"digest\">([0-9a-f]{64})", text)
        assert root is not None
        verify_inclusion(
            leaf=leaf_hash(stored.data),
            index=index,
            size=total,
            proof=[bytes.fromhex(one) for one in path],
            root=bytes.fromhex(root[1]),
        )
        assert f"Entry {index}: {stored.entry.kind}" in words(text)
    auditor.see(f"/ledger/entries/{total}", 404)
    auditor.see("/ledger/entries/x", 422)
    receipt = next(one for one in ledger_store.read_entries(scenario.store) if one.entry.kind == "receipt")
    assert "spend_epsilon" in auditor.see(f"/ledger/entries/{receipt.index}")
    export = auditor.client.get("/ledger/export")
    assert zipfile.ZipFile(BytesIO(export.content)).testzip() is None
