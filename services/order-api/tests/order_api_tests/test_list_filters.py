"""The filters of ListOrders by product, reference, label, several statuses and last change."""

from collections.abc import Iterator
from decimal import Decimal

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from order_api.api import parse
from order_api.domain.commands import OrderFilter
from order_api.domain.model import NewDetails, NewItem, Order, Status
from order_api.store import order_lists
from shop_common.api.paging import PageRequest
from shop_common.db.database import Database
from shop_common.errors import InvalidInput
from shop_common.identity.caller import ANYONE
from shop_common.timestamps import to_proto
from shop_protos.order.v1 import order_pb2 as pb
from testkit.drivers.order_api import OrderApiDriver, new_order, stored

A_TIME = Timestamp(seconds=1_700_000_000)


@pytest.fixture
def driver(database: Database) -> Iterator[OrderApiDriver]:
    """OrderService without inventory-api, which lists do not need."""
    with OrderApiDriver.serving(database, "localhost:1") as opened:
        yield opened


def ids(driver: OrderApiDriver, **filters: object) -> list[str]:
    """The ids of the list, read in pages of one order."""
    return [order.id for order in driver.list_orders(page_size=1, **filters)]


def one_by_one(database: Database, *new: object) -> list[Order]:
    """Store the orders one after another, and return them with the newest first."""
    created = [stored(database, each)[0] for each in new]  # type: ignore[arg-type]
    return sorted(created, key=lambda order: (order.created_at, order.id), reverse=True)


def item(product: int) -> NewItem:
    return NewItem(product, 1, Decimal(1))


def test_orders_are_found_by_product_each_once(driver: OrderApiDriver) -> None:
    lines = [(7,), (8,), (7, 7, 8, 7), (9, 7)]
    created = [stored(driver.database, new_order(items=tuple(map(item, each))))[0] for each in lines]
    first, second, third, fourth = (order.id for order in created)

    assert ids(driver, product_id=7) == [fourth, third, first]
    assert ids(driver, product_id=8) == [third, second]
    assert ids(driver, product_id=10) == []


def test_orders_are_found_by_reference_and_user(driver: OrderApiDriver) -> None:
    web = NewDetails(external_reference="web-1")
    created = one_by_one(
        driver.database,
        new_order(user_id=1, details=web),
        new_order(user_id=2, details=web),
        new_order(user_id=1, details=NewDetails(external_reference="web-12")),
        new_order(user_id=1),
    )
    of_web = [order for order in created if order.external_reference == "web-1"]

    assert ids(driver, external_reference="web-1") == [order.id for order in of_web]
    assert ids(driver, external_reference="web-1", user_id=2) == [order.id for order in of_web if order.user_id == 2]
    assert ids(driver, external_reference="web-1", created_before=to_proto(of_web[-1].created_at)) == []
    assert ids(driver, external_reference="web") == []


def test_orders_are_found_by_label_and_user(driver: OrderApiDriver) -> None:
    created = one_by_one(
        driver.database,
        *(
            new_order(user_id=user, details=NewDetails(labels=labels))
            for user, labels in (
                (1, (("channel", "web"), ("gift", ""))),
                (2, (("channel", "web"),)),
                (1, (("channel", "shop"),)),
                (1, ()),
            )
        ),
    )
    of_web = [order for order in created if ("channel", "web") in order.labels]
    web = pb.Label(name="channel", value="web")

    assert ids(driver, label=web) == [order.id for order in of_web]
    assert ids(driver, label=web, user_id=1) == [order.id for order in of_web if order.user_id == 1]
    assert ids(driver, label=web, created_before=to_proto(of_web[-1].created_at)) == []
    assert ids(driver, label=pb.Label(name="gift")) == [order.id for order in created if len(order.labels) == 2]
    assert ids(driver, label=pb.Label(name="web", value="channel")) == []


def test_several_statuses_are_one_list(driver: OrderApiDriver) -> None:
    created = one_by_one(driver.database, *(new_order(user_id=1 + number % 2) for number in range(6)))
    for order in created[1:3]:
        driver.change_status(order.id, pb.ORDER_STATUS_CANCELLED)
    pending, cancelled = pb.ORDER_STATUS_PENDING, pb.ORDER_STATUS_CANCELLED
    everything = [order.id for order in created]

    assert ids(driver, statuses=[cancelled, pending, cancelled]) == everything
    assert ids(driver, statuses=[cancelled, pb.ORDER_STATUS_SHIPPED]) == everything[1:3]
    assert ids(driver, statuses=[cancelled, pending], status=pending) == [everything[0], *everything[3:]]
    assert ids(driver, statuses=[pending], status=cancelled) == []
    assert ids(driver, statuses=[cancelled, pending], user_id=1) == [each.id for each in created if each.user_id == 1]
    assert ids(driver, statuses=[cancelled, pending], created_before=to_proto(created[-1].created_at)) == []


def test_changed_orders_are_listed_from_the_oldest_change_on(driver: OrderApiDriver) -> None:
    first, second, third = (stored(driver.database, new_order())[0] for _ in range(3))
    changed = driver.change_status(first.id, pb.ORDER_STATUS_CANCELLED)
    second_at, changed_at = to_proto(second.updated_at), changed.updated_at

    assert ids(driver, updated_after=to_proto(first.updated_at)) == [second.id, third.id, first.id]
    assert ids(driver, updated_after=changed_at) == [first.id]
    assert ids(driver, updated_before=changed_at) == [second.id, third.id]
    assert ids(driver, updated_after=second_at, updated_before=to_proto(third.updated_at)) == [second.id]


def test_an_order_that_changes_while_pages_are_read_is_not_missed(database: Database) -> None:
    orders = [stored(database, new_order())[0] for _ in range(3)]
    by_update = OrderFilter("default", updated_after=orders[0].updated_at)

    page = database.query(lambda tx: order_lists.list_page(tx, PageRequest("orders", by_update, None, 1)))
    with OrderApiDriver.serving(database, "localhost:1") as driver:
        for order in orders[:2]:
            driver.change_status(order.id, pb.ORDER_STATUS_CANCELLED)
    rest = database.query(lambda tx: order_lists.list_page(tx, PageRequest("orders", by_update, page.next_position, 9)))

    assert [(order.id, order.status) for order in rest.rows] == [
        (orders[2].id, Status.PENDING),
        (orders[0].id, Status.CANCELLED),
        (orders[1].id, Status.CANCELLED),
    ]


LABEL = pb.Label(name="channel", value="web")


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (pb.ListOrdersRequest(product_id=1, user_id=1), ["product_id"]),
        (pb.ListOrdersRequest(product_id=1, statuses=[pb.ORDER_STATUS_PENDING]), ["product_id"]),
        (pb.ListOrdersRequest(product_id=1, created_after=A_TIME), ["product_id"]),
        (pb.ListOrdersRequest(product_id=1, external_reference="r"), ["product_id"]),
        (pb.ListOrdersRequest(external_reference="r", status=pb.ORDER_STATUS_PENDING), ["external_reference"]),
        (pb.ListOrdersRequest(external_reference="r", label=LABEL), ["external_reference"]),
        (pb.ListOrdersRequest(label=LABEL, statuses=[pb.ORDER_STATUS_PENDING]), ["label"]),
        (pb.ListOrdersRequest(updated_after=A_TIME, user_id=1), ["updated_after"]),
        (pb.ListOrdersRequest(updated_before=A_TIME, created_before=A_TIME), ["updated_before"]),
        (pb.ListOrdersRequest(updated_before=A_TIME, label=LABEL), ["updated_before"]),
        (pb.ListOrdersRequest(product_id=0), ["product_id"]),
        (pb.ListOrdersRequest(external_reference="x" * 129), ["external_reference"]),
        (pb.ListOrdersRequest(label=pb.Label(value="x" * 257)), ["label.name", "label.value"]),
        (pb.ListOrdersRequest(statuses=[pb.ORDER_STATUS_PENDING, pb.ORDER_STATUS_UNSPECIFIED]), ["statuses[1]"]),
        (pb.ListOrdersRequest(statuses=[pb.ORDER_STATUS_PENDING] * 7), ["statuses"]),
    ],
)
def test_bad_filters_and_combinations_without_an_index_are_named(
    request_: pb.ListOrdersRequest, fields: list[str]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse.orders_page(request_, ANYONE)

    assert [violation.field for violation in caught.value.violations] == fields


@pytest.mark.parametrize(
    "request_",
    [
        pb.ListOrdersRequest(external_reference="r", user_id=1, created_after=A_TIME, created_before=A_TIME),
        pb.ListOrdersRequest(label=LABEL, user_id=1, created_after=A_TIME, created_before=A_TIME),
        pb.ListOrdersRequest(statuses=[pb.ORDER_STATUS_PENDING] * 6, user_id=1, created_after=A_TIME),
        pb.ListOrdersRequest(updated_after=A_TIME, updated_before=A_TIME),
    ],
)
def test_combinations_with_an_index_are_accepted(request_: pb.ListOrdersRequest) -> None:
    assert parse.orders_page(request_, ANYONE).after is None
