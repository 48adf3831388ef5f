"""What Jaeger shows of an order: one trace from the call to the last effect, through every process, nothing missing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import grpc
import pytest

from devstack import kafka
from devstack.stack import Databases, Options, Stack
from shop_protos.order.v1 import order_pb2, order_pb2_grpc
from tests.e2e.shop_driver import CANCELLED, CONFIRMED, ShopDriver
from tests.observability.jaeger import Jaeger

SHOWN_SECONDS = 90
PLACE = "shop.order.v1.OrderService/CreateOrder"
SET_STATUS = "shop.order.v1.OrderService/UpdateOrderStatus"
RESERVE = "shop.inventory.v1.InventoryService/BatchReserveStock"
EXPIRE = "shop.inventory.v1.InventoryMaintenanceService/ExpireReservations"


@pytest.fixture(scope="module")
def jaeger(docker_engine: str) -> Iterator[Jaeger]:
    with Jaeger() as running:
        yield running


@pytest.fixture(scope="module")
def shop(jaeger: Jaeger, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShopDriver]:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "200"}
    databases = Databases.in_folder(tmp_path_factory.mktemp("data"))
    options = Options(environment=environment)
    with (
        kafka.provide() as broker,
        Stack(databases, broker, options=options) as stack,
        ShopDriver.connect(stack) as opened,
    ):
        opened.wait_ready()
        yield opened


@dataclass(frozen=True)
class Span:
    """A span as Jaeger has it. `links` are ids of spans, in whatever trace."""

    id: str
    name: str
    process: str
    parent: str | None
    links: frozenset[str]
    tags: dict[str, Any]


class Trace:
    """A trace as Jaeger has it."""

    def __init__(self, found: dict[str, Any]) -> None:
        processes = {key: process["serviceName"] for key, process in found["processes"].items()}
        self.spans = [_span(one, processes) for one in found["spans"]]

    def all(self, process: str, name: str, **tags: str) -> list[Span]:
        """Those of that process with that name and these tags (`__` stands for a dot)."""
        wanted = {key.replace("__", "."): value for key, value in tags.items()}
        named = [span for span in self.spans if (span.process, span.name) == (process, name)]
        return [span for span in named if wanted.items() <= span.tags.items()]

    def one(self, process: str, name: str, **tags: str) -> Span:
        """The only one of `all`."""
        found = self.all(process, name, **tags)
        assert len(found) == 1, f"{len(found)} spans {process} {name} {tags} in:\n{self}"
        return found[0]

    def above(self, span: Span) -> list[Span]:
        """Its parents, up to the first of the trace."""
        by_id = {each.id: each for each in self.spans}
        found = []
        while span.parent in by_id:
            span = by_id[span.parent]
            found.append(span)
        return found

    @property
    def is_unbroken(self) -> bool:
        """Whether no span hangs in the air, but those of the caller, who sends none of his own."""
        by_id = {span.id for span in self.spans}
        return len({span.parent for span in self.spans if span.parent not in by_id}) == 1

    def is_whole(self, *ends: tuple[str, str]) -> bool:
        """Whether it is unbroken and these, by process and name, have come.

        Each process sends its spans when it likes. A call that has none below it, and the first, are missed by nothing
        else of the trace.
        """
        return self.is_unbroken and all(self.all(*end) for end in ends)

    def __str__(self) -> str:
        return "\n".join(f"    {span.process}: {span.name} {span.id} < {span.parent}" for span in self.spans)


def test_a_placed_order_is_one_trace_from_the_call_to_the_broker(shop: ShopDriver, jaeger: Jaeger) -> None:
    product = shop.stocked_product(units=5)
    order_id, trace_id = place(shop, product, ttl_seconds=600)

    sent = [("event-relay", "send order-events"), ("event-relay", "send inventory-events")]
    trace = shown(shop, jaeger, trace_id, [*sent, ("inventory-api", RESERVE), ("order-api", PLACE)])

    assert trace.is_unbroken, str(trace)
    call = trace.one("order-api", PLACE)
    assert call.tags["shop.order_id"] == order_id
    # The call waited for two batches, which were its own alone; each and it name each other.
    for stage in ("hold", "insert"):
        waited, batch = trace.one("order-api", f"{stage} coalesced"), trace.one("order-api", f"{stage} batch")
        assert waited.parent == batch.parent == call.id
        assert batch.id in waited.links
        assert call.id in batch.links
        assert waited.tags["shop.batch.size"] == 1
    asked, answered = trace.one("order-api", RESERVE), trace.one("inventory-api", RESERVE)
    assert asked.parent == trace.one("order-api", "hold batch").id
    assert answered.parent == asked.id
    # Both commits, each in the transaction that it ends.
    held = trace.one("inventory-api", "reserve batch")
    assert held.parent == answered.id
    assert trace.one("inventory-api", "COMMIT").parent == held.id
    assert trace.one("order-api", "COMMIT").parent == trace.one("order-api", "insert batch").id
    assert any(span.tags.get("db.query.text") for span in trace.spans if span.parent == held.id)
    # Both events, each below the call that it tells of.
    assert trace.one("event-relay", "send order-events").parent == call.id
    assert trace.one("event-relay", "send inventory-events", shop__event_type="STOCK_RESERVED").parent == call.id


def test_a_cancellation_shows_how_the_stock_came_back(shop: ShopDriver, jaeger: Jaeger) -> None:
    product = shop.stocked_product(units=5)
    order_id, _ = place(shop, product, ttl_seconds=600)
    shop.change_status(order_id, CONFIRMED)

    trace_id = set_status(shop, order_id, CANCELLED)
    shop.eventually(lambda: shop.available(product) == 5)
    trace = shown(shop, jaeger, trace_id, [("event-relay", "send inventory-events"), ("order-api", SET_STATUS)])

    assert trace.is_unbroken, str(trace)
    call = trace.one("order-api", SET_STATUS)
    sent = trace.one("event-relay", "send order-events", shop__event_type="ORDER_CANCELLED")
    handled = trace.one("inventory-api", "process order-events")
    told = trace.one("event-relay", "send inventory-events", shop__event_type="STOCK_RELEASED")
    assert [sent.parent, handled.parent, told.parent] == [call.id, sent.id, handled.id]
    assert handled.tags["shop.order_id"] == order_id


def test_an_expiry_that_cancels_an_order_is_one_trace_through_all_four_processes(
    shop: ShopDriver, jaeger: Jaeger
) -> None:
    product = shop.stocked_product(units=5)
    order_id, _ = place(shop, product, ttl_seconds=1)
    shop.eventually(lambda: shop.order(order_id).status == CANCELLED, within_seconds=90)

    def expiry() -> list[dict[str, Any]]:
        return jaeger.search("order-api", "process inventory-events", {"shop.order_id": order_id})

    first, last = ("reservation-reaper", EXPIRE), ("inventory-api", "process order-events")
    shop.eventually(lambda: any(trace.is_whole(first, last) for trace in map(Trace, expiry())), SHOWN_SECONDS)
    (trace,) = [found for found in map(Trace, expiry()) if found.all(*last)]

    assert {span.process for span in trace.spans} == {"reservation-reaper", "inventory-api", "event-relay", "order-api"}
    cancelled = trace.one("order-api", "process inventory-events", shop__order_id=order_id)
    above = [f"{span.process}: {span.name}" for span in trace.above(cancelled)]
    assert above[0] == "event-relay: send inventory-events"
    assert above[-1] == f"reservation-reaper: {EXPIRE}"
    # What the cancellation caused in turn.
    given_back = trace.one("inventory-api", "process order-events", shop__order_id=order_id)
    assert cancelled in trace.above(given_back)


def place(shop: ShopDriver, product: int, ttl_seconds: float) -> tuple[str, str]:
    """The ids of the order and of the trace in which its buyer placed it."""
    traceparent, trace_id = new_trace()
    request = order_pb2.CreateOrderRequest(user_id=1, request_id=str(uuid4()))
    line = request.items.add(product_id=product, quantity=1)
    line.price.currency_code, line.price.units = "EUR", 5
    request.ttl.FromNanoseconds(int(ttl_seconds * 1e9))
    with grpc.insecure_channel(shop.stack.orders_address) as channel:
        stub = order_pb2_grpc.OrderServiceStub(channel)
        order = stub.CreateOrder(request, timeout=10, metadata=(("traceparent", traceparent),)).order
    return order.id, trace_id


def set_status(shop: ShopDriver, order_id: str, status: "order_pb2.OrderStatus.ValueType") -> str:
    """The id of the trace in which it was done."""
    traceparent, trace_id = new_trace()
    request = order_pb2.UpdateOrderStatusRequest(id=order_id, status=status)
    with grpc.insecure_channel(shop.stack.orders_address) as channel:
        stub = order_pb2_grpc.OrderServiceStub(channel)
        stub.UpdateOrderStatus(request, timeout=10, metadata=(("traceparent", traceparent),))
    return trace_id


def new_trace() -> tuple[str, str]:
    """A traceparent that is sampled, and the id of its trace."""
    trace_id = uuid4().hex
    return f"00-{trace_id}-{uuid4().hex[:16]}-01", trace_id


def shown(shop: ShopDriver, jaeger: Jaeger, trace_id: str, ends: list[tuple[str, str]]) -> Trace:
    """The trace, once it is whole with these."""
    shop.eventually(lambda: jaeger.has(trace_id) and Trace(jaeger.trace(trace_id)).is_whole(*ends), SHOWN_SECONDS)
    return Trace(jaeger.trace(trace_id))


def _span(found: dict[str, Any], processes: dict[str, str]) -> Span:
    references = found["references"]
    parents = [each["spanID"] for each in references if each["refType"] == "CHILD_OF"]
    # A batch is linked to its parent, too, and Jaeger keeps one reference of the two; its page shows the same tree.
    parents += [each["spanID"] for each in references[:1] if not parents]
    return Span(
        id=found["spanID"],
        name=found["operationName"],
        process=processes[found["processID"]],
        parent=parents[0] if parents else None,
        links=frozenset(each["spanID"] for each in references if each["refType"] == "FOLLOWS_FROM"),
        tags={tag["key"]: tag["value"] for tag in found["tags"]},
    )
