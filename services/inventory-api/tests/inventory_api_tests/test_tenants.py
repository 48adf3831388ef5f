"""Tenants use the same product, order and request ids in the same batches, and none finds anything of another."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError

from inventory_api.api import consumer, parse
from inventory_api.domain.commands import AddStock, OrderLines, OrderRequest, ReleaseRequest, SetQuantity, StockQuestion
from inventory_api.domain.errors import InsufficientStock, ItemNotFound, ReservationNotFound
from inventory_api.domain.model import Item, ItemKey, Line, Reservation, ReservationKey, State, StockKey
from inventory_api.store import tables
from inventory_api.store.reservations import counts
from shop_common.api import paging
from shop_common.api.paging import Page
from shop_common.db.idempotency import RequestIdReused
from shop_common.errors import InvalidInput, ShopError
from shop_common.events.consumer import Event
from shop_common.identity.caller import ANYONE, Caller
from shop_protos.inventory.v1 import inventory_pb2 as pb
from testkit.drivers.inventory_api import InventoryDriver, at_once, deadline

PERMISSIONS = frozenset({"inventory.read", "inventory.write", "stock.reserve"})
ACME = Caller("user:staff", PERMISSIONS, "staff", "acme")
OTHER = Caller("user:staff", PERMISSIONS, "staff", "other")
CALLERS = (ANYONE, ACME, OTHER)


def add(inventory: InventoryDriver, *requests: AddStock) -> list[Item | ShopError]:
    return inventory.operations._add_stock.submit_many(requests, deadline=deadline())


def reserve(inventory: InventoryDriver, *orders: OrderLines) -> list[list[Reservation] | ShopError]:
    return inventory.operations.reserve_many(orders, deadline=deadline())


def requested(caller: Caller, units: int, *, request_id: str | None = "r") -> OrderLines:
    return OrderLines("order-1", (Line(1, units),), caller=caller, request_id=request_id)


@pytest.fixture
def drivers(inventory: InventoryDriver) -> list[InventoryDriver]:
    """A driver for each caller. Their tenants have 1, 2 and 3 units of product 1 at the same location."""
    drivers = [inventory.calling_as(caller) for caller in CALLERS]
    for units, driver in enumerate(drivers, 1):
        driver.add_stock(1, units, "A")
    return drivers


def test_the_same_request_of_each_tenant_adds_to_an_item_of_its_own(inventory: InventoryDriver) -> None:
    requests = [AddStock(1, "A", 5, caller=caller, request_id="r") for caller in CALLERS]

    added = add(inventory, *requests)
    repeated = add(inventory, *reversed(requests))

    assert [(item.tenant, item.quantity) for item in added if isinstance(item, Item)] == [
        ("default", 5),
        ("acme", 5),
        ("other", 5),
    ]
    assert repeated == added[::-1]
    assert [(event.key, event.tenant) for event in inventory.events("STOCK_UPDATED")] == [
        ("1", "default"),
        ("acme/1", "acme"),
        ("other/1", "other"),
    ]


def test_the_same_order_of_each_tenant_takes_its_own_stock(
    inventory: InventoryDriver, drivers: list[InventoryDriver]
) -> None:
    orders = [requested(caller, 2) for caller in CALLERS]

    outcomes = reserve(inventory, *orders)

    refused, *reserved = outcomes
    assert isinstance(refused, InsufficientStock)
    assert refused.available == 1
    assert [(each.tenant, each.quantity) for row in reserved if isinstance(row, list) for each in row] == [
        ("acme", 2),
        ("other", 2),
    ]
    assert reserve(inventory, *orders)[1:] == reserved
    assert [driver.available(1) for driver in drivers] == [1, 0, 1]
    assert [event.key for event in inventory.events("STOCK_RESERVED")] == ["acme/1", "other/1"]


def test_other_content_is_compared_with_the_request_of_the_same_tenant(
    inventory: InventoryDriver, drivers: list[InventoryDriver]
) -> None:
    reserve(inventory, requested(ACME, 1), requested(OTHER, 2))

    same, other = reserve(inventory, requested(ACME, 1), requested(OTHER, 1))

    assert isinstance(same, list)
    assert isinstance(other, RequestIdReused)


def test_ids_of_another_tenant_are_unknown_even_beside_requests_of_that_tenant(
    inventory: InventoryDriver, drivers: list[InventoryDriver]
) -> None:
    _, _, other = drivers
    theirs = other.add_stock(1, 0, "A")
    held = other.reserve(1, 1)
    operations = inventory.operations

    found, unknown_item = operations._get_item.submit_many(
        [ItemKey("other", theirs.id), ItemKey("acme", theirs.id)], deadline=deadline()
    )
    seen, unknown_reservation = operations._get_reservation.submit_many(
        [held.key, ReservationKey("acme", held.id)], deadline=deadline()
    )
    unset, kept = operations._set_quantity.submit_many(
        [SetQuantity(theirs.id, 0, caller=ACME), SetQuantity(theirs.id, None, caller=OTHER)], deadline=deadline()
    )
    unreleased, released = operations._release.submit_many(
        [ReleaseRequest(held.id, caller=ACME), ReleaseRequest(held.id, caller=OTHER)], deadline=deadline()
    )

    assert isinstance(found, Item)
    assert isinstance(seen, Reservation)
    assert isinstance(kept, Item)
    assert kept.quantity == 3
    assert released == 1
    for refusal in (unknown_item, unset):
        assert isinstance(refusal, ItemNotFound)
        assert refusal.message == f"there is no inventory item {theirs.id}"
    for refused in (unknown_reservation, unreleased):
        assert isinstance(refused, ReservationNotFound)
        assert refused.message == f"there is no reservation {held.id}"


def test_a_refused_release_of_another_tenants_reservation_changes_nothing(
    inventory: InventoryDriver, drivers: list[InventoryDriver]
) -> None:
    _, acme, other = drivers
    held = other.reserve(1, 1)

    with pytest.raises(ReservationNotFound):
        acme.release(held)
    with pytest.raises(ReservationNotFound):
        acme.confirm()

    assert other.state(held) is State.HELD
    assert inventory.events("STOCK_RELEASED", "STOCK_RESERVATION_CONFIRMED") == []


def test_the_same_order_is_confirmed_for_each_tenant_in_one_batch(
    inventory: InventoryDriver, drivers: list[InventoryDriver]
) -> None:
    reserve(inventory, *(requested(caller, 1) for caller in CALLERS[:2]))

    ours, theirs, none = inventory.operations._confirm.submit_many(
        [OrderRequest("order-1", caller=caller) for caller in CALLERS], deadline=deadline()
    )

    assert isinstance(ours, list)
    assert isinstance(theirs, list)
    assert [each.tenant for each in (*ours, *theirs)] == ["default", "acme"]
    assert isinstance(none, ReservationNotFound)
    assert {event.tenant for event in inventory.events("STOCK_RESERVATION_CONFIRMED")} == {"default", "acme"}


def test_a_shortage_is_covered_by_due_reservations_of_the_same_tenant_only(
    inventory: InventoryDriver, drivers: list[InventoryDriver]
) -> None:
    default, acme, other = drivers
    ours, theirs = acme.reserve(1, 2, order="late"), other.reserve(1, 3, order="late")
    acme.make_due(ours, theirs)
    assert [driver.available(1) for driver in drivers] == [1, 2, 3]

    taken, refused, unaffected = reserve(
        inventory, requested(ACME, 2), requested(ANYONE, 2), requested(ANYONE, 1, request_id=None)
    )

    assert isinstance(taken, list)
    assert isinstance(refused, InsufficientStock)
    assert isinstance(unaffected, list)
    assert acme.stored_state(ours) is State.EXPIRED
    assert other.stored_state(theirs) is State.HELD
    assert default.available(1) == 0


def test_lowering_a_quantity_expires_reservations_of_the_same_tenant_only(drivers: list[InventoryDriver]) -> None:
    _, acme, other = drivers
    ours, theirs = acme.reserve(1, 2), other.reserve(1, 3)
    acme.make_due(ours, theirs)

    assert acme.set_quantity(acme.add_stock(1, 0, "A"), 0).quantity == 0

    assert acme.stored_state(ours) is State.EXPIRED
    assert other.stored_state(theirs) is State.HELD


def test_stock_is_counted_per_tenant_in_one_batch(inventory: InventoryDriver, drivers: list[InventoryDriver]) -> None:
    questions = [
        StockQuestion(StockKey(caller.tenant, 1, location)) for location in (None, "A", "B") for caller in CALLERS
    ]

    counted = inventory.operations._check_stock.submit_many(questions, deadline=deadline())

    assert counted == [1, 2, 3, 1, 2, 3, 0, 0, 0]


def test_lists_have_the_rows_of_one_tenant(inventory: InventoryDriver, drivers: list[InventoryDriver]) -> None:
    made = [driver.reserve(1, 1) for driver in drivers]

    for caller, held in zip(CALLERS, made, strict=True):
        for items in (
            pb.ListInventoryItemsRequest(),
            pb.ListInventoryItemsRequest(product_id=1),
            pb.ListInventoryItemsRequest(location="A"),
        ):
            page = inventory.operations.list_items(parse.items_page(items, caller), deadline=deadline())
            assert [item.tenant for item in page.rows] == [caller.tenant]
        for reservations in (
            pb.ListReservationsRequest(),
            pb.ListReservationsRequest(product_id=1),
            pb.ListReservationsRequest(order_id="order-1"),
            pb.ListReservationsRequest(order_id="order-1", state=pb.RESERVATION_STATE_HELD),
        ):
            request = parse.reservations_page(reservations, caller)
            assert inventory.operations.list_reservations(request, deadline=deadline()).rows == [held]


def test_a_page_token_of_another_tenant_is_refused() -> None:
    token = paging.next_token(Page([], (7,)), parse.items_page(pb.ListInventoryItemsRequest(), ACME))
    again = pb.ListInventoryItemsRequest(page_token=token)

    assert parse.items_page(again, ACME).after == (7,)
    for caller in (OTHER, ANYONE):
        with pytest.raises(InvalidInput):
            parse.items_page(again, caller)


def test_expiry_works_across_tenants_and_its_events_name_the_tenant_of_each_row(
    inventory: InventoryDriver, drivers: list[InventoryDriver]
) -> None:
    due = [driver.reserve(1, 1) for driver in drivers]
    inventory.make_due(*due)
    assert inventory.database.query(counts.count).due == len(CALLERS)

    assert inventory.expire() == len(CALLERS)

    assert [driver.available(1) for driver in drivers] == [1, 2, 3]
    assert {event.data["reservation_id"]: event.tenant for event in inventory.events("STOCK_RESERVATION_EXPIRED")} == {
        each.id: each.tenant for each in due
    }


def order_event(event_type: str, tenant: str, units: int) -> Event:
    data = {"id": "order-1", "items": [{"product_id": 1, "quantity": units}]}
    return Event(
        event_type, "order-1", "id", data, datetime.now(UTC), None, consumer.TOPIC, partition=0, offset=0, tenant=tenant
    )


@pytest.mark.parametrize(("event_type", "state"), [("ORDER_CANCELLED", "RELEASED"), ("ORDER_SHIPPED", "FULFILLED")])
def test_an_event_changes_the_reservations_of_its_tenant_and_of_order_api_only(
    inventory: InventoryDriver, drivers: list[InventoryDriver], event_type: str, state: str
) -> None:
    default, acme, _ = drivers
    of_order_api = default.calling_as(replace(ANYONE, tenant="acme"))
    ours, cancelled, foreign = default.reserve(1, 1), of_order_api.reserve(1, 1), acme.reserve(1, 1)
    for driver in (default, of_order_api, acme):
        driver.confirm()

    handler = consumer.handlers()[event_type]
    inventory.database.transact(lambda tx: handler(tx, [order_event(event_type, "acme", 1)]))

    assert of_order_api.state(cancelled) == state
    assert default.state(ours) is State.CONFIRMED
    assert acme.state(foreign) is State.CONFIRMED


def test_an_allocation_cannot_be_of_another_tenant_than_its_reservation(drivers: list[InventoryDriver]) -> None:
    _, acme, other = drivers
    held, item = acme.reserve(1, 1), other.add_stock(2, 1)

    with pytest.raises(IntegrityError), acme.database.engine.begin() as tx:
        tx.execute(
            insert(tables.reservation_allocations).values(
                tenant="other", reservation_id=held.id, item_id=item.id, quantity=1
            )
        )


def test_an_allocation_cannot_be_of_another_tenant_than_its_item(drivers: list[InventoryDriver]) -> None:
    _, acme, other = drivers
    held, item = acme.reserve(1, 1), other.add_stock(2, 1)

    with pytest.raises(IntegrityError), acme.database.engine.begin() as tx:
        tx.execute(
            insert(tables.reservation_allocations).values(
                tenant="acme", reservation_id=held.id, item_id=item.id, quantity=1
            )
        )


def test_units_stay_apart_in_concurrent_batches_of_all_tenants(
    inventory: InventoryDriver, second_process: InventoryDriver
) -> None:
    """Each batch has the same orders of all tenants. Every tenant's units run out at its own number."""
    stock = {caller.tenant: units for units, caller in zip((5, 20, 11), CALLERS, strict=True)}
    add(inventory, *(AddStock(1, "A", stock[caller.tenant], caller=caller) for caller in CALLERS))

    def batch(process: InventoryDriver, number: int) -> list[list[Reservation] | ShopError]:
        orders = [
            OrderLines(f"order-{number}", (Line(1, 1),), caller=caller, request_id=f"r-{number}") for caller in CALLERS
        ]
        return reserve(process, *(orders if number % 2 else reversed(orders)))

    outcomes = at_once(
        [lambda number=number: batch((inventory, second_process)[number % 2], number) for number in range(24)]  # type: ignore[misc]
    )

    reserved = [row for batch_ in outcomes if isinstance(batch_, list) for row in batch_ if isinstance(row, list)]
    units = {tenant: sum(row[0].tenant == tenant for row in reserved) for tenant in stock}
    assert units == stock
    assert [inventory.calling_as(caller).available(1) for caller in CALLERS] == [0, 0, 0]
    by_tenant = dict.fromkeys(stock, 0)
    for event in inventory.events("STOCK_RESERVED"):
        by_tenant[event.tenant] += 1
    assert by_tenant == stock
