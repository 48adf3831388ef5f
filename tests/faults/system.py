"""The system under test, whole: started, driven by clients, brought to rest, and handed to the checker."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress

from confluent_kafka import KafkaException
from sqlalchemy.exc import DBAPIError

from devstack.kafka import Kafka
from devstack.process import Process
from devstack.stack import Databases, Options, Ports, Stack, target_of
from shopctl.system.layout import INVENTORY_API, ORDER_API, REAPER, RELAY
from tests.e2e.shop_driver import ShopDriver
from tests.faults.checker import check
from tests.faults.clients import Clients
from tests.faults.history import CallLog, History
from tests.faults.proxy import Proxy
from tests.faults.snapshot import Readers
from tests.faults.stream import INVENTORY, LETTERS, ORDERS, Stream, events

LEASE_SECONDS = 3
REST_SECONDS = 90
READY_SECONDS = 120
PRODUCTS = 3
_POLL_SECONDS = 0.1
Ways = Mapping[str, Proxy]
"""To each API, where there is one."""

_GROUPS = {INVENTORY_API: ORDERS, ORDER_API: INVENTORY}


class System:
    """One or two of each process over the same databases, and the means to see what became of the calls."""

    def __init__(self, stacks: list[Stack], inventory_target: str, orders_target: str, ways: Ways) -> None:
        self.stacks = stacks
        self.inventory_target = inventory_target
        self.orders_target = orders_target
        self.ways = ways
        self.kafka = stacks[0].kafka
        self.readers = Readers(stacks[0].databases)

    @property
    def processes(self) -> list[Process]:
        return [process for stack in self.stacks for process in stack.processes]

    def named(self, name: str, replica: int = 0) -> Process:
        (process,) = (each for each in self.stacks[replica].processes if each.name == name)
        return process

    def wait_ready(self) -> None:
        for stack in self.stacks:
            with ShopDriver.connect(stack) as shop:
                shop.wait_ready(READY_SECONDS)

    @contextmanager
    def history(
        self,
        seed: int,
        *,
        products: int = PRODUCTS,
        calm: bool = False,
        poison: frozenset[str] = frozenset(),
        rest_seconds: float = REST_SECONDS,
    ) -> Iterator[Clients]:
        """Clients for new products; when the block ends the system is brought to rest, and all must be in order."""
        recorded = self.recorded(seed, products)
        yield recorded.clients
        found = recorded.at_rest(calm=calm, poison=poison, within_seconds=rest_seconds)
        wrong = check(found)
        shown = "\n".join(wrong[:20])
        assert not wrong, f"seed {seed}: {len(wrong)} promises broken\n{shown}"
        assert len([call for call in found.calls if call.fate == "done"]) > 20, "too little was done to show anything"

    def recorded(self, seed: int, products: int = PRODUCTS) -> "Recorded":
        """A history that begins now."""
        return Recorded(self, seed, products)

    def eventually(self, condition: Callable[[], object], within_seconds: float, what: str) -> None:
        """Poll until it holds; what can't be asked yet does not hold yet."""
        assert self._happens(condition, time.monotonic() + within_seconds), f"not within {within_seconds:g} s: {what}"

    def rest(self, products: Sequence[int], within_seconds: float = REST_SECONDS) -> str:
        """Wait until nothing is left to do: no hold that runs out, no event to ship, none to handle. What was left."""
        deadline = time.monotonic() + within_seconds
        if not self._happens(lambda: self.readers.running_out(products) == 0, deadline):
            return "holds do not run out"
        if not self._happens(self._is_quiet, deadline):
            return "events are not shipped or not handled"
        return ""

    def _happens(self, condition: Callable[[], object], deadline: float) -> bool:
        while True:
            with suppress(DBAPIError, KafkaException):
                if condition():
                    return True
            if time.monotonic() > deadline:
                return False
            threading.Event().wait(_POLL_SECONDS)

    def _is_quiet(self) -> bool:
        # An event that is handled may write another: so twice, and nothing in between.
        return all(
            self.readers.unshipped() == 0 and all(self.kafka.lag(*group) == 0 for group in _GROUPS.items())
            for _ in range(2)
        )


class Recorded:
    """A history on its way: its clients, and what they and Kafka have to say."""

    def __init__(self, system: System, seed: int, products: int = PRODUCTS) -> None:
        self._system = system
        with ShopDriver.connect(system.stacks[0]) as shop:
            self._products = [shop.new_id() for _ in range(products)]
        self.call_log = CallLog()
        self.stream = Stream(system.kafka)
        targets = system.inventory_target, system.orders_target
        self.clients = Clients(*targets, self.call_log, self._products, seed)

    def at_rest(
        self, *, calm: bool = False, poison: frozenset[str] = frozenset(), within_seconds: float = REST_SECONDS
    ) -> History:
        """All of it, once nothing is left to do, or the time is up."""
        restless = self._system.rest(self._products, within_seconds)
        records = self.stream.read()
        letters = [record.headers["ce_id"] for record in self.stream.read(LETTERS)]
        snapshot = self._system.readers.snapshot(self._products)
        return History(self.call_log.calls, events(records, self._products), snapshot, letters, poison, calm, restless)


@contextmanager
def running(
    databases: Databases,
    kafka: Kafka,
    *,
    replicas: int = 1,
    environment: Mapping[str, str] | None = None,
    per_process: Mapping[str, Mapping[str, str]] | None = None,
    per_replica: Sequence[Mapping[str, str]] = (),
    way_to: Callable[[int], Proxy] | None = None,
    metrics: bool = False,
) -> Iterator[System]:
    """So many of each process; each API is called at all of its addresses, or by a `way_to` its port."""
    ports = [Ports.free(metrics=metrics) for _ in range(replicas)]
    ways = {}
    if way_to is not None:
        ways = {INVENTORY_API: way_to(ports[0].inventory), ORDER_API: way_to(ports[0].orders)}
    inventory = _target([each.inventory for each in ports], ways.get(INVENTORY_API))
    orders = _target([each.orders for each in ports], ways.get(ORDER_API))
    own = {
        ORDER_API: {"INVENTORY_TARGET": inventory},
        REAPER: {"INVENTORY_TARGET": inventory, "ORDER_TARGET": orders},
        RELAY: {"LEASE_SECONDS": str(LEASE_SECONDS)},
    }
    settings = {name: own.get(name, {}) | dict((per_process or {}).get(name, {})) for name in (INVENTORY_API, *own)}
    stacks = []
    for each, own_environment in zip(ports, per_replica or [{}] * replicas, strict=True):
        options = Options(environment={**(environment or {}), **own_environment}, per_process=settings)
        stacks.append(Stack(databases, kafka, each, options))
    with ExitStack() as at_the_end:
        for number, stack in enumerate(stacks):
            if number == 0:
                at_the_end.enter_context(stack)
            else:
                at_the_end.callback(stack.stop)
                stack.start()
        system = System(stacks, inventory, orders, ways)
        system.wait_ready()
        yield system


def _target(ports: Sequence[int], way: Proxy | None) -> str:
    return target_of(*([way.port] if way else ports))
