"""The handlers of inventory events and their effects on orders."""

from datetime import UTC, datetime
from typing import Any

import pytest

from order_api.api import consumer
from order_api.domain.model import Status
from order_api.store import orders
from shop_common.db.database import Database
from shop_common.events.consumer import Event
from testkit import contract
from testkit.drivers.order_api import events, new_order, stored

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def event(event_type: str, data: dict[str, Any]) -> Event:
    now = datetime.now(UTC)
    return Event(event_type, "1", "an-id", data, now, TRACEPARENT, topic=consumer.TOPIC, partition=0, offset=0)


@pytest.mark.parametrize("event_type", ["STOCK_RESERVATION_EXPIRED", "STOCK_RELEASED"])
def test_lost_stock_cancels_its_order_once_however_often_the_event_is_delivered(
    database: Database, event_type: str
) -> None:
    lost, kept = stored(database, new_order(), new_order())
    delivered = [event(event_type, {"order_id": order_id}) for order_id in ("cart-1182", lost.id, lost.id)]

    for _ in range(2):
        database.transact(lambda tx: consumer.handlers()[event_type](tx, delivered))

    now = database.query(lambda tx: orders.load(tx, [lost.key, kept.key]))
    assert (now[lost.key].status, now[kept.key].status) == (Status.CANCELLED, Status.PENDING)
    assert [each["event_type"] for each in events(database, lost.id)] == ["ORDER_CREATED", "ORDER_CANCELLED"]


@pytest.mark.parametrize(
    ("event_type", "status"),
    [("STOCK_RESERVATION_EXPIRED", Status.CANCELLED), ("STOCK_RELEASED", Status.PENDING)],
)
def test_a_change_of_an_order_may_find_that_its_reservation_is_due(
    database: Database, event_type: str, status: Status
) -> None:
    (order,) = stored(database, new_order())
    caused = event(event_type, {"order_id": order.id, "product_id": 1, "order_version": 2})

    database.transact(lambda tx: consumer.handlers()[event_type](tx, [caused]))

    assert database.query(lambda tx: orders.load(tx, [order.key]))[order.key].status is status


def test_every_handler_accepts_the_examples_of_the_contract(database: Database) -> None:
    handlers = consumer.handlers()
    examples = [example for example in contract.validator().examples() if example.topic == consumer.TOPIC]
    assert handlers.keys() <= {example.type for example in examples}

    for example in examples:
        if example.type in handlers:
            read = [event(example.type, example.payload["data"])]
            database.transact(lambda tx, read=read: handlers[read[0].type](tx, read))  # type: ignore[misc]  # of lambdas
