"""Amounts are exact in the API, in both databases, and in events."""

from decimal import Decimal

import orjson
from google.type.money_pb2 import Money
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from order_api.api import parse, render
from order_api.domain.commands import NewOrder, ReservedOrder
from order_api.domain.model import NewItem
from order_api.store import orders, tables
from shop_common.api.money import UNITS_MAX, exact
from shop_common.db.database import Database
from shop_common.identity.caller import ANYONE
from shop_protos.order.v1 import order_pb2 as pb
from testkit.drivers.order_api import new_order, stored

_prices = st.builds(
    Money,
    currency_code=st.sampled_from(["USD", "JPY", "XAU"]),
    units=st.one_of(st.integers(0, 10), st.integers(0, UNITS_MAX - 1)),
    nanos=st.one_of(st.just(0), st.integers(0, 999_999_999), st.just(10_000_000)),
)


@given(price=_prices)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_amount_is_stored_and_returned_unchanged(database: Database, price: Money) -> None:
    request = pb.CreateOrderRequest(user_id=1, items=[pb.CreateOrderItem(product_id=1, quantity=1, price=price)])
    (created,) = stored(database, parse.new_order(request, ANYONE, None))

    read = database.query(lambda tx: orders.load(tx, [created.key]))[created.key]

    assert read == created
    for order in (render.order(created), render.order(read)):
        assert order.items[0].price == price
        assert order.total_amount == price
    outbox = tables.outbox.table
    payload = database.query(
        lambda tx: tx.execute(select(outbox.c.payload).where(outbox.c.key == created.id)).scalar_one()
    )
    # Compare the text: orjson would parse floats.
    assert f'"total_amount":{_digits(price)},"currency":"{price.currency_code}"' in payload
    assert f'"price":{_digits(price)}}}' in payload
    assert orjson.loads(payload)["data"]["currency"] == price.currency_code


def _digits(price: Money) -> str:
    if not price.nanos:
        return str(price.units)
    return f"{price.units}.{price.nanos:09}".rstrip("0")


@given(
    lines=st.lists(
        st.tuples(st.integers(0, 10**6), st.integers(0, 999_999_999), st.integers(1, 10**6)), min_size=1, max_size=5
    )
)
def test_a_total_is_the_exact_sum_in_billionths(lines: list[tuple[int, int, int]]) -> None:
    items = [
        pb.CreateOrderItem(product_id=1, quantity=quantity, price=Money(currency_code="USD", units=units, nanos=nanos))
        for units, nanos, quantity in lines
    ]
    billionths = sum((units * 10**9 + nanos) * quantity for units, nanos, quantity in lines)

    order = parse.new_order(pb.CreateOrderRequest(user_id=1, items=items), ANYONE, None)

    assert order.total_amount == exact(*divmod(billionths, 10**9))


def test_a_repeat_with_an_equal_price_in_another_form_is_the_same_order(database: Database) -> None:
    """1.5 and 1.500000000 are the same price."""
    order = new_order(items=(NewItem(1, 2, Decimal("1.5")),))
    (created,) = stored(database, order)
    again = NewItem(1, 2, Decimal("1.500000000"))
    same = NewOrder(order.id, order.user_id, (again,), order.total_amount, "USD", None)

    outcomes = database.transact(lambda tx: orders.insert(tx, [ReservedOrder(same, 60)]))

    assert outcomes == [created]
