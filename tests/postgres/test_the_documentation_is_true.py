"""Connections and timeouts are as docs/postgresql.md describes them."""

import re
from pathlib import Path

import pytest

from event_relay import relay
from inventory_api.settings import InventorySettings
from order_api.settings import OrderSettings
from shop_common.db import database, schema
from shop_common.events import consumer
from shop_common.process import lifecycle

PAGE = (Path(__file__).parents[2] / "docs/postgresql.md").read_text()


def test_the_timeouts_fit_together() -> None:
    lock, statement = database.LOCK_TIMEOUT_SECONDS, database.STATEMENT_TIMEOUT_SECONDS
    calls = OrderSettings.model_fields["inventory_call_seconds"].default
    grace = InventorySettings.model_fields["grace_seconds"].default

    # The lock timeout is the shortest, so that the error names the lock and not the statement, the pool or the caller.
    assert lock < database.POOL_TIMEOUT_SECONDS < statement
    assert lock < calls
    assert calls > database.POOL_TIMEOUT_SECONDS
    assert calls > database.CONNECT_TIMEOUT_SECONDS
    # The locks of a frozen process are released almost as soon as those of a slow one.
    assert database.IDLE_TIMEOUT_SECONDS <= 5
    # A shutdown gives running work all the time that it may take.
    assert grace > statement
    assert grace > calls
    assert lifecycle.FLUSH_SECONDS_MAX > relay.BATCH_SECONDS_MAX
    assert lifecycle.FLUSH_SECONDS_MAX > consumer.STOP_SECONDS_MAX
    # A migration that waits for a table lock blocks other statements for less than their timeout.
    assert lock < schema.LOCK_TIMEOUT_SECONDS < statement
    assert statement < database.UNANSWERED_TIMEOUT_SECONDS


@pytest.mark.parametrize(
    ("row", "number"),
    [
        (r"wait for a row's lock", database.LOCK_TIMEOUT_SECONDS),
        (r"wait for a free connection of the pool", database.POOL_TIMEOUT_SECONDS),
        (r"connecting", database.CONNECT_TIMEOUT_SECONDS),
        (r"one statement", database.STATEMENT_TIMEOUT_SECONDS),
        (r"idle in a transaction", database.IDLE_TIMEOUT_SECONDS),
        (r"`INVENTORY_CALL_SECONDS`", OrderSettings.model_fields["inventory_call_seconds"].default),
        (r"`GRACE_SECONDS`", OrderSettings.model_fields["grace_seconds"].default),
        (r"a dead network", database.UNANSWERED_TIMEOUT_SECONDS),
    ],
)
def test_the_page_has_the_timeouts_of_the_code(row: str, number: float) -> None:
    assert re.search(rf"^\| {number:g} \| {row}", PAGE, re.MULTILINE)


def test_the_page_counts_the_connections_that_a_process_opens() -> None:
    assert f"up to {database.CONNECTIONS_MAX}," in PAGE
    assert "16 × 4 + 2 + 2 + 3 + 10 = 81" in PAGE
    assert database.CONNECTIONS_MAX * 4 + 2 + 2 + 3 + 10 == 81
