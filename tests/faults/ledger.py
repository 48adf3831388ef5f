"""What clients asked and were told, what was told on Kafka, and what the databases say: the material of the checker.

It lives outside the services and knows none of their code.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class AddStock:
    """So many units more at a place; no two of a history have both the place and the number in common."""

    product: int
    location: str
    units: int


@dataclass(frozen=True)
class Hold:
    """Units for an order of this call alone."""

    order_id: str
    product: int
    units: int


@dataclass(frozen=True)
class Release:
    """A reservation given back."""

    reservation_id: str


@dataclass(frozen=True)
class Place:
    """An order of (product, units) lines, each product once."""

    user_id: int
    lines: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Step:
    """An order to be brought to a status, such as SHIPPED."""

    order_id: str
    status: str


Wish = AddStock | Hold | Release | Place | Step


@dataclass(frozen=True)
class Answer:
    """It was done: the id of the item, reservation or order, the units released, or the status reached."""

    value: str | int


@dataclass(frozen=True)
class Refusal:
    """It was not done, and the API said so."""

    reason: str


@dataclass(frozen=True)
class Silence:
    """Nobody knows: the connection broke, the time was up, or what came is no answer (INTERNAL)."""

    code: str


DEFECTS = frozenset({"INTERNAL", "UNKNOWN", "UNIMPLEMENTED", "DATA_LOSS"})
"""Codes that no fault excuses."""

Outcome = Answer | Refusal | Silence


@dataclass(frozen=True)
class Attempt:
    """One time that a call was sent; moments of the monotonic clock."""

    asked_at: float
    answered_at: float
    outcome: Outcome


@dataclass
class Call:
    """A wish under one request id, sent once or several times."""

    wish: Wish
    request_id: str
    attempts: list[Attempt] = field(default_factory=list)

    def add(self, asked_at: float, outcome: Outcome) -> None:
        self.attempts.append(Attempt(asked_at, time.monotonic(), outcome))

    @property
    def answers(self) -> list[str | int]:
        return [attempt.outcome.value for attempt in self.attempts if isinstance(attempt.outcome, Answer)]

    @property
    def silences(self) -> list[str]:
        return [attempt.outcome.code for attempt in self.attempts if isinstance(attempt.outcome, Silence)]

    @property
    def refusals(self) -> list[str]:
        return [attempt.outcome.reason for attempt in self.attempts if isinstance(attempt.outcome, Refusal)]

    @property
    def fate(self) -> Literal["done", "refused", "unknown"]:
        """One answer settles it; without one, a single silence leaves it open."""
        if self.answers:
            return "done"
        return "unknown" if self.silences or not self.attempts else "refused"


class Ledger:
    """All calls of a history. To be written by all clients at once."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._lock = threading.Lock()

    def open(self, wish: Wish, request_id: str) -> Call:
        """To be called before anything is sent: what is not in the ledger must not have happened."""
        call = Call(wish, request_id)
        with self._lock:
            self.calls.append(call)
        return call

    def count(self, fate: str = "done") -> int:
        """How many calls have come to this so far."""
        with self._lock:
            return sum(call.fate == fate for call in self.calls)


@dataclass(frozen=True)
class Event:
    """As it lay in its topic."""

    topic: str
    partition: int
    offset: int
    key: str
    id: str
    type: str
    sequence: int
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Item:
    """A row of the inventory."""

    id: int
    product: int
    location: str
    quantity: int
    reserved: int
    version: int


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
    """At some time, by its missing time limit, whatever became of it later."""


@dataclass(frozen=True)
class Order:
    """A row with its lines: units by product."""

    id: str
    user_id: int
    status: str
    version: int
    lines: Mapping[int, int]


@dataclass(frozen=True)
class Books:
    """Both databases at rest."""

    items: Mapping[int, Item]
    reservations: Mapping[str, Reservation]
    orders: Mapping[str, Order]


@dataclass(frozen=True)
class History:
    """All that is known of a run. `calm`: nothing was done to the system, so that each call must have its answer."""

    calls: list[Call]
    events: list[Event]
    books: Books
    letters: list[str] = field(default_factory=list)
    """Ids of the events that consumers set aside."""
    poison: frozenset[str] = frozenset()
    """Ids of those that they had to."""
    calm: bool = False
    restless: str = ""
    """What was still left to do when the time to come to rest was up."""
