"""Both sides' workers with the simplest possible content: a site echoes, a coordinator counts. Run by path.

`python echo_federation.py site` and `... coordinator`, FEDTWIN_HOME set, stand in for `client.worker` and
`server.worker` in tests and benchmarks of processes, where patients and learning would only be in the way.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def serve_site() -> None:
    from client.flower_adapter import make_app
    from client.home import SiteHome
    from client.parts import PartCache
    from client.worker import configure_logging, run_worker
    from models.exchange import RoundReply, RoundRequest

    configure_logging()
    home = SiteHome.open(Path(os.environ["FEDTWIN_HOME"]))
    parts = PartCache(home.state / "parts")

    def planned() -> dict[str, Any]:
        return json.loads((home.path / "echo.json").read_text())

    def handle(request: RoundRequest) -> RoundReply:
        plan = planned()
        with (home.path / "handled.txt").open("a") as file:
            file.write(f"{request.round} {time.time():.3f}\n")
        if plan.get("raise"):
            raise ValueError("a patient's secret")
        time.sleep(plan.get("sleep_seconds", 0.0))
        return RoundReply(
            kind=request.kind,
            run=request.run,
            round=request.round,
            nonce=request.nonce,
            site=home.name,
            arrays=request.arrays,
        )

    def note(head: object) -> None:
        (home.path / "refused.txt").write_text(str(head))

    run_worker(
        home,
        make_app(lambda body, payload: handle(RoundRequest.decode(body, payload, store=parts)).encode()),
        allowed_apps=lambda: planned()["allowed"],
        on_refused=note,
    )


def serve_coordinator() -> None:
    import torch
    from flwr.app import Context
    from flwr.serverapp import Grid

    from models.exchange import RoundReply, RoundRequest
    from models.study import Study
    from server.flower_adapter import FlowerFederation
    from server.flower_worker import serve_run
    from server.home import CoordinatorHome
    from server.worker import run_worker

    home = CoordinatorHome.open(Path(os.environ["FEDTWIN_HOME"]))

    def run(grid: Grid, context: Context) -> None:
        plan = json.loads((home.path / "echo.json").read_text())
        federation = FlowerFederation(grid)
        while len(federation.sites()) < len(plan["sites"]):
            time.sleep(0.1)
        study = Study.from_dict(plan["study"])
        arrays = {"weights": torch.arange(plan.get("size", 4), dtype=torch.float32)}
        for number in range(1, plan["rounds"] + 1):
            started = time.time()
            requests = {
                site: RoundRequest(
                    kind="refine",
                    run=str(context.run_config["run"]),
                    round=number,
                    nonce=f"{number}-{site}",
                    study=study,
                    arrays=arrays,
                )
                for site in plan["sites"]
            }
            answers = federation.exchange(requests, deadline_seconds=plan["deadline_seconds"])
            entry = {
                "round": number,
                "started": started,
                "ended": time.time(),
                "answers": {
                    site: "ok"
                    if isinstance(one, RoundReply) and one.site == site and one.round == number
                    else f"{getattr(one, 'code', '?')}: {getattr(one, 'reason', one)}"
                    for site, one in answers.items()
                },
            }
            with (home.path / "rounds.jsonl").open("a") as file:
                file.write(json.dumps(entry) + "\n")

    run_worker(lambda: serve_run(home, run))


if __name__ == "__main__":
    {"site": serve_site, "coordinator": serve_coordinator}[sys.argv[1]]()
