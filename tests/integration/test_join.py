"""A site joins over HTTP as a hospital's IT does: invited, asked, approved, in the ledger; and is refused otherwise.

The real API and gateway processes and the real commands; neither Flower nor patients are needed for it.
"""

from __future__ import annotations

import datetime as dt
import os
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from client.joining import JoinError, ask_federation, send_card
from privacy.invitation import Invitation
from server.certificates import make_certificates
from server.demo.surface import SurfaceError, fedtwin
from server.federation_facts import FederationFacts
from server.home import CoordinatorHome
from server.invitations import invite_site
from server.store import Store


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CoordinatorHome]:
    home = CoordinatorHome.create(tmp_path_factory.mktemp("join") / "coordinator")
    commands = {
        "api": (
            *("uvicorn", "--factory", "server.api.app:create_app"),
            *("--host", home.api_host, "--port", str(home.api_port)),
        ),
        "gateway": ("server.gateway",),
    }
    started = []
    try:
        for name, command in commands.items():
            with (home.logs / f"{name}.log").open("wb") as output:
                started.append(
                    subprocess.Popen(
                        [sys.executable, "-m", *command],
                        env={**os.environ, "FEDTWIN_HOME": str(home.path)},
                        stdout=output,
                        stderr=output,
                    )
                )
        until = time.monotonic() + 120
        while not _answers(home):
            said = "\n".join(file.read_text() for file in home.logs.iterdir())
            assert all(one.poll() is None for one in started), said
            assert time.monotonic() < until, said
            time.sleep(0.2)
        yield home
    finally:
        for one in started:
            one.terminate()
        for one in started:
            one.wait(timeout=30)


def _answers(home: CoordinatorHome) -> bool:
    try:
        for url in (home.api_url, home.public_url):
            trust = ssl.create_default_context(cafile=str(home.ca_certificate))
            httpx.get(f"{url}/v1/health", timeout=5, trust_env=False, verify=trust).raise_for_status()
    except httpx.HTTPError:
        return False
    return True


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    file = tmp_path / "patients.csv"
    file.write_text("patient_id,age\n1,50\n")
    return file


def invite(coordinator: CoordinatorHome, site: str, *, url: str = "") -> str:
    to = ("--url", url or coordinator.api_url)
    return fedtwin("server", "invite", "--home", coordinator.path, "--site", site, *to).splitlines()[0]


def test_a_site_is_invited_joins_waits_is_approved_and_in_the_ledger(coordinator, patients, tmp_path) -> None:
    site = tmp_path / "site"
    invitation = invite(coordinator, "lakeside")
    said = fedtwin(
        *("site", "join", invitation, "--home", site, "--data", patients, "--patient-id", "patient_id")
    )
    assert coordinator.ca_fingerprint in said
    assert "waits for the operator's approval" in said
    digits = said.partition("digits of your key: ")[2].split()[0]
    for file in (site / "keys").iterdir():
        assert file.suffix == ".pub" or stat.S_IMODE(file.stat().st_mode) == 0o600, file.name
    assert (site / "coordinator-ca.crt").read_bytes() == coordinator.ca_certificate.read_bytes()
    assert "pending" in fedtwin("server", "sites", "--home", coordinator.path)

    with pytest.raises(SurfaceError, match="somebody else may have used"):
        fedtwin("server", "approve", "--home", coordinator.path, "lakeside", "--key", "00000000")
    fedtwin("server", "approve", "--home", coordinator.path, "lakeside", "--key", digits)
    assert "is enrolled" in fedtwin("site", "join", "--home", site)

    checked = fedtwin("site", "check", "--home", site)
    assert "Everything passed" in checked
    assert "within 60 s of the coordinator's" in checked

    # Another site that got hold of the invitation.
    with pytest.raises(SurfaceError, match="used already, with another card"):
        fedtwin("site", "join", invitation, "--home", tmp_path / "thief", "--data", patients)

    before = (site / "keys" / "site.pem").read_bytes()
    assert "signs with" in fedtwin("site", "rotate-keys", "--home", site)
    assert (site / "keys" / "site.pem").read_bytes() != before
    fedtwin("site", "leave", "--home", site, "--yes")
    assert "left" in fedtwin("server", "sites", "--home", coordinator.path)

    auditor = fedtwin(
        *("server", "key", "--home", coordinator.path, "--role", "auditor", "--name", "Anna")
    ).strip()
    read = {"headers": {"Authorization": f"Bearer {auditor}"}, "trust_env": False, "timeout": 30}
    entries = httpx.get(f"{coordinator.api_url}/v1/ledger/entries", **read)
    kinds = [entry["kind"] for entry in entries.json()["items"]]
    assert kinds == ["site-enrolled", "site-policy", "key-rotation", "site-left"]
    exported = httpx.get(f"{coordinator.api_url}/v1/ledger/export", **read)
    ledger = tmp_path / "ledger.zip"
    ledger.write_bytes(exported.content)
    fedtwin("audit", "verify", ledger, "--key", coordinator.verify_key.text)


def test_an_interrupted_join_goes_on_where_it_was(coordinator, patients, tmp_path) -> None:
    site, invitation = tmp_path / "site", Invitation.parse(invite(coordinator, "northgate"))
    fedtwin("site", "join", invitation.text, "--home", site, "--data", patients)
    policy = site / "policy.toml"
    policy.write_text(policy.read_text().replace("epsilon_total = 6.0", "epsilon_total = 4.0"))
    assert "waits for" in fedtwin("site", "join", "--home", site)
    fedtwin("server", "deny", "--home", coordinator.path, "northgate", "--reason", "not before the contract")
    with pytest.raises(SurfaceError, match="not before the contract"):
        fedtwin("site", "join", "--home", site)


def test_a_coordinator_that_is_not_the_one_in_the_invitation_is_sent_nothing(coordinator, tmp_path) -> None:
    good = Invitation.parse(invite(coordinator, "hillcrest"))
    assert ask_federation(good).ledger_key == coordinator.verify_key.text
    with pytest.raises(JoinError, match=r"(?s)another|somebody is in between"):
        ask_federation(replace(good, ca_fingerprint=":".join(["00"] * 32)))
    with pytest.raises(JoinError, match="another ledger key"):
        ask_federation(replace(good, ledger_key_digest="sha256:" + "0" * 64))
    for url in ("http://federation.example.org", "http://127.0.0.1.example.org:80"):
        with pytest.raises(JoinError, match="not encrypted"):
            ask_federation(replace(good, api_url=url))
        with pytest.raises(JoinError, match="not encrypted"):
            send_card(replace(good, api_url=url), {}, ca_certificate="")
    with pytest.raises(JoinError, match="nobody answers"):
        ask_federation(replace(good, api_url="http://127.0.0.1:1"))


def test_an_invitation_that_ran_out_is_refused_in_words(coordinator, patients, tmp_path) -> None:
    store = Store.open(coordinator)
    facts = FederationFacts.of(coordinator, api_url=coordinator.api_url)
    made = invite_site(store, facts, site="late", by="olga", lifetime=dt.timedelta(milliseconds=1))
    store.close()
    with pytest.raises(SurfaceError, match=r"invitation expired at .*ask the operator for another"):
        fedtwin("site", "join", made.text, "--home", tmp_path / "late", "--data", patients)
    cut = made.text[:-3]
    with pytest.raises(SurfaceError, match="not whole"):
        fedtwin("site", "join", cut, "--home", tmp_path / "cut", "--data", patients)
    assert not (tmp_path / "cut").exists()


def test_over_https_only_the_pinned_authority_is_believed(coordinator, patients, tmp_path) -> None:
    invitation = Invitation.parse(invite(coordinator, "riverside", url=coordinator.public_url))
    assert invitation.api_url == coordinator.public_url
    assert invitation.api_url.startswith("https://")
    assert ask_federation(invitation).fingerprint == coordinator.ca_fingerprint
    other = make_certificates("mallory", ["127.0.0.1"]).ca_certificate.decode()
    with pytest.raises(JoinError, match="CERTIFICATE_VERIFY_FAILED"):
        send_card(invitation, {"name": "riverside"}, ca_certificate=other)
    with pytest.raises(JoinError, match="somebody is in between"):
        ask_federation(replace(invitation, ca_fingerprint=":".join(["AB"] * 32)))
    said = fedtwin("site", "join", invitation.text, "--home", tmp_path / "site", "--data", patients)
    assert "waits for the operator's approval" in said


def test_an_operators_command_reaches_the_public_port_under_the_coordinators_authority_alone(
    coordinator, tmp_path
) -> None:
    key = fedtwin("server", "key", "--home", coordinator.path, "--role", "operator", "--name", "Olga").strip()
    login = {"FEDTWIN_URL": coordinator.public_url, "FEDTWIN_KEY": key}
    said = fedtwin("study", "list", environment={**login, "FEDTWIN_CA": str(coordinator.ca_certificate)})
    assert "No study is registered yet" in said
    assert "No run yet" in fedtwin("study", "runs", "--ca", coordinator.ca_certificate, environment=login)
    other, empty = tmp_path / "other.crt", tmp_path / "empty.crt"
    other.write_bytes(make_certificates("mallory", ["127.0.0.1"]).ca_certificate)
    empty.write_text("")
    for options, refused in (
        ((), "is not believed .*ca.crt .*--ca or FEDTWIN_CA"),
        (("--ca", other), "is not believed"),
        (("--ca", empty), "holds no certificate in PEM form"),
        (("--ca", tmp_path / "none.crt"), "holds no certificate in PEM form"),
        (("--url", "http://coordinator.example.org"), "neither encrypted nor on this machine"),
    ):
        with pytest.raises(SurfaceError, match=f"(?s){refused}"):
            fedtwin("study", "list", *options, environment=login)
