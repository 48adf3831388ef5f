"""Every event matches proto/asyncapi.yaml, and has the names that docs/events.md promises."""

from inventory_api.domain.model import Line
from testkit.contract import validator
from testkit.drivers.inventory_api import InventoryDriver


def test_every_type_of_event_is_emitted_and_matches_the_contract(inventory: InventoryDriver) -> None:
    for product in (1, 2):
        inventory.add_stock(product, 5, "A")
        inventory.add_stock(product, 5, "B")
    inventory.reserve_lines("shipped", Line(1, 7), Line(2, 1, "B"))
    inventory.confirm("shipped")
    inventory.ship("shipped")
    inventory.release(inventory.reserve(1, 2, order="released"))
    inventory.reserve(2, 6, order="cancelled")
    inventory.extend(24 * 3600, order="cancelled")
    inventory.confirm("cancelled")
    inventory.cancel("cancelled")
    inventory.make_due(inventory.reserve(1, 3, order="expired"))
    inventory.expire()
    inventory.add_stock(3, 2)
    inventory.reserve(3, 2, order="partial")
    inventory.confirm("partial")
    inventory.change_order("partial", 4, ordered={3: 2}, targets={3: (2, 1)})

    inventory.check_events_against_contract()
    assert {event.type for event in inventory.events()} == set(validator().types("inventory-events"))


def test_stock_reserved_has_the_units_the_order_and_the_allocations(inventory: InventoryDriver) -> None:
    a = inventory.add_stock(1, 8, "A")
    b = inventory.add_stock(1, 2, "B")

    held = inventory.reserve(1, 10, order="order-1")

    (event,) = inventory.events("STOCK_RESERVED")
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


def test_events_of_one_product_have_one_key_and_increasing_ids(inventory: InventoryDriver) -> None:
    inventory.add_stock(7, 5)
    inventory.add_stock(8, 5)
    inventory.release(inventory.reserve(7, 1))

    events = inventory.events()
    assert [(event.key, event.type) for event in events] == [
        ("7", "STOCK_UPDATED"),
        ("7", "STOCK_MOVED"),
        ("8", "STOCK_UPDATED"),
        ("8", "STOCK_MOVED"),
        ("7", "STOCK_RESERVED"),
        ("7", "STOCK_RELEASED"),
    ]
    assert [event.id for event in events] == sorted({event.id for event in events})
