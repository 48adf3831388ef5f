"""Two processes of each kind, with clocks an hour ahead and an hour behind: only the database's clock counts."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from devstack.kafka import Kafka
from devstack.postgres import PostgresServer
from devstack.stack import Databases
from tests.faults.build import Build
from tests.faults.clients import Clients
from tests.faults.history import ChangeStatus, CreateOrder, Outcome, Refusal, UnitChange
from tests.faults.mutants import DATABASE_CLOCK
from tests.faults.system import running

pytestmark = pytest.mark.timeout(400)

HOUR_SECONDS = 3600
HELD_SECONDS = 1800
"""A reservation for this time is due at once for a process whose clock is two hours ahead of that of its maker."""

EXPIRY_SECONDS = 200

# Python runs this at its start. Only our own code gets the wrong time: gRPC computes deadlines in Python and enforces
# them in C, with a clock that cannot be changed from here.
_SITECUSTOMIZE = """
import sys
import time

import uuid_utils

SHIFT_SECONDS = {shift}
OURS = ("shop_common", "inventory_api", "order_api", "reservation_reaper", "event_relay")

_time, _time_ns, _uuid7 = time.time, time.time_ns, uuid_utils.uuid7


def is_ours(frame):
    return frame.f_globals.get("__name__", "").partition(".")[0] in OURS


time.time = lambda: _time() + SHIFT_SECONDS * is_ours(sys._getframe(1))
time.time_ns = lambda: _time_ns() + SHIFT_SECONDS * 10**9 * is_ours(sys._getframe(1))
uuid_utils.uuid7 = lambda: _uuid7(nanoseconds=_time_ns() + SHIFT_SECONDS * 10**9)
print("the clock is off by", SHIFT_SECONDS, flush=True)
"""


@pytest.fixture
def clocks(tmp_path: Path) -> list[Mapping[str, str]]:
    """The environments of a clock that is an hour ahead and of one that is an hour behind."""
    environments: list[Mapping[str, str]] = []
    for name, shift_seconds in (("ahead", HOUR_SECONDS), ("behind", -HOUR_SECONDS)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE.format(shift=shift_seconds))
        environments.append({"PYTHONPATH": str(folder)})
    return environments


@pytest.mark.short
def test_reservations_expire_by_the_clock_of_the_database(
    clocks: list[Mapping[str, str]], postgres_server: PostgresServer, own_broker: Kafka, tmp_path: Path, seed: int
) -> None:
    build = Build(tmp_path / "build")
    shifted = [with_build(clock, build) for clock in clocks]
    with running(Databases.on_server(postgres_server), own_broker, replicas=2, per_replica=shifted) as system:
        for stack, shift in zip(system.stacks, (HOUR_SECONDS, -HOUR_SECONDS), strict=True):
            assert all(f"the clock is off by {shift}" in process.log for process in stack.processes)
        with system.history(seed, fault_free=True) as clients, clients.working():
            clients.wait_for(300)
    assert any(
        call.answers
        for call in clients.call_log.calls
        if isinstance(call.operation, ChangeStatus) and call.operation.status == "CONFIRMED"
    )
    assert expired_too_early(clients) == 0, f"seed {seed}"


def test_with_the_clocks_of_the_processes_reservations_expire_too_early(
    clocks: list[Mapping[str, str]], postgres_server: PostgresServer, own_broker: Kafka, tmp_path: Path, seed: int
) -> None:
    build = Build(tmp_path / "build", DATABASE_CLOCK)
    wrong = [with_build(clock, build) for clock in clocks]
    with running(Databases.on_server(postgres_server), own_broker, replicas=2, per_replica=wrong) as system:
        clients = system.record(seed).clients
        clients.held_seconds = HELD_SECONDS
        with clients.working():
            # The time of the reservations ends long after the test, however slow the machine is.
            system.eventually(lambda: expired_too_early(clients) > 0, EXPIRY_SECONDS, "a reservation expires too early")


def with_build(clock: Mapping[str, str], build: Build) -> Mapping[str, str]:
    return {"PYTHONPATH": f"{clock['PYTHONPATH']}:{build.folder}"}


def expired_too_early(clients: Clients) -> int:
    """The number of confirmations refused before the reservation's expiry, because it has expired.

    The order may be CANCELLED already, for this reason. Orders that calls may have cancelled do not count.
    """
    recorded = list(clients.call_log.calls)  # the clients may still be working
    sent_at = {
        order_id: call.attempts[0].sent_at
        for call in recorded
        if isinstance(call.operation, CreateOrder)
        for order_id in call.answers
    }
    cancelled = {
        call.operation.order_id
        for call in recorded
        if isinstance(call.operation, UnitChange)
        or (isinstance(call.operation, ChangeStatus) and call.operation.status == "CANCELLED")
    }
    return sum(
        is_expired(attempt.outcome) and attempt.answered_at < sent_at[call.operation.order_id] + clients.held_seconds
        for call in recorded
        if isinstance(call.operation, ChangeStatus) and call.operation.status == "CONFIRMED"
        if call.operation.order_id not in cancelled
        for attempt in call.attempts
    )


def is_expired(outcome: Outcome) -> bool:
    if not isinstance(outcome, Refusal):
        return False
    return outcome.reason == "RESERVATION_EXPIRED" or (
        outcome.reason == "ILLEGAL_TRANSITION" and "'from': 'CANCELLED'" in outcome.text
    )
