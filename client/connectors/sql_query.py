"""The rows of one SELECT, streamed from a site's database."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pandas as pd
import sqlalchemy as sa

from client.connectors.database import reading
from client.connectors.errors import DataSourceError
from client.connectors.settings import SqlSource
from client.connectors.source import rows_per_chunk, wanted_columns
from models.schema import StudySchema

_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)


class SqlQuery:
    """The result of a query; the database cannot say whether it changed, so it is read once per run."""

    has_lines = False

    def __init__(self, settings: SqlSource) -> None:
        self._settings = settings

    def stamp(self) -> None:
        """See `PatientSource.stamp`."""

    def fingerprint(self, secret: bytes) -> None:
        """See `PatientSource.fingerprint`."""

    def chunks(self, schema: StudySchema) -> Iterator[pd.DataFrame]:
        """Parts of the result, never all of it in memory; see `PatientSource.chunks`.

        Raises:
            DataSourceError: the query is no single SELECT, or the database does not answer it.
        """
        query = self._query()
        wanted = set(wanted_columns(schema))
        num_rows = 0
        with reading(self._settings.url, self._settings.password_file) as connection:
            size = rows_per_chunk(len(wanted))
            result = connection.execute(
                sa.text(query), execution_options={"stream_results": True, "yield_per": size}
            )
            names = list(result.keys())
            # Where one is missing all are handed on, so that the message can say what there is.
            taken = [at for at, name in enumerate(names) if name in wanted or not wanted <= set(names)]
            for rows in result.partitions(size):
                num_rows += len(rows)
                # As objects: nothing is rounded, and the schema alone decides what a value means.
                frame = pd.concat(
                    [pd.Series([row[at] for row in rows], dtype=object) for at in taken], axis=1
                )
                frame.columns = [names[at] for at in taken]
                yield frame
        if num_rows == 0:
            raise DataSourceError("data.query gives no rows; correct it in site.toml")

    def _query(self) -> str:
        query = self._settings.query
        if self._settings.query_file is not None:
            if not self._settings.query_file.is_file():
                raise DataSourceError(
                    f"there is no query file {self._settings.query_file}; correct data.query_file in site.toml"
                )
            query = self._settings.query_file.read_text(encoding="utf-8")
        query = query.strip().removesuffix(";")
        bare = _COMMENT.sub(" ", query).strip()
        if re.match(r"(select|with)\b", bare, re.IGNORECASE) is None:
            raise DataSourceError("data.query must be one SELECT (or WITH ... SELECT): a site only reads")
        return query.replace(":", r"\:")
