"""One database, SQLite or PostgreSQL by URL, with one helper for transactions.

SQLite runs with WAL and synchronous=FULL; a writer begins with BEGIN IMMEDIATE, since two that read and
then update would otherwise both decide on the old state. PostgreSQL must have fsync and synchronous commit on; who
only reads there needs no transaction around it, since each statement sees what is committed when it begins in any case.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.orm import Session

from server import postgresql

BUSY_TIMEOUT_SECONDS = 30
POOL_SIZE = 10
IDLE_SECONDS = 5.0  # after so long a connection to PostgreSQL is asked whether it still stands


class DatabaseError(Exception):
    """The database cannot be used as it is; the message says what to change."""


class Database:
    """The engine and its two kinds of transactions.

    Args:
        url: `sqlite:////path/fedtwin.db` or `postgresql+pg8000://user:password@host/name`; a plain
            `postgresql://` is taken to mean that driver.

    Raises:
        DatabaseError: neither SQLite in a file nor PostgreSQL.
    """

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        if parsed.drivername in {"postgresql", "postgres"}:
            parsed = parsed.set(drivername="postgresql+pg8000")
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        if self.is_sqlite:
            if parsed.database in {None, "", ":memory:"}:
                raise DatabaseError(
                    "a database in memory would lose every spend; give a file: sqlite:////path/file.db"
                )
            self.engine = create_engine(
                parsed, pool_size=POOL_SIZE, connect_args={"timeout": BUSY_TIMEOUT_SECONDS}
            )
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        elif parsed.drivername == "postgresql+pg8000":
            self.engine = create_engine(parsed, pool_size=POOL_SIZE)
            event.listen(self.engine, "do_connect", postgresql.connect)
            event.listen(self.engine, "connect", _check_postgresql)
            event.listen(self.engine, "begin", _begin_postgresql)
            event.listen(self.engine, "checkout", _ask_after_idling)
            event.listen(self.engine, "checkin", _note_use)
        else:
            raise DatabaseError(
                f"database driver is {parsed.drivername!r}; use sqlite:////path/file.db or "
                "postgresql+pg8000://user:password@host/name"
            )
        self._writer: Engine = self.engine.execution_options(fedtwin_write=True)
        self._reader: Engine = self.engine.execution_options(fedtwin_read=True)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that may change things: committed at the end of the block, rolled back by an error."""
        with Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads; it never waits for a writer and leaves nothing behind."""
        with Session(self._reader, expire_on_commit=False, autoflush=False) as session:
            yield session

    @contextmanager
    def rows(self) -> Iterator[Connection]:
        """As `read`, for plain rows: what every request asks costs half of what objects do."""
        with self._reader.connect() as connection:
            yield connection

    def lock(self, session: Session, name: str) -> None:
        """Let one writer at a time past here until its transaction ends; BEGIN IMMEDIATE does it on SQLite."""
        if not self.is_sqlite:
            session.execute(
                text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": f"fedtwin/{name}"}
            )

    def close(self) -> None:
        """Give back every connection."""
        self.engine.dispose()


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver would otherwise begin by itself, and not IMMEDIATE
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("fedtwin_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _begin_postgresql(connection: Connection) -> None:
    reads = connection.get_execution_options().get("fedtwin_read", False)
    connection.connection.dbapi_connection.autocommit = reads  # type: ignore[union-attr]


def _check_postgresql(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    try:
        for setting in ("fsync", "synchronous_commit"):
            cursor.execute(f"SHOW {setting}")
            value = cursor.fetchone()[0]
            if value == "off":
                raise DatabaseError(
                    f"PostgreSQL has {setting} = off: an acknowledged spend could vanish; set it to on"
                )
    finally:
        cursor.close()
        connection.rollback()


def _ask_after_idling(connection: Any, record: Any, _fairy: Any) -> None:
    """Whether a connection that nobody used for a while still stands; the pool replaces it if not."""
    if time.monotonic() - record.info.get("used_at", -IDLE_SECONDS) < IDLE_SECONDS:
        return
    try:
        cursor = connection.cursor()
        cursor.execute("SELECT 1")
        cursor.close()
        connection.rollback()
    except Exception as error:
        raise DisconnectionError("the connection was cut while it was idle") from error


def _note_use(_connection: Any, record: Any) -> None:
    record.info["used_at"] = time.monotonic()
