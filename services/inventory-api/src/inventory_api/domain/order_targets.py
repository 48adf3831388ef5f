"""Decides how the stock of an order reaches the order's targets. Needs no database.

The targets are cumulative: how many units of each product the order keeps, how many of them it has shipped, and how
many of these came back, since it was created. Only the difference to the totals that were applied before is applied. So
no unit is shipped, released or restocked twice, even if an event is repeated or late, and a newer event makes up for
one that is missing. ADR 0025 has the table of crashes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple
from uuid import UUID, uuid5

from inventory_api.domain.commands import OrderRequest
from inventory_api.domain.model import ACTIVE, Allocation, Reservation, State
from inventory_api.domain.transitions import StateChanges


class Place(NamedTuple):
    """Where returned units are added to the stock. With a `withholding_reason`, they are withheld there."""

    location: str
    withholding_reason: str = ""


class Totals(NamedTuple):
    """Units of one product of an order, since the order was created. The kept units include the shipped ones.

    `restocked` are pairs of a place and the returned units that were added to the stock there.
    """

    kept: int
    shipped: int
    restocked: tuple[tuple[Place, int], ...] = ()

    def plus_restocked(self, place: Place, units: int) -> "Totals":
        """Return the totals after this number of units was restocked at the place."""
        restocked = dict(self.restocked)
        restocked[place] = restocked.get(place, 0) + units
        return self._replace(restocked=tuple(restocked.items()))


class Addition(NamedTuple):
    """Reservations that were made for a change of an order, before order-api has stored the change.

    `version` is the version that the order gets by the change. The targets of the first event with this version or a
    later one show whether the order was changed. Events with lower versions do not concern these reservations.
    """

    version: int
    change_id: str
    reservation_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderTargets(OrderRequest):
    """The targets of one version of an order, and the units that were ordered, by product."""

    version: int
    ordered: Mapping[int, int]
    targets: Mapping[int, Totals]

    @property
    def is_final(self) -> bool:
        """Whether the order needs no more reserved stock: all units that it keeps have been shipped."""
        return all(target.kept == target.shipped for target in self.targets.values())


@dataclass(slots=True)
class Remaining:
    """The units of one product that are still to be shipped and to be released for a version of an order."""

    to_ship: int
    to_release: int

    def can_use(self, state: State) -> bool:
        """Return whether a reservation in this state has units to ship or to release."""
        return self.to_release > 0 or (self.to_ship > 0 and state is State.CONFIRMED)


@dataclass(frozen=True, slots=True)
class Split:
    """A reservation and the parts that replace it, which are in its state."""

    reservation: Reservation
    parts: tuple[Reservation, ...]


@dataclass(slots=True)
class Decision:
    """What happens to the reservations of an order: first the splits, then the state changes, by reservation id."""

    splits: list[Split]
    changes: StateChanges
    applied: dict[int, Totals]
    """The totals of each product after the decision."""


def starting_totals(
    order: OrderTargets, applied: Mapping[int, Totals], fulfilled: Mapping[int, int]
) -> dict[int, Totals]:
    """Return the totals of each product before the version is applied.

    `applied` are the stored totals. If a product has none, all its ordered units are kept and none is shipped.
    `fulfilled` are the units of fulfilled reservations.
    """
    stored = {
        product: applied.get(product, Totals(order.ordered.get(product, target.kept), 0))
        for product, target in order.targets.items()
    }
    return with_fulfilled(stored, fulfilled)


def with_fulfilled(totals: Mapping[int, Totals], fulfilled: Mapping[int, int]) -> dict[int, Totals]:
    """Return the totals, where at least the units of fulfilled reservations count as shipped.

    Fulfilled reservations have more units than the stored total if units were shipped for an event without targets, by
    a process that does not know targets, or by SettleOrders. They have fewer after reservations were purged.
    """
    return {
        product: total._replace(shipped=max(total.shipped, fulfilled.get(product, 0)))
        for product, total in totals.items()
    }


def to_restock(order: OrderTargets, totals: Mapping[int, Totals]) -> dict[tuple[int, Place], int]:
    """Return the returned units that are still to be added to the stock, by product and place."""
    missing: dict[tuple[int, Place], int] = {}
    for product, target in order.targets.items():
        before = dict(totals[product].restocked)
        for place, units in target.restocked:
            if units > before.get(place, 0):
                missing[product, place] = units - before.get(place, 0)
    return missing


def final_totals(order: OrderTargets, totals: Mapping[int, Totals]) -> dict[int, Totals]:
    """Return the totals of each product after the version was applied. `totals` are the totals before.

    Restocked units never become fewer: a process that does not know returns emits targets without them, and a later
    version would restock the units again.
    """
    final = {}
    for product, target in order.targets.items():
        restocked = dict(totals[product].restocked)
        for place, units in target.restocked:
            restocked[place] = max(units, restocked.get(place, 0))
        final[product] = target._replace(restocked=tuple(restocked.items()))
    return final


def remaining(order: OrderTargets, totals: Mapping[int, Totals]) -> dict[int, Remaining]:
    """Return the units that are still to be shipped and released, by product."""
    return {
        product: Remaining(
            to_ship=max(0, target.shipped - totals[product].shipped),
            to_release=max(0, totals[product].kept - target.kept),
        )
        for product, target in order.targets.items()
    }


def decide_additions(
    order: OrderTargets, totals: Mapping[int, Totals], added: Sequence[Reservation], now: datetime
) -> Decision:
    """Decide which added reservations the order keeps. `added` are the locked, active ones.

    `totals` are those before, without the added units. If the order was not changed, its targets do not have the added
    units: then these units are released, and no others. Added units that have expired were never kept.
    """
    units: dict[int, int] = {}
    for each in added:
        if not each.is_due(now):
            units[each.product_id] = units.get(each.product_id, 0) + each.quantity
    # Totals may be missing: a process of an earlier release removes those of products that an event of a lower version
    # lacks.
    known = {product: Totals(0, 0) for product in units} | dict(totals)
    before = {product: total._replace(kept=total.kept + units.get(product, 0)) for product, total in known.items()}
    # A product that the order does not have was never part of it, because no line of an order is deleted.
    kept = {product: order.targets[product].kept if product in order.targets else 0 for product in before}
    wanted = replace(order, targets={product: total._replace(kept=kept[product]) for product, total in before.items()})
    return decide(wanted, before, added, now)


def decide(
    order: OrderTargets, totals: Mapping[int, Totals], reservations: Iterable[Reservation], now: datetime
) -> Decision:
    """Decide about locked reservations of an order, in their sequence.

    `totals` are the totals of each product before.

    Confirmed units are shipped before units are released. A reservation is split if only some of its units are shipped
    or released. A due reservation expires instead of being released, because its time had ended before. A final order
    keeps no reservation.
    """
    decision = Decision([], {}, dict(totals))
    still = remaining(order, totals)
    for reservation in reservations:
        if reservation.state not in ACTIVE:
            continue  # it has ended since it was read
        product = reservation.product_id
        left = still.setdefault(product, Remaining(0, 0))
        if reservation.is_due(now):
            if left.to_release or order.is_final:
                decision.changes[reservation.id] = State.EXPIRED
            continue
        shipped = min(reservation.quantity, left.to_ship) if reservation.state is State.CONFIRMED else 0
        rest = reservation.quantity - shipped
        released = min(rest, left.to_release)
        left.to_ship -= shipped
        left.to_release -= released
        if product in decision.applied:
            before = decision.applied[product]
            decision.applied[product] = before._replace(kept=before.kept - released, shipped=before.shipped + shipped)
        if order.is_final:
            released = rest
        _change(decision, order, reservation, {State.FULFILLED: shipped, State.RELEASED: released})
    return decision


def _change(
    decision: Decision, order: OrderTargets, reservation: Reservation, units_by_state: Mapping[State, int]
) -> None:
    wanted = {state: units for state, units in units_by_state.items() if units}
    if not wanted:
        return
    if reservation.quantity in wanted.values():
        (decision.changes[reservation.id],) = wanted
        return
    rest = reservation.quantity - sum(wanted.values())
    states = [*wanted, *([reservation.state] if rest else [])]
    parts = split(reservation, [*wanted.values(), *([rest] if rest else [])], names=states, version=order.version)
    decision.splits.append(Split(reservation, parts))
    decision.changes.update((part.id, state) for part, state in zip(parts, wanted, strict=False))


def split(
    reservation: Reservation, quantities: Sequence[int], *, names: Sequence[str], version: int
) -> tuple[Reservation, ...]:
    """Divide a reservation and its allocations into parts. `quantities` add up to the quantity of the reservation.

    The ids of the parts are derived from the reservation's id, the order's version and the names.
    """
    return tuple(
        replace(
            reservation,
            id=str(uuid5(UUID(reservation.id), f"{version}:{name}")),
            quantity=quantity,
            allocations=allocations,
        )
        for quantity, name, allocations in zip(quantities, names, cut(reservation.allocations, quantities), strict=True)
    )


def cut(allocations: Sequence[Allocation], quantities: Sequence[int]) -> list[tuple[Allocation, ...]]:
    """Divide allocations into parts with these quantities, which add up to the units of the allocations."""
    left = list(allocations)
    parts = []
    for quantity in quantities:
        taken: list[Allocation] = []
        missing = quantity
        while missing:
            first = left.pop(0)
            units = min(missing, first.quantity)
            taken.append(replace(first, quantity=units))
            if units < first.quantity:
                left.insert(0, replace(first, quantity=first.quantity - units))
            missing -= units
        parts.append(tuple(taken))
    return parts
