"""Limits on the work of a transaction, rows from before the limits, and bad rows that must not block other rows."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import orjson
import pytest
from sqlalchemy import insert, select, text, update

from inventory_api.domain import allocation, model, reserving
from inventory_api.domain.commands import OrderLines, OrderRequest, PurgeRequest, ReservationFilter
from inventory_api.domain.errors import BelowReserved, InsufficientStock, LocationsLimit, ReservationsLimit
from inventory_api.domain.events import EVENT_OF_STATE
from inventory_api.domain.model import (
    ITEM_QUANTITY_MAX,
    LOCATIONS_MAX,
    ORDER_RESERVATIONS_MAX,
    Allocation,
    Line,
    Reservation,
    State,
)
from inventory_api.operations.items import create_items, set_quantity
from inventory_api.operations.purge import Purge, Purged
from inventory_api.operations.reservations import bisection, reserve, turns
from inventory_api.operations.reservations.release import release_orders
from inventory_api.store import tables
from inventory_api.store.reservations import counts, pages
from shop_common.api.command import UNKNOWN_CAUSE
from shop_common.db.database import Database
from shop_common.db.sql import now
from shop_common.errors import Contention, ShopError
from shop_common.events.outbox import PAYLOAD_BYTES_MAX
from shop_common.identity.tenant import DEFAULT
from testkit.drivers.inventory_api import TTL_SECONDS, InventoryDriver, deadline

LATE_SECONDS = 60.0


def reserve_batch(inventory: InventoryDriver, *orders: OrderLines) -> list[list[Reservation] | ShopError]:
    """Reserve for these orders in one batch."""
    return inventory.database.transact(lambda tx: reserve.reserve(tx, orders, default_ttl_seconds=TTL_SECONDS))


def lines(products: int) -> tuple[Line, ...]:
    return tuple(Line(product, 1) for product in range(1, products + 1))


def store(
    database: Database, order: str, count: int, *, product: int = 1, locations: int = 1, state: State = State.HELD
) -> None:
    """Insert reservations of one order as a version without limits did, each with `locations` allocations."""
    with database.write() as tx:
        timestamp = now(tx)
        first = tx.execute(
            select(tables.inventory_items.c.id)
            .where(tables.inventory_items.c.product_id == product)
            .order_by(tables.inventory_items.c.id)
            .limit(locations)
        ).scalars()
        item_ids = list(first)
        ids = [str(UUID(int=number)) for number in range(1, count + 1)]
        row = {
            "product_id": product,
            "quantity": locations,
            "order_id": order,
            "state": state,
            "created_at": timestamp,
            "expires_at": timestamp + timedelta(hours=1),
        }
        tx.execute(insert(tables.stock_reservations), [row | {"id": each} for each in ids])
        tx.execute(
            insert(tables.reservation_allocations),
            [{"reservation_id": each, "item_id": item_id, "quantity": 1} for each in ids for item_id in item_ids],
        )
        if state in (State.HELD, State.CONFIRMED):
            tx.execute(
                update(tables.inventory_items)
                .where(tables.inventory_items.c.id.in_(item_ids))
                .values(reserved_quantity=tables.inventory_items.c.reserved_quantity + count)
            )


def delete_without_events(inventory: InventoryDriver) -> None:
    """Delete the rows that the test inserted without events. The consistency check after the test would report them."""
    with inventory.database.write() as tx:
        tx.execute(tables.outbox.table.delete())
        tx.execute(tables.stock_movements.delete())
        tx.execute(tables.stock_reservations.delete())
        tx.execute(update(tables.inventory_items).values(reserved_quantity=0, version=0, revision=0, booked_quantity=0))


# --- the reservations of an order ---


def test_an_order_has_at_most_a_thousand_active_reservations(inventory: InventoryDriver) -> None:
    for product in range(1, 201):
        inventory.add_stock(product, 100)
    held = [each for _ in range(5) for each in inventory.reserve_lines("order-1", *lines(200))]
    assert len(held) == ORDER_RESERVATIONS_MAX

    with pytest.raises(ReservationsLimit) as refused:
        inventory.reserve(1, 1, order="order-1")
    inventory.reserve(1, 1, order="order-2")
    inventory.release(held[0])
    inventory.reserve(1, 1, order="order-1")

    assert refused.value.reason == "RESERVATIONS_LIMIT"
    assert refused.value.metadata() == {"order_id": "order-1", "reservations": "1001", "allocations": "1001"}
    assert len(inventory.confirm("order-1")) == ORDER_RESERVATIONS_MAX


def test_the_orders_of_one_batch_count_towards_one_limit(inventory: InventoryDriver) -> None:
    for product in range(1, 201):
        inventory.add_stock(product, 100)

    outcomes = reserve_batch(
        inventory, *(OrderLines("order-1", lines(200)) for _ in range(6)), OrderLines("other", lines(1))
    )

    assert [isinstance(each, ReservationsLimit) for each in outcomes] == [False] * 5 + [True, False]
    assert inventory.available(1) == 94


def test_ended_reservations_do_not_count_towards_the_limit(
    inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "ORDER_RESERVATIONS_MAX", 3)
    inventory.add_stock(1, 10)
    for _ in range(5):
        inventory.release(inventory.reserve(1, 1))
    for _ in range(3):
        inventory.reserve(1, 1)

    with pytest.raises(ReservationsLimit):
        inventory.reserve(1, 1)


def test_an_order_draws_on_a_bounded_number_of_locations(
    inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "ORDER_ALLOCATIONS_MAX", 4)
    for location in "ABCDE":
        inventory.add_stock(1, 1, location)

    with pytest.raises(ReservationsLimit):
        inventory.reserve(1, 5)
    inventory.reserve(1, 4)

    assert inventory.available(1) == 1


def test_a_batch_decides_only_as_many_orders_as_fit_into_one_transaction(
    inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reserving, "BATCH_ALLOCATIONS_MAX", 4)
    for location in "ABCDEFGHI":
        inventory.add_stock(1, 1, location)
    orders = [OrderLines(f"order-{n}", (Line(1, 3),), request_id=f"r-{n}") for n in range(3)]

    first = reserve_batch(inventory, *orders)
    second = reserve_batch(inventory, *orders[1:])

    assert len(first) == len(second) == 1
    assert inventory.available(1) == 3
    assert len(inventory.events("STOCK_RESERVED")) == 2


def test_a_batch_that_is_decided_in_parts_returns_all_outcomes(
    inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reserving, "BATCH_ALLOCATIONS_MAX", 4)
    for location in "ABCDEFGHI":
        inventory.add_stock(1, 1, location)
    orders = [OrderLines(f"order-{n}", (Line(1, 3),), request_id=f"r-{n}") for n in range(4)]

    outcomes = inventory.operations._reserve.submit_many(orders, deadline=deadline())

    assert [type(each) for each in outcomes] == [list, list, list, InsufficientStock]


def test_an_order_over_the_limits_cannot_be_confirmed_but_is_cancelled_in_turns(
    inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = inventory.add_stock(1, 5_000)
    store(inventory.database, "huge", 1_500)
    inventory.reserve(1, 1, order="honest")

    with pytest.raises(ReservationsLimit):
        inventory.confirm("huge")
    with pytest.raises(ReservationsLimit):
        inventory.reserve(1, 1, order="huge")
    turn_count = 0
    while inventory.database.transact(lambda tx: release_orders(tx, [OrderRequest("huge")])):
        turn_count += 1

    assert turn_count == (1_500 - 1) // turns.TURN_RESERVATIONS
    assert inventory.item(item).reserved_quantity == 1
    assert len(inventory.events("STOCK_RELEASED")) == 1_500
    delete_without_events(inventory)


def test_many_orders_are_cancelled_and_shipped_in_turns_and_each_reservation_changes_once(
    inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "TURN_RESERVATIONS", 3)
    for product in (1, 2):
        inventory.add_stock(product, 100)
    for number in range(8):
        inventory.reserve_lines(f"order-{number}", Line(1, 1), Line(2, 2))
        inventory.confirm(f"order-{number}")

    shipped = inventory.ship(*(f"order-{number}" for number in range(4)))
    inventory.cancel(*(f"order-{number}" for number in range(8)))

    assert shipped == {f"order-{number}": {1: 1, 2: 2} for number in range(4)}
    assert len(inventory.events("STOCK_FULFILLED")) == len(inventory.events("STOCK_RELEASED")) == 8
    assert inventory.available(1) == 96


def test_a_turn_is_bounded_by_allocations_as_well(inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_ALLOCATIONS", 4)
    for location in "ABCDEFGHIJ":
        inventory.add_stock(1, 1, location)
    for units in (1, 2, 6, 1):
        inventory.reserve(1, units)
    turn_count = 1
    while inventory.database.transact(lambda tx: release_orders(tx, [OrderRequest("order-1")])):
        turn_count += 1

    assert 3 <= turn_count <= 4
    assert inventory.available(1) == 10


# --- locations of a product, allocations of a reservation ---


def test_a_product_has_at_most_five_hundred_locations(
    inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(create_items, "LOCATIONS_MAX", 3)
    for location in "ABC":
        inventory.add_stock(1, 1, location)

    with pytest.raises(LocationsLimit) as refused:
        inventory.add_stock(1, 1, "D", request_id="again")
    inventory.add_stock(2, 1, "D")
    again = inventory.add_stock(1, 1, "A")

    assert LOCATIONS_MAX == 500
    assert refused.value.reason == "LOCATIONS_LIMIT"
    assert refused.value.metadata() == {"product_id": "1", "limit": "500"}
    assert again.quantity == 2
    monkeypatch.setattr(create_items, "LOCATIONS_MAX", 4)
    assert inventory.add_stock(1, 1, "D", request_id="again").quantity == 1


def test_a_reservation_draws_on_at_most_five_hundred_locations(
    inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocation, "LOCATIONS_MAX", 3)
    for location in "ABCDE":
        inventory.add_stock(1, 1, location)

    with pytest.raises(LocationsLimit):
        inventory.reserve(1, 4)
    held = inventory.reserve(1, 3)

    assert len(held.allocations) == 3
    assert inventory.available(1) == 2


@pytest.mark.parametrize("state", list(EVENT_OF_STATE))
def test_the_largest_event_of_every_state_fits(state: State) -> None:
    timestamp = datetime(2026, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    parts = tuple(Allocation(2**63 - 1, "W" * 64, ITEM_QUANTITY_MAX) for _ in range(LOCATIONS_MAX))
    reservation = Reservation(
        "t" * 64,
        "user:" + '"' * 255,
        str(UUID(int=1)),
        2**63 - 1,
        ITEM_QUANTITY_MAX,
        '"' * 64,
        state,
        timestamp,
        timestamp,
        allocations=parts,
    )

    message = EVENT_OF_STATE[state](reservation, timestamp, UNKNOWN_CAUSE)

    assert len(orjson.dumps(message.data)) < PAYLOAD_BYTES_MAX / 5


@pytest.mark.parametrize("ending", ["expired", "released", "fulfilled"])
def test_a_reservation_over_the_limits_can_end_although_its_event_is_too_large(
    inventory: InventoryDriver, ending: str
) -> None:
    with inventory.database.write() as tx:
        timestamp = now(tx)
        item = {"product_id": 1, "quantity": 1, "reserved_quantity": 0, "version": 0}
        times = {"created_at": timestamp, "updated_at": timestamp}
        names = [f"{number:04d}-{'x' * 59}" for number in range(9_000)]
        rows = [item | times | {"id": number, "location": name} for number, name in enumerate(names, 1_000)]
        tx.execute(insert(tables.inventory_items), rows)
    # The most allocations that fitted into one event before their number was limited.
    part = orjson.dumps({"item_id": 1_000, "location": names[0], "quantity": 1})
    locations = (900_000 - 300) // (len(part) + 1)
    store(
        inventory.database,
        "p" * 64,
        1,
        locations=locations,
        state=State.CONFIRMED if ending == "fulfilled" else State.HELD,
    )
    (held,) = inventory.reservations_page(ReservationFilter(DEFAULT), size=10).rows
    assert len(held.allocations) == locations

    with pytest.raises((LocationsLimit, InsufficientStock)):
        inventory.reserve(1, 9_000)
    with pytest.raises(LocationsLimit):
        inventory.add_stock(1, 1, "ONE-MORE")
    if ending == "expired":
        inventory.make_due(held)
        assert inventory.expire() == 1
    elif ending == "released":
        assert inventory.release(held) == locations
    else:
        inventory.ship("p" * 64)

    assert inventory.stored_state(held).lower() == ending
    (ended_event,) = [each for each in inventory.events() if each.type not in ("STOCK_UPDATED", "STOCK_MOVED")]
    assert ended_event.data["quantity"] == len(ended_event.data["allocations"]) == locations
    delete_without_events(inventory)


# --- bad rows ---


def break_counters(inventory: InventoryDriver, *reservations: Reservation) -> None:
    """Set the reserved quantity of the items to 0, as an operator might do by mistake."""
    with inventory.database.write() as tx:
        for reservation in reservations:
            for part in reservation.allocations:
                tx.execute(
                    update(tables.inventory_items)
                    .where(tables.inventory_items.c.id == part.item_id)
                    .values(reserved_quantity=0)
                )


def is_set_aside(inventory: InventoryDriver, reservation: Reservation) -> bool:
    with inventory.database.read() as tx:
        timestamp = tx.execute(
            select(tables.stock_reservations.c.set_aside_at).where(tables.stock_reservations.c.id == reservation.id)
        ).scalar_one()
    return timestamp is not None


def test_a_reservation_that_cannot_expire_is_set_aside_and_the_others_expire(inventory: InventoryDriver) -> None:
    for product in range(1, 8):
        inventory.add_stock(product, 1)
    held = [inventory.reserve(product, 1, order=f"order-{product}") for product in range(1, 8)]
    for age_seconds, each in enumerate(held, 1):
        inventory.make_due(each, ago_seconds=LATE_SECONDS - age_seconds)
    bad, good = held[2], [*held[:2], *held[3:]]
    break_counters(inventory, bad)

    assert inventory.expire() == 6

    assert {inventory.stored_state(each) for each in good} == {State.EXPIRED}
    assert inventory.stored_state(bad) is State.HELD
    assert is_set_aside(inventory, bad)
    assert inventory.expire() == 0
    assert inventory.database.query(counts.count).set_aside == 1
    delete_without_events(inventory)


def test_too_many_reservations_that_cannot_expire_are_an_error(
    inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bisection, "SET_ASIDE_MAX", 2)
    for product in range(1, 5):
        inventory.add_stock(product, 1)
    held = [inventory.reserve(product, 1, order=f"order-{product}") for product in range(1, 5)]
    inventory.make_due(*held)
    break_counters(inventory, *held)

    with pytest.raises(Exception, match=r"(?i)reserved_within_quantity"):
        inventory.expire()

    assert sum(is_set_aside(inventory, each) for each in held) == 2
    delete_without_events(inventory)


def test_a_request_sets_a_bad_reservation_aside_and_expires_others(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 1, "A")
    inventory.add_stock(1, 1, "B")
    bad = inventory.reserve(1, 1, location="A")
    good = inventory.reserve(1, 1, location="B")
    inventory.make_due(bad, ago_seconds=20)
    inventory.make_due(good, ago_seconds=10)
    break_counters(inventory, bad)
    with inventory.database.write() as tx:
        # No unit is free at A, so that only the two due reservations can cover the request.
        tx.execute(update(tables.inventory_items).where(tables.inventory_items.c.location == "A").values(quantity=0))

    held = inventory.reserve(1, 1, order="buyer")

    assert [part.location for part in held.allocations] == ["B"]
    assert inventory.stored_state(good) is State.EXPIRED
    assert is_set_aside(inventory, bad)
    assert inventory.available(1) == 0
    delete_without_events(inventory)


def test_a_reservation_that_cannot_be_purged_does_not_block_others(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 10)
    ended = [inventory.reserve(1, 1, order=f"order-{n}") for n in range(5)]
    for each in ended:
        inventory.release(each)
    with inventory.database.write() as tx:
        tx.execute(update(tables.stock_reservations).values(ended_at=now(tx) - timedelta(days=2)))
        tx.execute(
            text("CREATE TABLE claims (reservation_id " + _ID[tx.dialect.name] + " REFERENCES stock_reservations)")
        )
        tx.execute(text(f"INSERT INTO claims VALUES ('{ended[3].id}')"))
    try:
        purged = Purge(inventory.database).run(PurgeRequest(24 * 3600.0, 100))
        again = Purge(inventory.database).run(PurgeRequest(24 * 3600.0, 100))
    finally:
        with inventory.database.write() as tx:
            tx.execute(text("DROP TABLE claims"))

    assert (purged, again) == (Purged(0, 4), Purged(0, 0))
    assert is_set_aside(inventory, ended[3])
    delete_without_events(inventory)


_ID = {"sqlite": "TEXT", "postgresql": "uuid"}


# --- due reservations at another location ---


def test_due_reservations_at_another_location_do_not_hide_the_one_that_is_needed(
    inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reserve, "DUE_EXPIRED_MAX", 3)
    inventory.add_stock(1, 20, "A")
    inventory.add_stock(1, 2, "B")
    inventory.make_due(
        *(inventory.reserve(1, 1, order=f"a-{n}", location="A") for n in range(10)), ago_seconds=LATE_SECONDS
    )
    there = inventory.reserve(1, 2, location="B")
    inventory.make_due(there, ago_seconds=1)

    held = inventory.reserve(1, 2, order="buyer", location="B")

    assert [part.location for part in held.allocations] == ["B"]
    assert [event.data["reservation_id"] for event in inventory.events("STOCK_RESERVATION_EXPIRED")] == [there.id]


def test_a_split_due_reservation_is_found_at_each_of_its_locations(
    inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reserve, "DUE_EXPIRED_MAX", 2)
    for location in "ABCD":
        inventory.add_stock(1, 2, location)
    elsewhere, there = inventory.reserve(1, 4), inventory.reserve(1, 4)
    inventory.make_due(elsewhere, ago_seconds=LATE_SECONDS)
    inventory.make_due(there, ago_seconds=1)
    location = there.allocations[0].location

    held = inventory.reserve(1, 2, order="buyer", location=location)

    assert [part.location for part in held.allocations] == [location]
    assert [event.data["reservation_id"] for event in inventory.events("STOCK_RESERVATION_EXPIRED")] == [there.id]


def test_a_due_reservation_of_the_previous_version_is_found_at_its_location(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 1, "A")
    inventory.add_stock(1, 1, "B")
    elsewhere, there = inventory.reserve(1, 1, location="A"), inventory.reserve(1, 1, location="B")
    inventory.make_due(elsewhere, there)
    with inventory.database.write() as tx:
        tx.execute(update(tables.stock_reservations).values(sole_item_id=0))

    held = inventory.reserve(1, 1, order="buyer", location="B")

    assert [part.location for part in held.allocations] == ["B"]
    assert inventory.stored_state(elsewhere) is State.HELD


def test_a_set_quantity_is_not_refused_because_of_due_reservations(
    inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(set_quantity, "DUE_EXPIRED_MAX", 3)
    inventory.add_stock(1, 20, "A")
    item = inventory.add_stock(1, 2, "B")
    inventory.make_due(
        *(inventory.reserve(1, 1, order=f"a-{n}", location="A") for n in range(10)), ago_seconds=LATE_SECONDS
    )
    inventory.make_due(inventory.reserve(1, 2, location="B"), ago_seconds=1)

    assert inventory.set_quantity(item, 0).quantity == 0
    assert len(inventory.events("STOCK_RESERVATION_EXPIRED")) == 1


def test_a_set_quantity_below_more_due_reservations_than_one_call_expires_is_contention(
    inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(set_quantity, "DUE_EXPIRED_MAX", 3)
    item = inventory.add_stock(1, 6)
    inventory.make_due(*(inventory.reserve(1, 1, order=f"late-{n}") for n in range(5)))
    kept = inventory.reserve(1, 1, order="kept")

    with pytest.raises(Contention):
        inventory.set_quantity(item, 1)
    assert inventory.set_quantity(item, 1).quantity == 1
    with pytest.raises(BelowReserved):
        inventory.set_quantity(item, 0)
    assert inventory.state(kept) is State.HELD


# --- lists ---


def test_a_page_ends_before_it_is_too_large_and_no_row_is_lost(
    inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PAGE_ALLOCATIONS", 5)
    for location in "ABCDEFGHIJKLMNOP":
        inventory.add_stock(1, 1, location)
    made = [inventory.reserve(1, units, order=f"order-{n}") for n, units in enumerate((1, 2, 3, 1, 6, 1))]

    all_pages = [inventory.reservations_page(ReservationFilter(DEFAULT), size=50)]
    while all_pages[-1].next_position is not None:
        all_pages.append(inventory.reservations_page(ReservationFilter(DEFAULT), size=50, after=all_pages[-1]))

    assert [[len(each.allocations) for each in page.rows] for page in all_pages] == [[1, 2], [3, 1], [6], [1]]
    assert [each for page in all_pages for each in page.rows] == made


@pytest.mark.parametrize(
    "filter_",
    [
        ReservationFilter(DEFAULT, state=State.RELEASED),
        ReservationFilter(DEFAULT, product_id=1, state=State.RELEASED),
        ReservationFilter(DEFAULT, order_id="order-1", product_id=2),
    ],
)
def test_a_page_reads_a_bounded_number_of_rows(
    inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch, filter_: ReservationFilter
) -> None:
    monkeypatch.setattr(pages, "WINDOW_ROWS", 4)
    inventory.add_stock(1, 100)
    inventory.add_stock(2, 100)
    for _ in range(9):
        inventory.reserve(1, 1)
    last = inventory.reserve(2 if filter_.product_id == 2 else 1, 1)
    inventory.release(last)
    for _ in range(5):
        inventory.reserve(1, 1)

    page = inventory.reservations_page(filter_, size=3)
    found = list(page.rows)
    page_count = 1
    while page.next_position is not None:
        page = inventory.reservations_page(filter_, size=3, after=page)
        found += page.rows
        page_count += 1

    assert [each.id for each in found] == [last.id]
    assert 4 <= page_count <= 5
