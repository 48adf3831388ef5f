"""Whole histories: whatever is done to the stock, in any sequence, the books follow a model small enough to trust."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from inventory_driver import InventoryDriver, deadline, empty

from inventory_api.domain.commands import AddStock, StockQuestion
from inventory_api.domain.errors import (
    BelowReserved,
    InsufficientStock,
    ReservationExpired,
    ReservationNotFound,
    ReservationReleased,
)
from inventory_api.domain.model import Line, Reservation, State
from shop_common.errors import ShopError

_T = TypeVar("_T")

PRODUCTS = (1, 2)
LOCATIONS = ("A", "B")
PLACES = [(product, location) for product in PRODUCTS for location in LOCATIONS]
SETTINGS = settings(
    max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)

places = st.sampled_from(PLACES)
orders = st.sampled_from(["order-1", "order-2", "order-3"])
lines = st.lists(
    st.builds(Line, st.sampled_from(PRODUCTS), st.integers(1, 5), st.none() | st.sampled_from(LOCATIONS)),
    min_size=1,
    max_size=3,
)


@dataclass(frozen=True)
class Held:
    """A reservation as the model knows it: `state` is what callers see."""

    reservation: Reservation
    state: State

    @property
    def is_active(self) -> bool:
        return self.state in (State.HELD, State.CONFIRMED)


class Model:
    """How many units lie where, and which reservations are active. Each step is done to both and compared."""

    def __init__(self, inventory: InventoryDriver) -> None:
        empty(inventory.database)
        self.inventory = inventory
        self.quantity = dict.fromkeys(PLACES, 6)
        self.held: dict[str, Held] = {}
        inventory.operations._add_stock.submit_many([AddStock(*place, 6) for place in PLACES], deadline=deadline())

    def add(self, place: tuple[int, str], count: int) -> None:
        product, location = place
        item = self.inventory.add_stock(product, count, location)

        self.quantity[place] += count
        assert item.quantity == self.quantity[place]
        assert item.available_quantity == self.available(*place)

    def set_quantity(self, place: tuple[int, str], count: int) -> None:
        product, location = place
        item = self.inventory.add_stock(product, 0, location)
        outcome = outcome_of(lambda: self.inventory.set_quantity(item, count))

        reserved = self.quantity[place] - self.available(*place)
        assert isinstance(outcome, BelowReserved) == (count < reserved)
        if not isinstance(outcome, ShopError):
            self.quantity[place] = count

    def reserve(self, order: str, wanted: list[Line]) -> list[str]:
        possible = self.fits(wanted)
        outcome = outcome_of(lambda: self.inventory.reserve_lines(order, *wanted))

        assert isinstance(outcome, InsufficientStock) == (not possible)
        if isinstance(outcome, ShopError):
            return []
        asked = {line.product_id for line in wanted}
        assert {each.product_id: each.quantity for each in outcome} == {
            product: sum(line.quantity for line in wanted if line.product_id == product) for product in asked
        }
        self.held.update({each.id: Held(each, State.HELD) for each in outcome})
        return [each.id for each in outcome]

    def confirm(self, order: str) -> None:
        of_order = self.of_order(order)
        alive = [each for each in of_order if each.state is not State.RELEASED]
        outcome = outcome_of(lambda: self.inventory.confirm(order))

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

    def cancel(self, order: str) -> None:
        self.inventory.cancel(order)

        self.move(self.of_order(order), {State.HELD, State.CONFIRMED}, State.RELEASED)

    def ship(self, order: str) -> None:
        shipped = self.inventory.ship(order)

        leaving = [each for each in self.of_order(order) if each.state is State.CONFIRMED]
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

    def release(self, held: Held) -> None:
        released = self.inventory.release(held.reservation)

        self.move([held], {State.HELD, State.CONFIRMED}, State.RELEASED)
        gave_back = self.held[held.reservation.id].state is State.RELEASED
        assert released == (held.reservation.quantity if gave_back else 0)

    def lapse(self, held: Held) -> None:
        """The hold runs out, and nobody writes it down yet."""
        if held.state is State.HELD:
            self.inventory.make_due(held.reservation)
            self.move([held], {State.HELD}, State.EXPIRED)

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
        anywhere = {line.product_id for line in wanted if not line.location}
        return all(
            self.available(*place) >= sum(line.quantity for line in wanted if (line.product_id, line.location) == place)
            for place in named
        ) and all(
            self.available(product) >= sum(line.quantity for line in wanted if line.product_id == product)
            for product in anywhere
        )

    def of_order(self, order: str) -> list[Held]:
        return [each for each in self.held.values() if each.reservation.order_id == order]

    def move(self, chosen: list[Held], states: set[State], state: State) -> None:
        for each in chosen:
            if each.state in states:
                self.held[each.reservation.id] = replace(each, state=state)

    def compare(self) -> None:
        """What callers see is what the model says."""
        asked = [(product, location) for product in PRODUCTS for location in (None, *LOCATIONS)]
        questions = [StockQuestion(*place) for place in asked]
        free = self.inventory.operations._check_stock.submit_many(questions, deadline=deadline())
        assert dict(zip(asked, free, strict=True)) == {place: self.available(*place) for place in asked}

        found = self.inventory.operations._get_reservation.submit_many(list(self.held), deadline=deadline())
        states = {each.id: each.state for each in found if isinstance(each, Reservation)}
        assert states == {each: held.state for each, held in self.held.items()}


class Histories(RuleBasedStateMachine):
    """Few rules of several kinds, so that each history has some of all."""

    reservations = Bundle("reservations")

    def __init__(self, inventory: InventoryDriver) -> None:
        super().__init__()
        self.model = Model(inventory)

    @initialize(target=reservations)
    def some_have_reserved(self) -> MultipleResults[str]:
        return multiple(*self.model.reserve("order-1", [Line(1, 7)]), *self.model.reserve("order-2", [Line(2, 4)]))

    @rule(target=reservations, order=orders, wanted=lines)
    def someone_reserves(self, order: str, wanted: list[Line]) -> MultipleResults[str]:
        return multiple(*self.model.reserve(order, wanted))

    @rule(order=orders, step=st.sampled_from([Model.confirm, Model.confirm, Model.ship, Model.cancel]))
    def an_order_goes_on(self, order: str, step: Callable[[Model, str], None]) -> None:
        step(self.model, order)

    @rule(made=reservations, step=st.sampled_from([Model.release, Model.lapse, Model.lapse]))
    def a_reservation_ends(self, made: str, step: Callable[[Model, Held], None]) -> None:
        step(self.model, self.model.held[made])

    @rule(place=places, count=st.integers(0, 9), step=st.sampled_from([Model.add, Model.set_quantity]))
    def the_stock_changes(
        self, place: tuple[int, str], count: int, step: Callable[[Model, tuple[int, str], int], None]
    ) -> None:
        step(self.model, place, count)

    @rule(max_count=st.integers(1, 3))
    def the_reaper_comes(self, max_count: int) -> None:
        assert self.model.inventory.expire(max_count) <= max_count

    @invariant()
    def callers_see_what_the_model_says(self) -> None:
        self.model.compare()

    def teardown(self) -> None:
        self.model.inventory.check_consistency()


def outcome_of(call: Callable[[], _T]) -> _T | ShopError:
    try:
        return call()
    except ShopError as refusal:
        return refusal


def test_any_history_keeps_the_books(inventory: InventoryDriver) -> None:
    class OnThisDatabase(Histories):
        def __init__(self) -> None:
            super().__init__(inventory)

    run_state_machine_as_test(OnThisDatabase, settings=SETTINGS)
