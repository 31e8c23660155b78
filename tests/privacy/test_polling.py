"""Polls start quick, become patient, and never add much to a wait."""

from __future__ import annotations

import pytest

from privacy.cli.polling import SHARE, poll_pause


@pytest.mark.parametrize(("least", "most"), [(0.05, 0.5), (0.1, 3.0)])
def test_polls_start_quick_and_never_add_much_to_a_wait(least: float, most: float) -> None:
    waits = [0.01 * 1.3**k for k in range(60)]
    pauses = [poll_pause(waited, least=least, most=most) for waited in waits]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (least, most)
    assert all(pause <= max(least, SHARE * waited) for pause, waited in zip(pauses, waits, strict=True))


def test_a_wait_of_a_minute_takes_few_polls() -> None:
    waited, polls = 0.0, 0
    while waited < 60:
        waited += poll_pause(waited, least=0.1, most=3.0)
        polls += 1
    assert polls < 100
