"""Measures how one caller with very many large calls delays another caller: `python -m benchmarks.shares`.

The greedy caller opens 64 connections and keeps the largest legal calls open on all of them. The other caller makes one
small call at a time. Both have tokens of their own, and use mutual TLS. The goal: no call of the other caller is
refused, and its 99th percentile is at most three times as high as without the greedy caller.
"""

import argparse
import base64
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from google.type.money_pb2 import Money
from rich.console import Console
from rich.table import Table

from benchmarks import command
from benchmarks.command import POSTGRESQL, SQLITE
from benchmarks.generator import Job, Outcome
from benchmarks.greedy import NONCE, GreedyJob, GreedyOutcome
from benchmarks.http2 import Credentials
from benchmarks.load import Generator
from benchmarks.results import verdict
from benchmarks.scenarios import CREATE_ORDER, HOT_PRODUCT, INVENTORY, ORDERS, PRODUCTS, RESERVE_HOT, Scenario
from benchmarks.secured import SCOPE, Side, secured_side
from devstack.servers.issuer import Issuer
from shop_protos.inventory.v1 import inventory_pb2
from shop_protos.order.v1 import order_pb2

RATIO_GOAL = 3.0
BATCH_ORDERS, BATCH_LINES, ORDER_LINES = 500, 5_000, 200
STOP_SECONDS = 120
_BATCH_RESERVE = "/shop.inventory.v1.InventoryService/BatchReserveStock"


@dataclass(frozen=True)
class Attack:
    """The call of the small caller, and the large call of the greedy one: its method, its body and its lines."""

    small: Scenario
    method: str
    body: bytes
    lines: int


@dataclass(frozen=True)
class Callers:
    """The APIs, the generator of the small caller's calls, and the credentials of both callers."""

    side: Side
    generator: Generator
    small: Credentials
    greedy: Credentials


@dataclass
class Found:
    """The outcomes of the small caller by round, without and with the greedy caller, and those of the greedy one."""

    calm: list[Outcome] = field(default_factory=list)
    beside: list[Outcome] = field(default_factory=list)
    greedy: list[GreedyOutcome] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """The number of calls of the small caller that failed."""
        return sum(outcome.failed for outcome in (*self.calm, *self.beside))

    @property
    def ratio(self) -> float:
        """The median of the ratios of the 99th percentiles."""
        return median(beside.p99 / calm.p99 for calm, beside in zip(self.calm, self.beside, strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the results. Returns the exit code: a refused call fails the run, a missed goal does not."""
    options = _options(argv)
    found = command.measured(lambda console: _measure(options, console))
    if found is None:
        return 1
    _show(found, options, command.output())
    return 1 if any(each.failed for each in found.values()) else 0


def _measure(options: argparse.Namespace, console: Console) -> dict[tuple[str, Attack], Found]:
    found: dict[tuple[str, Attack], Found] = {}
    for database in options.databases:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            issuer = stack.enter_context(Issuer())
            new, pids = command.databases(database, stack, console)
            generator = stack.enter_context(Generator())
            side, small = secured_side(folder, issuer, new(), generator, pids)
            callers = Callers(side, generator, small, replace(small, token=issuer.token(2, SCOPE, tenant="default")))
            side.fill()
            stack.callback(side.stop)
            side.start()
            for attack in attacks():
                if attack.small.service not in options.apis:
                    continue
                console.print(f"{database}: {attack.small.title}", highlight=False)
                found[database, attack] = _rounds(options, callers, attack)
    return found


def _rounds(options: argparse.Namespace, callers: Callers, attack: Attack) -> Found:
    found = Found()
    for _ in range(options.rounds):
        found.calm.append(_small(options, callers, attack))
        with _greedy(options, callers, attack, found.greedy):
            found.beside.append(_small(options, callers, attack))
    return found


def _small(options: argparse.Namespace, callers: Callers, attack: Attack) -> Outcome:
    scenario = attack.small
    return callers.generator.run(
        Job(
            target=callers.side.targets[scenario.service],
            method=scenario.method,
            bodies=[base64.b64encode(body).decode() for body in scenario.bodies()[:1000]],
            calls=1,
            seconds=options.seconds,
            warmup_seconds=options.warmup_seconds,
            tail_field=scenario.tail_field,
            credentials=asdict(callers.small),
        )
    )


@contextmanager
def _greedy(
    options: argparse.Namespace, callers: Callers, attack: Attack, outcomes: list[GreedyOutcome]
) -> Iterator[None]:
    """Run the greedy caller, in a process of its own, during the block."""
    job = GreedyJob(
        target=callers.side.targets[attack.small.service],
        method=attack.method,
        body=base64.b64encode(attack.body).decode(),
        connections=options.connections,
        calls=options.calls,
        credentials=asdict(callers.greedy),
    )
    # In production the greedy caller has its own machine. So here it only gets CPU time that nothing else needs.
    command_line = ["nice", "-n", "19", sys.executable, "-m", "benchmarks.greedy"]
    with subprocess.Popen(command_line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(job)) + "\n")
        process.stdin.flush()
        yield
        output, _ = process.communicate(timeout=STOP_SECONDS)
    outcomes.append(GreedyOutcome(**json.loads(output)))


def attacks() -> Sequence[Attack]:
    """Return the attack on each API, with its largest legal call."""
    lines = [inventory_pb2.Line(product_id=product, quantity=1) for product in PRODUCTS[: BATCH_LINES // BATCH_ORDERS]]
    orders = [inventory_pb2.OrderLines(order_id=f"{NONCE}{number}", lines=lines) for number in range(BATCH_ORDERS)]
    batch = inventory_pb2.BatchReserveStockRequest(orders=orders).SerializeToString()
    price = Money(currency_code="EUR", units=12)
    items = [order_pb2.CreateOrderItem(product_id=each, quantity=1, price=price) for each in PRODUCTS[:ORDER_LINES]]
    order = order_pb2.CreateOrderRequest(user_id=HOT_PRODUCT, items=items).SerializeToString()
    return (
        Attack(RESERVE_HOT, _BATCH_RESERVE, batch, BATCH_LINES),
        Attack(CREATE_ORDER, CREATE_ORDER.method, order, ORDER_LINES),
    )


def _show(found: dict[tuple[str, Attack], Found], options: argparse.Namespace, console: Console) -> None:
    title = f"one call at a time, beside {options.connections} connections with {options.calls} calls each"
    table = Table("call", "database", title=title, title_justify="left")
    for name in (
        "calm p50, ms",
        "p99",
        "beside p50, ms",
        "p99",
        "p99 ratio",
        "refused",
        "greedy lines/s",
        "calls refused",
    ):
        table.add_column(name, justify="right")
    for (database, attack), each in found.items():
        times = [
            median(getattr(outcome, name) for outcome in phase) * 1e3
            for phase in (each.calm, each.beside)
            for name in ("p50", "p99")
        ]
        served = sum(outcome.succeeded for outcome in each.greedy) * attack.lines
        rate = served / sum(outcome.seconds for outcome in each.greedy)
        refused = sum(outcome.refused for outcome in each.greedy)
        cells = [*(f"{value:.1f}" for value in times), f"{each.ratio:.2f}", str(each.failed)]
        table.add_row(attack.small.title, database, *cells, f"{rate:,.0f}", f"{refused:,}")
    console.print(table)
    for (database, attack), each in found.items():
        title = f"{attack.small.title}, {database}"
        console.print(f"{title}: p99 ≤ {RATIO_GOAL:g} × calm: {each.ratio:.2f} × {verdict(each.ratio <= RATIO_GOAL)}")
        console.print(f"{title}: no call refused: {verdict(not each.failed)}")


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shares", description=__doc__)
    parser.add_argument("--databases", nargs="+", choices=(POSTGRESQL, SQLITE), default=(POSTGRESQL, SQLITE))
    parser.add_argument("--apis", nargs="+", choices=(INVENTORY, ORDERS), default=(INVENTORY, ORDERS))
    parser.add_argument("--connections", type=int, default=64, help="of the greedy caller (%(default)s)")
    parser.add_argument("--calls", type=int, default=1, help="open calls on each of its connections (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of measurements (%(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each measurement (%(default)s)")
    parser.add_argument("--warmup-seconds", type=float, default=3.0, help="warm-up before each one (%(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
