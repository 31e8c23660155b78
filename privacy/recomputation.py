"""Recompute what receipts claim and what policies cap, each distinct composition once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from privacy.accounting import AccountingError, Group, spend_of
from privacy.events import MechanismEvent
from privacy.findings import TOLERANCE
from privacy.replay import LedgerReplay

SpendKey = tuple[tuple[Group, ...], float]
"""Merged events as (noise_multiplier, sample_rate, steps), and delta: what determines an epsilon."""

Recompute = Callable[[SpendKey], "float | str"]
MapSpends = Callable[[Recompute, Iterable[SpendKey]], Iterator["float | str"]]
Accounting = Literal["every", "last"]


def recompute_epsilon(key: SpendKey) -> float | str:
    """Epsilon of merged events, by both accountants; a text where it could not be established."""
    groups, delta = key
    events = [
        MechanismEvent(
            phase="measure" if rate == 1 else "refine",
            kind="gaussian" if rate == 1 else "subsampled_gaussian",
            noise_multiplier=sigma,
            sample_rate=rate,
            steps=steps,
        )
        for sigma, rate, steps in groups
    ]
    try:
        return spend_of(events, delta=delta).epsilon
    except (AccountingError, ValueError) as error:
        return str(error)


def check_spends(
    replay: LedgerReplay,
    accounting: Accounting,
    map_spends: MapSpends,
    recompute: Recompute,
    progress: Callable[[int, int], None],
) -> int:
    """Compare every claim and cap with what the events cost; problems go to the replay's `spend` and `caps`.

    Args:
        replay: after the last entry.
        accounting: all claims, or only those after the last receipt of each site and study.
        map_spends: `map` or one over processes, in order.
        recompute: epsilon of merged events, or a text why not.
        progress: called with how many are done, and of how many.

    Returns:
        The number of distinct compositions.
    """
    claims = replay.claims if accounting == "every" else replay.final_claims()
    keys = list(dict.fromkeys([*claims, *((cap.groups, cap.delta) for cap in replay.caps.values())]))
    costs: dict[SpendKey, float] = {}
    for done, (key, cost) in enumerate(zip(keys, map_spends(recompute, keys), strict=True), 1):
        progress(done, len(keys))
        if isinstance(cost, str):
            where = f"entry {claims[key].index}" if key in claims else "a cap"
            replay.problems["spend"].add(f"{where}: the epsilon could not be recomputed: {cost}")
        else:
            costs[key] = cost
    for key, claim in claims.items():
        cost = costs.get(key, 0.0)
        if claim.least < cost - TOLERANCE:
            replay.problems["spend"].add(
                f"entry {claim.index}: claims epsilon {claim.least}; the site's logged events cost {cost}"
            )
        elif claim.greatest > cost + TOLERANCE:
            replay.counts["cautious claim"] += 1
    for cap in replay.caps.values():
        spent = costs.get((cap.groups, cap.delta), 0.0)
        if spent > cap.cap + TOLERANCE * max(cap.cap, 1):
            replay.problems["caps"].add(f"{cap.what}: {spent} is beyond {cap.cap}")
    return len(keys)
