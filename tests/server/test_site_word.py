"""A site leaves and changes its key by its own signature, and nobody else does it for it."""

from __future__ import annotations

import pytest

from privacy.leaving import sign_leaving
from privacy.ledger import KeyRotated, SiteLeft
from privacy.ledger import rotate_key as sign_rotation
from privacy.signing import SigningKey
from server import ledger_store, site_word, sites
from server.errors import ConflictError, InvalidError


def last_body(store):
    return list(ledger_store.read_entries(store))[-1].entry.body


def test_a_site_leaves_by_its_word_and_again_changes_nothing(store, scenario) -> None:
    scenario.enrol()
    word = sign_leaving(scenario.keys["north"], ledger=store.key.public)
    for _ in range(2):
        assert site_word.leave(store, "north", word).state == "left"
    assert last_body(store) == SiteLeft(site="north", reason="left")
    assert sites.get_site(store, "south").state == "enrolled"


def test_nobody_else_makes_a_site_leave(store, scenario) -> None:
    scenario.enrol()
    other_ledger = SigningKey.generate(name="coordinator").public
    for word in (
        sign_leaving(scenario.keys["south"], ledger=store.key.public),
        sign_leaving(SigningKey.generate(name="north"), ledger=store.key.public),
        sign_leaving(scenario.keys["north"], ledger=other_ledger),
        dict(sign_rotation("site", scenario.keys["north"], SigningKey.generate(name="north")).envelope),
        {},
    ):
        with pytest.raises(InvalidError):
            site_word.leave(store, "north", word)
    with pytest.raises(InvalidError, match="not the word of a site 'none'"):
        site_word.leave(store, "none", {})
    assert sites.get_site(store, "north").state == "enrolled"


def test_a_new_key_is_signed_by_the_old_and_is_in_the_ledger(store, scenario) -> None:
    scenario.enrol()
    new = SigningKey.generate(name="north")
    envelope = sign_rotation("site", scenario.keys["north"], new).envelope
    for _ in range(2):  # a site that did not hear the answer asks again
        assert site_word.rotate_key(store, "north", envelope).receipt_key == new.public.text
    assert last_body(store) == KeyRotated(envelope=envelope)
    assert ledger_store.num_entries(store) == 7
    newer = SigningKey.generate(name="north")
    site_word.rotate_key(store, "north", sign_rotation("site", new, newer).envelope)
    with pytest.raises(ConflictError, match="not that of a site"):
        site_word.rotate_key(store, "north", envelope)


def test_a_key_that_the_old_one_did_not_sign_is_refused(store, scenario) -> None:
    scenario.enrol()
    stranger, new = SigningKey.generate(name="north"), SigningKey.generate(name="north")
    with pytest.raises(ConflictError):
        site_word.rotate_key(store, "north", sign_rotation("site", stranger, new).envelope)
    south = sign_rotation("site", scenario.keys["south"], SigningKey.generate(name="south")).envelope
    coordinator = sign_rotation("coordinator", scenario.keys["north"], new).envelope
    for envelope in (south, coordinator, {}):
        with pytest.raises(InvalidError):
            site_word.rotate_key(store, "north", envelope)
    assert sites.get_site(store, "north").receipt_key == scenario.keys["north"].public.text


def test_no_key_changes_during_a_run_or_after_leaving(store, scenario) -> None:
    scenario.register()
    scenario.enrol()
    scenario.start()
    envelope = sign_rotation("site", scenario.keys["north"], SigningKey.generate(name="north")).envelope
    with pytest.raises(ConflictError, match="when the run has ended"):
        site_word.rotate_key(store, "north", envelope)
    sites.set_state(store, "north", "left")
    with pytest.raises(ConflictError, match="left"):
        site_word.rotate_key(store, "north", envelope)


def test_the_api_takes_a_sites_word_without_a_key(api, store, scenario) -> None:
    scenario.enrol()
    word = {"envelope": sign_leaving(scenario.keys["north"], ledger=store.key.public)}
    assert api.post(None, "/v1/sites/south/leave", word).status_code == 422
    assert api.post(None, "/v1/sites/north/leave", word).json()["state"] == "left"
    for number in range(11):
        status = api.post(None, "/v1/sites/south/key", {"envelope": {}}).status_code
        assert status == (422 if number < 9 else 429)
