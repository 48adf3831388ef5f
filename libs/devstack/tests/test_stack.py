from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.type import money_pb2

from devstack import kafka
from devstack.dev import drain
from devstack.kafka import Kafka
from devstack.process import ProcessEnded
from devstack.stack import Databases, Options, Stack
from shop_protos.inventory.v1 import inventory_pb2, inventory_pb2_grpc
from shop_protos.order.v1 import order_pb2, order_pb2_grpc

DRAIN_SECONDS = 90


@pytest.fixture
def broker() -> Iterator[Kafka]:
    """A broker that no other test has written to."""
    with kafka.provide() as started:
        yield started


@pytest.fixture
def databases(tmp_path: Path) -> Databases:
    return Databases.in_folder(tmp_path)


def test_a_drained_stack_has_handled_the_last_events(databases: Databases, broker: Kafka) -> None:
    reports: list[str] = []
    with Stack(databases, broker) as stack:
        # Without the relay, the cancelled order's stock is still reserved when draining begins.
        stack.relay.stop()
        _place_and_cancel(stack)
        stack.relay.start()

        assert drain.drain(stack, DRAIN_SECONDS, reports.append), reports
        assert not any(process.alive for process in stack.processes)

        with _begun_again(stack) as again:
            assert _available(again) == 5


def test_draining_gives_up_in_time_and_reports_what_is_left(databases: Databases, broker: Kafka) -> None:
    reports: list[str] = []
    with Stack(databases, broker) as stack:
        stack.relay.stop()
        _place_and_cancel(stack)

        assert not drain.drain(stack, 2, reports.append)

    assert reports[-1].startswith("gave up with ")
    assert "events to ship" in reports[-1]


def test_a_setting_may_be_for_one_process_or_for_all(databases: Databases, broker: Kafka) -> None:
    options = Options(environment={"LOG_LEVEL": "error"}, per_process={"event-relay": {"LOG_LEVEL": "warning"}})
    stack = Stack(databases, broker, options=options)

    assert [process.env["LOG_LEVEL"] for process in stack.processes] == ["error", "error", "error", "warning"]


def test_a_stack_that_cannot_start_shows_why_and_leaves_nothing_running(databases: Databases, broker: Kafka) -> None:
    options = Options(per_process={"event-relay": {"LOG_LEVEL": "loud"}})
    stack = Stack(databases, broker, options=options)

    with pytest.raises(ProcessEnded, match="LOG_LEVEL"):
        stack.__enter__()

    assert not any(process.alive for process in stack.processes)


def _begun_again(stack: Stack) -> Stack:
    """The same databases and broker, with new processes."""
    return Stack(stack.databases, stack.kafka)


def _place_and_cancel(stack: Stack) -> None:
    with grpc.insecure_channel(stack.inventory_address) as inventory_channel:
        inventory = inventory_pb2_grpc.InventoryServiceStub(inventory_channel)
        inventory.CreateInventoryItem(
            inventory_pb2.CreateInventoryItemRequest(product_id=1, quantity=5, location="A"), timeout=10
        )
    with grpc.insecure_channel(stack.orders_address) as orders_channel:
        orders = order_pb2_grpc.OrderServiceStub(orders_channel)
        price = money_pb2.Money(currency_code="EUR", units=10)
        line = order_pb2.CreateOrderItem(product_id=1, quantity=5, price=price)
        order = orders.CreateOrder(order_pb2.CreateOrderRequest(user_id=1, items=[line]), timeout=10).order
        assert _available(stack) == 0
        orders.UpdateOrderStatus(
            order_pb2.UpdateOrderStatusRequest(id=order.id, status=order_pb2.ORDER_STATUS_CANCELLED), timeout=10
        )


def _available(stack: Stack) -> int:
    with grpc.insecure_channel(stack.inventory_address) as channel:
        request = inventory_pb2.CheckStockRequest(product_id=1, required_quantity=1)
        return inventory_pb2_grpc.InventoryServiceStub(channel).CheckStock(request, timeout=10).available_quantity
