"""Ten times the sustainable load: the system serves what it can, refuses the rest in time, and recovers at once."""

from collections import Counter
from collections.abc import Iterable

import pytest

from devstack.kafka import Kafka
from devstack.postgres import PostgresServer
from devstack.stack import Databases
from tests.faults.clients import LOCATIONS
from tests.faults.history import Call
from tests.faults.honest_client import always_serving, megabytes
from tests.faults.order_load import OrderLoad
from tests.faults.system import running

pytestmark = [pytest.mark.timeout(600), pytest.mark.short]

LINES = 40
"""Lines of an order. Large orders cost the system more than the sender, so that one sender can overload it."""
STOCK = 10**6
BUYERS = 32
TIMES = 10
SECONDS, SECONDS_SHORT = 60, 10
REST_SECONDS = 300
MEASURE_SECONDS = 2
RECOVER_SECONDS = 20
KNOWN_MIN = 0.8
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
        load = OrderLoad(clients)
        load.at_concurrency(BUYERS, MEASURE_SECONDS)
        sustainable = load.at_concurrency(BUYERS, MEASURE_SECONDS)
        before = {process.name: megabytes(process) for process in system.processes}
        calls_before = len(clients.call_log.calls)
        with always_serving(system.processes):
            sent = load.at_rate(TIMES * sustainable, seconds)
        counts = outcomes(clients.call_log.calls[calls_before:])
        after = {process.name: megabytes(process) for process in system.processes}
        print(f"sustainable {sustainable:.0f}/s, sent {sent:.0f}/s, outcomes {counts}, MB {before} -> {after}")

        assert min(counts["QUEUE_FULL"], counts["done"]) > 0, f"some calls are served and some are refused: {counts}"
        # UNAVAILABLE: a call that was running at its deadline may have taken effect. CANCELLED: gRPC reports a refusal
        # as CANCELLED if it arrives before the whole request was sent. Clients repeat both.
        assert set(counts) <= {"done", "QUEUE_FULL", "UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED"}
        if not is_short:
            # Rates depend on what else runs on the machine, so the short form, which CI runs, does not check them.
            assert sent > 0.9 * TIMES * sustainable, "this machine cannot send at this rate"
            assert counts["QUEUE_FULL"] > counts["done"] > sustainable * seconds / 2, f"too few calls served: {counts}"
            known = counts["done"] + counts["QUEUE_FULL"]
            assert known > KNOWN_MIN * counts.total(), f"too many calls with an unknown outcome: {counts}"
            assert counts["DEADLINE_EXCEEDED"] < LATE_MAX * counts.total(), f"too many late responses: {counts}"
        for name, size in before.items():
            assert after[name] < size + GROWTH_MEGABYTES_MAX, f"memory of {name} grows: {before} {after}"
        system.eventually(
            lambda: load.at_concurrency(BUYERS, MEASURE_SECONDS / 2) > sustainable / 2,
            RECOVER_SECONDS,
            "the rate is back",
        )


def outcomes(calls: Iterable[Call]) -> Counter[str]:
    """The number of calls by outcome: done, a reason or a status code."""
    return Counter(outcome for call in calls for outcome in (call.refusals or call.infos or ["done"]))
