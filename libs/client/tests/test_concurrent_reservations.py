"""Concurrent calls are sent as one batch, and each caller gets its own outcome and keeps its own deadline."""

import asyncio
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace

from devstack import postgres
from devstack.kafka import Kafka
from devstack.stack import READY_SECONDS, Databases, Options, Stack
from inventory_api.api.parse import LINES_MAX
from inventory_api.store.tables import inventory_items
from shop_client import (
    AsyncShop,
    Line,
    NewItem,
    NewOrder,
    Order,
    OrderLines,
    OrderStatus,
    Reservation,
    ReservationState,
    Settings,
    Shop,
    Stock,
    errors,
)
from shop_common.db.database import Database
from testkit.apis import WITHOUT_EVENTS, running
from testkit.eventually import eventually

RESERVE, CONFIRM, RELEASE = "BatchReserveStock", "BatchConfirmReservations", "BatchReleaseStock"
CREATE, CHECK = "BatchCreateOrders", "BatchGetAvailability"
THREADS = 64
TASKS = 500


@pytest.fixture
def restarted(embedded_broker: Kafka, tmp_path: Path) -> Iterator[Stack]:
    """APIs that only this test uses."""
    yield from running(
        Stack(Databases.in_folder(tmp_path), embedded_broker, options=Options(environment=WITHOUT_EVENTS))
    )


class Batches:
    """Records the requests of each batch, and passes it on to the RPC."""

    def __init__(self, method: Any, field: str) -> None:
        self._method = method
        self._field = field
        self.sizes: list[int] = []
        self.requests: list[Any] = []

    def __call__(self, request: Any, **options: Any) -> Any:
        self._record(request)
        return self._method(request, **options)

    def future(self, request: Any, **options: Any) -> Any:
        self._record(request)
        return self._method.future(request, **options)

    def _record(self, request: Any) -> None:
        requests = getattr(request, self._field)
        self.requests += requests
        self.sizes.append(len(requests))


def coalescer(shop: Shop | AsyncShop, rpc: str = RESERVE) -> Any:
    return shop._connected().coalescers[rpc]


def watched(shop: Shop | AsyncShop, rpc: str = RESERVE) -> Batches:
    """Observe the batches of the RPC from now on."""
    of_rpc = coalescer(shop, rpc)
    field = {RESERVE: "orders", CREATE: "orders", CHECK: "product_ids"}.get(rpc, "requests")
    batches = Batches(of_rpc._method, field)
    of_rpc._method = batches
    return batches


def test_threads_share_batches_and_no_unit_is_sold_twice(shop: Shop, product: int) -> None:
    shop.add_stock(product, THREADS * 5)
    batches = watched(shop)

    def reserve(number: int) -> Counter[str]:
        outcomes: Counter[str] = Counter()
        for _ in range(10):
            try:
                reservation = shop.reserve(product, 1, f"order-{product}-{number}")
                assert reservation.order_id == f"order-{product}-{number}"
                outcomes["reserved"] += 1
            except errors.InsufficientStock:
                outcomes["short"] += 1
        return outcomes

    with ThreadPoolExecutor(THREADS) as callers:
        total = sum(callers.map(reserve, range(THREADS)), Counter())

    assert total == {"reserved": THREADS * 5, "short": THREADS * 5}
    assert sum(batches.sizes) == THREADS * 10
    assert len(batches.sizes) < THREADS * 10
    assert units(shop, product) == THREADS * 5
    assert shop.check_stock(product).available_quantity == 0


def test_tasks_share_batches_and_no_unit_is_sold_twice(settings: Settings, shop: Shop, product: int) -> None:
    shop.add_stock(product, TASKS)

    async def reserve(client: AsyncShop, number: int) -> Counter[str]:
        outcomes: Counter[str] = Counter()
        for _ in range(2):
            try:
                reservation = await client.reserve(product, 1, f"order-{product}-{number}")
                assert reservation.order_id == f"order-{product}-{number}"
                outcomes["reserved"] += 1
            except errors.InsufficientStock:
                outcomes["short"] += 1
        return outcomes

    async def run() -> tuple[Counter[str], list[int]]:
        async with AsyncShop(settings) as client:
            batches = watched(client)
            counts = await asyncio.gather(*(reserve(client, number) for number in range(TASKS)))
            return sum(counts, Counter()), batches.sizes

    total, sizes = asyncio.run(run())

    assert total == {"reserved": TASKS, "short": TASKS}
    assert sum(sizes) == TASKS * 2
    assert len(sizes) < TASKS / 10
    assert units(shop, product) == TASKS


def test_confirmations_and_releases_travel_together(shop: Shop, product: int) -> None:
    """Each caller gets the outcome of its own order: half of them are unknown, a third was released before."""
    shop.add_stock(product, THREADS)
    reservations = {n: shop.reserve(product, 1, f"order-{product}-{n}") for n in range(0, THREADS, 2)}
    released = [n for n in reservations if n % 3 == 0]
    confirmations, releases = watched(shop, CONFIRM), watched(shop, RELEASE)

    def confirm(number: int) -> str:
        try:
            (confirmed,) = shop.confirm_reservations(f"order-{product}-{number}")
        except errors.ShopError as error:
            return type(error).__name__
        assert (confirmed.id, confirmed.state) == (reservations[number].id, ReservationState.CONFIRMED)
        return "confirmed"

    with ThreadPoolExecutor(THREADS) as callers:
        assert list(callers.map(lambda n: shop.release(reservations[n].id), released)) == [1] * len(released)
        outcomes = dict(enumerate(callers.map(confirm, range(THREADS))))

    assert outcomes == {
        n: "ReservationNotFound" if n % 2 else "ReservationReleased" if n in released else "confirmed"
        for n in range(THREADS)
    }
    assert (sum(confirmations.sizes), sum(releases.sizes)) == (THREADS, len(released))
    assert len(confirmations.sizes) < THREADS
    assert units(shop, product) == len(reservations) - len(released)


def test_stock_is_checked_together_and_each_product_is_read_once_in_a_batch(settings: Settings, product: int) -> None:
    """The products have 0 to 9 units. Invalid checks, and those of one location, are sent alone."""
    products = [product * 1000 + units for units in range(10)]

    async def check(client: AsyncShop, number: int) -> None:
        units = number % 10
        stock = await client.check_stock(products[units], required_quantity=5)
        assert (stock.is_available, stock.available_quantity) == (units >= 5, units)

    async def run() -> Batches:
        async with AsyncShop(settings) as client:
            for units in range(1, 10):
                await client.add_stock(products[units], units)
            batches = watched(client, CHECK)
            with pytest.raises(errors.InvalidInput) as invalid:
                await client.check_stock(0, required_quantity=10**9 + 1)
            assert [each.field for each in invalid.value.violations] == ["required_quantity", "product_id"]
            assert not (await client.check_stock(products[9], location="ELSEWHERE")).is_available
            assert batches.sizes == []
            await asyncio.gather(*(check(client, number) for number in range(TASKS)))
            return batches

    batches = asyncio.run(run())

    assert max(batches.sizes) == len(products)
    assert len(batches.sizes) < TASKS / 10


def test_checks_whose_products_have_too_many_items_for_one_response_are_sent_alone(
    apis: Stack, settings: Settings, product: int
) -> None:
    """A response has room for 25,000 items; 60 products have 500 items each."""
    products = [product * 1000 + number for number in range(60)]
    now = datetime.now(UTC)
    of_item = {"quantity": 1, "reserved_quantity": 0, "version": 1, "created_at": now, "updated_at": now}
    items = [{"product_id": each, "location": f"SHELF_{n}", **of_item} for each in products for n in range(500)]
    database = Database(apis.databases.inventory)
    with database.write() as tx:
        tx.execute(inventory_items.insert(), items)
    database.close()

    async def run() -> tuple[list[Stock], list[int]]:
        async with AsyncShop(settings) as client:
            batches = watched(client, CHECK)
            return await asyncio.gather(*map(client.check_stock, products)), batches.sizes

    stocks, sizes = asyncio.run(run())

    assert [each.available_quantity for each in stocks] == [500] * len(products)
    assert max(sizes) > 50


def test_orders_are_created_together_and_no_unit_is_sold_twice(settings: Settings, shop: Shop, product: int) -> None:
    shop.add_stock(product, TASKS)
    item = NewItem(product, 2, Decimal("19.99"))

    async def create(client: AsyncShop, number: int) -> str:
        context = trace.SpanContext(number, number, is_remote=False, trace_flags=trace.TraceFlags(1))
        with trace.use_span(trace.NonRecordingSpan(context)):
            try:
                order = await client.create_order(number, [item], "EUR")
            except errors.InsufficientStock:
                return "short"
        assert (order.user_id, order.status, order.total_amount) == (number, OrderStatus.PENDING, Decimal("39.98"))
        return "created"

    async def run() -> tuple[list[str], Batches]:
        async with AsyncShop(settings) as client:
            batches = watched(client, CREATE)
            return await asyncio.gather(*(create(client, number) for number in range(1, TASKS + 1))), batches

    outcomes, batches = asyncio.run(run())

    assert Counter(outcomes) == {"created": TASKS // 2, "short": TASKS // 2}
    assert len(batches.sizes) < TASKS / 10
    assert {order.user_id: order.traceparent for order in batches.requests} == {
        number: f"00-{number:032x}-{number:016x}-01" for number in range(1, TASKS + 1)
    }
    assert units(shop, product) == TASKS


def test_tasks_confirm_and_release_together(settings: Settings, shop: Shop, product: int) -> None:
    shop.add_stock(product, TASKS)

    async def use(client: AsyncShop, number: int) -> int:
        reservation = await client.reserve(product, 1, f"order-{product}-{number}")
        (confirmed,) = await client.confirm_reservations(reservation.order_id)
        assert (confirmed.id, confirmed.state) == (reservation.id, ReservationState.CONFIRMED)
        return await client.release(reservation.id)

    async def run() -> tuple[list[int], list[Batches]]:
        async with AsyncShop(settings) as client:
            batches = [watched(client, rpc) for rpc in (RESERVE, CONFIRM, RELEASE)]
            return await asyncio.gather(*(use(client, number) for number in range(TASKS))), batches

    quantities, batches = asyncio.run(run())

    assert quantities == [1] * TASKS
    assert [sum(each.sizes) for each in batches] == [TASKS] * 3
    assert all(len(each.sizes) < TASKS / 10 for each in batches)


def test_an_order_without_room_in_the_response_of_its_batch_is_confirmed_alone(
    settings: Settings, product: int
) -> None:
    """The response of a batch has room for 5 orders with 1,000 reservations each."""
    products = range(product * 1000, product * 1000 + LINES_MAX)
    orders = [f"order-{product}-{number}" for number in range(8)]
    lines = [Line(each, 1) for each in products]

    async def run() -> tuple[list[list[Reservation]], list[int]]:
        async with AsyncShop(settings) as client:
            await asyncio.gather(*(client.add_stock(each, 1000) for each in products))
            await asyncio.gather(*(client.reserve_lines(order, lines) for order in orders * (1000 // LINES_MAX)))
            batches = watched(client, CONFIRM)
            return await asyncio.gather(*map(client.confirm_reservations, orders)), batches.sizes

    confirmed, sizes = asyncio.run(run())

    assert max(sizes) > 5
    assert [{each.order_id for each in of_order} for of_order in confirmed] == [{order} for order in orders]
    assert [len(of_order) for of_order in confirmed] == [1000] * len(orders)
    assert {each.state for of_order in confirmed for each in of_order} == {ReservationState.CONFIRMED}


def test_a_lone_call_is_sent_at_once(shop: Shop, product: int) -> None:
    shop.add_stock(product, 3)
    batches = watched(shop)

    for _ in range(3):
        shop.reserve(product, 1, "order-1")

    assert batches.sizes == [1, 1, 1]


def test_each_caller_keeps_its_own_deadline(apis: Stack, shop: Shop, product: int) -> None:
    shop.add_stock(product, 100)
    late: list[object] = []

    with apis.inventory_api.frozen():
        patient = [threading.Thread(target=lambda: late.append(shop.reserve(product, 1, "patient"))) for _ in range(4)]
        for thread in patient:
            thread.start()
        with pytest.raises(errors.DeadlineExceeded) as passed:
            shop.reserve(product, 1, "impatient", request_id=f"impatient-{product}", timeout_seconds=0.3)
        assert passed.value.request_id == f"impatient-{product}"
    for thread in patient:
        thread.join()

    assert len(late) == 4
    # The outcome of the impatient call is unknown. A repeat with its request_id shows the outcome.
    shop.reserve(product, 1, "impatient", request_id=f"impatient-{product}")
    assert units(shop, product) == 5


def test_batches_do_not_wait_for_a_stalled_batch_for_ever(apis: Stack, shop: Shop, product: int) -> None:
    """The first batch hangs in a frozen server. The reservations behind it are sent before its deadline."""
    shop.add_stock(product, 10)
    batches = watched(shop)

    with apis.inventory_api.frozen():
        callers = [threading.Thread(target=shop.reserve, args=(product, 1, "order-1")) for _ in range(2)]
        callers[0].start()
        eventually(lambda: len(batches.sizes) == 1)
        callers[1].start()
        eventually(lambda: len(batches.sizes) == 2)
    for caller in callers:
        caller.join()

    assert units(shop, product) == 2


def test_a_cancelled_task_affects_no_other_task(apis: Stack, settings: Settings, shop: Shop, product: int) -> None:
    shop.add_stock(product, 100)

    async def run() -> None:
        async with AsyncShop(settings) as client:
            batches = watched(client)
            with apis.inventory_api.frozen():
                tasks = [asyncio.create_task(client.reserve(product, 1, f"order-{number}")) for number in range(20)]
                await until(lambda: bool(batches.sizes))  # some are outstanding, the others wait
                for task in tasks[::2]:
                    task.cancel()
                await asyncio.wait(tasks[::2])
            assert all(task.cancelled() for task in tasks[::2])
            reservations = await asyncio.gather(*tasks[1::2])
            assert [each.order_id for each in reservations] == [f"order-{number}" for number in range(1, 20, 2)]

    asyncio.run(run())

    orders = Counter(each.order_id for each in shop.list_reservations(product_id=product))
    assert orders.keys() >= {f"order-{number}" for number in range(1, 20, 2)}
    assert set(orders.values()) == {1}


def test_a_batch_that_nobody_waits_for_is_cancelled(apis: Stack, settings: Settings, shop: Shop, product: int) -> None:
    shop.add_stock(product, 10)

    async def run() -> None:
        async with AsyncShop(settings) as client:
            batches = watched(client)
            queues = coalescer(client)._queues
            with apis.inventory_api.frozen():
                task = asyncio.create_task(client.reserve(product, 1, "dropped"))
                await until(lambda: bool(batches.sizes))
                task.cancel()
                await until(lambda: not queues)  # nothing is outstanding although the server has not answered
            assert (await client.reserve(product, 1, "kept")).order_id == "kept"

    asyncio.run(run())


def test_a_thread_that_stops_waiting_cancels_its_batch(apis: Stack, shop: Shop, product: int) -> None:
    shop.add_stock(product, 10)
    shop.check_stock(product)
    queues = coalescer(shop)._queues

    with apis.inventory_api.frozen():
        with pytest.raises(errors.DeadlineExceeded):
            shop.reserve(product, 1, "impatient", timeout_seconds=0.2)
        eventually(lambda: not queues)

    assert shop.reserve(product, 1, "patient").order_id == "patient"


def test_a_call_without_time_is_not_sent(shop: Shop, product: int) -> None:
    shop.add_stock(product, 10)
    batches = watched(shop)

    with pytest.raises(errors.DeadlineExceeded, match="not sent"):
        shop.reserve(product, 1, "order-1", timeout_seconds=0)

    assert batches.sizes == []
    assert not coalescer(shop)._queues, "an idle queue is dropped"


def test_a_signal_interrupts_a_lone_call_and_the_next_one_works(apis: Stack, product: int) -> None:
    """Ctrl-C raises KeyboardInterrupt in the thread that waits for the response."""
    run_program(INTERRUPT, apis.inventory_address, apis.orders_address, str(product), str(apis.inventory_api.pid))


INTERRUPT = """
import os, signal, sys, threading
from shop_client import Settings, Shop

inventory, orders, product, server = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
signal.signal(signal.SIGINT, signal.default_int_handler)
with Shop(Settings(inventory, orders, timeout_seconds=60)) as shop:
    shop.add_stock(product, 10)
    os.kill(server, signal.SIGSTOP)
    try:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        shop.reserve(product, 1, "interrupted")
        sys.exit("the call was not interrupted")
    except KeyboardInterrupt:
        pass
    finally:
        os.kill(server, signal.SIGCONT)
    assert shop.reserve(product, 1, "next").order_id == "next"
    assert not shop._connected().coalescers["BatchReserveStock"]._queues
"""


def test_a_server_may_restart_under_load(restarted: Stack, product: int) -> None:
    """Calls that were outstanding are repeated with the same request_id: each has one effect."""
    settings = Settings(restarted.inventory_address, restarted.orders_address, timeout_seconds=120)
    with Shop(settings) as shop:
        shop.add_stock(product, 10**6)
        stop = threading.Event()
        counts: list[int] = []

        def reserve(number: int) -> int:
            count = 0
            while not stop.is_set():
                shop.reserve(product, 1, f"order-{number}-{count}")
                count += 1
                counts.append(number)
            return count

        with ThreadPoolExecutor(16) as callers:
            running_calls = [callers.submit(reserve, number) for number in range(16)]
            try:
                eventually(lambda: len(counts) > 100)
                restarted.inventory_api.kill()
                restarted.inventory_api.start()
                restarted.inventory_api.wait_ready(READY_SECONDS)
                before = len(counts)
                eventually(lambda: len(counts) > before + 100)
            finally:
                stop.set()
            total = sum(call.result() for call in running_calls)

        assert units(shop, product) == total


def test_reservations_of_a_batch_that_the_database_interrupts_are_repeated(
    embedded_broker: Kafka, product: int
) -> None:
    """The batch itself succeeds with UNAVAILABLE as the outcome of its reservations. Each has one effect in the end."""
    # Durable, so that commits survive the kill.
    with postgres.provide(durable=True) as server:
        stack = Stack(Databases.on_server(server), embedded_broker, options=Options(environment=WITHOUT_EVENTS))
        for apis in running(stack):
            settings = Settings(apis.inventory_address, apis.orders_address, timeout_seconds=120)
            with Shop(settings) as shop, ThreadPoolExecutor(16) as callers:
                shop.add_stock(product, 10**6)
                server.kill()
                first = [callers.submit(shop.reserve, product, 1, f"first-{number}") for number in range(16)]
                (single,) = shop.batch_reserve([OrderLines("single", (Line(product, 1),))], timeout_seconds=5)
                assert isinstance(single, errors.Unavailable)
                order = NewOrder(1, (NewItem(product, 1, Decimal(5)),), "EUR", request_id=f"order-{product}")
                later = callers.submit(shop.batch_create_orders, [order])
                server.start_again()

                assert [call.result().order_id for call in first] == [f"first-{number}" for number in range(16)]
                (repeated,) = shop.batch_reserve(
                    [OrderLines("single", (Line(product, 1),), request_id=single.request_id)]
                )
                assert isinstance(repeated, list)
                (created,) = later.result()
                assert isinstance(created, Order)
                assert units(shop, product) == 18


def test_each_reservation_of_a_batch_continues_the_trace_of_its_caller(apis: Stack, settings: Settings) -> None:
    """Two reservations are sent in one batch, each with the span of its own task."""
    orders: list[Any] = []

    async def reserve(shop: AsyncShop, number: int) -> None:
        context = trace.SpanContext(number, number, is_remote=False, trace_flags=trace.TraceFlags(1))
        with trace.use_span(trace.NonRecordingSpan(context)), pytest.raises(errors.InsufficientStock):
            await shop.reserve(2**60, 1, f"order-{number}")

    async def run() -> None:
        async with AsyncShop(settings) as shop:
            batches = watched(shop)
            with apis.inventory_api.frozen():
                tasks = [asyncio.create_task(reserve(shop, number)) for number in (1, 2, 3)]
                await until(lambda: bool(batches.sizes))
            await asyncio.gather(*tasks)
            orders.extend(batches.requests)

    asyncio.run(run())

    assert {order.order_id: order.traceparent for order in orders} == {
        f"order-{number}": f"00-{number:032x}-{number:016x}-01" for number in (1, 2, 3)
    }


FORK = """
import os, sys, threading
from shop_client import Settings, Shop

inventory, orders, product = sys.argv[1], sys.argv[2], int(sys.argv[3])
shop = Shop(Settings(inventory, orders, timeout_seconds=60))
stop = threading.Event()
failures = []

def repeat(call):
    while not stop.is_set():
        try:
            call()
        except Exception as error:
            failures.append(error)
            return

def reserve():
    shop.reserve(product, 1, f"parent-{threading.get_ident()}", ttl_seconds=1)

def read():
    list(shop.list_reservations(order_id="before"))

shop.reserve(product, 1, "before")
threads = [threading.Thread(target=repeat, args=[call]) for call in [reserve] * 8 + [read] * 2]
for thread in threads:
    thread.start()
children = []
for _ in range(10):
    child = os.fork()
    if not child:
        for _ in range(3):
            shop.reserve(product, 1, "child")
        os._exit(0)
    children.append(child)
codes = [os.waitpid(child, 0)[1] for child in children]
stop.set()
for thread in threads:
    thread.join()
shop.close()
assert codes == [0] * 10, codes
assert not failures, failures
"""


def test_the_children_of_a_fork_connect_for_themselves(apis: Stack, shop: Shop, product: int) -> None:
    """This also works while other threads call, although gRPC would crash in a child that is forked in one of its
    functions.
    """
    shop.add_stock(product, 10**6)

    run_program(FORK, apis.inventory_address, apis.orders_address, str(product))

    reservations = Counter(each.order_id for each in shop.list_reservations(product_id=product))
    assert reservations["child"] == 30
    assert reservations["before"] == 1


ASYNC_FORK = """
import asyncio, os, sys
from shop_client import AsyncShop, Settings

shop = AsyncShop(Settings(sys.argv[1], sys.argv[2], timeout_seconds=60))

async def use():
    await shop.check_stock(1)
    child = os.fork()
    if not child:
        try:
            await shop.check_stock(1)
        except RuntimeError as error:
            os._exit(0 if "fork before" in str(error) else 2)
        os._exit(1)
    code = os.waitpid(child, 0)[1]
    await shop.check_stock(1)
    await shop.close()
    assert code == 0, code

asyncio.run(use())
"""


def test_an_asyncio_client_refuses_to_work_on_both_sides_of_a_fork(apis: Stack) -> None:
    """A call in the child would hang, because gRPC's asyncio API does not survive a fork."""
    run_program(ASYNC_FORK, apis.inventory_address, apis.orders_address)


def test_an_asyncio_client_belongs_to_one_event_loop(settings: Settings, product: int) -> None:
    client = AsyncShop(settings)

    async def use() -> None:
        await client.check_stock(product)

    async def use_and_close() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            await client.check_stock(product)

    asyncio.run(use())
    asyncio.run(use_and_close())


def run_program(program: str, *arguments: str) -> None:
    """Run a Python program in a process of its own. It must exit with 0."""
    done = subprocess.run(
        # Python 3.12 warns of a fork in a process with threads.
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until the condition is true."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


def units(shop: Shop, product: int) -> int:
    """The units of all active reservations of the product."""
    active = (ReservationState.HELD, ReservationState.CONFIRMED)
    return sum(each.quantity for each in shop.list_reservations(product_id=product) if each.state in active)
