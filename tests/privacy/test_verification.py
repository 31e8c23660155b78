"""The verifier against the probe corpus: each named fault is found by exactly the checks that it must break."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from privacy.export import pack, tile_path, write_export
from privacy.ledger_example import ExampleLedger, ExampleScale
from privacy.merkle import LedgerVerificationError, leaf_hash
from privacy.signing import SigningKey, VerifyKey
from privacy.verification import audit_export, verify_export

FOLDER = Path(__file__).parents[1] / "probes" / "ledger"
PROBES = sorted(FOLDER.glob("*.json"))


def files_of(probe: dict[str, Any]) -> dict[str, bytes]:
    """A probe as the files of an export (all of them fit into one bundle)."""
    happy = json.loads((FOLDER / "happy-path.json").read_text(encoding="utf-8"))["entries"]
    entries = [(happy[text] if isinstance(text, int) else text).encode() for text in probe["entries"]]
    files = {"checkpoint": probe["checkpoint"].encode()}
    if entries:
        files[tile_path("entries", 0, len(entries))] = pack(entries)
        files[tile_path("0", 0, len(entries))] = b"".join(map(leaf_hash, entries))
    if probe["history"]:
        files["checkpoints/000"] = pack([note.encode() for note in probe["history"]])
    return {**files, **{name: base64.b64decode(data) for name, data in probe["tiles"].items()}}


@pytest.mark.parametrize("path", PROBES, ids=lambda path: path.stem)
def test_every_probe_breaks_exactly_its_checks(path: Path) -> None:
    probe = json.loads(path.read_text(encoding="utf-8"))
    report = audit_export(
        files_of(probe).get,
        key=VerifyKey.from_text(probe["key"]),
        since=None if probe["since"] is None else probe["since"].encode(),
    )
    found = {check.name: check.problems for check in report.checks if check.held is False}
    assert sorted(found) == sorted(probe["broken"]), found
    assert all(problems for problems in found.values()), "a broken check says why"
    assert report.held is (not probe["broken"])


def test_the_corpus_breaks_every_check() -> None:
    """A check that no probe breaks would be a check that nobody has seen working."""
    from privacy.findings import CHECKS

    broken = {name for path in PROBES for name in json.loads(path.read_text(encoding="utf-8"))["broken"]}
    assert broken == set(CHECKS)


def test_claims_cost_and_caps_are_reported_per_site() -> None:
    probe = json.loads((FOLDER / "happy-path.json").read_text(encoding="utf-8"))
    report = audit_export(files_of(probe).get, key=VerifyKey.from_text(probe["key"]))
    assert [(spend.site, spend.budget) for spend in report.spends] == [("hill", 2.0), ("mercy", 2.0)]
    assert report.spends[0].epsilon == report.spends[1].epsilon > 0.44
    assert report.witnessed_size == 9
    assert report.num_compositions == 2, "equal sequences at two sites are composed once"
    json.dumps(report.to_dict())


def test_verify_export_returns_none_or_raises() -> None:
    probe = json.loads((FOLDER / "happy-path.json").read_text(encoding="utf-8"))
    files, key = files_of(probe), VerifyKey.from_text(probe["key"])
    assert verify_export(files.get, key=key) is None
    with pytest.raises(LedgerVerificationError, match="Merkle tree"):
        verify_export({**files, "tile/0/000.p/13": b""}.get, key=key)


def test_a_ledger_of_many_bundles_holds_and_each_missing_file_is_found() -> None:
    """More than 65,536 leaves would be slow here: 600 entries have full and partial bundles and two tile levels."""
    ledger = ExampleLedger(
        scale=ExampleScale(num_sites=2, num_studies=2, num_rounds=3, num_cohorts=285),
        cost=lambda events, delta: float(len(events)),
    )
    entries = list(ledger.write())
    files = dict(write_export(entries, ledger.note(), history=ledger.history))
    assert len(entries) > 512

    def audit(files: dict[str, bytes]) -> list[str]:
        report = audit_export(files.get, key=ledger.key.public, recompute=lambda key: 1.0)
        return [check.name for check in report.checks if check.held is False]

    assert audit(files) == []
    for name in files:
        left = {other: data for other, data in files.items() if other != name}
        if name != "checkpoints/000":  # earlier checkpoints are evidence, not part of the log
            assert audit(left), f"{name} is missing and nobody noticed"


def test_progress_reaches_the_end_of_both_stages() -> None:
    probe = json.loads((FOLDER / "happy-path.json").read_text(encoding="utf-8"))
    seen: list[tuple[str, int, int]] = []
    audit_export(
        files_of(probe).get,
        key=VerifyKey.from_text(probe["key"]),
        progress=lambda stage, done, total: seen.append((stage, done, total)),
    )
    assert seen == [("entries", 13, 13), ("epsilons", 1, 2), ("epsilons", 2, 2)]


def test_only_the_last_claims_are_recomputed_when_asked_for() -> None:
    probe = json.loads((FOLDER / "happy-path.json").read_text(encoding="utf-8"))
    report = audit_export(files_of(probe).get, key=VerifyKey.from_text(probe["key"]), accounting="last")
    assert report.held
    assert report.num_compositions == 1


def test_an_explicit_quorum_is_demanded() -> None:
    probe = json.loads((FOLDER / "countersigned-by-one-of-two.json").read_text(encoding="utf-8"))
    key = VerifyKey.from_text(probe["key"])
    assert audit_export(files_of(probe).get, key=key, quorum=1).held
    assert not audit_export(files_of(probe).get, key=key, quorum=2).held


def test_a_witness_that_the_auditor_knows_cannot_be_replaced_by_others() -> None:
    probe = json.loads((FOLDER / "countersigned-by-one-of-two.json").read_text(encoding="utf-8"))
    key = VerifyKey.from_text(probe["key"])
    mercy = SigningKey.from_seed(b"M" * 32, name="mercy").public
    hill = SigningKey.from_seed(b"H" * 32, name="hill").public
    assert audit_export(files_of(probe).get, key=key, quorum=1, witnesses=[mercy]).held
    for unheard in (hill, SigningKey.from_seed(b"Z" * 32, name="mercy").public):
        report = audit_export(files_of(probe).get, key=key, quorum=1, witnesses=[unheard])
        assert [check.name for check in report.checks if check.held is False] == ["witnesses"]
