"""The callers of `python -m benchmarks.alternatives`: a process that measures one way, or sells a product out.

The process takes a Job or a Sale as JSON on its command line. It prints an Outcome as JSON for a Job.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any
from uuid import uuid4

from benchmarks.alternatives_ways import Way, connected
from benchmarks.client_callers import Window, threads
from benchmarks.generator import Outcome
from benchmarks.http2 import LoadError
from benchmarks.scenarios import HOT_PRODUCT

MEASURE, SELL = "measure", "sell"


@dataclass(frozen=True)
class Job:
    """`callers` reserve one unit of the hot product after another. `processes` are the pids to measure."""

    way: Way
    callers: int
    seconds: float
    warmup_seconds: float
    processes: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Sale:
    """`callers` reserve units until the product is sold out.

    With `stops`, a single caller makes one reservation instead. It stops its process (SIGSTOP) after it has read the
    item and before it writes it.
    """

    way: Way
    product_id: int
    callers: int
    stops: bool


def measure(job: Job) -> Outcome:
    """Make reservations for the length of the job. Raises LoadError if the hot product is sold out."""
    window = Window(job)
    watching = threading.Thread(target=window.watch)
    watching.start()
    with connected(job.way, job.callers) as reserve:

        def reserve_hot(order_id: str) -> None:
            if not reserve(HOT_PRODUCT, order_id):
                raise LoadError("the hot product is sold out")

        threads(job, window, reserve_hot)
    watching.join()
    return window.outcome()


def sell(sale: Sale) -> None:
    if sale.stops:
        with connected(sale.way, 1, _stop_once()) as reserve:
            reserve(sale.product_id, str(uuid4()))
        return
    with connected(sale.way, sale.callers) as reserve, ThreadPoolExecutor(sale.callers) as callers:

        def caller(number: int) -> None:
            seller = uuid4()
            for turn in count():
                if not reserve(sale.product_id, f"{seller}-{number}-{turn}"):
                    return

        for finished in callers.map(caller, range(sale.callers)):
            assert finished is None


def _stop_once() -> Callable[[], None]:
    """Return a function that stops this process at its first call. A way with versions reads the item again later."""
    stops = iter([signal.SIGSTOP])

    def stop() -> None:
        for signum in stops:
            os.kill(os.getpid(), signum)

    return stop


def main() -> None:
    mode, text = sys.argv[1:]
    fields: dict[str, Any] = json.loads(text)
    way = Way(**fields.pop("way"))
    if mode == MEASURE:
        sys.stdout.write(json.dumps(asdict(measure(Job(way, **fields)))))
    else:
        sell(Sale(way, **fields))


if __name__ == "__main__":
    main()
