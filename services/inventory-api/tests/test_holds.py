"""How many holds Prometheus is told of."""

import time

import pytest
from prometheus_client import REGISTRY
from stockroom import Stockroom

from inventory_api.operations import holds
from inventory_api.operations.holds import Holds, HoldsWatch
from shop_common.db.database import STEADY_PLANS

TOLD_SECONDS = 60


def count(stockroom: Stockroom) -> Holds:
    return stockroom.database.query(holds.count, STEADY_PLANS)


def test_what_is_held_is_counted_as_running_or_as_due(stockroom: Stockroom) -> None:
    stockroom.add(1, 20)
    for number in range(3):
        stockroom.hold(1, 1, order=f"running-{number}")
    stockroom.lapse(stockroom.hold(1, 1, order="late"))
    stockroom.hold(1, 1, order="confirmed")
    stockroom.confirm("confirmed")
    stockroom.release(stockroom.hold(1, 1, order="released"))

    assert count(stockroom) == Holds(running=3, due=1, stuck=0)

    stockroom.expire()

    assert count(stockroom) == Holds(running=3, due=0, stuck=0)


def test_no_more_are_counted_than_the_bound(stockroom: Stockroom, monkeypatch: pytest.MonkeyPatch) -> None:
    stockroom.add(1, 20)
    for number in range(5):
        stockroom.hold(1, 1, order=f"running-{number}")
    monkeypatch.setattr(holds, "COUNTED_MAX", 4)

    assert count(stockroom) == Holds(running=4, due=0, stuck=0)


def test_prometheus_is_told_at_once(stockroom: Stockroom) -> None:
    stockroom.add(1, 20)
    stockroom.hold(1, 1)
    watch = HoldsWatch(stockroom.database)
    watch.start()
    try:
        deadline = time.monotonic() + TOLD_SECONDS
        while REGISTRY.get_sample_value("shop_holds", {"state": "running"}) != 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        watch.stop()
    assert REGISTRY.get_sample_value("shop_holds", {"state": "due"}) == 0
