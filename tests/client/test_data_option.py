"""`--data` of init and join: every kind of source in one way, faults in the options' words, no password in sight."""

from __future__ import annotations

import json
import sqlite3
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from client.checks.data import check_data
from client.cli import app
from client.connectors import DataSourceError
from client.data_option import KINDS, read_data_option
from client.home import SiteHome
from privacy.signing import SigningKey
from server.certificates import make_certificates

CHOICES = {
    "csv": ("p.csv", [], "mrn"),
    "parquet": ("parquet:p.pq", [], ""),
    "npz": ("p.npz", ["part=val", "patients=who"], ""),
    "sql": ("sql:postgresql+pg8000://reader@db.example/dwh", ["query_file=q.sql", "password_file=pw"], "mrn"),
    "omop": ("omop:sqlite:///cdm.db", ["cdm_schema=omop"], ""),
    "fhir": ("fhir:bulk", [], ""),
    "image-folder": ("image-folder:scans", ["manifest=m.csv"], ""),
    "dicom": ("dicom:scans", ["label=Modality", "window_center=40", "window_width=400"], ""),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def federation(here: Path) -> Path:
    facts = {
        "superlink_address": "127.0.0.1:9",
        "ca_certificate": make_certificates("lab", ["127.0.0.1"]).ca_certificate.decode(),
        "ledger_key": SigningKey.generate(name="lab").public.text,
        "app_digest": "a" * 64,
    }
    file = here / "federation.json"
    file.write_text(json.dumps(facts))
    return file


def init(federation: Path, *options: str, said: str = "") -> Result:
    words = ("init", "--home", "site", "--name", "north", "--federation", str(federation), *options)
    return CliRunner().invoke(app, list(words), input=said)


@pytest.mark.parametrize("kind", KINDS)
def test_a_site_is_made_for_every_kind_with_paths_that_hold_from_anywhere(here, federation, kind) -> None:
    data, settings, patient_id = CHOICES[kind]
    options = [word for setting in settings for word in ("--data-setting", setting)]
    ended = init(federation, "--data", data, *options, *(["--patient-id", patient_id] if patient_id else []))
    assert ended.exit_code == 0, ended.output
    made = SiteHome.open(here / "site").data
    assert made.kind == kind
    for name in ("path", "query_file", "password_file", "manifest"):
        value = getattr(made, name, None)
        assert value is None or value.parent == here
    for setting in settings:
        name, _, value = setting.partition("=")
        assert str(getattr(made, name)).removesuffix(".0").endswith(value)
    assert (getattr(made, "patient_id", None) or "") == patient_id
    if kind == "omop":
        assert made.url == f"sqlite:///{here}/cdm.db"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data", "p.xlsx"], r"\.csv or \.parquet, or one of: .*fhir:FOLDER"),
        (["--data", "."], r"is a folder: say of what, fhir:\., image-folder:\. or dicom:\."),
        (["--data", "postgresql://db/x"], "sql:URL for the rows of a query or omop:URL"),
        (["--data", "sql:postgresql://db/x"], "give either query or query_file"),
        (["--data", "sql:nonsense", "--data-setting", "query=SELECT 1"], "--data: .*match"),
        (["--data", "fhir:"], "--data: the path is empty"),
        (["--data", "fhir:x", "--data-setting", "part=1"], "not known for fhir.*no further settings"),
        (["--data", "dicom:x", "--data-setting", "lable=Modality"], "one of: label, manifest, window_center"),
        (
            ["--data", "dicom:x", "--data-setting", "window_center=far"],
            "--data-setting window_center: .*number",
        ),
        (["--data", "dicom:x", "--patient-id", "mrn"], "--patient-id has no meaning for dicom"),
        (["--data", "p.csv", "--ask-password"], "--ask-password is for a database"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_the_options_words(here, federation, options, said) -> None:
    import re

    ended = init(federation, *options)
    assert ended.exit_code == 1
    assert re.search(said, " ".join(ended.output.split())), ended.output
    assert not (here / "site").exists()


@pytest.mark.parametrize(
    "url", ["postgresql://reader:hunter2@db/x", "mysql+pymysql://reader@db/x?password=hunter2"]
)
def test_a_password_on_the_command_line_is_refused_and_not_repeated(url) -> None:
    with pytest.raises(DataSourceError, match=r"give --ask-password; and change that password") as caught:
        read_data_option(f"sql:{url}", ["query=SELECT 1"])
    assert "hunter2" not in str(caught.value)


def test_a_password_that_is_asked_for_is_kept_for_the_owner_only(here, federation) -> None:
    with sqlite3.connect(here / "p.db") as database:
        database.execute("CREATE TABLE patients (mrn, age)")
        database.execute("INSERT INTO patients VALUES ('a', 1)")
    ended = init(
        federation,
        *("--data", "sql:sqlite:///p.db", "--data-setting", "query=SELECT * FROM patients"),
        *("--patient-id", "mrn", "--ask-password"),
        said="hunter2\n",
    )
    assert ended.exit_code == 0, ended.output
    assert "hunter2" not in ended.output
    kept = here / "site" / "keys" / "data.password"
    assert kept.read_text() == "hunter2"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    holders = [
        file for file in (here / "site").rglob("*") if file.is_file() and b"hunter2" in file.read_bytes()
    ]
    assert holders == [kept]
    site = SiteHome.open(here / "site")
    assert site.data.password_file == kept
    assert check_data(site).passed
