"""Random sequences of operations: the inventory agrees with a model that is simple enough to be obviously correct."""

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

from inventory_api.domain.commands import AddStock, StockChange, StockQuestion
from inventory_api.domain.errors import (
    BelowReserved,
    InsufficientStock,
    InsufficientWithheld,
    ReservationExpired,
    ReservationNotFound,
    ReservationReleased,
)
from inventory_api.domain.model import Line, Reservation, State
from inventory_api.domain.movements import MovementKind
from shop_common.errors import ShopError
from testkit.drivers.inventory_api import InventoryDriver, deadline, empty, stock_key

_T = TypeVar("_T")

PRODUCTS = (1, 2)
LOCATIONS = ("A", "B")
STOCK_KEYS = [(product, location) for product in PRODUCTS for location in LOCATIONS]
SETTINGS = settings(
    max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)

stock_keys = st.sampled_from(STOCK_KEYS)
orders = st.sampled_from(["order-1", "order-2", "order-3"])
lines = st.lists(
    st.builds(Line, st.sampled_from(PRODUCTS), st.integers(1, 5), st.none() | st.sampled_from(LOCATIONS)),
    min_size=1,
    max_size=3,
)


@dataclass(frozen=True)
class ModelReservation:
    """A reservation in the model. `state` is the state as callers see it."""

    reservation: Reservation
    state: State

    @property
    def is_active(self) -> bool:
        return self.state in (State.HELD, State.CONFIRMED)


class Model:
    """The units at each stock key and the active reservations. Each operation runs on both to compare them."""

    def __init__(self, inventory: InventoryDriver) -> None:
        empty(inventory.database)
        self.inventory = inventory
        self.quantity = dict.fromkeys(STOCK_KEYS, 6)
        self.withheld = dict.fromkeys(STOCK_KEYS, 0)
        self.held: dict[str, ModelReservation] = {}
        inventory.operations._add_stock.submit_many([AddStock(*key, 6) for key in STOCK_KEYS], deadline=deadline())

    def add(self, key: tuple[int, str], count: int) -> None:
        product, location = key
        item = self.inventory.add_stock(product, count, location)

        self.quantity[key] += count
        assert item.quantity == self.quantity[key]
        assert item.available_quantity == self.available(*key)

    def set_quantity(self, key: tuple[int, str], count: int) -> None:
        product, location = key
        item = self.inventory.add_stock(product, 0, location)
        outcome = outcome_of(lambda: self.inventory.set_quantity(item, count))

        reserved = self.quantity[key] - self.available(*key)
        assert isinstance(outcome, BelowReserved) == (count < reserved)
        if not isinstance(outcome, ShopError):
            self.quantity[key] = count

    def count(self, key: tuple[int, str], count: int) -> None:
        """Count, and release the newest reservations at the location if too few units are left."""
        product, location = key
        change = StockChange(0, product, location, MovementKind.COUNTED, count, release_shortfall=True)
        (outcome,) = self.inventory.change_stock(change)

        chosen = []
        missing = self.quantity[key] - self.available(*key) - count
        for each in self.newest_at(product, location):
            if missing > 0:
                chosen.append(each)
                missing -= sum(part.quantity for part in each.reservation.allocations if part.location == location)
        assert isinstance(outcome, BelowReserved) == (missing > 0)
        if not isinstance(outcome, ShopError):
            self.quantity[key] = count
            self.change_states(chosen, {State.HELD, State.CONFIRMED}, State.RELEASED)

    def newest_at(self, product: int, location: str) -> list[ModelReservation]:
        """Return the active reservations at the location: held ones before confirmed ones, and the newest first."""
        at_location = [
            each
            for each in self.held.values()
            if each.is_active
            and each.reservation.product_id == product
            and location in {part.location for part in each.reservation.allocations}
        ]
        return sorted(
            at_location,
            key=lambda each: (each.state is State.HELD, each.reservation.created_at, each.reservation.id),
            reverse=True,
        )

    def withhold(self, key: tuple[int, str], count: int) -> None:
        """Withhold up to six units, or give up to three units back."""
        product, location = key
        units = count - 3 or 1
        change = StockChange(0, product, location, MovementKind.WITHHELD, units, reason="DAMAGED")
        (outcome,) = self.inventory.change_stock(change)

        assert isinstance(outcome, InsufficientStock) == (units > self.available(*key))
        assert isinstance(outcome, InsufficientWithheld) == (self.withheld[key] + units < 0)
        if not isinstance(outcome, ShopError):
            self.withheld[key] += units
            assert outcome.item.withheld_quantity == self.withheld[key]

    def reserve(self, order: str, order_lines: list[Line]) -> list[str]:
        possible = self.fits(order_lines)
        outcome = outcome_of(lambda: self.inventory.reserve_lines(order, *order_lines))

        assert isinstance(outcome, InsufficientStock) == (not possible)
        if isinstance(outcome, ShopError):
            return []
        products = {line.product_id for line in order_lines}
        assert {each.product_id: each.quantity for each in outcome} == {
            product: sum(line.quantity for line in order_lines if line.product_id == product) for product in products
        }
        self.held.update({each.id: ModelReservation(each, State.HELD) for each in outcome})
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
            self.change_states(alive, {State.HELD}, State.CONFIRMED)

    def cancel(self, order: str) -> None:
        self.inventory.cancel(order)

        self.change_states(self.of_order(order), {State.HELD, State.CONFIRMED}, State.RELEASED)

    def ship(self, order: str) -> None:
        shipped = self.inventory.ship(order)

        confirmed = [each for each in self.of_order(order) if each.state is State.CONFIRMED]
        for each in confirmed:
            for part in each.reservation.allocations:
                self.quantity[each.reservation.product_id, part.location] -= part.quantity
        self.change_states(confirmed, {State.CONFIRMED}, State.FULFILLED)
        fulfilled: dict[int, int] = {}
        for each in self.of_order(order):
            if each.state is State.FULFILLED:
                product = each.reservation.product_id
                fulfilled[product] = fulfilled.get(product, 0) + each.reservation.quantity
        assert shipped == {order: fulfilled}

    def release(self, held: ModelReservation) -> None:
        released = self.inventory.release(held.reservation)

        self.change_states([held], {State.HELD, State.CONFIRMED}, State.RELEASED)
        is_released = self.held[held.reservation.id].state is State.RELEASED
        assert released == (held.reservation.quantity if is_released else 0)

    def make_due(self, held: ModelReservation) -> None:
        """Make the reservation due. The database still has it as HELD."""
        if held.state is State.HELD:
            self.inventory.make_due(held.reservation)
            self.change_states([held], {State.HELD}, State.EXPIRED)

    def available(self, product: int, location: str | None = None) -> int:
        total = sum(
            count - self.withheld[key]
            for key, count in self.quantity.items()
            if key[0] == product and location in (None, key[1])
        )
        return total - sum(
            part.quantity
            for each in self.held.values()
            if each.is_active and each.reservation.product_id == product
            for part in each.reservation.allocations
            if location in (None, part.location)
        )

    def fits(self, order_lines: list[Line]) -> bool:
        named = {(line.product_id, line.location) for line in order_lines if line.location}
        anywhere = {line.product_id for line in order_lines if not line.location}
        return all(
            self.available(*key)
            >= sum(line.quantity for line in order_lines if (line.product_id, line.location) == key)
            for key in named
        ) and all(
            self.available(product) >= sum(line.quantity for line in order_lines if line.product_id == product)
            for product in anywhere
        )

    def of_order(self, order: str) -> list[ModelReservation]:
        return [each for each in self.held.values() if each.reservation.order_id == order]

    def change_states(self, chosen: list[ModelReservation], states: set[State], state: State) -> None:
        for each in chosen:
            if each.state in states:
                self.held[each.reservation.id] = replace(each, state=state)

    def compare(self) -> None:
        """Check that callers see the model's availability and states."""
        keys = [(product, location) for product in PRODUCTS for location in (None, *LOCATIONS)]
        questions = [StockQuestion(stock_key(*key)) for key in keys]
        free = self.inventory.operations._check_stock.submit_many(questions, deadline=deadline())
        assert dict(zip(keys, free, strict=True)) == {key: self.available(*key) for key in keys}

        found = self.inventory.operations._get_reservation.submit_many(
            [held.reservation.key for held in self.held.values()], deadline=deadline()
        )
        states = {each.id: each.state for each in found if isinstance(each, Reservation)}
        assert states == {each: held.state for each, held in self.held.items()}


class RandomOperations(RuleBasedStateMachine):
    """Only a few rules, so that each sequence uses most of them."""

    reservations = Bundle("reservations")

    def __init__(self, inventory: InventoryDriver) -> None:
        super().__init__()
        self.model = Model(inventory)

    @initialize(target=reservations)
    def reserve_some(self) -> MultipleResults[str]:
        return multiple(*self.model.reserve("order-1", [Line(1, 7)]), *self.model.reserve("order-2", [Line(2, 4)]))

    @rule(target=reservations, order=orders, order_lines=lines)
    def reserve(self, order: str, order_lines: list[Line]) -> MultipleResults[str]:
        return multiple(*self.model.reserve(order, order_lines))

    @rule(order=orders, operation=st.sampled_from([Model.confirm, Model.confirm, Model.ship, Model.cancel]))
    def change_order(self, order: str, operation: Callable[[Model, str], None]) -> None:
        operation(self.model, order)

    @rule(reservation_id=reservations, operation=st.sampled_from([Model.release, Model.make_due, Model.make_due]))
    def end_reservation(self, reservation_id: str, operation: Callable[[Model, ModelReservation], None]) -> None:
        operation(self.model, self.model.held[reservation_id])

    @rule(
        key=stock_keys,
        count=st.integers(0, 9),
        operation=st.sampled_from([Model.add, Model.set_quantity, Model.withhold, Model.count]),
    )
    def change_stock(
        self, key: tuple[int, str], count: int, operation: Callable[[Model, tuple[int, str], int], None]
    ) -> None:
        operation(self.model, key, count)

    @rule(max_count=st.integers(1, 3))
    def expire(self, max_count: int) -> None:
        assert self.model.inventory.expire(max_count) <= max_count

    @invariant()
    def agrees_with_the_model(self) -> None:
        self.model.compare()

    def teardown(self) -> None:
        self.model.inventory.check_consistency()


def outcome_of(call: Callable[[], _T]) -> _T | ShopError:
    try:
        return call()
    except ShopError as refusal:
        return refusal


def test_any_sequence_of_operations_agrees_with_the_model(inventory: InventoryDriver) -> None:
    class OnThisDatabase(RandomOperations):
        def __init__(self) -> None:
            super().__init__(inventory)

    run_state_machine_as_test(OnThisDatabase, settings=SETTINGS)
