from collections.abc import Callable

import pytest
from sqlalchemy import Engine, create_engine, inspect, text

from devstack import pytest_plugin


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


def _create_table(engine: Engine) -> None:
    with engine.begin() as tx:
        tx.execute(text("CREATE TABLE mine (id bigint)"))
    engine.dispose()
