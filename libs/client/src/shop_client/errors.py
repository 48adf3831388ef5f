"""The errors that calls raise: one class per kind, and below it one class per reason.

ShopError
├── InvalidInput             INVALID_ARGUMENT     INVALID_FIELD
│   └── RequestIdReused                           REQUEST_ID_REUSED
├── Unauthenticated          UNAUTHENTICATED
│   ├── CredentialsMissing                        CREDENTIALS_MISSING
│   ├── TokenInvalid                              TOKEN_INVALID
│   └── TokenExpired                              TOKEN_EXPIRED
├── PermissionDenied         PERMISSION_DENIED
│   ├── PermissionMissing                         PERMISSION_MISSING
│   └── DelegationInvalid                         DELEGATION_INVALID
├── NotFound                 NOT_FOUND
│   ├── ItemNotFound                              ITEM_NOT_FOUND
│   ├── OrderNotFound                             ORDER_NOT_FOUND
│   ├── OrderItemNotFound                         ORDER_ITEM_NOT_FOUND
│   └── ReservationNotFound                       RESERVATION_NOT_FOUND
├── Refused                  FAILED_PRECONDITION
│   ├── InsufficientStock                         INSUFFICIENT_STOCK
│   ├── IllegalTransition                         ILLEGAL_TRANSITION
│   ├── NotReinstatable                           NOT_REINSTATABLE
│   ├── OrderNotPending                           ORDER_NOT_PENDING
│   ├── OrderNotChangeable                        ORDER_NOT_CHANGEABLE
│   ├── UnitsNotOpen                              UNITS_NOT_OPEN
│   ├── ShipmentsLimit                            SHIPMENTS_LIMIT
│   ├── UnitsNotReturnable                        UNITS_NOT_RETURNABLE
│   ├── ReturnsLimit                              RETURNS_LIMIT
│   ├── BuyerLimitExceeded                        BUYER_LIMIT_EXCEEDED
│   ├── BuyerOrdersLimit                          BUYER_ORDERS_LIMIT
│   ├── ReservationExpired                        RESERVATION_EXPIRED
│   ├── ReservationReleased                       RESERVATION_RELEASED
│   ├── ExtensionLimit                            EXTENSION_LIMIT
│   ├── BelowReserved                             BELOW_RESERVED
│   ├── InsufficientWithheld                      INSUFFICIENT_WITHHELD
│   ├── WithholdingsLimit                         WITHHOLDINGS_LIMIT
│   ├── QuantityLimit                             QUANTITY_LIMIT
│   ├── LocationsLimit                            LOCATIONS_LIMIT
│   ├── ReservationsLimit                         RESERVATIONS_LIMIT
│   └── ChangesRefused                            CHANGES_REFUSED
├── Conflict                 ABORTED
│   ├── VersionMismatch                           VERSION_MISMATCH
│   └── Contention                                CONTENTION
├── Overload                 RESOURCE_EXHAUSTED
│   ├── QueueFull                                 QUEUE_FULL
│   ├── PoolTimeout                               POOL_TIMEOUT
│   ├── RateLimited                               RATE_LIMITED
│   └── AnswerTooLarge                            ANSWER_TOO_LARGE
├── Unavailable              UNAVAILABLE
│   ├── DatabaseUnavailable                       DATABASE_UNAVAILABLE
│   ├── BrokerUnavailable                         BROKER_UNAVAILABLE
│   ├── InventoryUnavailable                      INVENTORY_UNAVAILABLE
│   ├── KeySetUnavailable                         KEY_SET_UNAVAILABLE
│   └── ApiKeysUnavailable                        API_KEYS_UNAVAILABLE
├── NotSupported             UNIMPLEMENTED
│   ├── PartialChangesDisabled                    PARTIAL_CHANGES_DISABLED
│   └── WithholdingDisabled                       WITHHOLDING_DISABLED
├── DeadlineExceeded         DEADLINE_EXCEEDED
├── Cancelled                CANCELLED
└── InternalError            INTERNAL

A newer server may return a reason that this version does not know. The error then has the class of its kind, or
ShopError, and the new `reason`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Violation:
    """An invalid field: its path in the request, such as `items[2].quantity`, and a description of the fault."""

    field: str
    description: str


class ShopError(Exception):
    """The root of all errors that calls raise.

    `reason` is stable, so programs may branch on it. `message` is for people. `metadata` has the values of the error as
    text; the classes below have properties for them. `violations` names the invalid fields. `retry_after_seconds` is
    the pause that an overloaded server asks for. `request_id` is the id of the call, also if the client made it: repeat
    a call whose outcome is unknown with this id.
    """

    REASON: ClassVar[str] = ""

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after_seconds: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.REASON
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after_seconds = retry_after_seconds
        self.request_id = request_id

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}" if self.reason else self.message

    def _number(self, key: str) -> int:
        return int(self.metadata[key])


class InvalidInput(ShopError):
    """The request is invalid in every state of the system. `violations` names the invalid fields."""

    REASON = "INVALID_FIELD"


class RequestIdReused(InvalidInput):
    """Another call with other content has used this request_id."""

    REASON = "REQUEST_ID_REUSED"


class Unauthenticated(ShopError):
    """The server does not accept the caller's credentials."""


class CredentialsMissing(Unauthenticated):
    """The call has neither a token nor a client certificate."""

    REASON = "CREDENTIALS_MISSING"


class TokenInvalid(Unauthenticated):
    """The server does not accept the token or API key."""

    REASON = "TOKEN_INVALID"


class TokenExpired(Unauthenticated):
    """The token has expired."""

    REASON = "TOKEN_EXPIRED"


class PermissionDenied(ShopError):
    """The caller is known but may not make this call."""


class PermissionMissing(PermissionDenied):
    """The caller lacks `permission`."""

    REASON = "PERMISSION_MISSING"

    @property
    def permission(self) -> str:
        return self.metadata["permission"]


class DelegationInvalid(PermissionDenied):
    """The call names a tenant or a user for whom the caller may not act."""

    REASON = "DELEGATION_INVALID"


class NotFound(ShopError):
    """The resource does not exist."""


class ItemNotFound(NotFound):
    """No item has this id, or the product has no item at this location."""

    REASON = "ITEM_NOT_FOUND"


class OrderNotFound(NotFound):
    """No order has this id, or it is the order of a user whose orders the caller may not see."""

    REASON = "ORDER_NOT_FOUND"


class OrderItemNotFound(NotFound):
    """The order has no line with this id."""

    REASON = "ORDER_ITEM_NOT_FOUND"


class ReservationNotFound(NotFound):
    """No reservation has this id, or the order has no reservation."""

    REASON = "RESERVATION_NOT_FOUND"


class Refused(ShopError):
    """The current state does not allow the call. Nothing was done."""


class InsufficientStock(Refused):
    """Fewer units are available than the call needs."""

    REASON = "INSUFFICIENT_STOCK"

    @property
    def product_id(self) -> int:
        return self._number("product_id")

    @property
    def requested(self) -> int:
        return self._number("requested")

    @property
    def available(self) -> int:
        return self._number("available")

    @property
    def location(self) -> str | None:
        """The location that the call named, or None."""
        return self.metadata.get("location")


class IllegalTransition(Refused):
    """The order cannot change from its status to the requested one. `metadata` has `from`, `to` and `legal`."""

    REASON = "ILLEGAL_TRANSITION"

    @property
    def legal(self) -> tuple[str, ...]:
        """The statuses to which the order can change."""
        return tuple(status for status in self.metadata["legal"].split(",") if status)


class NotReinstatable(Refused):
    """The order is not CANCELLED, or was cancelled for another reason than the expiry of its reservation."""

    REASON = "NOT_REINSTATABLE"


class OrderNotChangeable(Refused):
    """The order is not PENDING, CONFIRMED or PROCESSING, so its lines cannot be changed."""

    REASON = "ORDER_NOT_CHANGEABLE"


class OrderNotPending(Refused):
    """The order is not PENDING, so its stock has no expiry that could be moved. `metadata` has `status`."""

    REASON = "ORDER_NOT_PENDING"


class UnitsNotOpen(Refused):
    """The call has more units of a line than are open. `metadata` has `open`."""

    REASON = "UNITS_NOT_OPEN"


class ShipmentsLimit(Refused):
    """The order has as many shipments as it may have. Ship the rest with `update_order_status`."""

    REASON = "SHIPMENTS_LIMIT"


class UnitsNotReturnable(Refused):
    """The call returns more units of a line than were shipped and have not come back yet; see `metadata`."""

    REASON = "UNITS_NOT_RETURNABLE"


class ReturnsLimit(Refused):
    """The returns of the order would have too many items together."""

    REASON = "RETURNS_LIMIT"


class BuyerLimitExceeded(Refused):
    """The order's buyer would have more units of a product than `NewItem.buyer_limit` allows."""

    REASON = "BUYER_LIMIT_EXCEEDED"

    @property
    def product_id(self) -> int:
        return self._number("product_id")

    @property
    def limit(self) -> int:
        return self._number("limit")

    @property
    def bought(self) -> int:
        """The units that the buyer has already."""
        return self._number("bought")

    @property
    def requested(self) -> int:
        return self._number("requested")


class BuyerOrdersLimit(Refused):
    """The order has a `buyer_limit`, and its buyer has more open orders than can be counted; see `limit`."""

    REASON = "BUYER_ORDERS_LIMIT"

    @property
    def limit(self) -> int:
        return self._number("limit")


class ReservationExpired(Refused):
    """A reservation of the order has expired. Reinstate the order, or create a new one with a new request_id."""

    REASON = "RESERVATION_EXPIRED"


class ReservationReleased(Refused):
    """Reservations of the order were released."""

    REASON = "RESERVATION_RELEASED"


class ExtensionLimit(Refused):
    """A reservation would be held for more than 7 days. `metadata` has `latest`, the latest possible expiry."""

    REASON = "EXTENSION_LIMIT"


class BelowReserved(Refused):
    """The new quantity of the item would be less than its reserved and its withheld units together."""

    REASON = "BELOW_RESERVED"

    @property
    def requested(self) -> int:
        return self._number("requested")

    @property
    def reserved(self) -> int:
        return self._number("reserved")

    @property
    def withheld(self) -> int:
        return self._number("withheld")


class InsufficientWithheld(Refused):
    """Fewer units are withheld for the reason than the change gives back."""

    REASON = "INSUFFICIENT_WITHHELD"

    @property
    def requested(self) -> int:
        return self._number("requested")

    @property
    def withheld(self) -> int:
        return self._number("withheld")


class WithholdingsLimit(Refused):
    """The units of the item are already withheld for as many reasons as possible."""

    REASON = "WITHHOLDINGS_LIMIT"

    @property
    def limit(self) -> int:
        return self._number("limit")


class QuantityLimit(Refused):
    """The item would have more units than an item may have. `quantity` is its current one."""

    REASON = "QUANTITY_LIMIT"

    @property
    def quantity(self) -> int:
        return self._number("quantity")


class LocationsLimit(Refused):
    """The product would have too many locations, or the stock would come from too many locations."""

    REASON = "LOCATIONS_LIMIT"

    @property
    def limit(self) -> int:
        return self._number("limit")


class ReservationsLimit(Refused):
    """The order would have too many reservations or too many allocations."""

    REASON = "RESERVATIONS_LIMIT"


class ChangesRefused(Refused):
    """No change of an atomic call was made, because one was refused. `metadata` also has the values of its error."""

    REASON = "CHANGES_REFUSED"

    @property
    def change(self) -> int:
        """The position of the refused change, from 0."""
        return self._number("change")

    @property
    def change_reason(self) -> str:
        """The reason of the refused change."""
        return self.metadata["change_reason"]


class Conflict(ShopError):
    """A concurrent change prevented the call. Read the current state and repeat the call."""


class VersionMismatch(Conflict):
    """The item or the order has changed since the caller read it."""

    REASON = "VERSION_MISMATCH"

    @property
    def expected(self) -> int:
        return self._number("expected")

    @property
    def actual(self) -> int:
        return self._number("actual")


class Contention(Conflict):
    """Other calls kept changing the same rows. Nothing was done."""

    REASON = "CONTENTION"


class Overload(ShopError):
    """A limit of the server is reached. Repeat the call after `retry_after_seconds`."""


class QueueFull(Overload):
    """Too many calls are waiting in the server."""

    REASON = "QUEUE_FULL"


class PoolTimeout(Overload):
    """No database connection of the server became free in time."""

    REASON = "POOL_TIMEOUT"


class RateLimited(Overload):
    """The caller sends more lines per second than its limit allows."""

    REASON = "RATE_LIMITED"


class AnswerTooLarge(Overload):
    """The response would be too large: request fewer entries. A change that the call made has taken effect."""

    REASON = "ANSWER_TOO_LARGE"


class NotSupported(ShopError):
    """The server does not serve the call, whatever the state: it is too old, or the operator has switched it off."""


class PartialChangesDisabled(NotSupported):
    """The operator has switched off changes of some units of an order, as during an update."""

    REASON = "PARTIAL_CHANGES_DISABLED"


class WithholdingDisabled(NotSupported):
    """The operator has switched off withholding units, as during an update."""

    REASON = "WITHHOLDING_DISABLED"


class Unavailable(ShopError):
    """The server or a dependency of it did not respond until the deadline. The call may have had its effect."""


class DatabaseUnavailable(Unavailable):
    """The server's database did not respond."""

    REASON = "DATABASE_UNAVAILABLE"


class BrokerUnavailable(Unavailable):
    """Kafka did not respond to the server, or refused its request."""

    REASON = "BROKER_UNAVAILABLE"


class InventoryUnavailable(Unavailable):
    """inventory-api did not respond to order-api."""

    REASON = "INVENTORY_UNAVAILABLE"


class KeySetUnavailable(Unavailable):
    """The server could not check the token, because it has no keys of the identity provider."""

    REASON = "KEY_SET_UNAVAILABLE"


class ApiKeysUnavailable(Unavailable):
    """The server could not check the API key, because it has not read the keys yet."""

    REASON = "API_KEYS_UNAVAILABLE"


class DeadlineExceeded(ShopError):
    """The call's deadline has passed. The call may have had its effect, or may still have it."""

    REASON = "DEADLINE_EXCEEDED"


class Cancelled(ShopError):
    """The call was cancelled, for example because the client was closed. It may have had its effect."""

    REASON = "CANCELLED"


class InternalError(ShopError):
    """A defect of the server. The server's log has the details under `error_id`."""

    REASON = "INTERNAL"

    @property
    def error_id(self) -> str:
        return self.metadata.get("error_id", "")
