"""A batch of requests is bounded by the number of rows that it works on."""

from collections import Counter

from sqlalchemy import select

from inventory_api.domain.commands import AddStock, OrderLines, OrderRequest, ReleaseRequest, StockQuestion
from inventory_api.domain.model import Line, ProductKey, Reservation
from inventory_api.operations import batch_sizes
from inventory_api.store import items, tables
from inventory_api.store.reservations import by_order, rows
from shop_common.batching.coalescer import BATCH_WEIGHT_MAX
from shop_common.identity.tenant import DEFAULT
from testkit.drivers.inventory_api import InventoryDriver, deadline, order_key, stock_key


def events_by_transaction(inventory: InventoryDriver, event_type: str) -> list[int]:
    """The number of events of this type in each transaction, ascending. Events of a transaction have the same time."""
    outbox = tables.outbox.table
    with inventory.database.read() as tx:
        timestamps = tx.execute(select(outbox.c.created_at).where(outbox.c.type == event_type)).scalars()
        return sorted(Counter(timestamps).values())


def reserve_orders(inventory: InventoryDriver, orders: int, lines: int) -> list[OrderRequest]:
    """Reserve one unit of each of `lines` products for each order."""
    added = [AddStock(product, "A", orders) for product in range(1, lines + 1)]
    inventory.operations._add_stock.submit_many(added, deadline=deadline())
    order_lines = tuple(Line(product, 1, None) for product in range(1, lines + 1))
    commands = [OrderLines(f"order-{number}", order_lines) for number in range(orders)]
    for outcome in inventory.operations._reserve.submit_many(commands, deadline=deadline()):
        assert isinstance(outcome, list)
    return [OrderRequest(order.order_id) for order in commands]


def spread(inventory: InventoryDriver, product: int, locations: int) -> Reservation:
    """Reserve one unit at each of this many locations."""
    added = [AddStock(product, f"SHELF_{number}", 1) for number in range(locations)]
    inventory.operations._add_stock.submit_many(added, deadline=deadline())
    return inventory.reserve(product, locations, order=f"order-{product}")


def test_many_large_orders_are_confirmed_in_several_transactions(inventory: InventoryDriver) -> None:
    orders = reserve_orders(inventory, orders=25, lines=200)

    outcomes = inventory.operations._confirm.submit_many(orders, deadline=deadline())

    assert all(isinstance(outcome, list) and len(outcome) == 200 for outcome in outcomes)
    by_transaction = events_by_transaction(inventory, "STOCK_RESERVATION_CONFIRMED")
    assert sum(by_transaction) == 25 * 200
    assert by_transaction[-1] <= BATCH_WEIGHT_MAX


def test_reservations_of_many_locations_are_released_in_several_transactions(inventory: InventoryDriver) -> None:
    reservations = [spread(inventory, product, locations=100) for product in range(1, 31)]

    requests = [ReleaseRequest(reservation.id) for reservation in reservations]
    outcomes = inventory.operations._release.submit_many(requests, deadline=deadline())

    assert outcomes == [100] * 30
    by_transaction = events_by_transaction(inventory, "STOCK_RELEASED")
    assert sum(by_transaction) == 30
    assert by_transaction[-1] <= BATCH_WEIGHT_MAX // 100


def test_rows_are_counted_per_key(inventory: InventoryDriver) -> None:
    reservation = spread(inventory, product=1, locations=7)
    reserve_orders(inventory, orders=2, lines=3)
    order_ids = {order_key("order-0"), order_key("order-1"), order_key("order-unknown")}
    with inventory.database.read() as tx:
        assert by_order.count_unreleased(tx, order_ids) == {order_key("order-0"): 3, order_key("order-1"): 4}
        assert rows.count_allocations(tx, {reservation.key}) == {reservation.key: 7}
        assert items.count_locations(tx, {ProductKey(DEFAULT, 1), ProductKey(DEFAULT, 2), ProductKey(DEFAULT, 99)}) == {
            ProductKey(DEFAULT, 1): 8,
            ProductKey(DEFAULT, 2): 1,
        }


def test_reservations_of_an_order_that_have_expired_or_were_released_are_not_counted(
    inventory: InventoryDriver,
) -> None:
    inventory.add_stock(1, 10)
    for _ in range(3):
        inventory.release(inventory.reserve(1, 1, order="order-0"))
    inventory.reserve(1, 1, order="order-0")

    with inventory.database.read() as tx:
        assert by_order.count_unreleased(tx, {order_key("order-0")}) == {order_key("order-0"): 1}


def test_checks_of_one_product_in_one_batch_count_its_locations_once(inventory: InventoryDriver) -> None:
    spread(inventory, product=1, locations=30)
    questions = [StockQuestion(stock_key(1))] * 9 + [StockQuestion(stock_key(product)) for product in range(2, 10)]
    with inventory.database.read() as tx:
        assert len(batch_sizes.QUESTIONS.prefix_within(tx, questions, 30)) == len(questions)
        assert len(batch_sizes.QUESTIONS.prefix_within(tx, questions, 29)) == 1
