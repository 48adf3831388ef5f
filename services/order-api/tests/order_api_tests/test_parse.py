"""Parsing names each bad field, and is tested on both sides of each bound. No test needs a database."""

import tracemalloc
from collections.abc import Callable

import pytest
from google.protobuf.duration_pb2 import Duration
from google.type.money_pb2 import Money

from order_api.api import parse
from shop_common.api.money import UNITS_MAX
from shop_common.errors import InvalidInput
from shop_common.identity.caller import ANYONE
from shop_protos.order.v1 import maintenance_pb2
from shop_protos.order.v1 import order_pb2 as pb
from testkit.drivers.order_api import dollars, new_request

GOOD = new_request((1, 1, "1.5"), ttl_seconds=60, request_id="r")


def changed(change: Callable[[pb.CreateOrderRequest], object]) -> pb.CreateOrderRequest:
    request = pb.CreateOrderRequest()
    request.CopyFrom(GOOD)
    change(request)
    return request


def bad_fields(request: pb.CreateOrderRequest) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        parse.new_order(request, ANYONE, None)
    return [violation.field for violation in caught.value.violations]


def with_price(units: int = 0, nanos: int = 0, currency: str = "USD", quantity: int = 1) -> pb.CreateOrderRequest:
    price = Money(currency_code=currency, units=units, nanos=nanos)
    return pb.CreateOrderRequest(user_id=1, items=[pb.CreateOrderItem(product_id=1, quantity=quantity, price=price)])


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (changed(lambda r: setattr(r, "user_id", 0)), ["user_id"]),
        (changed(lambda r: setattr(r, "user_id", -(2**63))), ["user_id"]),
        (changed(lambda r: setattr(r, "request_id", "é")), ["request_id"]),
        (changed(lambda r: setattr(r, "request_id", "x" * 65)), ["request_id"]),
        (changed(lambda r: r.ttl.FromNanoseconds(10**9 - 1)), ["ttl"]),
        (changed(lambda r: r.ttl.FromSeconds(7 * 86_400 + 1)), ["ttl"]),
        (changed(lambda r: r.ttl.CopyFrom(Duration(seconds=5, nanos=-1))), ["ttl"]),
        (changed(lambda r: r.ClearField("items")), ["items"]),
        (new_request(*[(1, 1, "1")] * 201), ["items"]),
        (changed(lambda r: setattr(r.items[0], "product_id", 0)), ["items[0].product_id"]),
        (changed(lambda r: setattr(r.items[0], "quantity", 0)), ["items[0].quantity"]),
        (changed(lambda r: setattr(r.items[0], "quantity", 10**9 + 1)), ["items[0].quantity"]),
        (changed(lambda r: r.items[0].ClearField("price")), ["items[0].price.currency_code"]),
        (with_price(1, 0, "usd"), ["items[0].price.currency_code"]),
        (with_price(-1), ["items[0].price.units"]),
        (with_price(0, -1), ["items[0].price.nanos"]),
        (with_price(0, 10**9), ["items[0].price.nanos"]),
        (with_price(UNITS_MAX, 1), ["items"]),
        (with_price(UNITS_MAX // 10, quantity=11), ["items"]),
        (
            pb.CreateOrderRequest(
                items=[
                    pb.CreateOrderItem(product_id=1, quantity=1, price=dollars("1")),
                    pb.CreateOrderItem(price=Money(currency_code="EUR", units=-1, nanos=-1)),
                ]
            ),
            [
                "user_id",
                "items[1].product_id",
                "items[1].quantity",
                "items[1].price.units",
                "items[1].price.nanos",
                "items[1].price.currency_code",
            ],
        ),
    ],
)
def test_every_bad_field_is_named(request_: pb.CreateOrderRequest, fields: list[str]) -> None:
    assert bad_fields(request_) == fields


@pytest.mark.parametrize("first", ["EUR", "€" * 1_000_000])
def test_a_long_currency_is_not_quoted_in_the_error(first: str) -> None:
    request = new_request(*[(1, 1, "1")] * 200)
    request.items[0].price.currency_code = first
    for item in request.items[1:]:
        item.price.currency_code = "x" * 20_000

    tracemalloc.start()
    try:
        with pytest.raises(InvalidInput) as caught:
            parse.new_order(request, ANYONE, None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert sum(len(each.field) + len(each.description) for each in caught.value.violations) < 5_000
    assert peak < 20_000_000


@pytest.mark.parametrize(
    "request_",
    [
        GOOD,
        changed(lambda r: setattr(r, "user_id", 2**63 - 1)),
        changed(lambda r: setattr(r, "request_id", "~" * 64)),
        changed(lambda r: r.ttl.FromSeconds(1)),
        changed(lambda r: r.ttl.FromSeconds(7 * 86_400)),
        new_request(*[(1, 1, "1")] * 200),
        changed(lambda r: setattr(r.items[0], "quantity", 10**9)),
        with_price(UNITS_MAX),
        with_price(UNITS_MAX // 10, quantity=10),
        with_price(0, 0),
        with_price(0, 999_999_999),
    ],
)
def test_values_just_within_the_bounds_are_accepted(request_: pb.CreateOrderRequest) -> None:
    order = parse.new_order(request_, ANYONE, None)

    assert len(order.items) == len(request_.items)


def test_each_order_without_a_request_id_has_a_new_id() -> None:
    request = changed(lambda r: r.ClearField("request_id"))

    assert parse.new_order(request, ANYONE, None).id != parse.new_order(request, ANYONE, None).id


def test_the_id_derived_from_user_and_request_id_never_changes() -> None:
    # The id that version 1 of this service derived. Every later version must find the orders of its clients.
    assert parse.new_order(GOOD, ANYONE, None).id == "6b52690a-b2d8-5d7a-bb84-9a8d28179486"


@pytest.mark.parametrize("status", [0, 7, -1, 2**31 - 1])
def test_an_unknown_status_is_refused(status: int) -> None:
    request = pb.UpdateOrderStatusRequest(id="x", reason="\x00")
    request.status = status  # type: ignore[assignment]  # the value is not in the enum, as the test requires

    with pytest.raises(InvalidInput) as caught:
        parse.change_status(request, ANYONE, None)

    assert [violation.field for violation in caught.value.violations] == ["id", "status", "reason"]


@pytest.mark.parametrize("seconds", [59, 7 * 86_400 + 1])
def test_a_grace_out_of_bounds_is_refused(seconds: int) -> None:
    request = maintenance_pb2.CancelAbandonedOrdersRequest(grace=Duration(seconds=seconds), max_count=10_001)

    with pytest.raises(InvalidInput) as caught:
        parse.abandoned(request, ANYONE)

    assert [violation.field for violation in caught.value.violations] == ["grace", "max_count"]
