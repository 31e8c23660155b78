"""A data manager holds a bad file against a study: each fault is named on the screen, and nothing is recorded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from client.cli import app as site
from server.cli.server import app as server

STUDY = """
name = "small"
privacy = { epsilon = 1.0, delta = 1e-5 }
[table]
patient_id = "who"
[[table.columns]]
name = "sex"
kind = "categorical"
categories = ["female", "male"]
[[table.columns]]
name = "age"
kind = "integer"
minimum = 0
maximum = 120
"""
GOOD = "who,sex,age\na,female,40\nb,male,50\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    (folder / "study.toml").write_text(STUDY)
    (folder / "patients.csv").write_text(GOOD)
    ran(server, "init", "--home", folder / "coordinator")
    ran(server, "invite", "--home", folder / "coordinator")
    ran(
        site,
        *("init", "--home", folder / "site", "--name", "north", "--patient-id", "who"),
        *("--federation", folder / "coordinator" / "federation.json", "--data", folder / "patients.csv"),
    )
    return folder


def run(app, *words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def ran(app, *words: object) -> str:
    result = run(app, *words)
    assert result.exit_code == 0, result.output
    return result.output


def validate(home: Path, content: bytes) -> Result:
    (home / "patients.csv").write_bytes(content)
    return run(site, "validate", "--home", home / "site", home / "study.toml")


def test_a_good_file_fits(home):
    result = validate(home, GOOD.encode())
    assert result.exit_code == 0
    assert "Nothing was sent anywhere." in result.output


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"who,sex,age\na,female,40\nb,unknown,50\n", ["3", "sex", "unknown"]),
        (b"who,sex,age\na,female,forty\n", ["2", "age", "forty"]),
        (b"who,sex,age\na,female,121\n", ["2", "age", "121", "120"]),
        (b"who,sex\na,female\n", ["age", "missing"]),
        (b"sex,age\nfemale,40\n", ["who"]),
        (b"", ["empty"]),
        (b"who,sex,age\n", ["no patient"]),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\xff\xfe", ["CSV"]),
        (b"PAR1\x00\x00", ["CSV"]),
    ],
    ids=[
        "unknown-category",
        "wrong-type",
        "out-of-bounds",
        "missing-column",
        "no-patient-id",
        "empty-file",
        "only-a-header",
        "a-picture",
        "a-parquet-file",
    ],
)
def test_a_bad_file_ends_in_words_and_status_one(home, content, told):
    result = validate(home, content)
    assert result.exit_code == 1
    assert result.output.startswith("fedtwin: ")
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    missing = [word for word in told if word not in result.output]
    assert not missing, f"{missing} not in {result.output}"


def test_two_faults_are_both_named(home):
    result = validate(home, b"who,sex,age\na,unknown,40\nb,male,old\n")
    assert "unknown" in result.output
    assert "old" in result.output


def test_a_missing_file_is_named(home):
    (home / "patients.csv").unlink(missing_ok=True)
    result = run(site, "validate", "--home", home / "site", home / "study.toml")
    assert result.exit_code == 1
    assert "fedtwin: " in result.output


def test_a_study_that_cannot_be_read_names_its_fields(home):
    bad = home / "bad.toml"
    bad.write_text(STUDY.replace("epsilon = 1.0", "epsilon = -1.0"))
    result = run(site, "validate", "--home", home / "site", bad)
    assert result.exit_code == 1
    assert "privacy.epsilon" in result.output


def test_looking_at_a_bad_file_spends_nothing_and_logs_no_value(home):
    validate(home, b"who,sex,age\nsecretname,unknownvalue,40\n")
    shown = ran(site, "spent", "--home", home / "site")
    assert "measure" not in shown
    for file in (home / "site").rglob("*"):
        if file.is_file():
            assert b"unknownvalue" not in file.read_bytes()


def test_a_second_site_in_the_same_folder_is_refused_and_the_first_stays(home):
    before = (home / "site" / "keys" / "site.pem").read_bytes()
    result = run(
        site,
        *("init", "--home", home / "site", "--name", "south"),
        *("--federation", home / "coordinator" / "federation.json", "--data", home / "patients.csv"),
    )
    assert result.exit_code == 1
    assert "already exists" in result.output
    assert (home / "site" / "keys" / "site.pem").read_bytes() == before


def test_a_card_that_is_none_is_refused_by_the_operator(home):
    (home / "card.json").write_text(json.dumps({"name": "x"}))
    result = run(server, "enrol", "--home", home / "coordinator", home / "card.json")
    assert result.exit_code == 1
    assert "card" in result.output


def test_a_crash_prints_no_values_of_patients(home):
    program = f"""
import sys, client.cli
def broken(home):
    row = "P00" + "017"
    raise RuntimeError("broken on purpose")
client.cli.open_home = broken
sys.argv = ["fedtwin", "site", "spent", "--home", {str(home)!r}]
from privacy.cli import main
main()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "broken on purpose" in ended.stderr
    assert "P00017" not in ended.stdout + ended.stderr
