"""Ends a stack after all events were handled, because the in-memory broker loses its events when it ends."""

import time
from collections.abc import Callable

from sqlalchemy import text

from devstack.kafka import Kafka
from devstack.ports import free_ports
from devstack.stack import STOP_SECONDS, Stack
from shop_common.db.database import plain_engine
from shopctl.events.topics import READERS

_POLL_SECONDS = 0.1
_REPORT_SECONDS = 1.0

Report = Callable[[str], None]


def drain(stack: Stack, seconds: float, report: Report) -> bool:
    """End the four processes as soon as all events were shipped and handled, or after about `seconds`.

    Returns whether all events were handled. Calls `report` with the number of events that it waits for.
    """
    begin = time.monotonic()
    deadline = begin + seconds
    stack.reaper.stop(STOP_SECONDS)
    # The consumers run in the APIs, so most events are handled while the APIs still run. Clients that continue to call
    # cause new events, so half of the time is reserved for the phase in which no client can call.
    _settle(stack, begin + seconds / 2, report)
    _stop_apis(stack)
    shipped = _wait(lambda: _unshipped(stack), deadline, report)
    if shipped and unread(stack.kafka) and time.monotonic() < deadline:
        # Events of the last calls arrived after the consumers stopped. Restart the APIs on ports unknown to clients.
        stack.move_apis(*free_ports(2))
        stack.inventory_api.start()
        stack.order_api.start()
        _settle(stack, deadline, report)
        _stop_apis(stack)
    left = _waiting(stack)
    stack.stop()
    if left:
        report(
            f"gave up with {left}; events on the broker that were not handled are lost, because it is only in memory"
        )
    return not left


def backlog(url: str) -> int:
    """Return the number of events in the outbox of a database."""
    engine = plain_engine(url)
    with engine.connect() as tx:
        return int(tx.execute(text("SELECT count(*) FROM outbox")).scalar_one())


def unread(kafka: Kafka) -> int:
    """Return the number of events in the topics that were not handled yet."""
    return sum(kafka.lag(group, topic) for topic, group in READERS.items())


def _settle(stack: Stack, deadline: float, report: Report) -> None:
    # Handling an event may write another event, so check twice that no event is waiting.
    _wait(lambda: _waiting(stack) or _waiting(stack), deadline, report)


def _wait(waiting: Callable[[], str], deadline: float, report: Report) -> bool:
    reported, next_report = "", 0.0
    while now := waiting():
        if time.monotonic() > deadline:
            return False
        if now != reported and time.monotonic() > next_report:
            report(f"waiting: {now}")
            reported, next_report = now, time.monotonic() + _REPORT_SECONDS
        time.sleep(_POLL_SECONDS)
    return True


def _waiting(stack: Stack) -> str:
    if unshipped := _unshipped(stack):
        return unshipped
    count = unread(stack.kafka)
    return f"{count} events to handle" if count else ""


def _unshipped(stack: Stack) -> str:
    count = backlog(stack.databases.inventory) + backlog(stack.databases.orders)
    return f"{count} events to ship" if count else ""


def _stop_apis(stack: Stack) -> None:
    # Stop order-api first: its calls may still need inventory-api.
    stack.order_api.stop(STOP_SECONDS)
    stack.inventory_api.stop(STOP_SECONDS)
