"""The errors with which inventory-api refuses a request, and their reasons.

ShopError
├── NotSupported
│   └── WithholdingDisabled     WITHHOLDING_DISABLED
├── NotFound
│   ├── ItemNotFound            ITEM_NOT_FOUND
│   └── ReservationNotFound     RESERVATION_NOT_FOUND
├── Refused
│   ├── InsufficientStock       INSUFFICIENT_STOCK
│   ├── ReservationsLimit       RESERVATIONS_LIMIT
│   ├── ReservationExpired      RESERVATION_EXPIRED
│   ├── ReservationReleased     RESERVATION_RELEASED
│   ├── ExtensionLimit          EXTENSION_LIMIT
│   ├── BelowReserved           BELOW_RESERVED
│   ├── InsufficientWithheld    INSUFFICIENT_WITHHELD
│   ├── WithholdingsLimit       WITHHOLDINGS_LIMIT
│   ├── QuantityLimit           QUANTITY_LIMIT
│   ├── LocationsLimit          LOCATIONS_LIMIT
│   └── ChangesRefused          CHANGES_REFUSED
└── Conflict
    └── VersionMismatch         VERSION_MISMATCH

`shop_common.errors` defines the kinds, and `shop_common.rpc.status` maps each kind to a gRPC status.
"""

from datetime import datetime
from typing import ClassVar, Self

from inventory_api.domain.model import (
    ITEM_QUANTITY_MAX,
    LOCATIONS_MAX,
    ORDER_ALLOCATIONS_MAX,
    ORDER_RESERVATIONS_MAX,
    WITHHOLDINGS_MAX,
    Item,
)
from shop_common.errors import Conflict, NotFound, NotSupported, Refused, ShopError
from shop_common.timestamps import rfc3339


class WithholdingDisabled(NotSupported):
    """Withholding is switched off by WITHHOLDING_ENABLED, as during an update."""

    reason: ClassVar[str] = "WITHHOLDING_DISABLED"

    def __init__(self) -> None:
        super().__init__("withholding units is switched off, as during an update")


class ItemNotFound(NotFound):
    """No item has this id, or the product has no item at this location."""

    reason: ClassVar[str] = "ITEM_NOT_FOUND"

    def __init__(self, item_id: int = 0, *, product_id: int = 0, location: str = "") -> None:
        super().__init__(
            f"there is no inventory item {item_id}" if item_id else f"product {product_id} has no item at {location}"
        )
        self._metadata = {"id": str(item_id)} if item_id else {"product_id": str(product_id), "location": location}

    def metadata(self) -> dict[str, str]:
        return self._metadata


class ReservationNotFound(NotFound):
    """No reservation has this id, or the order has no reservation."""

    reason: ClassVar[str] = "RESERVATION_NOT_FOUND"

    def __init__(self, *, reservation_id: str = "", order_id: str = "") -> None:
        super().__init__(
            f"there is no reservation {reservation_id}" if reservation_id else f"order {order_id} has no reservation"
        )
        self._metadata = {"reservation_id": reservation_id} if reservation_id else {"order_id": order_id}

    def metadata(self) -> dict[str, str]:
        return self._metadata


class InsufficientStock(Refused):
    """Fewer units are free than the request needs. Units of due reservations count as free."""

    reason: ClassVar[str] = "INSUFFICIENT_STOCK"

    def __init__(self, product_id: int, requested: int, available: int, location: str | None = None) -> None:
        where = f" at {location}" if location else ""
        super().__init__(f"product {product_id}{where}: {requested} requested, {available} available")
        self.product_id = product_id
        self.requested = requested
        self.available = available
        self.location = location

    def metadata(self) -> dict[str, str]:
        numbers = {
            "product_id": str(self.product_id),
            "requested": str(self.requested),
            "available": str(self.available),
        }
        return {**numbers, "location": self.location} if self.location else numbers


class _OrderRefused(Refused):
    def __init__(self, order_id: str, message: str) -> None:
        super().__init__(message)
        self.order_id = order_id

    def metadata(self) -> dict[str, str]:
        return {"order_id": self.order_id}


class ReservationsLimit(_OrderRefused):
    """The order has, or would have, too many active reservations or too many allocations of them."""

    reason: ClassVar[str] = "RESERVATIONS_LIMIT"

    def __init__(self, order_id: str, reservations: int, allocations: int) -> None:
        super().__init__(
            order_id,
            f"order {order_id}: {reservations} active reservations with {allocations} allocations exceed the limits of "
            f"{ORDER_RESERVATIONS_MAX} and {ORDER_ALLOCATIONS_MAX}",
        )
        self._counts = {"reservations": str(reservations), "allocations": str(allocations)}

    def metadata(self) -> dict[str, str]:
        return super().metadata() | self._counts


class ReservationExpired(_OrderRefused):
    """A reservation of the order expired before the order was confirmed."""

    reason: ClassVar[str] = "RESERVATION_EXPIRED"

    def __init__(self, order_id: str) -> None:
        super().__init__(order_id, f"a reservation of order {order_id} has expired")


class ReservationReleased(_OrderRefused):
    """All reservations of the order were released."""

    reason: ClassVar[str] = "RESERVATION_RELEASED"

    def __init__(self, order_id: str) -> None:
        super().__init__(order_id, f"all reservations of order {order_id} were released")


class ExtensionLimit(_OrderRefused):
    """A reservation of the order would be held for longer in total than is allowed."""

    reason: ClassVar[str] = "EXTENSION_LIMIT"

    def __init__(self, order_id: str, latest: datetime) -> None:
        super().__init__(order_id, f"the reservations of order {order_id} cannot be held after {rfc3339(latest)}")
        self._latest = latest

    def metadata(self) -> dict[str, str]:
        return super().metadata() | {"latest": rfc3339(self._latest)}


class BelowReserved(Refused):
    """The new quantity is less than the reserved and the withheld units together."""

    reason: ClassVar[str] = "BELOW_RESERVED"

    def __init__(self, item: Item, requested: int) -> None:
        reserved, withheld = item.reserved_quantity, item.withheld_quantity
        units = f"{reserved} reserved and {withheld} withheld units" if withheld else f"{reserved} reserved units"
        super().__init__(f"item {item.id}: quantity {requested} is below the {units}")
        self._metadata = {
            "id": str(item.id),
            "requested": str(requested),
            "reserved": str(reserved),
            "withheld": str(withheld),
        }

    def metadata(self) -> dict[str, str]:
        return self._metadata


class InsufficientWithheld(Refused):
    """The change gives back more units than are withheld for its reason."""

    reason: ClassVar[str] = "INSUFFICIENT_WITHHELD"

    def __init__(self, item: Item, withheld_reason: str, requested: int, withheld: int) -> None:
        super().__init__(
            f"product {item.product_id} at {item.location}: {requested} units to give back, {withheld} withheld"
        )
        self._metadata = {
            "product_id": str(item.product_id),
            "location": item.location,
            "withheld_reason": withheld_reason,
            "requested": str(requested),
            "withheld": str(withheld),
        }

    def metadata(self) -> dict[str, str]:
        return self._metadata


class WithholdingsLimit(Refused):
    """The units of the item would be withheld for too many reasons."""

    reason: ClassVar[str] = "WITHHOLDINGS_LIMIT"

    def __init__(self, item: Item) -> None:
        super().__init__(
            f"units of product {item.product_id} at {item.location} are already withheld for {WITHHOLDINGS_MAX} "
            "reasons, the maximum"
        )
        self._metadata = {
            "product_id": str(item.product_id),
            "location": item.location,
            "limit": str(WITHHOLDINGS_MAX),
        }

    def metadata(self) -> dict[str, str]:
        return self._metadata


class QuantityLimit(Refused):
    """The item would have more units than an item may have."""

    reason: ClassVar[str] = "QUANTITY_LIMIT"

    def __init__(self, product_id: int, location: str, quantity: int) -> None:
        super().__init__(
            f"product {product_id} at {location} has {quantity} units; an item has at most {ITEM_QUANTITY_MAX}"
        )
        self._metadata = {"product_id": str(product_id), "location": location, "quantity": str(quantity)}

    def metadata(self) -> dict[str, str]:
        return self._metadata


class LocationsLimit(Refused):
    """The product would have too many locations, or the reservation would take units from too many locations."""

    reason: ClassVar[str] = "LOCATIONS_LIMIT"

    def __init__(self, product_id: int, message: str) -> None:
        super().__init__(message)
        self._metadata = {"product_id": str(product_id), "limit": str(LOCATIONS_MAX)}

    @classmethod
    def of_product(cls, product_id: int) -> Self:
        """Return the error for a product that cannot get another location."""
        return cls(product_id, f"product {product_id} is already at {LOCATIONS_MAX} locations, the maximum")

    def metadata(self) -> dict[str, str]:
        return self._metadata


class ChangesRefused(Refused):
    """All changes of an atomic call were refused, because of one of them. `number` counts the changes from 0."""

    reason: ClassVar[str] = "CHANGES_REFUSED"

    def __init__(self, number: int, cause: ShopError) -> None:
        super().__init__(f"changes[{number}]: {cause.message}")
        self._metadata = {**cause.metadata(), "change": str(number), "change_reason": cause.reason}

    def metadata(self) -> dict[str, str]:
        return self._metadata


class VersionMismatch(Conflict):
    """The item has changed since the caller read it."""

    reason: ClassVar[str] = "VERSION_MISMATCH"

    def __init__(self, item_id: int, expected: int, actual: int) -> None:
        super().__init__(f"item {item_id} has version {actual}, not {expected}")
        self._metadata = {"id": str(item_id), "expected": str(expected), "actual": str(actual)}

    def metadata(self) -> dict[str, str]:
        return self._metadata
