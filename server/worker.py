"""The coordinator's worker: imports everything first, then takes one run, and ends with it.

`python -m server.worker` with FEDTWIN_HOME set. Ending after a run gives each run a fresh process, and the
supervisor starts the next one at once, so that the imports are done before a run asks for them.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from privacy.cli.supervisor import WORKER_READY


def main() -> None:
    """Serve one run."""
    from privacy.cli.rooms import check_rooms
    from server.app import app
    from server.flower_worker import serve_run
    from server.home import CoordinatorHome

    check_rooms()
    home = CoordinatorHome.open(Path(os.environ["FEDTWIN_HOME"]))
    run_worker(lambda: serve_run(home, app))


def run_worker(serve: Callable[[], None]) -> None:
    """Say that the worker is ready, then `serve()`; SIGTERM ends it as Ctrl-C does."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.info(WORKER_READY)
    try:
        serve()
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
