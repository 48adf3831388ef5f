"""What can go wrong, by kind. A domain error is one small class beside its operation; it knows no gRPC.

Each concrete error has a stable `reason`, on which callers may branch, and carries in `metadata` the numbers
they need. `shop_common.rpc.status` is the one place that maps kinds to gRPC statuses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class ShopError(Exception):
    """The root of every error that a caller is told about. Anything else is a defect."""

    reason: ClassVar[str]

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def metadata(self) -> dict[str, str]:
        """What a program needs to act on the error; keys are stable."""
        return {}


@dataclass(frozen=True)
class Violation:
    """One bad field: its path in the request (`items[2].quantity`) and what it must be."""

    field: str
    description: str


class InvalidInput(ShopError):
    """The request itself is wrong, whatever the state of the shop. Names every bad field."""

    reason = "INVALID_FIELD"

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations = tuple(violations)


class NotFound(ShopError):
    """What the request names does not exist."""


class Refused(ShopError):
    """The state of the shop does not allow it; the same call may succeed later."""


class Conflict(ShopError):
    """Another change came in between; read again and retry."""


class Overload(ShopError):
    """More work than the process takes on; wait `retry_after_seconds` and retry."""

    retry_after_seconds: float = 1.0


class Unavailable(ShopError):
    """Something this process depends on is away; retry with backoff and the same request_id."""


class Contention(Conflict):
    """Others changed the same rows for too long; nothing was done."""

    reason = "CONTENTION"


class QueueFull(Overload):
    """As many calls wait as are allowed to; this one was not taken on."""

    reason = "QUEUE_FULL"


class PoolTimeout(Overload):
    """No database connection came free in time; nothing was done."""

    reason = "POOL_TIMEOUT"


class DatabaseUnavailable(Unavailable):
    """The database did not answer.

    `rolled_back` is False when a commit was sent and not answered: nobody knows whether it happened, and the
    request_id settles a retry.
    """

    reason = "DATABASE_UNAVAILABLE"

    def __init__(self, message: str, *, rolled_back: bool = True) -> None:
        super().__init__(message)
        self.rolled_back = rolled_back


class DatabaseNeedsRepair(DatabaseUnavailable):
    """The database answers and cannot do its work: a table or a grant is missing, the disk is full, its file is gone.

    The same call succeeds once the operator has mended that. Nothing was done.
    """


class TransactionTimeout(DatabaseUnavailable):
    """The database gave the transaction up because it took too long, and rolled it back."""


class LockTimeout(Contention):
    """The transaction waited too long for a row that another one has locked, and was rolled back."""


TIMEOUTS = (TransactionTimeout, LockTimeout)
"""After these, a transaction that does less may succeed. Nothing was done."""
