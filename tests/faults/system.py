"""The whole system under test: starts it, runs clients, waits until it is at rest, and runs the checker."""

import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from confluent_kafka import KafkaException
from sqlalchemy.exc import DBAPIError

from devstack.kafka import Kafka
from devstack.process import Process
from devstack.stack import Databases, Options, Ports, Stack, target_of
from shop_common.rpc.tls import ReloadedCertificates
from shopctl.client import Shop
from shopctl.system.layout import INVENTORY_API, ORDER_API, REAPER, RELAY
from tests.e2e.shop_driver import ShopDriver, new_id
from tests.faults import identities
from tests.faults.access import Access
from tests.faults.checker import check_tenants
from tests.faults.clients import Clients
from tests.faults.history import CallLog, History, Snapshot
from tests.faults.proxy import Proxy
from tests.faults.snapshot import Readers
from tests.faults.stream import DEAD_LETTERS, INVENTORY, ORDERS, Stream, events

LEASE_SECONDS = 3
REST_SECONDS = 90
READY_SECONDS = 120
PRODUCTS = 3
TENANTS = 2
_POLL_SECONDS = 0.1
Proxies = Mapping[str, Proxy]
"""API → the proxy in front of it, if there is one."""

_GROUPS = {INVENTORY_API: ORDERS, ORDER_API: INVENTORY}


class System:
    """One or more processes of each kind over the same databases, with readers of the databases and of Kafka."""

    def __init__(self, stacks: list[Stack], access: Access, proxies: Proxies) -> None:
        self.stacks = stacks
        self.access = access
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
        files = self.access.files
        certificates = None if files is None else ReloadedCertificates(files.for_clients)
        for stack in self.stacks:
            api = Shop.connect(stack.inventory_address, stack.orders_address, certificates)
            with ShopDriver(stack, api) as shop:
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
        """Clients for new products. After the block, waits until the system is at rest and checks the histories."""
        recording = self.record(seed, products)
        yield recording.clients
        histories = recording.at_rest(fault_free=fault_free, poison=poison, within_seconds=rest_seconds)
        violations = check_tenants(histories)
        first = "\n".join(violations[:20])
        assert not violations, f"seed {seed}: {len(violations)} violations\n{first}"
        for history in histories:
            done = sum(call.fate == "done" for call in history.calls)
            assert done > 10, f"too few calls of {history.tenant} to test anything: {done}"

    def record(self, seed: int, products: int = PRODUCTS) -> "Recording":
        """Start to record the histories of new tenants. They are `default` only if identities are not checked."""
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
    """Histories that are being recorded: their clients, the calls and the events on Kafka."""

    def __init__(self, system: System, seed: int, products: int = PRODUCTS) -> None:
        self._system = system
        self._products = [new_id() for _ in range(products)]
        self.call_log = CallLog()
        self.stream = Stream(system.kafka)
        access = system.access
        if access.files is not None:
            # New names, because the clients of two histories with the same seed use the same request ids.
            access = replace(access, tenants=tuple(f"tenant-{secrets.token_hex(4)}" for _ in range(TENANTS)))
        self.clients = Clients(access, self.call_log, self._products, seed)

    def at_rest(
        self, *, fault_free: bool = False, poison: frozenset[str] = frozenset(), within_seconds: float = REST_SECONDS
    ) -> list[History]:
        """Wait until the system is at rest or the time is over. Returns the history of each tenant."""
        unfinished = self._system.wait_until_at_rest(self._products, within_seconds)
        read = events(self.stream.read(), self._products)
        dead_letters = [record.headers["ce_id"] for record in self.stream.read(DEAD_LETTERS)]
        snapshots = self._system.readers.snapshots(self._products)
        # A row or an event of any other tenant is an effect without a call.
        tenants = {*self.clients.access.tenants, *snapshots, *(event.tenant for event in read)}
        return [
            History(
                [call for call in self.call_log.calls if call.tenant == tenant],
                [event for event in read if event.tenant == tenant],
                snapshots.get(tenant, Snapshot()),
                dead_letters,
                poison,
                fault_free,
                unfinished,
                tenant,
                frozenset(self.call_log.seen.get(tenant, ())),
            )
            for tenant in sorted(tenants)
        ]


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
    is_secured: bool = True,
) -> Iterator[System]:
    """Starts `replicas` processes of each kind. An API is called at all its addresses, or through `proxy_for(port)`.

    With `is_secured`, the processes use TLS and check identities, the clients are of several tenants, and the processes
    use roles of PostgreSQL with row-level security. Several replicas then need a Build.
    """
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
    with ExitStack() as at_the_end:
        identity = None
        if is_secured:
            identity = identities.make(Path(at_the_end.enter_context(tempfile.TemporaryDirectory())))
        options = Options(environment=environment or {}, per_process=settings)
        Stack(databases, kafka, ports[0], options).migrate()
        if identity is not None:
            roles = at_the_end.enter_context(identities.roles(databases))
            settings = {
                name: {**of_process, **identity.settings.get(name, {}), **roles.get(name, {})}
                for name, of_process in settings.items()
            }
            options = replace(options, certificates=identity.certificates, per_process=settings)
        stacks = []
        for each, own_environment in zip(ports, per_replica or [{}] * replicas, strict=True):
            stack = Stack(
                databases, kafka, each, replace(options, environment={**options.environment, **own_environment})
            )
            at_the_end.callback(stack.stop)
            stacks.append(stack.start())
        access = Access(inventory, orders, None if identity is None else identity.of_clients)
        system = System(stacks, access, proxies)
        system.wait_ready()
        yield system


def _target(ports: Sequence[int], proxy: Proxy | None) -> str:
    return target_of(*([proxy.port] if proxy else ports))
