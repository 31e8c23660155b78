"""Our connection to PostgreSQL: fewer trips, and otherwise what pg8000's own gives and refuses."""

from __future__ import annotations

import datetime as dt
import decimal
import uuid

import pg8000.core
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DatabaseError

from server.database import Database
from server.tables import StudyRow

pytestmark = pytest.mark.postgres
VALUES = {
    "text": "50 % of 'quoted' \"names\", $1, %s, ::int, -- no comment\nü",
    "nothing": None,
    "empty": "",
    "bytes": bytes(range(256)),
    "boolean": True,
    "integer": -(2**62),
    "float": 0.1,
    "decimal": decimal.Decimal("1.5"),
    "timestamp": dt.datetime(2026, 1, 31, 23, 59, 59, 123456),
    "whole_second": dt.datetime(1, 1, 1),
    "tenth": dt.datetime(2026, 1, 31, 0, 0, 0, 100000),
}
CASTS = {"nothing": "text", "empty": "text", "text": "text", "bytes": "bytea", "integer": "bigint"} | dict.fromkeys(
    ("timestamp", "whole_second", "tenth"), "timestamp"
)  # fmt: skip


@pytest.fixture
def database(postgresql):
    opened = Database(postgresql(f"one-trip-{uuid.uuid4()}", "migrated"))
    yield opened
    opened.close()


@pytest.fixture
def trips(monkeypatch) -> list[int]:
    """One entry for each time that something is sent and an answer awaited."""
    counted: list[int] = []
    flush = pg8000.core._flush
    monkeypatch.setattr(pg8000.core, "_flush", lambda sock: counted.append(1) or flush(sock))
    return counted


def _select(names: list[str]) -> str:
    return "SELECT " + ", ".join(f"CAST(:{name} AS {CASTS.get(name, name)}) AS {name}" for name in names)


@pytest.mark.parametrize("name", VALUES)
def test_every_kind_of_value_comes_back_as_it_was_sent_and_as_pg8000_gives_it(database, name: str) -> None:
    kind = {"float": "double precision", "decimal": "numeric"}.get(name, CASTS.get(name, name))
    query = text(f"SELECT CAST(:v AS {kind})")
    plain = create_engine(database.engine.url)
    with database.read() as session, plain.connect() as connection:
        ours, theirs = (
            session.scalar(query, {"v": VALUES[name]}),
            connection.scalar(query, {"v": VALUES[name]}),
        )
    plain.dispose()
    assert ours == VALUES[name]
    assert (ours, type(ours)) == (theirs, type(theirs))


def test_a_statement_that_only_reads_is_one_trip(database, trips) -> None:
    with database.read() as session:
        session.get(StudyRow, "warm")
    trips.clear()
    with database.read() as session:
        session.get(StudyRow, "none")
        session.scalar(text("SELECT count(*) FROM studies WHERE name = :name"), {"name": "x"})
    assert len(trips) == 2


def test_reading_holds_no_transaction_open(database) -> None:
    """A transaction left open would keep PostgreSQL from cleaning up behind every writer."""
    with database.read() as session:
        mine = session.scalar(text("SELECT pg_backend_pid() WHERE :yes"), {"yes": True})
        with database.read() as other:
            query = text("SELECT state FROM pg_stat_activity WHERE pid = :pid")
            assert other.scalar(query, {"pid": mine}) == "idle"


def test_a_transaction_that_writes_is_one_and_its_end_is_one_trip(database, trips) -> None:
    row = text("INSERT INTO studies VALUES (:name, :name, '{}', 'o', '2026-01-01')")
    with database.read() as session:  # the connection has read before
        session.scalar(text("SELECT 1"))

    def write_and_fail() -> None:
        with database.write() as session:
            session.execute(row, {"name": "a"})
            with database.read() as other:
                assert other.scalar(text("SELECT count(*) FROM studies")) == 0
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        write_and_fail()
    trips.clear()
    with database.write() as session:
        session.execute(row, {"name": "b"})
    assert len(trips) == 3  # begin, insert, commit
    with database.read() as session:
        assert session.scalars(text("SELECT name FROM studies")).all() == ["b"]


@pytest.mark.parametrize(
    "statement",
    [
        "SELEC :a",
        "SELECT CAST(:a AS integer)",
        "SELECT 1 / length(replace(CAST(:a AS text), 'x', ''))",
        "INSERT INTO studies (name) VALUES (:a)",
    ],
)
def test_after_an_error_the_connection_is_as_good_as_before(database, statement: str) -> None:
    for _ in range(3):
        with pytest.raises(DatabaseError), database.write() as session:
            session.execute(text(statement), {"a": "x"})
        with pytest.raises(DatabaseError), database.read() as session:
            session.execute(text(statement), {"a": "x"})
        with database.read() as session:
            assert session.scalar(text("SELECT CAST(:a AS text)"), {"a": "x"}) == "x"
    assert database.engine.pool.checkedout() == 0


def test_a_large_value_and_many_rows_come_whole(database) -> None:
    large = "ü" * 3_000_000
    with database.read() as session:
        assert session.scalar(text("SELECT CAST(:a AS text)"), {"a": large}) == large
        found = session.scalars(text("SELECT generate_series(1, CAST(:n AS integer))"), {"n": 50_000}).all()
    assert found == list(range(1, 50_001))
