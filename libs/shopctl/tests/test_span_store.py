import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from shopctl.tracing.span_store import SpanStore
from shopctl.tracing.spans import Event

SERVER = Span.SPAN_KIND_SERVER
TRACE = bytes(15) + b"\x01"
OTHER_TRACE = bytes(15) + b"\x02"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "traces.db"


@pytest.fixture
def store(path: Path) -> Iterator[SpanStore]:
    with SpanStore.to_write(path) as opened:
        yield opened


def test_a_span_is_read_back_as_it_was_received(store: SpanStore) -> None:
    sent = _span(7, parent=6, start=1_000, end=3_000, attributes={"shop.order_id": "order-1", "error.type": "X"})
    sent.links.add(trace_id=OTHER_TRACE, span_id=_id(9))
    sent.status.code, sent.status.message = Status.STATUS_CODE_ERROR, "it broke"
    sent.events.add(name="exception", time_unix_nano=2_000, attributes=[_pair("exception.message", "why")])

    store.add([_of("order-api", sent)])

    (span,) = store.trace(TRACE.hex())
    assert span.id == (TRACE.hex(), _id(7).hex())
    assert span.parent == (TRACE.hex(), _id(6).hex())
    assert (span.name, span.kind, span.process, span.instance) == ("7", "SERVER", "order-api", "here")
    assert (span.start_ns, span.end_ns) == (1_000, 3_000)
    assert span.orders == {"order-1"}
    assert span.reason == "X: it broke"
    assert span.events == (Event("exception", 2_000, {"exception.message": "why"}),)
    assert span.links == ((OTHER_TRACE.hex(), _id(9).hex()),)


def test_an_order_is_found_in_every_trace_that_names_it_alone_or_among_others(store: SpanStore) -> None:
    store.add([_of("order-api", _span(1, attributes={"shop.order_id": "a"}))])
    store.add([_of("inventory-api", _span(2, trace=OTHER_TRACE, attributes={"shop.order_ids": ["b", "a"]}))])

    assert store.traces_of("a") == [TRACE.hex(), OTHER_TRACE.hex()]
    assert store.traces_of("b") == [OTHER_TRACE.hex()]
    assert store.traces_of("c") == []


def test_a_link_is_found_from_the_trace_that_it_leads_to(store: SpanStore) -> None:
    batch = _span(3, trace=OTHER_TRACE)
    for member in (1, 2):
        batch.links.add(trace_id=TRACE, span_id=_id(member))
    store.add([_of("event-relay", batch)])

    (found,) = store.linking_to(TRACE.hex())
    assert found.name == "3"
    assert store.linking_to(OTHER_TRACE.hex()) == []


def test_a_span_that_is_sent_twice_is_stored_once(store: SpanStore) -> None:
    sent = _of("order-api", _span(1, attributes={"shop.order_id": "a"}))

    store.add([sent])
    store.add([sent])

    assert len(store.trace(TRACE.hex())) == 1


def test_above_the_bound_the_oldest_go_and_leave_nothing(store: SpanStore, path: Path) -> None:
    for number in range(1, 31):
        sent = _span(number, trace=_id(number) * 2, attributes={"shop.order_id": str(number)})
        sent.links.add(trace_id=OTHER_TRACE, span_id=_id(1))
        store.add([_of("order-api", sent)], spans_max=10)

    assert store.traces_of("20") == []
    assert store.traces_of("21") == [(_id(21) * 2).hex()]
    with closing(sqlite3.connect(path)) as database:
        counts = [
            database.execute(f"SELECT count(*) FROM {table}").fetchone() for table in ("spans", "orders", "links")
        ]
    assert counts == [(10,), (10,), (10,)]


def test_the_newest_order_is_the_one_that_was_placed_last(store: SpanStore) -> None:
    assert store.newest_order() is None

    store.add([_of("order-api", _call(1, "CreateOrder", "first"))])
    store.add([_of("order-api", _call(2, "CreateOrder", "second"))])
    store.add([_of("order-api", _call(3, "GetOrder", "first"))])
    # A refused call, which created no order.
    store.add([_of("order-api", _call(4, "CreateOrder", ""))])

    assert store.newest_order() == "second"


def test_the_file_outlives_its_writer(path: Path) -> None:
    with SpanStore.to_write(path) as store:
        store.add([_of("order-api", _span(1))])
    with SpanStore.to_write(path) as store:
        store.add([_of("order-api", _span(2))])

    with SpanStore.to_read(path) as store:
        assert [span.name for span in store.trace(TRACE.hex())] == ["1", "2"]


@pytest.mark.parametrize("other", [b"", b"no database at all, or a broken one" * 100])
def test_a_file_that_is_none_of_ours_is_begun_anew(path: Path, other: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(other)

    with pytest.raises(FileNotFoundError), SpanStore.to_read(path):
        pass
    with SpanStore.to_write(path) as store:
        store.add([_of("order-api", _span(1))])
        assert len(store.trace(TRACE.hex())) == 1


def test_only_its_owner_may_read_it(store: SpanStore, path: Path) -> None:
    store.add([_of("order-api", _span(1))])

    for name in ("traces.db", "traces.db-wal", "traces.db-shm"):
        assert path.with_name(name).stat().st_mode & 0o077 == 0


def _of(process: str, *spans: Span) -> ResourceSpans:
    resource = Resource(attributes=[_pair("service.name", process), _pair("service.instance.id", "here")])
    return ResourceSpans(resource=resource, scope_spans=[ScopeSpans(spans=spans)])


def _span(
    number: int,
    *,
    trace: bytes = TRACE,
    parent: int | None = None,
    kind: Span.SpanKind.ValueType = SERVER,
    start: int | None = None,
    end: int | None = None,
    attributes: dict[str, str | list[str]] | None = None,
) -> Span:
    start = number if start is None else start
    return Span(
        trace_id=trace,
        span_id=_id(number),
        parent_span_id=b"" if parent is None else _id(parent),
        name=str(number),
        kind=kind,
        start_time_unix_nano=start,
        end_time_unix_nano=start if end is None else end,
        attributes=[_pair(key, value) for key, value in (attributes or {}).items()],
    )


def _id(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _pair(key: str, value: str | list[str]) -> KeyValue:
    if isinstance(value, str):
        return KeyValue(key=key, value=AnyValue(string_value=value))
    values = ArrayValue(values=[AnyValue(string_value=each) for each in value])
    return KeyValue(key=key, value=AnyValue(array_value=values))


def _call(number: int, rpc: str, order_id: str) -> Span:
    span = _span(number, attributes={"shop.order_id": order_id} if order_id else {})
    span.name = f"shop.order.v1.OrderService/{rpc}"
    return span
