"""Previews: a few patients under conditions at once, or their pictures, and how the conditions meet the release.

They are drawn in a process of their own, one after the other, so that no condition keeps the API from answering; a
process that takes too long is ended and replaced. The same request gives the same rows, so answers are kept.
"""

from __future__ import annotations

import base64
import json
import logging
import queue
import select
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from models.condition_reader import parse_conditions
from models.conditions import ConditionError
from models.study import Study
from privacy.canonical import CanonicalError, digest
from server.cohorts import MAX_CONDITIONS
from server.errors import ConflictError, InvalidError, NotFoundError
from server.releases import Release
from server.store import Store
from server.studies import get_study

PREVIEW_PATIENTS = 20
SHEET_ROWS, SHEET_COLUMNS = 3, 8
KEPT_ANSWERS = 256
MAX_WAITING = 256
START_SECONDS = 120.0
_READ_BYTES = 2**16

T = TypeVar("T")
log = logging.getLogger("fedtwin.previews")


class PreviewUnavailableError(Exception):
    """No preview in time; it may be asked for again."""


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A few synthetic patients, and what a cohort under these conditions would be.

    Attributes:
        columns: names, in the schema's order.
        rows: one list of cells per patient; days as ISO text, None where a value is absent.
        share: probability of a patient of the release to satisfy the conditions.
        share_is_exact: whether it is computed; else it is estimated from a draw.
        effective_components: how many of the generator's shapes support such patients; a small number says that few do.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    share: float
    share_is_exact: bool
    effective_components: float

    def effective_sample_size(self, num_patients: int) -> int:
        """Independent patients in a cohort of that size: all of them, because draws are never re-used."""
        return num_patients


class Previewer:
    """Draws previews in one worker process, which starts with the first.

    Args:
        seconds: a preview that takes longer, the wait for its turn included, is given up; not the process's start,
            so callers wait no longer than this by themselves.

    Attributes:
        seconds: as given.
    """

    def __init__(self, *, seconds: float) -> None:
        self.seconds = seconds
        self._waiting: queue.Queue[tuple[dict[str, Any], float, Future[dict[str, Any]]] | None] = queue.Queue(
            MAX_WAITING
        )
        self._answers: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def ask(
        self,
        store: Store,
        release: Release,
        *,
        conditions: Sequence[str | Mapping[str, Any]] = (),
        columns: Sequence[str] = (),
        seed: int = 0,
        num_patients: int = PREVIEW_PATIENTS,
    ) -> Future[Preview]:
        """Put a preview into the queue.

        Returns:
            A future that gives the preview, or raises InvalidError (too few patients satisfy the conditions) or
            PreviewUnavailableError.

        Raises:
            ConflictError: the release is not published.
            InvalidError: a condition that cannot be read, or an unknown column.
            PreviewUnavailableError: too many wait already.
        """
        if release.state != "published":
            raise ConflictError(
                f"release {release.digest} is {release.state}; previews are drawn from published ones"
            )
        study = get_study(store, release.study).study
        unknown = sorted(set(columns) - set(study.table.names))
        if unknown:
            raise InvalidError(
                "columns", f"there is no column {unknown[0]!r}; the columns are {list(study.table.names)}"
            )
        chosen = tuple(name for name in study.table.names if not columns or name in columns)
        wanted = {"columns": list(chosen), "seed": seed, "num_patients": num_patients}
        return self._queue(store, release, study, conditions, wanted, partial(_preview, columns=chosen))

    def ask_pictures(
        self,
        store: Store,
        release: Release,
        *,
        conditions: Sequence[str | Mapping[str, Any]] = (),
        seed: int = 0,
    ) -> Future[bytes]:
        """Put pictures of the first patients, on one sheet, into the queue; for who may see the release.

        Returns:
            A future that gives a PNG, or raises as that of `ask`.

        Raises:
            NotFoundError: the release has no pictures.
            InvalidError: a condition that cannot be read.
            PreviewUnavailableError: too many wait already.
        """
        study = get_study(store, release.study).study
        if study.image is None:
            raise NotFoundError("picture of release", release.digest)
        wanted = {"sheet": [SHEET_ROWS, SHEET_COLUMNS], "seed": seed}
        return self._queue(store, release, study, conditions, wanted, _png)

    def _queue(
        self,
        store: Store,
        release: Release,
        study: Study,
        conditions: Sequence[str | Mapping[str, Any]],
        wanted: dict[str, Any],
        read: Callable[[Mapping[str, Any]], T],
    ) -> Future[T]:
        """Ask the worker, unless the answer is known."""
        if len(conditions) > MAX_CONDITIONS:
            raise InvalidError(
                "conditions", f"there are {len(conditions)} conditions; at most {MAX_CONDITIONS} are taken"
            )
        request = {
            "weights_digest": release.weights_digest,
            "study_digest": release.study_digest,
            "conditions": list(conditions),
            **wanted,
        }
        try:
            parse_conditions(conditions, study.table)
            name = digest(request)
        except (ConditionError, CanonicalError) as error:
            raise InvalidError("conditions", str(error)) from error
        told: Future[T] = Future()
        with self._lock:
            kept = self._answers.get(name)
        if kept is not None:
            _settle(told, kept, read)
            return told
        raw: Future[dict[str, Any]] = Future()

        def done(found: Future[dict[str, Any]]) -> None:
            error = found.exception()
            if error is None:  # kept also where nobody waits any more: they come back
                with self._lock:
                    self._answers[name] = found.result()
                    while len(self._answers) > KEPT_ANSWERS:
                        self._answers.popitem(last=False)
            if not told.set_running_or_notify_cancel():
                return
            if error is not None:
                told.set_exception(error)
            else:
                _settle(told, found.result(), read)

        raw.add_done_callback(done)
        full = {**request, "weights": str(store.path_of(release.weights_digest)), "study": study.to_dict()}
        try:
            self._waiting.put_nowait((full, time.monotonic() + self.seconds, raw))
        except queue.Full:
            raise PreviewUnavailableError("too many previews wait; ask again in a moment") from None
        self._start()
        return told

    def close(self) -> None:
        """End the worker process; what waits is given up."""
        self._closed = True
        self._end()
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._waiting.put(None)
            thread.join(timeout=self.seconds)
        self._end()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="previews", daemon=True)
                self._thread.start()

    def _serve(self) -> None:
        while (job := self._waiting.get()) is not None:
            request, deadline, future = job
            try:
                if self._closed:
                    raise PreviewUnavailableError("the coordinator is about to end")
                if time.monotonic() >= deadline:
                    raise PreviewUnavailableError(
                        f"the preview did not get its turn within {self.seconds:g} s; ask again"
                    )
                told = self._draw(request, deadline)
                if "failed" in told:
                    log.error("a preview failed: %s", told["failed"])
                    raise RuntimeError(told["failed"])
                future.set_result(told)
            except Exception as error:
                future.set_exception(error)

    def _draw(self, request: dict[str, Any], deadline: float) -> dict[str, Any]:
        try:
            process = self._process
            if process is None or process.poll() is not None:
                process = self._new_process()
                self._read_line(process, time.monotonic() + START_SECONDS)
                deadline = time.monotonic() + self.seconds  # its start is not the preview's fault
            assert process.stdin is not None
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            told: dict[str, Any] = json.loads(self._read_line(process, deadline))
        except TimeoutError:
            self._end()
            raise PreviewUnavailableError(
                f"the preview took longer than {self.seconds:g} s and was given up: simplify the conditions, or "
                "ask for a cohort, which has more time"
            ) from None
        except (OSError, ValueError):
            self._end()
            raise PreviewUnavailableError("the process that draws previews ended; ask again") from None
        return told

    def _new_process(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "server.preview_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        return self._process

    @staticmethod
    def _read_line(process: subprocess.Popen[bytes], deadline: float) -> bytes:
        assert process.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                raise TimeoutError
            part = process.stdout.read(_READ_BYTES)
            if not part:
                raise BrokenPipeError
            line += part
        return line

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def _settle(told: Future[T], found: Mapping[str, Any], read: Callable[[Mapping[str, Any]], T]) -> None:
    if "refused" in found:
        told.set_exception(InvalidError("conditions", found["refused"]))
    else:
        told.set_result(read(found))


def _preview(found: Mapping[str, Any], *, columns: tuple[str, ...]) -> Preview:
    return Preview(
        columns=columns,
        rows=tuple(tuple(row) for row in found["rows"]),
        share=found["probability"],
        share_is_exact=found["exact"],
        effective_components=found["effective_components"],
    )


def _png(found: Mapping[str, Any]) -> bytes:
    return base64.b64decode(found["png"])
