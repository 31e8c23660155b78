"""A policy that is absent, unreadable, unknown or ambiguous allows nothing, and says what to do."""

from __future__ import annotations

from datetime import UTC, datetime, time

import pytest

from client.policy import PolicyError, QuietHours, load_policy, parse_policy, policy_text
from privacy.canonical import digest
from privacy.ledger import SitePolicy as LoggedPolicy

GOOD = policy_text(
    epsilon_per_run=1.0,
    epsilon_per_study=2.0,
    epsilon_total=4,
    max_delta=1e-5,
    min_patients=100,
    app_digests=["ab" * 32],
    studies=["adult-demo", "sha256:" + "0" * 64],
    columns=["age", "sex"],
    window_days=30,
    epsilon_per_window=3.0,
    quiet_hours=("22:00", "06:30"),
)


def test_what_the_template_writes_reads_back():
    policy = parse_policy(GOOD)
    assert (policy.epsilon_per_run, policy.epsilon_per_study, policy.epsilon_total) == (1.0, 2.0, 4.0)
    assert policy.approval == "manual"
    assert policy.app_digests == {"ab" * 32}
    assert policy.quiet_hours == QuietHours(start=time(22), end=time(6, 30))
    assert policy.window_days == 30
    assert policy.columns == {"age", "sex"}


def test_a_policy_without_optional_parts_reads_too():
    text = policy_text(
        epsilon_per_run=1,
        epsilon_per_study=1,
        epsilon_total=1,
        max_delta=1e-6,
        min_patients=1,
        app_digests=[],
    )
    policy = parse_policy(text)
    assert policy.studies is None
    assert policy.columns is None
    assert policy.quiet_hours is None
    assert policy.epsilon_per_window is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("version = 1", "version = 2", "version"),
        ("version = 1", "version = true", "version"),
        ("version = 1", "version = 1\nversion = 1", "line"),
        ("epsilon_per_run = 1.0", "epsilon_per_run = 0", "above 0"),
        ("epsilon_per_run = 1.0", "epsilon_per_run = -1.0", "above 0"),
        ("epsilon_per_run = 1.0", "epsilon_per_run = nan", "finite"),
        ("epsilon_per_run = 1.0", "epsilon_per_run = inf", "finite"),
        ("epsilon_per_run = 1.0", "epsilon_per_run = '1'", "finite number"),
        ("epsilon_per_run = 1.0", "epsilon_per_run = true", "finite number"),
        ("epsilon_per_run = 1.0", "epsilon_per_run = 2.5", "which of the two"),
        ("epsilon_per_study = 2.0", "epsilon_per_study = 4.5", "which of the two"),
        ("epsilon_per_window = 3.0", "epsilon_per_window = 9.0", "which of the two"),
        ("epsilon_per_window = 3.0", "", "need each other"),
        ("window_days = 30", "", "need each other"),
        ("window_days = 30", "window_days = 0", "whole number"),
        ("window_days = 30", "window_days = 1.5", "whole number"),
        ("epsilon_total = 4.0", "", "epsilon_total is missing"),
        ("epsilon_total = 4.0", "epsilon_totla = 4.0", "epsilon_totla is not known"),
        ("max_delta = 1e-05", "max_delta = 1.0", "max_delta"),
        ("max_delta = 1e-05", "max_delta = 0.0", "max_delta"),
        ("max_delta = 1e-05", "max_delta = 1e-15", "max_delta"),
        ("minimum = 100", "minimum = 0", "whole number"),
        ("minimum = 100", "minimum = '100'", "whole number"),
        ("minimum = 100", "minimum = true", "whole number"),
        ("[patients]\n", "[patents]\n", "'patents' is not a section"),
        ('allowed = ["adult-demo"', 'allowed = ["Adult demo"', "no name and no digest"),
        ('allowed = ["adult-demo"', 'allowed = ["adult-demo", "adult-demo"', "twice"),
        ('allowed = ["adult-demo"', "allowed = [7", "list of texts"),
        ('columns = ["age", "sex"]', 'columns = "age"', "list of texts"),
        ('columns = ["age", "sex"]', 'columns = [""]', "list of texts"),
        ('app_digests = ["abab', 'app_digests = ["zz', "64 lower-case"),
        ('approval = "manual"', 'approval = "Automatic"', "manual"),
        ('approval = "manual"', 'approval = ["manual"]', "manual"),
        ('until = "06:30"', 'until = "22:00"', "all day or never"),
        ('until = "06:30"', 'until = "6:30"', "time of day"),
        ('until = "06:30"', "until = 06:30:00", "time of day"),
        ('until = "06:30"', "", "quiet_hours.until is missing"),
        ("[budget]", "[budget", "line"),
        ("[studies]", "[studies]\nextra = 1", "studies.extra is not known"),
        ("[budget]\n", "[[budget]]\n", "must be a section"),
    ],
)
def test_a_policy_that_is_not_clear_is_refused(old, new, message):
    assert old in GOOD
    with pytest.raises(PolicyError, match=message):
        parse_policy(GOOD.replace(old, new, 1))


def test_an_empty_app_list_cannot_be_any():
    with pytest.raises(PolicyError, match="a list of texts"):
        parse_policy(GOOD.replace(f'["{"ab" * 32}"]', '"any"'))


def test_an_empty_or_absent_or_unreadable_file_refuses(tmp_path):
    file = tmp_path / "policy.toml"
    with pytest.raises(PolicyError, match=r"policy\.toml does not exist, so everything is refused"):
        load_policy(file)
    file.write_text("")
    with pytest.raises(PolicyError, match=r"policy\.toml: version is None"):
        load_policy(file)
    file.write_bytes(b"\xff\xfe" + GOOD.encode())
    with pytest.raises(PolicyError, match="cannot be read"):
        load_policy(file)
    file.unlink()
    file.mkdir()
    with pytest.raises(PolicyError, match="cannot be read"):
        load_policy(file)


def test_a_file_that_everybody_may_change_is_refused(tmp_path):
    file = tmp_path / "policy.toml"
    file.write_text(GOOD)
    file.chmod(0o644)
    assert load_policy(file) == parse_policy(GOOD)
    file.chmod(0o646)
    with pytest.raises(PolicyError, match="chmod o-w"):
        load_policy(file)


def test_a_policy_that_was_cut_off_is_refused():
    whole = parse_policy(GOOD)
    for length in range(len(GOOD)):
        try:
            cut = parse_policy(GOOD[:length])
        except PolicyError:
            continue
        assert cut == whole


def test_the_digest_names_the_meaning_not_the_spelling():
    policy = parse_policy(GOOD)
    respelled = (
        GOOD.replace("# ", "#  ").replace("1e-05", "0.00001").replace('["age", "sex"]', '["sex", "age"]')
    )
    assert parse_policy(respelled).digest == policy.digest == digest(policy.to_dict())
    assert parse_policy(GOOD.replace("minimum = 100", "minimum = 99")).digest != policy.digest


def test_the_ledger_reads_the_same_caps_and_digest():
    policy = parse_policy(GOOD)
    logged = LoggedPolicy(site="north", policy=policy.to_dict())
    assert logged.policy_digest == policy.digest
    assert [logged.cap(name) for name in ("epsilon_per_study", "epsilon_total", "max_delta")] == [
        2.0,
        4.0,
        1e-5,
    ]


@pytest.mark.parametrize(
    ("hours", "moment", "quiet"),
    [
        (("22:00", "06:30"), time(23), True),
        (("22:00", "06:30"), time(6, 29), True),
        (("22:00", "06:30"), time(6, 30), False),
        (("22:00", "06:30"), time(21, 59), False),
        (("08:00", "18:00"), time(8), True),
        (("08:00", "18:00"), time(18), False),
        (("08:00", "18:00"), time(3), False),
    ],
)
def test_quiet_hours_may_go_over_midnight(hours, moment, quiet):
    start, end = (time.fromisoformat(hour) for hour in hours)
    assert QuietHours(start=start, end=end).include(moment) is quiet


def test_quiet_hours_are_read_on_the_sites_own_clock():
    policy = parse_policy(GOOD)
    local = datetime(2026, 11, 22, 23, 0).astimezone()
    assert policy.is_quiet(local)
    assert policy.is_quiet(local.astimezone(UTC))
