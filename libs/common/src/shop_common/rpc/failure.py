"""Converts an exception to the result of a failed call: status code, details and reason."""

import secrets
from dataclasses import dataclass

import grpc
from google.rpc.status_pb2 import Status
from sqlalchemy import exc

from shop_common.db.database import is_statement_error
from shop_common.errors import DatabaseUnavailable, Overload, ShopError, Unavailable
from shop_common.rpc.status import code_of, new_status, to_status


@dataclass(frozen=True)
class Failure:
    """The result of a failed call."""

    code: grpc.StatusCode
    status: Status
    reason: str
    is_ours: bool = False
    """Whether the cause is this process or one of its dependencies, and not the caller."""
    error_id: str | None = None
    """Set for a defect. The log has the traceback under this id."""


class ResponseTooLarge(Exception):
    """The response is larger than clients accept. If the call made a change, the change is committed."""

    def __init__(self, size: int, size_max: int) -> None:
        super().__init__(f"the response has {size} bytes, but at most {size_max} are allowed: request fewer entries")


class DeadlinePassed(Exception):
    """The client has stopped waiting. The call was not executed."""


def failure_of(error: Exception) -> Failure:
    """Convert an exception to the call's result. An exception of an unknown class is a defect: it becomes INTERNAL."""
    if isinstance(error, ShopError):
        status = to_status(error)
        return Failure(code_of(error), status, error.reason, is_ours=isinstance(error, Overload | Unavailable))
    if isinstance(error, exc.TimeoutError) or (
        isinstance(error, exc.OperationalError) and not is_statement_error(error)
    ):
        # The module `database` translates these errors. An error that it misses still comes from the database.
        return failure_of(DatabaseUnavailable("the database did not answer"))
    if isinstance(error, ResponseTooLarge):
        code, reason = grpc.StatusCode.RESOURCE_EXHAUSTED, "ANSWER_TOO_LARGE"
        return Failure(code, new_status(code, str(error), reason), reason, is_ours=True)
    if isinstance(error, DeadlinePassed):
        code = grpc.StatusCode.DEADLINE_EXCEEDED
        return Failure(code, new_status(code, "the deadline passed while the call waited", code.name), code.name)
    error_id = secrets.token_hex(8)
    code = grpc.StatusCode.INTERNAL
    status = new_status(code, f"internal error {error_id}", code.name, {"error_id": error_id})
    return Failure(code, status, code.name, is_ours=True, error_id=error_id)
