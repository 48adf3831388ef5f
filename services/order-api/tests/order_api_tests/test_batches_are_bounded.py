"""A batch of calls is bounded by the number of order lines that it works on."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal

import pytest
from sqlalchemy import select

from order_api.domain.commands import CancelAbandoned, ChangeStatus, PurgeKeys
from order_api.domain.model import LINES_MAX, NewItem, Order, Status
from order_api.domain.transitions import LostStock
from order_api.inventory import Inventory
from order_api.operations.cancel_orders import AbandonedOrders, cancel_lost
from order_api.operations.coalescing import Operations
from order_api.operations.order_turns import TURN_LINES
from order_api.operations.purge import TURN_KEYS, KeyPurge
from order_api.store import orders, tables
from shop_common.batching.coalescer import BATCH_WEIGHT_MAX
from shop_common.db.database import Database
from shop_common.db.idempotency import Claim, RequestIdReused
from shop_protos.order.v1 import order_pb2 as pb
from testkit.drivers.order_api import (
    UNKNOWN,
    InventoryClient,
    OrderApiDriver,
    at_once,
    lines_read,
    new_order,
    new_request,
    stored,
)

LONG = tuple(NewItem(product, 1, Decimal(1)) for product in range(1, LINES_MAX + 1))


@pytest.fixture
def operations(database: Database) -> Iterator[Operations]:
    """Operations without a running inventory-api."""
    inventory = Inventory("localhost:1", call_seconds=0.1)
    fatal_errors: list[str] = []
    operations = Operations(
        database, inventory, on_fatal=lambda reason, error: fatal_errors.append(f"{reason}: {error!r}")
    )
    yield operations
    operations.close()
    inventory.close()
    assert fatal_errors == []


def deadline() -> float:
    return time.monotonic() + 60


def events_by_transaction(database: Database, event_type: str) -> list[int]:
    """The number of events of this type in each transaction, ascending. Events of a transaction have the same time."""
    outbox = tables.outbox.table
    with database.read() as tx:
        timestamps = tx.execute(select(outbox.c.created_at).where(outbox.c.type == event_type)).scalars()
        return sorted(Counter(timestamps).values())


def test_many_long_orders_are_cancelled_in_several_transactions(database: Database, operations: Operations) -> None:
    long = stored(database, *(new_order(items=LONG) for _ in range(25)))

    commands = [ChangeStatus(order.id, Status.CANCELLED) for order in long]
    outcomes = operations._set_status.submit_many(commands, deadline=deadline())

    assert all(isinstance(each, Order) and each.status is Status.CANCELLED for each in outcomes)
    by_transaction = events_by_transaction(database, "ORDER_CANCELLED")
    assert sum(by_transaction) == 25
    assert by_transaction[-1] <= BATCH_WEIGHT_MAX // LINES_MAX


def test_orders_that_lost_their_stock_are_cancelled_in_turns(database: Database) -> None:
    long = stored(database, *(new_order(items=LONG) for _ in range(25)))
    losses = [LostStock(order.key, released=True) for order in long for _ in range(20)]

    turns = 1
    while database.transact(lambda tx: cancel_lost(tx, losses)):
        turns += 1

    by_transaction = events_by_transaction(database, "ORDER_CANCELLED")
    assert sum(by_transaction) == 25
    assert by_transaction[-1] <= TURN_LINES // LINES_MAX
    assert turns == len(by_transaction)


def test_abandoned_orders_are_cancelled_in_turns(database: Database) -> None:
    long = stored(database, *(new_order(items=LONG) for _ in range(12)), reserved_seconds=-3600)
    stored(database, *(new_order() for _ in range(3)), reserved_seconds=-3000)

    assert AbandonedOrders(database).cancel(CancelAbandoned(60, 14)) == 14

    by_transaction = events_by_transaction(database, "ORDER_CANCELLED")
    assert sum(by_transaction) == 14
    assert len(by_transaction) >= len(long) * LINES_MAX // TURN_LINES
    assert AbandonedOrders(database).cancel(CancelAbandoned(60, 14)) == 1


def test_keys_are_purged_in_turns(database: Database) -> None:
    claims = [Claim("CreateOrder", "1", f"key-{number}", "", ()) for number in range(2 * TURN_KEYS + 50)]
    database.transact(lambda tx: tables.idempotency_keys.insert(tx, claims))

    assert KeyPurge(database).purge(PurgeKeys(-60, TURN_KEYS + 1)).keys == TURN_KEYS + 1
    assert KeyPurge(database).purge(PurgeKeys(-60, 10 * TURN_KEYS)).keys == TURN_KEYS + 49
    assert KeyPurge(database).purge(PurgeKeys(-60, TURN_KEYS)).keys == 0


def test_a_repeat_with_fewer_lines_is_refused_without_reading_the_lines_of_the_order(database: Database) -> None:
    (long,) = stored(database, new_order(items=LONG))
    (short,) = stored(database, new_order())
    repeats = [replace(new_order(), id=long.id), replace(new_order(), id=short.id)]

    with lines_read(database) as read:
        earlier = database.query(lambda tx: orders.find_earlier(tx, repeats))

    assert isinstance(earlier[long.key], RequestIdReused)
    assert earlier[short.key] == short
    assert read == [UNKNOWN if database.is_sqlite else 1]


def test_lines_are_counted_for_each_order(database: Database) -> None:
    long, short = stored(database, new_order(items=LONG), new_order())
    with database.read() as tx:
        assert orders.count_lines(tx, {long.key, short.key, new_order().key}) == {long.key: LINES_MAX, short.key: 1}
        assert orders.statuses(tx, [long.key, new_order().key]) == {long.key: Status.PENDING}


def test_more_concurrent_confirmations_than_calls_to_inventory_api_all_succeed(
    driver: OrderApiDriver, stock: InventoryClient
) -> None:
    product = stock.product(units=100)
    created = [driver.create_order(new_request((product, 1, "1"))) for _ in range(100)]

    confirmed = at_once(100, lambda number: driver.change_status(created[number].id, pb.ORDER_STATUS_CONFIRMED))

    assert {order.status for order in confirmed} == {pb.ORDER_STATUS_CONFIRMED}
