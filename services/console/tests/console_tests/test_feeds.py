"""Viewers share what was read, and nothing is read when nobody looks."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from opentelemetry.trace import NonRecordingSpan

from console.feeds import feed
from console.feeds.feed import Feeds, Reading
from console.feeds.processes import troubles
from console.feeds.shop import NEXT_STATUSES
from libs.common.tests.recorded import Spans
from order_api.domain.model import LEGAL_CHANGES
from shop_client.errors import OrderNotFound
from shop_common.telemetry import tracing


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def test_twenty_viewers_share_one_read_and_another_session_has_its_own() -> None:
    async def run() -> None:
        feeds, reads = Feeds(), {"one": 0, "other": 0}

        def reader(session: str) -> Callable[[], Awaitable[str]]:
            async def read() -> str:
                reads[session] += 1
                return session

            return read

        def look(session: str) -> Reading[str]:
            return feeds.look("orders", (session, None), reader(session), every=60)

        for _ in range(20):
            look("one")
        look("other")
        await _until(lambda: look("one").value is not None and look("other").value is not None)
        assert (look("one").value, look("other").value) == ("one", "other")
        assert reads == {"one": 1, "other": 1}

        feeds.read_now("orders")
        await _until(lambda: reads == {"one": 2, "other": 2})

    asyncio.run(run())


def test_nothing_is_read_after_the_last_viewer_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "UNWATCHED_SECONDS", 0.05)

    async def run() -> None:
        feeds, reads = Feeds(), 0

        async def read() -> int:
            nonlocal reads
            reads += 1
            return reads

        feeds.look("orders", 1, read, every=0.01)
        await _until(lambda: not feeds.are_running)
        before = reads
        # The next look starts the feed again: its first reading is empty, and not an old value.
        assert feeds.look("orders", 1, read, every=0.01) == Reading()
        await _until(lambda: reads > before)

    asyncio.run(run())


def test_a_failed_read_keeps_the_value_and_shows_the_reason() -> None:
    async def run() -> None:
        feeds, fails = Feeds(), False

        async def read() -> str:
            if fails:
                raise OrderNotFound("there is no order 7")
            return "an order"

        def look() -> Reading[str]:
            return feeds.look("order", 1, read, every=0.01)

        await _until(lambda: look().value is not None)
        fails = True
        await _until(lambda: look().error is not None)
        assert (look().value, look().error) == ("an order", "There is no order 7 (ORDER_NOT_FOUND)")

    asyncio.run(run())


def test_each_read_is_a_span_and_its_calls_are_below_it() -> None:
    spans = Spans()

    async def run() -> str | None:
        async def read() -> str | None:
            return tracing.current_traceparent()

        feeds = Feeds()
        await _until(lambda: feeds.look("orders", 1, read, every=60).value is not None)
        return feeds.look("orders", 1, read, every=60).value

    traceparent = asyncio.run(run())

    (span,) = spans.all()
    assert span.name == "read orders"
    context = span.get_span_context()
    assert context is not None
    assert tracing.traceparent_of(NonRecordingSpan(context)) == traceparent


def test_the_worst_trouble_comes_first() -> None:
    found = list(troubles({"a": "ready", "b": "starting", "c": "down", "d": "frozen"}, []))

    assert [sentence[0] for sentence in found] == ["c", "d", "b"]


def test_the_buttons_are_the_status_changes_of_order_api() -> None:
    legal = {status.name: [each.name for each in changes] for status, changes in LEGAL_CHANGES.items() if changes}

    assert {status.name: [each.name for each in changes] for status, changes in NEXT_STATUSES.items()} == legal
