"""Parsing stops at the first limit that a request exceeds."""

import pytest

from inventory_api.api import parse
from inventory_api.domain.commands import OrderRequest
from shop_common.errors import InvalidInput
from shop_common.identity.caller import ANYONE
from shop_protos.inventory.v1 import inventory_pb2 as pb


def test_a_batch_with_too_many_orders_is_refused_without_parsing_them() -> None:
    orders = [pb.OrderLines(lines=[pb.Line()] * 200)] * (parse.BATCH_ORDERS_MAX + 1)

    with pytest.raises(InvalidInput) as refused:
        parse.batch(pb.BatchReserveStockRequest(orders=orders), ANYONE, None)

    assert [violation.description for violation in refused.value.violations] == ["must have between 1 and 500 entries"]


@pytest.mark.parametrize("count", [0, parse.BATCH_REQUESTS_MAX + 1])
def test_a_batch_of_confirmations_or_releases_has_at_least_one_and_at_most_500_requests(count: int) -> None:
    with pytest.raises(InvalidInput):
        parse.batch_confirm(pb.BatchConfirmReservationsRequest(requests=[confirmation()] * count), ANYONE, None)
    with pytest.raises(InvalidInput):
        parse.batch_release(pb.BatchReleaseStockRequest(requests=[pb.ReleaseStockRequest()] * count), ANYONE, None)


def confirmation(order_id: str = "order", traceparent: str = "") -> pb.ConfirmReservationsRequest:
    return pb.ConfirmReservationsRequest(order_id=order_id, traceparent=traceparent)


def test_an_invalid_request_of_a_batch_refuses_only_itself_and_each_keeps_its_trace() -> None:
    ours, theirs = (f"00-{number:032x}-{number:016x}-01" for number in (1, 2))
    requests = [confirmation(traceparent=theirs), confirmation(""), confirmation(traceparent="x"), confirmation()]

    parsed = parse.batch_confirm(pb.BatchConfirmReservationsRequest(requests=requests), ANYONE, ours)

    traced, without_order, without_trace, plain = parsed
    assert isinstance(traced, OrderRequest)
    assert isinstance(plain, OrderRequest)
    assert (traced.traceparent, plain.traceparent) == (theirs, ours)
    assert isinstance(without_order, InvalidInput)
    assert isinstance(without_trace, InvalidInput)
    assert [each.field for each in (*without_order.violations, *without_trace.violations)] == [
        "order_id",
        "traceparent",
    ]
