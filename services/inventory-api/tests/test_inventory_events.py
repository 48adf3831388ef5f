"""Every event keeps the contract of proto/asyncapi.yaml, in the words that the users' documentation fixes."""

from stockroom import Stockroom

from inventory_api.domain.model import Line
from testkit.contract import validator


def test_every_type_of_event_is_emitted_as_the_contract_says(stockroom: Stockroom) -> None:
    for product in (1, 2):
        stockroom.add(product, 5, "A")
        stockroom.add(product, 5, "B")
    stockroom.hold_lines("shipped", Line(1, 7), Line(2, 1, "B"))
    stockroom.confirm("shipped")
    stockroom.ship("shipped")
    stockroom.release(stockroom.hold(1, 2, order="released"))
    stockroom.hold(2, 6, order="cancelled")
    stockroom.confirm("cancelled")
    stockroom.cancel("cancelled")
    stockroom.lapse(stockroom.hold(1, 3, order="expired"))
    stockroom.expire()

    stockroom.hold_events_against_the_contract()
    assert {event.type for event in stockroom.events()} == set(validator().types("inventory-events"))


def test_a_hold_is_told_with_its_units_its_order_and_where_they_are(stockroom: Stockroom) -> None:
    a = stockroom.add(1, 8, "A")
    b = stockroom.add(1, 2, "B")

    held = stockroom.hold(1, 10, order="order-1")

    (event,) = stockroom.events("STOCK_RESERVED")
    assert event.key == "1"
    assert event.data.pop("expires_at").endswith("Z")
    assert event.data == {
        "product_id": 1,
        "reserved_quantity": 10,
        "order_id": "order-1",
        "reservation_id": held.id,
        "allocations": [
            {"item_id": a.id, "location": "A", "quantity": 8},
            {"item_id": b.id, "location": "B", "quantity": 2},
        ],
    }


def test_events_of_one_product_have_one_key_and_rising_ids(stockroom: Stockroom) -> None:
    stockroom.add(7, 5)
    stockroom.add(8, 5)
    stockroom.release(stockroom.hold(7, 1))

    events = stockroom.events()
    assert [(event.key, event.type) for event in events] == [
        ("7", "STOCK_UPDATED"),
        ("8", "STOCK_UPDATED"),
        ("7", "STOCK_RESERVED"),
        ("7", "STOCK_RELEASED"),
    ]
    assert [event.id for event in events] == sorted({event.id for event in events})
