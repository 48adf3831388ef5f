"""Second half of the checker: compares the events on Kafka with each other and with the snapshot of the databases."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.faults.history import DEFAULT_TENANT, Event, Snapshot
from tests.faults.item_counters import ItemCounters, allocations_of
from tests.faults.order_units import OrderUnits

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
    "HELD": {"CONFIRMED", "EXPIRED", "RELEASED", "REPLACED"},
    "CONFIRMED": {"RELEASED", "FULFILLED", "REPLACED"},
    "EXPIRED": {"REPLACED"},
    "RELEASED": set(),
    "FULFILLED": set(),
    "REPLACED": set(),
}
_ORDER_STATES = {
    "ORDER_CREATED": "PENDING",
    **{f"ORDER_{status}": status for status in ("CONFIRMED", "PROCESSING", "SHIPPED", "DELIVERED", "CANCELLED")},
}
# Event of a change that leaves the order's status as it is → the statuses in which the change is legal.
_UNIT_CHANGES = {
    "ORDER_PARTIALLY_SHIPPED": {"PROCESSING"},
    "ORDER_ITEMS_CANCELLED": {"PENDING", "CONFIRMED", "PROCESSING"},
    "ORDER_CHANGED": {"PENDING", "CONFIRMED", "PROCESSING"},
    "ORDER_EXTENDED": {"PENDING"},
    "ORDER_RETURNED": {"PROCESSING", "SHIPPED", "DELIVERED"},
}
_RESERVATION_STATES = {
    "STOCK_RESERVED": "HELD",
    "STOCK_RESERVATION_CONFIRMED": "CONFIRMED",
    "STOCK_RESERVATION_EXPIRED": "EXPIRED",
    "STOCK_RELEASED": "RELEASED",
    "STOCK_FULFILLED": "FULFILLED",
}
_SPLIT = "STOCK_RESERVATION_CHANGED"


@dataclass
class EventHistories:
    """From first occurrences: statuses by order, states by reservation, units added by item, each in event order.

    `extended` are the orders whose stock was held for longer.
    `returned` are the returned units by item, which are not in `additions`. `restocked` are the returned units that the
    orders have reported, by product and location. `changed` are the units that clients moved to an item, by item; if
    negative, away from it. `movements` are the effects of these changes by reference: pairs of product and movement.
    """

    orders: dict[str, list[str]] = field(default_factory=dict)
    extended: set[str] = field(default_factory=set)
    units: dict[str, OrderUnits] = field(default_factory=dict)
    reservations: dict[str, list[str]] = field(default_factory=dict)
    additions: dict[int, list[int]] = field(default_factory=dict)
    returned: dict[int, int] = field(default_factory=dict)
    restocked: Counter[tuple[int, str]] = field(default_factory=Counter)
    changed: dict[int, int] = field(default_factory=dict)
    movements: dict[str, list[tuple[int, tuple[str, int, int]]]] = field(default_factory=dict)


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
        if event.topic == "order-events":
            expected = event.data["id"]
        else:
            product = event.data["product_id"]
            expected = str(product) if event.tenant == DEFAULT_TENANT else f"{event.tenant}/{product}"
        if event.key != expected:
            yield f"an event of {event.tenant} has the key {event.key}: {event.type}"


def _check_orders(events: Sequence[Event], snapshot: Snapshot, histories: EventHistories) -> Iterator[str]:
    by_order = _group((event.data["id"], event) for event in events if event.topic == "order-events")
    for order_id, of_order in by_order.items():
        name = f"order {order_id}"
        statuses = histories.orders[order_id] = []
        units = histories.units[order_id] = OrderUnits(name)
        for event in of_order:
            yield from units.add(event)
            if event.type in _ORDER_STATES:
                statuses.append(_ORDER_STATES[event.type])
            elif not statuses or statuses[-1] not in _UNIT_CHANGES.get(event.type, ()):
                yield f"{name}: {event.type} follows {statuses}"
            if event.type == "ORDER_EXTENDED":
                histories.extended.add(order_id)
        yield from _check_changes(name, statuses, ORDER_CHANGES)
        yield from _check_numbers(name, of_order)
        histories.restocked.update(units.restocked)
        versions = [event.data["version"] for event in of_order]
        if versions != list(range(1, len(of_order) + 1)):
            yield f"{name}: its events have the versions {versions}"
        order = snapshot.orders.get(order_id)
        if order is None:
            yield f"{name}: its events are {statuses}, but there is no such order"
        elif ([order.status], order.version) != (statuses[-1:], len(of_order)):
            yield f"{name} is {order.status} in version {order.version}, but its events are {statuses}"
    for order_id in snapshot.orders.keys() - by_order.keys():
        yield f"order {order_id} has no events"


def _check_reservations(events: Sequence[Event], snapshot: Snapshot, histories: EventHistories) -> Iterator[str]:
    by_id: dict[str, list[Event]] = {}
    let_go = _LetGo(histories.units)
    for event in events:
        if event.type in _RESERVATION_STATES:
            by_id.setdefault(event.data["reservation_id"], []).append(event)
            histories.reservations.setdefault(event.data["reservation_id"], []).append(_RESERVATION_STATES[event.type])
            yield from let_go.check(event)
        elif event.type == _SPLIT:
            by_id.setdefault(event.data["reservation_id"], []).append(event)
            yield from _split(event, snapshot, histories)
    for reservation_id, states in histories.reservations.items():
        of_reservation = by_id.get(reservation_id, [])
        name = f"reservation {reservation_id}"
        yield from _check_changes(name, states, RESERVATION_CHANGES)
        yield from _check_numbers(name, of_reservation)
        reservation = snapshot.reservations.get(reservation_id)
        if reservation is None:
            yield f"{name}: its events are {states}, but there is no such reservation"
        elif reservation.state != states[-1]:
            yield f"{name} is {reservation.state}, but its events are {states}"
        elif reservation.was_confirmed != ("CONFIRMED" in states):
            # Confirmation is the only state change that may be left out, so the other events do not reveal that its
            # event is missing.
            confirmed = "confirmed" if reservation.was_confirmed else "never confirmed"
            yield f"{name} was {confirmed}, but its events are {states}"
        elif any(allocations_of(event) != reservation.allocations for event in of_reservation):
            yield f"{name}: its events have other allocations than {reservation.allocations}"
    for reservation_id in snapshot.reservations.keys() - histories.reservations.keys():
        yield f"reservation {reservation_id} has no events"


class _LetGo:
    """Counts the units that each order has, shipped ones included, and checks that it has all units that it keeps.

    The event of a release has the version of the order that caused it. A held order expires as a whole, so it is not
    checked after its first expired reservation.
    """

    def __init__(self, orders: Mapping[str, OrderUnits]) -> None:
        self._orders = orders
        self._units: Counter[tuple[str, int]] = Counter()
        self._expired: set[tuple[str, int]] = set()

    def check(self, event: Event) -> Iterator[str]:
        key = event.data.get("order_id", ""), event.data["product_id"]
        units = sum(allocations_of(event).values())
        if event.type == "STOCK_RESERVED":
            self._units[key] += units
        elif event.type == "STOCK_RESERVATION_EXPIRED":
            self._expired.add(key)
        elif event.type == "STOCK_RELEASED":
            self._units[key] -= units
            version = event.data.get("order_version", 0)
            kept = self._orders[key[0]].kept.get(version, {}).get(key[1], 0) if key[0] in self._orders else 0
            if self._units[key] < kept and key not in self._expired:
                yield (
                    f"order {key[0]} keeps {kept} units of {key[1]} in version {version}, but {units} units were let go"
                    f" and {self._units[key]} are left"
                )


def _split(event: Event, snapshot: Snapshot, histories: EventHistories) -> Iterator[str]:
    """Let the parts begin with the states of the reservation that they replace. Yields violations.

    If the reservation had expired, its units are reserved again, perhaps from other items, and the part begins with
    STOCK_RESERVED.
    """
    states = histories.reservations.setdefault(event.data["reservation_id"], [])
    has_expired = states[-1:] == ["EXPIRED"]
    units: Counter[int] = Counter()
    for part in event.data["parts"]:
        if part["reservation_id"] in histories.reservations:
            yield f"reservation {part['reservation_id']} has events before it replaces another one"
        histories.reservations[part["reservation_id"]] = [] if has_expired else list(states)
        allocations = {each["item_id"]: each["quantity"] for each in part["allocations"]}
        units.update(allocations)
        reservation = snapshot.reservations.get(part["reservation_id"])
        if reservation is not None and reservation.allocations != allocations:
            yield f"{reservation} was reported with the allocations {allocations}"
    replaced = allocations_of(event)
    if units.total() != sum(replaced.values()) or (units != replaced and not has_expired):
        yield f"reservation {event.data['reservation_id']}: its parts have the units {dict(units)}"
    states.append("REPLACED")


def _check_items(events: Sequence[Event], snapshot: Snapshot, histories: EventHistories) -> Iterator[str]:
    """Recompute the counters of each item event by event. Reserved units must never exceed the quantity."""
    counters: dict[int, ItemCounters] = {}
    for event in events:
        if event.type == "STOCK_UPDATED":
            item_id = event.data["item_id"]
            yield from counters.setdefault(item_id, ItemCounters(item_id)).update(event)
        elif event.type == "STOCK_MOVED":
            item_id = event.data["item_id"]
            yield from counters.setdefault(item_id, ItemCounters(item_id)).move(event)
            if reference := event.data.get("reference"):
                movement = event.data["location"], event.data["quantity"], event.data.get("withheld", 0)
                histories.movements.setdefault(reference, []).append((event.data["product_id"], movement))
        elif event.type in _RESERVATION_STATES:
            for item_id, units in allocations_of(event).items():
                yield from counters.setdefault(item_id, ItemCounters(item_id)).apply(event, units)
    yield from _check_counters(counters, snapshot, histories)
    for item_id in counters.keys() - snapshot.items.keys():
        yield f"item {item_id} has events, but there is no such item"


def _check_counters(
    counters: Mapping[int, ItemCounters], snapshot: Snapshot, histories: EventHistories
) -> Iterator[str]:
    for item in snapshot.items.values():
        computed = counters.get(item.id, ItemCounters(item.id))
        came = Counter(computed.returned) + Counter(units for units in computed.changed if units > 0)
        histories.additions[item.id] = list((Counter(computed.additions) - came).elements())
        histories.returned[item.id] = sum(computed.returned)
        histories.changed[item.id] = sum(computed.changed)
        if came - Counter(computed.additions):
            yield f"item {item.id}: the returned and moved units {dict(came)} were not all added"
        if Counter(computed.removals) != Counter(-units for units in computed.changed if units < 0):
            yield f"item {item.id}: {computed.removals} units were removed, but its movements are {computed.changed}"
        if (computed.quantity, computed.reserved, computed.version) != (item.quantity, item.reserved, item.version):
            yield f"item {item.id} is {item}, but by its events it is {computed}"
        if (computed.moved, computed.moved_out) != (item.quantity, computed.fulfilled):
            yield f"item {item.id} is {item}, but its movements add up to {computed}"
        if not computed.withheld == computed.moved_withheld == item.withheld == item.withholdings:
            yield f"item {item.id} is {item}, but its withheld units are {computed}"


def _group(pairs: Iterable[tuple[str, Event]]) -> dict[str, list[Event]]:
    grouped: dict[str, list[Event]] = {}
    for key, event in pairs:
        grouped.setdefault(key, []).append(event)
    return grouped


def _check_changes(name: str, states: Sequence[str], legal: dict[str | None, set[str]]) -> Iterator[str]:
    for before, after in zip([None, *states], states, strict=False):
        if after not in legal[before]:
            yield f"{name}: {after} follows {before or 'nothing'}"


def _check_numbers(name: str, events: Sequence[Event]) -> Iterator[str]:
    numbers = [event.sequence for event in events]
    if numbers != sorted(numbers):
        yield f"{name}: the numbers of its events are not ascending: {numbers}"
