"""All SQL on the tables orders, order_items and order_labels: insert, read, list, and lock for a change of status."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Row,
    Subquery,
    Table,
    Text,
    literal_column,
    select,
    update,
)
from sqlalchemy.types import TypeEngine

from order_api.domain import buyer_limits as limits
from order_api.domain import events
from order_api.domain.buyer_limits import Purchase
from order_api.domain.commands import NewOrder, ReservedOrder
from order_api.domain.errors import OrderNotFound
from order_api.domain.model import (
    NewItem,
    Order,
    OrderHistory,
    OrderItem,
    OrderKey,
    Return,
    Shipment,
    Status,
    VersionedStatus,
    history,
)
from order_api.store import buyer_limits, returns, shipments, tables
from order_api.store import history as status_changes
from order_api.store.details import charges_of, labels_of, packed_charges, packed_labels
from shop_common.db.idempotency import RequestIdReused
from shop_common.db.sql import Amount, Id, Statement, Timestamp, count_by, insert_into, join_rows, now
from shop_common.errors import ShopError
from shop_common.events.outbox import ACTOR_CHARACTERS_MAX, Message

_orders = tables.orders
_items = tables.order_items
_labels = tables.order_labels

COLUMNS = tuple(_orders.c[name] for name in Order.__slots__ if name not in ("items", "shipments", "returns"))


def insert(tx: Connection, reserved: Sequence[ReservedOrder]) -> list[Order | ShopError]:
    """Store orders whose stock is reserved, as PENDING. Returns one outcome per order, in order.

    An order whose id is already stored is a repeat, even if its request_id was purged. The outcome is then the current
    order, or RequestIdReused if the earlier call had other content. A batch contains an order's key at most once.
    Refuses orders that exceed a limit per buyer, with BuyerLimitExceeded or BuyerOrdersLimit.

    Emits ORDER_CREATED.
    """
    claimed = tables.idempotency_keys.claim(tx, reserved, [each.order.claim() for each in reserved])
    earlier = get(tx, [OrderKey(claim.tenant, claim.resources[0]) for claim in claimed.replays])
    return claimed.settle(tx, replayed=earlier, new=_insert(tx, claimed.new))


def _insert(tx: Connection, reserved: Sequence[ReservedOrder]) -> list[Order | ShopError]:
    limited = {each.key: purchase for each in reserved if (purchase := limits.of_new(each.order))}
    outcomes: dict[OrderKey, Order | ShopError] = {}
    if limited:
        purchases = list(limited.values())
        buyer_limits.lock(tx, purchases)
        bought = buyer_limits.bought(tx, purchases)
        outcomes.update((each.order, refusal) for each in purchases if (refusal := bought.take(each)))
    allowed = [each for each in reserved if each.key not in outcomes]
    if allowed:
        outcomes.update(_insert_allowed(tx, allowed, limited))
    return [outcomes[each.key] for each in reserved]


def _insert_allowed(
    tx: Connection, reserved: Sequence[ReservedOrder], limited: Mapping[OrderKey, Purchase]
) -> dict[OrderKey, Order | ShopError]:
    """Return one outcome per order, by key. `limited` are the purchases of the orders with limits, by key."""
    created_at = now(tx)
    by_key = {each.key: each for each in reserved}
    # No need to sort: two transactions with the same order id have the same request_id, so one of them has already
    # waited for the other's claim, and they cannot deadlock here.
    added = [OrderKey(row.tenant, row.id) for row in _insert_orders(tx, [_row(each, created_at) for each in reserved])]
    made: dict[OrderKey, Order | ShopError] = {}
    if added:
        lines = [_line(each.key, item) for each in map(by_key.__getitem__, added) for item in each.order.items]
        # Ids are assigned in the sequence of the lines.
        item_ids = iter(sorted(row.id for row in _insert_items(tx, lines)))
        created = [_created(by_key[key], created_at, item_ids) for key in added]
        made.update((order.key, order) for order in created)
        messages = [
            events.status_changed(order, new.traceparent, new.caller.actor)
            for order, new in ((order, by_key[order.key].order) for order in created)
        ]
        tables.outbox.append(tx, messages)
        if labels := [row for order in created for row in _label_rows(order)]:
            _insert_labels(tx, labels)
        if limited:
            buyer_limits.insert(tx, [limited[key] for key in added if key in limited])
    if len(made) < len(reserved):
        # The other orders were stored before, but their keys were purged. So compare with the stored orders.
        for order in load(tx, by_key.keys() - made.keys()).values():
            made[order.key] = _settled(by_key[order.key].order, order, None)
    return made


def find_earlier(tx: Connection, new: Collection[NewOrder]) -> dict[OrderKey, Order | ShopError]:
    """Return, by key, each order that an earlier call stored, or RequestIdReused if its content is different."""
    by_key = {order.key: order for order in new}
    stored = statuses(tx, by_key)
    if not stored:
        return {}
    claims = {key: claim for key in stored if (claim := by_key[key].claim())}
    claimed = tables.idempotency_keys.find(tx, [claim.key for claim in claims.values()])
    same_content: dict[OrderKey, bool | None] = {}
    for key in stored:
        claim = claims.get(key)
        earlier = claimed.get(claim.key) if claim else None
        same_content[key] = earlier.fingerprint == claim.fingerprint if claim and earlier else None
    # The stored order may be far longer than the request, so load it only if it has as many lines. Also load orders
    # with the same content, which may have been changed since.
    lines = count_lines(tx, stored)
    loaded = load(tx, [key for key in stored if same_content[key] or lines[key] == len(by_key[key].items)])
    return {key: _settled(by_key[key], loaded.get(key), same_content[key]) for key in stored}


def _settled(new: NewOrder, stored: Order | None, same_content: bool | None) -> Order | ShopError:
    """Return the outcome of a repeat. If its key was purged, `same_content` is None: compare with the stored order."""
    if stored is not None and (new.is_what_made(stored) if same_content is None else same_content):
        return stored
    return RequestIdReused(new.request_id or new.id)


def get(tx: Connection, keys: Sequence[OrderKey]) -> list[Order | ShopError]:
    """Return one outcome per key, in order: the order or OrderNotFound."""
    found = load(tx, keys)
    return [found.get(key) or OrderNotFound(key.id) for key in keys]


def get_with_history(tx: Connection, keys: Sequence[OrderKey]) -> list[OrderHistory | ShopError]:
    """Return one outcome per key, in order: the order with its history, or OrderNotFound."""
    found = load(tx, keys)
    # The history of an order that has not changed is known from the order.
    recorded = status_changes.of(tx, [order.key for order in found.values() if order.version > 1])
    return [
        history(order, recorded.get(key, ())) if (order := found.get(key)) else OrderNotFound(key.id) for key in keys
    ]


def load(tx: Connection, keys: Iterable[OrderKey]) -> dict[OrderKey, Order]:
    """Return the orders that exist, by key. Locks nothing."""
    rows = _key_rows(keys)
    return {order.key: order for order in _with_parts(tx, with_items(tx, _load(tx, rows)))} if rows else {}


def statuses(tx: Connection, keys: Iterable[OrderKey]) -> dict[OrderKey, Status]:
    """Return the status of each order that exists, by key. Locks nothing."""
    return {key: each.status for key, each in versioned_statuses(tx, keys).items()}


def versioned_statuses(tx: Connection, keys: Iterable[OrderKey]) -> dict[OrderKey, VersionedStatus]:
    """Return the status and the version of each order that exists, by key. Locks nothing."""
    rows = _key_rows(keys)
    found = _statuses_of(tx, rows) if rows else ()
    return {OrderKey(row.tenant, row.id): VersionedStatus(Status(row.status), row.version) for row in found}


def with_cancelled_units(tx: Connection, keys: Iterable[OrderKey]) -> set[OrderKey]:
    """Return the orders of which a call has cancelled some units. Locks nothing."""
    rows = _key_rows(keys)
    return {OrderKey(*row) for row in _with_cancelled_units(tx, rows)} if rows else set()


def unchanged_statuses(
    tx: Connection, keys: Iterable[OrderKey], seconds: float, among: Collection[Status]
) -> dict[OrderKey, VersionedStatus]:
    """Return the status of each order that is in one of these and has not changed for `seconds`. Locks nothing."""
    rows = _key_rows(keys)
    if not rows:
        return {}
    before = now(tx) - timedelta(seconds=seconds)
    return {
        OrderKey(row.tenant, row.id): VersionedStatus(Status(row.status), row.version)
        for row in _statuses_of(tx, rows)
        if row.status in among and row.updated_at <= before
    }


count_lines = count_by(_items, "tenant", "order_id")
"""Returns the number of lines of each order that exists, by key."""


def _key_rows(keys: Iterable[OrderKey]) -> list[dict[str, str]]:
    return [{"tenant": key.tenant, "id": key.id} for key in set(keys)]


def abandoned(tx: Connection, grace_seconds: float, max_count: int) -> list[OrderKey]:
    """Return the keys of orders still PENDING `grace_seconds` after their reservations have ended, the oldest first.

    The orders are of all tenants.
    """
    before = now(tx) - timedelta(seconds=grace_seconds)
    rows = tx.execute(
        select(_orders.c.tenant, _orders.c.id)
        # The status is a literal, as in the partial index. With a parameter, PostgreSQL may not use that index.
        .where(_orders.c.status == literal_column("'PENDING'"), _orders.c.reserved_until < before)
        .order_by(_orders.c.reserved_until)
        .limit(max_count)
    )
    return [OrderKey(row.tenant, row.id) for row in rows]


class Locked:
    """Orders that this transaction has locked, as of `now`. No other transaction changes them until this one ends."""

    def __init__(self, now: datetime, orders: dict[OrderKey, Order]) -> None:
        self.now = now
        self.orders = orders
        self._changed: set[OrderKey] = set()
        self._units: dict[int, dict[str, object]] = {}
        self._shipments: list[tuple[OrderKey, Shipment]] = []
        self._returns: list[tuple[OrderKey, Return]] = []
        self._messages: list[Message] = []
        self._totals: dict[OrderKey, Order] = {}
        self._history: list[tuple[Order, str]] = []

    def change_status(
        self, key: OrderKey, status: Status, reason: str, traceparent: str | None, actor: str | None = None
    ) -> Order:
        """Change the status of an order. The caller has checked that the change is legal. `save` writes it.

        `traceparent` and `actor` are those of the event. The history has this actor too.
        """
        order = self.orders[key]
        order = replace(order, status=status, status_reason=reason, version=order.version + 1, updated_at=self.now)
        self.orders[key] = order
        self._changed.add(key)
        self._messages.append(events.status_changed(order, traceparent, actor))
        self._history.append((order, _recorded(actor)))
        return order

    def raise_version(self, key: OrderKey) -> Order:
        """Raise the version of an order. Emits nothing."""
        order = replace(self.orders[key], version=self.orders[key].version + 1, updated_at=self.now)
        self.orders[key] = order
        self._changed.add(key)
        return order

    def extend(self, key: OrderKey, reserved_until: datetime, traceparent: str | None, actor: str | None) -> Order:
        """Move `reserved_until` of a PENDING order. `save` writes it, and emits ORDER_EXTENDED."""
        order = replace(self.raise_version(key), reserved_until=reserved_until)
        self.orders[key] = order
        self._messages.append(events.extended(order, traceparent, actor))
        return order

    def ship(self, changed: Order, shipment: Shipment, traceparent: str | None, actor: str | None) -> Order:
        """Change the shipped units and the status of an order to those of `changed`, and add the shipment."""
        changed = replace(changed, shipments=(*changed.shipments, shipment))
        reason = "" if changed.status is Status.SHIPPED else changed.status_reason
        order = self._change_units(replace(changed, status_reason=reason), actor)
        self._shipments.append((order.key, shipment))
        self._messages.append(events.units_shipped(order, shipment, traceparent, actor))
        return order

    def cancel_units(
        self, changed: Order, units: Mapping[int, int], reason: str, traceparent: str | None, actor: str | None
    ) -> Order:
        """Change the cancelled units and the status of an order to those of `changed`.

        `units` are the cancelled units by the id of their line. The reason becomes the status_reason if the status
        changes.
        """
        before = self.orders[changed.key]
        if changed.status is not before.status:
            changed = replace(changed, status_reason=reason)
        order = self._change_units(changed, actor)
        self._messages.append(events.units_cancelled(before, order, units, reason, traceparent, actor))
        return order

    def change(self, changed: Order, reason: str, traceparent: str | None, actor: str | None) -> Order:
        """Change the lines, the charges, the total and the status of an order to those of `changed`.

        Its new lines come last, and are stored already. The reason becomes the status_reason if the status changes.
        """
        before = self.orders[changed.key]
        if changed.status is not before.status:
            changed = replace(changed, status_reason=reason)
        order = self._change_units(changed, actor)
        self._totals[order.key] = order
        self._messages.append(events.changed(before, order, traceparent, actor))
        return order

    def give_up_change(self, key: OrderKey, traceparent: str | None, actor: str | None) -> Order:
        """Raise the version of an order whose lines stay as they are. `save` writes it, and emits ORDER_CHANGED."""
        self.raise_version(key)
        return self.state_targets(key, traceparent, actor)

    def state_targets(self, key: OrderKey, traceparent: str | None, actor: str | None) -> Order:
        """Emit ORDER_CHANGED with the order as it is, after another change in this transaction."""
        order = self.orders[key]
        self._messages.append(events.changed(order, order, traceparent, actor))
        return order

    def take_back(self, changed: Order, returning: Return, traceparent: str | None, actor: str | None) -> Order:
        """Change the returned units of an order to those of `changed`, and add the return."""
        order = self._change_units(replace(changed, returns=(*changed.returns, returning)), actor)
        self._returns.append((order.key, returning))
        self._messages.append(events.units_returned(order, returning, traceparent, actor))
        return order

    def _change_units(self, changed: Order, actor: str | None) -> Order:
        before = self.orders[changed.key]
        order = replace(changed, version=before.version + 1, updated_at=self.now)
        self.orders[order.key] = order
        self._changed.add(order.key)
        self._units.update(
            (item.id, {"id": item.id, **{name: getattr(item, name) for name in _LINE_UNITS}})
            for item, earlier in zip(order.items, before.items, strict=False)  # new lines come last
            if item != earlier
        )
        if order.status is not before.status:
            self._history.append((order, _recorded(actor)))
        return order

    def save(self, tx: Connection) -> None:
        """Write the changed orders, and an event per change, in the order of the changes.

        Also writes a row of the history per change of a status.
        """
        if self._changed:
            _set_status(tx, [_status_row(self.orders[each]) for each in self._changed])
            if self._units:
                _set_units(tx, list(self._units.values()))
            if self._totals:
                _set_totals(tx, [_totals_row(each) for each in self._totals.values()])
            shipments.append(tx, self._shipments)
            returns.append(tx, self._returns)
            status_changes.append(tx, self._history)
            tables.outbox.append(tx, self._messages)


def lock(tx: Connection, keys: Iterable[OrderKey]) -> Locked:
    """Lock the orders, sorted by id. Keys of orders that do not exist are left out."""
    rows = _key_rows(keys)
    found = _with_parts(tx, with_items(tx, _lock(tx, rows))) if rows else []
    return Locked(now(tx), {order.key: order for order in found})


def add_lines(tx: Connection, order: OrderKey, items: Sequence[NewItem]) -> tuple[OrderItem, ...]:
    """Store lines of an order that this transaction has locked. Returns them, in order."""
    if not items:
        return ()
    ids = sorted(row.id for row in _insert_items(tx, [_line(order, item) for item in items]))
    return tuple(
        OrderItem(item_id, item.product_id, item.quantity, item.price, item.location)
        for item_id, item in zip(ids, items, strict=True)
    )


def _row(reserved: ReservedOrder, created_at: datetime) -> dict[str, object]:
    order = reserved.order
    return {
        "tenant": reserved.key.tenant,
        "id": order.id,
        "user_id": order.user_id,
        "total_amount": order.total_amount,
        "currency": order.currency,
        "status": Status.PENDING,
        "status_reason": "",
        "reserved_until": _reserved_until(reserved, created_at),
        "version": 1,
        "created_at": created_at,
        "updated_at": created_at,
        "created_by": _recorded(order.caller.actor),
        "external_reference": order.details.external_reference,
        "charges": packed_charges(order.details.charges),
        "labels": packed_labels(order.details.labels),
    }


def _recorded(actor: str | None) -> str:
    """Return the actor for the history: as in the event, or an empty string if the event has none."""
    return (actor or "")[:ACTOR_CHARACTERS_MAX]


def _label_rows(order: Order) -> list[dict[str, object]]:
    return [
        {
            "tenant": order.tenant,
            "order_id": order.id,
            "name": name,
            "value": value,
            "user_id": order.user_id,
            "created_at": order.created_at,
        }
        for name, value in order.labels
    ]


def _reserved_until(reserved: ReservedOrder, created_at: datetime) -> datetime:
    return created_at + timedelta(seconds=reserved.reserved_seconds)


def _line(order: OrderKey, item: NewItem) -> dict[str, object]:
    return {
        "tenant": order.tenant,
        "order_id": order.id,
        "product_id": item.product_id,
        "quantity": item.quantity,
        "price": item.price,
        "location": item.location,
    }


def _created(reserved: ReservedOrder, created_at: datetime, item_ids: Iterator[int]) -> Order:
    order = reserved.order
    items = tuple(
        OrderItem(next(item_ids), item.product_id, item.quantity, item.price, item.location) for item in order.items
    )
    details = order.details
    return Order(
        reserved.key.tenant, order.id, order.user_id, order.total_amount, order.currency, Status.PENDING, "",
        _reserved_until(reserved, created_at), 1, created_at, created_at, items, _recorded(order.caller.actor),
        details.external_reference, details.charges, details.labels,
    )  # fmt: skip


def with_items(tx: Connection, rows: Sequence[Row[Any]]) -> list[Order]:
    """Return the orders of these rows, each with its lines. The rows have COLUMNS, and each is of a different order."""
    if not rows:
        return []
    lines: dict[OrderKey, list[OrderItem]] = {OrderKey(row.tenant, row.id): [] for row in rows}
    for tenant, order_id, *item in _items_of(tx, _key_rows(lines)):
        lines[OrderKey(tenant, order_id)].append(OrderItem(*item))
    return [
        Order(
            key.tenant, key.id, row.user_id, row.total_amount, row.currency, Status(row.status), row.status_reason,
            row.reserved_until, row.version, row.created_at, row.updated_at, tuple(items), row.created_by,
            row.external_reference, charges_of(row.charges), labels_of(row.labels),
        )
        for row, (key, items) in zip(rows, lines.items(), strict=True)
    ]  # fmt: skip


def _with_parts(tx: Connection, found: list[Order]) -> list[Order]:
    """Return the orders with their shipments and returns. Reads nothing of orders without shipped or returned units."""
    shipped = [order.key for order in found if any(item.shipped for item in order.items)]
    returned = [order.key for order in found if any(item.returned for item in order.items)]
    if not shipped and not returned:
        return found
    shipped_parts, returned_parts = shipments.of(tx, shipped), returns.of(tx, returned)
    return [
        replace(
            order,
            shipments=tuple(shipped_parts.get(order.key, ())),
            returns=tuple(returned_parts.get(order.key, ())),
        )
        for order in found
    ]


def _status_row(order: Order) -> dict[str, object]:
    return {name: getattr(order, name) for name in (*_KEY, *_STATUS)}


def _totals_row(order: Order) -> dict[str, object]:
    charges = packed_charges(order.charges)
    return {"tenant": order.tenant, "id": order.id, "total_amount": order.total_amount, "charges": charges}


_KEY: dict[str, TypeEngine[Any]] = {"tenant": Text(), "id": Id()}

_UNITS: dict[str, TypeEngine[Any]] = {
    "shipped": BigInteger(),
    "cancelled": BigInteger(),
    "returned": BigInteger(),
}

_LINE_UNITS = {"quantity": BigInteger(), **_UNITS}

_TOTALS: dict[str, TypeEngine[Any]] = {"total_amount": Amount(), "charges": Text()}

_STATUS: dict[str, TypeEngine[Any]] = {
    "status": Text(),
    "status_reason": Text(),
    "reserved_until": Timestamp(),
    "version": BigInteger(),
    "updated_at": Timestamp(),
}


def _has_key(table: Table, given: Subquery) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions that join a table with the keys of orders. The index on the order's id serves the join."""
    order_id = table.c.id if table is _orders else table.c.order_id
    return (*join_rows(order_id, given.c.id), table.c.tenant == given.c.tenant)


_insert_orders = insert_into(
    _orders, *(column.name for column in COLUMNS), or_ignore=True, returning=(_orders.c.tenant, _orders.c.id)
)
_insert_items = insert_into(
    _items, "tenant", "order_id", "product_id", "quantity", "price", "location", returning=(_items.c.id,)
)
_insert_labels = insert_into(_labels, "tenant", "order_id", "name", "value", "user_id", "created_at")
_load = Statement(lambda given: select(*COLUMNS).where(*_has_key(_orders, given)), **_KEY)
_lock = Statement(
    lambda given: select(*COLUMNS).where(*_has_key(_orders, given)).order_by(_orders.c.id).with_for_update(of=_orders),
    **_KEY,
)
_statuses_of = Statement(
    lambda given: select(
        _orders.c.tenant, _orders.c.id, _orders.c.status, _orders.c.version, _orders.c.updated_at
    ).where(*_has_key(_orders, given)),
    **_KEY,
)
_items_of = Statement(
    lambda given: (
        select(
            *(_items.c[name] for name in ("tenant", "order_id", "id", "product_id", "quantity", "price", "location")),
            *(_items.c[name] for name in _UNITS),
        )
        .where(*_has_key(_items, given))
        .order_by(_items.c.id)
    ),
    **_KEY,
)
_set_status = Statement(
    lambda given: update(_orders).values({name: given.c[name] for name in _STATUS}).where(*_has_key(_orders, given)),
    **_KEY,
    **_STATUS,
)
_with_cancelled_units = Statement(
    lambda given: (
        select(_items.c.tenant, _items.c.order_id).where(*_has_key(_items, given), _items.c.cancelled > 0).distinct()
    ),
    **_KEY,
)
_set_units = Statement(
    lambda given: (
        update(_items)
        .values({name: given.c[name] for name in _LINE_UNITS})
        # The ids are those of lines that were read by tenant, and are unique over all tenants.
        .where(*join_rows(_items.c.id, given.c.id))
    ),
    id=BigInteger(),
    **_LINE_UNITS,
)
_set_totals = Statement(
    lambda given: update(_orders).values({name: given.c[name] for name in _TOTALS}).where(*_has_key(_orders, given)),
    **_KEY,
    **_TOTALS,
)
