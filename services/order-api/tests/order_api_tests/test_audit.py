"""Every change of an order is in the audit log, and in its event as the actor, with the caller that made it."""

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import orjson
import pytest
from sqlalchemy import select

from order_api.api import consumer, parse
from order_api.domain.commands import CancelAbandoned, ChangeStatus, PurgeKeys
from order_api.domain.model import Status
from order_api.inventory import Inventory
from order_api.operations.coalescing import Operations
from order_api.store import tables
from shop_common.db.database import Database
from shop_common.errors import ShopError
from shop_common.events.consumer import Event
from shop_common.identity.caller import ANYONE, Caller
from testkit.drivers.order_api import CALL_SECONDS, InventoryClient, at_once, new_order, new_request, stored

PERMISSIONS = frozenset({"orders.read", "orders.write"})
USERS = [Caller(f"user:{number}", PERMISSIONS, str(number)) for number in range(1, 9)]
REAPER = Caller("spiffe://shop/reservation-reaper", frozenset({"maintenance"}))
Row = tuple[str, str | None, str, str | None, list[str]]


@pytest.fixture
def operations(database: Database, stock: InventoryClient) -> Iterator[Operations]:
    """The operations of order-api, with the real inventory-api and an audit log."""
    inventory = Inventory(stock.address, call_seconds=10)
    opened = Operations(database, inventory, on_fatal=lambda reason, error: None, audit_log=tables.audit_log)
    yield opened
    opened.close()
    inventory.close()


def deadline() -> float:
    return time.monotonic() + CALL_SECONDS


def rows(database: Database) -> list[Row]:
    """Caller, subject, method, request_id and resources of each row, in order."""
    log = tables.audit_log.table.c
    with database.read() as tx:
        found = tx.execute(
            select(log.caller, log.subject, log.method, log.request_id, log.resources).order_by(log.id)
        ).all()
    return [(*row[:4], orjson.loads(row.resources)) for row in found]


def actors(database: Database) -> dict[tuple[str, str], str | None]:
    """The actor in each event's headers, by order id and event type."""
    outbox = tables.outbox.table.c
    with database.read() as tx:
        found = tx.execute(select(outbox.key, outbox.type, outbox.headers)).all()
    return {(row.key, row.type): orjson.loads(row.headers or "{}").get("ce_actor") for row in found}


def test_concurrent_changes_have_one_row_each(
    operations: Operations, database: Database, stock: InventoryClient
) -> None:
    product = stock.product(units=100)

    def buy(number: int) -> list[Row]:
        caller = USERS[number % len(USERS)]
        request = new_request((product, 1, "1"), user_id=100 * product + number, request_id=f"create-{number}")
        order = operations.create_order(parse.new_order(request, caller, None), deadline=deadline())
        expected: list[Row] = [(caller.name, caller.subject, "CreateOrder", f"create-{number}", [order.id])]
        for status in (Status.CONFIRMED, Status.CANCELLED):
            command = ChangeStatus(order.id, status, caller=caller, request_id=f"{status}-{number}")
            operations.update_status(command, owner=None, deadline=deadline())
            expected.append((caller.name, caller.subject, "UpdateOrderStatus", f"{status}-{number}", [order.id]))
        return expected

    expected = [row for of_call in at_once(24, buy) for row in of_call]

    assert sorted(rows(database)) == sorted(expected)
    caller_of = {order_id: caller for caller, _, _, _, (order_id,) in expected}
    assert {order_id: actor for (order_id, _), actor in actors(database).items()} == caller_of


def test_refused_calls_have_no_rows(operations: Operations, database: Database, stock: InventoryClient) -> None:
    short = parse.new_order(new_request((stock.product(units=1), 2, "1")), USERS[0], None)
    (pending,) = stored(database, new_order())
    illegal = ChangeStatus(pending.id, Status.DELIVERED, caller=USERS[0])

    with pytest.raises(ShopError):
        operations.create_order(short, deadline=deadline())
    with pytest.raises(ShopError):
        operations.update_status(illegal, owner=None, deadline=deadline())

    assert rows(database) == []


def test_a_confirmation_that_finds_the_stock_lost_has_a_row_since_it_cancels_the_order(
    operations: Operations, database: Database
) -> None:
    (order,) = stored(database, new_order())  # without a reservation
    command = ChangeStatus(order.id, Status.CONFIRMED, caller=USERS[0], request_id="confirm")

    with pytest.raises(ShopError) as refused:
        operations.update_status(command, owner=None, deadline=deadline())

    assert refused.value.reason == "RESERVATION_NOT_FOUND"
    assert rows(database) == [("user:1", "1", "UpdateOrderStatus", "confirm", [order.id])]
    assert actors(database)[order.id, "ORDER_CANCELLED"] == "user:1"


@pytest.mark.parametrize("event_type", ["STOCK_RESERVATION_EXPIRED", "STOCK_RELEASED"])
def test_an_order_that_an_event_cancels_has_a_row_with_the_event(database: Database, event_type: str) -> None:
    (order,) = stored(database, new_order())
    event = Event(
        event_type, "1", "event-1", {"order_id": order.id}, datetime.now(UTC), None, consumer.TOPIC, 0, 0,
        actor="user:7",
    )  # fmt: skip
    handle = consumer.handlers(tables.audit_log)[event_type]

    for _ in range(2):  # the second delivery changes nothing
        database.transact(lambda tx: handle(tx, [event]))

    assert rows(database) == [(f"event:{event_type}", None, "", "event-1", [order.id])]
    assert actors(database)[order.id, "ORDER_CANCELLED"] == "user:7"


def test_maintenance_has_a_row_for_each_transaction_that_changed_something(
    operations: Operations, database: Database
) -> None:
    abandoned = stored(database, *(new_order() for _ in range(3)), reserved_seconds=-3600)
    stored(database, replace(new_order(), request_id="old"))

    for _ in range(2):  # the second call of each finds nothing to do
        operations.cancel_abandoned(CancelAbandoned(60, 100, caller=REAPER), deadline=deadline())
        operations.purge_keys(PurgeKeys(-60, 100, caller=REAPER), deadline=deadline())

    cancelled, purged = rows(database)
    assert cancelled[:4] == (REAPER.name, None, "CancelAbandonedOrders", None)
    assert sorted(cancelled[4]) == sorted(order.id for order in abandoned)
    assert purged == (REAPER.name, None, "PurgeHistory", None, [])
    assert actors(database)[abandoned[0].id, "ORDER_CANCELLED"] == REAPER.name


def test_events_have_no_actor_if_callers_are_not_checked(database: Database) -> None:
    (order,) = stored(database, new_order(caller=ANYONE))

    assert actors(database) == {(order.id, "ORDER_CREATED"): None}
