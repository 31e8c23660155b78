"""The site's own record: what was spent, refused and decided here, append-only, hash-chained, on its own disk.

SQLite in WAL mode with synchronous=FULL: when `Transaction` has ended, its entries are on the disk. Each entry's hash
covers all before it; beside the file lies the last head that was acknowledged, so that a record which was deleted or
replaced by an older copy is noticed. Keep the file on a local disk (WAL does not work over a network), and
never restore it from a backup: a restored record has forgotten what was spent since.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from privacy.canonical import CanonicalError, canonical_bytes, parse_canonical

VERSION = 1
_DOMAIN = b"fedtwin site record v1\n"
_SCHEMA = """
CREATE TABLE record (
    seq INTEGER PRIMARY KEY, entry TEXT NOT NULL, hash TEXT NOT NULL UNIQUE, once TEXT UNIQUE
) STRICT;
CREATE TRIGGER never_changed BEFORE UPDATE ON record BEGIN SELECT RAISE(ABORT, 'the record is append-only'); END;
CREATE TRIGGER never_deleted BEFORE DELETE ON record BEGIN SELECT RAISE(ABORT, 'the record is append-only'); END;
"""


class RecordError(Exception):
    """The record could not be read or written. What was to be written may or may not be in it; nothing may run."""


class RecordBusyError(RecordError):
    """Another process kept the record locked for too long. Nothing was written."""


class RecordVerificationError(RecordError):
    """The record is not what was written: altered, cut, replaced or gone. Nothing may run until a person has looked."""


@dataclass(frozen=True, kw_only=True)
class RecordHead:
    """How far the record goes. Kept elsewhere, it proves later that nothing before it was changed.

    Attributes:
        size: number of entries.
        hash: that of the last one; covers all before it.
    """

    size: int
    hash: str


@dataclass(frozen=True, kw_only=True)
class RecordEntry:
    """One line of the record.

    Attributes:
        seq: from 1, without gaps.
        kind: `opened`, `policy`, `asked`, `decision`, `debit`, `settled`, `refused` or `foreign-app`.
        at: when, by the site's clock, UTC.
        body: JSON data; real numbers as decimal strings; no count and no value of a patient.
        hash: chain hash up to and including this entry.
    """

    seq: int
    kind: str
    at: datetime
    body: Mapping[str, Any]
    hash: str


class Transaction:
    """The record, locked for writing: what is in it, and what is being added. Get one from `Record.transaction`."""

    def __init__(self, connection: sqlite3.Connection, entries: list[RecordEntry], now: datetime) -> None:
        self._connection = connection
        self.entries: Sequence[RecordEntry] = entries
        self._entries = entries
        self.now = now

    def append(self, kind: str, body: Mapping[str, Any], *, once: str | None = None) -> RecordEntry:
        """Add an entry; it counts once the transaction has ended.

        Args:
            kind, body: as in `RecordEntry`.
            once: a text that the database lets only one entry have.
        """
        previous = self._entries[-1].hash if self._entries else ""
        data = canonical_bytes({"kind": kind, "at": time_text(self.now), "body": dict(body)})
        entry = RecordEntry(
            seq=len(self._entries) + 1,
            kind=kind,
            at=self.now.replace(microsecond=0),
            body=json.loads(data)["body"],
            hash=chain_hash(previous, data),
        )
        self._connection.execute(
            "INSERT INTO record (seq, entry, hash, once) VALUES (?, ?, ?, ?)",
            (entry.seq, data.decode(), entry.hash, once),
        )
        self._entries.append(entry)
        return entry


class Record:
    """A site's record in one SQLite file; made on first use.

    Every operation opens its own connection, so threads, processes and forks may share one object.

    Args:
        path: the database file; `.head` and `.lock` files lie beside it.
        timeout_seconds: how long to wait for another writer.
    """

    def __init__(self, path: Path, *, timeout_seconds: float = 60.0) -> None:
        self._path = path
        self._mark = path.with_name(path.name + ".head")
        self._timeout_seconds = timeout_seconds

    @contextmanager
    def transaction(self, now: datetime) -> Iterator[Transaction]:
        """Lock the record, check it, and commit durably what the block appends, or nothing if the block raises.

        Raises:
            RecordBusyError: another writer did not finish in time.
            RecordVerificationError: the record was tampered with.
            RecordError: it cannot be read or written. If the commit itself failed, the entries may be in it.
        """
        with self._connection() as connection:
            mark = self._read_mark()
            connection.execute("BEGIN IMMEDIATE")
            try:
                entries = _load(connection, mark)
                size = len(entries)
                # Time never runs backwards here, so that a clock set back cannot reopen a window.
                last = entries[-1].at if size > 1 else now
                transaction = Transaction(connection, entries, max(now, last))
                yield transaction
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
            if len(entries) > size:
                self._write_mark(entries[-1])

    def entries(self) -> list[RecordEntry]:
        """All entries in order, once the chain holds.

        Raises:
            RecordError: as `transaction`.
        """
        with self._connection() as connection:
            return _load(connection, self._read_mark())

    def head(self) -> RecordHead:
        """The record's size and last hash; note it elsewhere and give it to `verify` later."""
        last = self.entries()[-1]
        return RecordHead(size=last.seq, hash=last.hash)

    def verify(self, *, since: RecordHead | None = None) -> None:
        """Check the whole record: file, chain, form of every entry, and that it continues `since` and the last mark.

        Raises:
            RecordVerificationError: says from which entry on it does not hold.
        """
        with self._connection() as connection:
            problem = connection.execute("PRAGMA integrity_check").fetchone()[0]
            if problem != "ok":
                raise RecordVerificationError(
                    f"the record's file is damaged: {problem}; keep it and ask for help"
                )
            _load(connection, self._read_mark(), strict=True)
            if since is not None:
                _load(connection, since)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = self._open()
            try:
                yield connection
            finally:
                connection.close()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
                raise RecordBusyError(
                    f"the record was locked for more than {self._timeout_seconds:g} s; try again"
                ) from error
            raise RecordError(
                f"the record {self._path.name} cannot be used: {error}; nothing may run"
            ) from error
        except sqlite3.DatabaseError as error:
            raise RecordVerificationError(f"the record {self._path.name} is damaged: {error}") from error
        except OSError as error:
            raise RecordError(
                f"the record {self._path.name} cannot be used: {error}; nothing may run"
            ) from error

    def _open(self) -> sqlite3.Connection:
        if not self._path.exists():
            self._create()
        connection = self._connect()
        made = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'record'").fetchone()
        if made is None:  # killed while it was being made
            connection.close()
            self._create()
            connection = self._connect()
        return connection

    def _connect(self) -> sqlite3.Connection:
        # autocommit mode: transactions are begun and ended explicitly
        connection = sqlite3.connect(
            f"file:{_uri_path(self._path)}?mode=rw",
            uri=True,
            timeout=self._timeout_seconds,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA fullfsync = ON")
            connection.execute("PRAGMA trusted_schema = OFF")
        except BaseException:
            connection.close()
            raise
        return connection

    def _create(self) -> None:
        with _locked(self._path.with_name(self._path.name + ".lock")):
            mark = self._read_mark()
            if mark.size > 0:
                if self._path.exists() and self._path.stat().st_size > 0:
                    return  # another process made it meanwhile; what is in it is checked against the mark
                raise RecordVerificationError(
                    f"the record {self._path.name} is gone, but it had {mark.size} entries; what was spent is not "
                    f"known, so everything is refused. Put the file back (not an older copy)"
                )
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            connection = self._connect()
            try:
                if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'record'").fetchone():
                    return
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("BEGIN IMMEDIATE")
                for statement in _SCHEMA.strip().split(";\n"):
                    if statement.strip():
                        connection.execute(statement)
                now = datetime.now(UTC)
                first = Transaction(connection, [], now)
                entry = first.append("opened", {"version": VERSION, "record": secrets.token_hex(16)})
                connection.execute("COMMIT")
                self._write_mark(entry)
            finally:
                connection.close()

    def _read_mark(self) -> RecordHead:
        try:
            text = self._mark.read_text()
        except FileNotFoundError:
            return RecordHead(size=0, hash="")
        size, _, last = text.strip().partition(" ")
        if not size.isascii() or not size.isdigit() or len(last) != 64:
            raise RecordVerificationError(
                f"{self._mark.name} says {text[:80]!r}; it must be a number and a hash"
            )
        return RecordHead(size=int(size), hash=last)

    def _write_mark(self, entry: RecordEntry) -> None:
        draft = self._mark.with_name(f"{self._mark.name}.{os.getpid()}-{threading.get_ident()}")
        try:
            with draft.open("w") as file:
                file.write(f"{entry.seq} {entry.hash}\n")
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._mark)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        folder = os.open(self._mark.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def chain_hash(previous: str, data: bytes) -> str:
    """The hash of an entry: over the hash before it and its canonical bytes.

    Args:
        previous: the entry before's hash in hexadecimal; empty for the first.
        data: the entry's canonical JSON.
    """
    return hashlib.sha256(_DOMAIN + previous.encode() + b"\n" + data).hexdigest()


def time_text(moment: datetime) -> str:
    """UTC time as `YYYY-MM-DDTHH:MM:SSZ`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _load(connection: sqlite3.Connection, mark: RecordHead, *, strict: bool = False) -> list[RecordEntry]:
    entries: list[RecordEntry] = []
    previous = ""
    for seq, text, stored in connection.execute("SELECT seq, entry, hash FROM record ORDER BY seq"):
        data = text.encode()
        previous = chain_hash(previous, data)
        if seq != len(entries) + 1 or stored != previous:
            raise RecordVerificationError(
                f"the record does not hold from entry {len(entries) + 1} on: it was altered, reordered or cut; "
                "everything is refused until a person has looked"
            )
        if mark.size == seq and mark.hash != previous:
            raise RecordVerificationError(
                f"entry {seq} is not the one that was acknowledged before: the record was rewritten"
            )
        entries.append(_entry(seq, data, previous, strict=strict))
    if len(entries) < max(mark.size, 1):
        raise RecordVerificationError(
            f"the record has {len(entries)} entries, but {max(mark.size, 1)} were acknowledged before: it was cut or "
            "an older copy was put back; what was spent since is not known, so everything is refused"
        )
    return entries


def _entry(seq: int, data: bytes, chained: str, *, strict: bool) -> RecordEntry:
    try:
        entry = parse_canonical(data) if strict else json.loads(data)
        at = datetime.fromisoformat(entry["at"])
        if strict and time_text(at) != entry["at"]:
            raise ValueError(f"at is {entry['at']!r}; it must be UTC as YYYY-MM-DDTHH:MM:SSZ")
        return RecordEntry(seq=seq, kind=entry["kind"], at=at, body=entry["body"], hash=chained)
    except (CanonicalError, ValueError, KeyError, TypeError) as error:
        raise RecordVerificationError(f"entry {seq} of the record cannot be read: {error}") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _uri_path(path: Path) -> str:
    from urllib.parse import quote

    return quote(str(path.absolute()))
