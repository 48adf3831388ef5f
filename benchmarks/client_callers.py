"""The callers of `python -m benchmarks.client`: one process that reserves units of one product for some seconds.

The process takes a Job as JSON on its command line and prints an Outcome as JSON.
"""

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from typing import Protocol
from uuid import uuid4

import grpc

from benchmarks import cpu
from benchmarks.generator import Outcome, summary
from benchmarks.scenarios import HOT_PRODUCT
from shop_client import AsyncShop, Settings, Shop
from shop_protos.inventory.v1 import inventory_pb2 as pb
from shop_protos.inventory.v1.inventory_pb2_grpc import InventoryServiceStub

CALL_SECONDS = 60.0

CALLS, THREADS, TASKS = "calls", "threads", "tasks"
SIDES = (CALLS, THREADS, TASKS)


@dataclass(frozen=True)
class Job:
    """`callers` reserve one unit after another. `processes` are the pids whose CPU time is measured."""

    side: str
    target: str
    callers: int
    seconds: float
    warmup_seconds: float
    processes: Mapping[str, Sequence[int]]


class Load(Protocol):
    """The fields of a job that a window needs."""

    @property
    def callers(self) -> int: ...

    @property
    def seconds(self) -> float: ...

    @property
    def warmup_seconds(self) -> float: ...

    @property
    def processes(self) -> Mapping[str, Sequence[int]]: ...


class Window:
    """Measures the reservations between the end of the warm-up and the end of the job."""

    def __init__(self, job: Load) -> None:
        self._job = job
        self.begin = time.perf_counter() + job.warmup_seconds
        self.end = self.begin + job.seconds
        self.succeeded = 0
        self._latencies: list[float] = []
        self._lock = threading.Lock()
        self._cpu_at_begin: dict[str, float] | None = None
        self._cpu_at_end: dict[str, float] | None = None

    def is_open(self) -> bool:
        return time.perf_counter() < self.end

    def record(self, begun: float) -> None:
        """Count a reservation that has succeeded now."""
        now = time.perf_counter()
        with self._lock:
            self.succeeded += 1
            if self.begin <= now < self.end:
                self._latencies.append(now - begun)

    def watch(self) -> None:
        """Read the CPU times when the window begins and ends. Runs on a thread of its own."""
        time.sleep(max(0.0, self.begin - time.perf_counter()))
        self._cpu_at_begin = self._cpu()
        time.sleep(max(0.0, self.end - time.perf_counter()))
        self._cpu_at_end = self._cpu()

    def outcome(self) -> Outcome:
        assert self._cpu_at_begin is not None
        assert self._cpu_at_end is not None
        spent = {name: self._cpu_at_end[name] - seconds for name, seconds in self._cpu_at_begin.items()}
        return summary(len(self._latencies) / self._job.seconds, self._latencies, spent, succeeded=self.succeeded)

    def _cpu(self) -> dict[str, float]:
        spent = {name: sum(map(cpu.seconds, pids)) for name, pids in self._job.processes.items()}
        return spent | {"client": time.process_time()}


def run(job: Job) -> Outcome:
    """Make reservations with all callers. Raises the first error of a call."""
    window = Window(job)
    watching = threading.Thread(target=window.watch)
    watching.start()
    if job.side == TASKS:
        asyncio.run(_tasks(job, window))
    elif job.side == THREADS:
        with Shop(_settings(job)) as shop:
            threads(job, window, partial(_by_client, shop))
    else:
        with grpc.insecure_channel(job.target) as channel:
            threads(job, window, partial(_by_call, InventoryServiceStub(channel)))
    watching.join()
    return window.outcome()


def _settings(job: Job) -> Settings:
    return Settings(inventory_target=job.target, timeout_seconds=CALL_SECONDS)


def threads(job: Load, window: Window, reserve: Callable[[str], object]) -> None:
    """Call `reserve` from all callers until the window closes, each time with a new order id."""

    def caller(number: int) -> None:
        for turn in count():
            if not window.is_open():
                return
            begun = time.perf_counter()
            reserve(f"order-{number}-{turn}")
            window.record(begun)

    with ThreadPoolExecutor(job.callers) as callers:
        for finished in callers.map(caller, range(job.callers)):
            assert finished is None


async def _tasks(job: Job, window: Window) -> None:
    async def caller(shop: AsyncShop, number: int) -> None:
        for turn in count():
            if not window.is_open():
                return
            begun = time.perf_counter()
            await shop.reserve(HOT_PRODUCT, 1, f"order-{number}-{turn}")
            window.record(begun)

    async with AsyncShop(_settings(job)) as shop:
        await asyncio.gather(*(caller(shop, number) for number in range(job.callers)))


def _by_client(shop: Shop, order_id: str) -> object:
    return shop.reserve(HOT_PRODUCT, 1, order_id)


def _by_call(stub: InventoryServiceStub, order_id: str) -> object:
    request = pb.ReserveStockRequest(product_id=HOT_PRODUCT, quantity=1, order_id=order_id, request_id=str(uuid4()))
    return stub.ReserveStock(request, timeout=CALL_SECONDS)


def main() -> None:
    sys.stdout.write(json.dumps(asdict(run(Job(**json.loads(sys.argv[1]))))))


if __name__ == "__main__":
    main()
