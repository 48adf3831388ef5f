"""A feed: a value that several viewers share. It is read again while somebody looks, and never otherwise."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from shop_client.errors import ShopError
from shop_common.telemetry import logs, metrics, tracing

FETCH_SECONDS = 0.5
UNWATCHED_SECONDS = 3.0
"""A feed ends when nobody has looked for this time."""

FEEDS_MAX = 1000

_Value = TypeVar("_Value")

_running = metrics.gauge(__name__, "shop_console_running_feeds", "Views whose values are read repeatedly now")
_fetches = metrics.counter(__name__, "shop_console_fetches_total", "Reads of the value of a view", "view", "outcome")

_log = logs.get(__name__)


@dataclass(frozen=True)
class Reading(Generic[_Value]):
    """The newest value, and the error of the last read if it failed. `version` changes whenever one of them does.

    `value` is None until the first read has succeeded. A failed read keeps the value.
    """

    value: _Value | None = None
    error: str | None = None
    version: int = 0


class TooManyViews(Exception):
    """FEEDS_MAX different views are open."""


class Unreadable(Exception):
    """The value of a view cannot be read now. The message is for the viewer."""


class Feeds:
    """The running feeds of this process. Use it from the event loop only."""

    def __init__(self) -> None:
        self._feeds: dict[tuple[str, Hashable], _Feed[Any]] = {}

    @property
    def are_running(self) -> bool:
        return bool(self._feeds)

    def look(
        self, view: str, key: Hashable, fetch: Callable[[], Awaitable[_Value]], *, every: float = FETCH_SECONDS
    ) -> Reading[_Value]:
        """Return the newest reading. Starts the feed at the first look; each look keeps it running.

        Viewers with the same view and key share one feed. So the key must contain everything on which the value
        depends, above all the viewer's session. Raises TooManyViews.
        """
        feed = self._feeds.get((view, key))
        if feed is None:
            if len(self._feeds) >= FEEDS_MAX:
                raise TooManyViews
            feed = self._feeds[view, key] = _Feed(view, fetch, every, ended=lambda: self._feeds.pop((view, key), None))
            feed.start()
        return cast("Reading[_Value]", feed.look())

    def read_now(self, view: str) -> None:
        """Read the values of a view without waiting for the next turn, after an action has changed them."""
        for (name, _), feed in self._feeds.items():
            if name == view:
                feed.wake.set()


class _Feed(Generic[_Value]):
    def __init__(
        self, view: str, fetch: Callable[[], Awaitable[_Value]], every: float, ended: Callable[[], object]
    ) -> None:
        self._view = view
        self._fetch = fetch
        self._every = every
        self._ended = ended
        self._reading: Reading[_Value] = Reading()
        self._looked_at = time.monotonic()
        self.wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    def look(self) -> Reading[_Value]:
        self._looked_at = time.monotonic()
        return self._reading

    async def _run(self) -> None:
        _running().inc()
        try:
            while time.monotonic() - self._looked_at < UNWATCHED_SECONDS:
                self.wake.clear()
                await self._read()
                await _sleep(self.wake, self._every)
        finally:
            _running().dec()
            self._ended()

    async def _read(self) -> None:
        before = self._reading
        value, error = before.value, None
        try:
            with tracing.span(f"read {self._view}"):
                value = await self._fetch()
        except ShopError as refusal:
            error = in_words(refusal)
        except Unreadable as fault:
            error = str(fault)
        except Exception:
            # The view shows that the value is old. The next read may succeed.
            _log.exception("cannot read the value of a view", view=self._view)
            error = "The console could not read this. Its log has the cause."
        _fetches(self._view, "failed" if error else "done").inc()
        if (value, error) != (before.value, before.error):
            self._reading = Reading(value, error, before.version + 1)


def in_words(error: ShopError) -> str:
    """Return the message of an API for a person, with the reason that the documentation describes."""
    details = "; ".join(f"{one.field}: {one.description}" for one in error.violations)
    text = f"{error.message}: {details}" if details and details not in error.message else error.message
    return f"{text[:1].upper()}{text[1:]} ({error.reason})" if error.reason else text


async def _sleep(wake: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await wake.wait()
    except TimeoutError:
        return
