"""Bad requests: nothing is read beyond a bound that is broken already."""

import pytest

from inventory_api.api import parse
from shop_common.errors import InvalidInput
from shop_protos.inventory.v1 import inventory_pb2 as pb


def test_the_orders_of_a_batch_that_has_too_many_are_not_looked_at() -> None:
    orders = [pb.OrderLines(lines=[pb.Line()] * 200)] * (parse.BATCH_ORDERS_MAX + 1)

    with pytest.raises(InvalidInput) as refused:
        parse.batch(pb.BatchReserveStockRequest(orders=orders), None)

    assert [violation.description for violation in refused.value.violations] == ["must have between 1 and 500 entries"]
