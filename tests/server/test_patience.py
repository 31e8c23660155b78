"""When a round stops waiting: every site's answer, a stop, or the quorum and a grace; a clock that is moved by hand."""

from __future__ import annotations

from dataclasses import dataclass

from models.exchange import Refusal, RoundReply
from server.federation import SiteFailure
from server.patience import Patience

SITES = ("ash", "birch", "cedar", "date")


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def reply(site: str, refusal: Refusal | None = None) -> RoundReply:
    return RoundReply(kind="refine", run="r", round=2, nonce="n", site=site, refusal=refusal)


def answers(*sites: str) -> dict[str, RoundReply | SiteFailure]:
    return {site: reply(site) for site in sites}


def make(clock: Clock, **changes: object) -> Patience:
    settings = {"awaited": SITES, "quorum": 2, "grace_seconds": 10.0, **changes}
    return Patience(clock=clock, **settings)  # type: ignore[arg-type]


def test_all_answers_are_enough_at_once_failures_among_them() -> None:
    patience = make(Clock())
    assert not patience(answers("ash", "birch", "cedar"))
    assert patience({**answers("ash", "birch", "cedar"), "date": SiteFailure(code="error", reason="")})


def test_a_dead_site_costs_the_grace_and_not_the_deadline() -> None:
    clock = Clock()
    patience = make(clock)
    clock.now += 3
    assert not patience(answers("ash", "birch"))
    clock.now += 9.9
    assert not patience(answers("ash", "birch", "cedar"))
    clock.now += 0.2
    assert patience(answers("ash", "birch", "cedar"))


def test_a_slow_site_has_as_long_again_as_the_quorum_took() -> None:
    clock = Clock()
    patience = make(clock)
    clock.now += 60
    assert not patience(answers("ash", "birch"))
    clock.now += 59
    assert not patience(answers("ash", "birch"))
    clock.now += 2
    assert patience(answers("ash", "birch"))


def test_refusals_failures_and_sites_that_nobody_waits_for_make_no_quorum() -> None:
    clock = Clock()
    patience = make(clock, awaited=("ash", "birch", "cedar"))
    said = {
        "ash": reply("ash"),
        "birch": reply("birch", Refusal(code="budget", reason="")),
        "date": reply("date"),
    }
    clock.now += 1
    assert not patience(said)
    clock.now += 1000
    assert not patience(said)


def test_a_stop_ends_the_waiting_and_is_remembered() -> None:
    clock, asked = Clock(), []
    patience = make(clock, stopped=lambda: bool(asked.append(clock.now)) or clock.now > 101)
    assert not patience({})
    for _ in range(9):
        assert not patience({})
    assert len(asked) == 1  # the database is not asked at every look
    clock.now += 2
    assert patience({})
    assert patience.stop_seen
