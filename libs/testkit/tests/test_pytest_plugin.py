import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, inspect, text

from testkit import pytest_plugin


@pytest.mark.parametrize("_time", ["first", "second"])
def test_every_test_has_an_empty_database_of_its_own(database_url: str, database_kind: str, _time: str) -> None:
    engine = create_engine(database_url)
    assert engine.dialect.name == database_kind
    assert inspect(engine).get_table_names() == []

    _create_table(engine)


def test_two_databases_of_one_test_do_not_see_each_other(new_database: Callable[[str], str]) -> None:
    inventory, orders = (create_engine(new_database(name)) for name in ("inventory", "orders"))
    _create_table(inventory)

    assert inspect(orders).get_table_names() == []
    orders.dispose()


def test_the_header_names_what_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(pytest_plugin.POSTGRES_VARIABLE, "postgresql://shop:secret@db.example/postgres")
    monkeypatch.setenv(pytest_plugin.KAFKA_VARIABLE, "kafka.example:9092")

    assert pytest_plugin.pytest_report_header() == [
        "postgresql: PostgreSQL at db.example (given)",
        "kafka: Kafka at kafka.example:9092 (given); with SQLite librdkafka's embedded broker",
    ]


def test_the_tests_of_a_file_stay_on_one_worker(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / f"test_{name}.py").write_text(_RECORDS_ITS_WORKER)

    command = [sys.executable, "-m", "pytest", "-p", "testkit.pytest_plugin", "-n", "2", "--dist", "loadgroup"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60)

    workers_of_files = [(tmp_path / f"test_{name}.workers").read_text().split() for name in ("first", "second")]
    assert [(len(workers), len(set(workers))) for workers in workers_of_files] == [(6, 1), (6, 1)]


_RECORDS_ITS_WORKER = """
import pathlib, pytest

@pytest.mark.parametrize("n", range(6))
def test_records(n, worker_id):
    with pathlib.Path(__file__).with_suffix(".workers").open("a") as file:
        print(worker_id, file=file)
"""


def _create_table(engine: Engine) -> None:
    with engine.begin() as tx:
        tx.execute(text("CREATE TABLE mine (id bigint)"))
    engine.dispose()
