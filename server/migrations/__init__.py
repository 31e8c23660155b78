"""The database's versions, brought up to date by `migrate`, without an alembic.ini."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text


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
    with writer.begin() as connection:
        if connection.dialect.name == "postgresql":  # processes that start together take turns
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('fedtwin/migrate'))"))
        if MigrationContext.configure(connection).get_current_revision() != head:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    return head


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config
