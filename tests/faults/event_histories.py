"""Second half of the checker: compares the events on Kafka with each other and with the snapshot of the databases."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.faults.history import DEFAULT_TENANT, Event, Snapshot

# Status or state → the next ones that are legal.
ORDER_CHANGES = {
    None: {"PENDING"},
    "PENDING": {"CONFIRMED", "CANCELLED"},
    "CONFIRMED": {"PROCESSING", "CANCELLED"},
    "PROCESSING": {"SHIPPED", "CANCELLED"},
    "SHIPPED": {"DELIVERED"},
    "DELIVERED": set(),
    "CANCELLED": set(),
}
RESERVATION_CHANGES = {
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
_RESERVATION_STATES = {
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
    reservations: dict[str, list[str]] = field(default_factory=dict)
    additions: dict[int, list[int]] = field(default_factory=dict)


def check_events(events: Iterable[Event], snapshot: Snapshot) -> tuple[EventHistories, list[str]]:
    """Return the event histories and one message for each violation found in them."""
    first, violations = first_occurrences(events)
    histories = EventHistories()
    violations += _check_keys(first)
    violations += _check_orders(first, snapshot, histories)
    violations += _check_reservations(first, snapshot, histories)
    violations += _check_items(first, snapshot, histories)
    return histories, violations


def first_occurrences(events: Iterable[Event]) -> tuple[list[Event], list[str]]:
    """Each event once, in partition order. Violations: differing repeats, reused numbers, keys in two partitions."""
    violations: list[str] = []
    first: dict[str, Event] = {}
    numbers: dict[tuple[str, int], str] = {}
    partitions: dict[tuple[str, str], int] = {}
    for event in sorted(events, key=lambda each: (each.topic, each.partition, each.offset)):
        known = first.setdefault(event.id, event)
        if (known.key, known.type, known.sequence, known.data) != (event.key, event.type, event.sequence, event.data):
            violations.append(f"two different events have the id {event.id}: {known.type} and {event.type}")
        holder = numbers.setdefault((event.topic, event.sequence), event.id)
        if holder != event.id:
            numbered = f"{event.topic}: the number {event.sequence}"
            violations.append(f"{numbered} was assigned to the events {holder} and {event.id}")
        if partitions.setdefault((event.topic, event.key), event.partition) != event.partition:
            violations.append(f"{event.topic}: the key {event.key} is in two partitions")
    return list(first.values()), violations


def _check_keys(events: Iterable[Event]) -> Iterator[str]:
    for event in events:
        if event.type in _ORDER_STATES:
            expected = event.data["id"]
        else:
            product = event.data["product_id"]
            expected = str(product) if event.tenant == DEFAULT_TENANT else f"{event.tenant}/{product}"
        if event.key != expected:
            yield f"an event of {event.tenant} has the key {event.key}: {event.type}"


def _check_orders(events: Sequence[Event], snapshot: Snapshot, histories: EventHistories) -> Iterator[str]:
    by_order = _group((event.data["id"], event) for event in events if event.type in _ORDER_STATES)
    for order_id, of_order in by_order.items():
        statuses = histories.orders[order_id] = [_ORDER_STATES[event.type] for event in of_order]
        name = f"order {order_id}"
        yield from _check_changes(name, statuses, ORDER_CHANGES)
        yield from _check_numbers(name, of_order)
        versions = [event.data["version"] for event in of_order]
        if versions != list(range(1, len(of_order) + 1)):
            yield f"{name}: its events have the versions {versions}"
        order = snapshot.orders.get(order_id)
        if order is None:
            yield f"{name}: its events are {statuses}, but there is no such order"
        elif (order.status, order.version) != (statuses[-1], len(of_order)):
            yield f"{name} is {order.status} in version {order.version}, but its events are {statuses}"
    for order_id in snapshot.orders.keys() - by_order.keys():
        yield f"order {order_id} has no events"


def _check_reservations(events: Sequence[Event], snapshot: Snapshot, histories: EventHistories) -> Iterator[str]:
    by_id = _group((event.data["reservation_id"], event) for event in events if event.type in _RESERVATION_STATES)
    for reservation_id, of_reservation in by_id.items():
        states = histories.reservations[reservation_id] = [_RESERVATION_STATES[event.type] for event in of_reservation]
        name = f"reservation {reservation_id}"
        yield from _check_changes(name, states, RESERVATION_CHANGES)
        yield from _check_numbers(name, of_reservation)
        reservation = snapshot.reservations.get(reservation_id)
        if reservation is None:
            yield f"{name}: its events are {states}, but there is no such reservation"
        elif reservation.state != states[-1]:
            yield f"{name} is {reservation.state}, but its events are {states}"
        elif reservation.was_confirmed != ("CONFIRMED" in states):
            # Confirmation is the only optional transition, so the other events do not reveal that its event is missing.
            confirmed = "confirmed" if reservation.was_confirmed else "never confirmed"
            yield f"{name} was {confirmed}, but its events are {states}"
        elif any(_allocations(event) != reservation.allocations for event in of_reservation):
            yield f"{name}: its events have other allocations than {reservation.allocations}"
    for reservation_id in snapshot.reservations.keys() - by_id.keys():
        yield f"reservation {reservation_id} has no events"


def _check_items(events: Sequence[Event], snapshot: Snapshot, histories: EventHistories) -> Iterator[str]:
    """Recompute the counters of each item event by event. Reserved units must never exceed the quantity."""
    counters: dict[int, _ItemCounters] = {}
    for event in events:
        if event.type == "STOCK_UPDATED":
            item_id = event.data["item_id"]
            yield from counters.setdefault(item_id, _ItemCounters(item_id)).update(event)
        elif event.type == "STOCK_MOVED":
            item_id = event.data["item_id"]
            yield from counters.setdefault(item_id, _ItemCounters(item_id)).move(event)
        elif event.type in _RESERVATION_STATES:
            for item_id, units in _allocations(event).items():
                yield from counters.setdefault(item_id, _ItemCounters(item_id)).apply(event, units)
    for item in snapshot.items.values():
        computed = counters.get(item.id, _ItemCounters(item.id))
        histories.additions[item.id] = computed.additions
        if (computed.quantity, computed.reserved, computed.version) != (item.quantity, item.reserved, item.version):
            yield f"item {item.id} is {item}, but by its events it is {computed}"
        if (computed.moved, computed.moved_out) != (item.quantity, computed.fulfilled):
            yield f"item {item.id} is {item}, but its movements add up to {computed}"
    for item_id in counters.keys() - snapshot.items.keys():
        yield f"item {item_id} has events, but there is no such item"


@dataclass
class _ItemCounters:
    """The counters of an item after its events so far."""

    item_id: int
    quantity: int = 0
    reserved: int = 0
    version: int = 0
    sequence: int = 0
    additions: list[int] = field(default_factory=list)
    fulfilled: int = 0
    revision: int = 0
    moved: int = 0
    """The sum of all movements."""
    moved_out: int = 0
    """The units of the movements of the kind FULFILLED."""

    def update(self, event: Event) -> Iterator[str]:
        """Apply a STOCK_UPDATED event. Yields violations."""
        yield from self._check_number(event)
        data = event.data
        if data["version"] != self.version + 1 or data["reserved_quantity"] != self.reserved:
            yield f"item {self.item_id}: {dict(data)} follows {self}"
        added = data["quantity"] - self.quantity
        if added < 0:
            yield f"item {self.item_id}: {-added} units were removed without an event"
        elif added:
            self.additions.append(added)
        self.quantity, self.reserved, self.version = data["quantity"], data["reserved_quantity"], data["version"]

    def move(self, event: Event) -> Iterator[str]:
        """Apply a STOCK_MOVED event. Yields violations."""
        data = event.data
        self.moved += data["quantity"]
        if data["kind"] == "FULFILLED":
            self.moved_out -= data["quantity"]
        if (data["revision"], data["quantity_after"]) != (self.revision + 1, self.moved):
            yield f"item {self.item_id}: the movement {dict(data)} follows revision {self.revision}"
        self.revision = data["revision"]

    def apply(self, event: Event, units: int) -> Iterator[str]:
        """Apply an event of a reservation that draws this many units from the item. Yields violations."""
        yield from self._check_number(event)
        if event.type == "STOCK_RESERVED":
            self.reserved += units
        elif event.type != "STOCK_RESERVATION_CONFIRMED":
            self.reserved -= units
        if event.type == "STOCK_FULFILLED":
            self.quantity -= units
            self.fulfilled += units
        if not 0 <= self.reserved <= self.quantity:
            yield f"item {self.item_id}: {self.reserved} of {self.quantity} units are reserved after {event.type}"

    def _check_number(self, event: Event) -> Iterator[str]:
        if event.sequence <= self.sequence:
            yield f"item {self.item_id}: number {event.sequence} follows {self.sequence}"
        self.sequence = event.sequence


def _group(pairs: Iterable[tuple[str, Event]]) -> dict[str, list[Event]]:
    grouped: dict[str, list[Event]] = {}
    for key, event in pairs:
        grouped.setdefault(key, []).append(event)
    return grouped


def _allocations(event: Event) -> dict[int, int]:
    return {part["item_id"]: part["quantity"] for part in event.data["allocations"]}


def _check_changes(name: str, states: Sequence[str], legal: dict[str | None, set[str]]) -> Iterator[str]:
    for before, after in zip([None, *states], states, strict=False):
        if after not in legal[before]:
            yield f"{name}: {after} follows {before or 'nothing'}"


def _check_numbers(name: str, events: Sequence[Event]) -> Iterator[str]:
    numbers = [event.sequence for event in events]
    if numbers != sorted(numbers):
        yield f"{name}: the numbers of its events are not ascending: {numbers}"
