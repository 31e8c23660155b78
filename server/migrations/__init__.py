"""The database's versions, brought up to date by `migrate`, without an alembic.ini."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text


def migrate(engine: Engine) -> str:
    """Bring the database to the newest version; nothing happens where it is there already.

    Returns:
        The version it now has.

    Raises:
        alembic.util.CommandError: the database was made by a newer fedtwin.
    """
    config = _config()
    head = ScriptDirectory.from_config(config).get_current_head()
    if head is None:
        raise RuntimeError("this installation of fedtwin carries no migrations; install it again")
    writer = engine.execution_options(fedtwin_write=True)
    with writer.connect() as connection, _tables_may_be_rebuilt(connection), connection.begin():
        if connection.dialect.name == "postgresql":  # processes that start together take turns
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('fedtwin/migrate'))"))
        if MigrationContext.configure(connection).get_current_revision() != head:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            _check_references(connection)
    return head


@contextmanager
def _tables_may_be_rebuilt(connection: Connection) -> Iterator[None]:
    """SQLite changes a table by dropping the old one, which references to its rows would forbid.

    References: https://www.sqlite.org/lang_altertable.html#otheralter, steps 1, 10 and 12.
    """
    if connection.dialect.name != "sqlite":
        yield
        return
    plain = connection.connection.driver_connection
    assert plain is not None
    plain.execute("PRAGMA foreign_keys=OFF")  # has no effect within a transaction
    try:
        yield
    finally:
        plain.execute("PRAGMA foreign_keys=ON")


def _check_references(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        dangling = connection.execute(text("PRAGMA foreign_key_check")).fetchall()
        if dangling:
            raise RuntimeError(
                f"the migration left {len(dangling)} references to nothing; nothing was changed"
            )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config
