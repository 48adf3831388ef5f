"""Parsing stops at the first limit that a request exceeds."""

import pytest

from inventory_api.api import parse
from shop_common.errors import InvalidInput
from shop_common.identity.caller import ANYONE
from shop_protos.inventory.v1 import inventory_pb2 as pb


def test_a_batch_with_too_many_orders_is_refused_without_parsing_them() -> None:
    orders = [pb.OrderLines(lines=[pb.Line()] * 200)] * (parse.BATCH_ORDERS_MAX + 1)

    with pytest.raises(InvalidInput) as refused:
        parse.batch(pb.BatchReserveStockRequest(orders=orders), ANYONE, None)

    assert [violation.description for violation in refused.value.violations] == ["must have between 1 and 500 entries"]
