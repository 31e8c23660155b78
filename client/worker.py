"""The site's worker: one warm process that takes tasks from the local SuperNode and runs installed code only.

`python -m client.worker` with FEDTWIN_HOME set. An app that the policy does not allow is answered with an
error and noted; a SuperNode that goes away is waited for. Logs say which round, never anything of the data.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from pathlib import Path

from client.flower_adapter import Answer, SourceLostError, TaskHead, TaskSource
from client.home import SiteHome
from client.interruption import Interruption
from privacy.cli.polling import poll_pause
from privacy.cli.supervisor import WORKER_READY

FOREIGN_APP = "foreign-app"  # the kind of a refused app's entry in the site's record

_BUSY_PAUSE_SECONDS = 0.03
_IDLE_PAUSE_SECONDS = 0.5
_LOST_PAUSE_SECONDS = 1.0

_log = logging.getLogger(__name__)


def run_worker(
    home: SiteHome,
    app: Answer,
    *,
    allowed_apps: Callable[[], Collection[str]],
    on_refused: Callable[[TaskHead], None],
    interruption: Interruption | None = None,
    stop_event: threading.Event | None = None,
) -> None:
    """Answer tasks until told to stop.

    Args:
        home: the site.
        app: the installed app; it runs in this process.
        allowed_apps: digests of apps that the policy allows now; asked before every task.
        on_refused: called for each task of another app, after the coordinator was told.
        interruption: through which the app hears that the run of the task in hand is gone.
        stop_event: ends the loop between two tasks.
    """
    stop = stop_event or threading.Event()
    interruption = interruption or Interruption()
    source = TaskSource(
        port=home.supernode_port,
        secret=home.worker_secret.read_bytes(),
        held_file=home.state / "task-in-hand.json",
    )
    if source.give_up_held():
        _log.warning("answered for the task that was in hand when the worker was killed")
    busy_at = time.monotonic()
    _log.info(WORKER_READY)
    try:
        while not stop.is_set():
            try:
                if _serve_one(source, app, allowed_apps, on_refused, interruption):
                    busy_at = time.monotonic()
                else:
                    idle = time.monotonic() - busy_at
                    stop.wait(poll_pause(idle, least=_BUSY_PAUSE_SECONDS, most=_IDLE_PAUSE_SECONDS))
            except SourceLostError as error:
                _log.warning("%s; waiting for it", error)
                stop.wait(_LOST_PAUSE_SECONDS)
    finally:
        source.close()


def _serve_one(
    source: TaskSource,
    app: Answer,
    allowed_apps: Callable[[], Collection[str]],
    on_refused: Callable[[TaskHead], None],
    interruption: Interruption,
) -> bool:
    task = source.acquire()
    if task is None:
        return False
    head = task.head
    if head.app_digest not in allowed_apps():
        _log.error(
            "run %s: refused %s of the foreign app %s", head.run_id, head.message_type, head.app_digest
        )
        on_refused(head)
        task.refuse()
        return True
    started = time.monotonic()
    interruption.begin()
    answered = task.run(app, on_gone=interruption.ask)
    what = "answered" if answered else "gave up"
    _log.info("run %s: %s %s in %.2f s", head.run_id, what, head.message_type, time.monotonic() - started)
    return True


def main() -> None:
    """Serve the site that FEDTWIN_HOME names."""
    configure_logging()
    from client.app import app, interruption
    from privacy.cli.rooms import check_rooms

    check_rooms()
    home = SiteHome.open(Path(os.environ["FEDTWIN_HOME"]))
    run_worker(
        home,
        app,
        allowed_apps=lambda: _allowed_apps(home),
        on_refused=lambda head: note_foreign_app(home, head),
        interruption=interruption,
    )


def configure_logging() -> None:
    """Lines with time and level to standard error; the supervisor keeps them in a file."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _allowed_apps(home: SiteHome) -> Collection[str]:
    """What the policy allows now; a policy that cannot be read allows nothing."""
    from client.policy import PolicyError, load_policy

    try:
        return load_policy(home.policy_file).app_digests
    except PolicyError as error:
        _log.error("the policy cannot be read, so no app is allowed: %s", error)
        return ()


def note_foreign_app(home: SiteHome, head: TaskHead) -> None:
    """Enter a refused app in the site's record, once per run and app, and tell the site's staff.

    The task is refused whether or not this succeeds.
    """
    from client.record import Record, RecordError

    key = f"foreign-app/{head.run_id}/{head.app_digest}"
    body = {"run": str(head.run_id), "message_type": head.message_type, "app_digest": head.app_digest}
    try:
        with Record(home.record_file).transaction(datetime.now(UTC)) as record:
            known = {
                f"foreign-app/{e.body['run']}/{e.body['app_digest']}"
                for e in record.entries
                if e.kind == FOREIGN_APP
            }
            if key in known:
                return
            record.append(FOREIGN_APP, body, once=key)
        with home.notices.open("a", encoding="utf-8") as file:
            file.write(
                f"{datetime.now(UTC).isoformat(timespec='seconds')} refused {head.message_type} of run {head.run_id}: "
                f"its app {head.app_digest} is not among the policy's\n"
            )
    except (OSError, RecordError) as error:
        _log.error("the refused app could not be entered in the record: %s", error)


if __name__ == "__main__":
    main()
