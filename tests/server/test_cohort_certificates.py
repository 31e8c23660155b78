"""Certificates: what they state, the page for people, and the offline check of every file of every format."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from models.study import Study
from privacy.signing import SigningKey
from server import cohorts, jobs, releases, round_records
from server.cli.cohort import app
from server.cohorts import CohortRequest
from server.provenance_page import certificate_page

BINDINGS = {
    "sex": (
        'fhir = { resource = "Patient", field = "gender" }\n'
        'omop = { table = "person", field = "gender", values = { "8532" = "female", "8507" = "male" } }\n'
    ),
    "age": (
        'fhir = { resource = "Patient", field = "age", at = "2024-01-01" }\n'
        'omop = { table = "person", field = "age", at = "2024-01-01" }\n'
    ),
}


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'fedtwin.db'}"  # what is tested here does not depend on the kind


@pytest.fixture
def study(study_toml: str) -> Study:
    """The usual study, with bindings for two of its columns."""
    for name, binding in BINDINGS.items():
        study_toml = study_toml.replace(f'name = "{name}"\n', f'name = "{name}"\n{binding}')
    return Study.from_toml(study_toml)


@pytest.fixture
def folder(scenario, store) -> Path:
    release = scenario.release().digest
    request = CohortRequest(
        release=release,
        num_patients=50,
        seed=1,
        conditions=("age >= 40",),
        formats=("csv", "jsonl", "fhir", "omop", "zip"),
    )
    made = cohorts.create_cohort(store, request, owner="rita")
    assert jobs.make_next(store)
    done = cohorts.get_cohort(store, made.id)
    assert done.state == "completed", done.reason
    return store.cohorts / made.id


def _verify(folder: Path, key: str):
    return CliRunner().invoke(app, ["verify", str(folder), "--key", key])


def _names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_every_file_of_every_format_is_checked(folder: Path, store) -> None:
    result = _verify(folder, store.key.public.text)
    assert result.exit_code == 0, result.output
    names = _names(folder)
    assert {"fhir/Patient.ndjson", "omop/person.csv", "cohort.zip", "certificate.html"} <= names
    for name in names - {"certificate.json"}:
        assert name in result.output
    with zipfile.ZipFile(folder / "cohort.zip") as archive:
        assert set(archive.namelist()) == names - {"cohort.zip", "certificate.html", "certificate.json"}
    assert "not checked" not in result.output


def test_a_changed_file_is_found_whichever_it_is(folder: Path, store, tmp_path: Path) -> None:
    for number, name in enumerate(sorted(_names(folder) - {"certificate.json"})):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(folder, copy)
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(data)
        result = _verify(copy, store.key.public.text)
        assert result.exit_code == 1, name
        assert "does NOT hold" in result.output or "no readable cohort" in result.output


def test_a_part_of_the_files_holds_and_the_rest_is_named(folder: Path, store) -> None:
    key = store.key.public.text
    (folder / "cohort.csv").rename(folder / "cohort.csv.part")
    (folder / "cohort.jsonl").unlink()
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "cohort.zip").unlink()
    result = _verify(folder, key)
    assert result.exit_code == 0, result.output
    assert "Not here, so not checked: cohort.csv, cohort.jsonl, cohort.zip" in " ".join(result.output.split())
    assert "broke off" in result.output
    for path in folder.iterdir():
        if path.name != "certificate.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    alone = _verify(folder, key)  # as after the files expired
    assert alone.exit_code == 0
    assert "no file is here" in alone.output


def test_the_zip_alone_is_checked_file_by_file(folder: Path, store) -> None:
    for path in folder.iterdir():
        if path.name not in ("certificate.json", "cohort.zip"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    result = _verify(folder, store.key.public.text)
    assert result.exit_code == 0
    assert "fhir/Patient.ndjson" in result.output
    assert "cohort.zip holds" in result.output


def test_a_file_that_does_not_belong_there_and_a_foreign_key_are_refused(folder: Path, store) -> None:
    foreign = SigningKey.generate(name="coordinator").public.text
    assert "does NOT hold" in _verify(folder, foreign).output
    (folder / "extra.csv").write_text("a")
    result = _verify(folder, store.key.public.text)
    assert result.exit_code == 1
    assert "extra.csv is no file of this cohort" in " ".join(result.output.split())
    (folder / "certificate.json").write_text("[]")
    assert _verify(folder, store.key.public.text).exit_code == 1


def test_the_statement_says_what_was_asked_what_was_achieved_and_what_was_not_tested(folder: Path) -> None:
    certificate = json.loads((folder / "certificate.json").read_text())
    statement, ledger = certificate["statement"], certificate["ledger"]
    assert statement["synthetic"] is True
    assert statement["conditions"]["asked"] == ["age >= 40"]
    achieved = statement["conditions"]["achieved"]
    assert 0 < float(achieved["share_of_release"]) < 1
    assert (achieved["held_by"], achieved["effective_sample_size"]) == ("every record", 50)
    assert statement["release"]["gate"] == "none passed"
    assert "No release gate was passed" in statement["release"]["gate_says"]
    assert {
        one["site"]: (one["epsilon"], one["delta"]) for one in statement["privacy"]["sites"]
    } == dict.fromkeys(("north", "south", "west"), ("1.875", "1e-05"))
    assert {(one["measurements"], one["refine_rounds"]) for one in statement["privacy"]["sites"]} == {(1, 1)}
    algorithm = statement["algorithm"]
    assert algorithm["measure_noise_multiplier"] == "2.5"
    assert algorithm["name"] == "measure, warm-start, refine"
    assert "; 1 round of an anchored GAN, which the sites' patients preferred" in algorithm["says"]
    assert statement["seed"] == 1
    assert {"python", "fedtwin", "torch"} <= set(statement["software"])
    assert len(statement["known_limits"]) >= 4
    assert {"digest", "name"} <= set(statement["study"])
    told = {one["format"]: one for one in statement["formats"]}
    assert set(told["fhir"]["columns_left_out"]) == {"ill"}
    assert "' in front" in told["csv"]["note"]
    assert set(ledger) == {"index", "entry", "inclusion_proof", "checkpoint"}


def test_a_release_from_before_the_refinement_is_not_said_to_be_refined(scenario, store) -> None:
    scenario.register()
    scenario.enrol()
    run = scenario.start()
    for round in range(1, scenario.study.num_rounds + 1):
        scenario.record(run, round)
    candidate = round_records.complete_run(store, run, release_round=1)
    release = releases.publish_release(store, candidate.digest).digest
    made = cohorts.create_cohort(store, CohortRequest(release=release, num_patients=5), owner="rita")
    assert jobs.make_next(store)
    certificate = cohorts.get_cohort(store, made.id).certificate
    assert certificate is not None
    algorithm = certificate["statement"]["algorithm"]
    assert algorithm["name"] == "measure, warm-start"
    assert (
        "are not in it: in a paid comparison the sites' patients did not speak for them" in algorithm["says"]
    )


def test_the_page_for_people_says_the_same_without_script_or_network(folder: Path) -> None:
    statement = json.loads((folder / "certificate.json").read_text())["statement"]
    page = (folder / "certificate.html").read_text("utf-8")
    told = json.loads(json.dumps(statement))
    told["files"].pop("certificate.html")
    assert certificate_page(told).decode() == page
    for word in (
        statement["release"]["digest"],
        statement["study"]["digest"],
        "age &gt;= 40",
        "No release gate was passed",
        "1.875",
        statement["files"]["cohort.csv"],
        *[limit.split("'")[0] for limit in statement["known_limits"]],
    ):
        assert word in page
    for active in ("<script", "http://", "https://", "<img", "<link", "onclick"):
        assert active not in page


def test_the_page_says_whose_patients_were_not_measured(folder: Path) -> None:
    statement = json.loads((folder / "certificate.json").read_text())["statement"]
    statement["privacy"]["sites"][1] |= {"measurements": 0, "refine_rounds": 1}
    statement["privacy"]["sites"][2] |= {"measurements": 2, "refine_rounds": 0}
    page = certificate_page(statement).decode()
    for site, part in (
        ("north", "measured, 1 refine round"),
        ("south", "not measured, 1 refine round"),
        ("west", "measured 2 times"),
    ):
        assert f"<td>{site}</td><td>{part}</td>" in page


def test_nothing_in_a_statement_becomes_markup(folder: Path) -> None:
    statement = json.loads((folder / "certificate.json").read_text())["statement"]
    statement["conditions"]["asked"] = ["sex == '<script>alert(1)</script>'"]
    statement["study"]["title"] = "<img src=x>"
    statement["formats"][0]["columns_left_out"] = {"<b>": "&"}
    page = certificate_page(statement).decode()
    assert "<script" not in page
    assert "<img" not in page
    assert "Without &lt;b&gt;: &amp;" in page
