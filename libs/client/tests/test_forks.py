"""A fork waits for the running RPCs."""

import threading
from collections.abc import Callable

import pytest

from shop_client import forks
from shop_client.forks import Rpcs


def test_a_pause_waits_until_the_rpcs_in_flight_have_ended() -> None:
    rpcs, paused = Rpcs(), threading.Event()
    rpcs.begin()
    forking = threading.Thread(target=in_turn, args=[rpcs.pause, paused.set])
    forking.start()
    assert not paused.wait(0.2)

    rpcs.end()

    assert paused.wait(30)
    forking.join()


def test_an_rpc_starts_after_the_pause() -> None:
    rpcs, started = Rpcs(), threading.Event()
    rpcs.pause()
    calling = threading.Thread(target=in_turn, args=[rpcs.begin, started.set])
    calling.start()
    assert not started.wait(0.2)

    rpcs.resume()

    assert started.wait(30)
    calling.join()


def test_a_pause_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """For example, a signal handler forks after it has interrupted the RPC for which the pause would wait."""
    monkeypatch.setattr(forks, "WAIT_SECONDS_MAX", 0.2)
    rpcs = Rpcs()
    rpcs.begin()

    rpcs.pause()
    rpcs.resume()

    rpcs.begin()  # does not block


def in_turn(*functions: Callable[[], None]) -> None:
    for function in functions:
        function()
