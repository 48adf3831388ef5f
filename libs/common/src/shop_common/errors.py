"""Defines the kinds of errors that callers receive.

ShopError
  InvalidInput                   INVALID_ARGUMENT
  Unauthenticated                UNAUTHENTICATED
  PermissionDenied               PERMISSION_DENIED
  NotFound                       NOT_FOUND
  Refused                        FAILED_PRECONDITION
  Conflict                       ABORTED
    Contention
      LockTimeout
  Overload                       RESOURCE_EXHAUSTED
    QueueFull
    PoolTimeout
  NotSupported                   UNIMPLEMENTED
  Unavailable                    UNAVAILABLE
    DatabaseUnavailable
      DatabaseNeedsRepair
      TransactionTimeout
    BrokerUnavailable

Only `shop_common.rpc.status` maps these kinds to gRPC statuses. The error classes do not depend on gRPC. Each service
defines its domain errors as subclasses of a kind. Each concrete error has a stable `reason`, on which callers may
branch. Its `metadata` has the values that callers need.

`shop_common.db.errors` defines two more classes for the retries of `Database`: Collision, which is a Contention, and
StaleConnection, which is a DatabaseUnavailable. If the last retry fails, callers get the reason of the parent class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class ShopError(Exception):
    """The root of all errors that are reported to callers. Any other exception is a defect."""

    reason: ClassVar[str]

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def metadata(self) -> dict[str, str]:
        """Return the values that a program needs to handle the error. The keys are stable."""
        return {}


@dataclass(frozen=True)
class Violation:
    """An invalid field: its path in the request, such as `items[2].quantity`, and a description of the fault."""

    field: str
    description: str


class InvalidInput(ShopError):
    """The request is invalid in every state of the system. `violations` names the invalid fields."""

    reason = "INVALID_FIELD"

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations = tuple(violations)


class Unauthenticated(ShopError):
    """The caller is not authenticated."""


class PermissionDenied(ShopError):
    """The caller is authenticated but may not make this call. Logs name the caller and its tenant."""

    def __init__(self, message: str, caller: str = "", tenant: str = "") -> None:
        super().__init__(message)
        self.caller = caller
        self.tenant = tenant


class NotFound(ShopError):
    """The requested resource does not exist."""


class Refused(ShopError):
    """The current state does not allow the call. The same call may succeed later."""


class NotSupported(ShopError):
    """This installation does not serve the call, whatever the state. An operator can change that."""


class Conflict(ShopError):
    """A concurrent change prevented the call. Read the current state and retry."""


class Overload(ShopError):
    """The process has reached a limit. Wait `retry_after_seconds` and retry."""

    retry_after_seconds: float = 1.0


class Unavailable(ShopError):
    """A dependency of this process is unavailable. Retry with backoff and the same request_id."""


class Contention(Conflict):
    """Other transactions kept changing the same rows. Nothing was written."""

    reason = "CONTENTION"


class QueueFull(Overload):
    """Too many calls are waiting. The call was not started."""

    reason = "QUEUE_FULL"


class PoolTimeout(Overload):
    """No database connection became free in time. Nothing was written."""

    reason = "POOL_TIMEOUT"


class DatabaseUnavailable(Unavailable):
    """The database did not answer.

    `rolled_back` is False if the transaction may have committed, for example because the COMMIT got no response. A
    retry with the same request_id is safe.
    """

    reason = "DATABASE_UNAVAILABLE"

    def __init__(self, message: str, *, rolled_back: bool = True) -> None:
        super().__init__(message)
        self.rolled_back = rolled_back


class DatabaseNeedsRepair(DatabaseUnavailable):
    """The database responds but needs an operator: a table or grant is missing, the disk is full, or its file is gone.

    The same call succeeds after the repair. Nothing was written.
    """


class TransactionTimeout(DatabaseUnavailable):
    """The database cancelled the transaction because it took too long, and rolled it back."""


class BrokerUnavailable(Unavailable):
    """Kafka did not respond, or refused the request."""

    reason = "BROKER_UNAVAILABLE"


class LockTimeout(Contention):
    """The transaction waited too long for a locked row, and was rolled back."""


TIMEOUTS = (TransactionTimeout, LockTimeout)
"""After these errors, a smaller transaction may succeed. Nothing was written."""
