"""`fedtwin audit`: plain words, exit status, and nothing but files and a key."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from privacy.cli.audit import app
from privacy.export import write_export
from privacy.ledger_example import ExampleLedger, ExampleScale

RUN = CliRunner()


@pytest.fixture(scope="module")
def practice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The export that `audit example` writes, and the key that it prints."""
    folder = tmp_path_factory.mktemp("audit") / "export"
    result = RUN.invoke(app, ["example", str(folder), "--sites", "2", "--rounds", "2"])
    assert result.exit_code == 0, result.output
    key = result.output.split("--key '")[1].split("'")[0]
    return folder, key


def test_a_good_export_holds_and_its_checkpoint_is_kept_for_the_next_visit(
    practice: tuple[Path, str], tmp_path: Path
) -> None:
    folder, key = practice
    kept = tmp_path / "kept"
    result = RUN.invoke(app, ["verify", str(folder), "--key", key, "--keep", str(kept)])
    assert result.exit_code == 0, result.output
    assert "Everything that could be checked held" in result.output
    assert "BROKE" not in result.output
    assert kept.read_bytes() == (folder / "checkpoint").read_bytes()
    again = RUN.invoke(app, ["verify", str(folder), "--key", key, "--since", str(kept), "--json"])
    report = json.loads(again.output)
    assert again.exit_code == 0
    assert {check["name"]: check["held"] for check in report["checks"]}["since"] is True


def test_a_changed_export_breaks_in_plain_words_and_nothing_is_kept(
    practice: tuple[Path, str], tmp_path: Path
) -> None:
    folder, key = practice
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    bundle = next((changed / "tile" / "entries").rglob("*.p/*"))
    bundle.write_bytes(bundle.read_bytes().replace(b'"rows":1000', b'"rows":9000'))
    result = RUN.invoke(app, ["verify", str(changed), "--key", key, "--keep", str(tmp_path / "kept")])
    assert result.exit_code == 1
    assert "BROKE  The Merkle tree recomputed from the entries" in result.output
    assert "do not trust this ledger" in result.output
    assert not (tmp_path / "kept").exists()


def test_a_zip_and_a_key_file_and_a_pem_serve_as_well(practice: tuple[Path, str], tmp_path: Path) -> None:
    from privacy.signing import VerifyKey

    folder, key = practice
    archive = tmp_path / "export.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in folder.rglob("*"):
            if path.is_file():
                file.write(path, path.relative_to(folder).as_posix())
    (tmp_path / "key.txt").write_text(key + "\n")
    (tmp_path / "key.pem").write_bytes(VerifyKey.from_text(key).to_pem())
    for name in ("key.txt", "key.pem"):
        result = RUN.invoke(app, ["verify", str(archive), "--key", str(tmp_path / name)])
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "nowhere", "--key", "KEY"],
        ["verify", "EMPTY", "--key", "KEY"],
        ["verify", "EXPORT", "--key", "no-key"],
        ["verify", "EXPORT", "--key", "KEY", "--since", "nowhere"],
        ["verify", "EXPORT", "--key", "KEY", "--accounting", "none"],
        ["verify", "EXPORT"],
        ["show", "nowhere"],
        ["example", "EXPORT"],
    ],
)
def test_a_question_that_cannot_be_asked_exits_with_2(
    arguments: list[str], practice: tuple[Path, str], tmp_path: Path
) -> None:
    known = {"EXPORT": str(practice[0]), "KEY": practice[1], "EMPTY": str(tmp_path)}
    result = RUN.invoke(app, [known.get(argument, argument) for argument in arguments])
    assert result.exit_code == 2, result.output


def test_another_key_or_another_log_breaks(practice: tuple[Path, str], tmp_path: Path) -> None:
    from privacy.signing import SigningKey

    folder, key = practice
    for name in (key.split("+")[0], "another.example"):
        other = SigningKey.generate(name=name).public.text
        result = RUN.invoke(app, ["verify", str(folder), "--key", other])
        assert result.exit_code == 1
        assert "BROKE  The newest checkpoint" in result.output


def test_show_prints_entries_by_number_and_kind(practice: tuple[Path, str]) -> None:
    folder, _ = practice
    result = RUN.invoke(app, ["show", str(folder), "--kind", "receipt", "--count", "2", "--json"])
    assert result.exit_code == 0
    lines = [json.loads(line) for line in result.output.splitlines()]
    assert [line["kind"] for line in lines] == ["receipt", "receipt"]
    assert lines[0]["body"]["round"] == 1, "the signed payload, readable"
    result = RUN.invoke(app, ["show", str(folder), "--start", "0", "--count", "1"])
    assert "site-enrolled" in result.output
    assert "(not verified)" in result.output


def test_a_long_ledger_is_verified_by_several_processes_to_the_same_report(tmp_path: Path) -> None:
    """Above the threshold two processes share the work; what they find is what one finds."""
    from privacy.accounting import spend_of

    ledger = ExampleLedger(
        scale=ExampleScale(num_sites=2, num_rounds=2, num_cohorts=2100),
        cost=lambda events, delta: spend_of(events, delta=delta).epsilon,
    )
    for name, data in write_export(list(ledger.write()), ledger.note(), history=ledger.history):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    outputs = []
    for jobs in ("1", "2"):
        arguments = ["verify", str(tmp_path), "--key", ledger.key.public.text, "--jobs", jobs, "--json"]
        result = RUN.invoke(app, arguments)
        assert result.exit_code == 0, result.output
        outputs.append(result.output)
    assert outputs[0] == outputs[1]
