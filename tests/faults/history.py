"""The input of the checker: the operations of clients, the events on Kafka, and a snapshot of the databases.

This module imports no code of the services. There is one history for each tenant of a run.
"""

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

DEFAULT_TENANT = "default"
"""The tenant of all calls if identities are not checked."""


EXTENDED = "EXTENDED"
"""Stands for a status in ChangeStatus: the stock of the order is held for longer."""


@dataclass(frozen=True)
class AddStock:
    """Add units of a product at a location. No two operations of a history add the same number at the same location."""

    product: int
    location: str
    units: int


@dataclass(frozen=True)
class ChangeStock:
    """Move, withhold or give back units of a product. `movements` are the effects: (location, units, withheld units).

    The reference of each movement is the request id.
    """

    product: int
    movements: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Reserve:
    """Reserve units under an order id that no other operation uses."""

    order_id: str
    product: int
    units: int


@dataclass(frozen=True)
class Release:
    """Release a reservation."""

    reservation_id: str


@dataclass(frozen=True)
class CreateOrder:
    """Create an order with (product, units) lines. Each product occurs once."""

    user_id: int
    lines: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ChangeStatus:
    """Change the status of an order, for example to SHIPPED, or extend it."""

    order_id: str
    status: str


@dataclass(frozen=True)
class ShipUnits:
    """Ship some open units of an order: (product, units)."""

    order_id: str
    units: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class CancelUnits:
    """Cancel some open units of an order: (product, units)."""

    order_id: str
    units: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ReturnUnits:
    """Take back some shipped units of an order: (product, units)."""

    order_id: str
    units: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ChangeLines:
    """Let the order keep these units of each product, `added` ones among them: (product, units)."""

    order_id: str
    units: tuple[tuple[int, int], ...]
    added: tuple[tuple[int, int], ...]


UnitChange = ShipUnits | CancelUnits | ReturnUnits | ChangeLines
"""An operation on some units of an order. The event of its effect contains its request id."""


@dataclass(frozen=True)
class Read:
    """Read a page of the items or reservations of a product, or of the orders. It has no effect."""

    kind: str


Operation = AddStock | ChangeStock | Reserve | Release | CreateOrder | ChangeStatus | UnitChange | Read


@dataclass(frozen=True)
class Answer:
    """The operation succeeded: the id of the item, reservation or order, the units released, or 0 for a page."""

    value: str | int


@dataclass(frozen=True)
class Refusal:
    """The API refused the operation. `text` is the message and the metadata of the error."""

    reason: str
    text: str = field(default="", compare=False)


@dataclass(frozen=True)
class Info:
    """The outcome is unknown: the connection broke, the deadline passed, or the API returned INTERNAL (Jepsen info)."""

    code: str
    text: str = field(default="", compare=False)


DEFECTS = frozenset({"INTERNAL", "UNKNOWN", "UNIMPLEMENTED", "DATA_LOSS"})
"""Status codes that are a defect even while a fault is injected."""

Outcome = Answer | Refusal | Info


@dataclass(frozen=True)
class Attempt:
    """One request and its outcome. Times are of the monotonic clock, in seconds."""

    sent_at: float
    answered_at: float
    outcome: Outcome


@dataclass
class Call:
    """An operation under one request id, sent once or several times."""

    operation: Operation
    request_id: str
    attempts: list[Attempt] = field(default_factory=list)
    tenant: str = DEFAULT_TENANT

    def add(self, sent_at: float, outcome: Outcome) -> None:
        self.attempts.append(Attempt(sent_at, time.monotonic(), outcome))

    @property
    def answers(self) -> list[str | int]:
        return [attempt.outcome.value for attempt in self.attempts if isinstance(attempt.outcome, Answer)]

    @property
    def infos(self) -> list[str]:
        return [attempt.outcome.code for attempt in self.attempts if isinstance(attempt.outcome, Info)]

    @property
    def refusals(self) -> list[str]:
        return [attempt.outcome.reason for attempt in self.attempts if isinstance(attempt.outcome, Refusal)]

    @property
    def texts(self) -> list[str]:
        """The messages of all errors."""
        return [each.outcome.text for each in self.attempts if not isinstance(each.outcome, Answer)]

    @property
    def fate(self) -> Literal["done", "refused", "unknown"]:
        """`done` after at least one answer. Without an answer, a single `Info` makes it `unknown`."""
        if self.answers:
            return "done"
        return "unknown" if self.infos or not self.attempts else "refused"


class CallLog:
    """All calls of a history. Thread-safe: all clients write to it."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.seen: dict[str, set[str | int]] = {}
        """Tenant → the ids of all rows on the pages that it has read."""
        self._lock = threading.Lock()

    def open(self, operation: Operation, request_id: str, tenant: str) -> Call:
        """Record a call. Must run before its first request: the checker reports any effect without a recorded call."""
        call = Call(operation, request_id, tenant=tenant)
        with self._lock:
            self.calls.append(call)
        return call

    def add_page(self, tenant: str, ids: Iterable[str | int]) -> None:
        """Record the ids of the rows on a page."""
        with self._lock:
            self.seen.setdefault(tenant, set()).update(ids)

    def count(self, fate: str = "done") -> int:
        """The number of calls whose fate is this one now."""
        with self._lock:
            return sum(call.fate == fate for call in self.calls)


@dataclass(frozen=True)
class Event:
    """An event as it was read from its topic."""

    topic: str
    partition: int
    offset: int
    key: str
    id: str
    type: str
    sequence: int
    data: Mapping[str, Any]
    tenant: str = DEFAULT_TENANT


@dataclass(frozen=True)
class Item:
    """A row of inventory_items."""

    id: int
    product: int
    location: str
    quantity: int
    reserved: int
    version: int
    withheld: int = 0
    withholdings: int = 0


@dataclass(frozen=True)
class Reservation:
    """A row with its allocations: units by item."""

    id: str
    product: int
    units: int
    order_id: str
    state: str
    allocations: Mapping[int, int]
    was_confirmed: bool
    """True if it was confirmed at any time. Confirmation clears expires_at, and no later transition sets it again."""


@dataclass(frozen=True)
class Order:
    """A row with its lines: units by product, those of several lines added up.

    `shipped` and `cancelled` are the units that calls about single units have shipped and cancelled.
    """

    id: str
    user_id: int
    status: str
    version: int
    lines: Mapping[int, int]
    shipped: Mapping[int, int] = field(default_factory=dict)
    cancelled: Mapping[int, int] = field(default_factory=dict)

    def cancelled_units(self, product: int) -> int:
        """The cancelled units of the product: all units if the status is CANCELLED."""
        return self.lines.get(product, 0) if self.status == "CANCELLED" else self.cancelled.get(product, 0)

    def shipped_units(self, product: int) -> int:
        """The shipped units of the product: all units that are not cancelled if the status is SHIPPED or DELIVERED."""
        if self.status in {"SHIPPED", "DELIVERED"}:
            return self.kept_units(product)
        return self.shipped.get(product, 0)

    def kept_units(self, product: int) -> int:
        """The units of the product that are not cancelled."""
        return self.lines.get(product, 0) - self.cancelled_units(product)


@dataclass(frozen=True)
class Snapshot:
    """The rows of one tenant in both databases, read when the system was at rest."""

    items: dict[int, Item] = field(default_factory=dict)
    reservations: dict[str, Reservation] = field(default_factory=dict)
    orders: dict[str, Order] = field(default_factory=dict)
    intents: frozenset[str] = frozenset()
    """The ids of the orders of which a change has begun and not ended."""


@dataclass(frozen=True)
class History:
    """Everything recorded for one tenant in a run.

    `fault_free`: no fault was injected, so every call must have an answer.
    """

    calls: list[Call]
    events: list[Event]
    snapshot: Snapshot
    dead_letters: list[str] = field(default_factory=list)
    """Ids of the events that consumers wrote to the dead-letter topic."""
    poison: frozenset[str] = frozenset()
    """Ids of the events that consumers must write to the dead-letter topic."""
    fault_free: bool = False
    unfinished: str = ""
    """The work that was left when the system did not come to rest in time. Empty if it did."""
    tenant: str = DEFAULT_TENANT
    seen: frozenset[str | int] = frozenset()
    """The ids of all rows on the pages that the tenant has read."""
