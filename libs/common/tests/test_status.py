"""Errors to statuses and back."""

from typing import TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details
from google.rpc.status_pb2 import Status

from shop_common.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    Overload,
    QueueFull,
    Refused,
    ShopError,
    Unavailable,
    Violation,
)
from shop_common.rpc.status import RemoteUnavailable, from_status, new_status, to_status

_Detail = TypeVar("_Detail", bound=Message)


class ParcelNotFound(NotFound):
    reason = "PARCEL_NOT_FOUND"


class TooHeavy(Refused):
    reason = "TOO_HEAVY"

    def metadata(self) -> dict[str, str]:
        return {"grams": "31000"}


class Moved(Conflict):
    reason = "MOVED"


class DepotAway(Unavailable):
    reason = "DEPOT_AWAY"


KINDS = [
    (InvalidInput([Violation("lines[2].quantity", "must be at least 1")]), InvalidInput, "INVALID_ARGUMENT"),
    (ParcelNotFound("no such parcel"), NotFound, "NOT_FOUND"),
    (TooHeavy("31 kg is too heavy"), Refused, "FAILED_PRECONDITION"),
    (Moved("it has moved"), Conflict, "ABORTED"),
    (QueueFull("too many wait"), Overload, "RESOURCE_EXHAUSTED"),
    (DepotAway("nobody is there"), Unavailable, "UNAVAILABLE"),
]


@pytest.mark.parametrize(("error", "kind", "code"), KINDS)
def test_each_kind_keeps_what_it_says_across_a_service(error: ShopError, kind: type[ShopError], code: str) -> None:
    status = to_status(error)
    assert status.code == grpc.StatusCode[code].value[0]
    info = _detail(status, details.ErrorInfo())
    assert (info.reason, info.domain) == (error.reason, "shop")

    came = from_status(Status.FromString(status.SerializeToString()), unavailable_reason="ELSEWHERE_AWAY")

    assert isinstance(came, kind)
    assert (came.reason, came.message, came.metadata()) == (error.reason, error.message, error.metadata())
    # The error also survives a second process.
    assert to_status(came) == status


def test_every_bad_field_is_named() -> None:
    violations = [Violation("quantity", "must be at least 1"), Violation("location", "must not be empty")]

    bad = _detail(to_status(InvalidInput(violations)), details.BadRequest())

    assert [(v.field, v.description) for v in bad.field_violations] == [
        ("quantity", "must be at least 1"),
        ("location", "must not be empty"),
    ]


def test_however_many_fields_are_bad_the_status_fits_the_trailers() -> None:
    error = InvalidInput([Violation(f"lines[{n}].quantity", "must be at least 1 — so it is") for n in range(5000)])

    status = to_status(error)

    assert len(status.SerializeToString()) < 6000
    last = _detail(status, details.BadRequest()).field_violations[-1]
    assert last.description.startswith("and ")
    named = len(_detail(status, details.BadRequest()).field_violations) - 1
    assert last.description == f"and {5000 - named} more"


def test_an_overload_says_when_to_come_back() -> None:
    error = QueueFull("full")
    error.retry_after_seconds = 2.5

    status = to_status(error)

    assert _detail(status, details.RetryInfo()).retry_delay.ToMilliseconds() == 2500
    came = from_status(status, unavailable_reason="ELSEWHERE_AWAY")
    assert isinstance(came, Overload)
    assert came.retry_after_seconds == 2.5


@pytest.mark.parametrize(
    "status",
    [
        new_status(grpc.StatusCode.INTERNAL, "internal error 4711", "INTERNAL"),
        new_status(grpc.StatusCode.DEADLINE_EXCEEDED, "too late", "DEADLINE_EXCEEDED"),
        Status(code=grpc.StatusCode.NOT_FOUND.value[0], message="from a proxy, without details"),
        Status(code=999, message="from the future"),
    ],
)
def test_what_is_of_no_kind_means_that_the_service_is_away(status: Status) -> None:
    came = from_status(status, unavailable_reason="ELSEWHERE_AWAY")

    assert isinstance(came, RemoteUnavailable)
    assert came.reason == "ELSEWHERE_AWAY"
    assert came.message == status.message


def test_details_that_cannot_be_read_are_ignored() -> None:
    status = to_status(ParcelNotFound("no such parcel"))
    status.details[0].value = b"\xff\xff"

    assert isinstance(from_status(status, unavailable_reason="ELSEWHERE_AWAY"), RemoteUnavailable)


def _detail(status: Status, found: _Detail) -> _Detail:
    assert any(detail.Unpack(found) for detail in status.details)
    return found
