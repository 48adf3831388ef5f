"""Each call and its effects are one complete trace in Jaeger, through every process."""

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
CREATE_ORDER = "shop.order.v1.OrderService/CreateOrder"
UPDATE_STATUS = "shop.order.v1.OrderService/UpdateOrderStatus"
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
    """A span from Jaeger. `links` are ids of spans in any trace."""

    id: str
    name: str
    process: str
    parent: str | None
    links: frozenset[str]
    tags: dict[str, Any]


class Trace:
    """A trace from Jaeger."""

    def __init__(self, trace: dict[str, Any]) -> None:
        processes = {key: process["serviceName"] for key, process in trace["processes"].items()}
        self.spans = [_span(one, processes) for one in trace["spans"]]

    def all(self, process: str, name: str, **tags: str) -> list[Span]:
        """The spans of the process with this name and these tags (`__` stands for a dot)."""
        required = {key.replace("__", "."): value for key, value in tags.items()}
        named = [span for span in self.spans if (span.process, span.name) == (process, name)]
        return [span for span in named if required.items() <= span.tags.items()]

    def one(self, process: str, name: str, **tags: str) -> Span:
        """The only span that `all` would return. Raises AssertionError if there is none or more than one."""
        spans = self.all(process, name, **tags)
        assert len(spans) == 1, f"{len(spans)} spans {process} {name} {tags} in:\n{self}"
        return spans[0]

    def ancestors(self, span: Span) -> list[Span]:
        """The parent of the span, its parent, and so on, up to the root of the trace."""
        by_id = {each.id: each for each in self.spans}
        ancestors = []
        while span.parent in by_id:
            span = by_id[span.parent]
            ancestors.append(span)
        return ancestors

    @property
    def is_unbroken(self) -> bool:
        """True if every parent is in the trace, except for the caller's span, which is never sent to Jaeger."""
        by_id = {span.id for span in self.spans}
        return len({span.parent for span in self.spans if span.parent not in by_id}) == 1

    def is_complete(self, *ends: tuple[str, str]) -> bool:
        """True if the trace is unbroken and has the spans in `ends`, each given as (process, name).

        Each process sends its spans at its own time. No other span shows that the root or a span without children is
        missing, so `ends` must name those.
        """
        return self.is_unbroken and all(self.all(*end) for end in ends)

    def __str__(self) -> str:
        return "\n".join(f"    {span.process}: {span.name} {span.id} < {span.parent}" for span in self.spans)


def test_creating_an_order_is_one_trace_from_the_call_to_the_broker(shop: ShopDriver, jaeger: Jaeger) -> None:
    product = shop.stocked_product(units=5)
    order_id, trace_id = create_order(shop, product, ttl_seconds=600)

    sent = [("event-relay", "send order-events"), ("event-relay", "send inventory-events")]
    trace = complete_trace(shop, jaeger, trace_id, [*sent, ("inventory-api", RESERVE), ("order-api", CREATE_ORDER)])

    assert trace.is_unbroken, str(trace)
    call = trace.one("order-api", CREATE_ORDER)
    assert call.tags["shop.order_id"] == order_id
    # The call waited for two batches that had no other call. The call's span and each batch link to each other.
    for stage in ("hold", "insert"):
        waited, batch = trace.one("order-api", f"{stage} coalesced"), trace.one("order-api", f"{stage} batch")
        assert waited.parent == batch.parent == call.id
        assert batch.id in waited.links
        assert call.id in batch.links
        assert waited.tags["shop.batch.size"] == 1
    client, server = trace.one("order-api", RESERVE), trace.one("inventory-api", RESERVE)
    assert client.parent == trace.one("order-api", "hold batch").id
    assert server.parent == client.id
    # Each commit is a child of its batch.
    reserving = trace.one("inventory-api", "reserve batch")
    assert reserving.parent == server.id
    assert trace.one("inventory-api", "COMMIT").parent == reserving.id
    assert trace.one("order-api", "COMMIT").parent == trace.one("order-api", "insert batch").id
    assert any(span.tags.get("db.query.text") for span in trace.spans if span.parent == reserving.id)
    # Each event is a child of the call that caused it.
    assert trace.one("event-relay", "send order-events").parent == call.id
    assert trace.one("event-relay", "send inventory-events", shop__event_type="STOCK_RESERVED").parent == call.id


def test_the_trace_of_a_cancellation_includes_the_release_of_its_stock(shop: ShopDriver, jaeger: Jaeger) -> None:
    product = shop.stocked_product(units=5)
    order_id, _ = create_order(shop, product, ttl_seconds=600)
    shop.change_status(order_id, CONFIRMED)

    trace_id = update_status(shop, order_id, CANCELLED)
    shop.eventually(lambda: shop.available(product) == 5)
    ends = [("event-relay", "send inventory-events"), ("order-api", UPDATE_STATUS)]
    trace = complete_trace(shop, jaeger, trace_id, ends)

    assert trace.is_unbroken, str(trace)
    call = trace.one("order-api", UPDATE_STATUS)
    sent = trace.one("event-relay", "send order-events", shop__event_type="ORDER_CANCELLED")
    handled = trace.one("inventory-api", "process order-events")
    released = trace.one("event-relay", "send inventory-events", shop__event_type="STOCK_RELEASED")
    assert [sent.parent, handled.parent, released.parent] == [call.id, sent.id, handled.id]
    assert handled.tags["shop.order_id"] == order_id


def test_an_expiry_that_cancels_an_order_is_one_trace_through_all_four_processes(
    shop: ShopDriver, jaeger: Jaeger
) -> None:
    product = shop.stocked_product(units=5)
    order_id, _ = create_order(shop, product, ttl_seconds=1)
    shop.eventually(lambda: shop.order(order_id).status == CANCELLED, within_seconds=90)

    def expiry() -> list[dict[str, Any]]:
        return jaeger.search("order-api", "process inventory-events", {"shop.order_id": order_id})

    first, last = ("reservation-reaper", EXPIRE), ("inventory-api", "process order-events")
    shop.eventually(lambda: any(trace.is_complete(first, last) for trace in map(Trace, expiry())), SHOWN_SECONDS)
    (trace,) = [each for each in map(Trace, expiry()) if each.all(*last)]

    assert {span.process for span in trace.spans} == {"reservation-reaper", "inventory-api", "event-relay", "order-api"}
    cancelled = trace.one("order-api", "process inventory-events", shop__order_id=order_id)
    ancestors = [f"{span.process}: {span.name}" for span in trace.ancestors(cancelled)]
    assert ancestors[0] == "event-relay: send inventory-events"
    assert ancestors[-1] == f"reservation-reaper: {EXPIRE}"
    # inventory-api handles the event of the cancellation in the same trace.
    cancellation_handled = trace.one("inventory-api", "process order-events", shop__order_id=order_id)
    assert cancelled in trace.ancestors(cancellation_handled)


def create_order(shop: ShopDriver, product: int, ttl_seconds: float) -> tuple[str, str]:
    """Create an order in a new trace. Returns the ids of the order and of the trace."""
    traceparent, trace_id = new_trace()
    request = order_pb2.CreateOrderRequest(user_id=1, request_id=str(uuid4()))
    line = request.items.add(product_id=product, quantity=1)
    line.price.currency_code, line.price.units = "EUR", 5
    request.ttl.FromNanoseconds(int(ttl_seconds * 1e9))
    with grpc.insecure_channel(shop.stack.orders_address) as channel:
        stub = order_pb2_grpc.OrderServiceStub(channel)
        order = stub.CreateOrder(request, timeout=10, metadata=(("traceparent", traceparent),)).order
    return order.id, trace_id


def update_status(shop: ShopDriver, order_id: str, status: "order_pb2.OrderStatus.ValueType") -> str:
    """Change the status in a new trace. Returns the id of the trace."""
    traceparent, trace_id = new_trace()
    request = order_pb2.UpdateOrderStatusRequest(id=order_id, status=status)
    with grpc.insecure_channel(shop.stack.orders_address) as channel:
        stub = order_pb2_grpc.OrderServiceStub(channel)
        stub.UpdateOrderStatus(request, timeout=10, metadata=(("traceparent", traceparent),))
    return trace_id


def new_trace() -> tuple[str, str]:
    """A sampled traceparent, and the id of its trace."""
    trace_id = uuid4().hex
    return f"00-{trace_id}-{uuid4().hex[:16]}-01", trace_id


def complete_trace(shop: ShopDriver, jaeger: Jaeger, trace_id: str, ends: list[tuple[str, str]]) -> Trace:
    """Wait until the trace is complete with these spans, and return it."""
    shop.eventually(lambda: jaeger.has(trace_id) and Trace(jaeger.trace(trace_id)).is_complete(*ends), SHOWN_SECONDS)
    return Trace(jaeger.trace(trace_id))


def _span(span: dict[str, Any], processes: dict[str, str]) -> Span:
    references = span["references"]
    parents = [each["spanID"] for each in references if each["refType"] == "CHILD_OF"]
    # A batch also links to its parent. Jaeger keeps only one of the two references; its page shows the same tree.
    parents += [each["spanID"] for each in references[:1] if not parents]
    return Span(
        id=span["spanID"],
        name=span["operationName"],
        process=processes[span["processID"]],
        parent=parents[0] if parents else None,
        links=frozenset(each["spanID"] for each in references if each["refType"] == "FOLLOWS_FROM"),
        tags={tag["key"]: tag["value"] for tag in span["tags"]},
    )
