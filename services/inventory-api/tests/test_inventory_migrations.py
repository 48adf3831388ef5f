"""The migrations lead to the declared tables."""

from inventory_api.migrations import SCHEMA
from shop_common.database import Database


def test_a_migrated_database_has_the_declared_tables(database_url: str) -> None:
    database = Database(database_url)
    SCHEMA.upgrade(database)

    assert SCHEMA.drift(database) == []
    SCHEMA.check(database)
    database.close()
