"""Maps kinds of errors to gRPC statuses, and back. No other module does this.

Every status has `google.rpc.ErrorInfo{reason, domain: "shop", metadata}`. InvalidInput adds `BadRequest`, Overload adds
`RetryInfo`. `from_status` keeps the kind, reason and metadata of an error from another service.
"""

from collections.abc import Iterable, Mapping
from typing import TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2 as details
from google.rpc.status_pb2 import Status

from shop_common.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    NotSupported,
    Overload,
    PermissionDenied,
    Refused,
    ShopError,
    Unauthenticated,
    Unavailable,
    Violation,
)

_Detail = TypeVar("_Detail", bound=Message)

DOMAIN = "shop"
STATUS_KEY = "grpc-status-details-bin"

# A status is sent in HTTP trailers, with its details in base64. By default clients accept 8 KiB of trailers.
_MESSAGE_CHARACTERS_MAX = 400
_VIOLATIONS_BYTES_MAX = 3_000

_CODES: dict[type[ShopError], grpc.StatusCode] = {
    InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    NotFound: grpc.StatusCode.NOT_FOUND,
    Refused: grpc.StatusCode.FAILED_PRECONDITION,
    Conflict: grpc.StatusCode.ABORTED,
    Overload: grpc.StatusCode.RESOURCE_EXHAUSTED,
    NotSupported: grpc.StatusCode.UNIMPLEMENTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
}


def code_of(error: ShopError) -> grpc.StatusCode:
    """Return the gRPC status code for the error's kind."""
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return code
    raise TypeError(f"{type(error).__name__} has no status: it is not a subclass of a kind")


def to_status(error: ShopError) -> Status:
    """Convert the error to a status. The status fits into the trailers of a call, even if many fields are invalid."""
    status = new_status(code_of(error), error.message, error.reason, error.metadata())
    if isinstance(error, InvalidInput):
        status.details.append(_packed(_bad_request(error.violations)))
    elif isinstance(error, Overload):
        status.details.append(_packed(details.RetryInfo(retry_delay=_duration(error.retry_after_seconds))))
    return status


def new_status(code: grpc.StatusCode, message: str, reason: str, metadata: Mapping[str, str] | None = None) -> Status:
    """Create a status with its ErrorInfo."""
    if len(message) > _MESSAGE_CHARACTERS_MAX:
        message = message[: _MESSAGE_CHARACTERS_MAX - 1] + "…"
    info = details.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata or {})
    return Status(code=code.value[0], message=message, details=[_packed(info)])


def from_status(status: Status, *, unavailable_reason: str) -> ShopError:
    """Convert the status of another service to an error with the same kind, reason, message and metadata.

    Any other status (a defect, a deadline, a network failure) becomes an Unavailable with `unavailable_reason`. So do
    UNAUTHENTICATED and PERMISSION_DENIED, because they refuse the identity of this process, not that of our caller.
    """
    info = _unpacked(status, details.ErrorInfo) or details.ErrorInfo()
    kind = _REMOTE_KINDS.get(status.code)
    if kind is None or not info.reason:
        return RemoteUnavailable(status.message, unavailable_reason, {})
    error = kind(status.message, info.reason, dict(info.metadata))
    if isinstance(error, RemoteInvalidInput):
        bad = _unpacked(status, details.BadRequest) or details.BadRequest()
        error.violations = tuple(Violation(v.field, v.description) for v in bad.field_violations)
    elif isinstance(error, RemoteOverload):
        retry = _unpacked(status, details.RetryInfo)
        if retry is not None:
            error.retry_after_seconds = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    return error


class RemoteError(ShopError):
    """An error reported by another service. Each subclass also has a kind: `except NotFound` catches RemoteNotFound."""

    def __init__(self, message: str, reason: str, metadata: dict[str, str]) -> None:
        ShopError.__init__(self, message)
        # A local error has its reason in its class. A remote error has it only in the instance.
        vars(self)["reason"] = reason
        self._metadata = metadata

    def metadata(self) -> dict[str, str]:
        return self._metadata


class RemoteInvalidInput(RemoteError, InvalidInput):
    """The other service rejected the request as invalid."""


class RemoteNotFound(RemoteError, NotFound):
    """The resource does not exist in the other service."""


class RemoteRefused(RemoteError, Refused):
    """The state of the other service does not allow the call."""


class RemoteConflict(RemoteError, Conflict):
    """A concurrent change in the other service prevented the call."""


class RemoteOverload(RemoteError, Overload):
    """The other service has reached a limit."""


class RemoteUnavailable(RemoteError, Unavailable):
    """The other service, or one of its dependencies, is unavailable."""


_REMOTE_KINDS: dict[int, type[RemoteError]] = {
    code.value[0]: remote
    for remote in RemoteError.__subclasses__()
    for kind, code in _CODES.items()
    if issubclass(remote, kind)
}


def _bad_request(violations: Iterable[Violation]) -> details.BadRequest:
    bad = details.BadRequest()
    room = _VIOLATIONS_BYTES_MAX
    unnamed = 0
    for violation in violations:
        room -= len(violation.field.encode()) + len(violation.description.encode())
        if room < 0:
            unnamed += 1
        else:
            bad.field_violations.add(field=violation.field, description=violation.description)
    if unnamed:
        bad.field_violations.add(field="", description=f"and {unnamed} more")
    return bad


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration


def _packed(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


def _unpacked(status: Status, kind: type[_Detail]) -> _Detail | None:
    for detail in status.details:
        found = kind()
        try:
            if detail.Unpack(found):
                return found
        except DecodeError:
            # Ignore malformed details: the status code still identifies the kind.
            return None
    return None
