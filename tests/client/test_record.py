"""The site's record: append-only, hash-chained, never silently shorter than it was."""

from __future__ import annotations

import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from client.record import (
    Record,
    RecordBusyError,
    RecordError,
    RecordHead,
    RecordVerificationError,
    chain_hash,
)

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "record.db"


def fill(path, count=5):
    record = Record(path)
    for number in range(count):
        with record.transaction(NOW + timedelta(seconds=number)) as transaction:
            transaction.append("refused", {"round": number, "reason": "as äöü \u2028 says"})
    return record


def change(path, *statements):
    """What somebody with the file and without scruples can do."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "DROP TRIGGER IF EXISTS never_changed; DROP TRIGGER IF EXISTS never_deleted;"
            + ";".join(statements)
        )


def test_what_was_appended_is_read_back_in_order(path):
    record = fill(path)
    kinds = [entry.kind for entry in record.entries()]
    assert kinds == ["opened"] + ["refused"] * 5
    assert [entry.seq for entry in record.entries()] == [1, 2, 3, 4, 5, 6]
    assert record.entries()[3].body == {"round": 2, "reason": "as äöü \u2028 says"}
    assert record.entries()[1:] == Record(path).entries()[1:]
    record.verify()


def test_the_database_is_durable_and_private(path):
    fill(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    with Record(path)._connection() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert path.stat().st_mode & 0o077 == 0


def test_a_block_that_raises_leaves_nothing(path):
    record = fill(path)
    with pytest.raises(ZeroDivisionError), record.transaction(NOW) as transaction:
        transaction.append("refused", {"round": 1 // 0})
    before = record.head()

    with pytest.raises(ZeroDivisionError), record.transaction(NOW) as transaction:
        transaction.append("refused", {"round": transaction.append("refused", {}).seq // 0})
    assert record.head() == before


def test_the_database_itself_refuses_to_change_or_delete(path):
    fill(path)
    with closing(sqlite3.connect(path)) as connection:
        for statement in ("UPDATE record SET entry = ''", "DELETE FROM record WHERE seq = 6"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)


def test_the_database_itself_refuses_a_second_debit_of_a_round(path):
    record = Record(path)
    with record.transaction(NOW) as transaction:
        transaction.append("debit", {}, once="debit 1 run")
    with pytest.raises(RecordError), record.transaction(NOW) as transaction:
        transaction.append("debit", {}, once="debit 1 run")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE record SET entry = replace(entry, 'says', 'sais') WHERE seq = 3",
        "UPDATE record SET hash = 'x' WHERE seq = 3",
        "UPDATE record SET seq = 9 WHERE seq = 6",
        "DELETE FROM record WHERE seq = 1",
        "DELETE FROM record WHERE seq = 3",
        "DELETE FROM record WHERE seq = 6",
        "DELETE FROM record",
        "INSERT INTO record SELECT seq + 1, entry, 'y', NULL FROM record WHERE seq = 6",
        "UPDATE record SET seq = 100 WHERE seq = 3; UPDATE record SET seq = 3 WHERE seq = 4;"
        "UPDATE record SET seq = 4 WHERE seq = 100",
    ],
)
def test_whatever_is_altered_cut_or_reordered_is_noticed(path, statement):
    record = fill(path)
    change(path, statement)
    with pytest.raises(RecordVerificationError):
        record.verify()
    with pytest.raises(RecordVerificationError):
        record.entries()
    with pytest.raises(RecordVerificationError), record.transaction(NOW):
        pytest.fail("the block must not run")


def test_every_byte_of_every_entry_is_under_the_hash(path):
    record = fill(path, 2)
    entry = record.entries()[2]
    with closing(sqlite3.connect(path)) as connection:
        text = connection.execute("SELECT entry FROM record WHERE seq = 3").fetchone()[0].encode()
    previous = record.entries()[1].hash
    assert chain_hash(previous, text) == entry.hash
    flipped = [text[:i] + bytes([text[i] ^ 1]) + text[i + 1 :] for i in range(len(text))]
    assert entry.hash not in {chain_hash(previous, data) for data in flipped}


def test_a_rewritten_chain_is_noticed_by_the_last_mark_and_by_a_head_kept_elsewhere(path, tmp_path):
    record = fill(path)
    kept = record.head()
    other = fill(tmp_path / "other.db")
    shutil.copy(tmp_path / "other.db", path)
    with pytest.raises(RecordVerificationError, match="rewritten"):
        record.entries()
    path.with_name("record.db.head").unlink()
    with pytest.raises(RecordVerificationError, match="rewritten"):
        record.verify(since=kept)
    other.verify(since=other.head())


def test_an_older_copy_is_noticed(path, tmp_path):
    fill(path)
    shutil.copy(path, tmp_path / "backup.db")
    fill(path)
    shutil.copy(tmp_path / "backup.db", path)
    with pytest.raises(RecordVerificationError, match="older copy"):
        Record(path).entries()


def test_a_record_that_is_gone_is_not_begun_again(path):
    fill(path)
    for file in path.parent.glob("record.db*"):
        if not file.name.endswith(".head"):
            file.unlink()
    with pytest.raises(RecordVerificationError, match="6 entries"):
        Record(path).entries()
    with pytest.raises(RecordVerificationError):
        Record(path).entries()


def test_a_mark_that_is_not_one_is_refused(path):
    record = fill(path)
    path.with_name("record.db.head").write_text("6 x\n")
    with pytest.raises(RecordVerificationError, match=r"record\.db\.head"):
        record.entries()


def test_a_mark_that_lags_behind_is_no_fault(path):
    record = fill(path)
    third = record.entries()[2]
    path.with_name("record.db.head").write_text(f"3 {third.hash}\n")
    record.verify()
    path.with_name("record.db.head").unlink()
    record.verify()


def test_garbage_in_place_of_the_file_is_refused(path):
    fill(path)
    path.write_bytes(b"not a database, " * 1000)
    with pytest.raises(RecordError):
        Record(path).entries()
    path.write_bytes(b"")
    with pytest.raises(RecordError):
        Record(path).entries()


def test_a_record_continues_any_head_it_ever_had(path):
    record = fill(path, 3)
    heads = [record.head()]
    for _ in range(3):
        fill(path, 1)
        heads.append(record.head())
    for head in heads:
        record.verify(since=head)
    with pytest.raises(RecordVerificationError):
        record.verify(since=RecordHead(size=heads[0].size, hash=heads[1].hash))
    with pytest.raises(RecordVerificationError):
        record.verify(since=RecordHead(size=99, hash=heads[1].hash))


def test_time_never_runs_backwards(path):
    record = fill(path)
    with record.transaction(NOW - timedelta(days=9)) as transaction:
        entry = transaction.append("refused", {})
    assert entry.at == NOW + timedelta(seconds=4)


def test_a_record_that_stays_locked_is_busy(path):
    fill(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        record = Record(path, timeout_seconds=0.05)
        with pytest.raises(RecordBusyError), record.transaction(NOW):
            pytest.fail("the block must not run")


def test_many_threads_may_begin_one_record(path):
    def write(number):
        with Record(path).transaction(NOW) as transaction:
            return transaction.append("refused", {"number": number}).seq

    with ThreadPoolExecutor(16) as pool:
        assert sorted(pool.map(write, range(48))) == list(range(2, 50))
    Record(path).verify()
