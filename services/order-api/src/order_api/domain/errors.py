"""The errors that refuse a request about orders. `shop_common.errors` has the gRPC status of NotFound and Refused.

ShopError
├── NotFound
│   └── OrderNotFound
└── Refused
    ├── IllegalTransition
    ├── ReservationExpired      (when an order is created; a confirmation gets this reason from inventory-api)
    └── ReservationReleased     (when an order is confirmed)
"""

from typing import ClassVar

from order_api.domain.model import LEGAL_CHANGES, Status
from shop_common.errors import NotFound, Refused


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

    def __init__(self, order_id: str, present: Status, requested: Status) -> None:
        legal = ",".join(LEGAL_CHANGES[present])
        super().__init__(f"order {order_id} is {present} and can't become {requested}; legal: {legal or 'none'}")
        self._metadata = {"id": order_id, "from": present.value, "to": requested.value, "legal": legal}

    def metadata(self) -> dict[str, str]:
        return self._metadata


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
