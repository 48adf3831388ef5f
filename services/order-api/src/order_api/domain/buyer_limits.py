"""Decides whether the limits per buyer allow an order or a change of one. Needs no database."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from order_api.domain.commands import NewOrder
from order_api.domain.errors import BuyerLimitExceeded, BuyerOrdersLimit
from order_api.domain.model import COUNTED_ORDERS_MAX, Order, OrderKey, quantities
from order_api.domain.units import kept, uncancelled_units
from shop_common.errors import ShopError


class Buyer(NamedTuple):
    """A user of a tenant."""

    tenant: str
    user_id: int


@dataclass(frozen=True, slots=True)
class Purchase:
    """The units of each product that a buyer wants with one order, and the limits for them, by product.

    `has` are the units of the limited products that the buyer already has by this order, before a change of the order.
    """

    order: OrderKey
    buyer: Buyer
    units: Mapping[int, int]
    limits: Mapping[int, int]
    has: Mapping[int, int] = field(default_factory=dict)


def of_new(order: NewOrder) -> Purchase | None:
    """Return the purchase of an order to create, or None if it has no limit."""
    limits = order.buyer_limits
    return Purchase(order.key, Buyer(order.tenant, order.user_id), quantities(order.items), limits) if limits else None


def of_cancelled(order: Order, limits: Mapping[int, int]) -> Purchase:
    """Return the purchase of a CANCELLED order that is to be reinstated."""
    return Purchase(order.key, Buyer(order.tenant, order.user_id), uncancelled_units(order), limits)


def of_changed(order: Order, added: Mapping[int, int], limits: Mapping[int, int]) -> Purchase | None:
    """Return the purchase of the units that a change adds to an order, or None if none of them has a limit."""
    limited = {product_id: limit for product_id, limit in limits.items() if product_id in added}
    if not limited:
        return None
    has = dict.fromkeys(limited, 0)
    for item in order.items:
        if item.product_id in has:
            has[item.product_id] += kept(order, item) - item.returned
    return Purchase(order.key, Buyer(order.tenant, order.user_id), added, limited, has)


def lowest(first: Mapping[int, int], second: Mapping[int, int]) -> dict[int, int]:
    """Return the limits of both. If both limit a product, the lower limit counts."""
    return {**first, **{each: min(limit, first.get(each, limit)) for each, limit in second.items()}}


@dataclass(frozen=True, slots=True)
class Counted:
    """The units of a product that a buyer has, and the number of the buyer's open orders."""

    units: int
    open_orders: int


class Bought:
    """What buyers have, without the order that is decided. Each purchase that is taken counts for later decisions."""

    def __init__(self, counted: Mapping[tuple[OrderKey, int], Counted]) -> None:
        self._counted = counted
        self._taken: dict[tuple[Buyer, int], int] = {}

    def refusal(self, purchase: Purchase) -> ShopError | None:
        """Return the error that refuses the purchase, or None. It names the limited product with the lowest id."""
        for product_id, limit in sorted(purchase.limits.items()):
            counted = self._counted[purchase.order, product_id]
            if counted.open_orders > COUNTED_ORDERS_MAX:
                return BuyerOrdersLimit()
            bought = counted.units + purchase.has.get(product_id, 0) + self._taken.get((purchase.buyer, product_id), 0)
            if bought + purchase.units[product_id] > limit:
                return BuyerLimitExceeded(product_id, limit, bought, purchase.units[product_id])
        return None

    def take(self, purchase: Purchase) -> ShopError | None:
        """Count the purchase if it is allowed, and return None; otherwise return its refusal."""
        refusal = self.refusal(purchase)
        if refusal is None:
            for product_id, units in purchase.units.items():
                key = (purchase.buyer, product_id)
                self._taken[key] = self._taken.get(key, 0) + units
        return refusal
