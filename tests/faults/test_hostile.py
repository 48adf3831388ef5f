"""Hostile callers send wrong data, too much or nothing, and an honest client is served all the time.

Each test is one attack. During it, orders are created, confirmed and cancelled, health checks succeed, memory stays
bounded, and no process ends; see `honest_client`.
"""

import socket
import urllib.request
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from uuid import UUID

import grpc
import psutil
import pytest
from google.type.money_pb2 import Money

from devstack.kafka import Kafka
from devstack.ports import free_ports
from devstack.postgres import PostgresServer
from devstack.stack import Databases
from shop_common.errors import ShopError
from shop_protos.inventory.v1 import inventory_pb2 as inventory
from shop_protos.order.v1 import order_pb2 as orders
from shopctl.system.layout import RELAY
from testkit.foreign import Foreign, send
from tests.e2e.shop_driver import CANCELLED, CONFIRMED, ShopDriver
from tests.faults import peer
from tests.faults.honest_client import honest_client, retrying
from tests.faults.hostile import (
    BATCH_RESERVE,
    CALL_SECONDS,
    CREATE_ORDER,
    GET_ORDER,
    LIST_ORDERS,
    LIST_RESERVATIONS,
    MESSAGE_BYTES_MAX,
    RESERVE_STOCK,
    UPDATE_STATUS,
    idle_connections,
    peers,
    raw_calls,
    to_apis,
)
from tests.faults.peer import HEALTH_CHECK, HEALTH_WATCH, REFLECTION, Peer, message
from tests.faults.stream import INVENTORY, ORDERS
from tests.faults.system import System, running

pytestmark = pytest.mark.timeout(600)

STOP_SECONDS = 25
"""A process takes up to ten seconds for running calls, and up to ten to flush."""
SCRAPE_SECONDS = 30
THREADS_MAX = 300
LINES_MAX = 200
TRIES_MAX = 40
"""The limit of tries per caller. With many concurrent callers, most calls are refused at first; all succeed later."""
PLENTY = 10**9
TOPICS = (ORDERS, INVENTORY)
EFFECT_SECONDS = 300
"""For the effects of many large events."""


@pytest.fixture(scope="module", params=[pytest.param("postgresql", marks=pytest.mark.short), "sqlite"])
def system(
    request: pytest.FixtureRequest, own_broker: Kafka, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        databases = Databases.on_server(server)
    else:
        databases = Databases.in_folder(tmp_path_factory.mktemp("data"))
    # Tracing is on, as in production, but its collector is unavailable.
    (unused_port,) = free_ports(1)
    collector = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{unused_port}"}
    # A relay is ready while its last pass is younger than a lease. A busy machine needs the default lease of 10 s.
    relay = {RELAY: {"LEASE_SECONDS": "10"}}
    with running(
        databases, own_broker, environment=collector, per_process=relay, metrics=True, is_secured=False
    ) as system:
        yield system


@pytest.fixture(scope="module")
def products(system: System) -> list[int]:
    """As many products as an order may have lines, each with plenty of stock."""
    with ShopDriver.connect(system.stacks[0]) as shop, ThreadPoolExecutor(16) as callers:
        return list(callers.map(lambda _: shop.stocked_product(PLENTY), range(LINES_MAX)))


# --- connections and streams ---


def test_health_watches_that_are_never_read(system: System) -> None:
    with honest_client(system) as honest, peers(system, window=0) as everywhere:
        for each in everywhere:
            each.call(HEALTH_WATCH, message(b""), end=True)
        honest.wait_for_orders()


def test_health_checks_without_a_message(system: System) -> None:
    with honest_client(system) as honest, peers(system) as everywhere:
        for each in everywhere:
            for _ in range(16):
                each.call(HEALTH_CHECK)
        honest.wait_for_orders()


def test_streams_that_send_nothing(system: System) -> None:
    with honest_client(system) as honest, peers(system) as everywhere:
        for each in everywhere:
            for _ in range(1_000):
                each.call(REFLECTION)
        honest.wait_for_orders()


def test_calls_without_a_message(system: System) -> None:
    with honest_client(system) as honest, to_apis(system) as (inventory_api, order_api):
        for _ in range(1_000):
            inventory_api.call(RESERVE_STOCK)
            order_api.call(CREATE_ORDER)
        honest.wait_for_orders()


def test_calls_without_a_message_over_many_connections(system: System) -> None:
    with honest_client(system) as honest, ExitStack() as open_connections:
        for _ in range(100):
            for each in open_connections.enter_context(to_apis(system)):
                for path in (HEALTH_CHECK, CREATE_ORDER, RESERVE_STOCK, REFLECTION):
                    each.call(path)
        honest.wait_for_orders()


def test_messages_that_come_byte_by_byte(system: System) -> None:
    body = message(bytes(1_000))
    with honest_client(system) as honest, to_apis(system) as apis:
        paths = (RESERVE_STOCK, CREATE_ORDER)
        streams = [(each, each.call(path)) for each, path in zip(apis, paths, strict=True) for _ in range(1_000)]
        for number in range(5):
            for each, stream in streams:
                # The server may have ended this stream already. Then it receives a frame on a closed stream.
                each.send(peer.frame(peer.DATA, 0, stream, body[number : number + 1]))
            honest.wait_for_orders(1)


def test_calls_of_many_messages_that_never_end(system: System) -> None:
    one = message(orders.GetOrderRequest(id=str(UUID(int=0))).SerializeToString())
    with honest_client(system) as honest, to_apis(system) as (inventory_api, order_api), suppress(OSError):
        for _ in range(1_000):
            order_api.call(GET_ORDER, one)
            order_api.call(HEALTH_CHECK, message(b""))
            inventory_api.call(RESERVE_STOCK, message(b"") * 1_000)
        honest.wait_for_orders()


def test_connections_without_http(system: System) -> None:
    ports = system.stacks[0].ports
    start = b"PRI * HTTP/2.0"
    with honest_client(system) as honest, ExitStack() as open_connections:
        connections = [
            open_connections.enter_context(socket.create_connection(("127.0.0.1", port), peer.CONNECT_SECONDS))
            for port in (ports.inventory, ports.orders) * 200
        ]
        for number in range(5):
            for connection in connections:
                # The server may have closed this one by now.
                with suppress(OSError):
                    connection.sendall(start[number : number + 1])
            honest.wait_for_orders(1)


def test_headers_that_no_client_sends(system: System) -> None:
    large = [(b"x-%d" % number, b"v" * 1_000) for number in range(14)]
    with honest_client(system) as honest, to_apis(system) as apis, suppress(OSError):
        for number in range(1_000):
            for each in apis:
                each.call(CREATE_ORDER, extra=large)
                each.call(GET_ORDER, message(b""), end=True, extra=[(b"grpc-timeout", b"99999999H")])
                each.call(GET_ORDER, message(b""), end=True, extra=[(b"grpc-timeout", b"soon")])
                each.call(GET_ORDER, message(b"x", compressed=True), end=True, extra=[(b"grpc-encoding", b"\xff")])
                each.call(f"{GET_ORDER}{number}", message(b""), end=True)
                each.call("/" + "x" * 3_000, message(b""), end=True)
        honest.wait_for_orders()


def test_frames_that_break_the_protocol(system: System) -> None:
    ports = system.stacks[0].ports
    window = peer.frame(peer.WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff")
    settings = peer.frame(peer.SETTINGS, 0, 0, b"\0\1\0\0\0\0" * 1_000)
    no_stream = peer.frame(peer.DATA, 0, 0, b"x")
    no_headers = peer.frame(peer.HEADERS, peer.END_HEADERS, 1, b"\x3f\xff\xff\xff\xff\xff\x7f")
    unknown = peer.frame(99, 255, 7, b"x" * 100)
    end = peer.frame(peer.GOAWAY, 0, 0, bytes(8))
    with honest_client(system) as honest:
        for port in (ports.inventory, ports.orders, ports.reaper, ports.relay) * 10:
            for bad in (window, settings, no_stream, no_headers, unknown, end):
                with suppress(OSError), Peer(port) as connection:
                    for _ in range(20):
                        connection.send(bad)
        honest.wait_for_orders()


def test_calls_that_are_cancelled_at_once(system: System, is_short: bool) -> None:
    with honest_client(system) as honest, to_apis(system) as apis, suppress(OSError):
        for _ in range(3_000 if is_short else 30_000):
            for each in apis:
                each.cancel(each.call(GET_ORDER, message(b""), end=True))
        honest.wait_for_orders()


def test_thousands_of_concurrent_calls(system: System) -> None:
    request = orders.ListOrdersRequest(page_size=1_000).SerializeToString()
    with honest_client(system) as honest, to_apis(system) as (_, order_api):
        for _ in range(5_000):
            order_api.call(LIST_ORDERS, message(request), end=True)
        honest.wait_for_orders()


def test_responses_that_are_never_read(system: System) -> None:
    request = orders.ListOrdersRequest(page_size=1_000).SerializeToString()
    with honest_client(system) as honest, to_apis(system, window=0, reads=False) as (_, order_api):
        for _ in range(500):
            order_api.call(LIST_ORDERS, message(request), end=True)
        honest.wait_for_orders()


def test_messages_that_arrive_after_their_deadline(system: System) -> None:
    with honest_client(system) as honest, to_apis(system) as (_, order_api):
        late = [order_api.call(CREATE_ORDER, extra=[(b"grpc-timeout", b"50m")]) for _ in range(500)]
        honest.wait_for_orders()
        for stream in late:
            order_api.send(peer.frame(peer.DATA, peer.END_STREAM, stream, message(b"")))
        honest.wait_for_orders()


def test_thousands_of_health_watches(system: System, is_short: bool) -> None:
    with honest_client(system) as honest, to_apis(system) as apis, suppress(OSError):
        for number in range(4_000 if is_short else 20_000):
            for each in apis:
                each.call(HEALTH_WATCH, message(b""), end=True)
            if number % 1_000 == 0:
                honest.wait_for_orders(1)
        honest.wait_for_orders()


def test_idle_connections(system: System) -> None:
    ports = [system.stacks[0].ports.inventory, system.stacks[0].ports.orders]
    with honest_client(system) as honest, idle_connections(ports, 700):
        honest.wait_for_orders()


def test_idle_connections_to_the_metrics(system: System) -> None:
    process, port = psutil.Process(system.stacks[0].order_api.pid), system.stacks[0].ports.orders_metrics
    threads = process.num_threads()  # includes the pool for calls, whose threads stay
    with honest_client(system) as honest, idle_connections([port], 1_500):
        honest.wait_for_orders()
        assert process.num_threads() < threads + THREADS_MAX
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SCRAPE_SECONDS) as response:
        assert b"shop_" in response.read()


def test_pings_and_headers_without_end(system: System) -> None:
    with honest_client(system) as honest, to_apis(system, reads=False) as (pinged, headed):
        with suppress(OSError):
            for _ in range(200):
                pinged.send(peer.frame(peer.PING, 0, 0, b"12345678") * 500)
        with suppress(OSError):
            headed.send(peer.frame(peer.HEADERS, 0, 1, peer.headers(GET_ORDER)))
            for number in range(3_000):
                more = peer.header(b"x-%d" % number, b"b" * 8_000)
                headed.send(peer.frame(peer.CONTINUATION, 0, 1, more))
        honest.wait_for_orders()


# --- messages ---


def test_texts_as_long_as_the_largest_message(system: System) -> None:
    text = "€" * 345_000
    line = orders.CreateOrderItem(product_id=1, quantity=1, price=Money(currency_code=text[:335_000], units=1))
    other = orders.CreateOrderItem(product_id=1, quantity=1, price=Money(currency_code="EUR", units=1))
    refused = [
        (CREATE_ORDER, orders.CreateOrderRequest(user_id=1, items=[line] + [other] * (LINES_MAX - 1))),
        (CREATE_ORDER, orders.CreateOrderRequest(user_id=1, items=[other], request_id=text)),
        (GET_ORDER, orders.GetOrderRequest(id=text)),
        (UPDATE_STATUS, orders.UpdateOrderStatusRequest(id="x", status=CANCELLED, reason=text)),
        (LIST_ORDERS, orders.ListOrdersRequest(page_token=text)),
        (RESERVE_STOCK, inventory.ReserveStockRequest(product_id=1, quantity=1, order_id=text)),
        (RESERVE_STOCK, inventory.ReserveStockRequest(product_id=1, quantity=1, order_id="x", location=text)),
    ]
    with honest_client(system) as honest, raw_calls(system) as call:
        for path, request in refused * 20:
            assert call(path, request.SerializeToString()) is grpc.StatusCode.INVALID_ARGUMENT, path
        honest.wait_for_orders()


def test_batches_of_empty_messages(system: System) -> None:
    many = 500_000
    with honest_client(system) as honest, raw_calls(system) as call:
        for _ in range(5):
            assert call(BATCH_RESERVE, b"\x0a\x00" * many) is grpc.StatusCode.INVALID_ARGUMENT
            assert call(CREATE_ORDER, b"\x12\x00" * many) is grpc.StatusCode.INVALID_ARGUMENT
            # Unknown fields, and nested groups.
            assert call(GET_ORDER, b"\xf8\x07\x01" * (many // 2)) is grpc.StatusCode.INVALID_ARGUMENT
            call(GET_ORDER, b"\x5b" * many)
            assert call(BATCH_RESERVE, b"\x0a\x00" * 4 * many) is grpc.StatusCode.RESOURCE_EXHAUSTED
        honest.wait_for_orders()


def test_concurrent_batches_of_empty_messages(system: System) -> None:
    """Each request is 1 MB long and takes fifty times as much memory after decoding."""
    request = b"\x0a\x00" * 500_000
    count = 32
    with honest_client(system) as honest, raw_calls(system) as call, ThreadPoolExecutor(count) as callers:
        for _ in range(2):
            codes = set(callers.map(lambda _: call(BATCH_RESERVE, request), range(count)))
            assert codes <= {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}
        honest.wait_for_orders()


def test_a_message_that_unpacks_to_a_hundred_times_its_size(system: System) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = b"".join(packer.compress(bytes(2**20)) for _ in range(400)) + packer.flush()
    with honest_client(system) as honest, to_apis(system) as (_, order_api):
        for _ in range(3):
            # The message is larger than the server's flow-control window, so the server may close the connection before
            # its end.
            with suppress(OSError):
                order_api.call(
                    GET_ORDER, message(packed, compressed=True), end=True, extra=[(b"grpc-encoding", b"gzip")]
                )
        honest.wait_for_orders()


@pytest.mark.parametrize("odd", ["a\nb", "a\tb", "a\x9b31m", "a\u202eb", "a\x1b[31m"], ids=ascii)
def test_a_reason_with_control_characters_is_refused(system: System, odd: str) -> None:
    with ShopDriver.connect(system.stacks[0]) as shop:
        order = shop.create_order((shop.stocked_product(1), 1))
        request = orders.UpdateOrderStatusRequest(id=order.id, status=CANCELLED, reason=odd)
        with pytest.raises(ShopError) as refused:
            shop.api.call(shop.api.orders.UpdateOrderStatus, request)
    assert refused.value.reason == "INVALID_FIELD"


# --- valid requests in large numbers or sizes ---


def test_many_orders_of_the_largest_size(system: System, products: list[int], is_short: bool) -> None:
    """The orders are created, listed, confirmed concurrently, and cancelled."""
    count = 40 if is_short else 400
    lines = [(product, 1) for product in products]
    with ShopDriver.connect(system.stacks[0]) as shop:
        with honest_client(system) as honest, ThreadPoolExecutor(count) as callers:
            user = shop.new_id()

            def create(number: int) -> str:
                request_id = f"{user}-{number}"
                call = partial(shop.create_order, *lines, user_id=user, request_id=request_id)
                return retrying(partial(call, timeout_seconds=CALL_SECONDS), TRIES_MAX).id

            def change(order_id: str, status: "orders.OrderStatus.ValueType") -> None:
                retrying(lambda: shop.change_status(order_id, status, timeout_seconds=CALL_SECONDS), TRIES_MAX)

            with ThreadPoolExecutor(8) as buyers:
                order_ids = list(buyers.map(create, range(count)))
            readers = [callers.submit(read_lists, system, user, products[0]) for _ in range(4)]
            honest.wait_for_orders()
            for reader in readers:
                reader.result()
            for status in (CONFIRMED, CANCELLED):
                list(callers.map(change, order_ids, [status] * count))
                honest.wait_for_orders()
        shop.eventually(lambda: all(shop.available(product) == PLENTY for product in products), EFFECT_SECONDS)


def read_lists(system: System, user: int, product: int) -> None:
    """Read the largest pages with a client's default limit for the size of a response."""
    with raw_calls(system, receive_bytes_max=MESSAGE_BYTES_MAX) as call:
        for _ in range(5):
            listed = orders.ListOrdersRequest(user_id=user, page_size=1_000)
            assert call(LIST_ORDERS, listed.SerializeToString()) is grpc.StatusCode.OK
            reservations = inventory.ListReservationsRequest(product_id=product, page_size=1_000)
            assert call(LIST_RESERVATIONS, reservations.SerializeToString()) is grpc.StatusCode.OK


def test_an_order_with_more_reservations_than_the_limit(system: System, products: list[int]) -> None:
    with ShopDriver.connect(system.stacks[0]) as shop, honest_client(system) as honest:
        order = shop.create_order((products[0], 1))
        lines = [inventory.Line(product_id=product, quantity=1) for product in products]
        batch = [inventory.OrderLines(order_id=order.id, lines=lines)] * 5
        refused = 0
        for _ in range(5):
            request = inventory.BatchReserveStockRequest(orders=batch)
            response = shop.api.call(shop.api.inventory.BatchReserveStock, request, timeout_seconds=CALL_SECONDS)
            refused += sum(result.HasField("error") for result in response.results)
        shop.change_status(order.id, CANCELLED)
        honest.wait_for_orders()
        shop.eventually(lambda: all(shop.available(product) == PLENTY for product in products), EFFECT_SECONDS)
    assert refused > 0, f"{25 * LINES_MAX} reservations of one order were accepted"


def test_a_product_at_more_locations_than_the_limit(system: System) -> None:
    with (
        ShopDriver.connect(system.stacks[0]) as shop,
        honest_client(system) as honest,
        ThreadPoolExecutor(16) as callers,
    ):
        product = shop.new_id()

        def add(number: int) -> str:
            try:
                shop.add_stock(product, 1, f"L{number:05d}-" + "x" * 57)
            except ShopError as refusal:
                return refusal.reason
            return "OK"

        reasons = list(callers.map(add, range(600)))
        assert reasons.count("OK") == 500, "the others are refused"
        assert set(reasons) == {"OK", "LOCATIONS_LIMIT"}
        # A reservation that draws on all 500 locations can also expire.
        held = shop.reserve(product, 500, order_id="p" * 64, ttl_seconds=1, timeout_seconds=60)
        assert len(held.allocations) == 500
        honest.wait_for_orders()
        shop.eventually(lambda: shop.reservation(held.id).state == inventory.RESERVATION_STATE_EXPIRED, EFFECT_SECONDS)


# --- messages that others write to our topics ---


def test_messages_that_are_not_events(system: System) -> None:
    deep = b"[" * 50_000
    good = b'{"event_type": "ORDER_CANCELLED", "timestamp": "2024-01-15T10:30:00Z", "data": {"id": "x", "items": []}}'
    event_type = (b"ce_type", b"ORDER_CANCELLED")
    strange = [
        Foreign(None, None, [event_type]),
        Foreign(b"", b"", [event_type]),
        Foreign(deep, b"deep", [event_type]),
        Foreign(good.replace(b"[]", deep), b"deeper", [event_type]),
        Foreign(good.replace(b'"x"', b"NaN"), b"nan", [event_type]),
        Foreign(good.replace(b'"x"', b"1" * 5_000), b"huge", [event_type]),
        Foreign(good.replace(b"2024", b"99999"), b"late", [event_type]),
        Foreign(good, b"\xff\xfe", [event_type]),
        Foreign(good, b"many", [event_type] * 500),
        Foreign(good, b"names", [(b"x-b\xe4r", b"v"), event_type]),
        Foreign(good, b"names", [event_type, (b"\xff" * 100, None), (b"ce_id", None)]),
        Foreign(good, b"trace", [event_type, (b"traceparent", b"\xff" * 1_000)]),
    ]
    with honest_client(system) as honest:
        for topic in TOPICS:
            send(system.kafka.bootstrap, topic, strange * 5)
        honest.wait_for_orders()


def test_events_that_cannot_be_handled(system: System) -> None:
    ids = (b"null", b"[[]]", b'"a\\u0000b"', b'"%s"')
    product = b'{"product_id": 1, "quantity": "x"}'
    items = (b"null", b"7", b"[1]", b"[{}]", b'[{"product_id": [], "quantity": 1}]', b"[%s]" % product)
    bad = [
        b"{}",
        *(b'{"id": %s, "order_id": %s, "items": []}' % (each, each) for each in ids),
        *(b'{"id": "x", "order_id": 7, "items": %s}' % each for each in items),
    ]
    body = b'{"event_type": "%s", "timestamp": "2024-01-15T10:30:00Z", "data": %s}'
    types = (b"ORDER_CANCELLED", b"ORDER_SHIPPED", b"STOCK_RELEASED", b"STOCK_RESERVATION_EXPIRED")
    poison = [Foreign(body % (each, data), b"key %d" % number) for each in types for number, data in enumerate(bad)]
    with honest_client(system) as honest:
        for topic in TOPICS:
            send(system.kafka.bootstrap, topic, poison * 5)
        honest.wait_for_orders()


# --- shutdown ---


def test_a_process_exits_in_time_whatever_its_callers_do(system: System) -> None:
    stack = system.stacks[0]
    with peers(system, window=0) as everywhere, idle_connections([stack.ports.orders_metrics], 50):
        for each in everywhere:
            each.call(HEALTH_WATCH, message(b""), end=True)
            for path in (HEALTH_CHECK, REFLECTION, CREATE_ORDER, RESERVE_STOCK):
                for _ in range(50):
                    each.call(path)
        for process in stack.processes:
            assert process.stop(STOP_SECONDS) == 0, f"{process.name} did not end in time\n{process.tail()}"
    stack.start()
    system.wait_ready()
