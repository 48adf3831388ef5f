"""Ending a stack without leaving an event behind: what a broker that keeps nothing asks for."""

import time
from collections.abc import Callable

from sqlalchemy import text

from devstack.kafka import Kafka
from devstack.ports import free_ports
from devstack.stack import STOP_SECONDS, Stack
from shop_common.db.database import plain_engine
from shopctl.events.topics import READERS

_POLL_SECONDS = 0.1
_SAY_SECONDS = 1.0

Say = Callable[[str], None]


def drain(stack: Stack, seconds: float, say: Say) -> bool:
    """End the four processes once every event is shipped and acted upon, within about that time.

    Whether that succeeded. `say` is told what is waited for.
    """
    begin = time.monotonic()
    deadline = begin + seconds
    stack.reaper.stop(STOP_SECONDS)
    # The APIs hold the consumers, so most is done while they still run; then they take no more calls. Clients that
    # go on calling cause new events all the time, so half of the time is kept for what they can no longer reach.
    _settle(stack, begin + seconds / 2, say)
    _stop_apis(stack)
    shipped = _wait(lambda: _unshipped(stack), deadline, say)
    if shipped and unread(stack.kafka) and time.monotonic() < deadline:
        # Their last calls were told of when their consumers had ended. Read on, where no client finds them.
        stack.move_apis(*free_ports(2))
        stack.inventory_api.start()
        stack.order_api.start()
        _settle(stack, deadline, say)
        _stop_apis(stack)
    left = _waiting(stack)
    stack.stop()
    if left:
        say(f"gave up: {left}; the broker keeps nothing: what was shipped and not acted upon is lost")
    return not left


def backlog(url: str) -> int:
    """How many events wait in the outbox of a database."""
    engine = plain_engine(url)
    with engine.connect() as tx:
        return int(tx.execute(text("SELECT count(*) FROM outbox")).scalar_one())


def unread(kafka: Kafka) -> int:
    """How many events lie in the topics that have not been acted upon."""
    return sum(kafka.lag(group, topic) for topic, group in READERS.items())


def _settle(stack: Stack, deadline: float, say: Say) -> None:
    # Acting on an event may write the next one, so quiet counts only when it was seen twice.
    _wait(lambda: _waiting(stack) or _waiting(stack), deadline, say)


def _wait(waiting: Callable[[], str], deadline: float, say: Say) -> bool:
    said, say_next = "", 0.0
    while now := waiting():
        if time.monotonic() > deadline:
            return False
        if now != said and time.monotonic() > say_next:
            say(f"waiting: {now}")
            said, say_next = now, time.monotonic() + _SAY_SECONDS
        time.sleep(_POLL_SECONDS)
    return True


def _waiting(stack: Stack) -> str:
    if unshipped := _unshipped(stack):
        return unshipped
    count = unread(stack.kafka)
    return f"{count} events to act upon" if count else ""


def _unshipped(stack: Stack) -> str:
    count = backlog(stack.databases.inventory) + backlog(stack.databases.orders)
    return f"{count} events to ship" if count else ""


def _stop_apis(stack: Stack) -> None:
    # Orders first: a call of theirs may still need the inventory.
    stack.order_api.stop(STOP_SECONDS)
    stack.inventory_api.stop(STOP_SECONDS)
