"""Amounts are exact, unknown values of newer servers are harmless, and each status has its error."""

import pickle
import sys
import types
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2 as details
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from shop_client import OrderStatus, ReservationState, ShopError, convert, errors, transport
from shop_client.statuses import error_of
from shop_protos.inventory.v1 import inventory_pb2
from shop_protos.order.v1 import order_pb2


@given(st.decimals(min_value=0, max_value=10**15, places=9))
def test_amounts_are_exact_in_every_decimal_context(amount: Decimal) -> None:
    with localcontext() as context:
        context.prec = 3
        money = convert.money(amount, "EUR")
        order = convert.order(order_pb2.Order(total_amount=money))

    assert order.total_amount == amount
    assert (money.units, money.nanos) == (int(amount), int(amount % 1 * 10**9))


@pytest.mark.parametrize("amount", [Decimal("0.0000000001"), Decimal("NaN"), Decimal("Infinity")])
def test_an_amount_that_is_not_exact_is_refused(amount: Decimal) -> None:
    with pytest.raises(ValueError, match="amount"):
        convert.money(amount, "EUR")


def test_trailing_zeros_do_not_count_as_decimals() -> None:
    assert convert.money(Decimal("1.50000000000"), "EUR") == convert.money(Decimal("1.5"), "EUR")
    assert convert.money(Decimal("1e3"), "EUR").units == 1000
    assert convert.money(Decimal("-1.5"), "EUR").nanos == -500_000_000


def test_a_float_is_no_amount() -> None:
    amount: Any = 19.99
    with pytest.raises(TypeError, match="Decimal"):
        convert.money(amount, "EUR")


def test_a_time_needs_a_time_zone() -> None:
    with pytest.raises(ValueError, match="time zone"):
        convert.timestamp(datetime(2026, 1, 1))  # noqa: DTZ001 - that is the fault
    assert convert.timestamp(datetime(2026, 1, 1, tzinfo=UTC)) is not None


@pytest.mark.parametrize("text", ["0001-01-01T00:00+14:00", "9999-12-31T23:59-14:00"])
def test_a_time_that_has_no_year_in_utc_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="the year of a time must be 1 to 9999 in UTC"):
        convert.timestamp(datetime.fromisoformat(text))


def test_states_of_a_newer_server_are_unknown() -> None:
    reservation: Any = inventory_pb2.Reservation()
    reservation.state = 99
    order: Any = order_pb2.Order()
    order.status = 99

    assert convert.reservation(reservation).state is ReservationState.UNKNOWN
    assert convert.order(order).status is OrderStatus.UNKNOWN
    with pytest.raises(ValueError, match="UNKNOWN"):
        convert.status_number(OrderStatus.UNKNOWN)
    with pytest.raises(ValueError, match="UNKNOWN"):
        convert.state_number(ReservationState.UNKNOWN)


def status(code: grpc.StatusCode, *parts: Any) -> Status:
    packed = []
    for part in parts:
        packed.append(AnyMessage())
        packed[-1].Pack(part)
    return Status(code=code.value[0], message="it failed", details=packed)


def test_every_reason_has_its_class() -> None:
    classes = [kind for kind in all_classes(ShopError) if kind.REASON]
    codes: dict[type[ShopError], grpc.StatusCode] = {
        errors.InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
        errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
        errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
        errors.NotFound: grpc.StatusCode.NOT_FOUND,
        errors.Refused: grpc.StatusCode.FAILED_PRECONDITION,
        errors.Conflict: grpc.StatusCode.ABORTED,
        errors.Overload: grpc.StatusCode.RESOURCE_EXHAUSTED,
        errors.NotSupported: grpc.StatusCode.UNIMPLEMENTED,
        errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
        errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
        errors.Cancelled: grpc.StatusCode.CANCELLED,
        errors.InternalError: grpc.StatusCode.INTERNAL,
    }
    assert len(classes) > 20
    for kind in classes:
        (code,) = {code for parent, code in codes.items() if issubclass(kind, parent)}
        error = error_of(status(code, details.ErrorInfo(reason=kind.REASON, domain="shop")))
        assert type(error) is kind


def test_a_reason_of_a_newer_server_has_the_class_of_its_kind() -> None:
    info = details.ErrorInfo(reason="NEW_REASON", domain="shop", metadata={"key": "value"})

    error = error_of(status(grpc.StatusCode.FAILED_PRECONDITION, info))

    assert type(error) is errors.Refused
    assert (error.reason, error.metadata) == ("NEW_REASON", {"key": "value"})


def test_a_status_without_details_has_the_class_of_its_code() -> None:
    assert type(error_of(status(grpc.StatusCode.UNAVAILABLE))) is errors.Unavailable
    unknown = error_of(status(grpc.StatusCode.OUT_OF_RANGE))
    assert (type(unknown), unknown.reason) == (ShopError, "OUT_OF_RANGE")


def test_an_error_of_another_program_is_not_read_as_a_reason() -> None:
    info = details.ErrorInfo(reason="INSUFFICIENT_STOCK", domain="example.com")

    assert type(error_of(status(grpc.StatusCode.FAILED_PRECONDITION, info))) is errors.Refused


def test_an_error_has_violations_and_the_pause_that_the_server_asks_for() -> None:
    bad = details.BadRequest(field_violations=[details.BadRequest.FieldViolation(field="user_id", description="bad")])
    invalid = error_of(status(grpc.StatusCode.INVALID_ARGUMENT, bad))
    assert invalid.violations == (errors.Violation("user_id", "bad"),)

    retry = details.RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000))
    assert error_of(status(grpc.StatusCode.RESOURCE_EXHAUSTED, retry)).retry_after_seconds == 1.5


def test_an_error_can_be_pickled() -> None:
    """Errors can be pickled, as a process pool does with the errors of its workers."""
    info = details.ErrorInfo(reason="INSUFFICIENT_STOCK", domain="shop", metadata={"available": "3"})
    error = error_of(status(grpc.StatusCode.FAILED_PRECONDITION, info), "my-id")

    copy = pickle.loads(pickle.dumps(error))

    assert (type(copy), copy.available, copy.request_id, str(copy)) == (type(error), 3, "my-id", str(error))


def test_the_current_span_of_opentelemetry_is_the_traceparent() -> None:
    from opentelemetry import trace  # noqa: PLC0415 - imported as a caller's program may do

    context = trace.SpanContext(0xA1, 0xB2, is_remote=False, trace_flags=trace.TraceFlags(1))
    assert transport.current_traceparent() == ""
    with trace.use_span(trace.NonRecordingSpan(context)):
        assert transport.current_traceparent() == f"00-{0xA1:032x}-{0xB2:016x}-01"


def test_without_opentelemetry_there_is_no_traceparent(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {name: each for name, each in sys.modules.items() if not name.startswith("opentelemetry")}
    monkeypatch.setattr(transport, "sys", types.SimpleNamespace(modules=modules))

    assert transport.current_traceparent() == ""


def all_classes(kind: type[ShopError]) -> list[type[ShopError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in all_classes(child))]
