"""The whole system under test: starts it, runs clients, waits until it is at rest, and runs the checker."""

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
from tests.faults.stream import DEAD_LETTERS, INVENTORY, ORDERS, Stream, events

LEASE_SECONDS = 3
REST_SECONDS = 90
READY_SECONDS = 120
PRODUCTS = 3
_POLL_SECONDS = 0.1
Proxies = Mapping[str, Proxy]
"""API → the proxy in front of it, if there is one."""

_GROUPS = {INVENTORY_API: ORDERS, ORDER_API: INVENTORY}


class System:
    """One or more processes of each kind over the same databases, with readers of the databases and of Kafka."""

    def __init__(self, stacks: list[Stack], inventory_target: str, orders_target: str, proxies: Proxies) -> None:
        self.stacks = stacks
        self.inventory_target = inventory_target
        self.orders_target = orders_target
        self.proxies = proxies
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
        fault_free: bool = False,
        poison: frozenset[str] = frozenset(),
        rest_seconds: float = REST_SECONDS,
    ) -> Iterator[Clients]:
        """Clients for new products. After the block, waits until the system is at rest and checks the history."""
        recording = self.record(seed, products)
        yield recording.clients
        history = recording.at_rest(fault_free=fault_free, poison=poison, within_seconds=rest_seconds)
        violations = check(history)
        first = "\n".join(violations[:20])
        assert not violations, f"seed {seed}: {len(violations)} violations\n{first}"
        assert len([call for call in history.calls if call.fate == "done"]) > 20, "too few calls to test anything"

    def record(self, seed: int, products: int = PRODUCTS) -> "Recording":
        """Start to record a history."""
        return Recording(self, seed, products)

    def eventually(self, condition: Callable[[], object], within_seconds: float, description: str) -> None:
        """Wait until the condition is true. Errors of the database or the broker count as false."""
        in_time = self._becomes_true(condition, time.monotonic() + within_seconds)
        assert in_time, f"not within {within_seconds:g} s: {description}"

    def wait_until_at_rest(self, products: Sequence[int], within_seconds: float = REST_SECONDS) -> str:
        """Wait until no reservation will expire and no event is left to ship or to handle. Returns unfinished work."""
        deadline = time.monotonic() + within_seconds
        if not self._becomes_true(lambda: self.readers.running_out(products) == 0, deadline):
            return "reservations do not expire"
        if not self._becomes_true(self._is_quiet, deadline):
            return "events are not shipped or not handled"
        return ""

    def _becomes_true(self, condition: Callable[[], object], deadline: float) -> bool:
        while True:
            with suppress(DBAPIError, KafkaException):
                if condition():
                    return True
            if time.monotonic() > deadline:
                return False
            threading.Event().wait(_POLL_SECONDS)

    def _is_quiet(self) -> bool:
        # Handling an event may write another one, so both must be zero twice in a row.
        return all(
            self.readers.unshipped() == 0 and all(self.kafka.lag(*group) == 0 for group in _GROUPS.items())
            for _ in range(2)
        )


class Recording:
    """A history that is being recorded: its clients, their calls and the events on Kafka."""

    def __init__(self, system: System, seed: int, products: int = PRODUCTS) -> None:
        self._system = system
        with ShopDriver.connect(system.stacks[0]) as shop:
            self._products = [shop.new_id() for _ in range(products)]
        self.call_log = CallLog()
        self.stream = Stream(system.kafka)
        targets = system.inventory_target, system.orders_target
        self.clients = Clients(*targets, self.call_log, self._products, seed)

    def at_rest(
        self, *, fault_free: bool = False, poison: frozenset[str] = frozenset(), within_seconds: float = REST_SECONDS
    ) -> History:
        """Wait until the system is at rest or the time is over. Returns the history."""
        unfinished = self._system.wait_until_at_rest(self._products, within_seconds)
        records = self.stream.read()
        dead_letters = [record.headers["ce_id"] for record in self.stream.read(DEAD_LETTERS)]
        snapshot = self._system.readers.snapshot(self._products)
        return History(
            self.call_log.calls, events(records, self._products), snapshot, dead_letters, poison, fault_free, unfinished
        )


@contextmanager
def running(
    databases: Databases,
    kafka: Kafka,
    *,
    replicas: int = 1,
    environment: Mapping[str, str] | None = None,
    per_process: Mapping[str, Mapping[str, str]] | None = None,
    per_replica: Sequence[Mapping[str, str]] = (),
    proxy_for: Callable[[int], Proxy] | None = None,
    metrics: bool = False,
) -> Iterator[System]:
    """Starts `replicas` processes of each kind. An API is called at all its addresses, or through `proxy_for(port)`."""
    ports = [Ports.free(metrics=metrics) for _ in range(replicas)]
    proxies = {}
    if proxy_for is not None:
        proxies = {INVENTORY_API: proxy_for(ports[0].inventory), ORDER_API: proxy_for(ports[0].orders)}
    inventory = _target([each.inventory for each in ports], proxies.get(INVENTORY_API))
    orders = _target([each.orders for each in ports], proxies.get(ORDER_API))
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
        system = System(stacks, inventory, orders, proxies)
        system.wait_ready()
        yield system


def _target(ports: Sequence[int], proxy: Proxy | None) -> str:
    return target_of(*([proxy.port] if proxy else ports))
