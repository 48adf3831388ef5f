"""The conditions that hold during an attack: a well-behaved client is served, and every process stays healthy."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar
from uuid import uuid4

import psutil

from devstack.process import Process
from shop_common.errors import Conflict, Overload, Unavailable
from shopctl.system.grpc_health import health
from shopctl.system.layout import REAPER
from tests.e2e.shop_driver import CANCELLED, CONFIRMED, ShopDriver
from tests.faults.system import System

UNITS = 10**6
ROUND_SECONDS = 180
CALL_SECONDS = 10
TRIES_MAX = 6
PAUSE_SECONDS_MAX = 3.0
SETTLE_SECONDS = 120
HEALTH_SECONDS = 10
CHECK_SECONDS = 0.25
GROWTH_MEGABYTES_MAX = 250
_MEASURE_SECONDS = 0.05
T = TypeVar("T")


def retrying(call: Callable[[], T], tries_max: int = TRIES_MAX) -> T:
    """Repeat the call a few times, as README recommends. Returns its result; raises the last ShopError.

    The call must have a request_id or be repeatable by state.
    """
    for number in range(tries_max - 1):
        try:
            return call()
        except (Conflict, Overload, Unavailable):
            time.sleep(random.uniform(0.5, 1) * min(0.2 * 2**number, PAUSE_SECONDS_MAX))
    return call()


class HonestClient:
    """A client that behaves as README describes. It creates, confirms and cancels orders of one unit, one by one."""

    def __init__(self, system: System) -> None:
        self._stack = system.stacks[0]
        self._changed = threading.Condition()
        self._over = False
        self._orders = 0
        self._failure: Exception | None = None
        with ShopDriver.connect(self._stack) as shop:
            self._product = shop.stocked_product(UNITS)

    def wait_for_orders(self, orders: int = 3) -> None:
        """Wait until the client has created and cancelled this many more orders. Raises AssertionError if a call has
        failed.
        """
        with self._changed:
            # The current order does not count: it was started before this call.
            target = self._orders + 1 + orders
            deadline = time.monotonic() + ROUND_SECONDS
            while self._orders < target and self._failure is None:
                missing = target - self._orders
                assert time.monotonic() < deadline, f"{missing} of {orders} orders missing after {ROUND_SECONDS} s"
                self._changed.wait(1)
        if self._failure is not None:
            raise AssertionError("a call of the honest client failed") from self._failure

    @contextmanager
    def working(self) -> Iterator[None]:
        """Runs until the block ends. Then the events of all cancelled orders must have released their stock."""
        worker = threading.Thread(target=self._work, name="honest client")
        worker.start()
        try:
            yield
        finally:
            with self._changed:
                self._over = True
            worker.join()
        with ShopDriver.connect(self._stack) as shop:
            shop.eventually(lambda: shop.available(self._product) == UNITS, SETTLE_SECONDS)

    def _work(self) -> None:
        while not self._over and self._failure is None:
            try:
                # A new connection each time: the system must serve new clients, too.
                with ShopDriver.connect(self._stack) as shop:
                    self._order(shop)
            except Exception as failure:  # wait_for_orders fails with it
                self._failure = failure
            with self._changed:
                self._orders += 1
                self._changed.notify_all()

    def _order(self, shop: ShopDriver) -> None:
        request_id, line = str(uuid4()), (self._product, 1)
        order = retrying(lambda: shop.create_order(line, request_id=request_id, timeout_seconds=CALL_SECONDS))
        for status in (CONFIRMED, CANCELLED):
            retrying(partial(shop.change_status, order.id, status, timeout_seconds=CALL_SECONDS))


@contextmanager
def honest_client(system: System) -> Iterator[HonestClient]:
    """Runs an honest client. Checks that no process ends, restarts, stops serving or grows in memory meanwhile."""
    honest = HonestClient(system)
    with always_serving(system.processes), same_processes(system.processes), honest.working():
        honest.wait_for_orders(1)
        with bounded_memory(system.processes):
            yield honest
            honest.wait_for_orders()


@contextmanager
def same_processes(processes: list[Process]) -> Iterator[None]:
    """Check that no process ends or is restarted."""
    before = {process.name: process.pid for process in processes}
    yield
    for process in processes:
        assert process.alive, f"{process.name} ended\n{process.tail()}"
    assert {process.name: process.pid for process in processes} == before


@contextmanager
def always_serving(processes: list[Process]) -> Iterator[None]:
    """Check that every health check of every process returns SERVING."""
    bad = Counter[str]()

    def check(process: Process) -> None:
        # The reaper is ready only while the APIs respond in time, which is not guaranteed during an attack.
        for service in ("liveness",) if process.name == REAPER else ("", "liveness"):
            status = health(process.health_address or "", service, timeout_seconds=HEALTH_SECONDS)
            bad.update([f"{process.name} {service} {status}"] * (status != "SERVING"))

    with _repeat(processes, check, CHECK_SECONDS):
        yield
    logs = "\n".join(f"{process.name}:\n{process.tail()}" for process in processes if process.name in str(bad))
    assert not bad, f"not SERVING: {bad}\n{logs}"


@contextmanager
def bounded_memory(processes: list[Process]) -> Iterator[None]:
    """Check that no process uses much more memory at any time than at the start."""
    before = {process.name: megabytes(process) for process in processes}
    most = dict(before)

    def measure(process: Process) -> None:
        most[process.name] = max(most[process.name], megabytes(process))

    with _repeat(processes, measure, _MEASURE_SECONDS):
        yield
    grown = {name: size for name, size in most.items() if size > before[name] + GROWTH_MEGABYTES_MAX}
    assert not grown, f"memory in MB: highest {grown}, before {before}"


def megabytes(process: Process) -> int:
    """Resident memory of the process in MiB. 0 if it has ended."""
    try:
        return int(psutil.Process(process.pid).memory_info().rss) // 2**20
    except psutil.NoSuchProcess:
        return 0


@contextmanager
def _repeat(processes: list[Process], action: Callable[[Process], None], seconds: float) -> Iterator[None]:
    over = threading.Event()

    def watch(process: Process) -> None:
        while not over.wait(seconds):
            action(process)

    threads = [threading.Thread(target=watch, args=(process,)) for process in processes]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
