"""Calls the inventory for tests, and checks that its counters and events are consistent."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from threading import Barrier
from typing import Any, TypeVar

from sqlalchemy import Row, func, select, update

from inventory_api.domain.commands import (
    AddRequest,
    AddStock,
    AvailabilityQuestion,
    ChangeStock,
    ExpireRequest,
    ExtendRequest,
    ItemFilter,
    MovementFilter,
    OrderLines,
    OrderRequest,
    ReleaseRequest,
    ReservationFilter,
    RetakeRequest,
    SetQuantity,
    StockChange,
    StockQuestion,
    UpdateLocation,
)
from inventory_api.domain.model import (
    DEFAULT_LOCATION,
    Item,
    ItemKey,
    Line,
    Location,
    OrderKey,
    Reservation,
    ReservationKey,
    State,
    StockKey,
)
from inventory_api.domain.movements import Movement
from inventory_api.domain.order_targets import OrderTargets, Totals
from inventory_api.domain.stock_changes import ChangedStock
from inventory_api.operations.coalescing import Operations
from inventory_api.operations.items.availability import Availabilities
from inventory_api.operations.reservations.fulfil import fulfil_orders
from inventory_api.operations.reservations.reach_targets import Reached, reach_targets
from inventory_api.operations.reservations.release import release_orders
from inventory_api.store import tables
from inventory_api.store.reservations import by_order, rows
from shop_common.api.paging import Page, PageRequest
from shop_common.db.database import Database
from shop_common.db.sql import now
from shop_common.errors import ShopError
from shop_common.events.outbox import TENANT_HEADER
from shop_common.identity import tenant
from shop_common.identity.caller import ANYONE, Caller
from shop_common.timestamps import rfc3339
from testkit.contract import validator

_T = TypeVar("_T")

TTL_SECONDS = 1800.0
CALL_SECONDS = 20.0

_reservations = tables.stock_reservations
_allocations = tables.reservation_allocations
_items = tables.inventory_items
_withholdings = tables.stock_withholdings

# The possible event types of a reservation in each state, oldest first.
_HISTORIES = {
    State.HELD: [["STOCK_RESERVED"]],
    State.CONFIRMED: [["STOCK_RESERVED", "STOCK_RESERVATION_CONFIRMED"]],
    State.EXPIRED: [["STOCK_RESERVED", "STOCK_RESERVATION_EXPIRED"]],
    State.RELEASED: [
        ["STOCK_RESERVED", "STOCK_RELEASED"],
        ["STOCK_RESERVED", "STOCK_RESERVATION_CONFIRMED", "STOCK_RELEASED"],
    ],
    State.FULFILLED: [["STOCK_RESERVED", "STOCK_RESERVATION_CONFIRMED", "STOCK_FULFILLED"]],
    State.REPLACED: [
        ["STOCK_RESERVED", "STOCK_RESERVATION_CHANGED"],
        ["STOCK_RESERVED", "STOCK_RESERVATION_EXPIRED", "STOCK_RESERVATION_CHANGED"],
        ["STOCK_RESERVED", "STOCK_RESERVATION_CONFIRMED", "STOCK_RESERVATION_CHANGED"],
    ],
}


@dataclass(frozen=True)
class Event:
    """A row of the outbox with its payload parsed."""

    id: int
    key: str
    type: str
    data: dict[str, Any]
    traceparent: str | None
    tenant: str


class InventoryDriver:
    """Calls the operations of one process as its servicer does, for one caller."""

    def __init__(self, database: Database, operations: Operations, caller: Caller = ANYONE) -> None:
        self.database = database
        self.operations = operations
        self.caller = caller

    def calling_as(self, caller: Caller) -> "InventoryDriver":
        """Return a driver that calls the same process as another caller."""
        return InventoryDriver(self.database, self.operations, caller)

    # --- stock ---

    def add_stock(
        self, product: int, units: int, location: str = DEFAULT_LOCATION, *, request_id: str | None = None
    ) -> Item:
        return self.operations.add_stock(
            AddStock(product, location, units, caller=self.caller, request_id=request_id), deadline=deadline()
        )

    def set_quantity(
        self, item: Item, units: int | None, *, version: int | None = None, request_id: str | None = None
    ) -> Item:
        return self.operations.set_quantity(
            SetQuantity(item.id, units, version, caller=self.caller, request_id=request_id), deadline=deadline()
        )

    def change_stock(
        self, *changes: StockChange, is_atomic: bool = False, request_id: str | None = None
    ) -> list[ChangedStock | ShopError]:
        """Make the changes, each with its position as its number. Raises the error that refuses an atomic call."""
        request = ChangeStock(
            tuple(replace(change, number=number) for number, change in enumerate(changes)),
            is_atomic,
            caller=self.caller,
            request_id=request_id,
        )
        return self.operations.change_stock(request, deadline=deadline())

    def item(self, item: Item) -> Item:
        return self.operations.get_item(ItemKey(self.caller.tenant, item.id), deadline=deadline())

    def available(self, product: int, location: str | None = None) -> int:
        question = StockQuestion(StockKey(self.caller.tenant, product, location))
        return self.operations.check_stock(question, deadline=deadline())

    def availability(self, *products: int, by_location: bool = False) -> Availabilities:
        question = AvailabilityQuestion(self.caller.tenant, products, by_location)
        return self.operations.get_availability(question, deadline=deadline())

    def update_location(
        self,
        location: str,
        *,
        is_active: bool | None = None,
        priority: int | None = None,
        region: str | None = None,
        labels: tuple[tuple[str, str], ...] | None = None,
        request_id: str | None = None,
    ) -> Location:
        request = UpdateLocation(
            location, is_active, priority, region, labels, caller=self.caller, request_id=request_id
        )
        return self.operations.update_location(request, deadline=deadline())

    def items_page(self, filter_: ItemFilter, *, size: int, after: Page[Item] | None = None) -> Page[Item]:
        request = PageRequest("items", filter_, after.next_position if after else None, size)
        return self.operations.list_items(request, deadline=deadline())

    def movements_page(
        self, filter_: MovementFilter, *, size: int, after: Page[Movement] | None = None
    ) -> Page[Movement]:
        request = PageRequest("movements", filter_, after.next_position if after else None, size)
        return self.operations.list_movements(request, deadline=deadline())

    def movements(self, filter_: MovementFilter | None = None, *, size: int = 1000) -> list[Movement]:
        """Return all movements that match, newest first."""
        wanted = filter_ or MovementFilter(self.caller.tenant)
        page = self.movements_page(wanted, size=size)
        found = list(page.rows)
        while page.next_position is not None:
            page = self.movements_page(wanted, size=size, after=page)
            found += page.rows
        return found

    # --- reservations ---

    def reserve(
        self,
        product: int,
        units: int,
        *,
        order: str = "order-1",
        location: str | None = None,
        ttl: float | None = None,
        request_id: str | None = None,
    ) -> Reservation:
        (reservation,) = self.reserve_lines(order, Line(product, units, location), ttl=ttl, request_id=request_id)
        return reservation

    def reserve_lines(
        self,
        order: str,
        *lines: Line,
        ttl: float | None = None,
        allow_partial: bool = False,
        request_id: str | None = None,
    ) -> list[Reservation]:
        request = OrderLines(order, lines, ttl, allow_partial, caller=self.caller, request_id=request_id)
        return self.operations.reserve(request, deadline=deadline())

    def confirm(self, order: str = "order-1") -> list[Reservation]:
        return self.operations.confirm(OrderRequest(order, caller=self.caller), deadline=deadline())

    def extend(self, ttl: float, order: str = "order-1") -> list[Reservation]:
        return self.operations.extend(ExtendRequest(order, ttl_seconds=ttl, caller=self.caller), deadline=deadline())

    def retake(self, order: str = "order-1", *, version: int | None = None) -> list[Reservation]:
        request = RetakeRequest(order, caller=self.caller, order_version=version)
        return self.operations.confirm(request, deadline=deadline())

    def add(
        self,
        version: int,
        *lines: Line,
        ordered: Mapping[int, int],
        order: str = "order-1",
        change_id: str = "01930d4a-5f1d-7c02-a1f7-d06b3e5c8a99",
        confirmed: bool = False,
    ) -> list[Reservation]:
        """Reserve more units for a change that gives the order this version. `ordered` are the ordered units before."""
        request = AddRequest(
            order,
            version=version,
            change_id=change_id,
            is_confirmed=confirmed,
            lines=lines,
            ordered=ordered,
            caller=self.caller,
        )
        return self.operations.add(request, deadline=deadline())

    def release(self, reservation: Reservation) -> int:
        return self.operations.release(ReleaseRequest(reservation.id, caller=self.caller), deadline=deadline())

    def expire(self, max_count: int = 1000) -> int:
        return self.operations.expire(ExpireRequest(max_count, caller=self.caller), deadline=deadline())

    def cancel(self, *orders: str) -> None:
        """Release the reservations of the orders, as the handler of ORDER_CANCELLED does."""
        requests = [OrderRequest(order, caller=self.caller) for order in orders]
        while self.database.transact(lambda tx: release_orders(tx, requests)):
            pass

    def ship(self, *orders: str) -> dict[str, dict[int, int]]:
        """Fulfil the orders, as the handler of ORDER_SHIPPED does. Returns the fulfilled units by order and product."""
        requests = [OrderRequest(order, caller=self.caller) for order in orders]
        while self.database.transact(lambda tx: fulfil_orders(tx, requests)):
            pass
        keys = [request.order_key for request in requests]
        return {
            key.order_id: units
            for key, units in self.database.query(lambda tx: by_order.fulfilled_units(tx, keys)).items()
        }

    def change_order(
        self, order: str, version: int, *, ordered: Mapping[int, int], targets: Mapping[int, tuple[int, int] | Totals]
    ) -> dict[int, int]:
        """Reach the targets of an order, as the handlers of its events do. Returns the missing units by product.

        The targets are the kept and the shipped units by product, and the restocked ones if there are any.
        """
        request = OrderTargets(
            order,
            caller=self.caller,
            version=version,
            ordered=ordered,
            targets={product: Totals(*units) for product, units in targets.items()},
        )
        return self.reach(request)[-1].missing.get(request.order_key, {})

    def reach(self, request: OrderTargets) -> list[Reached]:
        """Reach the targets of an order. Returns the result of each turn."""
        turns = [self.database.transact(lambda tx: reach_targets(tx, [request], "ORDER_SHIPPED"))]
        while turns[-1].has_more:
            turns.append(self.database.transact(lambda tx: reach_targets(tx, [request], "ORDER_SHIPPED")))
        return turns

    def reservation(self, reservation: Reservation) -> Reservation:
        return self.operations.get_reservation(ReservationKey(self.caller.tenant, reservation.id), deadline=deadline())

    def state(self, reservation: Reservation) -> State:
        """Return the state that callers see: EXPIRED for a due reservation."""
        return self.reservation(reservation).state

    def stored_state(self, reservation: Reservation) -> State:
        """Return the state that is stored in the database: HELD for a due reservation."""
        with self.database.read() as tx:
            (stored,) = rows.load(tx, [reservation.key])
        return stored.state

    def reservations_page(
        self, filter_: ReservationFilter, *, size: int, after: Page[Reservation] | None = None
    ) -> Page[Reservation]:
        request = PageRequest("reservations", filter_, after.next_position if after else None, size)
        return self.operations.list_reservations(request, deadline=deadline())

    def make_due(self, *held: Reservation, ago_seconds: float = 1.0) -> None:
        """Set the expiry of these reservations to `ago_seconds` ago."""
        with self.database.write() as tx:
            tx.execute(
                update(_reservations)
                .where(_reservations.c.id.in_([reservation.id for reservation in held]))
                .values(expires_at=now(tx) - timedelta(seconds=ago_seconds))
            )

    # --- events and consistency ---

    def events(self, *types: str) -> list[Event]:
        table = tables.outbox.table
        with self.database.read() as tx:
            rows = tx.execute(select(table).order_by(table.c.id)).all()
        found = [
            Event(row.id, row.key, row.type, json.loads(row.payload)["data"], row.traceparent, tenant_of(row))
            for row in rows
        ]
        return [event for event in found if not types or event.type in types]

    def check_consistency(self) -> None:
        """Check that counters equal the sums of active reservations, and that the events match the stored states."""
        with self.database.read() as tx:
            items = {item.id: item for item in tx.execute(select(_items))}
            stored = tx.execute(select(_reservations)).all()
            drawn = tx.execute(
                select(_allocations.c.item_id, func.sum(_allocations.c.quantity))
                .join(_reservations, _reservations.c.id == _allocations.c.reservation_id)
                .where(_reservations.c.is_active)
                .group_by(_allocations.c.item_id)
            ).all()
            parts = tx.execute(
                select(_allocations.c.reservation_id, func.sum(_allocations.c.quantity)).group_by(
                    _allocations.c.reservation_id
                )
            ).all()
        reserved = {item_id: int(units) for item_id, units in drawn}
        assert {item.id: item.reserved_quantity for item in items.values() if item.reserved_quantity} == reserved
        assert {row.id: row.quantity for row in stored} == {each: int(units) for each, units in parts}
        with self.database.read() as tx:
            held_back = tx.execute(
                select(_withholdings.c.item_id, func.sum(_withholdings.c.quantity)).group_by(_withholdings.c.item_id)
            ).all()
        withheld = {item_id: int(units) for item_id, units in held_back}
        assert {item.id: item.withheld_quantity for item in items.values() if item.withheld_quantity} == withheld

        events = self.events()
        self._check_movements(items, events)
        totals = {event.data["item_id"]: event.data for event in events if event.type == "STOCK_UPDATED"}
        assert {
            each: (data["quantity"], data.get("withheld_quantity", 0), data["version"]) for each, data in totals.items()
        } == {item.id: (item.quantity, item.withheld_quantity, item.version) for item in items.values() if item.version}
        types: dict[str, list[str]] = {row.id: [] for row in stored}
        for event in events:
            if event.type in ("STOCK_UPDATED", "STOCK_MOVED", "STOCK_RESERVATION_EXTENDED"):
                continue
            of_reservation = types[event.data["reservation_id"]]
            if event.type == "STOCK_RESERVATION_CHANGED":
                # The parts continue the history of the reservation that they replace, unless it has expired.
                history = [] if "STOCK_RESERVATION_EXPIRED" in of_reservation else of_reservation
                types.update((part["reservation_id"], history.copy()) for part in event.data["parts"])
            of_reservation.append(event.type)
        for row in stored:
            assert types[row.id] in _HISTORIES[State(row.state)], (
                f"{row.id} is {row.state}, its events are {types[row.id]}"
            )
        self.check_events_against_contract()

    def _check_movements(self, items: Mapping[int, Row[Any]], events: Sequence[Event]) -> None:
        """Check that the movements of each item are a chain without gaps that ends at its quantity, each with an event.

        An item that was inserted without a movement has a quantity that is not booked yet.
        """
        table = tables.stock_movements
        with self.database.read() as tx:
            movements = tx.execute(select(table).order_by(table.c.item_id, table.c.revision)).all()
        chains: dict[int, list[Row[Any]]] = {}
        for movement in movements:
            chain = chains.setdefault(movement.item_id, [])
            before, withheld = (chain[-1].quantity_after, chain[-1].withheld_after) if chain else (0, 0)
            assert (movement.revision, movement.quantity_after) == (len(chain) + 1, before + movement.quantity)
            assert movement.withheld_after == withheld + movement.withheld, movement
            chain.append(movement)
        for item in items.values():
            chain = chains.pop(item.id, [])
            booked = chain[-1].quantity_after if chain else 0
            assert (item.revision, item.booked_quantity) == (len(chain), booked), item
            assert not chain or item.quantity == booked, item
            assert item.withheld_quantity == (chain[-1].withheld_after if chain else 0), item
        assert not chains
        moved = {(event.data["item_id"], event.data["revision"]) for event in events if event.type == "STOCK_MOVED"}
        # The migration emits no events for the opening movements.
        assert moved == {(each.item_id, each.revision) for each in movements if each.reason != "OPENING"}

    def check_events_against_contract(self) -> None:
        """Check the first ten and the last ten events of the outbox against the contract.

        The check includes the headers that the relay adds.
        """
        table = tables.outbox.table
        with self.database.read() as tx:
            rows = tx.execute(select(table).order_by(table.c.id)).all()
        for row in [*rows[:10], *rows[10:][-10:]]:
            headers = {
                "ce_specversion": "1.0",
                "ce_id": row.event_id,
                "ce_type": row.type,
                "ce_source": "/shop/inventory-api",
                "ce_time": rfc3339(row.created_at),
                "ce_subject": row.key,
                "ce_sequence": f"{row.id:019d}",
                TENANT_HEADER: tenant_of(row),
            }
            validator().check(row.topic, row.key, headers, row.payload.encode())


def stock_key(product: int, location: str | None = None) -> StockKey:
    """Return a stock key of the default tenant."""
    return StockKey(tenant.DEFAULT, product, location)


def order_key(order: str) -> OrderKey:
    """Return the key of an order of order-api in the default tenant."""
    return OrderKey(tenant.DEFAULT, "", order)


def tenant_of(row: Row[Any]) -> str:
    """Return the tenant in the headers of a row of the outbox, or the default tenant."""
    return str(json.loads(row.headers or "{}").get(TENANT_HEADER, tenant.DEFAULT))


def empty(database: Database) -> None:
    with database.write() as tx:
        for table in reversed(tables.metadata.sorted_tables):
            tx.execute(table.delete())


def deadline(seconds: float = CALL_SECONDS) -> float:
    return time.monotonic() + seconds


def at_once(calls: Sequence[Callable[[], _T]]) -> list[_T | ShopError]:
    """Run all calls at the same time, each in its own thread. Returns the results or errors, in order."""
    barrier = Barrier(len(calls))

    def run(call: Callable[[], _T]) -> _T | ShopError:
        barrier.wait()
        try:
            return call()
        except ShopError as refusal:
            return refusal

    with ThreadPoolExecutor(len(calls)) as callers:
        return list(callers.map(run, calls))


def refusals(outcomes: Iterable[object]) -> list[ShopError]:
    return [outcome for outcome in outcomes if isinstance(outcome, ShopError)]
