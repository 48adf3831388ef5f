"""Which events count as lost, and which units as oversold."""

from console.feeds.trial import LATE_SECONDS, REMEMBERED_MAX, Ledger


def test_an_order_waits_for_its_event() -> None:
    ledger = Ledger()
    ledger.created("a", 10)
    ledger.created("b", 12)
    assert (ledger.ordered, ledger.waiting, ledger.oldest_seconds(15)) == (2, 2, 5)

    ledger.arrived("a")
    ledger.arrived("a")

    assert (ledger.ordered, ledger.waiting, ledger.oldest_seconds(15)) == (2, 1, 3)


def test_an_event_may_come_before_the_response() -> None:
    ledger = Ledger()

    ledger.arrived("a")
    ledger.created("a", 10)

    assert (ledger.ordered, ledger.waiting) == (1, 0)


def test_an_event_that_is_missing_too_long_is_lost() -> None:
    ledger = Ledger()
    ledger.created("a", 10)
    ledger.created("b", 11)

    ledger.give_up(10 + LATE_SECONDS)
    assert ledger.lost == 0
    ledger.give_up(10.5 + LATE_SECONDS)

    assert (ledger.ordered, ledger.waiting, ledger.lost) == (2, 1, 1)


def test_the_orders_of_others_are_forgotten_in_time() -> None:
    ledger = Ledger()
    for number in range(REMEMBERED_MAX + 1):
        ledger.arrived(str(number))

    ledger.created("0", 0)
    ledger.created(str(REMEMBERED_MAX), 0)

    assert ledger.waiting == 1
