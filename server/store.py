"""What the coordinator keeps: its database, its files named by digest, and the key that signs the ledger.

`Store.open(home)` is the only way in; every function of `server.studies`, `sites`, `runs`, `releases`, `cohorts`
and `keys` takes a store first. Files are written, synced and renamed before the transaction that names them.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from models.digests import digest_of
from privacy.cli.folders import write_durably
from privacy.signing import SigningKey
from server.allowances import DEFAULTS, Allowances
from server.database import Database
from server.errors import NotFoundError
from server.migrations import migrate


class StoredFileError(Exception):
    """A file's contents are not those that its name promises."""


class Home(Protocol):
    """What a store needs of the coordinator's folder (`server.home.CoordinatorHome`)."""

    @property
    def database_url(self) -> str:
        """SQLite or PostgreSQL."""

    @property
    def releases(self) -> Path:
        """Generators and other arrays, each file named by its digest."""

    @property
    def cohorts(self) -> Path:
        """One folder per cohort."""

    @property
    def allowances(self) -> Allowances:
        """What users may have."""

    def signing_key(self) -> SigningKey:
        """The key that signs checkpoints; its name is the ledger's origin."""


def utc_now() -> dt.datetime:
    """The time, in UTC."""
    return dt.datetime.now(dt.UTC)


@dataclass(frozen=True, kw_only=True)
class Store:
    """The coordinator's state.

    Attributes:
        database: transactions.
        key: signs checkpoints.
        files: folder of arrays named by their digest.
        cohorts: folder of the cohorts' folders.
        allowances: what users may have.
        clock: gives the time; tests hand in their own.
        studies: those that `server.studies` has read, by name; a registered study never changes.
    """

    database: Database
    key: SigningKey
    files: Path
    cohorts: Path
    allowances: Allowances = DEFAULTS
    clock: Callable[[], dt.datetime] = utc_now
    studies: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, home: Home, *, clock: Callable[[], dt.datetime] = utc_now) -> Store:
        """Open the coordinator's state; the database is brought to the newest version."""
        database = Database(home.database_url)
        migrate(database.engine)
        for folder in (home.releases, home.cohorts):
            folder.mkdir(parents=True, exist_ok=True)
        return cls(
            database=database,
            key=home.signing_key(),
            files=home.releases,
            cohorts=home.cohorts,
            allowances=home.allowances,
            clock=clock,
        )

    def close(self) -> None:
        """Give back the database's connections."""
        self.database.close()

    def keep(self, data: bytes) -> str:
        """Write bytes to a file named by their digest, durably; again is harmless.

        Returns:
            The digest, `sha256:...`.
        """
        digest = digest_of(data)
        path = self.path_of(digest)
        if not path.exists():
            write_durably(path, data)
        return digest

    def load(self, digest: str) -> bytes:
        """The bytes of that digest.

        Raises:
            NotFoundError: there is no such file.
            StoredFileError: it was changed since it was written.
        """
        path = self.path_of(digest)
        if not path.is_file():
            raise NotFoundError("file of digest", digest)
        data = path.read_bytes()
        if digest_of(data) != digest:
            raise StoredFileError(
                f"{path.name} no longer has the digest it is named by; restore it from a backup"
            )
        return data

    def path_of(self, digest: str) -> Path:
        """Where the file of that digest lies."""
        scheme, _, name = digest.partition(":")
        if scheme != "sha256" or len(name) != 64 or not set(name) <= set("0123456789abcdef"):
            raise NotFoundError("file of digest", digest)
        return self.files / f"{name}.safetensors"
