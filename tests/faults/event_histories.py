"""Second half of the checker: compares the events on Kafka with each other and with the snapshot of the databases."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.faults.history import Event, Snapshot

ORDER_STEPS = {
    None: {"PENDING"},
    "PENDING": {"CONFIRMED", "CANCELLED"},
    "CONFIRMED": {"PROCESSING", "CANCELLED"},
    "PROCESSING": {"SHIPPED", "CANCELLED"},
    "SHIPPED": {"DELIVERED"},
    "DELIVERED": set(),
    "CANCELLED": set(),
}
HOLD_STEPS = {
    None: {"HELD"},
    "HELD": {"CONFIRMED", "EXPIRED", "RELEASED"},
    "CONFIRMED": {"RELEASED", "FULFILLED"},
    "EXPIRED": set(),
    "RELEASED": set(),
    "FULFILLED": set(),
}
_ORDER_STATES = {
    "ORDER_CREATED": "PENDING",
    **{f"ORDER_{status}": status for status in ("CONFIRMED", "PROCESSING", "SHIPPED", "DELIVERED", "CANCELLED")},
}
_HOLD_STATES = {
    "STOCK_RESERVED": "HELD",
    "STOCK_RESERVATION_CONFIRMED": "CONFIRMED",
    "STOCK_RESERVATION_EXPIRED": "EXPIRED",
    "STOCK_RELEASED": "RELEASED",
    "STOCK_FULFILLED": "FULFILLED",
}


@dataclass
class EventHistories:
    """From first occurrences: statuses by order, states by reservation, units added by item, each in event order."""

    orders: dict[str, list[str]] = field(default_factory=dict)
    holds: dict[str, list[str]] = field(default_factory=dict)
    put_in: dict[int, list[int]] = field(default_factory=dict)


def check_events(events: Iterable[Event], snapshot: Snapshot) -> tuple[EventHistories, list[str]]:
    """Return the event histories and the violations found in them."""
    first, wrong = _first_occurrences(events)
    histories = EventHistories()
    wrong += _orders(first, snapshot, histories)
    wrong += _holds(first, snapshot, histories)
    wrong += _items(first, snapshot, histories)
    return histories, wrong


def _first_occurrences(events: Iterable[Event]) -> tuple[list[Event], list[str]]:
    """Each event once, in partition order. Reports a repeat that differs from its first occurrence."""
    wrong: list[str] = []
    first: dict[str, Event] = {}
    numbers: dict[tuple[str, int], str] = {}
    partitions: dict[tuple[str, str], int] = {}
    for event in sorted(events, key=lambda each: (each.topic, each.partition, each.offset)):
        known = first.setdefault(event.id, event)
        if (known.key, known.type, known.sequence, known.data) != (event.key, event.type, event.sequence, event.data):
            wrong.append(f"event {event.id} came as two different events: {known.type} and {event.type}")
        holder = numbers.setdefault((event.topic, event.sequence), event.id)
        if holder != event.id:
            wrong.append(f"{event.topic}: the number {event.sequence} was given to the events {holder} and {event.id}")
        if partitions.setdefault((event.topic, event.key), event.partition) != event.partition:
            wrong.append(f"{event.topic}: the key {event.key} is in two partitions")
    return list(first.values()), wrong


def _orders(events: Sequence[Event], snapshot: Snapshot, histories: EventHistories) -> Iterator[str]:
    told = _by((event.data["id"], event) for event in events if event.type in _ORDER_STATES)
    for order_id, story in told.items():
        states = histories.orders[order_id] = [_ORDER_STATES[event.type] for event in story]
        name = f"order {order_id}"
        yield from _steps(name, states, ORDER_STEPS)
        yield from _ascending(name, story)
        versions = [event.data["version"] for event in story]
        if versions != list(range(1, len(story) + 1)):
            yield f"{name}: versions {versions} were told"
        order = snapshot.orders.get(order_id)
        if order is None:
            yield f"{name}: {states} was told, and there is no such order"
        elif (order.status, order.version) != (states[-1], len(story)):
            yield f"{name} is {order.status} in version {order.version}, told were {states}"
    for order_id in snapshot.orders.keys() - told.keys():
        yield f"order {order_id}: nothing was told of it"


def _holds(events: Sequence[Event], snapshot: Snapshot, histories: EventHistories) -> Iterator[str]:
    told = _by((event.data["reservation_id"], event) for event in events if event.type in _HOLD_STATES)
    for reservation_id, story in told.items():
        states = histories.holds[reservation_id] = [_HOLD_STATES[event.type] for event in story]
        name = f"reservation {reservation_id}"
        yield from _steps(name, states, HOLD_STEPS)
        yield from _ascending(name, story)
        reservation = snapshot.reservations.get(reservation_id)
        if reservation is None:
            yield f"{name}: {states} was told, and there is no such reservation"
        elif reservation.state != states[-1]:
            yield f"{name} is {reservation.state}, told were {states}"
        elif reservation.was_confirmed != ("CONFIRMED" in states):
            # Confirmation is the only optional transition, so the other events do not reveal that its event is missing.
            yield f"{name} was {'confirmed' if reservation.was_confirmed else 'never confirmed'}, told were {states}"
        elif any(_parts(event) != reservation.allocations for event in story):
            yield f"{name}: other allocations were told than {reservation.allocations}"
    for reservation_id in snapshot.reservations.keys() - told.keys():
        yield f"reservation {reservation_id}: nothing was told of it"


def _items(events: Sequence[Event], snapshot: Snapshot, histories: EventHistories) -> Iterator[str]:
    """Recompute the counters of each item event by event. Reserved units must never exceed the quantity."""
    shelves: dict[int, _Shelf] = {}
    for event in events:
        if event.type == "STOCK_UPDATED":
            shelf = shelves.setdefault(event.data["item_id"], _Shelf(event.data["item_id"]))
            yield from shelf.told(event)
        elif event.type in _HOLD_STATES:
            for item_id, units in _parts(event).items():
                yield from shelves.setdefault(item_id, _Shelf(item_id)).moved(event, units)
    for item in snapshot.items.values():
        shelf = shelves.get(item.id, _Shelf(item.id))
        histories.put_in[item.id] = shelf.put_in
        if (shelf.quantity, shelf.reserved, shelf.version) != (item.quantity, item.reserved, item.version):
            yield f"item {item.id} is {item}, by its events {shelf}"
    for item_id in shelves.keys() - snapshot.items.keys():
        yield f"item {item_id} was told of, and there is no such item"


@dataclass
class _Shelf:
    item_id: int
    quantity: int = 0
    reserved: int = 0
    version: int = 0
    sequence: int = 0
    put_in: list[int] = field(default_factory=list)

    def told(self, event: Event) -> Iterator[str]:
        yield from self._next(event)
        data = event.data
        if data["version"] != self.version + 1 or data["reserved_quantity"] != self.reserved:
            yield f"item {self.item_id}: {dict(data)} was told after {self}"
        added = data["quantity"] - self.quantity
        if added < 0:
            yield f"item {self.item_id}: {-added} units went without a word"
        elif added:
            self.put_in.append(added)
        self.quantity, self.reserved, self.version = data["quantity"], data["reserved_quantity"], data["version"]

    def moved(self, event: Event, units: int) -> Iterator[str]:
        yield from self._next(event)
        if event.type == "STOCK_RESERVED":
            self.reserved += units
        elif event.type != "STOCK_RESERVATION_CONFIRMED":
            self.reserved -= units
        if event.type == "STOCK_FULFILLED":
            self.quantity -= units
        if not 0 <= self.reserved <= self.quantity:
            yield f"item {self.item_id}: {self.reserved} of {self.quantity} units are promised after {event.type}"

    def _next(self, event: Event) -> Iterator[str]:
        if event.sequence <= self.sequence:
            yield f"item {self.item_id}: number {event.sequence} was told after {self.sequence}"
        self.sequence = event.sequence


def _by(pairs: Iterable[tuple[str, Event]]) -> dict[str, list[Event]]:
    grouped: dict[str, list[Event]] = {}
    for key, event in pairs:
        grouped.setdefault(key, []).append(event)
    return grouped


def _parts(event: Event) -> dict[int, int]:
    return {part["item_id"]: part["quantity"] for part in event.data["allocations"]}


def _steps(name: str, states: Sequence[str], legal: dict[str | None, set[str]]) -> Iterator[str]:
    for before, after in zip([None, *states], states, strict=False):
        if after not in legal[before]:
            yield f"{name}: {after} was told after {before or 'nothing'}"


def _ascending(name: str, story: Sequence[Event]) -> Iterator[str]:
    numbers = [event.sequence for event in story]
    if numbers != sorted(numbers):
        yield f"{name}: its events came with the numbers {numbers}"
