"""A connection to PostgreSQL that asks and hears once per statement.

pg8000 sends a statement in three trips (parse, describe, execute) and ends a transaction in three more, scans each
statement letter by letter for its placeholders, and reads times by `strptime`. Here one trip does, each text is
scanned once, and times are read by `fromisoformat`. What travels, what it means and which errors come is the same.

References:
    PostgreSQL, Frontend/Backend Protocol, "Extended Query": the messages up to one Sync may be sent together; after
    an error the server passes over the rest of them.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from functools import lru_cache
from struct import pack
from typing import Any

from pg8000 import core, dbapi

TIMESTAMP_OID = 1114  # without a time zone, as `server.tables.UtcTime` keeps times
# The unnamed portal: what its rows are, all of them, and nothing more.
_DESCRIBE_EXECUTE_SYNC = (
    b"D\x00\x00\x00\x06P\x00" + b"E\x00\x00\x00\x09\x00\x00\x00\x00\x00" + b"S\x00\x00\x00\x04"
)


class OneTripCursor(dbapi.Cursor):  # type: ignore[misc]
    """A cursor that scans each statement once."""

    _input_oids: Sequence[int]
    input_types: list[Any]

    def execute(self, operation: str, args: Sequence[Any] = (), stream: Any = None) -> None:
        """See `pg8000.dbapi.Cursor.execute`."""
        if not args or stream is not None:
            super().execute(operation, args, stream)
            return
        connection = self._c
        if connection is None:
            raise dbapi.InterfaceError("Cursor closed")
        if not connection.autocommit and not connection._in_transaction:
            connection.execute_simple("begin transaction")
        self._context = connection.execute_unnamed(_numbered(operation), vals=args, oids=self._input_oids)
        self._row_iter = None if self._context.rows is None else iter(self._context.rows)
        self._input_oids, self.input_types = (), []


class OneTripConnection(dbapi.Connection):  # type: ignore[misc]
    """A connection of pg8000 with fewer trips."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_in_adapter(TIMESTAMP_OID, dt.datetime.fromisoformat)

    def cursor(self) -> OneTripCursor:
        """A cursor of this connection."""
        return OneTripCursor(self)

    def commit(self) -> None:
        """Make the transaction last."""
        self.execute_simple("commit")

    def rollback(self) -> None:
        """Undo the transaction, if there is one."""
        if self._in_transaction:
            self.execute_simple("rollback")

    def execute_unnamed(
        self, statement: str, vals: Sequence[Any] = (), oids: Sequence[int] = (), stream: Any = None
    ) -> Any:
        """See `pg8000.core.CoreConnection.execute_unnamed`; `COPY` goes the usual way."""
        if stream is not None:
            return super().execute_unnamed(statement, vals, oids, stream)
        encoding = self._client_encoding
        texts = core.make_params(self.py_types, vals)
        types = b"".join(pack("!i", 0 if oid == -1 else oid) for oid in oids)
        parse = b"\x00" + statement.encode(encoding) + b"\x00" + pack("!h", len(oids)) + types
        values = b"".join(_value(text, encoding) for text in texts)
        bind = b"\x00\x00" + pack("!hh", 0, len(texts)) + values + pack("!h", 0)
        self._send_message(b"P", parse)
        self._send_message(b"B", bind)
        core._write(self._sock, _DESCRIBE_EXECUTE_SYNC)
        core._flush(self._sock)
        context = core.Context(statement)
        self.handle_messages(context)
        return context


def connect(_dialect: Any, _record: Any, args: Sequence[Any], options: dict[str, Any]) -> OneTripConnection:
    """Connect; for SQLAlchemy's `do_connect` event."""
    return OneTripConnection(*args, **options)


def _value(text: str | None, encoding: str) -> bytes:
    if text is None:
        return pack("!i", -1)
    data = text.encode(encoding)
    return pack("!i", len(data)) + data


@lru_cache(maxsize=1024)
def _numbered(operation: str) -> str:
    """The statement with `$1`, `$2`, ... for each `%s`."""
    numbered: str = dbapi.convert_paramstyle("format", operation, ())[0]
    return numbered
