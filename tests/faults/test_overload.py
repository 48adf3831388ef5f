"""Ten times more than the shop can do: it does what it can, refuses the rest in time, and is itself right after."""

from collections import Counter
from collections.abc import Iterable

import pytest

from devstack.kafka import Kafka
from devstack.postgres import PostgresServer
from devstack.stack import Databases
from tests.faults.beside import always_serving, megabytes
from tests.faults.clients import LOCATIONS
from tests.faults.flood import Flood
from tests.faults.history import Call
from tests.faults.system import running

pytestmark = [pytest.mark.timeout(600), pytest.mark.short]

LINES = 40
"""An order of many lines costs the shop much and its buyer little, so that one buyer can overload one shop."""
STOCK = 10**6
BUYERS = 32
TIMES = 10
SECONDS, SECONDS_SHORT = 60, 10
REST_SECONDS = 300
MEASURE_SECONDS = 2
RECOVER_SECONDS = 20
SETTLED_MIN = 0.8
LATE_MAX = 0.01
GROWTH_MEGABYTES_MAX = 200


def test_ten_times_the_sustainable_rate(
    postgres_server: PostgresServer, own_broker: Kafka, seed: int, is_short: bool
) -> None:
    seconds = SECONDS_SHORT if is_short else SECONDS
    with (
        running(Databases.on_server(postgres_server), own_broker) as system,
        system.history(seed, products=LINES, rest_seconds=REST_SECONDS) as clients,
    ):
        clients.add_stock(LOCATIONS[0], lambda: STOCK)
        flood = Flood(clients)
        flood.at_once(BUYERS, MEASURE_SECONDS)
        sustainable = flood.at_once(BUYERS, MEASURE_SECONDS)
        before = {process.name: megabytes(process) for process in system.processes}
        calm_calls = len(clients.call_log.calls)
        with always_serving(system.processes):
            sent = flood.at_rate(TIMES * sustainable, seconds)
        words = told(clients.call_log.calls[calm_calls:])
        after = {process.name: megabytes(process) for process in system.processes}
        print(f"sustainable {sustainable:.0f}/s, sent {sent:.0f}/s, told {words}, MB {before} -> {after}")

        assert min(words["QUEUE_FULL"], words["done"]) > 0, f"it does what it can, no more: {words}"
        # What had begun when its time was up may have been done: UNAVAILABLE. gRPC itself makes CANCELLED of some
        # refusals that overtake their requests. Clients send both again.
        assert set(words) <= {"done", "QUEUE_FULL", "UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED"}
        if not is_short:
            # Rates, which a machine that others use at the same time decides as well.
            assert sent > 0.9 * TIMES * sustainable, "this machine can't send so many"
            assert words["QUEUE_FULL"] > words["done"] > sustainable * seconds / 2, f"it does what it can: {words}"
            settled = words["done"] + words["QUEUE_FULL"]
            assert settled > SETTLED_MIN * words.total(), f"most know what became of it: {words}"
            assert words["DEADLINE_EXCEEDED"] < LATE_MAX * words.total(), f"all hear in time: {words}"
        for name, size in before.items():
            assert after[name] < size + GROWTH_MEGABYTES_MAX, f"{name} grows: {before} {after}"
        system.eventually(
            lambda: flood.at_once(BUYERS, MEASURE_SECONDS / 2) > sustainable / 2, RECOVER_SECONDS, "the rate is back"
        )


def told(calls: Iterable[Call]) -> Counter[str]:
    """How often which word was given."""
    return Counter(word for call in calls for word in (call.refusals or call.infos or ["done"]))
