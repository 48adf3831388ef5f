"""The errors that refuse a request about orders. `shop_common.errors` has the gRPC status of NotFound and Refused.

ShopError
├── NotSupported
│   └── PartialChangesDisabled
├── NotFound
│   ├── OrderNotFound
│   └── OrderItemNotFound
├── Conflict
│   └── VersionMismatch
└── Refused
    ├── IllegalTransition
    ├── NotReinstatable
    ├── OrderNotPending
    ├── OrderNotChangeable
    ├── UnitsNotOpen
    ├── ShipmentsLimit
    ├── UnitsNotReturnable
    ├── ReturnsLimit
    ├── BuyerLimitExceeded
    ├── BuyerOrdersLimit
    ├── ReservationExpired      (when an order is created; a confirmation gets this reason from inventory-api)
    └── ReservationReleased     (when an order is confirmed)
"""

from collections.abc import Sequence
from typing import ClassVar

from order_api.domain.model import COUNTED_ORDERS_MAX, LEGAL_CHANGES, RETURN_ITEMS_MAX, SHIPMENTS_MAX, Status
from shop_common.errors import Conflict, NotFound, NotSupported, Refused


class PartialChangesDisabled(NotSupported):
    """Changes of some units of an order are switched off by PARTIAL_CHANGES_ENABLED, as during an update."""

    reason: ClassVar[str] = "PARTIAL_CHANGES_DISABLED"

    def __init__(self) -> None:
        super().__init__("changes of some units of an order are switched off")


class OrderNotFound(NotFound):
    """No order has this id."""

    reason: ClassVar[str] = "ORDER_NOT_FOUND"

    def __init__(self, order_id: str) -> None:
        super().__init__(f"there is no order {order_id}")
        self.order_id = order_id

    def metadata(self) -> dict[str, str]:
        return {"id": self.order_id}


class IllegalTransition(Refused):
    """The order cannot change from its status to the requested one."""

    reason: ClassVar[str] = "ILLEGAL_TRANSITION"

    def __init__(
        self, order_id: str, present: Status, requested: Status, legal_changes: Sequence[Status] | None = None
    ) -> None:
        legal = ",".join(LEGAL_CHANGES[present] if legal_changes is None else legal_changes)
        super().__init__(f"order {order_id} is {present} and can't become {requested}; legal: {legal or 'none'}")
        self._metadata = {"id": order_id, "from": present.value, "to": requested.value, "legal": legal}

    def metadata(self) -> dict[str, str]:
        return self._metadata


class NotReinstatable(Refused):
    """The order is not CANCELLED, or was cancelled for another reason than the expiry of its reservation."""

    reason: ClassVar[str] = "NOT_REINSTATABLE"

    def __init__(self, order_id: str, status: Status) -> None:
        super().__init__(f"order {order_id} is {status}, and not because its reservation expired")
        self._metadata = {"id": order_id, "status": status.value}

    def metadata(self) -> dict[str, str]:
        return self._metadata


class OrderNotPending(Refused):
    """The order is not PENDING, so its stock has no expiry that could be moved."""

    reason: ClassVar[str] = "ORDER_NOT_PENDING"

    def __init__(self, order_id: str, status: Status) -> None:
        super().__init__(f"order {order_id} is {status}, not PENDING")
        self._metadata = {"id": order_id, "status": status.value}

    def metadata(self) -> dict[str, str]:
        return self._metadata


class OrderNotChangeable(Refused):
    """The order is not PENDING, CONFIRMED or PROCESSING, so its lines cannot be changed."""

    reason: ClassVar[str] = "ORDER_NOT_CHANGEABLE"

    def __init__(self, order_id: str, status: Status) -> None:
        super().__init__(f"order {order_id} is {status}, and can't be changed any more")
        self._metadata = {"id": order_id, "status": status.value}

    def metadata(self) -> dict[str, str]:
        return self._metadata


class VersionMismatch(Conflict):
    """The order has changed since the caller read it."""

    reason: ClassVar[str] = "VERSION_MISMATCH"

    def __init__(self, order_id: str, expected: int, actual: int) -> None:
        super().__init__(f"order {order_id} has version {actual}, not {expected}")
        self._metadata = {"id": order_id, "expected": str(expected), "actual": str(actual)}

    def metadata(self) -> dict[str, str]:
        return self._metadata


class OrderItemNotFound(NotFound):
    """The order has no line with this id."""

    reason: ClassVar[str] = "ORDER_ITEM_NOT_FOUND"

    def __init__(self, order_id: str, item_id: int) -> None:
        super().__init__(f"order {order_id} has no item {item_id}")
        self._metadata = {"id": order_id, "item_id": str(item_id)}

    def metadata(self) -> dict[str, str]:
        return self._metadata


class UnitsNotOpen(Refused):
    """The request has more units of a line than are open."""

    reason: ClassVar[str] = "UNITS_NOT_OPEN"

    def __init__(self, order_id: str, item_id: int, requested: int, open_units: int) -> None:
        super().__init__(f"item {item_id} of order {order_id} has {open_units} open units, not {requested}")
        self._metadata = {
            "id": order_id, "item_id": str(item_id), "requested": str(requested), "open": str(open_units),
        }  # fmt: skip

    def metadata(self) -> dict[str, str]:
        return self._metadata


class ShipmentsLimit(Refused):
    """The order has as many shipments as it may have. Ship the rest with UpdateOrderStatus."""

    reason: ClassVar[str] = "SHIPMENTS_LIMIT"

    def __init__(self, order_id: str) -> None:
        super().__init__(f"order {order_id} has {SHIPMENTS_MAX} shipments already")
        self._metadata = {"id": order_id, "limit": str(SHIPMENTS_MAX)}

    def metadata(self) -> dict[str, str]:
        return self._metadata


class UnitsNotReturnable(Refused):
    """The request returns more units of a line than were shipped and have not come back yet."""

    reason: ClassVar[str] = "UNITS_NOT_RETURNABLE"

    def __init__(self, order_id: str, item_id: int, requested: int, returnable: int) -> None:
        super().__init__(f"item {item_id} of order {order_id} has {returnable} units to return, not {requested}")
        self._metadata = {
            "id": order_id, "item_id": str(item_id), "requested": str(requested), "returnable": str(returnable),
        }  # fmt: skip

    def metadata(self) -> dict[str, str]:
        return self._metadata


class ReturnsLimit(Refused):
    """The returns of the order would have too many items together."""

    reason: ClassVar[str] = "RETURNS_LIMIT"

    def __init__(self, order_id: str) -> None:
        super().__init__(f"the returns of order {order_id} would have more than {RETURN_ITEMS_MAX} items")
        self._metadata = {"id": order_id, "limit": str(RETURN_ITEMS_MAX)}

    def metadata(self) -> dict[str, str]:
        return self._metadata


class BuyerLimitExceeded(Refused):
    """The order's buyer would have more units of a product than the order's limit allows."""

    reason: ClassVar[str] = "BUYER_LIMIT_EXCEEDED"

    def __init__(self, product_id: int, limit: int, bought: int, requested: int) -> None:
        super().__init__(
            f"a buyer may have {limit} units of product {product_id}: "
            f"this one has {bought} already, and {requested} were requested"
        )
        self._metadata = {
            "product_id": str(product_id), "limit": str(limit), "bought": str(bought), "requested": str(requested),
        }  # fmt: skip

    def metadata(self) -> dict[str, str]:
        return self._metadata


class BuyerOrdersLimit(Refused):
    """The order has a limit per buyer, and its buyer has more open orders than are counted for it."""

    reason: ClassVar[str] = "BUYER_ORDERS_LIMIT"

    def __init__(self) -> None:
        super().__init__(f"the buyer has more than {COUNTED_ORDERS_MAX} open orders, too many to count their units")

    def metadata(self) -> dict[str, str]:
        return {"limit": str(COUNTED_ORDERS_MAX)}


class ReservationExpired(Refused):
    """An earlier attempt of this CreateOrder reserved the stock but stored no order, and the reservation has ended."""

    reason: ClassVar[str] = "RESERVATION_EXPIRED"

    def __init__(self, order_id: str) -> None:
        super().__init__(
            f"the reservation of an earlier attempt for order {order_id} has ended; order again with a new request_id"
        )
        self.order_id = order_id

    def metadata(self) -> dict[str, str]:
        return {"order_id": self.order_id}


class ReservationReleased(Refused):
    """Some of the order's reservations were released, so not all of its lines can be confirmed."""

    reason: ClassVar[str] = "RESERVATION_RELEASED"

    def __init__(self, order_id: str) -> None:
        super().__init__(f"some of the stock that was reserved for order {order_id} has been released")
        self.order_id = order_id

    def metadata(self) -> dict[str, str]:
        return {"order_id": self.order_id}
