"""What stands in a coordinator's server.toml: written once, read and checked by every process."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from privacy.cli.folders import HomeError, read_settings, toml_text
from server.allowances import Allowances

SETTINGS_FILE = "server.toml"
NAME_PATTERN = r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$"

_TEMPLATE = """\
# The coordinator's settings. Keys, certificates and data lie beside this file; nothing here is secret.
name = {name}
# Where studies, runs, releases and the ledger are kept: SQLite in this folder, or a URL such as
# postgresql+pg8000://user@host/fedtwin
database = {database}
# The file that holds the database's password, where the URL names a user only.
database_password_file = {database_password_file}

[api]
# Loopback, for the commands on this machine; others come through the gateway.
host = {api_host}
port = {api_port}

[gateway]
# The one public port: HTTPS, the API, and of the SuperLink /v1/fleet/ only. 0.0.0.0 listens to other machines.
host = {gateway_host}
port = {gateway_port}
# Of one client address, for long; four seconds' worth may come at once. Sites behind one address share it.
requests_per_second = 200
# The most that one request may carry; the API has its own, lower limits.
body_bytes = 268435456
# Reverse proxies whose X-Forwarded-For is believed, addresses or networks; ["*"] where nobody else gets here.
trusted_proxies = {trusted_proxies}

[cohorts]
# A cohort's files are removed after so many days; its certificate and its ledger entry stay.
keep_days = 30
# Synthetic patients that one owner may ask for on one day (UTC), unless the key says otherwise.
rows_per_day = 50000000
# Of one key; a minute's worth may come at once.
requests_per_minute = 6000
# A preview that takes longer is given up.
preview_seconds = 10.0

[superlink]
# Loopback only: Flower's SuperLink knows no users. Sites reach it through the gateway.
port = {superlink_port}
# What sites dial, host:port: the gateway, or what stands in front of it. The host must be in certs/server.crt.
address = {superlink_address}
"""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Api(_Section):
    host: str = Field(min_length=1)
    port: int = Field(ge=1, le=65535)


class GatewaySettings(_Section):
    """The public port.

    Attributes:
        host, port: where it listens.
        requests_per_second: of one client address, for long.
        body_bytes: the most that one request may carry.
        trusted_proxies: whose X-Forwarded-For is believed.
    """

    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8443, ge=1, le=65535)
    requests_per_second: float = Field(default=200.0, gt=0, allow_inf_nan=False)
    body_bytes: int = Field(default=256 * 2**20, ge=2**20)
    trusted_proxies: tuple[str, ...] = ()


class _SuperLink(_Section):
    port: int = Field(ge=1, le=65535)
    address: str = Field(pattern=r"^.+:\d{1,5}$")


class _Cohorts(_Section):
    keep_days: float = Field(default=30.0, gt=0, le=36_500)
    rows_per_day: int = Field(default=50_000_000, ge=0, le=10**15)
    requests_per_minute: int = Field(default=6_000, ge=1, le=10**9)
    preview_seconds: float = Field(default=10.0, gt=0, le=600)

    @property
    def allowances(self) -> Allowances:
        return Allowances(
            keep_cohorts=dt.timedelta(days=self.keep_days),
            rows_per_day=self.rows_per_day,
            requests_per_minute=self.requests_per_minute,
            preview_seconds=self.preview_seconds,
        )


class HomeSettings(_Section):
    """Everything in server.toml."""

    name: str = Field(pattern=NAME_PATTERN)
    database: str = Field(min_length=1)
    database_password_file: str = ""
    api: _Api
    gateway: GatewaySettings = GatewaySettings()
    cohorts: _Cohorts = _Cohorts()
    superlink: _SuperLink


def settings_text(
    *,
    name: str,
    database: str,
    database_password_file: Path | None,
    api: tuple[str, int],
    gateway: tuple[str, int],
    trusted_proxies: Sequence[str],
    superlink_port: int,
    superlink_address: str,
) -> str:
    """A new home's server.toml; `api` and `gateway` are each a host and a port."""
    return _TEMPLATE.format(
        name=toml_text(name),
        database=toml_text(database),
        database_password_file=toml_text(
            str(database_password_file.resolve() if database_password_file else "")
        ),
        api_host=toml_text(api[0]),
        api_port=api[1],
        gateway_host=toml_text(gateway[0]),
        gateway_port=gateway[1],
        trusted_proxies=f"[{', '.join(map(toml_text, trusted_proxies))}]",
        superlink_port=superlink_port,
        superlink_address=toml_text(superlink_address),
    )


def read_home_settings(home: Path) -> HomeSettings:
    """Read a home's server.toml.

    Raises:
        HomeError: no home there, or a setting that cannot be used.
    """
    file = home / SETTINGS_FILE
    data = read_settings(file, create_with=f"fedtwin server init --home {home.name}")
    try:
        return HomeSettings.model_validate(data)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise HomeError(f"{file.name} cannot be used: {'; '.join(lines)}") from error


def database_url(settings: HomeSettings, home: Path) -> str:
    """A relative SQLite file lies in the home, wherever a process was started; a password comes from its file.

    Raises:
        HomeError: the password file cannot be read, or the URL names no user.
    """
    database, password_file = settings.database, settings.database_password_file
    prefix = "sqlite:///"
    if database.startswith(prefix) and not database.startswith(f"{prefix}/"):
        return f"{prefix}{home / database.removeprefix(prefix)}"
    if not password_file:
        return database
    scheme, separator, rest = database.partition("://")
    user, at, place = rest.partition("@")
    if not (separator and at and user) or ":" in user:
        raise HomeError(
            "database must be a URL with a user and no password where database_password_file is set"
        )
    try:
        password = (home / password_file).read_text().strip()
    except OSError as error:
        raise HomeError(f"database_password_file cannot be read: {error}") from error
    return f"{scheme}://{user}:{quote(password, safe='')}@{place}"
