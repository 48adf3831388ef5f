"""The state of the system: health, rates and backlog of each process, and the worst trouble."""

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from console import words
from console.settings import Watched
from shopctl.watch.backlog import OLDEST_SECONDS_MAX
from shopctl.watch.scrape import Interval, Scrape, scrape

HEALTH_SECONDS = 1.0
"""A process that does not respond within this time is shown as frozen."""

SCRAPE_SECONDS = 1.5

_OPTIONS = (
    # After a restart, connect at once. By default gRPC would wait for up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_http_proxy", 0),
)

Check: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]"


@dataclass(frozen=True)
class ProcessState:
    """A process. `state` is ready, starting, frozen or down; `figures` are pairs of a label and a value."""

    name: str
    state: str
    figures: tuple[tuple[str, str], ...]

    @property
    def is_ready(self) -> bool:
        return self.state == "ready"


@dataclass(frozen=True)
class SystemState:
    """All processes, and one sentence for each trouble, the worst first."""

    processes: tuple[ProcessState, ...]
    troubles: tuple[str, ...]


class SystemReader:
    """Reads the state of the watched processes. Use it from one event loop."""

    def __init__(self, watched: Sequence[Watched]) -> None:
        self._watched = watched
        self._checks: dict[str, Check] = {}
        self._scrapes: dict[str, Scrape] = {}
        self._intervals: dict[str, Interval] = {}
        self._scraped_at = float("-inf")

    async def read(self) -> SystemState:
        """Check the health of all processes, and scrape their metrics if SCRAPE_SECONDS have passed."""
        states, _ = await asyncio.gather(
            asyncio.gather(*(self._health(one.health) for one in self._watched)), self._scrape_all()
        )
        found = {one.name: state for one, state in zip(self._watched, states, strict=True)}
        alive = {name: each for name, each in self._intervals.items() if found[name] in ("ready", "starting")}
        return SystemState(
            tuple(ProcessState(name, state, figures(alive.get(name))) for name, state in found.items()),
            tuple(troubles(found, alive.values())),
        )

    async def _health(self, address: str) -> str:
        check = self._checks.get(address)
        if check is None:
            check = self._checks[address] = grpc.aio.insecure_channel(address, _OPTIONS).unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
        try:
            response = await check(health_pb2.HealthCheckRequest(), timeout=HEALTH_SECONDS)
        except grpc.aio.AioRpcError as error:
            return "frozen" if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else "down"
        return "ready" if response.status == health_pb2.HealthCheckResponse.SERVING else "starting"

    async def _scrape_all(self) -> None:
        if time.monotonic() - self._scraped_at < SCRAPE_SECONDS:
            return
        self._scraped_at = time.monotonic()
        await asyncio.gather(*(self._scrape(one.name, one.metrics) for one in self._watched if one.metrics))

    async def _scrape(self, name: str, address: str) -> None:
        # The parser is slow, so it runs on a thread.
        found = await asyncio.to_thread(scrape, address)
        before = self._scrapes.pop(name, None)
        self._intervals.pop(name, None)
        if isinstance(found, Scrape):
            self._scrapes[name] = found
            self._intervals[name] = Interval(before or found, found)


def figures(interval: Interval | None) -> tuple[tuple[str, str], ...]:
    """Return the numbers that matter of one process, from its metrics."""
    if interval is None:
        return ()
    return tuple(_figures(interval))


def _figures(interval: Interval) -> Iterator[tuple[str, str]]:
    calls = interval.histogram("rpc_server_call_duration_seconds").get(())
    if calls is not None:
        yield "calls", words.rate(calls.rate)
        yield "99 % within", words.duration(calls.quantile(0.99))
        yield "refused or failed", words.rate(sum(interval.rate("rpc_server_errors_total").values()))
    for (state,), count in sorted(interval.gauge("shop_holds", "state").items()):
        yield f"{state} reservations", words.whole(count)
    for withheld in interval.gauge("shop_withheld_units").values():
        yield "withheld units", words.whole(withheld)
    for (topic,), lag in sorted(interval.gauge("shop_consumer_lag_messages", "topic").items()):
        yield f"lag on {topic}", words.whole(lag)
    for (database,), pending in sorted(interval.gauge("shop_outbox_pending_events", "database").items()):
        yield f"{database} events waiting", words.whole(pending)
    shipped = interval.rate("shop_relay_shipped_events_total", "database")
    for (database,), per_second in sorted(shipped.items()):
        yield f"{database} events sent", words.rate(per_second)
    for (task,), done in sorted(interval.rate("shop_reaper_done_total", "task").items()):
        yield task, words.rate(done)


def troubles(states: Mapping[str, str], intervals: Iterable[Interval]) -> Iterator[str]:
    """Yield a sentence for each trouble, the worst first."""
    sentences = {
        "down": "{} does not accept connections: it is not running, or is starting again.",
        "frozen": "{} is running, but does not respond: it is frozen or overloaded.",
        "starting": "{} is running, but not ready: it waits for its database or the broker, or is starting or ending.",
    }
    for state, sentence in sentences.items():
        yield from (sentence.format(name) for name, found in states.items() if found == state)
    for interval in intervals:
        oldest = interval.gauge("shop_outbox_oldest_event_age_seconds", "database")
        for (database,), seconds in sorted(oldest.items()):
            if seconds > OLDEST_SECONDS_MAX:
                waiting = words.duration(seconds)
                yield f"Events of the {database} database have waited for {waiting}: the relay or the broker is slow."
        for (database,), shards in sorted(interval.gauge("shop_relay_blocked_shards", "database").items()):
            if shards:
                yield f"The relay cannot send the oldest event of {shards:.0f} shards of the {database} database."
