"""What must stay true while the system is attacked: an honest client is served, and every process is well."""

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
LOOK_SECONDS = 0.25
GROWTH_MEGABYTES_MAX = 250
_MEASURE_SECONDS = 0.05
T = TypeVar("T")


def persistent(call: Callable[[], T], tries_max: int = TRIES_MAX) -> T:
    """Its result, as a client gets it who does what README says: what may be tried again is, a few times.

    Raises the last ShopError. The call must carry a request_id, or be repeatable by state.
    """
    for number in range(tries_max - 1):
        try:
            return call()
        except (Conflict, Overload, Unavailable):
            time.sleep(random.uniform(0.5, 1) * min(0.2 * 2**number, PAUSE_SECONDS_MAX))
    return call()


class Honest:
    """A client as README describes one. It places, confirms and cancels orders of one unit, one after the other."""

    def __init__(self, system: System) -> None:
        self._stack = system.stacks[0]
        self._changed = threading.Condition()
        self._over = False
        self._orders = 0
        self._failure: Exception | None = None
        with ShopDriver.connect(self._stack) as shop:
            self._product = shop.stocked_product(UNITS)

    def goes_on(self, orders: int = 3) -> None:
        """Wait until it has placed and ended so many more orders. Fails with the first call that failed."""
        with self._changed:
            # The one that it is about now began before.
            aim = self._orders + 1 + orders
            deadline = time.monotonic() + ROUND_SECONDS
            while self._orders < aim and self._failure is None:
                assert time.monotonic() < deadline, f"only {orders - aim + self._orders} orders in {ROUND_SECONDS} s"
                self._changed.wait(1)
        if self._failure is not None:
            raise AssertionError("a call of the honest client failed") from self._failure

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Until the block ends; then all that it cancelled must come back, which takes events."""
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
                # A new client each time: those that connect now are to be served as well as those that are there.
                with ShopDriver.connect(self._stack) as shop:
                    self._order(shop)
            except Exception as failure:  # whatever it is, the test fails with it
                self._failure = failure
            with self._changed:
                self._orders += 1
                self._changed.notify_all()

    def _order(self, shop: ShopDriver) -> None:
        request_id, line = str(uuid4()), (self._product, 1)
        order = persistent(lambda: shop.create_order(line, request_id=request_id, timeout_seconds=CALL_SECONDS))
        for status in (CONFIRMED, CANCELLED):
            persistent(partial(shop.change_status, order.id, status, timeout_seconds=CALL_SECONDS))


@contextmanager
def an_honest_client(system: System) -> Iterator[Honest]:
    """At work until the block ends, while every process stays well: it lives, is ready and does not grow."""
    honest = Honest(system)
    with always_serving(system.processes), same_processes(system.processes), honest.at_work():
        honest.goes_on(1)
        with bounded_memory(system.processes):
            yield honest
            honest.goes_on()


@contextmanager
def same_processes(processes: list[Process]) -> Iterator[None]:
    """No process ends or is started anew."""
    before = {process.name: process.pid for process in processes}
    yield
    for process in processes:
        assert process.alive, f"{process.name} ended\n{process.tail()}"
    assert {process.name: process.pid for process in processes} == before


@contextmanager
def always_serving(processes: list[Process]) -> Iterator[None]:
    """Every process says SERVING whenever it is asked, until the block ends."""
    bad = Counter[str]()

    def ask(process: Process) -> None:
        # The reaper is ready while the APIs answer in time, and under attack that is not promised.
        for service in ("liveness",) if process.name == REAPER else ("", "liveness"):
            said = health(process.health_address or "", service, timeout_seconds=HEALTH_SECONDS)
            bad.update([f"{process.name} {service} {said}"] * (said != "SERVING"))

    with _again_and_again(processes, ask, LOOK_SECONDS):
        yield
    logs = "\n".join(f"{process.name}:\n{process.tail()}" for process in processes if process.name in str(bad))
    assert not bad, f"not SERVING: {bad}\n{logs}"


@contextmanager
def bounded_memory(processes: list[Process]) -> Iterator[None]:
    """No process takes much more memory than it has now, at any time until the block ends."""
    before = {process.name: megabytes(process) for process in processes}
    most = dict(before)

    def measure(process: Process) -> None:
        most[process.name] = max(most[process.name], megabytes(process))

    with _again_and_again(processes, measure, _MEASURE_SECONDS):
        yield
    grown = {name: size for name, size in most.items() if size > before[name] + GROWTH_MEGABYTES_MAX}
    assert not grown, f"megabytes at most {grown}, before {before}"


def megabytes(process: Process) -> int:
    """In use; 0 once it has ended."""
    try:
        return int(psutil.Process(process.pid).memory_info().rss) // 2**20
    except psutil.NoSuchProcess:
        return 0


@contextmanager
def _again_and_again(processes: list[Process], look: Callable[[Process], None], seconds: float) -> Iterator[None]:
    over = threading.Event()

    def watch(process: Process) -> None:
        while not over.wait(seconds):
            look(process)

    threads = [threading.Thread(target=watch, args=(process,)) for process in processes]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
