"""ListOrders: pages, filters and page tokens."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from uuid import UUID

import pytest

from order_api.api import parse, render
from order_api.domain.commands import OrderFilter
from order_api.domain.model import (
    CHARGES_MAX,
    LABELS_MAX,
    Charge,
    ChargeKind,
    NewDetails,
    NewItem,
    Order,
    OrderItem,
    Status,
)
from order_api.store import order_lists
from order_api.store.details import packed_charges, packed_labels
from shop_common.api import paging
from shop_common.api.paging import TOKEN_LENGTH_MAX, Page, PageRequest
from shop_common.api.valid import TEXT_LENGTH_MAX
from shop_common.db.database import Database
from shop_common.identity.caller import ANYONE
from shop_common.timestamps import from_micros, to_proto
from shop_protos.order.v1 import order_pb2 as pb
from testkit.calls import refusal
from testkit.drivers.order_api import UNKNOWN, OrderApiDriver, lines_read, new_order, stored

ALL = OrderFilter("default")


@pytest.fixture
def driver(database: Database) -> Iterator[OrderApiDriver]:
    """OrderService without inventory-api, which lists do not need."""
    with OrderApiDriver.serving(database, "localhost:1") as opened:
        yield opened


def test_pages_neither_skip_nor_repeat_while_orders_are_added(driver: OrderApiDriver) -> None:
    # The ten orders of a transaction have the same created_at.
    before = {order.id for _ in range(3) for order in stored(driver.database, *(new_order() for _ in range(10)))}

    found: list[str] = []
    token = ""
    while True:
        page = driver.stub.ListOrders(pb.ListOrdersRequest(page_size=4, page_token=token))
        found += [order.id for order in page.orders]
        stored(driver.database, *(new_order() for _ in range(3)))
        token = page.next_page_token
        if not token:
            break

    assert len(found) == len(set(found))
    assert set(found) == before


def test_the_newest_order_comes_first(driver: OrderApiDriver) -> None:
    created = [order for _ in range(3) for order in stored(driver.database, new_order(), new_order())]

    listed = driver.list_orders(page_size=2)

    expected = sorted(created, key=lambda order: (order.created_at, order.id), reverse=True)
    assert [order.id for order in listed] == [order.id for order in expected]


def test_all_filters_of_a_request_must_match(driver: OrderApiDriver) -> None:
    first, second = (stored(driver.database, new_order(user_id=user))[0] for user in (1, 2))
    third, fourth = stored(driver.database, new_order(user_id=1), new_order(user_id=1))
    cancelled = driver.change_status(third.id, pb.ORDER_STATUS_CANCELLED)

    def ids(**filters: object) -> set[str]:
        return {order.id for order in driver.list_orders(page_size=1, **filters)}

    assert ids(user_id=1) == {first.id, third.id, fourth.id}
    assert ids(status=pb.ORDER_STATUS_CANCELLED) == {cancelled.id}
    assert ids(user_id=1, status=pb.ORDER_STATUS_PENDING) == {first.id, fourth.id}
    assert ids(user_id=9) == set()
    after, before = to_proto(second.created_at), to_proto(fourth.created_at)
    assert ids(created_after=after) == {second.id, third.id, fourth.id}
    assert ids(created_before=before) == {first.id, second.id}
    assert ids(created_after=after, created_before=before) == {second.id}
    assert ids(created_after=before, created_before=after) == set()


def test_the_first_and_the_last_timestamp_are_accepted(driver: OrderApiDriver) -> None:
    (order,) = stored(driver.database, new_order())
    first, last = pb.ListOrdersRequest(), pb.ListOrdersRequest()
    first.created_after.FromJsonString("0001-01-01T00:00:00Z")
    last.created_before.FromJsonString("9999-12-31T23:59:59.999999999Z")

    for request in (first, last):
        assert [each.id for each in driver.stub.ListOrders(request).orders] == [order.id]


def test_a_token_of_another_filter_or_a_malformed_token_is_refused(driver: OrderApiDriver) -> None:
    stored(driver.database, new_order(), new_order())
    token = driver.stub.ListOrders(pb.ListOrdersRequest(page_size=1, user_id=1)).next_page_token

    for request in (
        pb.ListOrdersRequest(page_token=token),
        pb.ListOrdersRequest(page_token=token, user_id=2),
        pb.ListOrdersRequest(page_token=token[:-2], user_id=1),
        pb.ListOrdersRequest(page_token="ü", user_id=1),
    ):
        assert refusal(partial(driver.stub.ListOrders, request)).fields == ["page_token"]


@pytest.mark.parametrize("micros", [2**63 - 1, -(2**63), 253_402_300_800_000_000])
def test_a_forged_token_with_an_impossible_timestamp_is_refused(micros: int, driver: OrderApiDriver) -> None:
    page_request = parse.orders_page(pb.ListOrdersRequest(), ANYONE)
    token = paging.next_token(Page([], (micros, new_order().id)), page_request)

    assert refusal(lambda: driver.stub.ListOrders(pb.ListOrdersRequest(page_token=token))).fields == ["page_token"]


def test_page_sizes_are_bounded(driver: OrderApiDriver) -> None:
    stored(driver.database, *(new_order() for _ in range(51)))

    assert len(driver.stub.ListOrders(pb.ListOrdersRequest()).orders) == 50
    assert len(driver.stub.ListOrders(pb.ListOrdersRequest(page_size=2**31 - 1)).orders) == 51
    assert refusal(lambda: driver.stub.ListOrders(pb.ListOrdersRequest(page_size=-1))).fields == ["page_size"]


def test_a_page_of_very_long_orders_has_fewer_orders(database: Database) -> None:
    long = tuple(NewItem(product, 10**9, Decimal("0.000000001")) for product in range(1, 201))
    count = order_lists.PAGE_LINES_MAX // len(long) + 2
    before = {order.id for order in stored(database, *(new_order(items=long) for _ in range(count)))}

    first = database.query(lambda tx: order_lists.list_page(tx, PageRequest("orders", ALL, None, 1000)))
    rest = database.query(lambda tx: order_lists.list_page(tx, PageRequest("orders", ALL, first.next_position, 1000)))

    assert sum(len(order.items) for order in first.rows) == order_lists.PAGE_LINES_MAX
    assert rest.next_position is None
    found = [order.id for page in (first, rest) for order in page.rows]
    assert len(found) == count
    assert set(found) == before


def test_a_page_reads_no_more_lines_than_it_has(database: Database) -> None:
    long = tuple(NewItem(product, 1, Decimal(1)) for product in range(1, 201))
    for _ in range(3):
        stored(database, *(new_order(items=long) for _ in range(order_lists.PAGE_LINES_MAX // 600)))
    stored(database, *(new_order(items=long) for _ in range(20)))
    with lines_read(database) as read:
        page = database.query(lambda tx: order_lists.list_page(tx, PageRequest("orders", ALL, None, 1000)))

    assert sum(len(order.items) for order in page.rows) == order_lists.PAGE_LINES_MAX
    assert read == [UNKNOWN if database.is_sqlite else order_lists.PAGE_LINES_MAX]


FACE = "\N{GRINNING FACE}"
LARGEST_LABELS = tuple((f"{number:064}", FACE * parse.LABEL_VALUE_LENGTH_MAX) for number in range(LABELS_MAX))
SMALL_CHARGES = (Charge(ChargeKind.FEE, "", Decimal("1E-9")),) * CHARGES_MAX
"""The charges with the fewest stored bytes, compared with their size in a response."""


@pytest.mark.parametrize(
    ("details", "stored_bytes"),
    [
        (NewDetails(), 10**6),
        (NewDetails(labels=LARGEST_LABELS), len(packed_labels(LARGEST_LABELS).encode())),
        (NewDetails(charges=SMALL_CHARGES), len(packed_charges(SMALL_CHARGES))),
    ],
    ids=["neither", "labels", "charges"],
)
def test_the_largest_page_fits_into_a_response(details: NewDetails, stored_bytes: int) -> None:
    order_id, last = str(UUID(int=0)), datetime.max.replace(tzinfo=UTC)
    item = OrderItem(2**63 - 1, 2**63 - 1, 10**9, Decimal(10**15) - Decimal("0.000000001"), "W" * 64)
    order = Order(
        "default", order_id, 2**63 - 1, Decimal(10**15) - Decimal("0.000000001"), "EUR", Status.CANCELLED,
        FACE * TEXT_LENGTH_MAX, last, 2**63 - 1, last, last, (item,) * (order_lists.PAGE_LINES_MAX // 1000),
        external_reference=FACE * parse.REFERENCE_LENGTH_MAX,
    )  # fmt: skip
    with_details = replace(order, charges=details.charges, labels=details.labels)
    count = min(1000, order_lists.PAGE_DETAILS_BYTES_MAX // stored_bytes + 1)

    listed = [*[render.order(with_details)] * count, *[render.order(order)] * (1000 - count)]
    page = pb.ListOrdersResponse(orders=listed, next_page_token="t" * TOKEN_LENGTH_MAX)

    assert page.ByteSize() < 4 * 1024 * 1024


def test_a_page_of_orders_with_many_labels_has_fewer_orders(database: Database) -> None:
    labels = tuple((f"{number:064}", "x" * 256) for number in range(LABELS_MAX))
    fits = order_lists.PAGE_DETAILS_BYTES_MAX // (len(packed_labels(labels)) + len(packed_charges(())))
    new = [new_order(details=NewDetails(labels=labels)) for _ in range(fits + 2)]
    before = {order.id for order in stored(database, *new)}

    first = database.query(lambda tx: order_lists.list_page(tx, PageRequest("orders", ALL, None, 1000)))
    rest = database.query(lambda tx: order_lists.list_page(tx, PageRequest("orders", ALL, first.next_position, 1000)))

    assert (len(first.rows), len(rest.rows)) == (fits, 2)
    assert {order.id for page in (first, rest) for order in page.rows} == before


def test_timestamps_are_stored_and_returned_unchanged(driver: OrderApiDriver) -> None:
    (order,) = stored(driver.database, new_order())

    assert order.reserved_until == order.created_at + timedelta(seconds=60)
    assert from_micros(driver.order(order.id).created_at.ToMicroseconds()) == order.created_at
