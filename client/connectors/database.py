"""A read-only connection to a site's database: secrets from outside site.toml, errors without data."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import exc

from client.connectors.errors import DataSourceError

# SQLAlchemy logs an exception of its own when a cursor breaks, with all that the driver said: values among it.
logging.getLogger("sqlalchemy").setLevel(logging.CRITICAL)

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
# SQLSTATE classes whose text speaks of servers, logins, tables and syntax; other classes may quote values.
_SPOKEN_STATES = ("08", "0A", "25", "28", "3D", "3F", "42", "53", "57")


@contextmanager
def reading(url: str, password_file: Path | None, home_setting: str = "data.url") -> Iterator[sa.Connection]:
    """A connection in one read-only transaction that is rolled back at the end.

    SQLite is opened read-only and never created; PostgreSQL gets a read-only, repeatable-read transaction; other
    databases rely on the rights of the user in the URL, which should be able to read and nothing else.

    Args:
        url: as in site.toml; `${NAME}` stands for an environment variable.
        password_file: a file with the password alone, or None.
        home_setting: the setting that messages name.

    Raises:
        DataSourceError: no driver, no server, no such table and the like. The message holds neither the password
            nor values of rows.
    """
    secrets: list[str] = []
    try:
        target = _resolve(url, password_file, secrets)
        engine = sa.create_engine(_read_only(target), poolclass=sa.NullPool, hide_parameters=True, echo=False)
    except exc.NoSuchModuleError:
        raise DataSourceError(f"{home_setting}: SQLAlchemy knows no dialect of that name") from None
    except exc.ArgumentError:
        raise DataSourceError(f"{home_setting} is no SQLAlchemy URL") from None
    except ImportError as error:
        raise DataSourceError(
            f"{home_setting} needs the Python package {error.name!r}; install it at the site"
        ) from None
    try:
        with engine.connect() as connection:
            connection = _set_read_only(connection)
            yield connection
            connection.rollback()
    except exc.SQLAlchemyError as error:
        raise DataSourceError(_what_is_wrong(error, secrets)) from None
    finally:
        engine.dispose()


def _resolve(url: str, password_file: Path | None, secrets: list[str]) -> sa.URL:
    def variable(match: re.Match[str]) -> str:
        value = os.environ.get(match[1])
        if value is None:
            raise DataSourceError(f"data.url names the environment variable {match[1]}, which is not set")
        secrets.append(value)
        return value

    parsed = sa.make_url(url)
    changes: dict[str, object] = {}
    for part in ("username", "password", "host", "database"):
        text = getattr(parsed, part)
        if text is not None and _VARIABLE.search(str(text)):
            # After the URL is taken apart: a secret may hold any character.
            changes[part] = _VARIABLE.sub(variable, str(text))
    parsed = parsed.set(**changes)  # type: ignore[arg-type]
    query = {
        name: _VARIABLE.sub(variable, value) if isinstance(value, str) else value
        for name, value in parsed.query.items()
    }
    parsed = parsed.set(query=query)
    if password_file is not None:
        secrets.append(_password(password_file))
        parsed = parsed.set(password=secrets[-1])
    return parsed


def _password(path: Path) -> str:
    if not path.is_file():
        raise DataSourceError(f"there is no password file {path}; correct data.password_file in site.toml")
    if path.stat().st_mode & 0o077:
        raise DataSourceError(f"others on this machine may read {path}; run: chmod 600 {path}")
    password = path.read_text(encoding="utf-8").strip("\r\n")
    if not password:
        raise DataSourceError(f"the password file {path} is empty")
    return password


def _read_only(url: sa.URL) -> sa.URL:
    if url.get_backend_name() != "sqlite":
        return url
    if not url.database or url.database == ":memory:":
        raise DataSourceError("data.url names no SQLite file; write sqlite:///path/to/file.db")
    if not Path(url.database).is_file():
        raise DataSourceError(f"there is no SQLite file {url.database}; correct data.url in site.toml")
    return sa.URL.create(
        "sqlite", database=Path(url.database).absolute().as_uri(), query={"mode": "ro", "uri": "true"}
    )


def _set_read_only(connection: sa.Connection) -> sa.Connection:
    if connection.dialect.name == "postgresql":
        return connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    return connection


def _what_is_wrong(error: exc.SQLAlchemyError, secrets: list[str]) -> str:
    original = _telling(getattr(error, "orig", None))
    kind = type(original or error).__name__
    text, state = _original_text(original)
    spoken = (
        state[:2] in _SPOKEN_STATES if state else isinstance(error, exc.OperationalError | exc.InterfaceError)
    )
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    detail = f": {text}" if spoken and text else ""
    return f"the database did not answer as asked ({' '.join(filter(None, (kind, state)))}){detail}"


def _telling(original: BaseException | None) -> BaseException | None:
    """What the server said, where the driver then fell over closing the connection (pg8000: "network error")."""
    found = original
    while found is not None:
        if found.args and isinstance(found.args[0], dict):
            return found
        found = found.__context__
    return original


def _original_text(original: BaseException | None) -> tuple[str, str]:
    """First line of what the driver says, and the SQLSTATE where it gives one."""
    if original is None:
        return "", ""
    told = original.args[0] if original.args else ""
    if isinstance(told, dict):  # pg8000: the server's fields by their one-letter names
        return str(told.get("M", "")), str(told.get("C", ""))
    state = str(getattr(original, "sqlstate", None) or getattr(original, "pgcode", None) or "")
    return (str(original).splitlines() or [""])[0], state
