"""Reads both databases with plain SQL. Uses neither the code nor the table definitions of the services."""

from collections.abc import Iterable, Sequence
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

    def snapshot(self, products: Iterable[int]) -> Snapshot:
        """All rows that concern these products."""
        ours = set(products)
        items = [Item(*row) for row in _rows(self._inventory, _ITEMS)]
        parts: dict[str, dict[int, int]] = {}
        for reservation_id, item_id, units in _rows(self._inventory, _ALLOCATIONS):
            parts.setdefault(str(reservation_id), {})[item_id] = units
        reservations = [
            Reservation(str(row_id), product, units, order_id, state, parts.get(str(row_id), {}), expires_at is None)
            for row_id, product, units, order_id, state, expires_at in _rows(self._inventory, _RESERVATIONS)
        ]
        lines: dict[str, dict[int, int]] = {}
        for order_id, product, units in _rows(self._orders, _LINES):
            lines.setdefault(str(order_id), {})[product] = units
        orders = [
            Order(str(row[0]), row[1], row[2], row[3], lines.get(str(row[0]), {}))
            for row in _rows(self._orders, _ORDERS)
        ]
        return Snapshot(
            {item.id: item for item in items if item.product in ours},
            {each.id: each for each in reservations if each.product in ours},
            {order.id: order for order in orders if ours.intersection(order.lines)},
        )


_ITEMS = "SELECT id, product_id, location, quantity, reserved_quantity, version FROM inventory_items"
_RESERVATIONS = "SELECT id, product_id, quantity, order_id, state, expires_at FROM stock_reservations"
_ALLOCATIONS = "SELECT reservation_id, item_id, quantity FROM reservation_allocations"
_ORDERS = "SELECT id, user_id, status, version FROM orders"
_LINES = "SELECT order_id, product_id, quantity FROM order_items"


def _rows(engine: Engine, query: str, **parameters: str) -> Sequence[Any]:
    with engine.connect() as connection:
        return connection.execute(text(query), parameters).all()


def _number(engine: Engine, query: str) -> int:
    ((number,),) = _rows(engine, query)
    return int(number)
