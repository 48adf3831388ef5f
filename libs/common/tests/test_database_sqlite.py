"""A file that is removed, replaced, damaged, full, or in a folder with an odd name."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from shop_common.db.address import sqlite_url
from shop_common.db.database import Database, cause_of
from shop_common.errors import DatabaseNeedsRepair, DatabaseUnavailable


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.db"


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    database = Database(sqlite_url(path))
    with database.write() as tx:
        tx.execute(text("CREATE TABLE parcels (id INTEGER PRIMARY KEY)"))
    yield database
    database.close()


def put(tx: Connection) -> None:
    tx.execute(text("INSERT INTO parcels DEFAULT VALUES"))


def count(tx: Connection) -> int:
    return int(tx.execute(text("SELECT count(*) FROM parcels")).scalar_one())


def test_nothing_is_read_or_written_once_the_file_was_removed_and_the_log_can_name_it(
    database: Database, path: Path
) -> None:
    path.unlink()

    for attempt in (lambda: database.transact(put), lambda: database.query(count)):
        with pytest.raises(DatabaseNeedsRepair) as gone:
            attempt()
        assert gone.value.rolled_back
        assert f"{path} was removed" in cause_of(gone.value)
    assert not path.exists(), "it was made anew, without the data"


def test_a_file_that_took_the_place_of_the_open_one_is_not_written(database: Database, path: Path) -> None:
    Path(f"{path}-other").touch()
    Path(f"{path}-other").rename(path)

    with pytest.raises(DatabaseNeedsRepair) as replaced:
        database.transact(put)

    assert f"{path} was replaced" in cause_of(replaced.value)
    assert path.stat().st_size == 0


def test_a_commit_into_a_file_without_a_name_is_not_acknowledged(database: Database, path: Path) -> None:
    def put_and_remove(tx: Connection) -> None:
        put(tx)
        path.unlink()

    with pytest.raises(DatabaseUnavailable) as lost:
        database.transact(put_and_remove)

    assert not lost.value.rolled_back
    assert str(path) in cause_of(lost.value)


def test_a_file_that_was_put_back_is_used_again(database: Database, path: Path) -> None:
    database.transact(put)
    aside = path.rename(f"{path}-aside")
    with pytest.raises(DatabaseNeedsRepair):
        database.transact(put)

    aside.rename(path)

    database.transact(put)
    assert database.query(count) == 2


def test_a_file_that_is_no_database_is_named(path: Path) -> None:
    path.write_text("these are a thousand words that are no database" * 100)
    database = Database(sqlite_url(path))

    with pytest.raises(DatabaseNeedsRepair) as nonsense:
        database.query(count)

    assert cause_of(nonsense.value) == f"file is not a database ({path})"
    assert str(path) not in nonsense.value.message
    database.close()


def test_a_path_where_no_file_can_be_made_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "shop.db"
    database = Database(sqlite_url(path))

    with pytest.raises(DatabaseNeedsRepair) as nowhere:
        database.query(count)

    assert cause_of(nowhere.value) == f"unable to open database file ({path})"
    database.close()


def test_a_full_disk_and_a_read_only_file_are_named_and_nothing_was_done(database: Database, path: Path) -> None:
    def fill(tx: Connection) -> None:
        tx.exec_driver_sql("PRAGMA max_page_count = 1")
        tx.execute(
            text(
                "CREATE TABLE more AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 9999)"
                " SELECT i FROM n"
            )
        )

    def write_where_only_reading_is_allowed(tx: Connection) -> None:
        tx.exec_driver_sql("PRAGMA query_only = ON")
        put(tx)

    for fault, said in (
        (fill, f"database or disk is full ({path})"),
        (write_where_only_reading_is_allowed, f"attempt to write a readonly database ({path})"),
    ):
        with pytest.raises(DatabaseNeedsRepair) as refused:
            database.transact(fault)
        assert refused.value.rolled_back
        assert cause_of(refused.value) == said
        database.engine.dispose()
    assert database.query(count) == 0


def test_the_error_of_a_missing_table_names_its_file(database: Database, path: Path) -> None:
    with pytest.raises(DatabaseNeedsRepair) as missing:
        database.query(lambda tx: tx.execute(text("SELECT 1 FROM letters")))

    assert cause_of(missing.value) == f"no such table: letters ({path})"


@pytest.mark.parametrize("name", ["a?b", "a#b", "a b", "50% off", "a%3Fb", "ü&=+;", "a?mode=ro"])
def test_any_name_can_be_that_of_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    path = tmp_path / name / "shop.db"
    for _ in range(2):
        database = Database(sqlite_url(path))
        database.transact(lambda tx: tx.execute(text("CREATE TABLE IF NOT EXISTS parcels (id INTEGER PRIMARY KEY)")))
        database.transact(put)
        database.close()

    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert path.stat().st_size > 0


def test_only_its_owner_may_read_what_is_in_a_new_file(database: Database, path: Path) -> None:
    database.transact(put)

    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    assert modes == {"shop.db": 0o600, "shop.db-wal": 0o600, "shop.db-shm": 0o600}
