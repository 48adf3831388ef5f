"""Compares the results of all calls of a tenant, and its events on Kafka, with its rows in both databases.

The rules, for a system at rest:

- stock in = stock on hand + shipped stock; reserved = the sum of the active reservations; never oversold;
- an acknowledged call took effect once; a refused one not at all; one without a response had its whole effect or none;
- there is no effect without a call;
- each effect has its events, none is missing, repeats have the same id, first occurrences are in order;
- a tenant sees its own rows only, and no error names a row of another tenant.

Tenants use the same products, users, order ids and request ids. So a row, a unit or an event that reaches the wrong
tenant is an effect without a call there.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tests.faults.event_histories import EventHistories, check_events, first_occurrences
from tests.faults.history import (
    DEFECTS,
    EXTENDED,
    AddStock,
    Call,
    CancelUnits,
    ChangeLines,
    ChangeStatus,
    ChangeStock,
    CreateOrder,
    History,
    Order,
    Release,
    Reservation,
    Reserve,
    ReturnUnits,
    ShipUnits,
    Snapshot,
)

ACTIVE = {"HELD", "CONFIRMED"}

# Status of an order → the states that the reservations of its open units may have.
OPEN_STATES = {
    # A PENDING order with confirmed stock is an interrupted confirmation, which a repeated call completes.
    "PENDING": {"HELD", "CONFIRMED"},
    "CONFIRMED": {"CONFIRMED"},
    "PROCESSING": {"CONFIRMED"},
}


def check_tenants(histories: Sequence[History]) -> list[str]:
    """Return one message for each violation of a rule in the histories of all tenants of a run."""
    violations = [f"{history.tenant}: {text}" for history in histories for text in check(history)]
    # The ids and numbers of events are unique over all tenants.
    violations += first_occurrences(event for history in histories for event in history.events)[1]
    for history in histories:
        foreign = {name for other in histories if other is not history for name in _names_of(other)}
        for call in history.calls:
            for text in call.texts:
                violations += [
                    f"{history.tenant}: an error names {name} of another tenant: {text}"
                    for name in foreign.intersection(_WORD.findall(text))
                ]
    return violations


def _names_of(history: History) -> set[str]:
    """The words that only this tenant may read, without the ids of items: these are small numbers, which occur
    elsewhere too.
    """
    return {history.tenant, *history.snapshot.reservations, *history.snapshot.orders}


_WORD = re.compile(r"[\w-]+")


def check(history: History) -> list[str]:
    """Return one message for each violation of a rule. Empty for a correct history."""
    histories, violations = check_events(history.events, history.snapshot)
    index = CallIndex(history.calls)
    violations += _check_results(history)
    violations += _check_stock(history.snapshot, histories)
    violations += _check_returns(history.snapshot, histories)
    violations += _check_additions(index, history.snapshot, histories)
    violations += _check_stock_changes(index, histories)
    outcomes = ChangeOutcomes(index, histories)
    violations += _check_reservations(index, history.snapshot, outcomes)
    violations += _check_orders(index, history.snapshot, histories, outcomes)
    violations += _check_status_changes(index, histories)
    violations += _check_unit_changes(index, histories)
    violations += _check_dead_letters(history)
    violations += _check_pages(history)
    return violations


class CallIndex:
    """The calls by kind of operation and by the resource that they change."""

    def __init__(self, calls: Iterable[Call]) -> None:
        self.additions: dict[tuple[int, str], dict[int, Call]] = {}
        self.stock_changes: dict[str, Call] = {}
        self.reservations: dict[str, Call] = {}
        self.releases: dict[str, list[Call]] = {}
        self.orders: dict[int, Call] = {}
        self.changes: dict[tuple[str, str], list[Call]] = {}
        self.unit_changes: dict[str, Call] = {}
        self.unit_changes_of: dict[str, list[Call]] = {}
        for call in calls:
            match call.operation:
                case AddStock(product, location, units):
                    self.additions.setdefault((product, location), {})[units] = call
                case ChangeStock():
                    self.stock_changes[call.request_id] = call
                case Reserve(order_id):
                    self.reservations[order_id] = call
                case Release(reservation_id):
                    self.releases.setdefault(reservation_id, []).append(call)
                case CreateOrder(user_id):
                    self.orders[user_id] = call
                case ChangeStatus(order_id, status):
                    self.changes.setdefault((order_id, status), []).append(call)
                case ShipUnits(order_id) | CancelUnits(order_id) | ReturnUnits(order_id) | ChangeLines(order_id):
                    self.unit_changes[call.request_id] = call
                    self.unit_changes_of.setdefault(order_id, []).append(call)


class ChangeOutcomes:
    """The units that changes of lines wanted to add to orders, but did not."""

    def __init__(self, index: CallIndex, histories: EventHistories) -> None:
        self._not_added: dict[str, Counter[int]] = {}
        for order_id, calls in index.unit_changes_of.items():
            history = histories.units.get(order_id)
            effective = {request_id for request_id, _ in history.reports} if history else set()
            not_added = self._not_added[order_id] = Counter()
            for call in calls:
                if isinstance(call.operation, ChangeLines) and call.request_id not in effective:
                    not_added.update(dict(call.operation.added))

    def not_added(self, order_id: str) -> Counter[int]:
        """The units by product. Some of them may have been reserved; then they are released."""
        return self._not_added.get(order_id, Counter())


def _check_results(history: History) -> Iterator[str]:
    if history.unfinished:
        yield f"the system did not come to rest: {history.unfinished}"
    for call in history.calls:
        if len(set(call.answers)) > 1:
            yield f"{call.operation} returned different results: {sorted(map(str, set(call.answers)))}"
        for code in DEFECTS.intersection(call.infos):
            yield f"{call.operation} failed with {code}"
        if history.fault_free and call.infos:
            yield f"{call.operation} got no response although no fault was injected: {call.infos}"


def _check_stock(snapshot: Snapshot, histories: EventHistories) -> Iterator[str]:
    reserved: Counter[int] = Counter()
    shipped: Counter[int] = Counter()
    for reservation in snapshot.reservations.values():
        if sum(reservation.allocations.values()) != reservation.units:
            yield f"the allocations of {reservation} do not add up to its units"
        for item_id, units in reservation.allocations.items():
            item = snapshot.items.get(item_id)
            if item is None or item.product != reservation.product:
                yield f"{reservation} has an allocation from {item}"
            reserved[item_id] += units * (reservation.state in ACTIVE)
            shipped[item_id] += units * (reservation.state == "FULFILLED")
    for item in snapshot.items.values():
        added = sum(histories.additions.get(item.id, ()))
        added += histories.returned.get(item.id, 0) + histories.changed.get(item.id, 0)
        if added != item.quantity + shipped[item.id]:
            yield f"item {item.id}: {added} units added, but {item.quantity} on hand and {shipped[item.id]} shipped"
        if item.reserved != reserved[item.id]:
            yield f"item {item.id}: {item.reserved} units reserved, but {reserved[item.id]} in active reservations"
        if not 0 <= item.reserved <= item.quantity:
            yield f"item {item.id}: {item.reserved} of {item.quantity} units are reserved"


def _check_returns(snapshot: Snapshot, histories: EventHistories) -> Iterator[str]:
    items = {(item.product, item.location): item.id for item in snapshot.items.values()}
    for stock_key in items.keys() | histories.restocked.keys():
        restocked = histories.returned.get(items.get(stock_key, 0), 0)
        if restocked != histories.restocked[stock_key]:
            yield f"{restocked} units of {stock_key} were restocked, but {histories.restocked[stock_key]} came back"


def _check_additions(index: CallIndex, snapshot: Snapshot, histories: EventHistories) -> Iterator[str]:
    item_ids = {(item.product, item.location): item.id for item in snapshot.items.values()}
    for stock_key in item_ids.keys() | index.additions.keys():
        calls = index.additions.get(stock_key, {})
        additions = Counter(histories.additions.get(item_ids.get(stock_key, 0), ()))
        for units in calls.keys() | additions.keys():
            call = calls.get(units)
            if call is None:
                yield f"{units} units of {stock_key} were added without a call"
            else:
                yield from _check_effects(call, additions[units])
                if call.answers and call.answers[0] != item_ids.get(stock_key):
                    yield f"{call.operation} returned item {call.answers[0]}, but it is {item_ids.get(stock_key)}"


def _check_stock_changes(index: CallIndex, histories: EventHistories) -> Iterator[str]:
    """A change has all of its movements or none."""
    for reference in index.stock_changes.keys() | histories.movements.keys():
        call = index.stock_changes.get(reference)
        effects = histories.movements.get(reference, [])
        if call is None:
            yield f"stock was changed without a call: {effects}"
            continue
        assert isinstance(call.operation, ChangeStock)
        expected = [(call.operation.product, movement) for movement in call.operation.movements]
        yield from _check_effects(call, len(effects) // len(expected))
        if effects and sorted(effects) != sorted(expected):
            yield f"{call.operation} had the effects {effects}"


def _check_effects(call: Call, count: int) -> Iterator[str]:
    allowed = {"done": {1}, "refused": {0}, "unknown": {0, 1}}[call.fate]
    if count not in allowed:
        reasons = call.refusals or call.infos
        yield f"{call.operation} is {call.fate} {reasons or ''}, but took effect {count} times"


def _check_reservations(index: CallIndex, snapshot: Snapshot, outcomes: ChangeOutcomes) -> Iterator[str]:
    by_order = _by_order(snapshot.reservations)
    for order_id, call in index.reservations.items():
        assert isinstance(call.operation, Reserve)
        reservations = by_order.get(order_id, [])
        yield from _check_effects(call, len(reservations))
        for reservation in reservations:
            if (reservation.product, reservation.units) != (call.operation.product, call.operation.units):
                yield f"{call.operation} created {reservation}"
            if call.answers and call.answers[0] != reservation.id:
                yield f"{call.operation} returned {call.answers[0]}, but created {reservation.id}"
    for reservation_id, calls in index.releases.items():
        yield from _check_releases(calls, snapshot.reservations.get(reservation_id))
    for reservation in snapshot.reservations.values():
        if reservation.state == "RELEASED" and not _may_be_released(reservation, index, snapshot, outcomes):
            yield f"{reservation} was released without a call"


def _check_releases(calls: list[Call], reservation: Reservation | None) -> Iterator[str]:
    for call in calls:
        if reservation is None:
            yield f"{call.operation}: there is no such reservation"
            continue
        released = reservation.units if reservation.state == "RELEASED" else 0
        if call.answers and call.answers[0] != released:
            yield f"{call.operation} returned {call.answers[0]} units, but the reservation is {reservation}"


def _may_be_released(reservation: Reservation, index: CallIndex, snapshot: Snapshot, outcomes: ChangeOutcomes) -> bool:
    if any(call.fate != "refused" for call in index.releases.get(reservation.id, ())):
        return True
    if reservation.order_id in index.reservations:
        return False
    # A cancelled order releases its stock, and a change that fails releases its new units. A CreateOrder that failed to
    # store its order may release its stock, too.
    order = snapshot.orders.get(reservation.order_id)
    product = reservation.product
    return order is None or order.cancelled_units(product) > 0 or outcomes.not_added(order.id)[product] > 0


def _check_orders(
    index: CallIndex, snapshot: Snapshot, histories: EventHistories, outcomes: ChangeOutcomes
) -> Iterator[str]:
    yield from _check_created_orders(index, snapshot, histories)
    by_order = _by_order(snapshot.reservations)
    for order in snapshot.orders.values():
        # The units that an interrupted change has reserved stay until its intent ends.
        has_intent = order.id in snapshot.intents
        yield from _check_reservations_of(
            order, by_order.get(order.id, []), outcomes.not_added(order.id), has_intent=has_intent
        )
    for order_id, reservations in by_order.items():
        if order_id in snapshot.orders or order_id in index.reservations:
            continue
        if any(reservation.state in ACTIVE | {"FULFILLED"} for reservation in reservations):
            yield f"there is no order {order_id}, but it has {reservations}"


def _check_created_orders(index: CallIndex, snapshot: Snapshot, histories: EventHistories) -> Iterator[str]:
    by_user: dict[int, list[Order]] = {}
    for order in snapshot.orders.values():
        by_user.setdefault(order.user_id, []).append(order)
    for user_id in by_user.keys() - index.orders.keys():
        yield f"{by_user[user_id]} was created without a call"
    for user_id, call in index.orders.items():
        assert isinstance(call.operation, CreateOrder)
        orders = by_user.get(user_id, [])
        yield from _check_effects(call, len(orders))
        for order in orders:
            history = histories.units.get(order.id)
            added = history.added if history else Counter[int]()
            if order.lines != Counter(dict(call.operation.lines)) + added:
                yield f"{call.operation} created {order}, and changes have added {dict(added)}"
            if history and history.kept:
                kept = {product: order.kept_units(product) for product in order.lines}
                if kept != history.last_kept:
                    yield f"{order} keeps {kept}, but its last event has {history.last_kept}"
            if call.answers and call.answers[0] != order.id:
                yield f"{call.operation} returned {call.answers[0]}, but created {order.id}"


def _check_reservations_of(
    order: Order, reservations: list[Reservation], not_added: Counter[int], *, has_intent: bool
) -> Iterator[str]:
    current = [reservation for reservation in reservations if reservation.state != "REPLACED"]
    units: dict[str, Counter[int]] = {"active": Counter(), "FULFILLED": Counter(), "ended": Counter()}
    for reservation in current:
        kind = "active" if reservation.state in ACTIVE else reservation.state
        units[kind if kind in units else "ended"][reservation.product] += reservation.units
    products = order.lines.keys() | {reservation.product for reservation in current}
    # Each unit of the order has exactly one reservation. Units that failed changes did not add may have one, too.
    surplus = {product: sum(each[product] for each in units.values()) for product in products}
    surplus = {product: count - order.lines.get(product, 0) for product, count in surplus.items()}
    if any(not 0 <= count <= not_added[product] for product, count in surplus.items()):
        yield f"{order} has the reservations {reservations}"
    wrong = [
        reservation
        for reservation in current
        if reservation.state in ACTIVE and reservation.state not in OPEN_STATES.get(order.status, ())
    ]
    are_right = all(
        units["FULFILLED"][product] == order.shipped_units(product)
        and 0
        <= units["active"][product] - (order.kept_units(product) - order.shipped_units(product))
        <= (not_added[product] if has_intent else 0)
        for product in products
    )
    if wrong or not are_right:
        yield f"{order} is {order.status}, but has reservations in the wrong state: {wrong or current}"


def _check_status_changes(index: CallIndex, histories: EventHistories) -> Iterator[str]:
    for (order_id, status), calls in index.changes.items():
        has_event = (
            order_id in histories.extended if status == EXTENDED else status in histories.orders.get(order_id, ())
        )
        for call in calls:
            if call.fate == "done" and not has_event:
                yield f"{call.operation} succeeded, but has no event: {histories.orders.get(order_id)}"
    for order_id, statuses in histories.orders.items():
        # PENDING is checked with the created orders. Lost stock cancels an order without a call.
        unchecked = {"PENDING", "CANCELLED"}
        if any(call.fate != "refused" for call in index.unit_changes_of.get(order_id, ())):
            unchecked.add("SHIPPED")  # no unit is left to ship after the change
        for status in set(statuses) - unchecked:
            yield from _check_has_call(index, order_id, status)
    for order_id in histories.extended:
        yield from _check_has_call(index, order_id, EXTENDED)


def _check_has_call(index: CallIndex, order_id: str, status: str) -> Iterator[str]:
    if all(call.fate == "refused" for call in index.changes.get((order_id, status), ())):
        yield f"order {order_id} became {status} without a call, or although all calls were refused"


def _check_unit_changes(index: CallIndex, histories: EventHistories) -> Iterator[str]:
    reported: dict[str, list[dict[int, int]]] = {}
    for units in histories.units.values():
        for request_id, changed in units.reports:
            reported.setdefault(request_id, []).append(changed)
    for request_id, call in index.unit_changes.items():
        yield from _check_effects(call, len(reported.get(request_id, ())))
    for request_id, effects in reported.items():
        change = index.unit_changes.get(request_id)
        if change is None:
            yield f"units of an order were changed without a call: {effects}"
        elif isinstance(change.operation, ShipUnits | CancelUnits | ReturnUnits | ChangeLines):
            yield from (
                f"{change.operation} had the effect {effect}"
                for effect in effects
                if effect != dict(change.operation.units)
            )


def _check_dead_letters(history: History) -> Iterator[str]:
    for event_id, count in Counter(history.dead_letters).items():
        if event_id not in history.poison:
            yield f"event {event_id} became a dead letter, {count} times"
    for event_id in history.poison - set(history.dead_letters):
        yield f"the invalid event {event_id} did not become a dead letter"


def _check_pages(history: History) -> Iterator[str]:
    snapshot = history.snapshot
    for row_id in history.seen - snapshot.items.keys() - snapshot.reservations.keys() - snapshot.orders.keys():
        yield f"a page has the row {row_id}, which the tenant does not have"


def _by_order(reservations: Mapping[str, Reservation]) -> dict[str, list[Reservation]]:
    grouped: dict[str, list[Reservation]] = {}
    for reservation in reservations.values():
        grouped.setdefault(reservation.order_id, []).append(reservation)
    return grouped
