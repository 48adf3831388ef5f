from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext, SpanKind

from shop_common.batching.coalescer_telemetry import Membership
from shop_common.telemetry import tracing
from shop_common.telemetry.tracing_sdk import TracingSdk
from shopctl.tracing import traces
from shopctl.tracing.span_store import SpanStore
from shopctl.tracing.traces import Node, Traces


class _Shop:
    """Creates spans with the same code as the processes."""

    def __init__(self, store: SpanStore, tracing: TracingSdk) -> None:
        self._store = store
        self._tracing = tracing

    def call(self, method: str, order_id: str) -> Membership:
        """A call with its own trace, which waits in a coalescer."""
        attributes = {"shop.order_id": order_id}
        with tracing.span(f"shop.order.v1.OrderService/{method}", SpanKind.SERVER, attributes=attributes):
            member = Membership.of_current_span()
        assert member is not None
        return member

    @contextmanager
    def batch(self, name: str, members: Sequence[Membership]) -> Iterator[SpanContext | None]:
        with tracing.batch_span(f"{name} batch", [member.span for member in members]) as batch:
            yield batch
        for member in members:
            member.add_batch(batch, len(members), 0)
            member.end_span(name)

    def traces(self, order_id: str, *, reads: bool = False) -> Traces:
        tracing.shutdown()
        return traces.of_order(self._store, order_id, reads=reads)


class _ToStore(SpanExporter):
    def __init__(self, store: SpanStore) -> None:
        self._store = store

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._store.add(encode_spans(spans).resource_spans)
        return SpanExportResult.SUCCESS


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[_Shop]:
    with SpanStore.to_write(tmp_path / "traces.db") as store:
        sdk = TracingSdk("order-api", _ToStore(store))
        tracing.use(sdk)
        yield _Shop(store, sdk)
        tracing.shutdown()


def test_a_batch_is_shown_below_the_call_that_waited_for_it(shop: _Shop) -> None:
    with shop.batch("insert", [shop.call("CreateOrder", "a")]), tracing.span("INSERT"):
        pass

    (tree,) = shop.traces("a").trees

    assert _drawn(tree.roots) == [
        "shop.order.v1.OrderService/CreateOrder",
        "  insert coalesced",
        "    -> insert batch",
        "      INSERT",
    ]


def test_a_batch_in_the_trace_of_another_call_is_shown_without_that_call(shop: _Shop) -> None:
    first, second = shop.call("CreateOrder", "a"), shop.call("CreateOrder", "b")
    with shop.batch("insert", [first, second]) as batch, tracing.span("INSERT"):
        assert batch is not None
        assert batch.trace_id == first.span.trace_id

    (tree,) = shop.traces("b").trees

    assert f"{second.span.trace_id:032x}" == tree.trace_id
    assert _drawn(tree.roots) == [
        "shop.order.v1.OrderService/CreateOrder",
        "  insert coalesced",
        "    -> insert batch",
        "      INSERT",
    ]


def test_a_batch_within_a_batch_is_followed(shop: _Shop) -> None:
    first, second = shop.call("CreateOrder", "a"), shop.call("CreateOrder", "b")
    others = shop.call("ReserveStock", "c")
    with (
        shop.batch("hold", [first, second]),
        tracing.span("BatchReserveStock", SpanKind.SERVER, attributes={"shop.order_ids": ["a", "b"]}),
    ):
        inner = Membership.of_current_span()
        assert inner is not None
        with shop.batch("reserve", [others, inner]), tracing.span("UPDATE"):
            pass

    (tree,) = shop.traces("b").trees

    assert _drawn(tree.roots) == [
        "shop.order.v1.OrderService/CreateOrder",
        "  hold coalesced",
        "    -> hold batch",
        "      BatchReserveStock",
        "        reserve coalesced",
        "          -> reserve batch",
        "            UPDATE",
    ]


def test_the_relay_of_events_of_several_calls_is_shown_below_each(shop: _Shop) -> None:
    calls = [shop.call("CreateOrder", order_id).span for order_id in "ab"]
    with tracing.batch_span("ship batch", calls, attributes={"shop.order_ids": ["a", "b"]}):
        pass

    for order_id, shown in (("a", "  ship batch"), ("b", "  -> ship batch")):
        (tree,) = shop.traces(order_id).trees

        assert _drawn(tree.roots) == ["shop.order.v1.OrderService/CreateOrder", shown]


def test_spans_about_other_orders_are_left_out_and_counted(shop: _Shop) -> None:
    with tracing.span("handle", SpanKind.CONSUMER, attributes={"shop.order_ids": ["a", "b"]}):
        for order_id in "abc":
            with (
                tracing.span(f"release {order_id}", attributes={"shop.order_id": order_id}),
                tracing.span("UPDATE"),
            ):
                pass
        with tracing.span("COMMIT"):
            pass

    (tree,) = shop.traces("a").trees

    (root,) = tree.roots
    assert _drawn(tree.roots) == ["handle", "  release a", "    UPDATE", "  COMMIT"]
    assert root.spans_of_others == 4


def test_calls_that_only_read_are_left_out_unless_asked_for(shop: _Shop) -> None:
    for method in ("CreateOrder", "GetOrder", "GetOrder"):
        shop.call(method, "a")

    found = shop.traces("a")
    assert [tree.roots[0].span.name for tree in found.trees] == ["shop.order.v1.OrderService/CreateOrder"]
    assert found.reads_left_out == 2
    assert len(shop.traces("a", reads=True).trees) == 3


def test_a_story_is_complete_when_nothing_came_for_a_while(shop: _Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.call("CreateOrder", "a")

    assert not shop.traces("a").is_complete
    monkeypatch.setattr(traces, "QUIET_SECONDS", -1)
    assert shop.traces("a").is_complete


def test_a_story_is_not_complete_while_a_call_in_it_goes_on(shop: _Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "QUIET_SECONDS", -1)
    with tracing.span("CreateOrder", SpanKind.SERVER):
        with tracing.span("hold", attributes={"shop.order_id": "a"}):
            pass
        assert not shop.traces("a").is_complete


def _drawn(nodes: Sequence[Node], indent: str = "") -> list[str]:
    lines = []
    for node in nodes:
        lines.append(f"{indent}{'-> ' if node.is_linked else ''}{node.span.name}")
        lines += _drawn(node.children, f"{indent}  ")
    return lines
