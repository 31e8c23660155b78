"""Invitations: good once, for one name, until they expire; a card waits until the operator decides."""

from __future__ import annotations

import dataclasses
import datetime as dt
import threading

import pytest

from privacy.invitation import Invitation, InvitationError, ledger_key_digest
from privacy.ledger import SiteEnrolled, SiteLeft, SitePolicy
from privacy.signing import SigningKey
from server import invitations, ledger_store, sites
from server.errors import ConflictError, InvalidError, NotFoundError, ServerError
from server.invitations import InvitationRefusedError
from server.tables import InvitationRow

POLICY = {"epsilon_per_study": "4.0", "epsilon_total": "10.0", "max_delta": "1e-05"}


def card(name: str = "east", *, node: str = "ecdsa-sha2-nistp384 AAAAeast") -> sites.SiteCard:
    key = SigningKey.generate(name=name).public.text
    return sites.SiteCard(name=name, receipt_key=key, node_public_key=node, policy=POLICY)


def invite(store, facts, site: str = "east", **options) -> Invitation:
    return Invitation.parse(invitations.invite_site(store, facts, site=site, by="olga", **options).text)


def answer(store, invitation: Invitation, answered: sites.SiteCard, **other) -> invitations.KeptInvitation:
    given = {"identifier": invitation.identifier, "secret": invitation.secret, **other}
    return invitations.answer_invitation(store, card=answered, **given)


def test_invited_answered_approved_is_enrolled_with_its_entries(store, facts) -> None:
    invitation, mine = invite(store, facts), card()
    assert answer(store, invitation, mine).state == "pending"
    assert sites.list_sites(store) == []
    assert ledger_store.num_entries(store) == 0
    site = invitations.approve(store, "east", by="olga")
    assert (site.state, site.receipt_key) == ("enrolled", mine.receipt_key)
    kinds = [type(one.entry.body) for one in ledger_store.read_entries(store)]
    assert kinds == [SiteEnrolled, SitePolicy]
    [kept] = invitations.list_invitations(store)
    assert (kept.state, kept.decided_by) == ("enrolled", "olga")


def test_an_invitation_says_what_the_site_must_find(store, facts) -> None:
    invitation = invite(store, facts)
    assert invitation.ca_fingerprint == facts.ca_fingerprint
    assert invitation.ledger_key_digest == ledger_key_digest(store.key.public.text)
    assert invitation.secret not in repr(invitation)


def test_only_the_hash_of_its_secret_is_kept(store, facts) -> None:
    invitation = invite(store, facts)
    with store.database.read() as session:
        row = session.query(InvitationRow).one()
        kept = " ".join(str(getattr(row, column.key)) for column in InvitationRow.__table__.columns)
    assert invitation.secret not in kept


def test_the_same_card_again_changes_nothing_and_another_is_refused(store, facts) -> None:
    invitation, mine = invite(store, facts), card()
    first = answer(store, invitation, mine)
    assert answer(store, invitation, mine) == first
    with pytest.raises(InvitationRefusedError, match="used already, with another card"):
        answer(store, invitation, card())
    invitations.approve(store, "east", by="olga")
    with pytest.raises(InvitationRefusedError, match="used already, with another card"):
        answer(store, invitation, card())
    assert answer(store, invitation, mine).state == "enrolled"
    assert ledger_store.num_entries(store) == 2
    with pytest.raises(NotFoundError):
        invitations.approve(store, "east", by="olga")


def test_while_it_waits_the_policy_may_change_and_the_keys_may_not(store, facts) -> None:
    invitation, mine = invite(store, facts), card()
    answer(store, invitation, mine)
    answer(store, invitation, dataclasses.replace(mine, policy={**POLICY, "epsilon_total": "5.0"}))
    assert invitations.approve(store, "east", by="olga").policy["epsilon_total"] == "5.0"
    answer(store, invitation, mine)
    assert sites.get_site(store, "east").policy["epsilon_total"] == "5.0"


def test_an_expired_invitation_is_refused_but_an_answered_one_still_tells_how_it_stands(
    store, facts, clock
) -> None:
    late, early, mine = invite(store, facts), invite(store, facts, "west"), card("west", node="ecdsa west")
    answer(store, early, mine)
    clock.move(hours=73)
    with pytest.raises(InvitationRefusedError, match="expired at 2026"):
        answer(store, late, card())
    assert answer(store, early, mine).state == "pending"


def test_unknown_and_wrong_secrets_read_the_same(store, facts) -> None:
    invitation = invite(store, facts)
    said = []
    for other in ({"identifier": "aaaaaaaaaa"}, {"secret": "A" * 43}, {"secret": "\ud800"}, {"secret": ""}):
        with pytest.raises(InvitationRefusedError) as caught:
            answer(store, invitation, card(), **other)
        said.append(str(caught.value))
    assert len(set(said)) == 1
    assert invitation.secret not in said[0]


def test_ten_wrong_secrets_end_an_invitation_and_nine_do_not(store, facts) -> None:
    for wrong, ends in ((9, False), (10, True)):
        invitation = invite(store, facts, "east")
        for _ in range(wrong):
            with pytest.raises(InvitationRefusedError):
                answer(store, invitation, card(), secret="A" * 43)
        if ends:
            with pytest.raises(InvitationRefusedError, match="withdrawn"):
                answer(store, invitation, card())
        else:
            answer(store, invitation, card())
            invitations.deny(store, "east", by="olga", reason="another try")


def test_it_is_for_one_name(store, facts) -> None:
    with pytest.raises(InvitationRefusedError, match="for a site named 'east', not 'mallory'"):
        answer(store, invite(store, facts), card("mallory"))


def test_a_later_invitation_replaces_the_one_that_nobody_answered(store, facts) -> None:
    first, second = invite(store, facts), invite(store, facts)
    with pytest.raises(InvitationRefusedError, match="was withdrawn"):
        answer(store, first, card())
    answer(store, second, card())
    with pytest.raises(ConflictError, match="waits already"):
        invite(store, facts)


def test_a_denied_site_is_told_why_and_may_be_invited_again(store, facts) -> None:
    invitation, mine = invite(store, facts), card()
    answer(store, invitation, mine)
    with pytest.raises(InvalidError, match="reason"):
        invitations.deny(store, "east", by="olga", reason=" ")
    invitations.deny(store, "east", by="olga", reason="no contract yet")
    told = answer(store, invitation, mine)
    assert (told.state, told.reason) == ("denied", "no contract yet")
    with pytest.raises(NotFoundError):
        invitations.approve(store, "east", by="olga")
    answer(store, invite(store, facts), mine)
    assert invitations.approve(store, "east", by="olga").name == "east"


def test_an_invitation_that_nobody_answered_can_be_taken_back(store, facts) -> None:
    invitation = invite(store, facts)
    taken = invitations.deny(store, "east", by="olga", reason="sent to the wrong person")
    assert (taken.state, taken.decided_by) == ("withdrawn", "olga")
    with pytest.raises(InvitationRefusedError, match=r"was withdrawn \(sent to the wrong person\)"):
        answer(store, invitation, card())
    with pytest.raises(NotFoundError):
        invitations.deny(store, "east", by="olga", reason="twice")
    answer(store, invite(store, facts), card())


def test_a_key_or_name_of_another_site_is_refused_before_it_waits(store, facts, scenario) -> None:
    scenario.enrol()
    with pytest.raises(ConflictError, match="there is a site 'north' already"):
        invite(store, facts, "north")
    north = sites.get_site(store, "north")
    with pytest.raises(ConflictError, match="already belongs to site 'north'"):
        answer(store, invite(store, facts), card(node=north.node_public_key))


def test_a_card_that_no_ledger_entry_can_hold_never_waits(store, facts) -> None:
    for policy in ({"columns": ["x" * 70_000]}, {"epsilon_total": float("nan")}, {"epsilon_total": 1.5}):
        with pytest.raises(InvalidError, match="card cannot be used"):
            dataclasses.replace(card(), policy=policy)


def test_of_two_cards_at_once_one_waits(store, facts) -> None:
    invitation = invite(store, facts)
    outcomes: list[str] = []

    def try_one(number: int) -> None:
        try:
            outcomes.append(answer(store, invitation, card(node=f"ecdsa {number}")).state)
        except ServerError as error:
            outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=try_one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["InvitationRefusedError"] * 3 + ["pending"]


@pytest.mark.parametrize("options", [{"lifetime": dt.timedelta(0)}, {"lifetime": dt.timedelta(days=31)}])
def test_a_lifetime_has_bounds(store, facts, options) -> None:
    with pytest.raises(InvalidError):
        invite(store, facts, **options)


def test_a_revoked_site_is_a_ledger_entry(store, scenario) -> None:
    scenario.enrol()
    sites.set_state(store, "north", "left", reason="revoked")
    last = list(ledger_store.read_entries(store))[-1].entry.body
    assert last == SiteLeft(site="north", reason="revoked")


# The text


def test_a_mangled_invitation_is_refused_without_repeating_it() -> None:
    whole = Invitation(
        api_url="https://federation.example.org",
        ca_fingerprint=":".join(["AB"] * 32),
        ledger_key_digest="sha256:" + "0" * 64,
        site="east",
        identifier="abcdefghij",
        secret="S" * 43,
    )
    assert Invitation.parse(whole.text) == whole
    wrapped = "\n ".join(whole.text[at : at + 60] for at in range(0, len(whole.text), 60))
    assert Invitation.parse(wrapped) == whole
    body = whole.text.split(".")[1]
    for bad in ("", "x", whole.text[:-1], whole.text[:60], whole.text.replace(body, body[:-4]), body):
        with pytest.raises(InvitationError) as caught:
            Invitation.parse(bad)
        assert "SSSS" not in str(caught.value)
        assert len(bad) < 9 or bad not in str(caught.value)
    with pytest.raises(InvitationError, match="not printed"):
        dataclasses.replace(whole, secret="no")


# The API


def body(invitation: Invitation, answered: sites.SiteCard, **other: str) -> dict:
    listed = {"name": answered.name, "receipt_key": answered.receipt_key, "policy": dict(answered.policy)}
    listed["node_public_key"] = answered.node_public_key
    return {"invitation": invitation.identifier, "secret": invitation.secret, "card": listed, **other}


def test_the_api_joins_a_site_with_its_secret_alone(api, facts) -> None:
    assert api.get(None, "/v1/federation").json() == facts.to_dict()
    made = api.post("operator", "/v1/invitations", {"site": "east", "hours": 2})
    assert made.status_code == 201
    invitation, mine = Invitation.parse(made.json()["text"]), card()
    taken = api.post(None, "/v1/enrolments", body(invitation, mine))
    assert (taken.status_code, taken.json()["state"]) == (202, "pending")
    listed = api.get("auditor", "/v1/invitations?state=pending")
    assert [one["site"] for one in listed.json()["items"]] == ["east"]
    assert invitation.secret not in listed.text
    assert api.post("operator", "/v1/enrolments/east/approve").json()["state"] == "enrolled"
    assert api.post(None, "/v1/enrolments", body(invitation, mine)).json()["state"] == "enrolled"
    assert api.post("operator", "/v1/enrolments/east/deny", {"reason": "x"}).status_code == 404


def test_wrong_answers_are_refused_in_words_and_then_not_heard(api, store, facts) -> None:
    invitation = invite(store, facts)
    for number in range(12):
        refused = api.post(None, "/v1/enrolments", body(invitation, card(), secret="A" * 43))
        assert refused.status_code == (403 if number < 10 else 429), refused.text
        assert refused.headers["content-type"] == "application/problem+json"
    assert int(refused.headers["retry-after"]) <= 61
    right = api.post(None, "/v1/enrolments", body(invite(store, facts, "west"), card("west")))
    assert right.status_code == 429
