"""Holds what clients were told and what Kafka told against the databases: every unit, every call, every event.

The rules, for a system at rest:

- stock in = on hand + shipped; reserved = the sum of the active reservations; never more promised than there was;
- every acknowledged call has its effect, once; a refused one has none; one without an answer has all of it or none;
- nothing happened that nobody asked for;
- every effect has its events, none missing, repeats only under the same id, first occurrences in order.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from tests.faults.event_histories import EventHistories, check_events
from tests.faults.history import (
    DEFECTS,
    AddStock,
    Call,
    History,
    Hold,
    Order,
    Place,
    Release,
    Reservation,
    Snapshot,
    Step,
)

ACTIVE = {"HELD", "CONFIRMED"}

STATES_OF_STOCK = {
    # Confirmed stock of a PENDING order is a confirmation that was cut off: a repeat finishes it.
    "PENDING": {"HELD", "CONFIRMED"},
    "CONFIRMED": {"CONFIRMED"},
    "PROCESSING": {"CONFIRMED"},
    "SHIPPED": {"FULFILLED"},
    "DELIVERED": {"FULFILLED"},
    "CANCELLED": {"RELEASED", "EXPIRED"},
}


def check(history: History) -> list[str]:
    """What is wrong, a sentence each; empty when every promise was kept."""
    histories, wrong = check_events(history.events, history.snapshot)
    asked = Asked(history.calls)
    wrong += _answers(history)
    wrong += _stock(history.snapshot, histories)
    wrong += _put_in(asked, history.snapshot, histories)
    wrong += _holds(asked, history.snapshot)
    wrong += _orders(asked, history.snapshot)
    wrong += _steps(asked, histories)
    wrong += _letters(history)
    return wrong


class Asked:
    """The calls by what they were about."""

    def __init__(self, calls: Iterable[Call]) -> None:
        self.additions: dict[tuple[int, str], dict[int, Call]] = {}
        self.holds: dict[str, Call] = {}
        self.releases: dict[str, list[Call]] = {}
        self.orders: dict[int, Call] = {}
        self.steps: dict[tuple[str, str], list[Call]] = {}
        for call in calls:
            match call.operation:
                case AddStock(product, location, units):
                    self.additions.setdefault((product, location), {})[units] = call
                case Hold(order_id):
                    self.holds[order_id] = call
                case Release(reservation_id):
                    self.releases.setdefault(reservation_id, []).append(call)
                case Place(user_id):
                    self.orders[user_id] = call
                case Step(order_id, status):
                    self.steps.setdefault((order_id, status), []).append(call)


def _answers(history: History) -> Iterator[str]:
    if history.restless:
        yield f"the system did not come to rest: {history.restless}"
    for call in history.calls:
        if len(set(call.answers)) > 1:
            yield f"{call.operation} was answered with {sorted(map(str, set(call.answers)))}"
        for code in DEFECTS.intersection(call.infos):
            yield f"{call.operation} was answered {code}"
        if history.calm and call.infos:
            yield f"{call.operation} had no answer though nothing was wrong: {call.infos}"


def _stock(snapshot: Snapshot, histories: EventHistories) -> Iterator[str]:
    drawn: Counter[int] = Counter()
    shipped: Counter[int] = Counter()
    for reservation in snapshot.reservations.values():
        if sum(reservation.allocations.values()) != reservation.units:
            yield f"{reservation} does not draw on items for all of its units"
        for item_id, units in reservation.allocations.items():
            item = snapshot.items.get(item_id)
            if item is None or item.product != reservation.product:
                yield f"{reservation} draws on {item}"
            drawn[item_id] += units * (reservation.state in ACTIVE)
            shipped[item_id] += units * (reservation.state == "FULFILLED")
    for item in snapshot.items.values():
        came = sum(histories.put_in.get(item.id, ()))
        if came != item.quantity + shipped[item.id]:
            yield f"item {item.id}: {came} units came, {item.quantity} are on hand and {shipped[item.id]} were shipped"
        if item.reserved != drawn[item.id]:
            yield f"item {item.id}: {item.reserved} are reserved, its active reservations are {drawn[item.id]}"
        if not 0 <= item.reserved <= item.quantity:
            yield f"item {item.id}: {item.reserved} of {item.quantity} units are reserved"


def _put_in(asked: Asked, snapshot: Snapshot, histories: EventHistories) -> Iterator[str]:
    places = {(item.product, item.location): item.id for item in snapshot.items.values()}
    for place in places.keys() | asked.additions.keys():
        calls = asked.additions.get(place, {})
        found = Counter(histories.put_in.get(places.get(place, 0), ()))
        for units in calls.keys() | found.keys():
            call = calls.get(units)
            if call is None:
                yield f"{units} units were put to {place}, which nobody asked for"
            else:
                yield from _effects(call, found[units])
                if call.answers and call.answers[0] != places.get(place):
                    yield f"{call.operation} was answered with item {call.answers[0]}, it is {places.get(place)}"


def _effects(call: Call, count: int) -> Iterator[str]:
    allowed = {"done": {1}, "refused": {0}, "unknown": {0, 1}}[call.fate]
    if count not in allowed:
        told = call.refusals or call.infos
        yield f"{call.operation} is {call.fate} {told or ''}, its effect is there {count} times"


def _holds(asked: Asked, snapshot: Snapshot) -> Iterator[str]:
    by_order = _by_order(snapshot.reservations)
    for order_id, call in asked.holds.items():
        assert isinstance(call.operation, Hold)
        found = by_order.get(order_id, [])
        yield from _effects(call, len(found))
        for reservation in found:
            if (reservation.product, reservation.units) != (call.operation.product, call.operation.units):
                yield f"{call.operation} made {reservation}"
            if call.answers and call.answers[0] != reservation.id:
                yield f"{call.operation} was answered with {call.answers[0]} and made {reservation.id}"
    for reservation_id, calls in asked.releases.items():
        yield from _released(calls, snapshot.reservations.get(reservation_id))
    for reservation in snapshot.reservations.values():
        if reservation.state == "RELEASED" and not _may_be_released(reservation, asked, snapshot):
            yield f"{reservation} was released, which nobody asked for"


def _released(calls: list[Call], reservation: Reservation | None) -> Iterator[str]:
    for call in calls:
        if reservation is None:
            yield f"{call.operation}: there is no such reservation"
            continue
        given_back = reservation.units if reservation.state == "RELEASED" else 0
        if call.answers and call.answers[0] != given_back:
            yield f"{call.operation} was answered with {call.answers[0]} units, the reservation is {reservation}"


def _may_be_released(reservation: Reservation, asked: Asked, snapshot: Snapshot) -> bool:
    if any(call.fate != "refused" for call in asked.releases.get(reservation.id, ())):
        return True
    if reservation.order_id in asked.holds:
        return False
    # By its order; an order that was not stored gives its hold back as a courtesy.
    order = snapshot.orders.get(reservation.order_id)
    return order is None or order.status == "CANCELLED"


def _orders(asked: Asked, snapshot: Snapshot) -> Iterator[str]:
    yield from _placed(asked, snapshot)
    by_order = _by_order(snapshot.reservations)
    for order in snapshot.orders.values():
        yield from _stock_of(order, by_order.get(order.id, []))
    for order_id, reservations in by_order.items():
        if order_id in snapshot.orders or order_id in asked.holds:
            continue
        if any(reservation.state in ACTIVE | {"FULFILLED"} for reservation in reservations):
            yield f"there is no order {order_id}, and it has {reservations}"


def _placed(asked: Asked, snapshot: Snapshot) -> Iterator[str]:
    by_user: dict[int, list[Order]] = {}
    for order in snapshot.orders.values():
        by_user.setdefault(order.user_id, []).append(order)
    for user_id in by_user.keys() - asked.orders.keys():
        yield f"{by_user[user_id]}: nobody asked for it"
    for user_id, call in asked.orders.items():
        assert isinstance(call.operation, Place)
        found = by_user.get(user_id, [])
        yield from _effects(call, len(found))
        for order in found:
            if order.lines != dict(call.operation.lines):
                yield f"{call.operation} made {order}"
            if call.answers and call.answers[0] != order.id:
                yield f"{call.operation} was answered with {call.answers[0]} and made {order.id}"


def _stock_of(order: Order, reservations: list[Reservation]) -> Iterator[str]:
    held = sorted((reservation.product, reservation.units) for reservation in reservations)
    if held != sorted(order.lines.items()):
        yield f"{order} has {reservations}"
    wrong = [each for each in reservations if each.state not in STATES_OF_STOCK[order.status]]
    if wrong:
        yield f"{order} is {order.status}, and of its stock is {wrong}"


def _steps(asked: Asked, histories: EventHistories) -> Iterator[str]:
    for (order_id, status), calls in asked.steps.items():
        taken = status in histories.orders.get(order_id, ())
        for call in calls:
            if call.fate == "done" and not taken:
                yield f"{call.operation} was answered, and did not happen: {histories.orders.get(order_id)}"
    for order_id, statuses in histories.orders.items():
        # What is created has its own rule, and stock that is lost cancels an order unasked.
        for status in set(statuses) - {"PENDING", "CANCELLED"}:
            if all(call.fate == "refused" for call in asked.steps.get((order_id, status), ())):
                yield f"order {order_id} became {status}, which nobody asked for or all were refused"


def _letters(history: History) -> Iterator[str]:
    for event_id, count in Counter(history.letters).items():
        if event_id not in history.poison:
            yield f"event {event_id} was set aside, {count} times"
    for event_id in history.poison - set(history.letters):
        yield f"the poisonous event {event_id} was not set aside"


def _by_order(reservations: Mapping[str, Reservation]) -> dict[str, list[Reservation]]:
    grouped: dict[str, list[Reservation]] = {}
    for reservation in reservations.values():
        grouped.setdefault(reservation.order_id, []).append(reservation)
    return grouped
