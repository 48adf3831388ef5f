"""Reads both databases with plain SQL. Uses neither the code nor the table definitions of the services."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Engine, NullPool, create_engine, text

from devstack.stack import Databases
from tests.faults.history import Item, Order, Reservation, Snapshot

LONG = "long-"
"""Prefix of the order ids of reservations that stay HELD after the history. Every other one is confirmed or ends."""


class Readers:
    """Reads both databases while the system under test writes them."""

    def __init__(self, databases: Databases) -> None:
        # No connection stays open: the server may be killed between two reads.
        self._inventory = create_engine(databases.inventory, poolclass=NullPool)
        self._orders = create_engine(databases.orders, poolclass=NullPool)

    def unshipped(self) -> int:
        """The number of events in both outboxes."""
        return sum(_number(engine, "SELECT count(*) FROM outbox") for engine in (self._inventory, self._orders))

    def waiting(self) -> set[str]:
        """The ids of the events in both outboxes."""
        engines = self._inventory, self._orders
        return {str(event_id) for engine in engines for (event_id,) in _rows(engine, "SELECT event_id FROM outbox")}

    def running_out(self, products: Iterable[int]) -> int:
        """The number of held reservations of these products that will expire or are due."""
        held = "SELECT product_id FROM stock_reservations WHERE state = 'HELD' AND order_id NOT LIKE :long"
        ours = set(products)
        return sum(product in ours for (product,) in _rows(self._inventory, held, long=f"{LONG}%"))

    def owners(self) -> dict[str, str]:
        """Shard of the orders' outbox → owner of its lease."""
        return {str(shard): owner for shard, owner in _rows(self._orders, "SELECT shard, owner FROM relay_lease")}

    def snapshots(self, products: Iterable[int]) -> dict[str, Snapshot]:
        """All rows that concern these products, by tenant."""
        ours = set(products)
        found: dict[str, Snapshot] = defaultdict(Snapshot)
        for tenant, *row in _rows(self._inventory, _ITEMS):
            if (item := Item(*row)).product in ours:
                found[tenant].items[item.id] = item
        parts: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
        for tenant, reservation_id, item_id, units in _rows(self._inventory, _ALLOCATIONS):
            parts[tenant, str(reservation_id)][item_id] = units
        for tenant, row_id, product, units, order_id, state, expires_at in _rows(self._inventory, _RESERVATIONS):
            if product in ours:
                own = parts[tenant, str(row_id)]
                reservation = Reservation(str(row_id), product, units, order_id, state, own, expires_at is None)
                found[tenant].reservations[reservation.id] = reservation
        lines: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
        shipped: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
        cancelled: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
        for tenant, order_id, product, units, shipped_units, cancelled_units in _rows(self._orders, _LINES):
            key = tenant, str(order_id)
            lines[key][product] += units
            shipped[key][product] += shipped_units
            cancelled[key][product] += cancelled_units
        for tenant, order_id, user_id, status, version in _rows(self._orders, _ORDERS):
            key = tenant, str(order_id)
            if ours.intersection(lines[key]):
                found[tenant].orders[str(order_id)] = Order(
                    str(order_id), user_id, status, version, lines[key], shipped[key], cancelled[key]
                )
        intents: dict[str, set[str]] = defaultdict(set)
        for tenant, order_id in _rows(self._orders, _INTENTS):
            intents[tenant].add(str(order_id))
        return {tenant: replace(each, intents=frozenset(intents[tenant])) for tenant, each in found.items()}


_ITEMS = (
    "SELECT tenant, id, product_id, location, quantity, reserved_quantity, version, withheld_quantity,"
    " (SELECT coalesce(sum(quantity), 0) FROM stock_withholdings WHERE item_id = inventory_items.id)"
    " FROM inventory_items"
)
_RESERVATIONS = "SELECT tenant, id, product_id, quantity, order_id, state, expires_at FROM stock_reservations"
_ALLOCATIONS = "SELECT tenant, reservation_id, item_id, quantity FROM reservation_allocations"
_ORDERS = "SELECT tenant, id, user_id, status, version FROM orders"
_LINES = "SELECT tenant, order_id, product_id, quantity, shipped, cancelled FROM order_items"
_INTENTS = "SELECT tenant, order_id FROM order_intents"


def _rows(engine: Engine, query: str, **parameters: str) -> Sequence[Any]:
    with engine.connect() as connection:
        return connection.execute(text(query), parameters).all()


def _number(engine: Engine, query: str) -> int:
    ((number,),) = _rows(engine, query)
    return int(number)
