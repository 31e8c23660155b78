"""The key that signs the ledger is replaced: sites follow, auditors verify across, and nobody else can do it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from in_process import InProcessLab

from client.rounds import SiteRounds
from models.exchange import RoundRequest
from models.study import Study
from privacy.checkpoint import sign_checkpoint
from privacy.ledger import rotate_key
from privacy.merkle import LedgerVerificationError
from privacy.signing import SigningKey
from privacy.verification import verify_export
from server import ledger_store, runs, studies
from server.ledger_key import rotate_ledger_key
from server.rounds import RoundFailedError, run_rounds
from server.store import Store


def study(name: str) -> Study:
    return Study.from_dict(
        {
            "name": name,
            "privacy": {"epsilon": 2.0, "delta": 1e-5},
            "measure": {"noise_multiplier": 3.0},
            "warm_start": {"components": 10, "steps": 10},
            "table": {"columns": [{"name": "ill", "kind": "boolean"}, {"name": "old", "kind": "boolean"}]},
            "federation": {"quorum": 2, "round_deadline_seconds": 3.0},
        }
    )


@pytest.fixture
def lab(tmp_path):
    rng = np.random.default_rng(0)
    tables = {
        name: pd.DataFrame({"ill": rng.random(400) < 0.3, "old": rng.random(400) < 0.5})
        for name in ("ash", "birch")
    }
    made = InProcessLab(tmp_path, tables)
    yield made
    made.store.close()


def train(lab, name: str) -> None:
    lab.train(study(name))


def reopened(lab) -> Store:
    """As after a restart of the coordinator's processes."""
    lab.store.close()
    lab.store = Store.open(lab.coordinator)
    return lab.store


def verify(lab, key) -> None:
    files = dict(ledger_store.export_files(lab.store))
    verify_export(files.get, key=key)


def test_sites_follow_a_replaced_key_through_restarts_and_the_ledger_verifies_by_either(lab):
    train(lab, "first")
    old = lab.store.key.public
    new = rotate_ledger_key(lab.coordinator, lab.store)
    assert new != old
    reopened(lab)
    assert lab.store.key.public == new
    train(lab, "second")
    lab.federation.sites.update(
        {name: SiteRounds(site) for name, site in lab.sites.items()}
    )  # a worker's restart
    newer = rotate_ledger_key(lab.coordinator, lab.store)
    reopened(lab)
    train(lab, "third")
    newest = ledger_store.latest_checkpoint(lab.store)
    for site in lab.sites.values():
        assert newest.cosigned_at(site.receipt_key().public) is not None
    for key in (old, new, newer):
        verify(lab, key)
    with pytest.raises(LedgerVerificationError):
        verify(lab, SigningKey.generate(name=old.name).public)


def test_a_rotation_that_broke_off_is_finished_by_running_it_again(lab):
    train(lab, "first")
    before = lab.coordinator.signing_key_file.read_bytes()
    new = rotate_ledger_key(lab.coordinator, lab.store)
    # A crash before the renaming leaves the entry, the old key in its place, and the new one beside it.
    draft = lab.coordinator.signing_key_file.with_suffix(".next.pem")
    draft.write_bytes(lab.coordinator.signing_key_file.read_bytes())
    lab.coordinator.signing_key_file.write_bytes(before)
    reopened(lab)
    size = ledger_store.num_entries(lab.store)
    assert rotate_ledger_key(lab.coordinator, lab.store) == new
    assert ledger_store.num_entries(lab.store) == size
    assert not draft.exists()
    assert reopened(lab).key.public == new
    train(lab, "second")


def test_a_process_that_holds_the_old_key_signs_nothing_more(lab):
    rotate_ledger_key(lab.coordinator, lab.store)
    with pytest.raises(LedgerVerificationError, match="rotate-key` restart the server"):
        studies.register_study(lab.store, study("second"), created_by="operator")


def test_whoever_holds_only_a_new_key_can_show_a_site_nothing(lab):
    train(lab, "first")
    impostor = SigningKey.generate(name=lab.store.key.name)
    forged = rotate_key("coordinator", SigningKey.generate(name=impostor.name), impostor)
    site, rounds = next(iter(lab.sites.values())), next(iter(lab.federation.sites.values()))
    newest = ledger_store.latest_checkpoint(lab.store).checkpoint
    request = RoundRequest(
        kind="witness",
        run="run",
        round=1,
        nonce="n",
        study=studies.get_study(lab.store, "first").study,
        checkpoint={
            "note": sign_checkpoint(newest, impostor).decode(),
            "since": newest.size,
            "proof": [],
            "rotations": [dict(forged.envelope)],
        },
    )
    reply = rounds.handle(request)
    assert "cannot be witnessed" in reply.refusal.reason
    assert not (site.state / "coordinator-keys.json").exists()
    assert list(site.state.glob("refused-*.checkpoint"))


def test_a_coordinator_that_hides_a_replacement_is_refused(lab):
    train(lab, "first")
    rotate_ledger_key(lab.coordinator, lab.store)
    reopened(lab)
    train(lab, "second")

    class Hiding:
        def exchange(self, requests, **waiting):
            changed = {
                site: replace(one, checkpoint={**one.checkpoint, "rotations": []})
                for site, one in requests.items()
            }
            return lab.federation.exchange(changed, **waiting)

    registered = studies.register_study(lab.store, study("third"), created_by="operator").study
    run = runs.create_run(lab.store, registered.name, started_by="operator")
    with pytest.raises(RoundFailedError, match="not those seen before"):
        run_rounds(Hiding(), lab.store, run.id)
