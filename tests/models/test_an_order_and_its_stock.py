"""Random histories of an order and its events: order, reservations and items agree with a model in plain Python."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, select, update

import inventory_api.api.consumer
import inventory_api.migrations
import inventory_api.store.tables
import order_api.api.consumer
import order_api.migrations
import order_api.store.tables
from inventory_api.domain.commands import ItemFilter, StockChange
from inventory_api.domain.errors import BelowReserved
from inventory_api.domain.model import Line
from inventory_api.domain.movements import MovementKind
from inventory_api.domain.stock_changes import ChangedStock
from inventory_api.operations.coalescing import Operations
from order_api.domain.changes import ChangeResult
from order_api.domain.commands import CancelAbandoned, CancelItems, ChangeLines, ChangeStatus, ReturnItems, ShipItems
from order_api.domain.model import NewItem, Order, ReturnedUnits, Status, Treatment
from order_api.operations import change_order
from order_api.operations.change_status import change_status
from order_api.operations.change_units import cancel_items, return_items, ship_items
from order_api.store import orders
from shop_common.db.database import Database
from shop_common.errors import ShopError
from shop_common.events.consumer import Event, Handler
from shop_common.events.outbox import Outbox
from testkit.drivers.inventory_api import TTL_SECONDS, InventoryDriver, empty
from testkit.drivers.order_api import new_order, stored

PRODUCTS = (1, 2)
STOCK = 30
LIMIT = 9
"""The units of a product that the buyer may have. Each order has at most one less at first."""

SETTINGS = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass
class Model:
    """An order with a line per product. `open` units are neither shipped nor cancelled.

    `restocked`, `withheld` and `discarded` units came back, and still count as shipped.
    """

    ordered: dict[int, int]
    status: Status = Status.PENDING
    shipped: dict[int, int] = field(default_factory=lambda: dict.fromkeys(PRODUCTS, 0))
    open: dict[int, int] = field(default_factory=dict)
    restocked: dict[int, int] = field(default_factory=lambda: dict.fromkeys(PRODUCTS, 0))
    withheld: dict[int, int] = field(default_factory=lambda: dict.fromkeys(PRODUCTS, 0))
    discarded: dict[int, int] = field(default_factory=lambda: dict.fromkeys(PRODUCTS, 0))

    def __post_init__(self) -> None:
        self.open = dict(self.ordered)

    def ship(self, units: dict[int, int]) -> bool:
        """Return whether the order permits this shipment, and make it."""
        if self.status is not Status.PROCESSING or not self._are_open(units):
            return False
        for product, count in units.items():
            self.open[product] -= count
            self.shipped[product] += count
        self._settle()
        return True

    def cancel(self, units: dict[int, int]) -> bool:
        """Return whether the order permits this cancellation, and make it."""
        if self.status not in (Status.PENDING, Status.CONFIRMED, Status.PROCESSING) or not self._are_open(units):
            return False
        for product, count in units.items():
            self.open[product] -= count
        self._settle()
        return True

    def add(self, value: tuple[dict[int, int], str]) -> bool:
        """Return whether the order permits these units to be added, and add them unless the change is interrupted."""
        units, interruption = value
        if self.status not in (Status.PENDING, Status.CONFIRMED, Status.PROCESSING):
            return False
        if any(self._bought(product) + count > LIMIT for product, count in units.items()):
            return False
        for product, count in units.items() if not interruption else ():
            self.open[product] += count
        return True

    def lower(self, units: dict[int, int]) -> bool:
        """Return whether the order permits these units to be taken away from its lines, and take them away."""
        return self.cancel(units)

    def restock(self, units: dict[int, int]) -> bool:
        """Return whether the order permits these units to come back, and add them to the stock."""
        return self._take_back(units, self.restocked)

    def withhold(self, units: dict[int, int]) -> bool:
        """Return whether the order permits these units to come back. They are added to the stock, but not for sale."""
        return self._take_back(units, self.withheld)

    def discard(self, units: dict[int, int]) -> bool:
        """Return whether the order permits these units to come back. They are not added to the stock."""
        return self._take_back(units, self.discarded)

    def change(self, status: Status) -> bool:
        """Return whether the order permits this change of its status, and make it."""
        legal = {
            Status.PENDING: {Status.CONFIRMED, Status.CANCELLED},
            Status.CONFIRMED: {Status.PROCESSING, Status.CANCELLED},
            Status.PROCESSING: {Status.SHIPPED} | (set() if any(self.shipped.values()) else {Status.CANCELLED}),
            Status.SHIPPED: {Status.DELIVERED},
        }
        if status is self.status:
            return True
        if status not in legal.get(self.status, set()):
            return False
        self.status = status
        if status is Status.SHIPPED:
            self.shipped = {product: self.shipped[product] + self.open[product] for product in PRODUCTS}
        if status in (Status.SHIPPED, Status.CANCELLED):
            self.open = dict.fromkeys(PRODUCTS, 0)
        return True

    def _take_back(self, units: dict[int, int], returned: dict[int, int]) -> bool:
        for product, count in units.items():
            came_back = self.restocked[product] + self.withheld[product] + self.discarded[product]
            if count > self.shipped[product] - came_back:
                return False
        for product, count in units.items():
            returned[product] += count
        return True

    def _bought(self, product: int) -> int:
        """Return the units that count for the limit per buyer."""
        came_back = self.restocked[product] + self.withheld[product] + self.discarded[product]
        return self.open[product] + self.shipped[product] - came_back

    def _are_open(self, units: dict[int, int]) -> bool:
        return all(count <= self.open[product] for product, count in units.items())

    def _settle(self) -> None:
        if not any(self.open.values()):
            self.status = Status.SHIPPED if any(self.shipped.values()) else Status.CANCELLED


class System:
    """Orders and stock in their two databases. A test delivers the events, in any order."""

    def __init__(self, orders_database: Database, inventory: InventoryDriver) -> None:
        self.orders = orders_database
        self.inventory = inventory

    def create(self, ordered: dict[int, int]) -> Order:
        """Empty both databases, and create an order whose stock is reserved at two locations."""
        empty(self.inventory.database)
        with self.orders.write() as tx:
            for table in reversed(order_api.store.tables.metadata.sorted_tables):
                tx.execute(table.delete())
        for product in PRODUCTS:
            for location in ("A", "B"):
                self.inventory.add_stock(product, STOCK // 2, location)
        new = new_order(
            items=tuple(NewItem(product, count, Decimal(1), "", LIMIT) for product, count in ordered.items())
        )
        self.inventory.reserve_lines(new.id, *(Line(product, count) for product, count in ordered.items()))
        (order,) = stored(self.orders, new)
        return order

    def change(self, order: Order, status: Status) -> Order | ShopError:
        if status is Status.CONFIRMED and self.load(order).status is Status.PENDING:
            self.inventory.confirm(order.id)
        return self.orders.transact(lambda tx: change_status(tx, [ChangeStatus(order.id, status)]))[0]

    def ship(self, order: Order, units: dict[int, int]) -> Order | ShopError:
        command = ShipItems(order.id, self._by_line(order, units))
        return self.orders.transact(lambda tx: ship_items(tx, [command]))[0]

    def cancel(self, order: Order, units: dict[int, int]) -> Order | ShopError:
        command = CancelItems(order.id, self._by_line(order, units))
        return self.orders.transact(lambda tx: cancel_items(tx, [command]))[0]

    def add(self, order: Order, value: tuple[dict[int, int], str]) -> Order | ShopError:
        """Add units, or die after the step with this name."""
        units, interruption = value
        self.end_interrupted_changes()
        present = self.load(order)
        command = ChangeLines(
            order.id,
            version=present.version,
            quantities=tuple(
                (item.id, item.quantity - item.cancelled + units[item.product_id])
                for item in present.items
                if item.product_id in units
            ),
        )
        (begun,) = self.orders.transact(lambda tx: change_order.begin(tx, [command]))
        if isinstance(begun, ShopError) or interruption == "begun":
            return begun if isinstance(begun, ShopError) else present
        assert begun.change_id is not None
        assert begun.ordered is not None
        self.inventory.add(
            begun.version,
            *(Line(each.product_id, each.quantity) for each in begun.added),
            ordered=begun.ordered,
            order=order.id,
            change_id=begun.change_id,
            confirmed=begun.is_confirmed,
        )
        if interruption == "reserved":
            return present
        result = ChangeResult(command, begun)
        return self.orders.transact(lambda tx: change_order.finish(tx, [result]))[0]

    def lower(self, order: Order, units: dict[int, int]) -> Order | ShopError:
        """Take units away from lines by a change of the order. It needs no intent."""
        present = self.load(order)
        command = ChangeLines(
            order.id,
            version=present.version,
            quantities=tuple(
                (item.id, item.quantity - item.cancelled - units[item.product_id])
                for item in present.items
                if item.product_id in units
            ),
        )
        (begun,) = self.orders.transact(lambda tx: change_order.begin(tx, [command]))
        if isinstance(begun, ShopError):
            return begun
        assert begun.change_id is None
        result = ChangeResult(command, begun)
        return self.orders.transact(lambda tx: change_order.finish(tx, [result]))[0]

    def end_interrupted_changes(self) -> None:
        """Do what CancelAbandonedOrders does a minute later."""
        intents = order_api.store.tables.order_intents
        with self.orders.write() as tx:
            tx.execute(update(intents).values(created_at=datetime(2024, 1, 1, tzinfo=UTC)))
        change_order.StaleChanges(self.orders).end(CancelAbandoned(60, 100))

    def restock(self, order: Order, units: dict[int, int]) -> Order | ShopError:
        # A location that had this product before, and one that never had.
        return self._take_back(order, units, Treatment.RESTOCK, "A" if 1 in units else "C")

    def withhold(self, order: Order, units: dict[int, int]) -> Order | ShopError:
        return self._take_back(order, units, Treatment.WITHHOLD, "A", "DAMAGED" if 1 in units else "STAINED")

    def discard(self, order: Order, units: dict[int, int]) -> Order | ShopError:
        return self._take_back(order, units, Treatment.DISCARD)

    def _take_back(self, order: Order, units: dict[int, int], treatment: Treatment, *place: str) -> Order | ShopError:
        returned = tuple(ReturnedUnits(*line, treatment, *place) for line in self._by_line(order, units))
        return self.orders.transact(lambda tx: return_items(tx, [ReturnItems(order.id, returned)]))[0]

    def load(self, order: Order) -> Order:
        return self.orders.query(lambda tx: orders.load(tx, [order.key]))[order.key]

    def deliver_to_inventory(self, choose: Callable[[list[Event]], list[Event]]) -> None:
        """Deliver some of the order's events that were written so far, in the chosen sequence."""
        handlers = inventory_api.api.consumer.handlers()
        written = events_of(self.orders, order_api.store.tables.outbox)
        deliver(self.inventory.database, handlers, choose([each for each in written if each.type in handlers]))

    def deliver_to_orders(self) -> None:
        handlers = order_api.api.consumer.handlers()
        written = events_of(self.inventory.database, inventory_api.store.tables.outbox)
        deliver(self.orders, handlers, [each for each in written if each.type in handlers])

    def deliver_everything(self) -> None:
        """Deliver all events of both services, and then those that followed, each several times."""
        for _ in range(2):
            self.deliver_to_inventory(lambda events: events)
            self.deliver_to_orders()
        self.deliver_to_inventory(lambda events: events)

    def count(self, product: int, units: int) -> ChangedStock | ShopError:
        """Count these units where the order's units are, and release the reservations for which they do not suffice."""
        filter_ = ItemFilter(self.inventory.caller.tenant, product_id=product)
        (location,) = (
            item.location for item in self.inventory.items_page(filter_, size=10).rows if item.reserved_quantity
        )
        count = StockChange(0, product, location, MovementKind.COUNTED, units, release_shortfall=True)
        (outcome,) = self.inventory.change_stock(count)
        return outcome

    def stock(self) -> dict[int, tuple[int, int, int]]:
        """Return the quantity, the reserved and the withheld quantity of each product."""
        items = inventory_api.store.tables.inventory_items
        with self.inventory.database.read() as tx:
            rows = tx.execute(select(items)).all()
        return {
            product: (
                sum(row.quantity for row in rows if row.product_id == product),
                sum(row.reserved_quantity for row in rows if row.product_id == product),
                sum(row.withheld_quantity for row in rows if row.product_id == product),
            )
            for product in PRODUCTS
        }

    @staticmethod
    def _by_line(order: Order, units: dict[int, int]) -> tuple[tuple[int, int], ...]:
        return tuple((item.id, units[item.product_id]) for item in order.items if item.product_id in units)


def events_of(database: Database, outbox: Outbox) -> list[Event]:
    with database.read() as tx:
        rows = tx.execute(select(outbox.table).order_by(outbox.table.c.id)).all()
    return [
        Event(
            row.type, row.key, str(row.event_id), json.loads(row.payload)["data"], datetime.now(UTC), None, row.topic,
            0, row.id,
        )
        for row in rows
    ]  # fmt: skip


def deliver(database: Database, handlers: Mapping[str, Handler], events: list[Event]) -> None:
    for event in events:
        while database.transact(partial(handle, handlers[event.type], event)):
            pass


def handle(handler: Handler, event: Event, tx: Connection) -> bool | None:
    return handler(tx, [event])


@pytest.fixture
def system(new_database: Callable[[str], str]) -> Iterator[System]:
    orders_database, stock_database = Database(new_database("orders")), Database(new_database("inventory"))
    order_api.migrations.SCHEMA.upgrade(orders_database)
    inventory_api.migrations.SCHEMA.upgrade(stock_database)
    fatal: list[str] = []
    operations = Operations(
        stock_database, ttl_seconds=TTL_SECONDS, on_fatal=lambda reason, error: fatal.append(f"{reason}: {error!r}")
    )
    yield System(orders_database, InventoryDriver(stock_database, operations))
    operations.close()
    orders_database.close()
    stock_database.close()
    assert fatal == []


counts = st.dictionaries(st.sampled_from(PRODUCTS), st.integers(1, 4), min_size=1)
one_more = st.dictionaries(st.sampled_from(PRODUCTS), st.just(1), min_size=1)
forward = st.sampled_from([Status.CONFIRMED, Status.PROCESSING])
steps = st.one_of(
    st.tuples(st.just("ship"), counts),
    st.tuples(st.just("ship"), counts),
    st.tuples(st.just("cancel"), counts),
    st.tuples(st.just("lower"), counts),
    st.tuples(st.just("add"), st.tuples(one_more, st.sampled_from(["", "", "begun", "reserved"]))),
    st.tuples(st.just("restock"), counts),
    st.tuples(st.just("withhold"), counts),
    st.tuples(st.just("discard"), counts),
    st.tuples(st.just("change"), forward),
    st.tuples(st.just("change"), st.sampled_from([Status.SHIPPED, Status.CANCELLED, Status.DELIVERED])),
    st.tuples(st.just("deliver"), st.none()),
)


def test_any_history_of_an_order_leaves_its_stock_as_the_model_has_it(system: System) -> None:
    returns: list[tuple[str, Any]] = [
        ("ship", {1: 3}), ("restock", {1: 2}), ("deliver", None), ("cancel", {2: 1}), ("change", Status.SHIPPED),
        ("restock", {1: 1, 2: 2}), ("deliver", None), ("discard", {1: 1}), ("restock", {1: 2}), ("discard", {1: 9}),
        ("withhold", {2: 1}), ("deliver", None), ("withhold", {2: 9}),
    ]  # fmt: skip

    changes: list[tuple[str, Any]] = [
        ("add", ({1: 1, 2: 1}, "")), ("ship", {1: 2}), ("deliver", None), ("add", ({2: 1}, "reserved")),
        ("lower", {2: 1}), ("cancel", {2: 1}), ("add", ({1: 1}, "begun")), ("deliver", None), ("add", ({1: 1}, "")),
        ("ship", {1: 2}), ("lower", {1: 1}),
    ]  # fmt: skip

    @SETTINGS
    @example(5, 4, True, returns, Random(1))
    @example(5, 4, True, changes, Random(1))
    @example(5, 4, False, changes, Random(2))
    @given(
        st.integers(1, 8), st.integers(1, 8), st.booleans(), st.lists(steps, max_size=10),
        st.randoms(use_true_random=False),
    )  # fmt: skip
    def check(first: int, second: int, starts_processing: bool, history: list[tuple[str, Any]], random: Random) -> None:
        model = Model({1: first, 2: second})
        order = system.create(model.ordered)
        start = [("change", Status.CONFIRMED), ("change", Status.PROCESSING)] if starts_processing else []
        for operation, value in [*start, *history]:
            if operation == "deliver":
                # Repeated and out of order. Events that are not chosen are late.
                system.deliver_to_inventory(partial(some_of, random))
                continue
            permitted = getattr(model, operation)(value)
            outcome = getattr(system, operation)(order, value)
            assert isinstance(outcome, ShopError) is not permitted, (operation, value, outcome)
        system.end_interrupted_changes()
        system.deliver_to_inventory(lambda events: random.sample(events, k=len(events)))
        system.deliver_to_orders()

        assert system.load(order).status is model.status
        assert system.stock() == {
            product: (
                STOCK - model.shipped[product] + model.restocked[product] + model.withheld[product],
                model.open[product],
                model.withheld[product],
            )
            for product in PRODUCTS
        }
        system.inventory.check_consistency()

    check()


@pytest.mark.parametrize("statuses", [(), (Status.CONFIRMED,), (Status.CONFIRMED, Status.PROCESSING)])
def test_a_count_that_releases_some_stock_of_an_order_cancels_it_and_frees_the_rest(
    system: System, statuses: tuple[Status, ...]
) -> None:
    order = system.create({1: 5, 2: 4})
    for status in statuses:
        system.change(order, status)

    assert not isinstance(system.count(1, 3), ShopError)
    system.deliver_everything()

    assert system.load(order).status is Status.CANCELLED
    assert system.load(order).status_reason == "its stock was released"
    assert system.stock() == {1: (STOCK // 2 + 3, 0, 0), 2: (STOCK, 0, 0)}
    system.inventory.check_consistency()


def test_a_count_keeps_the_stock_of_an_order_that_has_shipped_units(system: System) -> None:
    order = processing(system)
    system.ship(order, {1: 2})
    system.deliver_everything()

    refused = system.count(1, 2)
    system.deliver_everything()

    assert isinstance(refused, BelowReserved)
    assert (refused.metadata()["reserved"], system.load(order).status) == ("3", Status.PROCESSING)
    assert system.stock() == {1: (STOCK - 2, 3, 0), 2: (STOCK, 4, 0)}


def test_a_count_before_the_event_of_a_shipment_cancels_only_the_open_units(system: System) -> None:
    order = processing(system)
    system.ship(order, {1: 2})

    # The inventory does not know of the shipment, so it releases all five units.
    assert not isinstance(system.count(1, 2), ShopError)
    system.deliver_everything()

    assert system.load(order).status is Status.PROCESSING
    assert [(each.shipped, each.cancelled) for each in system.load(order).items] == [(2, 3), (0, 0)]
    assert system.stock() == {1: (STOCK // 2 + 2, 0, 0), 2: (STOCK, 4, 0)}


def processing(system: System) -> Order:
    """Return a new order in PROCESSING with five units of product 1 and four of product 2."""
    order = system.create({1: 5, 2: 4})
    for status in (Status.CONFIRMED, Status.PROCESSING):
        system.change(order, status)
    return order


def some_of(random: Random, events: list[Event]) -> list[Event]:
    return random.choices(events, k=len(events)) if events else []
