"""The orders with active reservations are listed, and SettleOrders does what their lost events would have done."""

import pytest
from sqlalchemy import select

from inventory_api.domain.commands import SettledOrder, SettleRequest
from inventory_api.domain.model import OrderKey, State
from inventory_api.operations.reservations.settle import Settlement
from inventory_api.store import tables
from inventory_api.store.reservations import reserved_orders
from shop_common.api.paging import PageRequest
from shop_common.identity.caller import Caller
from testkit.drivers.inventory_api import InventoryDriver, deadline, order_key

ORDER_API = Caller("spiffe://shop/order-api", frozenset({"delegate"}))


def listed(inventory: InventoryDriver, *, size: int = 1000) -> list[OrderKey]:
    """Return the orders of all pages."""
    found: list[OrderKey] = []
    after = None
    while True:
        request = PageRequest("reserved orders", None, after, size)
        page = inventory.operations.list_reserved_orders(request, deadline=deadline())
        assert len(page.rows) <= size
        found += page.rows
        after = page.next_position
        if after is None:
            return found


def settle(
    inventory: InventoryDriver, cancelled: list[str], shipped: list[str], *, version: int | None = None
) -> set[str]:
    def requests(orders: list[str]) -> tuple[SettledOrder, ...]:
        return tuple(SettledOrder(order, caller=ORDER_API, version=version) for order in orders)

    changed = inventory.operations.settle_orders(
        SettleRequest(requests(cancelled), requests(shipped)), deadline=deadline()
    )
    return {key.order_id for key in changed}


def test_orders_of_order_api_with_active_reservations_are_listed(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 20)
    for order in ("held", "confirmed", "released", "shipped"):
        reservation = inventory.reserve(1, 1, order=order)
        if order == "released":
            inventory.release(reservation)
        if order in ("confirmed", "shipped"):
            inventory.confirm(order)
    inventory.ship("shipped")
    of_another = inventory.calling_as(Caller("key:k1", frozenset({"stock.reserve"})))
    of_another.reserve(1, 1, order="cart")
    acme = inventory.calling_as(Caller("order-api", frozenset({"delegate"}), tenant="acme"))
    acme.add_stock(1, 5)
    acme.reserve(1, 1, order="held")

    expected = [order_key("confirmed"), OrderKey("acme", "", "held"), order_key("held")]
    assert listed(inventory) == expected
    assert listed(inventory, size=1) == expected


def test_small_windows_skip_no_order(inventory: InventoryDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    inventory.add_stock(1, 50)
    active = [f"order-{number:02}" for number in range(0, 12, 3)]
    for number in range(12):
        order = f"order-{number:02}"
        released = [inventory.reserve(1, 1, order=order) for _ in range(3)]
        if order in active:
            inventory.reserve(1, 1, order=order)
        for reservation in released:
            inventory.release(reservation)

    for rows in (1, 2, 5):
        monkeypatch.setattr(reserved_orders, "WINDOW_ROWS", rows)
        found = [key.order_id for key in listed(inventory)]
        assert sorted(set(found)) == found
        assert set(active) <= set(found)


def test_a_cancelled_order_is_released_and_a_shipped_one_is_fulfilled_once(inventory: InventoryDriver) -> None:
    item = inventory.add_stock(1, 20)
    reservations = {order: inventory.reserve(1, 2, order=order) for order in ("c", "held", "s", "unknown-to-the-call")}
    inventory.confirm("c")
    inventory.confirm("s")

    assert settle(inventory, ["c", "held", "nothing"], ["s"]) == {"c", "held", "s"}

    assert {order: inventory.state(each) for order, each in reservations.items()} == {
        "c": State.RELEASED, "held": State.RELEASED, "s": State.FULFILLED, "unknown-to-the-call": State.HELD,
    }  # fmt: skip
    assert (inventory.item(item).quantity, inventory.available(1)) == (18, 16)
    assert settle(inventory, ["c", "held", "nothing"], ["s"]) == set()
    # The events arrive after all.
    inventory.cancel("c", "held")
    inventory.ship("s")
    assert inventory.item(item).quantity == 18


def test_an_order_that_was_reinstated_since_it_was_read_is_left_alone(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 20)
    inventory.make_due(inventory.reserve(1, 2))
    (retaken,) = inventory.retake(version=3)

    settle(inventory, ["order-1"], [], version=2)
    assert inventory.state(retaken) is State.CONFIRMED

    # The order is still CANCELLED, because a crash interrupted its reinstatement.
    assert settle(inventory, ["order-1"], [], version=3) == {"order-1"}
    assert inventory.state(retaken) is State.RELEASED
    (released,) = inventory.events("STOCK_RELEASED")
    assert released.data["order_version"] == 3


def test_the_held_reservations_of_a_shipped_order_stay(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 20)
    held = inventory.reserve(1, 2)

    assert settle(inventory, [], ["order-1"]) == set()

    assert inventory.state(held) is State.HELD


def test_an_order_with_more_reservations_than_a_turn_is_settled_in_one_call(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 200)
    reservations = [inventory.reserve(1, 1, order="large") for _ in range(101)]
    inventory.confirm("large")

    assert settle(inventory, ["large"], []) == {"large"}

    assert {inventory.state(each) for each in reservations} == {State.RELEASED}


def test_each_settled_order_has_a_row_in_the_audit_log(inventory: InventoryDriver) -> None:
    inventory.add_stock(1, 20)
    inventory.reserve(1, 2, order="c")
    settlement = Settlement(inventory.database, tables.audit_log)
    request = SettleRequest(tuple(SettledOrder(order, caller=ORDER_API) for order in ("c", "nothing")), ())

    for _ in range(2):
        settlement.run(request)

    log = tables.audit_log.table
    with inventory.database.read() as tx:
        written = tx.execute(select(log.c.caller, log.c.method, log.c.resources)).all()
    assert [tuple(row) for row in written] == [(ORDER_API.name, "SettleOrders", '["c"]')]
