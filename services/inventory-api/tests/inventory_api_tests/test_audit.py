"""Every change of the stock is in the audit log, and in its events as the actor, with the caller that made it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import orjson
import pytest
from sqlalchemy import select

from inventory_api.api import consumer
from inventory_api.domain.commands import (
    AddStock,
    ChangeStock,
    ExpireRequest,
    OrderLines,
    OrderRequest,
    PurgeRequest,
    ReleaseRequest,
    SetQuantity,
    StockChange,
)
from inventory_api.domain.model import DEFAULT_LOCATION, Line
from inventory_api.domain.movements import MovementKind
from inventory_api.domain.stock_changes import ChangedStock
from inventory_api.operations.coalescing import Operations
from inventory_api.store import tables
from shop_common.db.database import Database
from shop_common.errors import ShopError
from shop_common.events.consumer import Event
from shop_common.identity.caller import Caller
from testkit.drivers.inventory_api import TTL_SECONDS, InventoryDriver, deadline

PERMISSIONS = frozenset({"stock.reserve", "inventory.write"})
CALLERS = [Caller(f"user:{number}", PERMISSIONS, str(number)) for number in range(4)]
ORDER_API = Caller("spiffe://shop/order-api", PERMISSIONS | {"delegate"}, "7", "acme")
REAPER = Caller("spiffe://shop/reservation-reaper", frozenset({"maintenance"}))
Row = tuple[str, str, str | None, str, str | None, list[str]]


@pytest.fixture
def operations(database: Database) -> Iterator[Operations]:
    """The operations of inventory-api with an audit log."""
    opened = Operations(
        database, ttl_seconds=TTL_SECONDS, on_fatal=lambda reason, error: None, audit_log=tables.audit_log
    )
    yield opened
    opened.close()


def rows(database: Database) -> list[Row]:
    """Tenant, caller, subject, method, request_id and resources of each row, in order."""
    log = tables.audit_log.table.c
    columns = (log.tenant, log.caller, log.subject, log.method, log.request_id, log.resources)
    with database.read() as tx:
        found = tx.execute(select(*columns).order_by(log.id)).all()
    return [(*row[:5], orjson.loads(row.resources)) for row in found]


def actors(database: Database) -> list[tuple[str, str | None]]:
    """The type and the actor of each event, in order."""
    outbox = tables.outbox.table.c
    with database.read() as tx:
        found = tx.execute(select(outbox.type, outbox.headers).order_by(outbox.id)).all()
    return [(row.type, orjson.loads(row.headers or "{}").get("ce_actor")) for row in found]


def order_event(event_type: str, order_id: str, actor: str | None) -> Event:
    data = {"id": order_id, "items": [{"product_id": 1, "quantity": 1}]}
    return Event(
        event_type, order_id, f"event-of-{order_id}", data, datetime.now(UTC), None, consumer.TOPIC, 0, 0, "acme", actor
    )


def test_concurrent_changes_have_one_row_each(operations: Operations, database: Database) -> None:
    item = operations.add_stock(
        AddStock(1, DEFAULT_LOCATION, 1000, caller=CALLERS[0], request_id="add"), deadline=deadline()
    )
    expected: list[Row] = [("default", "user:0", "0", "CreateInventoryItem", "add", [str(item.id)])]

    def reserve(number: int) -> list[Row]:
        caller = CALLERS[number % len(CALLERS)]
        order = OrderLines(f"order-{number}", (Line(1, 1, None),), caller=caller, request_id=f"r-{number}")
        (reservation,) = operations.reserve(order, deadline=deadline())
        operations.confirm(OrderRequest(f"order-{number}", caller=caller), deadline=deadline())
        operations.release(ReleaseRequest(reservation.id, caller=caller), deadline=deadline())
        start = ("default", caller.name, caller.subject)
        return [
            (*start, "ReserveStock", f"r-{number}", [reservation.id]),
            (*start, "ConfirmReservations", None, [reservation.id]),
            (*start, "ReleaseStock", None, [reservation.id]),
        ]

    with ThreadPoolExecutor(24) as threads:
        for of_thread in threads.map(reserve, range(72)):
            expected += of_thread
    operations.set_quantity(SetQuantity(item.id, 5, caller=CALLERS[1], request_id="set"), deadline=deadline())
    expected.append(("default", "user:1", "1", "UpdateInventoryItem", "set", [str(item.id)]))

    found = rows(database)
    assert len(found) == len(expected)
    assert all(row in found for row in expected)
    of_events = actors(database)
    # A change of the quantity has two events: STOCK_UPDATED and STOCK_MOVED.
    assert len([event_type for event_type, _ in of_events if event_type != "STOCK_MOVED"]) == len(expected)
    assert {actor for _, actor in of_events} == {caller.name for caller in CALLERS}


def test_the_orders_of_a_batch_have_the_tenants_and_users_for_which_order_api_acts(
    operations: Operations, database: Database
) -> None:
    callers = [replace(ORDER_API, tenant=tenant, subject=subject) for tenant in ("acme", "other") for subject in "78"]
    for tenant in ("acme", "other"):
        operations.add_stock(
            AddStock(1, DEFAULT_LOCATION, 2, caller=replace(CALLERS[0], tenant=tenant)), deadline=deadline()
        )

    reserved = operations.reserve_many(
        [
            OrderLines(f"o-{number}", (Line(1, 1, None),), caller=caller, request_id=f"o-{number}")
            for number, caller in enumerate(callers)
        ],
        deadline=deadline(),
    )

    ids = [of_order[0].id for of_order in reserved if not isinstance(of_order, ShopError)]
    assert rows(database)[2:] == [
        (caller.tenant, ORDER_API.name, caller.subject, "ReserveStock", f"o-{number}", [ids[number]])
        for number, caller in enumerate(callers)
    ]
    # Each added stock has two events.
    assert actors(database)[4:] == [("STOCK_RESERVED", f"user:{caller.subject}") for caller in callers]


def test_a_transaction_of_a_batch_of_changes_has_one_row_with_the_changed_items(
    operations: Operations, database: Database
) -> None:
    changes = (
        StockChange(0, 1, "A", MovementKind.RECEIVED, 5),
        StockChange(1, 2, "A", MovementKind.ADJUSTED, -1),
        StockChange(2, 1, "A", MovementKind.MOVED, 2, to_location="B"),
    )

    received, absent, moved = operations.change_stock(
        ChangeStock(changes, caller=CALLERS[0], request_id="r"), deadline=deadline()
    )

    assert isinstance(received, ChangedStock)
    assert isinstance(absent, ShopError)
    assert isinstance(moved, ChangedStock)
    assert moved.target is not None
    ids = [str(received.item.id), str(moved.target.id)]
    assert rows(database) == [("default", "user:0", "0", "BatchChangeStock", "r", ids)]


def test_refused_calls_have_no_rows(operations: Operations, database: Database) -> None:
    with pytest.raises(ShopError):
        operations.reserve(OrderLines("o", (Line(1, 1, None),), caller=CALLERS[0]), deadline=deadline())
    with pytest.raises(ShopError):
        operations.confirm(OrderRequest("o", caller=CALLERS[0]), deadline=deadline())

    assert rows(database) == []


@pytest.mark.parametrize(
    ("event_type", "emitted"), [("ORDER_CANCELLED", "STOCK_RELEASED"), ("ORDER_SHIPPED", "STOCK_FULFILLED")]
)
def test_an_event_that_changes_reservations_has_a_row_per_order(
    operations: Operations, database: Database, event_type: str, emitted: str
) -> None:
    operations.add_stock(
        AddStock(1, DEFAULT_LOCATION, 2, caller=replace(CALLERS[0], tenant="acme")), deadline=deadline()
    )
    ids = {}
    for order_id in ("a", "b"):
        order = OrderLines(order_id, (Line(1, 1, None),), caller=ORDER_API)
        (reservation,) = operations.reserve(order, deadline=deadline())
        operations.confirm(OrderRequest(order_id, caller=ORDER_API), deadline=deadline())
        ids[order_id] = [reservation.id]
    before = len(rows(database))
    handle = consumer.handlers(tables.audit_log)[event_type]

    events = [order_event(event_type, order_id, f"user:{order_id}") for order_id in ids]
    for _ in range(2):  # the second delivery changes nothing
        while database.transact(lambda tx: handle(tx, events)):
            pass

    assert sorted(rows(database)[before:]) == [
        ("acme", f"event:{event_type}", None, "", f"event-of-{order_id}", changed) for order_id, changed in ids.items()
    ]
    assert {actor for type_, actor in actors(database) if type_ == emitted} == {"user:a", "user:b"}


def test_a_count_that_releases_reservations_names_its_caller(operations: Operations, database: Database) -> None:
    shop, warehouse = CALLERS[:2]
    inventory = InventoryDriver(database, operations, shop)
    item = inventory.add_stock(1, 2, "A")
    inventory.reserve(1, 2)
    count = StockChange(0, 1, "A", MovementKind.COUNTED, 0, release_shortfall=True)

    inventory.calling_as(warehouse).change_stock(count)

    *_, changed = rows(database)
    assert (changed[1], changed[3], changed[5]) == (warehouse.name, "BatchChangeStock", [str(item.id)])
    assert ("STOCK_RELEASED", warehouse.name) in actors(database)


def test_maintenance_has_a_row_for_each_transaction_that_changed_something(
    operations: Operations, database: Database
) -> None:
    inventory = InventoryDriver(database, operations)
    inventory.add_stock(1, 3)
    due = [inventory.reserve(1, 1, order=f"order-{number}") for number in range(3)]
    for reservation in due:
        inventory.make_due(reservation)

    before = len(rows(database))
    for _ in range(2):  # the second call of each finds nothing to do
        operations.expire(ExpireRequest(100, caller=REAPER), deadline=deadline())
        operations.purge(PurgeRequest(-60, 100, caller=REAPER), deadline=deadline())

    expired, purged = rows(database)[before:]
    assert expired[:5] == ("default", REAPER.name, None, "ExpireReservations", None)
    assert sorted(expired[5]) == sorted(reservation.id for reservation in due)
    assert purged == ("default", REAPER.name, None, "PurgeHistory", None, [])
    assert ("STOCK_RESERVATION_EXPIRED", None) in actors(database)
