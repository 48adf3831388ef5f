"""Each method of Shop and AsyncShop calls its RPC, and returns values or raises the error of the reason."""

import asyncio
import inspect
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from shop_client import (
    AllocationPolicy,
    AllocationStrategy,
    AsyncShop,
    ChangedStock,
    Charge,
    ChargeKind,
    ErasedUser,
    ItemUnits,
    Line,
    MovementKind,
    NewItem,
    NewOrder,
    Order,
    OrderLines,
    OrderStatus,
    RedrivenLetter,
    RedriveOutcome,
    ReservationState,
    ReturnedUnits,
    ReturnTreatment,
    Settings,
    Shop,
    ShopError,
    StockChange,
    calls,
    errors,
)
from shop_client.calls import Method
from shop_protos.inventory.v1 import inventory_pb2
from shop_protos.order.v1 import order_pb2
from testkit.eventually import eventually

PRICE = Decimal("19.99")
UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"


def test_stock_is_added_counted_and_listed(shop: Shop, product: int) -> None:
    item = shop.add_stock(product, 10, "WAREHOUSE_A")
    other = shop.add_stock(product, 5, "WAREHOUSE_B")

    assert (item.product_id, item.location, item.quantity, item.available_quantity) == (product, "WAREHOUSE_A", 10, 10)
    assert item.created_at.tzinfo is UTC
    assert abs(datetime.now(UTC) - item.created_at) < timedelta(hours=1)
    assert shop.get_item(item.id) == item
    assert shop.set_quantity(item.id, 7, version=item.version).quantity == 7
    assert [each.id for each in shop.list_items(product_id=product, page_size=1)] == [item.id, other.id]
    assert [each.id for each in shop.list_items(product_id=product, location="WAREHOUSE_B")] == [other.id]
    counted, received = shop.list_movements(product_id=product, location="WAREHOUSE_A", page_size=1)
    assert (counted.kind, counted.quantity, counted.quantity_after) == (MovementKind.COUNTED, -3, 7)
    assert [received] == list(
        shop.list_movements(
            product_id=product, created_before=counted.created_at, kind=received.kind, location="WAREHOUSE_A"
        )
    )
    assert shop.get_past_item(item.id, received.created_at).quantity == 10
    past = list(shop.list_past_items(counted.created_at, product_id=product, page_size=1))
    assert [(each.id, each.location, each.quantity) for each in past][:1] == [(item.id, "WAREHOUSE_A", 7)]
    with pytest.raises(errors.ItemNotFound):
        shop.get_past_item(item.id, received.created_at - timedelta(seconds=1))
    stock = shop.check_stock(product, 12)
    assert (stock.is_available, stock.available_quantity) == (True, 12)
    assert not shop.check_stock(product, 8, location="WAREHOUSE_A").is_available


def test_a_batch_changes_the_stock_of_items(shop: Shop, product: int) -> None:
    happened = datetime(2024, 1, 15, tzinfo=UTC)
    changes = [
        StockChange(product, received=5, reason="delivery", reference="note 7", occurred_at=happened),
        StockChange(product, "WAREHOUSE_B", adjusted=-1),
        StockChange(product, counted=3),
    ]

    for _ in range(2):
        received, absent, counted = shop.batch_change_stock(changes, request_id=f"changes-{product}")
        assert isinstance(absent, errors.ItemNotFound)
        assert isinstance(received, ChangedStock)
        assert isinstance(counted, ChangedStock)
        assert (counted.item.quantity, counted.target) == (3, None)

    _, movement = shop.list_movements(product_id=product)
    assert (movement.kind, movement.quantity, movement.reason) == (MovementKind.RECEIVED, 5, "delivery")
    assert (movement.reference, movement.occurred_at) == ("note 7", happened)
    with pytest.raises(errors.ChangesRefused) as refused:
        shop.batch_change_stock(
            [StockChange(product, received=1), StockChange(product, counted=9, version=1)], atomic=True
        )
    assert (refused.value.change, refused.value.change_reason) == (1, "VERSION_MISMATCH")
    (moved,) = shop.batch_change_stock([StockChange(product, moved=2, to_location="WAREHOUSE_B")])
    assert isinstance(moved, ChangedStock)
    assert moved.target is not None
    assert (moved.item.quantity, moved.target.location, moved.target.quantity) == (1, "WAREHOUSE_B", 2)
    with pytest.raises(ValueError, match="needs one"):
        shop.batch_change_stock([StockChange(product, moved=2)])
    with pytest.raises(ValueError, match="exactly one"):
        shop.batch_change_stock([StockChange(product)])


def test_the_stock_of_products_is_read_at_one_moment(shop: Shop, product: int) -> None:
    shop.add_stock(product, 10, "WAREHOUSE_A")
    shop.add_stock(product, 5, "WAREHOUSE_B")
    reservation = shop.reserve(product, 2, f"order-{product}", location="WAREHOUSE_B")

    unknown, found = shop.get_availability([2**60, product], by_location=True)

    assert (unknown.product_id, unknown.available_quantity, unknown.locations) == (2**60, 0, ())
    assert (found.available_quantity, found.reserved_quantity) == (13, 2)
    assert found.next_release_at == reservation.expires_at
    assert abs(found.read_at - reservation.created_at) < timedelta(hours=1)
    assert [(each.location, each.available_quantity, each.reserved_quantity) for each in found.locations] == [
        ("WAREHOUSE_A", 10, 0),
        ("WAREHOUSE_B", 3, 2),
    ]


def test_nothing_is_reserved_at_an_inactive_location(shop: Shop, product: int) -> None:
    where = f"L{product}"
    shop.add_stock(product, 10, where)

    location = shop.update_location(where, is_active=False, priority=7, region="north", labels={"kind": "store"})

    assert (location.location, location.is_active, location.priority, location.region) == (where, False, 7, "north")
    assert location.labels == {"kind": "store"}
    with pytest.raises(errors.InsufficientStock):
        shop.reserve(product, 1, "order-1")
    assert shop.update_location(where, is_active=True).labels == location.labels
    assert where in [each.location for each in shop.list_locations(page_size=1)]
    assert shop.reserve(product, 1, "order-1").quantity == 1


def test_reservations_are_made_confirmed_listed_and_released(shop: Shop, product: int) -> None:
    shop.add_stock(product, 10)
    order_id = f"order-{product}"

    reservation = shop.reserve(product, 2, order_id, ttl_seconds=600)

    assert (reservation.quantity, reservation.order_id, reservation.state) == (2, order_id, ReservationState.HELD)
    assert reservation.expires_at is not None
    assert timedelta(seconds=590) < reservation.expires_at - reservation.created_at <= timedelta(seconds=600)
    assert sum(part.quantity for part in reservation.allocations) == 2
    (merged,) = shop.reserve_lines(order_id, [Line(product, 1), Line(product, 2, "WAREHOUSE_A")])
    assert merged.quantity == 3
    confirmed = shop.confirm_reservations(order_id)
    assert {each.id: each.state for each in confirmed} == dict.fromkeys(
        (reservation.id, merged.id), ReservationState.CONFIRMED
    )
    assert shop.get_reservation(merged.id).expires_at is None
    assert len(list(shop.list_reservations(order_id=order_id, page_size=1))) == 2
    assert shop.release(reservation.id) == 2
    assert shop.release(reservation.id) == 2
    with pytest.raises(errors.ReservationNotFound):
        shop.release(UNKNOWN_ID)
    with pytest.raises(errors.InvalidInput) as malformed:
        shop.release("no-uuid")
    assert [each.field for each in malformed.value.violations] == ["reservation_id"]
    listed = list(shop.list_reservations(product_id=product, state=ReservationState.RELEASED))
    assert [each.id for each in listed] == [reservation.id]


def test_reservations_are_extended_up_to_a_limit(shop: Shop, product: int) -> None:
    shop.add_stock(product, 3)
    order_id = f"order-{product}"
    held = shop.reserve(product, 2, order_id, ttl_seconds=60)

    (extended,) = shop.extend_reservations(order_id, 3600)

    assert held.expires_at is not None
    assert extended.expires_at is not None
    assert timedelta(seconds=3500) < extended.expires_at - held.expires_at < timedelta(seconds=3600 + 600)
    assert shop.get_reservation(held.id) == extended
    with pytest.raises(errors.ExtensionLimit) as limit:
        shop.extend_reservations(order_id, 7 * 24 * 3600)
    assert limit.value.metadata["order_id"] == order_id


def test_expired_reservations_are_taken_again(shop: Shop, product: int) -> None:
    shop.add_stock(product, 3)
    order_id = f"order-{product}"
    expired = shop.reserve(product, 2, order_id, ttl_seconds=1)
    eventually(lambda: shop.get_reservation(expired.id).state is ReservationState.EXPIRED)
    with pytest.raises(errors.ReservationExpired):
        shop.confirm_reservations(order_id)

    (retaken,) = shop.confirm_reservations(order_id, retake=True)

    assert (retaken.state, retaken.quantity) == (ReservationState.CONFIRMED, 2)
    assert shop.get_reservation(expired.id).state is ReservationState.REPLACED
    assert shop.confirm_reservations(order_id) == [retaken]


def test_a_policy_chooses_the_locations_of_a_line(shop: Shop, product: int) -> None:
    for name in ("A", "B", "C"):
        shop.add_stock(product, 5, f"{name}{product}")
    policy = AllocationPolicy(AllocationStrategy.AS_GIVEN, (f"C{product}", f"A{product}", f"B{product}"))

    (reservation,) = shop.reserve_lines("order-1", [Line(product, 7, policy=policy)])

    assert {part.location: part.quantity for part in reservation.allocations} == {f"C{product}": 5, f"A{product}": 2}
    few = AllocationPolicy(max_locations=1, excluded_locations=(f"A{product}",))
    with pytest.raises(errors.InsufficientStock) as refused:
        shop.reserve_lines("order-1", [Line(product, 6, policy=few)])
    assert refused.value.available == 5


def test_what_is_available_is_reserved_in_part(shop: Shop, product: int) -> None:
    shop.add_stock(product, 5)

    (reservation,) = shop.reserve_lines(
        "order-1", [Line(product, 7), Line(2**60, 1)], allow_partial=True, request_id=f"part-{product}"
    )

    assert (reservation.product_id, reservation.quantity) == (product, 5)
    with pytest.raises(errors.InsufficientStock):
        shop.reserve_lines("order-1", [Line(product, 7)], allow_partial=True)


def test_a_batch_has_an_outcome_for_each_order(shop: Shop, product: int) -> None:
    shop.add_stock(product, 3)

    first, second, third = shop.batch_reserve(
        [
            OrderLines("batch-1", (Line(product, 2),)),
            OrderLines("batch-2", (Line(product, 2),), request_id=f"second-{product}"),
            OrderLines("batch-3", (Line(product, 1),), ttl_seconds=60),
        ]
    )

    assert isinstance(first, list)
    assert [each.quantity for each in first] == [2]
    assert isinstance(second, errors.InsufficientStock)
    assert (second.available, second.request_id) == (1, f"second-{product}")
    assert isinstance(third, list)


def test_orders_are_created_changed_and_listed(shop: Shop, product: int) -> None:
    shop.add_stock(product, 10)
    before = datetime.now(UTC) - timedelta(hours=1)

    order = shop.create_order(product, [NewItem(product, 2, PRICE), NewItem(product, 1, Decimal(5))], "EUR")

    assert (order.user_id, order.status, order.currency) == (product, OrderStatus.PENDING, "EUR")
    assert order.total_amount == Decimal("44.98")
    assert [(item.quantity, item.price) for item in order.items] == [(2, PRICE), (1, Decimal(5))]
    assert order.reserved_until > order.created_at
    assert shop.get_order(order.id) == order
    confirmed = shop.update_order_status(order.id, OrderStatus.CONFIRMED, reason="paid")
    assert (confirmed.status, confirmed.status_reason) == (OrderStatus.CONFIRMED, "paid")
    second = shop.create_order(product, [NewItem(product, 1, PRICE)], "EUR")
    listed = list(shop.list_orders(user_id=product, created_after=before, page_size=1))
    assert [each.id for each in listed] == [second.id, order.id]
    assert [each.id for each in shop.list_orders(user_id=product, status=OrderStatus.CONFIRMED)] == [order.id]
    assert list(shop.list_orders(user_id=product, created_before=before)) == []


def test_a_buyer_gets_no_more_units_than_the_limit(shop: Shop, product: int) -> None:
    shop.add_stock(product, 10)
    item = NewItem(product, 2, PRICE, buyer_limit=3)
    shop.create_order(product, [item], "EUR")

    with pytest.raises(errors.BuyerLimitExceeded) as refused:
        shop.create_order(product, [item], "EUR")

    error = refused.value
    assert (error.product_id, error.limit, error.bought, error.requested) == (product, 3, 2, 2)


def test_an_order_has_charges_a_reference_labels_locations_and_a_history(shop: Shop, product: int) -> None:
    shop.add_stock(product, 10, "WAREHOUSE_A")
    charges = [
        Charge(ChargeKind.SHIPPING, Decimal("4.90"), "parcel"),
        Charge(ChargeKind.DISCOUNT, Decimal("1.50")),
    ]
    reference, labels = f"cart-{product}", {"channel": f"web-{product}"}

    order = shop.create_order(
        product,
        [NewItem(product, 2, PRICE, "WAREHOUSE_A")],
        "EUR",
        charges=charges,
        external_reference=reference,
        labels=labels,
    )

    assert order.total_amount == Decimal("43.38")
    assert (order.charges, order.external_reference, order.labels) == (tuple(charges), reference, labels)
    assert [item.location for item in order.items] == ["WAREHOUSE_A"]
    assert hash(order) == hash(shop.get_order(order.id))
    shop.update_order_status(order.id, OrderStatus.CONFIRMED, reason="paid")
    history = shop.get_order(order.id).history
    assert [(each.status, each.reason) for each in history] == [
        (OrderStatus.PENDING, ""),
        (OrderStatus.CONFIRMED, "paid"),
    ]
    assert order.created_at <= history[0].at <= history[1].at
    for found in (
        shop.list_orders(external_reference=reference),
        shop.list_orders(label=("channel", labels["channel"])),
        shop.list_orders(product_id=product),
        shop.list_orders(user_id=product, statuses=[OrderStatus.CONFIRMED, OrderStatus.SHIPPED]),
    ):
        assert [each.id for each in found] == [order.id]
    after = history[1].at + timedelta(hours=1)
    assert list(shop.list_orders(updated_after=after)) == []


def test_a_batch_of_orders_has_an_outcome_for_each(shop: Shop, product: int) -> None:
    shop.add_stock(product, 3)
    item = NewItem(product, 2, PRICE)

    first, second, third = shop.batch_create_orders(
        [
            NewOrder(product, (item,), "EUR", ttl_seconds=60),
            NewOrder(product, (item,), "EUR", request_id=f"second-{product}"),
            NewOrder(0, (item,), "EUR"),
        ]
    )

    assert isinstance(first, Order)
    assert shop.get_order(first.id) == first
    assert isinstance(second, errors.InsufficientStock)
    assert (second.available, second.request_id) == (1, f"second-{product}")
    assert isinstance(third, errors.InvalidInput)


def test_half_an_order_is_shipped_and_the_rest_is_cancelled(shop: Shop, product: int) -> None:
    shop.add_stock(product, 10)
    order = shop.create_order(product, [NewItem(product, 2, PRICE)], "EUR")
    for status in (OrderStatus.CONFIRMED, OrderStatus.PROCESSING):
        shop.update_order_status(order.id, status)
    one = ItemUnits(order.items[0].id, 1)

    partial = shop.create_shipment(order.id, [one], carrier="DHL", tracking_number="17")
    ended = shop.cancel_order_items(order.id, [one], reason="the last one was damaged")

    (shipment,) = partial.shipments
    assert (shipment.items, shipment.carrier, shipment.tracking_number) == ((one,), "DHL", "17")
    assert (partial.status, partial.items[0].shipped) == (OrderStatus.PROCESSING, 1)
    assert (ended.status, ended.items[0].shipped, ended.items[0].cancelled) == (OrderStatus.SHIPPED, 1, 1)
    found = shop.get_order(order.id)
    assert found == ended
    assert [each.status for each in found.history] == [
        *(OrderStatus.PENDING, OrderStatus.CONFIRMED, OrderStatus.PROCESSING, OrderStatus.SHIPPED)
    ]
    assert found.history[0].at == found.created_at
    with pytest.raises(errors.IllegalTransition):
        shop.create_shipment(order.id)


def test_a_shipped_unit_of_an_order_comes_back(shop: Shop, product: int) -> None:
    shop.add_stock(product, 5)
    order = shop.create_order(product, [NewItem(product, 3, PRICE)], "EUR")
    for status in (OrderStatus.CONFIRMED, OrderStatus.PROCESSING, OrderStatus.SHIPPED):
        shop.update_order_status(order.id, status)
    item_id = order.items[0].id
    units = (
        ReturnedUnits(item_id, 1, ReturnTreatment.RESTOCK, "WAREHOUSE_B"),
        ReturnedUnits(item_id, 1, ReturnTreatment.DISCARD),
        ReturnedUnits(item_id, 1, ReturnTreatment.WITHHOLD, "WAREHOUSE_B", "DAMAGED"),
    )

    back = shop.create_return(order.id, units, reason="too small")

    (found,) = back.returns
    assert (found.items, found.reason) == (units, "too small")
    assert (back.status, back.items[0].shipped, back.items[0].returned) == (OrderStatus.SHIPPED, 3, 3)
    assert shop.get_order(order.id) == back
    with pytest.raises(errors.UnitsNotReturnable) as refused:
        shop.create_return(order.id, units)
    assert refused.value.metadata["returnable"] == "0"
    with pytest.raises(ValueError, match="UNKNOWN"):
        shop.create_return(order.id, [ReturnedUnits(item_id, 1, ReturnTreatment.UNKNOWN)])


def test_the_stock_of_an_order_is_held_for_longer(shop: Shop, product: int) -> None:
    shop.add_stock(product, 2)
    order = shop.create_order(product, [NewItem(product, 2, PRICE)], "EUR", ttl_seconds=60)

    extended = shop.extend_order(order.id, 7200)

    assert extended.reserved_until - order.reserved_until > timedelta(seconds=7000)
    assert shop.get_order(order.id) == extended
    shop.update_order_status(order.id, OrderStatus.CANCELLED)
    with pytest.raises(errors.OrderNotPending) as refused:
        shop.extend_order(order.id, 7200)
    assert refused.value.metadata["status"] == "CANCELLED"


def test_the_lines_of_an_order_are_changed(shop: Shop, product: int) -> None:
    shop.add_stock(product, 5)
    order = shop.create_order(product, [NewItem(product, 2, PRICE)], "EUR")
    fee = Charge(ChargeKind.FEE, Decimal(1))
    units = [ItemUnits(order.items[0].id, 3)]

    changed = shop.change_order(
        order.id, order.version, items=units, new_items=[NewItem(product, 1, PRICE)], charges=[fee], currency="EUR"
    )

    assert [item.quantity for item in changed.items] == [3, 1]
    assert (changed.total_amount, changed.charges) == (4 * PRICE + 1, (fee,))
    assert shop.get_order(order.id) == changed
    with pytest.raises(errors.VersionMismatch) as refused:
        shop.change_order(order.id, order.version, items=units)
    assert (refused.value.expected, refused.value.actual) == (order.version, changed.version)
    with pytest.raises(errors.InsufficientStock):
        shop.change_order(order.id, changed.version, items=[ItemUnits(order.items[0].id, 6)])
    shop.update_order_status(order.id, OrderStatus.CANCELLED)
    with pytest.raises(errors.OrderNotChangeable) as ended:
        shop.change_order(order.id, changed.version, items=units)
    assert ended.value.metadata["status"] == "CANCELLED"


def test_an_order_that_expired_is_reinstated(shop: Shop, product: int) -> None:
    shop.add_stock(product, 2)
    order = shop.create_order(product, [NewItem(product, 2, PRICE)], "EUR", ttl_seconds=1)
    with pytest.raises(errors.NotReinstatable) as pending:
        shop.reinstate_order(order.id)
    assert pending.value.metadata["status"] == "PENDING"
    eventually(lambda: shop.check_stock(product).available_quantity == 2)
    with pytest.raises(errors.ReservationExpired):
        shop.update_order_status(order.id, OrderStatus.CONFIRMED)

    reinstated = shop.reinstate_order(order.id, reason="paid late")

    assert (reinstated.status, reinstated.status_reason) == (OrderStatus.CONFIRMED, "paid late")
    assert shop.get_order(order.id) == reinstated
    assert shop.check_stock(product).available_quantity == 0


def test_the_caller_is_known(shop: Shop) -> None:
    caller = shop.get_caller()

    assert (caller.name, caller.tenant) == ("anyone", "default")
    assert {"admin", "orders.any"} <= set(caller.permissions)


def test_a_user_is_erased_from_ended_orders(shop: Shop, product: int) -> None:
    shop.add_stock(product, 5)
    ended, other = (shop.create_order(product, [NewItem(product, 1, PRICE)], "EUR") for _ in range(2))
    shop.update_order_status(ended.id, OrderStatus.CANCELLED, reason="too late")

    assert shop.erase_user(product) == ErasedUser(1, has_more=False, has_open_orders=True)

    erased = shop.get_order(ended.id)
    assert (erased.user_id, erased.status, erased.status_reason) == (0, OrderStatus.CANCELLED, "")
    assert [order.id for order in shop.list_orders(user_id=product)] == [other.id]


def test_dead_letters_are_redriven_by_the_api_that_consumes_their_topic(shop: Shop) -> None:
    for redrive in (shop.redrive_order_events, shop.redrive_inventory_events):
        assert redrive([(0, 2**62), (99, 0)]) == [RedrivenLetter(RedriveOutcome.NOT_FOUND, "")] * 2
        with pytest.raises(errors.InvalidInput):
            redrive([])


def test_the_asyncio_client_makes_the_same_calls(settings: Settings, product: int) -> None:
    async def use() -> None:
        async with AsyncShop(settings) as shop:
            item = await shop.add_stock(product, 10)
            await shop.add_stock(product, 5, "WAREHOUSE_B")
            assert await shop.get_item(item.id) == item
            assert (await shop.set_quantity(item.id, 20)).quantity == 20
            assert [each.location async for each in shop.list_items(product_id=product, page_size=1)] == [
                "WAREHOUSE_A",
                "WAREHOUSE_B",
            ]
            assert len([each async for each in shop.list_movements(product_id=product, page_size=1)]) == 3
            assert (await shop.check_stock(product, 25)).is_available
            (availability,) = await shop.get_availability([product])
            assert (availability.available_quantity, availability.locations) == (25, ())
            location = await shop.update_location("WAREHOUSE_B", priority=1)
            assert location in [each async for each in shop.list_locations()]
            order_id = f"order-{product}"
            reservation = await shop.reserve(product, 2, order_id)
            await shop.reserve_lines(order_id, [Line(product, 1)])
            with pytest.raises(errors.InsufficientStock) as refused:
                await shop.reserve(product, 100, order_id)
            assert refused.value.available == 22
            (kept,) = await shop.batch_reserve([OrderLines(order_id, (Line(product, 1),))])
            assert isinstance(kept, list)
            assert len(await shop.extend_reservations(order_id, 3600)) == 3
            assert len(await shop.confirm_reservations(order_id)) == 3
            assert (await shop.get_reservation(reservation.id)).state is ReservationState.CONFIRMED
            assert len([each async for each in shop.list_reservations(order_id=order_id, page_size=2)]) == 3
            assert await shop.release(reservation.id) == 2
            order = await shop.create_order(product, [NewItem(product, 1, PRICE)], "EUR")
            order = await shop.update_order_status(order.id, OrderStatus.CANCELLED)
            assert await shop.get_order(order.id) == order
            cancelled = await shop.create_order(product, [NewItem(product, 1, PRICE)], "EUR")
            cancelled = await shop.cancel_order_items(cancelled.id, [ItemUnits(cancelled.items[0].id, 1)])
            assert cancelled.status is OrderStatus.CANCELLED
            with pytest.raises(errors.IllegalTransition):
                await shop.create_shipment(cancelled.id)
            unit = ReturnedUnits(cancelled.items[0].id, 1, ReturnTreatment.DISCARD)
            with pytest.raises(errors.UnitsNotReturnable):
                await shop.create_return(cancelled.id, [unit])
            with pytest.raises(errors.NotReinstatable):
                await shop.reinstate_order(cancelled.id)
            with pytest.raises(errors.OrderNotChangeable):
                await shop.change_order(cancelled.id, 1, charges=())
            with pytest.raises(errors.OrderNotPending):
                await shop.extend_order(cancelled.id, 60)
            assert [each async for each in shop.list_orders(user_id=product)] == [cancelled, order]
            (other,) = await shop.batch_create_orders([NewOrder(product, (NewItem(product, 1, PRICE),), "EUR")])
            assert isinstance(other, Order)
            assert (await shop.erase_user(product)).erased_orders == 2
            for redrive in (shop.redrive_order_events, shop.redrive_inventory_events):
                assert [each.outcome for each in await redrive([(0, 2**62)])] == [RedriveOutcome.NOT_FOUND]
            assert (await shop.get_caller()).tenant == "default"

    asyncio.run(use())


def test_both_clients_have_the_same_methods() -> None:
    def methods(client: type) -> dict[str, list[str]]:
        found = inspect.getmembers(client, inspect.isfunction)
        return {name: list(inspect.signature(each).parameters) for name, each in found if not name.startswith("_")}

    assert methods(Shop) == methods(AsyncShop)


def test_every_rpc_for_callers_has_a_call() -> None:
    """Single calls that the client sends as a batch of one need no call of their own."""
    services = (
        inventory_pb2.DESCRIPTOR.services_by_name["InventoryService"],
        order_pb2.DESCRIPTOR.services_by_name["OrderService"],
    )
    rpcs = {method.name for service in services for method in service.methods}
    sent_as_batches = {"ReserveStock", "ReleaseStock", "CreateOrder"}

    assert {each.name for each in vars(calls).values() if isinstance(each, Method)} == rpcs - sent_as_batches


# --- errors ---


def test_errors_have_the_class_and_the_values_of_their_reason(shop: Shop, product: int) -> None:
    item = shop.add_stock(product, 10)

    with pytest.raises(errors.InsufficientStock) as short:
        shop.reserve(product, 11, "order-1", location="WAREHOUSE_A", request_id=f"short-{product}")
    assert (short.value.product_id, short.value.requested, short.value.available) == (product, 11, 10)
    assert (short.value.location, short.value.request_id) == ("WAREHOUSE_A", f"short-{product}")
    with pytest.raises(errors.VersionMismatch) as mismatch:
        shop.set_quantity(item.id, 5, version=99)
    assert (mismatch.value.expected, mismatch.value.actual) == (99, item.version)
    shop.reserve(product, 4, "order-1")
    with pytest.raises(errors.BelowReserved) as below:
        shop.set_quantity(item.id, 3)
    assert (below.value.requested, below.value.reserved) == (3, 4)
    with pytest.raises(errors.QuantityLimit) as limit:
        shop.add_stock(product, 9 * 10**15)
    assert limit.value.quantity == 10
    with pytest.raises(errors.ItemNotFound):
        shop.get_item(2**60)
    with pytest.raises(errors.ReservationNotFound):
        shop.confirm_reservations(f"no-such-order-{product}")
    with pytest.raises(errors.OrderNotFound):
        shop.get_order(UNKNOWN_ID)
    order = shop.create_order(product, [NewItem(product, 1, PRICE)], "EUR")
    with pytest.raises(errors.IllegalTransition) as illegal:
        shop.update_order_status(order.id, OrderStatus.SHIPPED)
    assert illegal.value.legal == ("CONFIRMED", "CANCELLED")


def test_invalid_fields_are_named(shop: Shop) -> None:
    with pytest.raises(errors.InvalidInput) as invalid:
        shop.create_order(0, [NewItem(0, 1, PRICE)], "EUR")

    assert {each.field for each in invalid.value.violations} == {"user_id", "items[0].product_id"}
    assert invalid.value.reason == "INVALID_FIELD"


def test_a_repeat_with_the_same_request_id_has_one_effect(shop: Shop, product: int) -> None:
    shop.add_stock(product, 10)
    request_id = f"repeat-{product}"

    first = shop.reserve(product, 2, "order-1", request_id=request_id)

    assert shop.reserve(product, 2, "order-1", request_id=request_id).id == first.id
    assert shop.check_stock(product).available_quantity == 8
    with pytest.raises(errors.RequestIdReused):
        shop.reserve(product, 3, "order-1", request_id=request_id)


def test_a_change_without_request_id_gets_one(shop: Shop) -> None:
    with pytest.raises(errors.InsufficientStock) as refused:
        shop.reserve(2**60, 1, "order-1")

    assert len(refused.value.request_id) == 36


def test_a_closed_client_makes_no_calls(settings: Settings, product: int) -> None:
    shop = Shop(settings)
    shop.check_stock(product)
    shop.close()
    shop.close()

    with pytest.raises(errors.Cancelled):
        shop.check_stock(product)
    with pytest.raises(errors.Cancelled):
        shop.reserve(product, 1, "order-1")


def test_a_server_that_does_not_exist_is_unavailable_at_the_deadline() -> None:
    with Shop(Settings("127.0.0.1:1", "127.0.0.1:1", timeout_seconds=0.5)) as shop:
        with pytest.raises((errors.Unavailable, errors.DeadlineExceeded)):
            shop.check_stock(1)
        with pytest.raises((errors.Unavailable, errors.DeadlineExceeded)) as failed:
            shop.reserve(1, 1, "order-1", request_id="mine")
        assert isinstance(failed.value, ShopError)
        assert failed.value.request_id == "mine"
