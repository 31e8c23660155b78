"""Where a site's patients come from: files on the site's own disk, read as text and checked against the schema.

Every fault is reported here, at the site, with its row and column; none of it is ever sent.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pandas.errors import EmptyDataError, ParserError

DataKind = Literal["csv", "parquet"]
MISSING_SPELLINGS = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "?")


class DataSourceError(Exception):
    """The site's data cannot be read as what it is declared to be. Local: never sent."""


def kind_of(path: Path) -> DataKind:
    """The kind of a data file by its suffix.

    Raises:
        DataSourceError: neither `.csv` nor `.parquet`.
    """
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return "csv"
    if suffix in {".parquet", ".pq"}:
        return "parquet"
    raise DataSourceError(f"{path.name} ends in {suffix!r}; give a file that ends in .csv or .parquet")


def read_table(path: Path, kind: DataKind) -> pd.DataFrame:
    """Read a site's table; cells of a CSV stay text, so that the schema alone decides what they mean.

    Raises:
        DataSourceError: absent, empty, not of that kind, or broken at a line that the message names.
    """
    if not path.is_file():
        raise DataSourceError(f"there is no data file {path}; correct data.path in site.toml")
    frame = _read_csv(path) if kind == "csv" else _read_parquet(path)
    if frame.empty:
        raise DataSourceError(f"{path.name} has a header and no patient; put one line per record below it")
    return frame


def _read_csv(path: Path) -> pd.DataFrame:
    with path.open("rb") as file:
        head = file.read(65536)
    if not head.strip():
        raise DataSourceError(f"{path.name} is empty; the first line must name the columns")
    if b"\x00" in head or head.startswith((b"PK\x03\x04", b"PAR1", b"\x1f\x8b")):
        raise DataSourceError(
            f"{path.name} is a binary file, not CSV; export it as comma-separated UTF-8 text"
        )
    try:
        return pd.read_csv(
            path,
            dtype=str,
            keep_default_na=False,
            na_values=list(MISSING_SPELLINGS),
            skipinitialspace=True,
            encoding="utf-8-sig",
            skip_blank_lines=False,
            index_col=False,
        )
    except UnicodeDecodeError as error:
        raise DataSourceError(
            f"{path.name} is not UTF-8 at byte {error.start}; export it as comma-separated UTF-8 text"
        ) from None
    except EmptyDataError:
        raise DataSourceError(
            f"{path.name} has no header line; the first line must name the columns"
        ) from None
    except ParserError as error:
        raise DataSourceError(f"{path.name} is not a table: {str(error).splitlines()[0]}") from None


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pq.read_table(path).to_pandas()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataSourceError(f"{path.name} is not Parquet: {str(error).splitlines()[0]}") from None


def fingerprint(path: Path, secret: bytes) -> str:
    """A keyed digest of the data file: the site can show later which data it used, nobody can guess it.

    Args:
        path: the data file.
        secret: the site's own secret, at least 32 bytes; it never leaves the site.

    Returns:
        `hmac-sha256:` and 64 hexadecimal digits.
    """
    mac = hmac.new(secret, digestmod=hashlib.sha256)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            mac.update(block)
    return "hmac-sha256:" + mac.hexdigest()
