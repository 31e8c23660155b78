"""Keys in the pages: what one has, a new one in its place, and for the operator everybody's."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest

from server import keys


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """The store's own tests hold for PostgreSQL."""
    return f"sqlite:///{tmp_path / 'fedtwin.db'}"


def seen(page: str) -> str:
    """A page's text, as one line."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def new_key(page: str) -> str:
    found = re.search(r"ftw_[a-z0-9]{10}_[A-Za-z0-9_-]{43}", page)
    assert found is not None
    return found[0]


def reaches(api: Any, key: str) -> bool:
    api.keys["this"] = key
    return api.get("this", "/v1/keys/current").status_code == 200


def test_one_sees_what_the_own_key_may_and_until_when_and_nobody_elses(api, store, person) -> None:
    made = keys.create_key(
        store, role="researcher", owner="rita", scopes=["keys:read", "releases:read"], rows_per_day=500
    )
    api.keys["rita"] = made.text
    page = person("rita").see("/keys")
    told = seen(page)
    assert f"ftw_{made.key.prefix}_… , for rita" in told
    assert "releases:read, keys:read" in told
    assert "01 Mar 2027 12:00 UTC" in told
    assert "500 of 500 are left for today" in told
    assert "6,000 a minute" in told
    assert api.keys["stranger"].split("_")[1] not in page
    assert made.text not in page
    for action in ("Rotate", "Revoke", "Make a key"):  # its scopes do not let it
        assert action not in told


def test_a_rotated_key_takes_over_and_the_session_goes_on_with_it(api, researcher, clock) -> None:
    old = api.keys["researcher"]
    answer = researcher.send("/keys/rotate", 200, key=old, overlap_hours="2")
    new = new_key(answer.text)
    assert new != old
    assert "You are signed in with it now" in seen(answer.text)
    again = researcher.see("/keys")
    assert new not in again  # it was shown once
    assert f"replaced by ftw_{new.split('_')[1]}_…" in seen(again)
    assert re.search(rf"<code>ftw_{new.split('_')[1]}_…</code>, for researcher", again)
    assert reaches(api, new)
    assert reaches(api, old)
    clock.move(hours=3)
    assert not reaches(api, old)
    assert seen(researcher.see("/keys")).count("expired") == 1


def test_a_key_is_made_or_rotated_only_by_who_can_show_the_present_one(
    api, operator, researcher, store
) -> None:
    before = len(keys.list_keys(store))
    for shown in ("", "x", api.keys["stranger"], api.keys["researcher"][:-1]):
        page = seen(researcher.send("/keys/rotate", 422, key=shown, overlap_hours="2").text)
        assert "That is not the key" in page
    fields = {"owner": "rob", "role": "operator", "days": "10", "key": api.keys["researcher"]}
    page = operator.send("/keys", 422, **fields).text
    assert "That is not the key" in seen(page)
    assert 'value="rob"' in page  # what was entered is kept
    assert len(keys.list_keys(store)) == before
    codes = {researcher.client.post(
        "/keys/rotate", data={"form_token": researcher.token, "key": "x"}
    ).status_code for _ in range(12)}  # fmt: skip
    assert codes == {422, 429}


def test_an_operator_makes_a_key_that_is_shown_once(api, operator, store) -> None:
    fields = {
        "owner": "Rita & team",
        "role": "researcher",
        "days": "30",
        "rows_per_day": "10,000",
        "scopes": ["releases:read", "cohorts:write"],
        "key": api.keys["operator"],
    }
    answer = operator.send("/keys", 200, **fields)
    assert answer.headers["cache-control"] == "no-store"
    made = keys.check_key(store, new_key(answer.text))
    assert (made.owner, made.role, made.rows_per_day) == ("Rita & team", "researcher", 10_000)
    assert made.scopes == ("releases:read", "cohorts:write")
    assert (made.expires_at - made.created_at).days == 30
    page = operator.see("/keys")
    assert not re.search(r"ftw_[a-z0-9]{10}_[A-Za-z0-9_-]{43}", page)
    assert "Rita & team" in seen(page)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("owner", "", "whom the key is for"),
        ("owner", "x" * 129, "whom the key is for"),
        ("owner", "a\tb", "printable"),
        ("role", "king", "Choose a role"),
        ("days", "0", "between 1 and 3,650"),
        ("days", "", "between 1 and 3,650"),
        ("days", "1e3", "no whole number"),
        ("days", "9" * 400, "no whole number"),
        ("rows_per_day", "-1", "Rows a day"),
        ("scopes", "releases:all", "name at least one of"),
    ],
)
def test_a_key_that_makes_no_sense_comes_back_with_the_reason(api, operator, field, value, told) -> None:
    fields = {"owner": "rita", "role": "researcher", "days": "30", "key": api.keys["operator"], field: value}
    assert told in seen(operator.send("/keys", 422, **fields).text)


def test_an_operator_with_few_scopes_gives_no_more_than_it_has(api, store, person) -> None:
    few = ["keys:read", "keys:write", "runs:read"]
    api.keys["few"] = keys.create_key(store, role="operator", owner="otto", scopes=few).text
    narrow = person("few")
    fields = {"owner": "rita", "role": "auditor", "days": "30", "key": api.keys["few"]}
    assert "a key can give the scopes that it has" in seen(narrow.send("/keys", 403, **fields).text).lower()
    narrow.send("/keys", 200, **fields, scopes="runs:read")


def test_a_revoked_key_is_worthless_and_stays_listed(api, operator, researcher) -> None:
    prefix = api.keys["stranger"].split("_")[1]
    researcher.send(f"/keys/{prefix}/revoke", 404)  # somebody else's
    assert reaches(api, api.keys["stranger"])
    operator.send(f"/keys/{prefix}/revoke")
    assert not reaches(api, api.keys["stranger"])
    page = seen(operator.see("/keys"))
    assert "1 that is no longer good" in page
    assert "revoked" in page
    own = api.keys["researcher"].split("_")[1]
    assert researcher.send(f"/keys/{own}/revoke").headers["location"] == "/keys"
    assert "Sign in" in researcher.see("/keys")
