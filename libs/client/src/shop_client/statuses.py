"""Converts the status of a failed call to the error class of its reason."""

from collections.abc import Iterable
from typing import Protocol, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2 as details
from google.rpc.status_pb2 import Status

from shop_client import errors
from shop_client.errors import ShopError, Violation

_Detail = TypeVar("_Detail", bound=Message)

_STATUS_KEY = "grpc-status-details-bin"
_DOMAIN = "shop"

_KINDS: dict[int, type[ShopError]] = {
    code.value[0]: kind
    for code, kind in (
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidInput),
        (grpc.StatusCode.UNAUTHENTICATED, errors.Unauthenticated),
        (grpc.StatusCode.PERMISSION_DENIED, errors.PermissionDenied),
        (grpc.StatusCode.NOT_FOUND, errors.NotFound),
        (grpc.StatusCode.FAILED_PRECONDITION, errors.Refused),
        (grpc.StatusCode.ABORTED, errors.Conflict),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.Overload),
        (grpc.StatusCode.UNIMPLEMENTED, errors.NotSupported),
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.CANCELLED, errors.Cancelled),
        (grpc.StatusCode.INTERNAL, errors.InternalError),
    )
}
_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


class FailedCall(Protocol):
    """The parts of a failed call that grpc and grpc.aio have in common."""

    def code(self) -> grpc.StatusCode: ...

    def details(self) -> str | None: ...

    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


def status_of(call: FailedCall) -> Status:
    """Return the status of the call with its details. Without details, it has only the code and the message."""
    for key, value in call.trailing_metadata() or ():
        if key == _STATUS_KEY and isinstance(value, bytes):
            try:
                return Status.FromString(value)
            except DecodeError:
                break  # another program, such as a proxy, has set it
    return Status(code=call.code().value[0], message=call.details() or "")


def error_of(status: Status, request_id: str = "") -> ShopError:
    """Convert a status to its error. The error has the class of its reason, or else of its status code."""
    info = _unpacked(status, details.ErrorInfo)
    reason = info.reason if info is not None and info.domain == _DOMAIN else ""
    kind = _KINDS.get(status.code, ShopError)
    known = _REASONS.get(reason, kind)
    bad = _unpacked(status, details.BadRequest)
    retry = _unpacked(status, details.RetryInfo)
    # A known reason with another status code comes from a newer server, where it means something else.
    return (known if issubclass(known, kind) else kind)(
        status.message,
        reason=reason or _NAMES.get(status.code, "UNKNOWN"),
        metadata=info.metadata if info is not None else {},
        violations=[Violation(each.field, each.description) for each in bad.field_violations] if bad else (),
        retry_after_seconds=retry.retry_delay.ToNanoseconds() / 1e9 if retry else None,
        request_id=request_id,
    )


def _by_reason(kind: type[ShopError]) -> dict[str, type[ShopError]]:
    found = {kind.REASON: kind} if kind.REASON else {}
    for child in kind.__subclasses__():
        found |= _by_reason(child)
    return found


_REASONS = _by_reason(ShopError)


def _unpacked(status: Status, kind: type[_Detail]) -> _Detail | None:
    for detail in status.details:
        found = kind()
        try:
            if detail.Unpack(found):
                return found
        except DecodeError:
            return None  # the status code still identifies the kind
    return None
