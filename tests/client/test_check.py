"""Preflight: a site that is right passes every check; each check fails when what it looks at is broken on purpose."""

from __future__ import annotations

import datetime as dt
import json
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from client.checks import CheckResult, check_site, dry_run, preflight
from client.checks.data import check_data, check_study_data
from client.checks.dry_run import check_dry_run
from client.checks.folder import check_keys, check_policy, check_record
from client.checks.machine import check_disk, check_gpu, check_memory, check_versions
from client.checks.network import check_certificate, check_coordinator, check_name, check_port
from client.cli import app
from client.guard import Guard
from client.home import SiteHome
from client.joining import JoinError
from client.leaving import rotate_receipt_key, waiting_key_file
from client.policy import load_policy, policy_text
from models.study import Study
from privacy.events import MechanismEvent
from privacy.signing import SigningKey
from server.certificates import Certificates, make_certificates

COORDINATOR = SigningKey.generate(name="lab").public
NOW = dt.datetime.now(dt.UTC)
STUDY = """
name = "small"
[privacy]
epsilon = 1.0
delta = 1e-5
[table]
patient_id = "patient"
[[table.columns]]
name = "age"
kind = "integer"
minimum = 0
maximum = 99
[[table.columns]]
name = "sex"
kind = "categorical"
categories = ["f", "m"]
"""


class TlsCoordinator:
    """Answers over TLS with a Date, as the gateway does."""

    def __init__(self, certificates: Certificates, folder: Path) -> None:
        outer = self
        self.date: str | None = None

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()

            def date_time_string(self, timestamp: float | None = None) -> str:
                return outer.date or super().date_time_string(timestamp)

            def log_message(self, *_: object) -> None:
                pass

        (folder / "server.crt").write_bytes(certificates.server_certificate)
        (folder / "server.key").write_bytes(certificates.server_key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.crt", folder / "server.key")
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.server.socket = context.wrap_socket(
            self.server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.port = self.server.server_port


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return make_certificates("lab", ["127.0.0.1", "coordinator.invalid"])


@pytest.fixture(scope="module")
def tls(certificates, tmp_path_factory) -> Iterator[TlsCoordinator]:
    made = TlsCoordinator(certificates, tmp_path_factory.mktemp("tls"))
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@pytest.fixture
def coordinator(tls) -> TlsCoordinator:
    tls.date = None
    return tls


def patients(num: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "patient": [f"p{n}" for n in range(num)],
            "age": rng.integers(0, 99, num),
            "sex": rng.choice(["f", "m"], num),
        }
    )


def create(folder: Path, certificates: Certificates, address: str) -> SiteHome:
    patients().to_csv(folder / "patients.csv", index=False)
    site = SiteHome.create(
        folder / "site",
        name="ash",
        superlink_address=address,
        ca_certificate=certificates.ca_certificate,
        coordinator_key=COORDINATOR.text,
        data_path=folder / "patients.csv",
        patient_id="patient",
    )
    site.policy_file.write_text(
        policy_text(
            epsilon_per_run=1,
            epsilon_per_study=1,
            epsilon_total=2,
            max_delta=1e-5,
            min_patients=50,
            app_digests=["0" * 64],
        )
    )
    return site


@pytest.fixture
def site(tmp_path, certificates, coordinator) -> SiteHome:
    return create(tmp_path, certificates, f"127.0.0.1:{coordinator.port}")


def by_name(results: list[CheckResult]) -> dict[str, CheckResult]:
    return {one.name: one for one in results}


def assert_todo(result: CheckResult, text: str) -> None:
    assert not result.passed
    assert text in result.detail, result
    assert result.advice


def test_a_site_that_is_right_passes_every_check_and_spends_nothing(site) -> None:
    study = Study.from_toml(STUDY)
    results = list(check_site(site, study=study))
    assert [one for one in results if not one.passed] == []
    assert list(by_name(results)) == [
        *("keys", "policy", "record", "versions", "disk", "memory", "gpu"),
        *("name", "connection", "certificate", "clock", "port"),
        *("data", "schema", "patients", "dry-run"),
    ]
    assert not site.record_file.exists()
    assert not site.notices.exists()


def test_no_result_tells_how_many_patients_there_are(site) -> None:
    study = Study.from_toml(STUDY)
    for num in (41, 61):
        patients(num).to_csv(site.data.path, index=False)
        shown = json.dumps([one.to_dict() for one in check_study_data(site, study)])
        assert str(num) not in shown


# Folder


def test_keys_that_others_can_read_or_that_are_gone_or_foreign_are_found(site) -> None:
    site.receipt_key_file.chmod(0o640)
    assert_todo(check_keys(site), "mode 0640")
    assert "chmod 600 keys/site.pem" in check_keys(site).advice
    site.receipt_key_file.chmod(0o600)
    public = site.node_key.with_suffix(".pub")
    kept = public.read_text()
    public.write_text(" ".join([*kept.split()[:1], "AAAA"]))
    assert_todo(check_keys(site), "a key cannot be used")
    public.write_text(kept)
    site.receipt_key_file.write_text("nothing")
    assert_todo(check_keys(site), "a key cannot be used")
    site.worker_secret.unlink()
    assert_todo(check_keys(site), "keys/worker.secret is missing")


def test_another_sites_node_key_is_found(site, tmp_path, certificates) -> None:
    (tmp_path / "two").mkdir()
    other = create(tmp_path / "two", certificates, site.superlink_address)
    site.node_key.with_suffix(".pub").write_text(other.node_public_key)
    assert_todo(check_keys(site), "does not belong")


def test_a_rotation_that_nobody_answered_leaves_the_old_key_and_goes_on_with_the_same_new_one(site) -> None:
    settings = site.path / "site.toml"
    settings.write_text(settings.read_text().replace('url = ""', 'url = "http://127.0.0.1:1"'))
    away = SiteHome.open(site.path)
    before, waiting = away.receipt_key_file.read_bytes(), []
    for _ in range(2):
        with pytest.raises(JoinError, match="nobody answers"):
            rotate_receipt_key(away)
        waiting.append(waiting_key_file(away).read_bytes())
    assert away.receipt_key_file.read_bytes() == before
    assert waiting[0] == waiting[1]
    assert waiting_key_file(away).stat().st_mode & 0o777 == 0o600
    assert_todo(check_keys(away), "a rotation of the receipt key was interrupted")


def test_a_policy_that_cannot_be_used_is_found(site) -> None:
    site.policy_file.write_text("version = 2")
    assert_todo(check_policy(site), "version is 2")
    site.policy_file.unlink()
    assert_todo(check_policy(site), "does not exist")


def test_a_record_that_was_altered_is_found(site) -> None:
    import sqlite3

    guard = Guard(site.record_file, load_policy(site.policy_file))
    event = MechanismEvent.from_dict(Study.from_toml(STUDY).mechanism("measure"))
    guard.quote(
        study_name="small",
        study_digest="sha256:" + "0" * 64,
        columns=["age"],
        planned_events=[event],
        delta=1e-5,
        study_epsilon=1.0,
        num_patients=60,
    )
    assert check_record(site).passed
    with sqlite3.connect(site.record_file) as connection:
        connection.execute("DROP TRIGGER never_changed")
        connection.execute("UPDATE record SET entry = replace(entry, 'small', 'smell')")
    result = check_record(site)
    assert not result.passed
    assert "record.db" in result.advice


# Machine


def test_versions_beside_the_pins_are_found() -> None:
    pins = ["torch==2.13.0", 'flwr==1.41.0; extra == "site"', "numpy>=2"]
    assert check_versions(
        requirements=pins, installed={"torch": "2.13.0+cu128", "flwr": "1.41.0"}.__getitem__
    ).passed
    assert_todo(
        check_versions(requirements=pins, installed={"torch": "2.13.0", "flwr": "1.42.0"}.__getitem__),
        "flwr is 1.42.0, 1.41.0 is needed",
    )

    def nothing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    assert_todo(check_versions(requirements=pins, installed=nothing), "torch is missing")
    assert_todo(check_versions(python=(3, 10)), "Python is 3.10")
    assert "torch" in check_versions().detail  # the installed distribution names its pins


def test_too_little_disk_or_memory_is_found_and_a_gpu_is_no_condition(tmp_path) -> None:
    assert_todo(check_disk(tmp_path, min_bytes=1 << 60), "are needed")
    assert_todo(check_memory(min_bytes=1 << 60), "are needed")
    assert check_memory(meminfo=tmp_path / "none").passed
    assert check_gpu().passed


# Network


def test_a_name_that_nobody_knows_is_found(site) -> None:
    assert_todo(check_name("coordinator.invalid"), "nobody here knows the host")


def test_what_follows_a_failure_is_not_checked(tmp_path, certificates) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        site = create(tmp_path, certificates, f"127.0.0.1:{unused.getsockname()[1]}")
        found = by_name(check_coordinator(site))
    assert found["name"].passed
    assert_todo(found["connection"], "does not answer")
    assert_todo(found["clock"], "not checked")
    assert "connection" in found["clock"].advice


def test_another_authority_and_none_are_found(site) -> None:
    site.ca_certificate.write_bytes(make_certificates("mallory", ["127.0.0.1"]).ca_certificate)
    assert_todo(by_name(check_coordinator(site))["connection"], "not believed")
    site.ca_certificate.write_text("no certificate")
    assert_todo(by_name(check_coordinator(site))["connection"], "is no certificate")


def test_a_certificate_for_another_host_is_found(tmp_path, certificates, coordinator) -> None:
    site = create(tmp_path, certificates, f"localhost:{coordinator.port}")  # only 127.0.0.1 is in it
    assert_todo(by_name(check_coordinator(site))["connection"], "not believed")


def test_a_certificate_that_runs_out_is_found() -> None:
    assert check_certificate(NOW + dt.timedelta(days=15), now=NOW).passed
    assert_todo(check_certificate(NOW + dt.timedelta(days=13), now=NOW), "13 days")


@pytest.mark.parametrize("seconds", [-90, 90])
def test_a_clock_that_is_wrong_is_found(site, seconds) -> None:
    def clock() -> dt.datetime:
        return dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)

    assert_todo(by_name(check_coordinator(site, clock=clock))["clock"], "s away from the coordinator's")
    assert by_name(check_coordinator(site))["clock"].passed


def test_a_coordinator_without_a_time_is_said_to_have_none(site, coordinator) -> None:
    coordinator.date = "yesterday"
    assert "not known" in by_name(check_coordinator(site))["clock"].detail


def test_a_port_that_is_taken_is_found(site) -> None:
    assert check_port(site).passed
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", site.supernode_port))
        listener.listen()
        assert_todo(check_port(site), "is taken")


def test_the_proxy_of_the_environment_is_used(tmp_path, certificates, coordinator, monkeypatch) -> None:
    asked: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            asked.append(f"{self.path} {self.headers.get('Proxy-Authorization')}")
            with socket.create_connection(("127.0.0.1", coordinator.port)) as onward:
                self.send_response(200)
                self.end_headers()
                back = threading.Thread(target=_copy, args=(onward, self.connection))
                back.start()
                _copy(self.connection, onward)
                back.join()

        def log_message(self, *_: object) -> None:
            pass

    def _copy(source: socket.socket, target: socket.socket) -> None:
        try:
            while block := source.recv(65536):
                target.sendall(block)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    for name in ("NO_PROXY", "no_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", f"http://u:p@127.0.0.1:{server.server_port}")
    try:
        site = create(tmp_path, certificates, "coordinator.invalid:443")
        found = by_name(check_coordinator(site))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert [one for one in found.values() if not one.passed] == []
    assert asked == ["coordinator.invalid:443 Basic dTpw"]


# Data


def test_data_that_cannot_be_read_are_found(site) -> None:
    site.data.path.write_text("age,sex\n1,f\n")
    assert_todo(check_data(site), "no column 'patient'")
    site.data.path.unlink()
    assert_todo(check_data(site), "patients.csv")


def test_data_that_the_system_does_not_let_this_user_read_are_found_in_words(site) -> None:
    study = Study.from_toml(STUDY)
    site.data.path.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        for result in (check_data(site), check_study_data(site, study)[0]):
            assert_todo(result, "may not be read by the user that runs this")
    finally:
        os.seteuid(user)
    site.data.path.unlink()
    site.data.path.symlink_to("/proc/self/mem")  # opens, and cannot be read
    for result in (check_data(site), check_study_data(site, study)[0]):
        assert_todo(result, "Input/output error")


def test_data_that_do_not_fit_a_study_are_found_and_the_faults_stay_on_the_screen(site, tmp_path) -> None:
    frame = patients()
    frame.loc[7, "sex"] = "SECRET-VALUE"
    frame.to_csv(site.data.path, index=False)
    schema, minimum = check_study_data(site, Study.from_toml(STUDY))
    assert_todo(schema, "the table has 1 fault")
    assert "SECRET-VALUE" in " ".join(schema.private)
    assert "SECRET-VALUE" not in json.dumps(schema.to_dict())
    assert_todo(minimum, "not checked")


def test_too_few_patients_are_found_without_a_number(site) -> None:
    patients(49).to_csv(site.data.path, index=False)
    assert_todo(by_name(check_study_data(site, Study.from_toml(STUDY)))["patients"], "fewer than")
    patients(50).to_csv(site.data.path, index=False)
    assert by_name(check_study_data(site, Study.from_toml(STUDY)))["patients"].passed


# Dry run


def test_a_dry_run_finds_noise_that_is_no_number_and_code_that_breaks(monkeypatch) -> None:
    import client.rounds

    def broken(*_: object, **__: object):
        raise RuntimeError("P00017")

    monkeypatch.setattr(client.rounds, "judge_records", broken)
    result = check_dry_run()
    assert_todo(result, "the refine round was refused")
    assert "P00017" not in result.detail
    monkeypatch.setattr(client.rounds, "release_sum", lambda values, **_: values * float("nan"))
    assert_todo(check_dry_run(), "measure round gave values that are no numbers")
    monkeypatch.setattr(dry_run, "sign_head", broken)
    assert_todo(check_dry_run(), "RuntimeError")


def test_a_check_that_breaks_is_a_failure_without_values(site, monkeypatch) -> None:
    def broken() -> CheckResult:
        raise KeyError("P00017")

    [result] = preflight._guarded("keys", broken)
    assert_todo(result, "KeyError")
    assert "P00017" not in str(result)


# Command


def test_the_command_says_passed_or_what_to_do_and_ends_with_a_status(site, tmp_path) -> None:
    run = CliRunner().invoke
    good = run(app, ["check", "--home", str(site.path), "--json"])
    assert good.exit_code == 0, good.output
    assert json.loads(good.output)["passed"] is True
    site.receipt_key_file.chmod(0o644)
    bad = run(app, ["check", "--home", str(site.path)])
    assert bad.exit_code == 1
    assert "chmod 600 keys/site.pem" in bad.output
    assert "To be done: keys" in bad.output
    (tmp_path / "study.toml").write_text("name = 1")
    for wrong in (
        ["--home", str(tmp_path / "none")],
        ["--home", str(site.path), "--study", str(tmp_path / "study.toml")],
    ):
        assert run(app, ["check", *wrong]).exit_code == 2
