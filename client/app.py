"""The Flower ClientApp that a site has installed: hands each request to the site's rounds, and nothing else."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from client.flower_adapter import make_app
from client.foresight import foresee_next
from client.home import SiteHome
from client.interruption import Interruption
from client.rounds import SiteRounds

interruption = Interruption()  # between the worker, which hears of a run's end, and the round in hand


@cache
def _rounds() -> SiteRounds:
    home = SiteHome.open(Path(os.environ["FEDTWIN_HOME"]))
    return SiteRounds(
        home, interruption=interruption, on_answered=lambda request: foresee_next(home, request)
    )


app = make_app(lambda body, payload: _rounds().answer(body, payload))
