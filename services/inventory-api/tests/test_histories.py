"""Whole histories: whatever is done to the stock, in any sequence, the books follow a model small enough to trust."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from stockroom import Stockroom, deadline, empty

from inventory_api.domain import (
    BelowReserved,
    InsufficientStock,
    Line,
    Reservation,
    ReservationExpired,
    ReservationNotFound,
    ReservationReleased,
    State,
)
from inventory_api.stock import StockQuestion
from shop_common.errors import ShopError

_T = TypeVar("_T")

PRODUCTS = (1, 2)
LOCATIONS = ("A", "B", "C")

SETTINGS = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

products = st.sampled_from(PRODUCTS)
locations = st.sampled_from(LOCATIONS)
orders = st.sampled_from(["order-1", "order-2", "order-3"])
units = st.integers(1, 6)
lines = st.lists(st.builds(Line, products, units, st.none() | locations), min_size=1, max_size=3)


@dataclass(frozen=True)
class Held:
    """A reservation as the model knows it: `state` is what callers see."""

    reservation: Reservation
    state: State

    @property
    def is_active(self) -> bool:
        return self.state in (State.HELD, State.CONFIRMED)


class Histories(RuleBasedStateMachine):
    """The model: how many units lie where, and which reservations are active. Time is let pass by `lapse`."""

    reservations = Bundle("reservations")

    def __init__(self, stockroom: Stockroom) -> None:
        super().__init__()
        empty(stockroom.database)
        self.stockroom = stockroom
        self.quantity: dict[tuple[int, str], int] = {}
        self.held: dict[str, Held] = {}

    # --- what can happen ---

    @rule(product=products, location=locations, count=st.integers(0, 9))
    def add(self, product: int, location: str, count: int) -> None:
        item = self.stockroom.add(product, count, location)

        self.quantity[product, location] = self.quantity.get((product, location), 0) + count
        assert item.quantity == self.quantity[product, location]
        assert item.available_quantity == self.available(product, location)

    @rule(product=products, location=locations, count=st.integers(0, 9))
    def set_quantity(self, product: int, location: str, count: int) -> None:
        if (product, location) not in self.quantity:
            return
        item = self.stockroom.add(product, 0, location)
        reserved = self.quantity[product, location] - self.available(product, location)
        outcome = outcome_of(lambda: self.stockroom.set(item, count))

        assert isinstance(outcome, BelowReserved) == (count < reserved)
        if not isinstance(outcome, ShopError):
            self.quantity[product, location] = count

    @rule(target=reservations, order=orders, wanted=lines)
    def reserve(self, order: str, wanted: list[Line]) -> object:
        possible = self.fits(wanted)
        outcome = outcome_of(lambda: self.stockroom.hold_lines(order, *wanted))

        assert isinstance(outcome, InsufficientStock) == (not possible)
        if isinstance(outcome, ShopError):
            return None
        asked = {line.product_id for line in wanted}
        assert {each.product_id: each.quantity for each in outcome} == {
            product: sum(line.quantity for line in wanted if line.product_id == product) for product in asked
        }
        self.held.update({each.id: Held(each, State.HELD) for each in outcome})
        return outcome[0].id

    @rule(order=orders)
    def confirm(self, order: str) -> None:
        of_order = self.of_order(order)
        alive = [each for each in of_order if each.state is not State.RELEASED]
        outcome = outcome_of(lambda: self.stockroom.confirm(order))

        if not of_order:
            assert isinstance(outcome, ReservationNotFound)
        elif not alive:
            assert isinstance(outcome, ReservationReleased)
        elif any(each.state is State.EXPIRED for each in alive):
            assert isinstance(outcome, ReservationExpired)
        else:
            assert not isinstance(outcome, ShopError)
            assert {each.id for each in outcome} == {each.reservation.id for each in alive}
            self.move(alive, {State.HELD}, State.CONFIRMED)

    @rule(reservation=reservations)
    def release(self, reservation: str | None) -> None:
        if reservation is None:
            return
        held = self.held[reservation]
        released = self.stockroom.release(held.reservation)

        self.move([held], {State.HELD, State.CONFIRMED}, State.RELEASED)
        gave_back = self.held[reservation].state is State.RELEASED
        assert released == (held.reservation.quantity if gave_back else 0)

    @rule(order=orders)
    def cancel(self, order: str) -> None:
        self.stockroom.cancel(order)

        self.move(self.of_order(order), {State.HELD, State.CONFIRMED}, State.RELEASED)

    @rule(order=orders)
    def ship(self, order: str) -> None:
        of_order = self.of_order(order)
        shipped = self.stockroom.ship(order)

        leaving = [each for each in of_order if each.state is State.CONFIRMED]
        for each in leaving:
            for part in each.reservation.allocations:
                self.quantity[each.reservation.product_id, part.location] -= part.quantity
        self.move(leaving, {State.CONFIRMED}, State.FULFILLED)
        left: dict[int, int] = {}
        for each in self.of_order(order):
            if each.state is State.FULFILLED:
                product = each.reservation.product_id
                left[product] = left.get(product, 0) + each.reservation.quantity
        assert shipped == {order: left}

    @rule(reservation=reservations)
    def lapse(self, reservation: str | None) -> None:
        """A hold runs out, and nobody writes it down yet."""
        if reservation is not None and self.held[reservation].state is State.HELD:
            self.stockroom.lapse(self.held[reservation].reservation)
            self.move([self.held[reservation]], {State.HELD}, State.EXPIRED)

    @rule(max_count=st.integers(1, 3))
    def reap(self, max_count: int) -> None:
        assert self.stockroom.expire(max_count) <= max_count

    # --- what must be so after each of them ---

    @invariant()
    def stock_is_available_as_the_model_says(self) -> None:
        places = [(product, location) for product in PRODUCTS for location in (None, *LOCATIONS)]
        questions = [StockQuestion(*place) for place in places]
        found = self.stockroom.operations.check_stock.all(questions, deadline=deadline())
        assert dict(zip(places, found, strict=True)) == {place: self.available(*place) for place in places}

    @invariant()
    def reservations_read_as_the_model_says(self) -> None:
        found = self.stockroom.operations.reservation.all(list(self.held), deadline=deadline())
        states = {each.id: each.state for each in found if isinstance(each, Reservation)}
        assert states == {each: held.state for each, held in self.held.items()}

    def teardown(self) -> None:
        self.stockroom.audit()

    # --- the model ---

    def available(self, product: int, location: str | None = None) -> int:
        there = sum(
            count for place, count in self.quantity.items() if place[0] == product and location in (None, place[1])
        )
        return there - sum(
            part.quantity
            for each in self.held.values()
            if each.is_active and each.reservation.product_id == product
            for part in each.reservation.allocations
            if location in (None, part.location)
        )

    def fits(self, wanted: list[Line]) -> bool:
        named = {(line.product_id, line.location) for line in wanted if line.location}
        free_elsewhere = {line.product_id for line in wanted if not line.location}
        return all(
            self.available(*place) >= sum(line.quantity for line in wanted if (line.product_id, line.location) == place)
            for place in named
        ) and all(
            self.available(product) >= sum(line.quantity for line in wanted if line.product_id == product)
            for product in free_elsewhere
        )

    def of_order(self, order: str) -> list[Held]:
        return [each for each in self.held.values() if each.reservation.order_id == order]

    def move(self, chosen: list[Held], states: set[State], state: State) -> None:
        for each in chosen:
            if each.state in states:
                self.held[each.reservation.id] = replace(each, state=state)


def outcome_of(call: Callable[[], _T]) -> _T | ShopError:
    try:
        return call()
    except ShopError as refusal:
        return refusal


def test_any_history_keeps_the_books(stockroom: Stockroom) -> None:
    class OnThisDatabase(Histories):
        def __init__(self) -> None:
            super().__init__(stockroom)

    run_state_machine_as_test(OnThisDatabase, settings=SETTINGS)
