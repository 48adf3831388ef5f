"""Generated requests, and bytes that are not requests: no internal error, no crash, no growth in memory."""

import os
import random
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from uuid import UUID

import psutil
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from devstack.kafka import Kafka
from devstack.postgres import PostgresServer
from devstack.process import Process
from devstack.stack import Databases
from shopctl.client import SERVICES, Shop
from tests.e2e.bad_values import A_UUID, cases, good
from tests.faults.history import DEFECTS
from tests.faults.system import System, running

REQUESTS_VARIABLE = "FAULTS_REQUESTS"
REQUESTS_A_SECOND_MIN = 50
REQUESTS, REQUESTS_SHORT = 20_000, 3_000
REQUESTS_AN_ORDER = 1_000
IN_FLIGHT_MAX = 64
CALL_SECONDS = 20
GROWTH_MAX = 1.15
CONNECTIONS, CONNECTIONS_SHORT = 300, 60
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

pytestmark = pytest.mark.timeout(600 + int(os.environ.get(REQUESTS_VARIABLE, "0")) / REQUESTS_A_SECOND_MIN)


@pytest.fixture(scope="module")
def system(postgres_server: PostgresServer, own_broker: Kafka) -> Iterator[System]:
    with running(Databases.on_server(postgres_server), own_broker, is_secured=False) as system:
        yield system


@pytest.mark.short
def test_bytes_that_are_not_requests(system: System, seed: int, is_short: bool) -> None:
    # This test comes first: its history does not know the orders that generated requests create.
    chance = random.Random(seed)
    ports = system.stacks[0].ports
    before = {process.pid: memory(process) for process in system.processes}
    for _ in range(CONNECTIONS_SHORT if is_short else CONNECTIONS):
        port = chance.choice([ports.inventory, ports.orders, ports.reaper, ports.relay])
        # The server may close the connection at any time.
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.settimeout(5)
            connection.sendall(chance.choice([b"", PREFACE]) + chance.randbytes(chance.randint(1, 20_000)))
            if chance.random() < 0.5:
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65_536):
                    pass
    for process in system.processes:
        process.wait_ready(CALL_SECONDS)
        assert memory(process) < before[process.pid] * GROWTH_MAX
    with system.history(seed, fault_free=True) as clients, clients.working():
        clients.wait_for(40)


@pytest.mark.short
def test_generated_requests(system: System, seed: int, is_short: bool) -> None:
    chance = random.Random(seed)
    requests = int(os.environ.get(REQUESTS_VARIABLE, REQUESTS_SHORT if is_short else REQUESTS))
    stack = system.stacks[0]
    codes: dict[str, int] = {}
    with Shop.connect(stack.inventory_address, stack.orders_address) as api:
        methods = [(method, stub_of(api, method)) for service in SERVICES for method in service.methods]
        bad = {method.full_name: [case.request for case in cases(method)] for method, _ in methods}
        sizes: dict[str, int] = {}
        pending: deque[tuple[MethodDescriptor, Any]] = deque()
        for number in range(requests):
            method, stub = chance.choice(methods)
            request = generated(method, bad, chance)
            # A single order with the reservations of a million requests would itself need much memory.
            rename_order(request, str(UUID(int=1 + number // REQUESTS_AN_ORDER)))
            pending.append((method, stub.future(request, timeout=CALL_SECONDS)))
            while len(pending) >= IN_FLIGHT_MAX or (pending and number == requests - 1):
                called, future = pending.popleft()
                code = future.code().name
                codes[code] = codes.get(code, 0) + 1
                assert code not in DEFECTS, f"seed {seed}: {called.full_name} failed with {code}: {future.details()}"
            if number == requests // 2:
                # All caches are filled by now.
                sizes = {process.name: memory(process) for process in stack.processes}
    assert codes.get("INVALID_ARGUMENT", 0) > requests / 4, codes
    assert codes.get("OK", 0) > 0, codes
    for process in stack.processes:
        assert process.alive
        process.wait_ready(CALL_SECONDS)
        assert memory(process) < sizes[process.name] * GROWTH_MAX, f"{process.name} grows: {sizes}"


def rename_order(message: Any, order_id: str) -> None:
    """Replace the order id of all valid requests by this one."""
    for field, value in message.ListFields():
        if field.name == "order_id" and value == A_UUID:
            setattr(message, field.name, order_id)
        elif field.message_type is not None:
            for each in value if field.is_repeated else [value]:
                rename_order(each, order_id)


def generated(method: MethodDescriptor, bad: dict[str, list[Message]], chance: random.Random) -> Message:
    """A request with up to three bad fields, sometimes none."""
    request = good(method.input_type)
    # A request without fields cannot be bad.
    for _ in range(chance.randint(0, 3) if bad[method.full_name] else 0):
        request.MergeFrom(chance.choice(bad[method.full_name]))
    return request


def stub_of(api: Shop, method: MethodDescriptor) -> Any:
    services = {
        "InventoryService": api.inventory,
        "InventoryMaintenanceService": api.inventory_maintenance,
        "OrderService": api.orders,
        "OrderMaintenanceService": api.order_maintenance,
        "ApiKeyService": api.api_keys,
    }
    return getattr(services[method.containing_service.name], method.name)


def memory(process: Process) -> int:
    """Resident memory of the process in bytes."""
    return int(psutil.Process(process.pid).memory_info().rss)
