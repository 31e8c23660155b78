"""Both databases: migrations give the models, settings are safe, writers wait for each other."""

from __future__ import annotations

import threading

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError

from server import migrations
from server.database import Database, DatabaseError
from server.migrations import migrate
from server.store import Store
from server.tables import Base, LedgerEntryRow, RunMessageRow, RunRow, StudyRow


def test_migrations_give_exactly_the_tables_of_the_models(store: Store) -> None:
    with store.database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_migrating_again_changes_nothing(store: Store) -> None:
    assert migrate(store.database.engine) == migrate(store.database.engine) == "0005"


def test_a_database_with_a_run_is_brought_to_the_newest_version(tmp_path) -> None:
    """Rows that other rows refer to are where a change of their table goes wrong."""
    database = Database(f"sqlite:///{tmp_path / 'old.db'}")
    config = migrations._config()
    with database.engine.execution_options(fedtwin_write=True).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        for row in (
            "studies VALUES ('heart', 'd', '{}', 'olga', '2026-01-01')",
            "runs (id, study, study_digest, sites, state, stop_requested, phase, round, rounds, percent, reason, "
            "started_by, created_at) VALUES ('run-1', 'heart', 'd', '[]', 'completed', 0, 'done', 1, 1, 100, '', "
            "'olga', '2026-01-01')",
            "run_messages (run, at, level, text) VALUES ('run-1', '2026-01-01', 'info', 'completed')",
        ):
            connection.execute(text(f"INSERT INTO {row}"))
    migrate(database.engine)
    with database.read() as session:
        assert session.scalars(select(RunMessageRow.run)).all() == ["run-1"]
        assert session.get_one(RunRow, "run-1").state == "completed"
        assert session.scalar(text("PRAGMA foreign_keys")) == 1
    database.close()


def test_a_failed_transaction_leaves_nothing(store: Store, clock) -> None:
    def write() -> None:
        with store.database.write() as session:
            session.add(StudyRow(name="s", digest="d", definition={}, created_by="o", created_at=clock()))
            session.flush()
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        write()
    with store.database.read() as session:
        assert session.scalar(select(func.count()).select_from(StudyRow)) == 0


def test_the_database_itself_refuses_dangling_references_and_unknown_states(store: Store, clock) -> None:
    with pytest.raises(DBAPIError, match=r"(?i)foreign key|state_known"), store.database.write() as session:
        session.add(RunMessageRow(run="run-none", at=clock(), level="info", text="lost"))
    with pytest.raises(DBAPIError, match=r"(?i)foreign key|state_known"), store.database.write() as session:
        session.execute(
            text(
                "INSERT INTO sites (name, title, receipt_key, node_public_key, policy, policy_digest, state, "
                "enrolled_at, changed_at) VALUES "
                "('a', '', 'k', 'n', '{}', 'd', 'friendly', '2026-01-01', '2026-01-01')"
            )
        )


def test_read_then_write_by_many_writers_loses_no_update(store: Store, clock) -> None:
    def take_next() -> None:
        for _ in range(10):
            with store.database.write() as session:
                store.database.lock(session, "ledger")
                size = session.scalar(select(func.count()).select_from(LedgerEntryRow))
                session.add(LedgerEntryRow(index=size, kind="k", body=b"", appended_at=clock()))

    threads = [threading.Thread(target=take_next) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.database.read() as session:
        assert session.scalar(select(func.max(LedgerEntryRow.index))) == 59


def test_sqlite_is_durable_and_checks_references(tmp_path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'x.db'}")
    with database.engine.connect() as connection:
        values = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert values == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://localhost/x"])
def test_a_database_that_cannot_keep_its_word_is_refused(url: str) -> None:
    with pytest.raises(DatabaseError):
        Database(url)


def test_a_time_without_a_zone_is_refused(store: Store) -> None:
    import datetime as dt

    from sqlalchemy.exc import StatementError

    row = StudyRow(name="s", digest="d", definition={}, created_by="o", created_at=dt.datetime(2026, 1, 1))
    with pytest.raises(StatementError, match="without a zone"), store.database.write() as session:
        session.add(row)


@pytest.mark.postgres
def test_a_connection_that_was_cut_while_it_was_idle_is_replaced(postgresql, monkeypatch) -> None:
    database = Database(postgresql("cut", "migrated"))
    with database.read() as session:
        server_process = session.scalar(text("SELECT pg_backend_pid()"))
    other = Database(database.engine.url.render_as_string(hide_password=False))
    with other.read() as session:
        session.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": server_process})
    monkeypatch.setattr("server.database.IDLE_SECONDS", 0.0)
    with database.read() as session:
        assert session.scalar(text("SELECT pg_backend_pid()")) != server_process
    other.close()
    database.close()
