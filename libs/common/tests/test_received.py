"""How received events are grouped for handling."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from shop_common.events.received import Event, grouped_by_type


def event(key: str, kind: str, offset: int) -> Event:
    return Event(kind, key, f"id-{offset}", {}, datetime(2024, 1, 15, tzinfo=UTC), None, "facts", 0, offset)


def test_events_of_one_type_are_one_list() -> None:
    events = [event(f"key-{n % 3}", "OPENED", n) for n in range(9)]

    assert grouped_by_type(events) == [events]


def test_a_key_whose_type_changes_back_gets_three_lists() -> None:
    events = [event("a", "OPENED", 0), event("a", "CLOSED", 1), event("b", "CLOSED", 2), event("a", "OPENED", 3)]

    assert grouped_by_type(events) == [[events[2]], [events[0]], [events[1]], [events[3]]]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["OPENED", "CHANGED", "CLOSED"]))))
def test_every_event_is_in_one_list_of_its_type_and_keys_keep_their_order(told: list[tuple[str, str]]) -> None:
    events = [event(key, kind, offset) for offset, (key, kind) in enumerate(told)]

    lists = grouped_by_type(events)

    assert all(len({e.type for e in part}) == 1 for part in lists)
    worked_on = [e for part in lists for e in part]
    assert sorted(e.offset for e in worked_on) == [e.offset for e in events]
    for key in "abc":
        assert [e for e in worked_on if e.key == key] == [e for e in events if e.key == key]
